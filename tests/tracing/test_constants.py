"""Constants, numbers in a row, casts, what the gradient passes by: in the file, at other sizes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError


def trace_of(body: Any, batch: int = 2, ctx: int = 8) -> gg.Graph:
    """Trace `body(x, tokens)` of x (batch, ctx, 16); what it gives is summed to be the loss."""

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> Any:
        x = p.embedding("token_embd", tokens, 31, 16, init=gg.normal(1.0))
        y = body(x, tokens)
        return y.sum() if y.dtype == "f32" else gg.gather(p("table", 999, 1), y).sum(), {"y": y.reshape(*y.shape)}

    return gg.trace(loss, SimpleNamespace(), batch=batch, ctx=ctx)


def values_of(graph: gg.Graph, path: Path, tokens: Any, **sizes: int) -> Any:
    """The output y of the file, read and run at these sizes."""
    graph.save(path)
    assert not graph.fixed
    with gg.Runtime(path, threads=1, dialect="v2", **sizes) as rt:
        return rt.forward("y", tokens=tokens)[0]


def test_equal_constants_lie_in_the_file_once(tmp_path: Path) -> None:
    graph = trace_of(
        lambda x, _: x * gg.constant(np.ones(16)) + gg.constant([1.0] * 16) + gg.constant(np.arange(16) > 3)
    )
    assert [node.shape for node in graph.nodes if node.values] == [(16,), (16,)]
    small, large = tmp_path / "small.bin", tmp_path / "large.bin"
    trace_of(lambda x, _: x + gg.constant(np.ones((8, 16)))).save(small)
    trace_of(lambda x, _: x + gg.constant(np.ones((8, 16))) * gg.constant(np.ones((8, 16)))).save(large)
    assert large.stat().st_size - small.stat().st_size < 8 * 16 * 4


def test_a_constant_and_a_number_are_never_taken_for_one_another() -> None:
    graph = trace_of(lambda x, _: (x + 0.3) * gg.constant(np.zeros(1)) + gg.constant([5.0]) + 5)
    values = sorted(float(np.frombuffer(node.values, "f4")[0]) for node in graph.nodes if node.values)
    assert values == [0.0, np.float32(0.3), 5.0, 5.0]


def test_numbers_in_a_row_follow_the_sizes_of_a_run(tmp_path: Path, check_each: Callable[..., None]) -> None:
    def check(case: tuple[Any, Any]) -> None:
        body, expected = case
        graph = trace_of(lambda x, _: body(x))
        for batch, ctx in ((2, 8), (3, 5), (1, 13)):
            tokens = np.zeros((batch, ctx), np.int32)
            np.testing.assert_array_equal(
                values_of(graph, tmp_path / "g.bin", tokens, batch=batch, ctx=ctx), expected(batch, ctx)
            )

    cases: list[tuple[Any, Any]] = [
        (lambda x: gg.arange(x.shape[1]), lambda b, t: np.arange(t)),
        (lambda x: gg.arange(x.shape[0]), lambda b, t: np.arange(b)),
        (lambda x: gg.arange(2 * x.shape[1] + 1), lambda b, t: np.arange(2 * t + 1)),
        (lambda x: gg.arange(x.shape[0] * x.shape[1]), lambda b, t: np.arange(b * t)),
        (lambda x: gg.arange(1, x.shape[1] + 1, 2), lambda b, t: np.arange(1, t + 1, 2)),
        (lambda x: gg.arange(x.shape[1], 0, -1), lambda b, t: np.arange(t, 0, -1)),
        (lambda x: gg.arange(x.shape[1], dtype="i32"), lambda b, t: np.arange(t)),
        (lambda x: gg.arange(3 * x.shape[0], dtype="i32"), lambda b, t: np.arange(3 * b)),
        (lambda x: gg.arange(x.shape[1] - 1, -1, -1, dtype="i32"), lambda b, t: np.arange(t)[::-1]),
        (lambda x: gg.arange(7, 1, -2, dtype="i32"), lambda b, t: np.arange(7, 1, -2)),
        (lambda x: x * 0 + gg.arange(x.shape[1])[:, None], lambda b, t: np.zeros((b, t, 16)) + np.arange(t)[:, None]),
    ]  # fmt: skip
    check_each(cases, check)


def test_ids_become_numbers_of_which_masks_are_made(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 31, (2, 8), np.int32)
    graph = trace_of(lambda x, tokens: (tokens.float(31) == 7) + tokens.float(31) * 2)
    np.testing.assert_array_equal(values_of(graph, tmp_path / "g.bin", tokens), (tokens == 7) + tokens * 2)


def test_a_slip_is_told_in_a_line(check_each: Callable[..., None]) -> None:
    def check(case: tuple[Any, str]) -> None:
        body, message = case
        with pytest.raises((GGError, TypeError), match=rf"test_constants\.py:\d+: {message}"):
            trace_of(body)

    cases: list[tuple[Any, str]] = [
        (lambda x, _: x + gg.constant("one"), r"constant: <U3 of shape \(1,\) is no 1 to 4 axes of numbers"),
        (lambda x, _: x + gg.constant([]), r"constant: float64 of shape \(0,\) is no 1 to 4 axes"),
        (lambda x, _: x + gg.constant([[1], [1, 2]]), r"constant: \[\[1\], \[1, 2\]\] is no array"),
        (lambda x, _: x + gg.constant([2**31]), "constant: numbers from 2147483648 to 2147483648 are not all int32"),
        (lambda x, _: x + gg.constant(x), r"constant: %\d+ f32\[batch,ctx,16\] is a tensor already"),
        (lambda x, _: gg.arange(0), r"arange\(0, 0, 1\): 0 numbers, not 1 to 16777216"),
        (lambda x, _: gg.arange(1, 5, 0), r"arange\(1, 5, 0\): not finite numbers and a step that is not 0"),
        (lambda x, _: gg.arange(float("inf")), r"arange\(0, inf, 1\): not finite numbers"),
        (lambda x, _: gg.arange(0, 2, 0.5, dtype="i32"), r"arange\(0, 2, 0.5\): int32 are whole numbers"),
        (lambda x, _: gg.arange(4, dtype="f64"), r"arange\(0, 4, 1\): dtype is 'f64'"),
        (lambda x, _: gg.arange(1, x.shape[1], dtype="i32"), r"arange\(1, 8, 1\): int32 that depend on batch or ctx"),
        (lambda x, tokens: tokens.float(), r"float: %tokens i32\[batch,ctx\]: ggml converts no int32; ids"),
    ]  # fmt: skip
    check_each(cases, check)


def test_outside_of_a_trace_there_is_no_graph_for_them() -> None:
    for call in (lambda: gg.constant(1.0), lambda: gg.arange(3)):
        with pytest.raises(GGError, match=r"test_constants\.py:\d+: \w+ is called outside of a function that gg.trace"):
            call()


@pytest.mark.parametrize("dialect", ["v2", "v2a", "v1"])
def test_no_gradient_passes_what_stops_it_after_reading_the_file_at_another_size(tmp_path: Path, dialect: str) -> None:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        x = p.embedding("x", tokens, 5, 4, init=gg.normal(1.0))
        return (x * gg.stop_gradient(x * 2)).sum()

    path = tmp_path / "g.bin"
    gg.trace(loss, SimpleNamespace(), batch=1, ctx=2).save(path, dialect=dialect)
    tokens = np.array([[3, 1, 4]] * 2, np.int32)
    with gg.Runtime(path, threads=1, batch=2, ctx=3) as rt:
        rt.backward((tokens, tokens))
        table = rt.get("x.weight")
        expected = np.zeros_like(table)
        np.add.at(expected, tokens.ravel(), 2 * table[tokens.ravel()])
        np.testing.assert_allclose(rt.gradient("x.weight"), expected, rtol=1e-6)
