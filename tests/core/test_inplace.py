"""Results in place, as ggml's `*_inplace` functions make them: what is read of the source later is the result.

A file says it with a name "... (view)", which ggml gives to such a result, and for SET and ACC with a parameter.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import File

import ggmlgraph as gg
from ggmlgraph.errors import GGError, UnsupportedError
from ggmlgraph.graphfile.rewrite import rewrite
from ggmlgraph.table.dialect import LOSS, OUTPUT, PARAM, WRITTEN

DOUBLED = struct.pack("<f", 2)


def scaled(f: File, name: str, a: int, shape: tuple[int, ...], **fields: Any) -> int:
    return f.node(name, "SCALE", shape, a, op_params=DOUBLED, **fields)


def loss_of(f: File, *terms: int) -> int:
    """The sum of all elements of tensors of shape (4,)."""
    total = terms[0]
    for k, term in enumerate(terms[1:]):
        total = f.node(f"total {k}", "ADD", (4,), total, term)
    return f.node("loss", "SUM", (1,), total, flags=LOSS)


def forward(f: File, path: Path, *names: str) -> list[Any]:
    with gg.Runtime(f.save(path), threads=1) as rt:
        return rt.forward(*names)


def source(f: File) -> int:
    """1, 4, 9, 16: a node, whose memory only the graph sees."""
    return f.node("a", "SQR", (4,), f.leaf("x", [1, 2, 3, 4], PARAM))


@pytest.mark.parametrize("dialect", WRITTEN)
def test_what_is_read_of_the_source_later_is_the_result(dialect: str, tmp_path: Path) -> None:
    f = File()
    a = source(f)
    f.node("before", "SUM", (1,), a)
    scaled(f, "a (view)", a, (4,))
    f.node("after", "SUM", (1,), a)
    with gg.Runtime(f.save(tmp_path / "graph.bin", dialect), threads=1) as rt:
        before, after = rt.forward("before", "after")
    assert (before.item(), after.item()) == (30, 60)


def test_a_chain_of_results_in_place_ends_in_the_source(tmp_path: Path) -> None:
    f = File()
    a = source(f)
    last = scaled(f, "a (view) (view)", scaled(f, "a (view)", a, (4,)), (4,))
    f.node("result", "SUM", (1,), last)
    f.node("after", "SUM", (1,), a)
    result, after = forward(f, tmp_path / "graph.bin", "result", "after")
    assert (result.item(), after.item()) == (120, 120)


def test_a_view_from_before_sees_the_result(tmp_path: Path) -> None:
    f = File()
    a = source(f)
    last = f.view("last", a, (1,), 3, (1,))
    scaled(f, "a (view)", a, (4,))
    f.node("y", "SQR", (1,), last)
    assert forward(f, tmp_path / "graph.bin", "y")[0].item() == 32**2


def test_a_part_in_place_changes_that_part_of_the_whole(tmp_path: Path) -> None:
    f = File()
    a = source(f)
    scaled(f, "last (view)", f.view("last", a, (2,), 2, (1,)), (2,))
    f.node("y", "CONT", (4,), a)
    np.testing.assert_array_equal(forward(f, tmp_path / "graph.bin", "y")[0], [1, 4, 18, 32])


def test_a_result_in_place_of_a_permuted_source_lies_as_it_does(tmp_path: Path) -> None:
    f = File()
    a = f.node("a", "SQR", (2, 3), f.leaf("x", [[1, 2, 3], [4, 5, 6]]))
    turned = f.node("turned", "TRANSPOSE", (3, 2), a, nb=(12, 4, 24, 24))
    f.node("y", "CONT", (3, 2), scaled(f, "turned (view)", turned, (3, 2), nb=(12, 4, 24, 24)))
    np.testing.assert_array_equal(forward(f, tmp_path / "graph.bin", "y")[0], [[2, 32], [8, 50], [18, 72]])


def test_a_leaf_keeps_the_result(tmp_path: Path) -> None:
    f = File()
    scaled(f, "state (view)", f.leaf("state", [1, 2, 3, 4]), (4,))
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        for factor in (2, 4):
            rt.forward("state (view)")
            np.testing.assert_array_equal(rt.get("state"), [factor * i for i in (1, 2, 3, 4)])


@pytest.mark.parametrize(("op", "expected"), [("SET", [1, 4, 100, 101]), ("ACC", [1, 4, 109, 117])])
def test_set_and_acc_say_it_with_a_parameter(op: str, expected: list[float], tmp_path: Path) -> None:
    f = File()
    a, b = source(f), f.leaf("b", [100, 101])
    f.node("written", op, (4,), a, b, op_params=struct.pack("<5i", 16, 16, 16, 8, 1))
    f.node("y", "CONT", (4,), a)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1, dialect="v2") as rt:
        np.testing.assert_array_equal(rt.forward("y")[0], expected)


@pytest.mark.parametrize("word", [2, -1, 1 << 8, 1 << 24, -(1 << 31)])
@pytest.mark.parametrize("op", ["SET", "ACC"])
def test_set_and_acc_say_yes_or_no(op: str, word: int, tmp_path: Path) -> None:
    f = File()
    a, b = source(f), f.leaf("b", [100, 101])
    f.node("written", op, (4,), a, b, op_params=struct.pack("<5i", 16, 16, 16, 8, word))
    with pytest.raises(GGError, match=rf"inplace is {word}, neither 0 nor 1 \[BadOpParams\]") as caught:
        gg.Runtime(f.save(tmp_path / "graph.bin"), dialect="v2")
    assert caught.value.code == "BadOpParams"


def test_halves_in_place_are_rounded_in_place(tmp_path: Path) -> None:
    f = File()
    a = f.cast("a", f.leaf("x", [1, 2048, 3]), "F16")
    f.node("a (view)", "ADD", (3,), a, f.leaf("b", [0.5, 1, 2.0**-13]), type="F16")
    f.cast("y", a, "F32")
    np.testing.assert_array_equal(forward(f, tmp_path / "graph.bin", "y")[0], [1.5, 2048, 3])


def test_what_nobody_can_tell_from_a_new_tensor_is_one(tmp_path: Path) -> None:
    f = File()
    rows = source(f)
    for name, op in (("a (view)", "SQR"), ("a (view) (view)", "SQRT"), ("a (view) (view) (view)", "COS")):
        rows = f.node(name, op, (4,), rows)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        graph = rt.programs.fused("a (view) (view) (view)")
    assert [graph.op(i) for i in range(len(graph))] == ["none", "sqr", "sqr", "sqrt", "cos"]


def test_a_result_with_a_name_of_its_own_is_a_new_tensor(tmp_path: Path) -> None:
    """As it is to ggml's importer; the file does not say where it was."""
    f = File()
    a = source(f)
    scaled(f, "mine", a, (4,))
    f.node("after", "SUM", (1,), a)
    assert forward(f, tmp_path / "graph.bin", "after", "mine")[0].item() == 30


# ---------------------------------------------------------------- what is read after the run


def overwritten(f: File) -> list[str]:
    """a, twice what it was, of which then the first is 100; the names of what sees it, in the order of the file."""
    a = source(f)
    middle = f.view("middle", a, (2,), 1, (1,))
    doubled = scaled(f, "a (view)", a, (4,))
    f.cpy("first", f.leaf("new", [100]), f.view("front", doubled, (1,), 0, (1,)))
    del middle
    return ["a", "middle", "a (view)", "first"]


AT_THE_END: dict[str, list[float]] = {"a": [100, 8, 18, 32], "middle": [8, 18], "first": [100]}
AT_THE_END["a (view)"] = AT_THE_END["a"]


def test_a_tensor_is_what_its_memory_holds_at_the_end_of_the_run(tmp_path: Path) -> None:
    f = File()
    names = overwritten(f)
    for asked in ([name] for name in names), [names], [names[::-1]]:
        for some in asked:
            for name, found in zip(some, forward(f, tmp_path / "graph.bin", *some), strict=True):
                np.testing.assert_array_equal(found, AT_THE_END[name], name)


def test_what_is_read_once_a_part_of_a_result_in_place_was_written_is_the_result(tmp_path: Path) -> None:
    f = File()
    overwritten(f)
    f.node("sum", "SUM", (1,), [r.name for r in f.records].index("a (view)"))
    assert forward(f, tmp_path / "graph.bin", "sum")[0].item() == 158


@pytest.mark.parametrize("dialect", ["v1", "v2"])
def test_an_output_that_is_written_later_is_one_output(dialect: str, tmp_path: Path) -> None:
    """In v1 the metadata names it."""
    f = File()
    a = f.node("a", "SQR", (4,), f.leaf("x", [1, 2, 3, 4], PARAM), flags=OUTPUT)
    scaled(f, "a (view)", a, (4,), flags=OUTPUT)
    f.save(tmp_path / "v2.bin")
    rewrite(tmp_path / "v2.bin", tmp_path / f"{dialect}.bin", dialect, "v2")
    with gg.Runtime(tmp_path / f"{dialect}.bin", threads=1, dialect=dialect) as rt:
        outputs = [rt.graph.name(i) for i in rt.graph.flagged(OUTPUT)]
        assert sorted(outputs) == ["a", "a (view)"]
        np.testing.assert_array_equal(rt.forward(*outputs), [[2, 8, 18, 32]] * 2)


# ---------------------------------------------------------------- gradients


def test_the_gradient_of_a_chain_in_place_is_that_of_new_tensors(tmp_path: Path) -> None:
    found = []
    for names in (("a (view)", "a (view) (view)"), ("one", "two")):
        f = File()
        rows = f.node(names[1], "UNARY", (4,), f.node(names[0], "SQRT", (4,), source(f)), unary="SILU")
        loss_of(f, rows)
        with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
            rt.backward({})
            found.append(rt.gradient("x"))
    np.testing.assert_array_equal(*found)


def test_the_gradient_of_a_source_read_before_and_after_has_both(tmp_path: Path) -> None:
    f = File()
    a = source(f)
    before = f.node("before", "SCALE", (4,), a, op_params=struct.pack("<f", 10))
    scaled(f, "a (view)", a, (4,))
    after = f.node("after", "SCALE", (4,), a, op_params=struct.pack("<f", 3))
    loss_of(f, before, after)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        rt.backward({})
        np.testing.assert_allclose(rt.gradient("x"), [(10 + 2 * 3) * 2 * x for x in (1, 2, 3, 4)])


def in_place_loss(x: Any, w: Any) -> Any:
    """What `in_place_graph` says, in numpy: float64 (4,), (2,) -> ()."""
    a = x * x
    before = a * np.array([3.0, 1, 4, 1])
    a *= 2
    a[1:3] = w * w
    a[2:] *= 2
    b = (a + 0.5) / (1 + np.exp(-(a + 0.5)))
    return (before + a * np.array([2.0, 7, 1, 8]) + b).sum()


def in_place_graph() -> File:
    """Of a, the square of x, all is doubled; then the middle is overwritten by the square of w and the end doubled."""
    f = File()
    a, w = source(f), f.leaf("w", [0.5, 1.5], PARAM)
    before = f.node("before", "MUL", (4,), a, f.leaf("factors", [3, 1, 4, 1]))
    doubled = scaled(f, "a (view)", a, (4,))
    f.cpy("copied", f.node("square", "SQR", (2,), w), f.view("middle", doubled, (2,), 1, (1,)))
    scaled(f, "end (view)", f.view("end", a, (2,), 2, (1,)), (2,))
    after = f.node("after", "MUL", (4,), a, f.leaf("other factors", [2, 7, 1, 8]))
    b = f.node("b", "ADD", (4,), doubled, f.leaf("bias", [0.5] * 4))
    loss_of(f, before, after, f.node("b (view)", "UNARY", (4,), b, unary="SILU"))
    return f


def test_the_gradient_through_results_in_place_is_that_of_differences_in_float64(tmp_path: Path) -> None:
    x, w, h = np.arange(1.0, 5), np.array([0.5, 1.5]), 1e-5
    with gg.Runtime(in_place_graph().save(tmp_path / "graph.bin"), threads=1) as rt:
        np.testing.assert_allclose(rt.backward({}), in_place_loss(x, w), rtol=1e-6)
        for name, point, loss in (("x", x, lambda x: in_place_loss(x, w)), ("w", w, lambda w: in_place_loss(x, w))):
            expected = [(loss(point + h * e) - loss(point - h * e)) / (2 * h) for e in np.eye(len(point))]
            np.testing.assert_allclose(rt.gradient(name), expected, rtol=1e-6, err_msg=name)


def test_a_derivative_that_needs_what_was_overwritten_is_refused(tmp_path: Path) -> None:
    f = File()
    a = source(f)
    result = f.node("a (view)", "UNARY", (4,), a, unary="SILU")  # whose derivative reads a
    loss_of(f, result, f.node("after", "CONT", (4,), a))
    rt = gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1)
    with rt, pytest.raises(UnsupportedError, match="the gradient of silu needs a, which cpy overwrites"):
        rt.programs.train  # noqa: B018


def test_a_source_whose_elements_lie_on_one_another_is_refused(tmp_path: Path) -> None:
    f = File()
    windows = f.view("windows", f.leaf("x", np.zeros(5)), (2, 4), 0, (1, 1))
    scaled(f, "windows (view)", windows, (2, 4), nb=f.records[windows].nb)
    with pytest.raises(GGError, match="lie on one another"):
        gg.Runtime(f.save(tmp_path / "graph.bin"))
