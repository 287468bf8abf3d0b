"""Graph files written by hand, for what our own tracer does not write: any order of nodes, any element type.

Used by test_order.py, test_casts.py, test_inplace.py and the tests against real ggml.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ggmlgraph.core import encoding
from ggmlgraph.graphfile import records, writer
from ggmlgraph.graphfile.records import Record, dense_strides
from ggmlgraph.table.dialect import DIALECTS, PARAM, TYPES

HALVES = ["F16", "BF16"]
ENCODED = [*HALVES, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
MASK = np.where(np.tri(6, dtype=bool), 0, -np.inf)  # of attention from 6 positions to 6
D_MODEL, N_SLOTS = 4, 3  # of cache_graph


class File:
    """Records of a graph: every method adds one and returns its index."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def leaf(self, name: str, values: Any, flags: int = 0, type: str = "F32") -> int:
        """Numbers as the type stores them."""
        numbers = np.asarray(values)
        stored = numbers.astype("<i4" if type == "I32" else "<f4")
        data = stored.tobytes() if type in ("F32", "I32") else encoding.encode(type.lower(), stored).tobytes()
        return self._add(name, "NONE", numbers.shape, (), type=type, flags=flags, data=partial(iter, [data]))

    def node(self, name: str, op: str, shape: tuple[int, ...], *src: int, **fields: Any) -> int:
        return self._add(name, op, shape, src, **fields)

    def view(self, name: str, a: int, shape: tuple[int, ...], offset: int, strides: tuple[int, ...]) -> int:
        """offset, strides: in elements, numpy order."""
        element = TYPES[self.records[a].type]
        nb = [s * element.nbytes // element.block for s in reversed(strides)]
        nb[0] = element.nbytes
        nb += [nb[-1] * shape[0]] * (4 - len(nb))
        params = struct.pack("<Q", offset * element.nbytes // element.block)
        return self._add(name, "VIEW", shape, (a,), type=self.records[a].type, op_params=params, nb=tuple(nb))

    def cpy(self, name: str, a: int, b: int) -> int:
        to = self.records[b]
        self.records.append(Record(name, to.type, to.ne, to.nb, "CPY", src=(a, b)))
        return len(self.records) - 1

    def cast(self, name: str, a: int, type: str) -> int:
        """ggml_cast."""
        return self._add(name, "CPY", tuple(reversed(self.records[a].ne)), (a, len(self.records)), type=type)

    def as_type(self, name: str) -> None:
        """Make every tensor of one type; its elements have 4 bytes."""
        self.records = [replace(record, type=name) for record in self.records]

    def _add(self, name: str, op: str, shape: tuple[int, ...], src: tuple[int, ...], **fields: Any) -> int:
        ne = (*reversed(shape), *[1] * (4 - len(shape)))
        fields.setdefault("type", "F32")
        fields.setdefault("nb", dense_strides(TYPES[fields["type"]], ne))
        self.records.append(Record(name, ne=ne, op=op, src=src, **fields))
        return len(self.records) - 1

    def save(self, path: Path, dialect: str = "v2") -> Path:
        """Leafs as they are, then nodes in the order they were added, which means something here."""
        nodes = [i for i, r in enumerate(self.records) if r.op != "NONE"]
        placed = records.order(self.records, nodes, DIALECTS[dialect])
        with path.open("wb") as stream:
            writer.emit(stream, placed, DIALECTS[dialect], writer.work_nbytes(placed))
        return path


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cache_graph() -> File:
    """Row 1 of a cache is set to k = 1, 2, 3, 4; `before` and `after` are sums of the cache."""
    f = File()
    cache, k = f.leaf("cache", np.zeros((N_SLOTS, D_MODEL))), f.leaf("k", [1, 2, 3, 4])
    whole = f.view("whole", cache, (N_SLOTS, D_MODEL), 0, (D_MODEL, 1))
    f.node("before", "SUM", (1,), whole)
    f.cpy("written", k, f.view("row", cache, (D_MODEL,), D_MODEL, (1,)))
    f.node("after", "SUM", (1,), whole)
    return f


def convolution(f: File, type: str) -> int:
    """As ggml's conv_2d makes it: patches and kernel of one type, in a product with the patches first."""
    kernel = f.cast("kernel", f.leaf("w", normal(4, 3, 2, 2), PARAM), type)
    x = f.leaf("x", normal(1, 3, 5, 6, seed=1), PARAM)
    patches = f.node("patches", "IM2COL", (1, 4, 5, 12), kernel, x, type=type,
                     op_params=struct.pack("<7i", 1, 1, 0, 0, 1, 1, 1))  # fmt: skip
    rows = f.node("rows", "RESHAPE", (20, 12), patches, type=type)
    columns = f.node("columns", "RESHAPE", (4, 12), kernel, type=type)
    return f.node("y", "MUL_MAT", (4, 20), rows, columns)
