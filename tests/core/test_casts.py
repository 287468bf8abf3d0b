"""Graphs that hold other types than float32 where kernels compute with it: the importer puts casts around the op.

The expected values are float64 numpy on operands that were rounded as the file says. A derivative takes no notice of
rounding: that of a cast is the identity.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import ENCODED, HALVES, MASK, File, convolution, normal

import ggmlgraph as gg
from ggmlgraph.core import encoding
from ggmlgraph.core.passes import FUSIONS
from ggmlgraph.errors import ShapeError, UnsupportedError
from ggmlgraph.table.dialect import LOSS, PARAM


def rounded(values: Any, type: str) -> Any:
    """As the type holds them."""
    name = type.lower()
    return encoding.decode(name, encoding.encode(name, np.float32(values))).reshape(np.shape(values)).astype(float)


def soft_max(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def forward(f: File, tmp_path: Path, *names: str) -> list[Any]:
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=2) as rt:
        return rt.forward(*names)


# ---------------------------------------------------------------- casts and copies


@pytest.mark.parametrize("type", ENCODED)
def test_a_cast_there_and_back_rounds(type: str, tmp_path: Path) -> None:
    f, values = File(), normal(3, 64)
    there = f.cast("there", f.leaf("x", values), type)
    f.cast("back", there, "F32")
    (back,) = forward(f, tmp_path, "back")
    np.testing.assert_array_equal(back, rounded(values, type))


@pytest.mark.parametrize("type", ENCODED)
def test_a_copy_into_a_window_of_a_leaf_of_another_type_is_read_after_it(type: str, tmp_path: Path) -> None:
    f, values = File(), normal(2, 64)
    cache = f.leaf("cache", np.zeros((5, 64)), type=type)
    rows = f.view("rows", cache, (2, 64), 2 * 64, (64, 1))
    f.cpy("written", f.leaf("k", values), rows)
    f.node("y", "MUL_MAT", (1, 5), cache, f.leaf("x", np.eye(1, 64, 3)))
    (y,) = forward(f, tmp_path, "y")
    np.testing.assert_array_equal(y, [0, 0, *rounded(values, type)[:, 3], 0])


def test_a_copy_of_halves_into_a_transposed_window_goes_where_it_lies(tmp_path: Path) -> None:
    f = File()
    cache, a = f.leaf("cache", np.zeros((4, 3)), type="F16"), f.leaf("a", [[1, 2, 3, 4]])
    column = f.view("column", cache, (4, 1), 1, (3, 1))
    f.cpy("written", a, f.node("row", "TRANSPOSE", (1, 4), column, type="F16", nb=(6, 2, 24, 24)))
    f.cast("y", cache, "F32")
    (y,) = forward(f, tmp_path, "y")
    np.testing.assert_array_equal(y, [[0, i, 0] for i in (1, 2, 3, 4)])


@pytest.mark.parametrize("type", ["Q4_K", "IQ2_XXS", "I16"])
def test_a_cast_to_a_type_without_encoder_is_refused(type: str, tmp_path: Path) -> None:
    f = File()
    f.cast("y", f.leaf("x", np.zeros(256)), type)
    with pytest.raises(UnsupportedError, match=rf"'y' \(CPY\): a copy of f32 to {type.lower()}"):
        gg.Runtime(f.save(tmp_path / "graph.bin"))


def test_a_copy_from_rows_that_are_no_whole_blocks_is_refused(tmp_path: Path) -> None:
    f = File()
    f.cpy("y", f.leaf("x", np.zeros((4, 8))), f.leaf("to", np.zeros(32), type="Q8_0"))
    with pytest.raises(ShapeError, match="rows of whole blocks of 32"):
        gg.Runtime(f.save(tmp_path / "graph.bin"))


# ---------------------------------------------------------------- operands


@pytest.mark.parametrize("type", HALVES)
def test_a_mask_of_halves_masks(type: str, tmp_path: Path) -> None:
    f, values = File(), normal(2, 6, 6)
    mask = f.leaf("mask", MASK, type=type)
    f.node("y", "SOFT_MAX", (2, 6, 6), f.leaf("x", values), mask, op_params=struct.pack("<2f", 0.5, 0))
    (y,) = forward(f, tmp_path, "y")
    np.testing.assert_allclose(y, soft_max(values * 0.5 + MASK), rtol=1e-5)


def attention(f: File, type: str) -> tuple[Any, int]:
    """Keys and values of a type with a mask of halves, by one op; its float64 value."""
    q, k, v = normal(2, 6, 32), normal(1, 6, 32, seed=1), normal(1, 6, 32, seed=2)
    sources = [
        f.leaf("q", q, PARAM), *(f.cast(n, f.leaf(f"{n}32", a, PARAM), type) for n, a in (("k", k), ("v", v))),
        f.leaf("mask", np.resize(MASK, (32, 6)), type="F16"),
    ]  # fmt: skip
    scale = 32**-0.5
    weights = soft_max(q.astype(float) @ rounded(k, type)[0].T * scale + MASK)
    y = f.node("y", "FLASH_ATTN_EXT", (6, 2, 32), *sources, op_params=struct.pack("<3f", scale, 0, 0))
    return (weights @ rounded(v, type)[0]).swapaxes(0, 1), y


@pytest.mark.parametrize("type", ENCODED)
def test_attention_takes_keys_and_values_of_any_type(type: str, tmp_path: Path) -> None:
    f = File()
    wanted, _ = attention(f, type)
    (y,) = forward(f, tmp_path, "y")
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("type", HALVES)
def test_ops_on_halves_give_halves_where_ggml_does(type: str, tmp_path: Path) -> None:
    f, values = File(), rounded(normal(4, 8), type)
    x, one = f.leaf("x", values, type=type), f.leaf("one", [1.0], type=type)
    f.cast("sum", f.node("half sum", "SUM", (1,), x, type=type), "F32")
    f.cast("added", f.node("half added", "ADD", (4, 8), x, f.leaf("y", values), type=type), "F32")
    f.cast("more", f.node("half more", "ADD1", (4, 8), x, one, type=type), "F32")
    f.cast("tiled", f.node("half tiled", "REPEAT", (8, 8), x, type=type), "F32")
    f.node("widened", "ADD", (4, 8), x, f.leaf("z", values))
    total, added, more, tiled, widened = forward(f, tmp_path, "sum", "added", "more", "tiled", "widened")
    np.testing.assert_allclose(total, [rounded(values.sum(), type)], rtol=2e-2)
    np.testing.assert_array_equal(added, rounded(2 * values, type))
    np.testing.assert_array_equal(more, rounded(np.float32(values) + np.float32(1), type))
    np.testing.assert_array_equal(tiled, np.tile(values, (2, 1)))
    np.testing.assert_array_equal(widened, 2 * values)


def test_integers_are_repeated_and_looked_up(tmp_path: Path) -> None:
    f = File()
    table, ids = f.leaf("table", [[1, 2], [3, 1 << 30], [-5, 6]], type="I32"), f.leaf("ids", [2, 1], type="I32")
    f.node("rows", "GET_ROWS", (2, 2), table, ids, type="I32")
    f.node("tiled", "REPEAT", (2, 4), ids, type="I32")
    rows, tiled = forward(f, tmp_path, "rows", "tiled")
    np.testing.assert_array_equal(rows, [[-5, 6], [3, 1 << 30]])
    np.testing.assert_array_equal(tiled, [[2, 1, 2, 1]] * 2)


def test_a_sum_with_quantised_weights_is_quantised_again(tmp_path: Path) -> None:
    f, w, delta = File(), rounded(normal(3, 32), "Q8_0"), normal(3, 32, seed=1) / 100
    y = f.node("merged", "ADD", (3, 32), f.leaf("w", w, type="Q8_0"), f.leaf("delta", delta), type="Q8_0")
    f.cast("y", y, "F32")
    (y,) = forward(f, tmp_path, "y")
    np.testing.assert_array_equal(y, rounded(np.float32(w) + delta, "Q8_0"))


# ---------------------------------------------------------------- views of halves


def test_halves_are_viewed_permuted_and_copied_as_they_lie(tmp_path: Path) -> None:
    f, values = File(), normal(3, 4, 5)
    x = f.cast("x16", f.leaf("x", values), "F16")
    part = f.view("part", x, (3, 2, 5), 5, (20, 5, 1))
    turned = f.node("turned", "PERMUTE", (2, 3, 5), part, type="F16", nb=(2, 40, 10, 120),
                    op_params=struct.pack("<4i", 0, 2, 1, 3))  # fmt: skip
    dense = f.node("dense", "CONT", (2, 3, 5), turned, type="F16")
    flat = f.node("flat", "RESHAPE", (6, 5), dense, type="F16")
    f.node("y", "GET_ROWS", (6, 5), flat, f.leaf("ids", range(6), type="I32"))
    (y,) = forward(f, tmp_path, "y")
    np.testing.assert_array_equal(y, rounded(values, "F16")[:, 1:3].swapaxes(0, 1).reshape(6, 5))


# ---------------------------------------------------------------- gradients


def test_the_gradient_of_views_of_halves_is_that_of_views_of_floats(tmp_path: Path) -> None:
    found = []
    for type in ("F16", "F32"):
        f = File()
        x = f.cast("x16", f.leaf("x", normal(3, 4, 5), PARAM), type)
        part = f.view("part", x, (3, 2, 5), 5, (20, 5, 1))
        size = 2 if type == "F16" else 4
        turned = f.node("turned", "PERMUTE", (2, 3, 5), part, type=type, nb=(size, 20 * size, 5 * size, 60 * size),
                        op_params=struct.pack("<4i", 0, 2, 1, 3))  # fmt: skip
        dense = f.cast("dense", f.node("copied", "CONT", (2, 3, 5), turned, type=type), "F32")
        f.node("loss", "SUM", (1,), f.node("m", "MUL", (2, 3, 5), dense, f.leaf("g", normal(2, 3, 5))), flags=LOSS)
        with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
            rt.backward({})
            found.append(rt.gradient("x"))
    np.testing.assert_array_equal(*found)
    assert np.count_nonzero(found[0]) == 30


@pytest.mark.parametrize("type", ENCODED)
def test_the_gradient_of_a_copy_into_a_window_of_another_type_is_the_slice(type: str, tmp_path: Path) -> None:
    f, factors = File(), normal(4, 64)
    u = f.leaf("u", normal(4, 64, seed=1), PARAM)
    cache = f.cast("cache", u, type)
    f.cpy("written", f.leaf("w", normal(2, 32, seed=2), PARAM), f.view("part", cache, (2, 32), 64 + 32, (64, 1)))
    wide = f.cast("wide", cache, "F32")
    f.node("loss", "SUM", (1,), f.node("m", "MUL", (4, 64), wide, f.leaf("factors", factors)), flags=LOSS)
    with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=1) as rt:
        rt.backward({})
        np.testing.assert_array_equal(rt.gradient("w"), factors[1:3, 32:])
        kept = factors.copy()
        kept[1:3, 32:] = 0
        np.testing.assert_array_equal(rt.gradient("u"), kept)


FACTORS = normal(6, 2, 32, seed=3)


def attention_gradients(type: str, path: Path, threads: int) -> dict[str, Any]:
    """Of sum(y * FACTORS)."""
    f = File()
    _, y = attention(f, type)
    f.node("loss", "SUM", (1,), f.node("m", "MUL", (6, 2, 32), y, f.leaf("factors", FACTORS)), flags=LOSS)
    with gg.Runtime(f.save(path), threads=threads) as rt:
        rt.backward({})
        return {name: rt.gradient(name) for name in ("q", "k32", "v32")}


@pytest.mark.parametrize("type", [*HALVES, "Q8_0"])
def test_the_gradient_of_values_of_any_type_is_weights_times_cotangent(type: str, tmp_path: Path) -> None:
    q, k = normal(2, 6, 32).astype(float), rounded(normal(6, 32, seed=1), type)
    weights = soft_max(q @ k.T * 32**-0.5 + MASK)
    wanted = (weights.swapaxes(1, 2) @ FACTORS.swapaxes(0, 1)).sum(0)
    found = attention_gradients(type, tmp_path / "graph.bin", threads=1)
    np.testing.assert_allclose(found["v32"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("type", [*HALVES, "Q8_0"])
def test_gradients_through_casts_are_the_same_for_any_number_of_threads(type: str, tmp_path: Path) -> None:
    found = [attention_gradients(type, tmp_path / "graph.bin", threads) for threads in (1, 2, 3)]
    for name in found[0]:
        assert len({gradients[name].tobytes() for gradients in found}) == 1


def test_a_convolution_in_halves_and_its_gradients_are_that_in_floats_rounded(tmp_path: Path) -> None:
    results = []
    for type in ("F16", "F32"):
        f = File()
        y = convolution(f, type)
        f.node("loss", "SUM", (1,), f.node("sqr", "SQR", (4, 20), y), flags=LOSS)
        with gg.Runtime(f.save(tmp_path / "graph.bin"), threads=2) as rt:
            values = rt.forward("y")[0]
            rt.backward({})
            results.append((values, rt.gradient("w"), rt.gradient("x")))
    for halves, floats in zip(*results, strict=True):
        np.testing.assert_allclose(halves, floats, atol=4e-3 * np.abs(floats).max())
        assert (halves != floats).any()


# ---------------------------------------------------------------- a head of another type


def with_head(head: str, w: Any, x: Any, ids: Any) -> File:
    """Cross-entropy of the products of x with a cast of w, which is a parameter, or with a leaf of that type."""
    f, n, v = File(), len(x), len(w)
    rows = f.leaf("x", x, PARAM)
    matrix = f.leaf("w", w, type="F16") if head == "leaf" else f.cast("cast", f.leaf("w", w, PARAM), head)
    p = f.node("p", "SOFT_MAX", (n, v), f.node("logits", "MUL_MAT", (n, v), matrix, rows),
               op_params=struct.pack("<2f", 1, 0))  # fmt: skip
    chosen = f.node("chosen", "GET_ROWS", (n, 1, 1), f.node("column", "RESHAPE", (n, v, 1), p),
                    f.leaf("ids", ids, type="I32"))  # fmt: skip
    weighted = f.node("weighted", "MUL", (n, 1, 1), f.node("log", "LOG", (n, 1, 1), chosen),
                      f.leaf("weights", np.full((n, 1, 1), 1 / n)))  # fmt: skip
    f.node("loss", "SCALE", (1,), f.node("sum", "SUM", (1,), weighted), op_params=struct.pack("<f", -1), flags=LOSS)
    return f


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("head", [*ENCODED, "leaf"])
def test_a_head_of_another_type_trains_if_it_is_a_cast_of_a_parameter(head: str, fused: bool, tmp_path: Path) -> None:
    w, x, ids = normal(8, 32), normal(5, 32, seed=1), np.array([[1], [0], [7], [3], [3]])
    seen = rounded(w, "F16" if head == "leaf" else head)
    g = (soft_max(x @ seen.T) - np.eye(8)[ids[:, 0]]) / 5
    path = with_head(head, w, x, ids).save(tmp_path / "graph.bin")
    with gg.Runtime(path, threads=2, fusions=set(FUSIONS) if fused else set(FUSIONS) - {"cross_entropy"}) as rt:
        rt.backward({})
        np.testing.assert_allclose(rt.gradient("x"), g @ seen, rtol=1e-4, atol=1e-6)
        assert set(rt.params) == ({"x"} if head == "leaf" else {"x", "w"})
        if head != "leaf":
            np.testing.assert_allclose(rt.gradient("w"), g.T @ x, rtol=1e-4, atol=1e-6)
