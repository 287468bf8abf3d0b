"""Optimisers beside optax's, where both compute the same thing: 50 steps on the same gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stepping import Arrays, apart, trained

import ggmlgraph as gg
from ggmlgraph.execution.optimizers import Optimizer

optax = pytest.importorskip("optax", reason="for want of optax")

N_STEPS, LR = 50, 3e-3
CASES: dict[str, tuple[Optimizer, Any, float]] = {
    "adafactor": (
        gg.Adafactor(form="optax", least_factored=16), optax.adafactor(LR, min_dim_size_to_factor=16), 0.0
    ),
    "adafactor, nothing factored": (gg.Adafactor(form="optax"), optax.adafactor(LR), 0.0),
    "lion": (
        gg.Lion(), optax.lion(LR, weight_decay=0.5, mask=lambda tree: {k: w.ndim > 1 for k, w in tree.items()}), 0.5
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_are_optax_s(name: str) -> None:
    optimizer, theirs, decay = CASES[name]
    weights: Any = {}
    state: list[Any] = []

    def begin(first: Arrays) -> None:
        weights.update(first)
        state.append(theirs.init(weights))

    def see(step: int, gradients: Arrays, norm: float) -> None:
        updates, state[0] = theirs.update(gradients, state[0], weights)
        weights.update(optax.apply_updates(weights, updates))

    ours, losses = trained(optimizer, N_STEPS, see, begin, LR, weight_decay=decay, clip=0)
    worst = apart(ours, {name: np.asarray(value) for name, value in weights.items()})
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, weights {worst:.1e} apart")
    assert losses[-1] < losses[0]
    assert worst < 1e-5
