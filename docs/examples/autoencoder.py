"""Through a narrow place and back: waves as eight numbers, out of which they are made again.

python docs/examples/autoencoder.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

import ggmlgraph as gg

N_SAMPLES = 64
Wave = Annotated[gg.Tensor, gg.Float("batch", N_SAMPLES)]
BATCH, STEPS, LR = 32, 300, 3e-3


@dataclass(frozen=True)
class Config:
    """Sizes."""

    n_hidden: int = 48
    n_code: int = 8


def encode(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """(batch, N_SAMPLES) -> (batch, n_code)."""
    h = gg.silu(p.linear("hidden", x, c.n_hidden, bias=True, init=gg.orthogonal()))
    return p.linear("code", h, c.n_code, init=gg.orthogonal())


def decode(p: gg.Params, code: gg.Tensor, c: Config) -> gg.Tensor:
    """(batch, n_code) -> (batch, N_SAMPLES)."""
    h = gg.silu(p.linear("hidden", code, c.n_hidden, bias=True, init=gg.orthogonal()))
    return p.linear("wave", h, N_SAMPLES, init=gg.orthogonal())


def loss(p: gg.Params, wave: Wave, c: Config) -> tuple[gg.Tensor, dict[str, gg.Tensor]]:
    """Mean square of the difference; also the code and the wave made of it."""
    code = encode(p / "encoder", wave, c)
    again = decode(p / "decoder", code, c)
    return gg.mse(again, wave), {"code": code, "again": again}


def batch(step: int) -> dict[str, Any]:
    """Sums of two sines: six numbers say all of them."""
    rng = np.random.default_rng(step)
    frequency, phase, size = (rng.uniform(low, high, (BATCH, 2, 1)) for low, high in ((1, 4), (0, 6.3), (0.3, 1)))
    t = np.linspace(0, 1, N_SAMPLES)
    return {"wave": (size * np.sin(2 * np.pi * frequency * t + phase)).sum(1).astype(np.float32)}


def main(steps: int = STEPS) -> list[float]:
    """Train; the losses."""
    gg.trace(loss, Config(), batch=BATCH).save("autoencoder.bin")
    with gg.Runtime("autoencoder.bin") as rt:
        losses = [rt.step(batch(step), lr=LR).loss for step in range(steps)]
        (code,) = rt.forward("code", **batch(steps))
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}; a wave of {N_SAMPLES} numbers is {code.shape[1]}")
    return losses


if __name__ == "__main__":
    main()
