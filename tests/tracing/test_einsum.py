"""einsum: what it refuses, the ops that it writes. Values and gradients are among the spellings."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError


def trace_of(body: Any) -> gg.Graph:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        return body(p.embedding("token_embd", tokens, 31, 16).named("x"), p("w", 16, 3)).sum()

    return gg.trace(loss, SimpleNamespace(), batch=2, ctx=8)


def test_a_slip_is_told_in_a_line(check_each: Callable[..., None]) -> None:
    def check(case: tuple[Any, str]) -> None:
        body, message = case
        with pytest.raises(GGError, match=rf"test_einsum\.py:\d+: einsum\S*: {message}"):
            trace_of(body)

    cases: list[tuple[Any, str]] = [
        (lambda x, w: gg.einsum("bti,ij", x), "letters of 2 operands, but 1 are given"),
        (lambda x, w: gg.einsum("bi,ij", x, w), r"'bi' are 2 letters for %x f32\[batch,ctx,16\]"),
        (lambda x, w: gg.einsum("bti,ji", x, w), r"'i' is 16 and 3: %x f32\[batch,ctx,16\], %w f32\[16,3\]"),
        (lambda x, w: gg.einsum("ii", w), "'i' is twice in 'ii': ggml has no op for diagonals"),
        (lambda x, w: gg.einsum("...i,ij", x, w), r"no '\.\.\.': give each axis a letter"),
        (lambda x, w: gg.einsum("bti,ij->bk", x, w), "the result's 'k' is in no operand"),
        (lambda x, w: gg.einsum("bti,jk->btijk", x, w), "a product of .* has the axes 'btijk', more than 4"),
        (lambda x, w: gg.einsum("ij,jk"), r'it is called as einsum\("ij,jk->ik", x, y\)'),
        (lambda x, w: gg.einsum("b?i,ij", x, w), "axes are letters"),
    ]
    check_each(cases, check)


def test_a_product_that_ggml_has_is_written_without_copies(check_each: Callable[..., None]) -> None:
    def check(case: tuple[Any, list[str]]) -> None:
        names = [node.op.name for node in trace_of(case[0]).nodes if node.op][3:-1]
        assert names == case[1]

    cases: list[tuple[Any, list[str]]] = [
        (lambda x, w: gg.einsum("bti,ij->btj", x, w), ["reshape", "permute", "cont", "mul_mat", "reshape"]),
        (lambda x, w: gg.einsum("btd,bsd->bts", x, x), ["mul_mat", "reshape"]),
        (lambda x, w: gg.einsum("bti->bit", x), ["permute", "cont"]),
    ]
    check_each(cases, check)


def test_named_sizes_pass_through(tmp_path: Any) -> None:
    graph = trace_of(lambda x, w: gg.einsum("bti,ij,bsi->tsj", x, w, x))
    graph.save(tmp_path / "g.bin")
    assert not graph.fixed
