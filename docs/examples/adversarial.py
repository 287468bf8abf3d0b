"""A maker of points and a judge of them, each trained while the other is frozen: two graphs that exchange weights.

python docs/examples/adversarial.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

import ggmlgraph as gg

N_NOISE = 4
Points = Annotated[gg.Tensor, gg.Float("batch", 2)]
Noise = Annotated[gg.Tensor, gg.Float("batch", N_NOISE)]
BATCH, STEPS, LR = 64, 600, 2e-3
ADAM = gg.AdamW(beta1=0.5, beta2=0.9)


@dataclass(frozen=True)
class Config:
    """Sizes."""

    n_hidden: int = 32


def make(p: gg.Params, noise: gg.Tensor, c: Config) -> gg.Tensor:
    """(batch, N_NOISE) -> points (batch, 2)."""
    h = gg.silu(p.linear("hidden", noise, c.n_hidden, bias=True, init=gg.kaiming_normal()))
    return p.linear("points", h, 2, bias=True, init=gg.xavier_normal())


def judge(p: gg.Params, points: gg.Tensor, c: Config) -> gg.Tensor:
    """(batch, 2) -> logits that points are real (batch, 1)."""
    h = gg.silu(p.linear("hidden", points, c.n_hidden, bias=True, init=gg.kaiming_normal()))
    return p.linear("logit", h, 1, bias=True, init=gg.xavier_normal())


def judge_loss(p: gg.Params, points: Points, noise: Noise, c: Config) -> gg.Tensor:
    """How wrong the judge is of real points and of made ones; the maker is frozen (Goodfellow et al. 2014)."""
    made = make(p.frozen / "maker", noise, c)
    return gg.bce(judge(p / "judge", points, c), 1.0) + gg.bce(judge(p.share / "judge", made, c), 0.0)


def maker_loss(p: gg.Params, noise: Noise, c: Config) -> tuple[gg.Tensor, dict[str, gg.Tensor]]:
    """How well the judge, frozen, knows made points; also the points."""
    made = make(p / "maker", noise, c)
    return gg.bce(judge(p.frozen / "judge", made, c), 1.0), {"made": made}


def batch(step: int) -> dict[str, Any]:
    """Real points on a circle around (1, 0), and noise."""
    rng = np.random.default_rng(step)
    angle = rng.uniform(0, 2 * np.pi, BATCH)
    points = np.stack([1 + np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.05, (BATCH, 2))
    return {"points": points.astype(np.float32), "noise": rng.normal(size=(BATCH, N_NOISE)).astype(np.float32)}


def exchange(source: gg.Runtime, target: gg.Runtime) -> None:
    """Give the other graph what one has trained."""
    for name in source.params:
        target.set(name, source.get(name))


def main(steps: int = STEPS) -> list[float]:
    """Train in turns, and say where made points lie; the judge's losses, then the maker's."""
    for name, function in (("judge", judge_loss), ("maker", maker_loss)):
        gg.trace(function, Config(), batch=BATCH).save(f"{name}.bin")
    judged, fooled = [], []
    with gg.Runtime("judge.bin", optimizer=ADAM) as judging, gg.Runtime("maker.bin", optimizer=ADAM) as making:
        for step in range(steps):
            given = batch(step)
            judged.append(judging.step(given, lr=LR).loss)
            exchange(judging, making)
            fooled.append(making.step({"noise": given["noise"]}, lr=LR).loss)
            exchange(making, judging)
        (made,) = making.forward("made", noise=batch(steps)["noise"])
    x, y = made.mean(0)
    print(f"judge {judged[-1]:.3f}, maker {fooled[-1]:.3f}; made points lie around ({x:.2f}, {y:.2f})")
    return judged + fooled


if __name__ == "__main__":
    main()
