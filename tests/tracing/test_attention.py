"""gg.attention: what it computes against float64, at any context, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ggmlgraph as gg
from ggmlgraph.errors import GGError, ShapeError, UsageError
from ggmlgraph.tracing.attention import alibi_slopes

N_HEAD, N_HEAD_KV, HEAD_DIM, N_EMBD, N_VOCAB = 6, 2, 8, 16, 31
Array = NDArray[Any]


@dataclass(frozen=True)
class Empty:
    """A config without sizes."""


def heads(p: gg.Params, x: gg.Tensor) -> tuple[gg.Tensor, ...]:
    batch, ctx, _ = x.shape
    sizes = {"q": N_HEAD, "k": N_HEAD_KV, "v": N_HEAD_KV}
    named = {name: p.linear(name, x, n * HEAD_DIM, init=gg.normal(0.5)) for name, n in sizes.items()}
    return tuple(y.named(f"heads.{name}").reshape(batch, ctx, -1, HEAD_DIM) for name, y in named.items())


def loss_of(options: Any) -> Any:
    """A loss in which attention with these options is all there is; options(p) gives them."""

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Empty) -> gg.Tensor:
        x = p.embedding("token_embd", tokens, N_VOCAB, N_EMBD, init=gg.normal(1.0))
        y = gg.attention(*heads(p, x), **options(p)).named("y")
        return p.cross_entropy(p.linear("output", y.reshape(*tokens.shape, -1), N_VOCAB), targets)

    return loss


def reference(q: Array, k: Array, v: Array, bias: Array, visible: Array, cap: float, scale: float) -> Array:
    """In float64; q, k, v (batch, ctx, heads, head_dim)."""
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = scale * np.einsum("bihd,bjhd->bhij", q, k)
    scores = cap * np.tanh(scores / cap) if cap else scores
    scores = np.where(visible, scores + bias, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhij,bjhd->bihd", weights / weights.sum(-1, keepdims=True), v)


def tokens_of(batch: int, ctx: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, N_VOCAB, (batch, ctx), np.int32)


def check(path: Path, options: Any, batch: int, ctx: int, **expected: Any) -> None:
    distance = np.arange(ctx)[:, None] - np.arange(ctx)
    visible = (distance >= 0) if expected.get("causal", True) else np.full((ctx, ctx), True)
    visible &= distance < expected.get("window", math.inf)
    slopes = np.asarray(expected.get("slopes", np.zeros(N_HEAD)), np.float64)
    bias = -slopes[:, None, None] * distance + expected.get("bias", 0.0)
    with gg.Runtime(path, batch=batch, ctx=ctx, threads=1) as rt:
        y, *operands = rt.forward("y", "heads.q", "heads.k", "heads.v", tokens=tokens_of(batch, ctx))
    q, k, v = (x.reshape(batch, ctx, -1, HEAD_DIM).astype(np.float64) for x in operands)
    scale = expected.get("scale", HEAD_DIM**-0.5)
    wanted = reference(q, k, v, bias, visible, expected.get("cap", 0.0), scale)
    assert np.abs(y.reshape(wanted.shape) - wanted).max() < 3e-6 * np.abs(wanted).max(), options


SLOPES = np.linspace(0.1, 0.9, N_HEAD).astype(np.float32)
CASES: list[tuple[Any, dict[str, Any]]] = [
    (lambda p: {}, {}),
    (lambda p: {"causal": False}, {"causal": False}),
    (lambda p: {"window": 1}, {"window": 1}),
    (lambda p: {"window": 3}, {"window": 3}),
    (lambda p: {"window": 100}, {"window": 100}),
    (lambda p: {"alibi": True}, {"slopes": alibi_slopes(N_HEAD)}),
    (lambda p: {"alibi": p.graph.constant("slopes", SLOPES)}, {"slopes": SLOPES}),
    (lambda p: {"alibi": True, "window": 4}, {"slopes": alibi_slopes(N_HEAD), "window": 4}),
    (lambda p: {"alibi": True, "causal": False}, {"slopes": alibi_slopes(N_HEAD), "causal": False}),
    (lambda p: {"soft_cap": 2.0}, {"cap": 2.0}),
    (lambda p: {"soft_cap": 0.7, "window": 5, "scale": 1.5}, {"cap": 0.7, "window": 5, "scale": 1.5}),
    (lambda p: {"scale": 0.25}, {"scale": 0.25}),
]


def test_attention_is_what_float64_says_at_any_batch_and_context(tmp_path: Path) -> None:
    for options, expected in CASES:
        gg.trace(loss_of(options), Empty(), batch=2, ctx=8).save(tmp_path / "graph.bin", seed=3)
        for batch, ctx in ((2, 8), (1, 5), (3, 70)):
            check(tmp_path / "graph.bin", options, batch, ctx, **expected)


def test_a_mask_of_any_of_the_axes_is_added_to_the_scores(tmp_path: Path) -> None:
    for shape in ((8,), (8, 8), (1, 8), (N_HEAD, 1, 8), (2, 1, 8, 8), (1, N_HEAD, 8, 1)):
        mask = np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
        mask[..., 1:][mask[..., 1:] > 1] = -np.inf  # key 0 stays, which every query sees
        options = lambda p, mask=mask: {"mask": p.graph.constant("mask", mask)}  # noqa: E731
        gg.trace(loss_of(options), Empty(), batch=2, ctx=8).save(tmp_path / "graph.bin", seed=3)
        check(tmp_path / "graph.bin", options, 2, 8, bias=mask.astype(np.float64))


def test_gradients_are_central_differences(tmp_path: Path) -> None:
    batch = tokens_of(2, 12), tokens_of(2, 12, 1)
    for options, _ in CASES:
        gg.trace(loss_of(options), Empty(), batch=2, ctx=12).save(tmp_path / "graph.bin", seed=3)
        with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
            rt.backward(batch)
            rng, step = np.random.default_rng(5), 3e-3
            for name in ("q.weight", "k.weight", "v.weight"):
                direction = rng.normal(size=rt.weights()[name].shape).astype(np.float32)
                direction /= np.linalg.norm(direction)
                rt.backward(batch)
                slope, weight = float((rt.gradient(name) * direction).sum()), rt.weights()[name].copy()
                losses = []
                for sign in (1, -1):
                    rt.set(name, weight + sign * step * direction)
                    losses.append(rt.loss(*batch))
                rt.set(name, weight)
                assert abs((losses[0] - losses[1]) / (2 * step) - slope) < 5e-4, (name, options)


def test_an_alibi_model_trains_and_generates(tmp_path: Path) -> None:
    gg.trace(loss_of(lambda p: {"alibi": True}), Empty(), batch=4, ctx=16).save(tmp_path / "graph.bin", seed=1)
    text = np.tile(np.arange(5, dtype=np.int32), 8)
    windows = np.stack([text[i : i + 17] for i in range(4)])
    with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
        losses = [rt.step((windows[:, :-1], windows[:, 1:]), lr=2e-2).loss for _ in range(60)]
        assert losses[-1] < 0.1 * losses[0]
        logits = rt.forward("logits", tokens=windows[:, :-1])[0]
    assert (logits[:, -1].argmax(-1) == windows[:, -1]).all()


def test_slopes_are_the_papers() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert np.allclose(alibi_slopes(12)[8:], [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    assert alibi_slopes(1).tolist() == [2.0**-8]


def attention_of(**options: Any) -> Any:
    """gg.attention traced on tensors of these shapes and with these options."""
    shapes = {name: options.pop(name, (2, 8, 4, 8)) for name in "qkv"}

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Empty) -> gg.Tensor:
        return gg.attention(*(p(name, *shape) for name, shape in shapes.items()), **options).sum()

    return gg.trace(loss, Empty(), batch=2, ctx=8)


def test_what_fits_not_is_one_line_with_the_models_place() -> None:
    wrong: list[tuple[type[GGError], str, dict[str, Any]]] = [
        (ShapeError, "q is .*, not .batch, ctx, n_head, head_dim", {"q": (8, 4, 8)}),
        (ShapeError, "differ in batch or head_dim", {"k": (2, 8, 4, 6), "v": (2, 8, 4, 6)}),
        (ShapeError, "k = .* and v = .* differ", {"v": (2, 7, 4, 8)}),
        (ShapeError, "3 heads of k = .* do not divide the 4 of q", {"k": (2, 8, 3, 8), "v": (2, 8, 3, 8)}),
        (UsageError, "window is 0, not a whole number", {"window": 0}),
        (TypeError, "window is 2.5, not a whole number", {"window": 2.5}),
        (UsageError, "window of the last 4 positions is of causal attention", {"window": 4, "causal": False}),
        (UsageError, "soft_cap is -1.0, not a number above 0", {"soft_cap": -1.0}),
        (UsageError, "scale is inf", {"scale": math.inf}),
    ]
    for kind, message, options in wrong:
        with pytest.raises(kind, match=f"test_attention.py:\\d+: attention: .*{message}") as error:
            attention_of(**options)
        assert "\n" not in str(error.value)
