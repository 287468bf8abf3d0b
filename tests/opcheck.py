"""Runs one op of the table through the C runtime on a `Sample`, with operands laid out in memory as it asks.

And how results are compared. Used by the tests of ops, here and beside real ggml. The op is added with gg_node itself,
so nothing makes its operands contiguous on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from reference import SLICE_BEFORE, Operand, Sample

from ggmlgraph.core import passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.table.dialect import LOSS, OUTPUT, PARAM
from ggmlgraph.table.op import TABLE

EPS32 = 2.0**-24  # the largest relative rounding error of float32
DTYPES = {np.dtype(np.float32): "f32", np.dtype(np.int32): "i32"}
SWAP_ROWS = {"axis0": 0, "axis1": 2, "axis2": 1, "axis3": 3}  # ggml's axes of the layout "permuted"
pool = cache(Pool)  # of so many threads, shared by all programs: starting threads costs more than most ops


@dataclass
class Call:
    """A graph with one op on leafs, ready to run."""

    graph: CoreGraph
    leafs: list[int | None]  # the memory of each operand
    operands: list[int]  # each operand as the op sees it
    y: int

    def program(self, isa: str, threads: int, matmul_precision: str = "float32") -> Program:
        return Program(self.graph, pool(threads), isa, matmul_precision)

    def result(self, program: Program, tensor_id: int | None = None) -> Any:
        """A tensor's values in numpy order, with all four axes."""
        i = self.y if tensor_id is None else tensor_id
        return program.array(i).reshape(self.graph.shape(i, 4)).copy()


def build(sample: Sample, values: list[Any], trained: frozenset[int] = frozenset()) -> Call:
    """The op of `sample` on `values`; operands whose index is in `trained` become parameters."""
    graph = CoreGraph()
    leafs: list[int | None] = []
    operands = []
    for k, (operand, array) in enumerate(zip(sample.operands, values, strict=True)):
        leaf = None if operand is None else _leaf(graph, operand, array, k, PARAM if k in trained else 0)
        leafs.append(leaf)
        operands.append(-1 if leaf is None or operand is None else _as_seen(graph, leaf, operand))
    op = TABLE[sample.op]
    params = {p.name: p.default for p in op.params} | sample.params
    strides = None if sample.strides is None else list(sample.strides)
    if strides is not None:
        strides = [strides[0] * sample.shape[0]] * (4 - len(strides)) + strides  # type: ignore[index]
    y = graph.node(op, operands, params, sample.shape, strides)
    graph.set_name(y, "y", OUTPUT)
    return Call(graph, leafs, operands, y)


def _leaf(graph: CoreGraph, operand: Operand, values: Any, k: int, flags: int) -> int:
    memory = operand.store(values)
    leaf = graph.leaf(DTYPES[memory.dtype], memory.shape, flags, f"operand{k}")
    graph.leaf_bytes(leaf)[:] = memory.tobytes()
    return leaf


def _as_seen(graph: CoreGraph, leaf: int, operand: Operand) -> int:
    if operand.layout == "permuted":
        return graph.node(TABLE["permute"], [leaf], SWAP_ROWS)
    if operand.layout == "transposed":
        return graph.node(TABLE["transpose"], [leaf], {})
    if operand.layout == "sliced":
        return graph.node(TABLE["view"], [leaf], {"offset": 4 * SLICE_BEFORE}, operand.shape, graph.strides(leaf))
    return leaf


def gradients(call: Call, weights: Any, isa: str, threads: int) -> list[Any]:
    """d sum(weights * y) / d memory of each operand that is a parameter, None for the others."""
    graph = call.graph
    r = graph.leaf("f32", graph.shape(call.y, 4), 0, "weights")
    graph.leaf_bytes(r)[:] = np.ascontiguousarray(weights, np.float32).tobytes()
    weighted = graph.node(TABLE["mul"], [call.y, r], {})
    loss = graph.node(TABLE["sum"], [weighted], {})
    graph.set_name(loss, "loss", LOSS | OUTPUT)
    passes.differentiate(graph, loss)
    program = Program(graph, pool(threads), isa)
    program.run()
    found = []
    for leaf in call.leafs:
        grad = -1 if leaf is None else passes.gradient_of(graph, leaf)
        found.append(None if grad < 0 else program.array(grad).reshape(graph.shape(leaf, 4)).copy())
    return found


def written_operands(sample: Sample) -> list[int]:
    """Operands that the kernel writes."""
    sources = TABLE[sample.op].sources
    return [sources.index(name) for name in TABLE[sample.op].writes if sample.operands[sources.index(name)]]


def as_float64(values: list[Any]) -> list[Any]:
    return [v.astype(np.float64) if v is not None and v.dtype == np.float32 else v for v in values]


def assert_within(actual: Any, expected: Any, limit: Any) -> None:
    actual, expected = np.asarray(actual, np.float64).reshape(expected.shape), np.asarray(expected, np.float64)
    limit = np.broadcast_to(limit, expected.shape)
    finite = np.isfinite(expected) & (np.abs(expected) < 3e38)
    overflowed = np.isfinite(expected) & ~finite
    np.testing.assert_array_equal(actual[~finite & ~overflowed], expected[~finite & ~overflowed])
    error = np.abs(actual[finite] - expected[finite])
    assert np.isfinite(actual[finite]).all(), "a result is not finite where the reference is"
    excess = error - limit[finite]
    worst = int(excess.argmax()) if excess.size else 0
    assert excess.size == 0 or excess[worst] <= 0, (
        f"error {error[worst]:.3e} exceeds {limit[finite][worst]:.3e}: "
        f"got {actual[finite][worst]!r}, expected {expected[finite][worst]!r}"
    )
