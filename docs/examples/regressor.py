"""A number out of four: a network with layer norms, the Huber loss, biases that do not decay.

python docs/examples/regressor.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

import ggmlgraph as gg

Features = Annotated[gg.Tensor, gg.Float("batch", "n_in")]
Value = Annotated[gg.Tensor, gg.Float("batch", 1)]
BATCH, STEPS, LR = 64, 300, 5e-3


@dataclass(frozen=True)
class Config:
    """Sizes; the first is one of an input's."""

    n_in: int = 4
    n_hidden: int = 48
    n_layer: int = 2


def loss(p: gg.Params, x: Features, y: Value, c: Config) -> tuple[gg.Tensor, dict[str, gg.Tensor]]:
    """Mean Huber loss; also the prediction (batch, 1)."""
    p.group("*.bias", decay=0.0)
    for i in range(c.n_layer):
        layer = p / f"layer.{i}"
        x = gg.silu(layer.linear("up", x, c.n_hidden, bias=True, init=gg.kaiming_normal()))
        x = layer.layer_norm("norm", x, 1e-5)
    prediction = p.linear("output", x, 1, bias=True)
    return gg.huber(prediction, y, delta=0.5), {"prediction": prediction}


def batch(step: int) -> dict[str, Any]:
    """x in the unit cube around 0; y: the first friedman function, without its offset."""
    x = np.random.default_rng(step).uniform(-1, 1, (BATCH, 4)).astype(np.float32)
    y = np.sin(np.pi * x[:, 0] * x[:, 1]) + 2 * x[:, 2] ** 2 + x[:, 3]
    return {"x": x, "y": y[:, None].astype(np.float32)}


def main(steps: int = STEPS) -> list[float]:
    """Train, and say how far predictions of new values are off; the losses."""
    gg.trace(loss, Config(), batch=BATCH).save("regressor.bin")
    with gg.Runtime("regressor.bin") as rt:
        losses = [rt.step(batch(step), lr=LR).loss for step in range(steps)]
        test = batch(steps)
        (prediction,) = rt.forward("prediction", x=test["x"])
        off = np.abs(prediction - test["y"]).mean()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}; new values are {off:.3f} off on average")
    return losses


if __name__ == "__main__":
    main()
