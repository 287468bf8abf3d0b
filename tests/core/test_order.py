"""CPY into memory that others read: what is read before sees the old values, what is read after the new ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import File, cache_graph
from places import REAL

import ggmlgraph as gg
from ggmlgraph.core.passes import FUSIONS
from ggmlgraph.errors import GGError, UnsupportedError
from ggmlgraph.graphfile import reader
from ggmlgraph.graphfile.rewrite import rewrite
from ggmlgraph.table.dialect import LOSS, PARAM, WRITTEN


@pytest.mark.parametrize("dialect", WRITTEN)
def test_what_is_read_after_a_copy_into_a_cache_sees_it(dialect: str, tmp_path: Path) -> None:
    with gg.Runtime(cache_graph().save(tmp_path / "graph.bin", dialect), threads=1) as rt:
        before, after = rt.forward("before", "after")
        assert (before.item(), after.item()) == (0, 10)


def test_a_copy_into_a_leaf_lasts(tmp_path: Path) -> None:
    with gg.Runtime(cache_graph().save(tmp_path / "graph.bin"), threads=1) as rt:
        rt.forward("before")
        np.testing.assert_array_equal(rt.get("cache"), [[0] * 4, [1, 2, 3, 4], [0] * 4])
        assert rt.forward("before")[0].item() == 10
        rt.set("k", np.ones(4, np.float32))
        assert rt.forward("after")[0].item() == 4


def test_a_later_copy_over_an_earlier_one_wins(tmp_path: Path) -> None:
    f = File()
    cache, a, b = f.leaf("cache", np.zeros(6)), f.leaf("a", [1, 1, 1, 1]), f.leaf("b", [5, 5])
    first = f.cpy("first", a, f.view("front", cache, (4,), 0, (1,)))
    f.cpy("second", b, f.view("middle", cache, (2,), 1, (1,)))
    f.node("sum", "SUM", (1,), first)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        assert rt.forward("sum")[0].item() == 12
        np.testing.assert_array_equal(rt.get("cache"), [1, 5, 5, 1, 0, 0])


def test_a_copy_of_integers_is_seen_by_what_reads_them_later(tmp_path: Path) -> None:
    f = File()
    cache, k = f.leaf("cache", np.zeros(6)), f.leaf("k", [1, 2])
    f.node("before", "CONT", (6,), cache)
    f.cpy("written", k, f.view("part", cache, (2,), 3, (1,)))
    f.node("after", "CONT", (6,), cache)
    f.as_type("I32")
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        rt.set("cache", np.arange(6, dtype=np.int32))
        rt.set("k", np.int32([7, 8]))
        before, after = rt.forward("before", "after")
        np.testing.assert_array_equal(before, [0, 1, 2, 3, 4, 5])
        np.testing.assert_array_equal(after, [0, 1, 2, 7, 8, 5])
        np.testing.assert_array_equal(rt.get("cache"), after)


def test_a_copy_into_a_transposed_window_goes_where_it_lies(tmp_path: Path) -> None:
    f = File()
    cache, a = f.leaf("cache", np.zeros((4, 3))), f.leaf("a", [[1, 2, 3, 4]])
    column = f.view("column", cache, (4, 1), 1, (3, 1))
    row = f.node("row", "TRANSPOSE", (1, 4), column, nb=(12, 4, 48, 48))
    f.cpy("written", a, row)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        rt.forward("written")
        np.testing.assert_array_equal(rt.get("cache")[:, 1], [1, 2, 3, 4])
        assert rt.get("cache").sum() == 10


# ---------------------------------------------------------------- ops that write several sources

START = {"p": np.arange(8.0).reshape(2, 4) + 1, "g": np.full((2, 4), 3.0), "m": np.zeros((2, 4)), "v": np.zeros((2, 4))}
STEP = struct.pack("<q5f", 1, 0.5, 0.9, 0.999, 1e-8, 0)  # the first of rate 0.5: each element moves by that
AFTER = {"p": START["p"] - 0.5, "m": START["g"] * 0.1, "v": START["g"] ** 2 * 0.001}


def optimised(f: File) -> dict[str, int]:
    """The tensors of one AdamW step; `before` reads p and `step` writes p, m and v."""
    ids = {name: f.leaf(name, values) for name, values in START.items()}
    ids["before"] = f.node("before", "RMS_NORM", (2, 4), ids["p"], op_params=struct.pack("<f", 1e-5))
    ids["step"] = f.node("step", "OPT_STEP_ADAMW", (2, 4), *(ids[name] for name in START), op_params=STEP)
    return ids


@pytest.mark.parametrize("name", AFTER)
def test_what_is_read_after_an_optimiser_step_sees_what_it_wrote(name: str, tmp_path: Path) -> None:
    f = File()
    window = f.view("window", optimised(f)[name], (2, 2), 1, (4, 1))
    f.node("y", "CONT", (2, 2), window)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        np.testing.assert_allclose(rt.forward("y")[0], AFTER[name][:, 1:3], rtol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_what_an_optimiser_step_overwrites_is_not_read_again_by_a_fused_op(fused: bool, tmp_path: Path) -> None:
    f = File()
    f.node("y", "MUL", (2, 4), optimised(f)["before"], f.leaf("gain", np.ones(4)))
    rms = np.sqrt((START["p"] ** 2).mean(-1, keepdims=True) + 1e-5)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1, fusions=FUSIONS if fused else ()) as rt:
        np.testing.assert_allclose(rt.forward("y", "step")[0], START["p"] / rms, rtol=1e-6)


def test_every_run_does_an_optimiser_step_of_the_file(tmp_path: Path) -> None:
    f = File()
    optimised(f)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        rt.forward("before")
        for name, values in AFTER.items():
            np.testing.assert_allclose(rt.get(name), values, rtol=1e-4)


@pytest.mark.parametrize("shared", ["g", "m", "v"])
def test_what_a_step_writes_shares_no_memory_with_what_else_it_takes(shared: str, tmp_path: Path) -> None:
    f = File()
    both = f.leaf("both", np.zeros((3, 4)))
    ids = {name: f.leaf(name, values) for name, values in START.items()}
    ids["p"], ids[shared] = f.view("first", both, (2, 4), 0, (4, 1)), f.view("second", both, (2, 4), 4, (4, 1))
    f.node("step", "OPT_STEP_ADAMW", (2, 4), *(ids[name] for name in START), op_params=STEP)
    with pytest.raises(GGError, match="share memory, so what opt_step_adamw writes"):
        gg.Runtime(f.save(tmp_path / "graph.bin"))


def test_what_a_step_writes_has_no_gaps(tmp_path: Path) -> None:
    f = File()
    ids = {name: f.leaf(name, values) for name, values in START.items()}
    ids["p"] = f.view("part", f.leaf("whole", np.zeros((2, 6))), (2, 4), 0, (6, 1))
    f.node("step", "OPT_STEP_ADAMW", (2, 4), *(ids[name] for name in START), op_params=STEP, nb=(4, 24, 48, 48))
    with pytest.raises(GGError, match="source 0 has gaps, and opt_step_adamw writes it"):
        gg.Runtime(f.save(tmp_path / "graph.bin"))


# ---------------------------------------------------------------- gradients


def gradient_graph() -> File:
    """cache = u * u, of which row 1 becomes w * w; the loss is its sum before, plus that of cache * factors after."""
    f = File()
    w = f.leaf("w", [1, 2, 3, 4], PARAM)
    u = f.leaf("u", np.arange(12).reshape(3, 4) / 10, PARAM)
    factors = f.leaf("factors", np.arange(1, 13).reshape(3, 4))
    cache = f.node("cache", "SQR", (3, 4), u)
    square = f.node("square", "SQR", (4,), w)
    early = f.node("early", "SUM", (1,), cache)
    f.cpy("written", square, f.view("row", cache, (4,), 4, (1,)))
    late = f.node("late", "SUM", (1,), f.node("weighted", "MUL", (3, 4), cache, factors))
    f.node("loss", "ADD", (1,), late, early, flags=LOSS)
    return f


def test_gradient_through_a_copy_is_that_of_the_slice_and_zero_for_what_was_overwritten(tmp_path: Path) -> None:
    with gg.Runtime(gradient_graph().save(tmp_path / "graph.bin"), threads=1) as rt:
        rt.backward({})
        u, w = np.arange(12).reshape(3, 4) / 10, np.array([1.0, 2, 3, 4])
        factors = np.arange(1.0, 13).reshape(3, 4)
        np.testing.assert_allclose(rt.gradient("w"), 2 * w * factors[1], rtol=1e-6)
        kept = np.array([[1], [0], [1]])
        np.testing.assert_allclose(rt.gradient("u"), 2 * u * (kept * factors + 1), rtol=1e-6)


def test_a_derivative_that_needs_overwritten_values_is_refused_by_name(tmp_path: Path) -> None:
    f = File()
    w, zeros = f.leaf("w", [1, 2, 3, 4], PARAM), f.leaf("zeros", [0, 0, 0, 0])
    doubled = f.node("doubled", "SCALE", (4,), w, op_params=struct.pack("<f", 2))
    square = f.node("square", "SQR", (4,), doubled)  # whose derivative reads `doubled`
    f.cpy("written", zeros, doubled)
    f.node("loss", "ADD", (1,), f.node("sum", "SUM", (1,), square), f.node("zero", "SUM", (1,), doubled), flags=LOSS)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        assert rt.forward("loss")[0].item() == 4 * (1 + 4 + 9 + 16)
        with pytest.raises(UnsupportedError, match="the gradient of sqr needs doubled, which cpy overwrites"):
            rt.programs.train  # noqa: B018


# ---------------------------------------------------------------- what depends on an order nobody gave


def test_a_destination_whose_elements_overlap_is_refused(tmp_path: Path) -> None:
    f = File()
    cache, a = f.leaf("cache", np.zeros(5)), f.leaf("a", np.zeros((2, 4)))
    f.cpy("written", a, f.view("windows", cache, (2, 4), 0, (1, 1)))
    with pytest.raises(GGError, match="lie on one another"):
        gg.Runtime(f.save(tmp_path / "graph.bin"))


def test_a_copy_within_one_memory_is_refused_where_the_two_overlap(tmp_path: Path) -> None:
    for offset, fits in ((2, False), (4, True)):
        f = File()
        x = f.leaf("x", np.arange(8))
        f.cpy("written", f.view("a", x, (4,), 0, (1,)), f.view("b", x, (4,), offset, (1,)))
        path = f.save(tmp_path / "graph.bin")
        if not fits:
            with pytest.raises(GGError, match="share memory"):
                gg.Runtime(path)
            continue
        with gg.Runtime(path, threads=1) as rt:
            rt.forward("written")
            np.testing.assert_array_equal(rt.get("x"), [0, 1, 2, 3, 0, 1, 2, 3])


# ---------------------------------------------------------------- casts and second exports


def cast_graph() -> File:
    f = File()
    x = f.leaf("x", [1, 2, 3, 4])
    cast = f.node("cast", "CPY", (4,), x, len(f.records))
    f.node("y", "SUM", (1,), cast)
    return f


@pytest.mark.parametrize("dialect", WRITTEN)
def test_a_cast_is_a_new_tensor(dialect: str, tmp_path: Path) -> None:
    with gg.Runtime(cast_graph().save(tmp_path / "graph.bin", dialect), threads=1) as rt:
        assert rt.forward("y")[0].item() == 10


@pytest.mark.parametrize("make", [cache_graph, cast_graph, gradient_graph])
def test_a_second_export_is_the_first_byte_for_byte(make: Any, tmp_path: Path) -> None:
    first = make().save(tmp_path / "first.bin")
    rewrite(first, tmp_path / "second.bin", "v2", "v2")
    assert (tmp_path / "second.bin").read_bytes() == first.read_bytes()


def test_what_an_older_name_left_behind_a_name_survives(tmp_path: Path) -> None:
    """ggml's set_name writes a shorter name over a longer one up to its NUL."""
    first = cache_graph().save(tmp_path / "first.bin")
    content = first.read_bytes()
    assert content.count(b"whole\0\0\0\0\0\0\0\0") == 1
    first.write_bytes(content.replace(b"whole\0\0\0\0\0\0\0\0", b"whole\0(view)\0"))
    rewrite(first, tmp_path / "second.bin", "v2", "v2")
    assert (tmp_path / "second.bin").read_bytes() == first.read_bytes()


GRAPHS = REAL / "graphs"


@pytest.mark.skipif(not GRAPHS.is_dir(), reason="for want of ../shared/data/graphs")
def test_exports_of_real_ggml_are_written_again_byte_for_byte(tmp_path: Path) -> None:
    files = sorted(GRAPHS.glob("*.ggml"))
    assert len(files) == 6
    for file in files:
        dialect = file.name.split("_")[1]
        rewrite(file, tmp_path / "again.bin", dialect, dialect)
        assert (tmp_path / "again.bin").read_bytes() == file.read_bytes()


def test_another_dialect_leaves_the_order_of_what_is_computed(tmp_path: Path) -> None:
    """The loss reads the cache before the copy and after; the parameters move from the nodes to the leafs and back."""
    files = {name: tmp_path / name for name in ("v2", "v1", "back")}
    gradient_graph().save(files["v2"])
    rewrite(files["v2"], files["v1"], "v1", "v2")
    rewrite(files["v1"], files["back"], "v2", "v1")
    losses, orders = set(), set()
    for name, file in files.items():
        nodes = reader.read(file, "v1" if name == "v1" else "v2").nodes
        orders.add(tuple(r.name for r in nodes if r.op != "NONE"))
        with gg.Runtime(file, threads=1) as rt:
            losses.add(rt.backward({}))
    assert len(orders) == len(losses) == 1
