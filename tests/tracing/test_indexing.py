"""Indexing and layout: what they refuse, in one line each; what becomes a view; sizes that stay expressions."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError


def trace_of(body: Any, batch: int = 2, ctx: int = 8) -> gg.Graph:
    """Trace `body(x)` of x (batch, ctx, 16); what it gives is summed to be the loss."""

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        return body(p.embedding("token_embd", tokens, 31, 16).named("x")).sum()

    return gg.trace(loss, SimpleNamespace(), batch=batch, ctx=ctx)


def test_a_slip_is_told_in_a_line_with_the_tensor(check_each: Callable[..., None]) -> None:
    x = r"%x f32\[batch,ctx,16\]"

    def check(case: tuple[Any, str]) -> None:
        with pytest.raises((TypeError, GGError), match=rf"test_indexing\.py:\d+: {case[1]}") as error:
            trace_of(case[0])
        assert "\n" not in str(error.value)

    cases: list[tuple[Any, str]] = [
        (lambda x: x[..., 16], f"index 16 of an axis of size 16 of {x}"),
        (lambda x: x[..., -17], f"index -17 of an axis of size 16 of {x}"),
        (lambda x: x[0, 0, 0, 0], rf"4 indices, 0 of them `\.\.\.`, for {x}"),
        (lambda x: x[..., ...], rf"2 indices, 2 of them `\.\.\.`, for {x}"),
        (lambda x: x["a"], f"{x} takes whole numbers, slices, None and ... as indices, not 'a'"),
        (lambda x: x[..., ::0], f"{x} takes whole numbers"),
        (lambda x: x[..., 5:5], f"slice 5:5 of an axis of size 16 of {x}"),
        (lambda x: x[..., 2:5:-1], f"slice 2:5:-1 of an axis of size 16 of {x}"),
        (lambda x: x[x], rf"{x} is indexed by the tensor {x}; gg\.gather"),
        (lambda x: gg.gather(x, x), f"gather: ids must be an int32 tensor, got {x}"),
        (lambda x: gg.flip(x, 3), f"axis 3 of {x}, which has axes -3 to 2"),
        (lambda x: gg.concat([x, x.swapaxes(0, 1)], axis=2), f"concat along axis 2: {x} and "),
        (lambda x: gg.concat([x, None]), f"concat takes tensors, got None; is a return .* beside {x}"),
        (lambda x: gg.concat(x), r"concat takes a list of tensors, as concat\(\[a, b\], axis=0\)"),
        (lambda x: gg.split(x, 3, axis=2)[0], f"split: axis 2 of {x} in 3 equal parts"),
        (lambda x: gg.pad(x, ((1, 1),)), r"pad: \(\(1, 1\),\) are no widths"),
        (lambda x: gg.pad(x, -1), r"pad: .* are no widths"),
        (lambda x: x.squeeze(2), f"squeeze: axis 2 of {x} has not the size 1"),
    ]  # fmt: skip
    check_each(cases, check)


def test_indexing_and_layout_follow_batch_and_ctx(tmp_path: Any, check_each: Callable[..., None]) -> None:
    def check(body: Any) -> None:
        graph = trace_of(body)
        graph.save(tmp_path / "graph.bin")
        assert not graph.fixed

    bodies: list[Any] = [
        lambda x: x[:, -1], lambda x: x[:, ::2], lambda x: x[..., 3], lambda x: x[:, None], lambda x: x.flatten(0, 1),
        lambda x: gg.concat([x, x], axis=1), lambda x: gg.stack([x, x], axis=1), lambda x: x.swapaxes(0, 1)[1:],
        lambda x: gg.pad(x, ((1, 0), (0, 2), (1, 1))), lambda x: x[:, 1:] - x[:, :-1], lambda x: gg.flip(x, -1),
        lambda x: gg.flip(x, 1), lambda x: gg.flip(x, 0), lambda x: x[::-1, ::-2],
        lambda x: x[0] * 2, lambda x: x[-1, ..., ::-3],
    ]  # fmt: skip
    check_each(bodies, check)


def test_equal_arrays_are_one_constant() -> None:
    graph = trace_of(lambda x: gg.flip(gg.flip(x, 2), 2))
    assert [node.name for node in graph.nodes if node.values] == ["array.0.16"]


def test_slices_of_step_one_are_views() -> None:
    graph = trace_of(lambda x: x[1:, -3:-1, 2:4])
    assert [node.op.name for node in graph.nodes if node.op][3:4] == ["view"]
