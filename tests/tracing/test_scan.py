"""gg.scan: a loop, unrolled; a recurrent network trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError, ShapeError, UsageError

N_VOCAB, N_EMBD, BATCH, CTX = 7, 16, 4, 12


@dataclass(frozen=True)
class Config:
    """Of the GRU."""

    n_embd: int = N_EMBD


def gru_loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """A GRU (Cho et al. 2014) as torch.nn.GRU has it, over embeddings."""
    n = c.n_embd
    x = p.embedding("token_embd", tokens, N_VOCAB, n, init=gg.normal(0.5))
    w, b = p("gru.weight", 3 * n, n, init=gg.normal(0.3)), p("gru.bias", 3 * n, init=gg.zeros())
    gates = (p.linear("gru.input", x, 3 * n, bias=True, init=gg.normal(0.3))).permute(1, 0, 2)  # (ctx, batch, 3 n)

    def step(h: Any, gate: Any) -> Any:
        of_h = gg.mul_mat(w, h) + b
        reset = gg.sigmoid(gate[:, :n] + of_h[:, :n])
        update = gg.sigmoid(gate[:, n : 2 * n] + of_h[:, n : 2 * n])
        new = gg.tanh(gate[:, 2 * n :] + reset * of_h[:, 2 * n :])
        h = new + update * (h - new)
        return h, h

    start = p.graph.constant("start", np.zeros((tokens.shape[0], n), np.float32))
    last, hidden = gg.scan(step, start, gates.cont())
    last.named("last")
    hidden.named("hidden")
    return p.cross_entropy(p.linear("output", hidden.permute(1, 0, 2).cont(), N_VOCAB), targets)


def batch() -> tuple[Any, Any]:
    text = np.tile(np.array([0, 1, 2, 3, 0, 4, 5, 6], np.int32), 4)
    windows = np.stack([text[i : i + CTX + 1] for i in range(BATCH)])
    return windows[:, :-1], windows[:, 1:]


def gru64(weights: dict[str, Any], tokens: Any) -> Any:
    """The hidden states in float64, (ctx, batch, n)."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    h, found = np.zeros((len(tokens), N_EMBD)), []
    for i in range(tokens.shape[1]):
        gate = w["token_embd.weight"][tokens[:, i]] @ w["gru.input.weight"].T + w["gru.input.bias"]
        of_h = h @ w["gru.weight"].T + w["gru.bias"]
        reset, update = (sigmoid(gate[:, s] + of_h[:, s]) for s in (slice(0, N_EMBD), slice(N_EMBD, 2 * N_EMBD)))
        new = np.tanh(gate[:, 2 * N_EMBD :] + reset * of_h[:, 2 * N_EMBD :])
        h = new + update * (h - new)
        found.append(h)
    return np.stack(found)


def test_a_gru_is_what_float64_says_and_learns_what_needs_a_memory(tmp_path: Path) -> None:
    gg.trace(gru_loss, Config(), batch=BATCH, ctx=CTX).save(tmp_path / "graph.bin", seed=1)
    tokens, targets = batch()
    with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
        hidden, last = rt.forward("hidden", "last", tokens=tokens)
        wanted = gru64(rt.weights(), tokens)
        assert np.abs(hidden.reshape(wanted.shape) - wanted).max() < 1e-6
        assert np.array_equal(last.reshape(wanted[-1].shape), hidden.reshape(wanted.shape)[-1])
        losses = [rt.step((tokens, targets), lr=2e-2).loss for _ in range(120)]
        assert losses[-1] < 0.1  # 1 or 4 after 0 follows from what came before


def test_a_grus_gradients_are_central_differences(tmp_path: Path) -> None:
    gg.trace(gru_loss, Config(), batch=BATCH, ctx=CTX).save(tmp_path / "graph.bin", seed=1)
    with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
        rng, step = np.random.default_rng(0), 1e-2
        for name in ("gru.weight", "gru.bias", "gru.input.weight", "token_embd.weight"):
            rt.backward(batch())
            weight = rt.weights()[name].copy()
            direction = rng.normal(size=weight.shape).astype(np.float32)
            direction /= np.linalg.norm(direction)
            slope, losses = float((rt.gradient(name) * direction).sum()), []
            for sign in (1, -1):
                rt.set(name, weight + sign * step * direction)
                losses.append(rt.loss(*batch()))
            rt.set(name, weight)
            assert abs((losses[0] - losses[1]) / (2 * step) - slope) < 2e-4, name


def scanned(f: Any, n: int = 3) -> Any:
    def loss(p: gg.Params, tokens: gg.Tensor) -> gg.Tensor:
        carry, _ = gg.scan(f, p("w", 4), p("xs", n, 4))
        total: gg.Tensor = carry.sum()
        return total

    return gg.trace(loss)


def test_carries_and_ys_may_be_tuples_or_none(tmp_path: Path) -> None:
    def loss(p: gg.Params, x: Annotated[gg.Tensor, gg.Float(5, 4)]) -> gg.Tensor:
        def step(carry: Any, x: Any) -> Any:
            total, _ = carry
            one, other = x
            return (total + one * other, one), (total + one, one)

        (total, last), ys = gg.scan(step, (p("w", 4), p("v", 4)), (x, x * 2.0))
        assert isinstance(ys, tuple) and [y.shape for y in ys] == [(5, 4), (5, 4)]
        ys[1].named("ones")
        assert gg.scan(lambda carry, x: (carry, None), total, x)[1] is None
        return (total + last).sum()

    gg.trace(loss).save(tmp_path / "graph.bin", seed=1)
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
        w = rt.input("w").sum()
        assert rt.loss_of({"x": x}) == pytest.approx(w + 2 * (x * x).sum() + x[-1].sum(), rel=1e-6)


def test_what_is_no_step_is_one_line_with_the_models_place() -> None:
    wrong: list[tuple[type[GGError], str, Any]] = [
        (UsageError, "f gives .*, not a carry and a y", lambda: scanned(lambda c, x: c)),
        (UsageError, "f gives the carry None, it got", lambda: scanned(lambda c, x: (None, c))),
        (ShapeError, "f gives the carry .*, it got", lambda: scanned(lambda c, x: (c[:2], c))),
        (UsageError, "1025 steps; .* at most 1024", lambda: scanned(lambda c, x: (c, c), n=1025)),
        (UsageError, "ys of different forms", lambda: scanned(Alternating())),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=r"^tests/tracing/test_scan.py:\d+: scan: .*" + message) as error:
            call()
        assert "\n" not in str(error.value)


class Alternating:
    """A step whose second y is none."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, carry: Any, x: Any) -> Any:
        self.n += 1
        return carry, (carry if self.n == 1 else None)
