"""What a program takes, and the memory that it gives to tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import File

from ggmlgraph.core import passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import import_file
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.errors import GGError
from ggmlgraph.table.dialect import OUTPUT, PARAM
from ggmlgraph.table.op import TABLE, Op

# ---------------------------------------------------------------- operands with gaps


def test_a_graph_whose_kernels_cannot_read_its_operands_as_they_lie_is_refused(tmp_path: Path) -> None:
    f = File()
    repeated = f.view("repeated", f.leaf("a", [1, 2, 3, 4]), (5000, 4), 0, (0, 1))  # 20,000 elements in 16 bytes
    f.node("y", "SUM", (1,), repeated, flags=OUTPUT)
    graph = import_file(f.save(tmp_path / "graph.bin"))
    with pytest.raises(GGError, match="source 0 of sum y has gaps; gg_fuse puts a copy between"):
        Program(graph, Pool(1), None)
    program = Program(passes.fuse(graph, [graph.find("y")], passes.fusion_mask(passes.FUSIONS)), Pool(1), None)
    program.run()
    assert program.array(program.graph.find("y")).item() == 50000


CONTIGUOUS = [(op, name) for op in TABLE.values() for name in (*op.dense, *op.rows) if op.kernel]


def with_gaps(op: Op, name: str) -> CoreGraph | None:
    """The op on a source whose rows have gaps and other sources of the same shape, if its rule takes that."""
    graph = CoreGraph()
    shape, sources = (4, 4), []
    for source in op.sources:
        leaf = graph.leaf("i32" if source in ("ids", "positions", "targets") else "f32", shape, 0, source)
        sources.append(graph.node(TABLE["transpose"], [leaf], {}) if source == name else leaf)
    params = {p.name: 1 for p in op.params}
    try:
        graph.node(op, sources, params, shape if op.sized else None)
    except GGError:
        return None
    return graph


@pytest.mark.parametrize(("op", "name"), CONTIGUOUS, ids=lambda x: getattr(x, "name", x))
def test_no_kernel_is_given_gaps_where_it_reads_without(op: Op, name: str) -> None:
    graph = with_gaps(op, name)
    if graph is not None:
        with pytest.raises(GGError, match="has gaps"):
            Program(graph, Pool(1), None)


def test_most_of_these_operands_are_taken_by_the_rule_of_their_op() -> None:
    assert sum(with_gaps(*case) is not None for case in CONTIGUOUS) > 20


def test_a_product_with_the_first_tensor_of_a_graph_is_none_with_the_number_one() -> None:
    graph = CoreGraph()
    two, x = (graph.leaf("f32", (4,), 0, name) for name in ("two", "x"))
    for leaf, values in ((two, [2] * 4), (x, [1, 2, 3, 4])):
        graph.leaf_bytes(leaf)[:] = np.array(values, np.float32).tobytes()
    y = graph.node(TABLE["mul"], [x, two], {})
    graph.set_name(y, "y")
    program = Program(passes.fuse_gradients(graph, [y], passes.fusion_mask(passes.FUSIONS)), Pool(1), None)
    program.run()
    np.testing.assert_array_equal(program.array(program.graph.find("y")), [2, 4, 6, 8])


def test_a_derivative_of_what_was_not_kept_for_it_is_refused() -> None:
    """Attention leaves its sums behind only in a graph that is fused to be trained."""
    graph = CoreGraph()
    q = graph.leaf("f32", (1, 4, 2, 8), PARAM, "q")
    y = graph.node(TABLE["attention"], [q, q, q], {"scale": 1.0, "n_past": 0, "window": 0, "soft_cap": 0.0})
    loss = graph.node(TABLE["sum"], [y], {})
    with pytest.raises(GGError, match="written lacks an operand, which gg_fuse keeps with train"):
        passes.differentiate(graph, loss)


# ---------------------------------------------------------------- in place


def overwrites(graph: CoreGraph, y: int, source: int) -> bool:
    """Whether the plan puts y into the memory of its source."""
    graph.set_flags(y, OUTPUT)
    program = Program(graph, Pool(1), None)
    return program.offset(y) == program.offset(source)


def computed(graph: CoreGraph, *shape: int) -> int:
    """A tensor in the arena."""
    return graph.node(TABLE["sqr"], [graph.leaf("f32", shape, 0, "a")], {})


def test_an_elementwise_op_runs_in_place_over_a_tensor_that_is_both_its_operands() -> None:
    graph = CoreGraph()
    a = computed(graph, 4, 4)
    assert overwrites(graph, graph.node(TABLE["mul"], [a, a], {}), a)


def test_no_op_runs_in_place_over_a_shifted_part_of_itself() -> None:
    graph = CoreGraph()
    a = computed(graph, 12)
    nb = graph.strides(a)
    front, back = (graph.node(TABLE["view"], [a], {"offset": at}, (10,), nb) for at in (0, 8))
    assert not overwrites(graph, graph.node(TABLE["add"], [front, back], {}), a)
    graph = CoreGraph()
    a = computed(graph, 12)
    front = graph.node(TABLE["view"], [a], {"offset": 0}, (10,), nb)
    assert overwrites(graph, graph.node(TABLE["add"], [front, front], {}), a)


def reordering(graph: CoreGraph) -> dict[str, tuple[int, list[int], dict[str, Any]]]:
    """Ops that may run in place and read elements other than those they write."""
    a = computed(graph, 3, 3)
    turned = graph.node(TABLE["permute"], [a], {"axis0": 1, "axis1": 0, "axis2": 2, "axis3": 3})
    ids = graph.leaf("i32", (3,), 0, "ids")
    return {
        "view_back": (a, [a, turned, a, a], {}),
        "add_rows": (a, [a, ids, a], {}),
        "norm_back": (a, [a, a], {"eps": 0.0}),
        "soft_max": (a, [a, a], {"scale": 1.0, "max_bias": 0.0}),
    }


@pytest.mark.parametrize("op", ["view_back", "add_rows", "norm_back", "soft_max"])
def test_an_op_that_reads_elsewhere_does_not_run_in_place_over_another_operand(op: str) -> None:
    graph = CoreGraph()
    a, sources, params = reordering(graph)[op]
    shape = (3, 3) if TABLE[op].sized else None
    assert not overwrites(graph, graph.node(TABLE[op], sources, params, shape), a)


def test_an_op_that_reads_elsewhere_runs_in_place_over_an_operand_of_its_own() -> None:
    graph = CoreGraph()
    total, g, ids = computed(graph, 3, 3), graph.leaf("f32", (3, 3), 0, "g"), graph.leaf("i32", (3,), 0, "ids")
    assert overwrites(graph, graph.node(TABLE["add_rows"], [g, ids, total], {}, (3, 3)), total)


def test_a_gradient_of_a_tensor_and_of_a_reordered_view_of_it_adds_both(tmp_path: Path) -> None:
    """y = x + view(x), where the view reads x's dimensions 1 and 2 in the other order."""
    from ggmlgraph import Runtime
    from ggmlgraph.table.dialect import LOSS

    shape, rng = (3, 4, 5), np.random.default_rng(0)
    a, c = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    f = File()
    x = f.node("x", "SQR", shape, f.leaf("a", a, PARAM))
    y = f.node("y", "ADD", shape, x, f.view("v", x, shape, 0, (5, 15, 1)))
    f.node("loss", "SUM", (1,), f.node("m", "MUL", shape, y, f.leaf("c", c)), flags=LOSS)
    at = np.arange(3)[:, None, None] * 5 + np.arange(4)[None, :, None] * 15 + np.arange(5)
    dx = c.reshape(-1).copy()
    np.add.at(dx, at.reshape(-1), c.reshape(-1))
    for threads in (1, 2, 3):
        with Runtime(f.save(tmp_path / "graph.bin"), threads=threads) as rt:
            rt.backward({})
            np.testing.assert_allclose(rt.gradient("a"), 2 * a * dx.reshape(shape), rtol=1e-5)
