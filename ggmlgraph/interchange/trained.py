"""A model with its weights, found and checked but not read: what the exports to other programs begin with.

The model must be one of ours, since other programs know it by name: its graph is compared with what the architecture's
function traces to. Weights are tensors of graph.bin or of a checkpoint, streamed from there. Used by `exportgguf` and
`exporthf`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core.importer import identify, import_file, read_metadata
from ggmlgraph.errors import GGError, UnsupportedError, UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.generation.decoding import OUTPUT
from ggmlgraph.graphfile import metadata, reader
from ggmlgraph.graphfile.metadata import Metadata
from ggmlgraph.graphfile.records import CGraph, Record, computation
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats import safetensors
from ggmlgraph.interchange.formats.stored import Stored
from ggmlgraph.interchange.naming import Format
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tracing import architectures, export
from ggmlgraph.tracing.tracer import Graph, trace
from ggmlgraph.training.run import Run

NOT_SAID = ("window", "n_full")  # what a kind need not say: within its n_ctx the model is the same
REPEATED = ("n_layer", "n_expert_used")  # of which each adds tensors
ROUNDING = 1e-6  # relative, of a number that a kind of checkpoint says in another way
FEED_FORWARD = ("blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model, opened."""

    path: Path
    architecture: str  # a model of ggmlgraph.models
    config: dict[str, Any]  # fields of its Config; sizes left open there are filled in
    tensors: dict[str, Stored]  # by our names
    constants: dict[str, Stored]  # tensors that follow from the config, and which GGUF files have
    tokenizer: Tokenizer | None
    n_ctx: int  # how many tokens it looks back on

    def format(self, kind: str) -> Format:
        """How a kind of checkpoint spells the architecture. Raises UnsupportedError."""
        return format_of(self.path, self.architecture, kind)


def format_of(path: Path, architecture: str, kind: str) -> Format:
    """How a kind of checkpoint spells an architecture. Raises UnsupportedError."""
    known = naming.formats(architecture).get(kind)
    if known is None:
        raise UnsupportedError(f"{path}: {architecture} has no {kind} form")
    return known


def find(path: Path, n_ctx: int | None = None) -> Trained:
    """The model in a run directory (its latest whole checkpoint), a checkpoint or a graph file.

    Raises UnsupportedError for a model that is not one of ours, CheckpointError, FormatError.
    """
    run = Run.open(path)
    meta = read_metadata(import_file(run.graph, mapped=True), run.graph)
    graph = reader.read(run.graph, identify(run.graph))
    ours, config = recognise(run.graph, meta, graph.records)
    values = {node.name: node.values for node in ours.nodes if node.values}
    if any(_leaf(graph, name) != constant for name, constant in values.items()):
        raise _other(run.graph, ours)
    run.check()
    shapes = _shapes(ours)
    constants = {node.name: tuple(map(int, node.shape)) for node in ours.nodes if node.values}
    stored = _inside(run.graph, graph, shapes)
    if run.checkpoint:
        saved = safetensors.read(run.checkpoint / checkpoint.WEIGHTS)
        stored |= {name: saved[name] for name in shapes if name in saved}
    return Trained(
        path=path,
        architecture=meta.model,
        config=config,
        tensors=stored,
        constants=_inside(run.graph, graph, constants),
        tokenizer=run.tokenizer(_leaf(graph, metadata.TOKENIZER_LEAF)),
        n_ctx=n_ctx or meta.limits.get("ctx") or run.ctx or meta.sizes["ctx"],
    )


def _leaf(graph: CGraph, name: str) -> bytes | None:
    index = graph.find(name)
    return None if index is None else graph.array(index).tobytes()


def _trace(path: Path, meta: Metadata, n_tensors: int) -> Graph:
    """What the architecture's own function makes of the file's config. n_tensors: of the file, which has that of it."""
    if meta.model not in architectures.built_in() or not {"batch", "ctx"} <= meta.sizes.keys():
        raise UnsupportedError(f"{path}: {meta.model!r} is a model of your own, which other programs do not know")
    loaded = architectures.load(meta.model)
    try:
        config = architectures.config(loaded, meta.config)
        for name in REPEATED:
            if (n := getattr(config, name, 0)) > n_tensors:
                raise UsageError(f"{name} is {n}, but the file has {n_tensors} tensors")
        return architectures.run(loaded, lambda: trace(loaded.loss, config, meta.sizes["batch"], meta.sizes["ctx"]))
    except GGError as error:
        raise UnsupportedError(f"{path}: not the config of our {meta.model}: {error}") from None


def recognise(path: Path, meta: Metadata, records: Sequence[Record]) -> tuple[Graph, dict[str, Any]]:
    """The model of ours that records compute, and the fields of its config. path: for messages.

    Raises UnsupportedError for another computation.
    """
    ours = _trace(path, meta, len(records))
    roots = []
    for each in (records, wanted := export.records(ours)):
        roots.append(next((i for i, record in enumerate(each) if record.name == OUTPUT), -1))
    if min(roots) < 0 or computation(records, roots[0]) != computation(wanted, roots[1]):
        raise _other(path, ours)
    return ours, _filled(dataclasses.asdict(ours.config), _shapes(ours))


def _other(path: Path, ours: Graph) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: the graph is not that of our {ours.model}: other programs would compute something else"
    )


def _shapes(ours: Graph) -> dict[str, tuple[int, ...]]:
    """Of the parameters."""
    return {node.name: tuple(map(int, node.shape)) for node in ours.nodes if node.initializer}


def _inside(path: Path, graph: CGraph, shapes: dict[str, tuple[int, ...]]) -> dict[str, Stored]:
    """The weights in the graph file itself."""
    stored = {}
    for name, shape in shapes.items():
        index = graph.find(name)
        assert index is not None  # the graphs are the same
        stored[name] = Stored(path, graph.offsets[index], graph.records[index].type.lower(), shape)
    return stored


def _filled(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields, with those left open (0) as the model resolves them."""
    if "n_head_kv" in config:
        config["n_head_kv"] = config["n_head_kv"] or config["n_head"]
    config["n_ff"] = next(shapes[name][-2] for name in FEED_FORWARD if name in shapes)
    return config


@dataclass(frozen=True)
class Outgoing:
    """A tensor on its way out."""

    ours: str
    stored: Stored
    rows: NDArray[np.int64] | None = None  # in their order
    less: float = 0.0  # what their values lack

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        """Of its values as float32."""
        return 4 * math.prod(self.shape)

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """The values, flat, about a megabyte at a time."""
        chunks = self.stored.chunks(self.rows)
        return (values - np.float32(self.less) for values in chunks) if self.less else chunks

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """The bytes of a quantised tensor, as they are."""
        return self.stored.blocks(self.rows)


def outgoing(trained: Trained, known: Format) -> dict[str, Outgoing]:
    """The tensors by their names. Raises UnsupportedError for one that they do not have."""
    found = {}
    for name, stored in trained.tensors.items():
        for theirs, part in _named(name, stored, trained, known):
            order = known.row_order(name)
            rows = None if order is None else np.argsort(order.index(part.shape[0], trained.config))
            found[theirs] = Outgoing(name, part, rows, known.added(name))
    return found


def _named(name: str, stored: Stored, trained: Trained, known: Format) -> Iterator[tuple[str, Stored]]:
    """What a parameter is there: one tensor, or one for each expert."""
    theirs = known.theirs(name)
    if not theirs:
        raise UnsupportedError(f"{trained.path}: {known.id} has no tensor for {name}")
    if known.is_transposed(name):
        stored = stored.transposed()
    if "{e}" in theirs:
        yield from ((theirs.replace("{e}", str(e)), stored.part(e)) for e in range(stored.shape[0]))
    else:
        yield theirs, stored


def keys(trained: Trained, known: Format) -> dict[str, Any]:
    """What a checkpoint of this kind says of the model.

    Raises UnsupportedError if that would be read as another model: some kinds cannot say every setting.
    """
    said = known.keys(trained.config)
    tensors = {known.theirs(name): stored for name, stored in (trained.tensors | trained.constants).items()}
    read = known.config(naming.Checkpoint(said, tensors), {})
    config_class = architectures.load(trained.architecture).config
    assert config_class is not None
    defaults = _filled(dataclasses.asdict(config_class()), {name: s.shape for name, s in trained.tensors.items()})
    for name, wanted in trained.config.items():
        found = read.get(name, defaults[name])
        same = math.isclose(found, wanted, rel_tol=ROUNDING) if isinstance(wanted, float) else found == wanted
        if name not in NOT_SAID and not same:
            raise UnsupportedError(f"{trained.path}: {known.id} cannot say {name} {wanted!r}")
    return said
