"""A graph file, opened at one batch and context: its tensors by name, and the memory of its leafs.

Used by `Runtime`, which runs it, and by whoever wants to know what is in a file that could run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggmlgraph.core import encoding, passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import apply_flags, import_file, named, read_metadata, resize
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import GGError, ShapeError, UnsupportedError, UsageError
from ggmlgraph.execution.roles import Roles, assign
from ggmlgraph.graphfile import metadata
from ggmlgraph.graphfile.metadata import Metadata
from ggmlgraph.table.dialect import INPUT, LOSS, PARAM

MOST = 1 << 20  # of a named size
LOGITS = "logits"  # the output of a language model


@dataclass(frozen=True)
class NamedGraph:
    """Leafs are shared by all that come from one file; what else there is never changes."""

    file: CoreGraph  # what the file says
    graph: CoreGraph  # at these sizes, with the roles that were given
    metadata: Metadata
    sizes: dict[str, int]  # by name: batch, ctx

    def at(self, batch: int | None, ctx: int | None) -> NamedGraph:
        """The same at other sizes, default as here. Raises UsageError, UnsupportedError if they are fixed."""
        asked = {name: value for name, value in (("batch", batch), ("ctx", ctx)) if value is not None}
        for name, value in asked.items():
            if not isinstance(value, int):
                raise UsageError(f"{name} {value!r} is not a whole number")
            if not 1 <= value <= MOST:
                raise UsageError(f"{name} {value} is not in 1..{MOST}")
            if name not in self.sizes and value != self._fixed_size(name):
                reason = self.metadata.fixed or "it has no size of that name"
                raise UnsupportedError(f"{name} is fixed in this graph: {reason}")
        sizes = {name: asked.get(name, value) for name, value in self.sizes.items()}
        for name, most in self.metadata.limits.items():
            if sizes.get(name, 0) > most:
                raise UsageError(f"{name} is {sizes[name]}, the model takes at most {most}")
        return replace(self, graph=resize(self.graph, self.metadata, sizes), sizes=sizes)

    def _fixed_size(self, name: str) -> int | None:
        """Of a language model that cannot be re-sized; None where there is no such size."""
        takes_text = "tokens" in self.metadata.inputs.values()
        return dict(zip(("batch", "ctx"), self.window, strict=True))[name] if takes_text else None

    # ------------------------------------------------------------ names

    def find(self, name: str) -> int:
        """Id of a tensor. Raises GGError if there is none."""
        tensor_id = self.graph.find(name)
        if tensor_id < 0:
            raise GGError(f"the graph has no tensor {name!r}")
        return tensor_id

    def leafs(self, flag: int) -> Iterator[str]:
        """Names of the leafs that have a flag, in the graph's order."""
        return (self.graph.name(i) for i in self.graph.flagged(flag) if self.graph.is_leaf(i))

    @property
    def trained(self) -> list[int]:
        """Ids of the parameters."""
        return [i for i in self.graph.flagged(PARAM) if self.graph.is_leaf(i)]

    @property
    def params(self) -> list[str]:
        """Names of the parameters."""
        return [self.graph.name(i) for i in self.trained]

    @property
    def inputs(self) -> list[str]:
        return list(self.leafs(INPUT))

    @property
    def n_params(self) -> int:
        """Number of trained values."""
        return sum(math.prod(self.graph.shape(i)) for i in self.trained)

    @property
    def loss(self) -> str:
        """Name of the scalar to minimise. Raises UnsupportedError unless there is exactly one."""
        losses = self.graph.flagged(LOSS)
        if len(losses) != 1:
            raise UnsupportedError(f"training needs one loss, the graph has {len(losses)}")
        return self.graph.name(losses[0])

    @property
    def window(self) -> tuple[int, int]:
        """(batch, ctx) of the tokens one run takes. Raises UnsupportedError if the graph is no language model."""
        for name, kind in self.metadata.inputs.items():
            if kind == "tokens":
                batch, ctx = self.graph.shape(self.find(name), 2)
                return batch, ctx
        raise UnsupportedError("the graph does not say which input takes the tokens")

    @property
    def n_vocab(self) -> int | None:
        """How many token ids the model has: the last axis of `logits`, else the rows of the table that tokens choose
        from; None where the graph has neither."""
        if (logits := self.graph.find(LOGITS)) >= 0:
            return self.graph.shape(logits)[-1]
        tokens = [self.find(name) for name, kind in self.metadata.inputs.items() if kind == "tokens"]
        lookups = (i for i in range(len(self.graph)) if self.graph.op(i) == "get_rows")
        tables = (self.graph.src(i)[0] for i in lookups if self.graph.base(self.graph.src(i)[1]) in tokens)
        return min((self.graph.shape(table, 2)[0] for table in tables), default=None)

    def ends(self) -> set[str]:
        """Names of the leafs where a language model begins and ends: tables that ids choose from, and what makes the
        logits."""
        graph, n_vocab, found = self.graph, self.n_vocab, set()
        for i in range(len(graph)):
            makes_logits = graph.op(i) == "mul_mat" and n_vocab is not None and graph.shape(i)[-1] == n_vocab
            if graph.op(i) == "get_rows" or makes_logits:
                found.add(graph.name(graph.base(graph.src(i)[0])))
        return found

    def rank(self, name: str) -> int | None:
        """Axes of a tensor as the model was written; None where the file does not say."""
        return self.metadata.ranks.get(name)

    # ------------------------------------------------------------ memory

    def leaf(self, name: str) -> NDArray[Any]:
        """A view of a leaf, which lasts; of a type that numpy has not, of its bytes, row by row."""
        tensor_id = self.find(name)
        if not self.graph.is_leaf(tensor_id):
            raise GGError(f"{name!r} is computed, not stored")
        dtype, shape = self.graph.dtype(tensor_id), self.graph.shape(tensor_id, self.rank(name))
        if dtype not in encoding.NUMPY:
            dtype, shape = "u8", (*shape[:-1], encoding.nbytes(dtype, shape[-1]))
        return np.frombuffer(self.graph.leaf_bytes(tensor_id), encoding.NUMPY.get(dtype, np.uint8)).reshape(shape)

    def values(self, name: str) -> NDArray[Any]:
        """A copy of a leaf's values; where numpy has not the type, as float32."""
        tensor_id = self.find(name)
        dtype, values = self.graph.dtype(tensor_id), self.leaf(name)
        if dtype in encoding.NUMPY:
            return values.copy()
        return encoding.decode(dtype, values).reshape(self.graph.shape(tensor_id, self.rank(name)))

    def set(self, name: str, array: ArrayLike) -> None:
        """Copy values into a leaf; see Runtime.set."""
        leaf, values = self.leaf(name), _as_array(name, array)
        same_kind = np.can_cast(values.dtype, leaf.dtype, "same_kind")
        if values.size != leaf.size or np.squeeze(values).shape != np.squeeze(leaf).shape or not same_kind:
            raise ShapeError(f"{name} is {leaf.dtype}{list(leaf.shape)}, got {values.dtype}{list(values.shape)}")
        _check_range(name, values, leaf.dtype)
        leaf[...] = values.reshape(leaf.shape)

    def tokenizer_bytes(self) -> bytes | None:
        """The tokenizer that travels in the file, for `tokenizer_from_bytes`."""
        tensor_id = self.graph.find(metadata.TOKENIZER_LEAF)
        return None if tensor_id < 0 else bytes(self.graph.leaf_bytes(tensor_id))


def open_graph(
    path: str | os.PathLike[str], dialect: str, limits: Limits, roles: Roles | None, *, mapped: bool
) -> NamedGraph:
    """The graph of a file at the sizes of its export; arguments and errors as of Runtime."""
    file = import_file(path, dialect, limits, mapped=mapped)
    meta = read_metadata(file, path)
    apply_flags(file, meta)
    for tensor_id, op in zip(named(file, meta.exact), meta.exact.values(), strict=True):
        passes.refine(file, tensor_id, op)
    graph = passes.copy(file)
    meta = meta if roles is None else assign(graph, meta, roles)
    for loss in graph.flagged(LOSS):
        if not graph.name(loss):
            graph.set_name(loss, f"node_{loss}")
    return NamedGraph(file, graph, meta, dict(meta.sizes))


def _as_array(name: str, array: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(array)
    except ValueError as error:
        raise ShapeError(f"{name}: not an array: {error}") from None


def _check_range(name: str, values: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Raises UsageError for a number that the type does not have."""
    if values.dtype == dtype or values.size == 0:
        return
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        outside = (values < least) | (values > most)
    else:
        outside = np.isfinite(values) & (np.abs(values) > np.finfo(dtype).max)
    if outside.any():
        raise UsageError(f"{name} is {dtype}, which has no {values[outside][0]}")
