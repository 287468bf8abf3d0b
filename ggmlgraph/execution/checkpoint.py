"""Checkpoints: a run's weights, optimiser state and counters on disk, complete or not there at all.

A checkpoint is a directory `step_NNNNNN/` with

    weights.safetensors    the model's weights, float32, by name, trained or not; of a fine-tuning run, those trained
    optimizer.safetensors  what the optimiser keeps of the trained ones, "m.NAME" and the like
    state.json             counters, the trainer's state, digests of the graph and of the values that stay in its file
                           (those of other types), size and SHA-256 of the other files

It is written into a temporary sibling, every file and directory is synced, then it is renamed, so a crash or a
full disk at any moment leaves only whole checkpoints behind. Nothing is ever overwritten. `load` checks everything
before it changes the first weight. Used by the trainer, by training/run.py and by `Runtime.save` and `.load`.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from ggmlgraph.durable import making
from ggmlgraph.errors import CheckpointError, GGError, UnsupportedError
from ggmlgraph.files.regular import open_regular, read_regular
from ggmlgraph.table.dialect import INPUT, PARAM

if TYPE_CHECKING:
    from ggmlgraph.execution.runtime import Runtime

VERSION = 1
MAX_STATE_NBYTES = 64 << 20
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
RESERVED = "__metadata__"  # what safetensors calls its notes
FILES = (WEIGHTS, OPTIMIZER)  # beside STATE, which lists them
CHUNK = 1 << 18  # numbers that are looked at, then written, while they are in a cache
_TYPES = {"<f4": "F32", "<i4": "I32", "|i1": "I8", "|u1": "U8"}  # safetensors' names of numpy's types

MAX_SRC = 10  # of an op, those that it does not take included

Arrays = dict[str, NDArray[Any]]


class FileRecord(msgspec.Struct, frozen=True):
    """What a file of the checkpoint must be."""

    nbytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of state.json."""

    version: int = VERSION
    graph: str  # `graph_digest`
    base: str = ""  # `base_digest`; empty in checkpoints that do not say it
    n_steps: int  # optimiser updates done
    optimizer: str = "adamw"  # whose state it is
    sizes: dict[str, int]  # batch and ctx it was trained at; it loads at any
    files: dict[str, FileRecord]
    state: dict[str, Any]  # the trainer's


class _Sealed(msgspec.Struct, frozen=True):
    sha256: str  # of the manifest's text
    manifest: msgspec.Raw


# ---------------------------------------------------------------- writing


class NotFiniteError(CheckpointError):
    """A weight, or what the optimiser keeps, has values that are not finite: such a state is never saved."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is to hold. The arrays are views of the runtime's memory: to be written before it changes."""

    arrays: dict[str, Arrays]  # by file
    manifest: Manifest  # without what is known of the files when they are written


def save(runtime: Runtime, directory: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint to `directory`, which must not exist yet.

    state: JSON values that `load` gives back. Raises CheckpointError if it cannot be written (disk full, no
    permission), NotFiniteError if a weight or the optimiser's state is not finite; then nothing is left behind.
    """
    write(snapshot(runtime, state), directory)


def snapshot(runtime: Runtime, state: dict[str, Any]) -> Snapshot:
    """What `write` is to write of a runtime as it is now."""
    check_names(runtime)
    contents = arrays(runtime)
    manifest = Manifest(
        graph=graph_digest(runtime),
        base=base_digest(runtime, contents[WEIGHTS]),
        n_steps=runtime.n_steps,
        optimizer=runtime.optimizer.name,
        sizes=runtime.sizes,
        files={},
        state=state,
    )
    return Snapshot(contents, manifest)


def arrays(runtime: Runtime) -> dict[str, Arrays]:
    """Views of what a checkpoint holds, by file and name."""
    trained, kept = runtime.state()
    weights = {name: trained.get(name, array) for name, array in _weights(runtime).items()}
    return {WEIGHTS: weights, OPTIMIZER: kept}


def write(snapshot: Snapshot, directory: Path, copied: Callable[[], object] = lambda: None) -> None:
    """As `save`. copied: called once the arrays are looked at no more, unless something is raised before."""
    if directory.exists():
        raise CheckpointError(f"{directory} exists already; checkpoints are never overwritten")
    try:
        with making(directory) as temporary:
            for name, arrays in snapshot.arrays.items():
                _write_arrays(temporary / name, arrays)
            copied()
            files = {name: _record(temporary / name) for name in snapshot.arrays}
            manifest = msgspec.json.encode(msgspec.structs.replace(snapshot.manifest, files=files))
            sealed = _Sealed(hashlib.sha256(manifest).hexdigest(), msgspec.Raw(manifest))
            (temporary / STATE).write_bytes(msgspec.json.encode(sealed) + b"\n")
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written: {error.strerror or error}") from None


def _write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a safetensors file. Its own writer would read each array twice, to be seen to be finite, and is slower."""
    header, at = {}, 0
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that all are aligned
    for name, array in ((name, arrays[name]) for name in order):
        ends = [at, at := at + array.nbytes]
        header[name] = {"dtype": _TYPES[array.dtype.str], "shape": list(array.shape), "data_offsets": ends}
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    with path.open("xb", buffering=0) as file:
        _write_all(file, struct.pack("<Q", len(text)) + text)
        for name in order:
            values = arrays[name].reshape(-1)
            for start in range(0, values.size, CHUNK):
                chunk = values[start : start + CHUNK]
                if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
                    raise NotFiniteError(f"{name} has values that are not finite; not saved")
                _write_all(file, chunk.data.cast("B"))


def _write_all(file: FileIO, data: bytes | memoryview) -> None:
    """A disk that is nearly full takes a part only; to go on then tells why."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _record(path: Path) -> FileRecord:
    file, size = open_regular(path)
    with file:
        return FileRecord(size, hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]


def graph_digest(runtime: Runtime) -> str:
    """Hash of the file's graph: ops, wiring, parameter names and shapes, not weights, nor batch and ctx, nor the roles
    that a run gives its tensors."""
    graph, exprs = runtime.model.file, runtime.metadata.exprs
    digest = hashlib.sha256()
    for i in range(len(graph)):
        name = graph.name(i) if graph.is_leaf(i) else ""
        if name.startswith("ggmlgraph."):
            continue  # metadata and tokenizer
        sized = graph.name(i) in exprs  # op_params hold an offset that follows batch and ctx
        shape = graph.shape(i) if graph.flags(i) & PARAM else None
        params = None if sized else graph.op_params(i)
        src = graph.src(i)
        src += [-1] * (MAX_SRC - len(src))
        line = [graph.op(i), src, graph.flags(i) & (PARAM | INPUT), name, shape, params]
        digest.update(msgspec.json.encode(line))
    return digest.hexdigest()


def _kept(runtime: Runtime) -> Iterator[int]:
    """Leafs whose values belong to the model: those trained, and others that are neither inputs, nor caches that runs
    write, nor as large as the batch."""
    graph = runtime.graph
    written = {graph.base(i) for i in graph.writes()}
    for i in graph.leafs():
        name, flags = graph.name(i), graph.flags(i)
        is_value = not flags & INPUT and i not in written and name not in runtime.metadata.exprs
        if flags & PARAM or (is_value and name and not name.startswith("ggmlgraph.")):
            yield i


def check_names(runtime: Runtime) -> None:
    """Raise UnsupportedError if a checkpoint could not hold the weights by their names; asked before a run begins."""
    names = Counter(runtime.graph.name(i) for i in _kept(runtime))
    for name, n in names.items():
        if n > 1:
            raise UnsupportedError(f"{n} weights of the graph are named {name!r}: a checkpoint cannot tell them apart")
        if name == RESERVED:
            raise UnsupportedError(f"a weight of the graph is named {name!r}, which no file of weights can hold")


def _weights(runtime: Runtime) -> Arrays:
    """Views of what a checkpoint holds, by name: all values in float32, so that it is a whole model; of a graph that
    fine-tunes another, which the run's graph file has whole, those that are trained."""
    graph, some = runtime.graph, runtime.metadata.finetuned is not None
    kept = (i for i in _kept(runtime) if graph.dtype(i) == "f32" and (graph.flags(i) & PARAM or not some))
    return {graph.name(i): runtime.input(graph.name(i)) for i in kept}


def base_digest(runtime: Runtime, names: Iterable[str]) -> str:
    """Hash of the values that a checkpoint of the weights `names` leaves to the graph file."""
    graph, inside, digest = runtime.graph, set(names), hashlib.sha256()
    for i in _kept(runtime):
        if graph.name(i) not in inside:
            digest.update(msgspec.json.encode([graph.name(i), graph.dtype(i), graph.shape(i)]))
            digest.update(graph.leaf_bytes(i))
    return digest.hexdigest()


# ---------------------------------------------------------------- reading


def load(runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Weights, moments and step count into the runtime; returns the state that was saved.

    Raises CheckpointError, before anything changes, if the checkpoint is incomplete, damaged or of another graph.
    """
    manifest = verify(directory)
    if manifest.optimizer != runtime.optimizer.name:
        raise CheckpointError(
            f"{directory} has the state of the optimiser {manifest.optimizer}, not of {runtime.optimizer.name}: go on "
            f"with that one, or begin anew with its weights (--init-from)"
        )
    trained, kept = runtime.state_at(manifest.n_steps)
    copies = [_check_weights(runtime, directory, manifest, trained), _check(directory / OPTIMIZER, kept)]
    for copy in copies:
        copy()
    runtime.n_steps = manifest.n_steps
    return manifest.state


def load_weights(runtime: Runtime, directory: Path) -> None:
    """As `load`, the weights only: for generation, which needs no memory for moments."""
    check(runtime, directory)()


def begin(runtime: Runtime, directory: Path) -> bool:
    """As `load`, for a run that may train other parameters: the optimiser then begins anew. Whether it goes on."""
    manifest = verify(directory)
    trained, kept = runtime.state_at(manifest.n_steps)
    same_kind = manifest.optimizer == runtime.optimizer.name
    goes_on = same_kind and kept.keys() == _contents(directory / OPTIMIZER).keys()
    copies = [_check_weights(runtime, directory, manifest, trained if goes_on else {})]
    if goes_on:
        copies.append(_check(directory / OPTIMIZER, kept))
    for copy in copies:
        copy()
    runtime.n_steps = manifest.n_steps if goes_on else 0
    return goes_on


def check(runtime: Runtime, directory: Path) -> Callable[[], None]:
    """See that the weights of a checkpoint are those of the runtime's graph; returns what copies them into it.

    Raises CheckpointError.
    """
    return _check_weights(runtime, directory, verify(directory, (WEIGHTS,)), {})


def _check_weights(runtime: Runtime, directory: Path, manifest: Manifest, trained: Arrays) -> Callable[[], None]:
    """trained: where values go of parameters that do not lie where they are to go."""
    weights, path = _weights(runtime), directory / WEIGHTS
    inside = {name: array for name, array in weights.items() if name in _contents(path)}
    copy = _check(path, {name: runtime.input(name) for name in runtime.params} | inside | trained)
    if manifest.graph != graph_digest(runtime):
        raise CheckpointError(f"{directory} is of another graph: same parameters, other operations")
    if manifest.base not in ("", base_digest(runtime, inside)):
        raise CheckpointError(f"{directory} is of another graph: same operations, other values of what it leaves to it")
    return copy


def _check(path: Path, arrays: Arrays) -> Callable[[], None]:
    """Compare a file with the arrays it is to fill; returns what fills them."""
    wanted, found = {key: ("F32", list(array.shape)) for key, array in arrays.items()}, _contents(path)
    if wanted != found:
        raise CheckpointError(f"{path} is of another graph: {_difference(wanted, found)}")

    def copy() -> None:
        with safe_open(path, "numpy") as file:
            for key, array in arrays.items():
                array[...] = file.get_tensor(key)

    return copy


def _contents(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of the file's tensors, by name."""
    with safe_open(path, "numpy") as file:
        stored = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        return {key: (s.get_dtype(), list(s.get_shape())) for key, s in stored.items()}


def _difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    for key in sorted(wanted.keys() | found.keys()):
        ours, theirs = wanted.get(key), found.get(key)
        if ours != theirs:
            described = ["nothing" if x is None else f"{x[0].lower()}{x[1]}" for x in (ours, theirs)]
            return f"{key} is {described[0]} in the graph, {described[1]} in the checkpoint"
    raise AssertionError("no difference")


def verify(directory: Path, names: Iterable[str] = FILES) -> Manifest:
    """The manifest of a checkpoint, after checking that the files `names` are exactly what was written.

    Raises CheckpointError.
    """
    try:
        manifest = _read_manifest(directory / STATE)
        for name in names:
            if manifest.files.get(name) != _record(directory / name):
                raise CheckpointError(f"{directory / name} is damaged: it is not what was written")
    except CheckpointError:
        raise
    except GGError as error:
        raise CheckpointError(f"{directory} is no whole checkpoint: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{directory} is no whole checkpoint: {error.filename}: {error.strerror}") from None
    return manifest


def _read_manifest(path: Path) -> Manifest:
    try:
        sealed = msgspec.json.decode(read_regular(path, MAX_STATE_NBYTES), type=_Sealed)
        text = bytes(sealed.manifest)
        if hashlib.sha256(text).hexdigest() != sealed.sha256:
            raise CheckpointError(f"{path} is damaged")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{path} is damaged") from None
    if manifest.version != VERSION:
        raise CheckpointError(f"{path} has version {manifest.version}; this ggmlgraph reads version {VERSION}")
    return manifest
