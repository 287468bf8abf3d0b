"""Reductions and selections: slips in one line, ties, infinities, sizes that stay expressions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError


def trace_of(body: Any) -> gg.Graph:
    """Trace `body(x)` of x (batch, ctx, 16); what it gives is summed to be the loss."""

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        return body(p.embedding("token_embd", tokens, 31, 16).named("x")).sum()

    return gg.trace(loss, SimpleNamespace(), batch=2, ctx=8)


def computed(body: Any, values: Any, path: Path) -> tuple[Any, Any]:
    """`body(x)` of these values, and the gradient of its sum."""
    x = np.asarray(values, np.float32)

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        return body(p("x", *x.shape)).named("y").sum()

    gg.trace(loss, SimpleNamespace(), batch=1, ctx=1).save(path, weights={"x": lambda: [x]})
    with gg.Runtime(path, threads=1) as rt:
        (y,) = rt.forward("y")
        none = np.zeros((1, 1), np.int32)
        rt.backward((none, none))
        return y, rt.gradient("x")


def test_a_slip_is_told_in_a_line_with_the_tensor(check_each: Callable[..., None]) -> None:
    x = r"%x f32\[batch,ctx,16\]"

    def check(case: tuple[Any, str]) -> None:
        with pytest.raises((TypeError, GGError), match=rf"test_reductions\.py:\d+: {case[1]}") as error:
            trace_of(case[0])
        assert "\n" not in str(error.value)

    cases: list[tuple[Any, str]] = [
        (lambda x: x.sum(3), f"axis 3 of {x}, which has axes -3 to 2"),
        (lambda x: x.mean(axis=(0, -3)), rf"axes \(0, -3\) of {x}: one is named twice"),
        (lambda x: gg.softmax(x, axis="a"), "softmax: axis is 'a', not a whole number"),
        (lambda x: gg.cumsum(x, 5), f"axis 5 of {x}"),
        (lambda x: gg.where(x > 0, x, None), "where: .* and None; is a return missing"),
        (lambda x: gg.where(x > 0, np.ones(16), x), "where: .* an array .* gg.constant"),
    ]
    check_each(cases, check)


def test_reductions_follow_batch_and_ctx(tmp_path: Path, check_each: Callable[..., None]) -> None:
    def check(body: Any) -> None:
        graph = trace_of(body)
        graph.save(tmp_path / "graph.bin")
        assert not graph.fixed

    bodies: list[Any] = [
        lambda x: x.sum(1), lambda x: x.mean(), lambda x: x.mean((0, 1)), lambda x: x.var(1), lambda x: x.max(1),
        lambda x: x.min(), lambda x: x.logsumexp(0), lambda x: gg.softmax(x, 1), lambda x: gg.log_softmax(x, 0),
        lambda x: gg.cumsum(x, 1), lambda x: gg.tril(x), lambda x: gg.triu(x, 1), lambda x: gg.maximum(x, x[:, :1]),
    ]  # fmt: skip
    check_each(bodies, check)


def test_of_equal_elements_one_has_the_gradient(tmp_path: Path) -> None:
    _, gradient = computed(lambda x: x.max(1), [[2, 2, 1], [0, 3, 3]], tmp_path / "graph.bin")
    assert gradient.sum(1).tolist() == [1, 1]
    assert gradient[0, 2] == gradient[1, 0] == 0


def test_log_softmax_is_finite_where_the_softmax_is_not_to_be_told_from_0(tmp_path: Path) -> None:
    y, _ = computed(gg.log_softmax, [[0, -1000, 1000]], tmp_path / "graph.bin")
    assert y.tolist() == [[-1000, -2000, 0]]


def test_where_takes_infinite_numbers_on_either_side(tmp_path: Path) -> None:
    values = [[-1, 2]]
    y, gradient = computed(lambda x: gg.exp(gg.where(x > 0, x, -np.inf)), values, tmp_path / "graph.bin")
    assert y[0, 0] == 0
    assert gradient[0].tolist() == [0, pytest.approx(np.exp(2), rel=1e-6)]
    y, _ = computed(lambda x: gg.exp(gg.where(x > 0, -np.inf, x)), values, tmp_path / "graph.bin")
    assert y[0].tolist() == [pytest.approx(np.exp(-1), rel=1e-6), 0]


def test_maximum_is_exact_where_the_operands_are_far_apart(tmp_path: Path) -> None:
    y, _ = computed(lambda x: gg.maximum(x[:1], x[1:]), [[1e-8, 1e8], [-1e8, 1]], tmp_path / "graph.bin")
    assert y.tolist() == np.float32([[1e-8, 1e8]]).tolist()
