"""Which digit is in an image: a small network, cross-entropy, two inputs and an output beside the loss.

python docs/examples/classifier.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

import ggmlgraph as gg

SIDE, N_DIGITS = 12, 10
Image = Annotated[gg.Tensor, gg.Float("batch", SIDE, SIDE)]
Label = Annotated[gg.Tensor, gg.Ids("batch")]
BATCH, STEPS, LR = 32, 600, 5e-3


@dataclass(frozen=True)
class Config:
    """Sizes."""

    n_hidden: int = 64


def loss(p: gg.Params, image: Image, label: Label, c: Config) -> tuple[gg.Tensor, dict[str, gg.Tensor]]:
    """Mean cross-entropy, nats; also the scores of each class (batch, 10)."""
    x = image.reshape(image.shape[0], SIDE * SIDE)
    x = gg.relu(p.linear("hidden", x, c.n_hidden, bias=True, init=gg.kaiming_uniform()))
    scores = p.linear("output", x, N_DIGITS, bias=True, init=gg.xavier_uniform())
    return gg.cross_entropy(scores, label, label_smoothing=0.05), {"scores": scores}


# Digits of 5 x 3 dots, a row of dots a number of base 8.
GLYPHS = ("75557", "26227", "71747", "71317", "55711", "74717", "74757", "71122", "75757", "75717")
DOTS = np.array([[[int(row) >> k & 1 for k in (2, 1, 0)] for row in glyph] for glyph in GLYPHS], np.float32)


def batch(step: int) -> dict[str, Any]:
    """Digits twice as large as their dots, somewhere in the image, in noise."""
    rng = np.random.default_rng(step)
    label = rng.integers(0, N_DIGITS, BATCH, dtype=np.int32)
    image = rng.normal(0, 0.3, (BATCH, SIDE, SIDE)).astype(np.float32)
    for each, digit in zip(image, label, strict=True):
        top, left = rng.integers(0, 3), rng.integers(0, 7)
        each[top : top + 10, left : left + 6] += DOTS[digit].repeat(2, 0).repeat(2, 1)
    return {"image": image, "label": label}


def main(steps: int = STEPS) -> list[float]:
    """Train, and say how many of new images are told right; the losses."""
    gg.trace(loss, Config(), batch=BATCH).save("classifier.bin")
    with gg.Runtime("classifier.bin") as rt:
        losses = [rt.step(batch(step), lr=LR).loss for step in range(steps)]
        test = batch(steps)
        (scores,) = rt.forward("scores", image=test["image"])
        right = (scores.argmax(-1) == test["label"]).mean()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; {right:.0%} of new images right")
    return losses


if __name__ == "__main__":
    main()
