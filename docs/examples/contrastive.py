"""Which view belongs to which: two encoders whose results agree for a pair and for no other of the batch (InfoNCE).

python docs/examples/contrastive.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

import ggmlgraph as gg

N_LEFT, N_RIGHT = 8, 12
Left = Annotated[gg.Tensor, gg.Float("batch", N_LEFT)]
Right = Annotated[gg.Tensor, gg.Float("batch", N_RIGHT)]
BATCH, STEPS, LR = 32, 600, 5e-3


@dataclass(frozen=True)
class Config:
    """Sizes, and what scores are divided by."""

    n_hidden: int = 48
    n_embd: int = 16
    temperature: float = 0.1


def encode(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """(batch, n) -> (batch, n_embd), each row of length 1."""
    h = gg.relu(p.linear("hidden", x, c.n_hidden, bias=True, init=gg.kaiming_normal()))
    y = p.linear("output", h, c.n_embd, init=gg.xavier_normal())
    return gg.rms_norm(y, 1e-6) / math.sqrt(c.n_embd)


def loss(p: gg.Params, left: Left, right: Right, c: Config) -> tuple[gg.Tensor, dict[str, gg.Tensor]]:
    """Mean cross-entropy of finding the right to each left and the left to each right (van den Oord et al. 2018)."""
    a, b = encode(p / "left", left, c), encode(p / "right", right, c)
    own = p.positions(left.shape[0])  # 0, 1, 2, ...: row i belongs to row i
    of_left, of_right = a @ b.T / c.temperature, b @ a.T / c.temperature
    return (gg.cross_entropy(of_left, own) + gg.cross_entropy(of_right, own)) / 2, {"scores": of_left}


_rng = np.random.default_rng(1000)
TO_LEFT, TO_RIGHT = (_rng.normal(size=(4, n)) for n in (N_LEFT, N_RIGHT))


def batch(step: int) -> dict[str, Any]:
    """Two noisy views of hidden numbers."""
    rng = np.random.default_rng(step)
    hidden = rng.normal(size=(BATCH, 4))
    views = {"left": np.tanh(hidden @ TO_LEFT), "right": np.sin(hidden @ TO_RIGHT)}
    return {name: (x + rng.normal(0, 0.05, x.shape)).astype(np.float32) for name, x in views.items()}


def main(steps: int = STEPS) -> list[float]:
    """Train, and say how many of new pairs are found; the losses."""
    gg.trace(loss, Config(), batch=BATCH).save("contrastive.bin")
    with gg.Runtime("contrastive.bin") as rt:
        losses = [rt.step(batch(step), lr=LR).loss for step in range(steps)]
        (scores,) = rt.forward("scores", **batch(steps))
        right = (scores.argmax(-1) == np.arange(BATCH)).mean()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, of a guess {np.log(BATCH):.3f}; {right:.0%} of new pairs found")
    return losses


if __name__ == "__main__":
    main()
