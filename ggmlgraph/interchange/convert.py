"""A checkpoint of another program becomes a graph file. Used by `ggmlgraph convert`.

The model of the checkpoint's architecture is traced with the checkpoint's sizes; each parameter of the graph is then
matched with a tensor, in names and shape, before anything is written; values stream from file to file, so memory
stays under the largest tensor. `weightcheck` finds weights whose order was misunderstood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import encoding
from ggmlgraph.errors import DataError, FormatError, GGError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.graphfile import records
from ggmlgraph.interchange import weightcheck
from ggmlgraph.interchange.formats.stored import QUANTISED, Stored, Weight
from ggmlgraph.interchange.sources.base import ModelSource, Moments
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tracing import architectures, export
from ggmlgraph.tracing.export import Weights
from ggmlgraph.tracing.tracer import Graph, Node, trace

MAX_SIZE = 1 << 31
ABSENT_AS_0 = ("head_dim", "n_ff", "window", "n_full", "rope_n_ctx_orig")  # fields whose 0 says that nothing was said
MAX_LISTED = 4  # tensors named in an error
SAME = 1e-4  # relative: constants are computed in single precision there


@dataclass(frozen=True)
class Converted:
    """What was written, and what it makes of plain text."""

    graph: Graph
    check: weightcheck.Check | None  # None without a tokenizer, or where it failed
    unchecked: str = ""  # why it failed


def convert(
    source: ModelSource, path: Path, *, batch: int, ctx: int, tokenizer: Tokenizer | None, dtype: str | None = "f32"
) -> Converted:
    """Write the source as a graph file, at once or not at all, and try it on a text while the disk takes it in.

    dtype: what the matrices of products and the tables are stored as, "f32", "f16" or "bf16"; None: as they are. They
    are trained in f32 only. All else is f32.

    Raises FormatError, listing them, if tensors are missing, unknown or of another shape; DataError if the tokenizer
    has more ids than the model.
    """
    loaded = architectures.load(source.architecture)
    _check_sizes(source, architectures.field_types(loaded))
    config = architectures.config(loaded, source.config)
    graph = trace(loaded.loss, config, batch, ctx)
    if dtype != "f32":
        graph = trace(loaded.loss, config, batch, ctx, _types(graph, source, dtype))
    n_vocab = source.config["n_vocab"]
    if tokenizer is not None and tokenizer.n_vocab > n_vocab:
        last = tokenizer.name_of(tokenizer.n_vocab - 1)
        ids = f"{tokenizer.n_vocab} ids{f', the last {last!r}' if last else ''}"
        raise DataError(f"the tokenizer has {ids}; the model's n_vocab is {n_vocab}")
    found = Converted(graph, None)

    def check(written: Path) -> None:
        nonlocal found
        try:
            found = Converted(graph, weightcheck.check(written, tokenizer)) if tokenizer else found
        except GGError as error:
            found = Converted(graph, None, str(error))

    export.save(
        graph, path, seed=0, weights=match(graph, source), tokenizer=tokenizer.to_bytes() if tokenizer else None,
        corpus=None, dialect="v2", meanwhile=check,
    )  # fmt: skip
    return found


def keep_moments(source: ModelSource, graph: Path, directory: Path) -> Moments:
    """Write a checkpoint of the weights and of the optimiser's state in the source, which `train --init-from` takes.

    graph: what `convert` wrote. Raises UsageError if the source has no such state, FormatError if it does not fit.
    """
    if source.moments is None:
        raise UsageError(f"{source.path}: a {source.kind} without optimiser's state")
    kept = source.moments()
    with Runtime(graph, batch=1, ctx=1) as runtime:
        weights, moments = runtime.state()
        for letter, tensors in (("m", kept.first), ("v", kept.second)):
            of_run = replace(source, tensors=tensors)
            for name, weight in weights.items():
                if source.format.theirs(name) not in tensors:
                    raise FormatError(f"{source.path}: no moments of {name}")
                found, flat, at = Found.of(of_run, name), moments[f"{letter}.{name}"].reshape(-1), 0
                if found.shape != weight.shape:
                    raise FormatError(f"{source.path}: moments of {name} are {list(found.shape)}")
                for values in found.stored.chunks(found.rows):
                    flat[at : at + values.size] = values
                    at += values.size
        runtime.n_steps = kept.n_steps
        runtime.save(directory)
    return kept


def _types(graph: Graph, source: ModelSource, dtype: str | None) -> dict[str, str]:
    """Element types, by parameter, of the matrices that are used as such alone and that a file may have as leafs."""
    types = {}
    for i, node in enumerate(graph.nodes):
        theirs = source.tensors.get(source.format.theirs(node.name)) if node.initializer else None
        if theirs is None or len(node.shape) != 2 or not _is_matrix(graph, i):
            continue
        kept = dtype or theirs.dtype
        raw = kept in QUANTISED and not source.format.added(node.name)
        if (raw or kept in encoding.ENCODED) and encoding.nbytes(
            kept, math.prod(theirs.shape)
        ) % records.LEAF_UNIT == 0:
            types[node.name] = kept
    return types


def _is_matrix(graph: Graph, node: int) -> bool:
    """Whether a node is nothing but the first operand of products and look-ups."""
    uses = [(n.op, k) for n in graph.nodes for k, s in enumerate(n.src) if s == node]
    return all(op is not None and op.name in ("mul_mat", "get_rows") and k == 0 for op, k in uses)


def _check_sizes(source: ModelSource, types: Mapping[str, type]) -> None:
    """Refuse values from the file that no model has, some of which would take for ever to trace."""
    config = source.config
    for name, value in config.items():
        if name not in types:
            raise UsageError(f"{source.architecture} has no field {name!r}; its fields are: {', '.join(types)}")
        fits = type(value) is types[name] or (types[name] is float and type(value) is int)
        if not fits or (
            type(value) not in (bool, str) and not (0 < value < MAX_SIZE or (name in ABSENT_AS_0 and value == 0))
        ):
            raise FormatError(f"{source.path}: {name} is {value!r}")
    n_layer, n_embd, n_head = (config.get(name, 1) for name in ("n_layer", "n_embd", "n_head"))
    if n_layer > len(source.tensors):
        raise FormatError(f"{source.path}: {n_layer} layers, but {len(source.tensors)} tensors")
    if not config.get("head_dim") and n_embd % n_head:
        raise FormatError(f"{source.path}: n_embd {n_embd} is no multiple of n_head {n_head}")


def match(graph: Graph, source: ModelSource) -> Weights:
    """Where the values of each parameter come from. Raises FormatError if the tensors are not those of the graph."""
    weights: dict[str, Callable[[], Iterator[NDArray[Any]]]] = {}
    used, missing, misshaped = set(), [], []
    for node in graph.nodes:
        theirs = source.format.theirs(node.name)
        if node.values and theirs in source.tensors:
            _check_constant(node, source)
            used.add(theirs)
        if not node.initializer:
            continue
        if theirs not in source.tensors:
            missing.append(theirs or node.name)
            continue
        tensor = Found.of(source, node.name)
        if tensor.shape == tuple(map(int, node.shape)):
            used.add(theirs)
            weights[node.name] = partial(tensor.stored_as, node.dtype)
        else:
            wanted = list(map(int, node.shape))
            misshaped.append(f"{source.as_in_file(theirs)} {list(tensor.shape)} instead of {wanted}")
    unknown = [name for name in source.tensors if name not in used and not source.format.skips(name)]
    missing, unknown = ([source.as_in_file(name) for name in names] for names in (missing, unknown))
    faults = [("missing", missing), ("unknown", unknown), ("of another shape", misshaped)]
    if any(names for _, names in faults):
        listed = "; ".join(f"{_listed(names)} {word}" for word, names in faults if names)
        raise FormatError(f"{source.path}: these are not the tensors of {source.architecture}: {listed}")
    return weights


def _check_constant(node: Node, source: ModelSource) -> None:
    """Raise FormatError if what a config says is not what a tensor of the checkpoint says."""
    stored, ours = source.tensors[source.format.theirs(node.name)], np.frombuffer(node.values or b"", np.float32)
    if stored.shape != node.shape or not np.allclose(np.concatenate(list(stored.chunks())), ours, rtol=SAME):
        scaling = " ".join(f"{name}={value}" for name, value in source.config.items() if name.startswith("rope_"))
        raise FormatError(f"{source.path}: {node.name} is not what follows from {scaling}: give other values of these")


@dataclass(frozen=True)
class Found:
    """A tensor of a checkpoint as one of our parameters."""

    stored: Weight
    rows: NDArray[np.int64] | None  # which of its rows, in which order
    added: float

    @classmethod
    def of(cls, source: ModelSource, name: str) -> Found:
        """What the source has for our parameter. Raises FormatError if its rows cannot be counted out."""
        stored, order = source.tensors[source.format.theirs(name)], source.format.row_order(name)
        if isinstance(stored, Stored) and source.format.is_transposed(name):
            stored = stored.transposed()
        rows = order.index(stored.shape[0], source.config) if order is not None and stored.shape else None
        return cls(stored, rows, source.format.added(name))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape if self.rows is None else (len(self.rows), *self.stored.shape[1:])

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """The values, flat and row-major."""
        chunks = self.stored.chunks(self.rows)
        return (values + np.float32(self.added) for values in chunks) if self.added else chunks

    def stored_as(self, dtype: str) -> Iterator[NDArray[Any]]:
        """The values in an element type, row-major. Raises FormatError if one is beyond it.

        While a chunk is written, the next one is read in another thread.
        """
        chunks = self._stored_as(dtype)
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(next, chunks, None)
            while (chunk := coming.result()) is not None:
                coming = pool.submit(next, chunks, None)
                yield chunk

    def _stored_as(self, dtype: str) -> Iterator[NDArray[Any]]:
        if dtype == "f32":
            yield from self.chunks()
        elif dtype in QUANTISED:
            assert isinstance(self.stored, Stored)  # as it was when the type was chosen
            yield from self.stored.blocks(self.rows)
        else:
            for values in self.chunks():
                stored = encoding.encode(dtype, values)
                if not np.isfinite(encoding.decode(dtype, stored)).all():
                    raise FormatError(f"a weight of {float(abs(values).max()):g} is beyond {dtype}")
                yield stored


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(n[:80] if n.isprintable() else ascii(n[:80]) for n in names[:MAX_LISTED]) + more
