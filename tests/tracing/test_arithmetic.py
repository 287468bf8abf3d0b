"""Operators: what they refuse, in one line each; which of ggml's ops they write."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError


def trace_of(body: Any, batch: int = 2, ctx: int = 8) -> gg.Graph:
    """Trace `body(x, w)` of x (batch, ctx, 16) and w (3, 1); what it gives is summed to be the loss."""

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        return body(p.embedding("token_embd", tokens, 31, 16).named("x"), p("w", 3, 1)).sum()

    return gg.trace(loss, SimpleNamespace(), batch=batch, ctx=ctx)


def ops_of(body: Any) -> list[str]:
    """The ops that `body` writes, between those around it."""
    names = [node.op.name for node in trace_of(body).nodes if node.op]
    return names[3:-1]


def forget_return(x: Any) -> None:
    x * 2


def refused(case: tuple[Any, str]) -> None:
    body, message = case
    with pytest.raises((TypeError, ValueError, GGError), match=rf"test_arithmetic\.py:\d+: {message}") as error:
        trace_of(body)
    assert "\n" not in str(error.value)


def test_a_slip_is_told_in_a_line_with_the_operands(check_each: Callable[..., None]) -> None:
    x = r"%x f32\[batch,ctx,16\]"
    cases: list[tuple[Any, str]] = [
        (lambda x, w: x + np.ones(16), rf"\+: {x} and an array \(16,\) of numpy's; gg\.constant\(array\) makes"),
        (lambda x, w: np.ones(16) * x, rf"\*: {x} and an array \(16,\) of numpy's"),
        (lambda x, w: x - forget_return(x), rf"-: {x} and None; is a return missing"),
        (lambda x, w: x / "2", rf"/: {x} and '2'"),
        (lambda x, w: x * [1.0], rf"\*: {x} and \[1.0\]"),
        (lambda x, w: x > None, rf"a comparison: {x} and None; is a return missing"),
        (lambda x, w: x @ 2, rf"@: {x} and 2; a number multiplies by \*"),
        (lambda x, w: x @ None, rf"@: {x} and None"),
        (lambda x, w: x / 0, rf"/: {x} is divided by 0"),
        (lambda x, w: (-2) ** x, rf"\*\*: -2 to the power of {x}; the base must be a number above 0"),
        (lambda x, w: x + w, rf"add: sizes are neither equal nor 1, from the last axis on: a = {x}, b = %w f32\[3,1\]"),
        (lambda x, w: np.exp(x), rf"np\.exp takes no tensor, {x}; gg\.exp does"),
        (lambda x, w: x + float("inf"), "the number inf is not finite"),
    ]  # fmt: skip
    check_each(cases, refused)


def test_operators_write_ggmls_ops(check_each: Callable[..., None]) -> None:
    def check(case: tuple[Any, list[str]]) -> None:
        assert ops_of(case[0]) == case[1]

    cases: list[tuple[Any, list[str]]] = [
        (lambda x, w: x + 1, ["add"]), (lambda x, w: 1 - x, ["neg", "add"]), (lambda x, w: x - 1, ["add"]),
        (lambda x, w: 2 * x, ["scale"]), (lambda x, w: x / 2, ["scale"]), (lambda x, w: 1 / x, ["repeat", "div"]),
        (lambda x, w: x**2, ["sqr"]), (lambda x, w: x > 0, ["step"]), (lambda x, w: x < 0, ["neg", "step"]),
        (lambda x, w: w.reshape(3, 1, 1, 1) + x, ["reshape", "repeat", "add"]),
        (lambda x, w: w.reshape(3, 1, 1, 1)[0:1].reshape(1) - x, ["reshape", "view", "reshape", "neg", "add"]),
    ]  # fmt: skip
    check_each(cases, check)


def test_a_number_is_one_constant_however_often_it_is_used() -> None:
    graph = trace_of(lambda x, w: (x + 1) * (1 - x) + (x + 1.0))
    assert [node.name for node in graph.nodes if node.values] == ["const.1"]


def test_numbers_that_are_sizes_follow_them(tmp_path: Any) -> None:
    graph = trace_of(lambda x, w: x + x.shape[1])
    graph.save(tmp_path / "graph.bin")
    assert not graph.fixed


def test_numbers_that_depend_on_sizes_fix_the_graph_and_say_so(tmp_path: Any) -> None:
    graph = trace_of(lambda x, w: x + 1 / x.shape[1])
    graph.save(tmp_path / "graph.bin")
    assert "the constant const.0.125 depends on batch or ctx" in graph.fixed


def test_broadcasting_keeps_sizes_expressions(tmp_path: Any) -> None:
    graph = trace_of(lambda x, w: w.reshape(3, 1, 1, 1) / x, batch=1, ctx=1)
    graph.save(tmp_path / "graph.bin")
    assert not graph.fixed
    assert "f32[3,batch,ctx,16] = div(" in str(graph)


def test_equality_is_a_mask_and_a_tensor_can_be_a_key() -> None:
    graph = trace_of(lambda x, w: {x: x == w.reshape(3, 1, 1, 1)}[x] + (x != 0))
    assert "f32[3,batch,ctx,16] = step(" in str(graph)


def test_products_of_sizes_that_do_not_fit_are_told_as_numpy_counts() -> None:
    with pytest.raises(GGError, match=r"@: the 16 columns of a are not the 3 rows of b: a = %x f32.*b = %w f32\[3,1\]"):
        trace_of(lambda x, w: x @ w)
    with pytest.raises(
        GGError, match=r"@: the axes in front do not broadcast: a = %\d+ f32\[3,1,3\], b = %\d+ f32\[2,3,1\]"
    ):
        trace_of(lambda x, w: gg.repeat(w.T.cont(), (3, 1, 3)) @ gg.repeat(w, (2, 3, 1)))
