"""Each optimiser beside torch's, where both compute the same thing: 50 steps on the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from stepping import N_VOCAB, Arrays, apart, trained

import ggmlgraph as gg
from ggmlgraph.execution.optimizers import Optimizer

torch = pytest.importorskip("torch", reason="for want of torch")

N_STEPS, CLIP = 50, 0.5
MATRIX = 2  # axes, from which on weights decay

Make = Callable[[list[dict[str, Any]], float], Any]


def beside_torch(
    optimizer: Optimizer, make: Make, lr: float, decay: float, clip: float = CLIP
) -> tuple[float, list[float]]:
    """How far apart the weights end, and our losses. make: torch's optimiser of groups of parameters."""
    parameters: dict[str, Any] = {}
    made: list[Any] = []

    def begin(weights: Arrays) -> None:
        parameters.update({name: torch.nn.Parameter(torch.from_numpy(w)) for name, w in weights.items()})
        groups = [
            {"params": [p for p in parameters.values() if (p.ndim >= MATRIX) == matrix], "weight_decay": each}
            for matrix, each in ((True, decay), (False, 0.0))
        ]
        made.append(make(groups, lr))

    def see(step: int, gradients: Arrays, norm: float) -> None:
        for name, gradient in gradients.items():
            parameters[name].grad = torch.from_numpy(gradient)
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        made[0].step()

    ours, losses = trained(optimizer, N_STEPS, see, begin, lr, weight_decay=decay, clip=clip)
    return apart(ours, {name: p.detach().numpy() for name, p in parameters.items()}), losses


CASES: dict[str, tuple[Optimizer, Make, float, float]] = {
    "adamw": (gg.AdamW(), lambda p, lr: torch.optim.AdamW(p, lr=lr, betas=(0.9, 0.95)), 1e-2, 0.1),
    "adamw, torch's betas": (gg.AdamW(beta2=0.999), lambda p, lr: torch.optim.AdamW(p, lr=lr), 1e-2, 0.1),
    "adafactor": (gg.Adafactor(), lambda p, lr: torch.optim.Adafactor(p, lr=lr), 0.3, 0.1),
    "sgd": (gg.SGD(momentum=0.0), lambda p, lr: torch.optim.SGD(p, lr=lr), 0.1, 0.01),
    "sgd, momentum": (gg.SGD(), lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), 0.05, 0.01),
    "sgd, nesterov": (
        gg.SGD(nesterov=True), lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True), 0.05, 0.01
    ),
}  # fmt: skip


MUON = {  # torch's names of the scale, and ours
    "original": ("original", "keller_jordan"), "match_rms_adamw": ("match_rms_adamw", "moonlight"),
}  # fmt: skip


@pytest.mark.parametrize("scale", MUON)
def test_muon_is_torch_s_but_for_its_bfloat16(scale: str) -> None:
    """torch orthogonalises in bfloat16 whatever it is given; in float64 its steps are ours,
    but for float32: small singular values grow 3.4445-fold a step, and their rounding errors with them."""
    found = {}
    for precision in (torch.bfloat16, torch.float64):
        original = torch.Tensor.bfloat16
        torch.Tensor.bfloat16 = lambda self, to=precision: self.to(to)
        try:
            for name in MUON[scale]:
                optimizer = gg.Muon(scale=name)  # type: ignore[arg-type]
                found[precision, name], losses = beside_torch(optimizer, partial(both, scale), 1e-2, 0.1)
                assert losses[-1] < losses[0]
        finally:
            torch.Tensor.bfloat16 = original
    for (precision, name), worst in found.items():
        print(f"muon, {name}, torch's Newton-Schulz in {precision}: weights {worst:.1e} apart")
        assert worst < (5e-5 if precision == torch.float64 else 0.1)


class both:
    """torch's Muon for the hidden matrices, its AdamW for the others."""

    def __init__(self, scale: str, groups: list[dict[str, Any]], lr: float) -> None:
        (matrices, vectors) = groups
        ends = [p for p in matrices["params"] if N_VOCAB in p.shape]
        hidden = [p for p in matrices["params"] if N_VOCAB not in p.shape]
        decay = matrices["weight_decay"]
        self._made = [
            torch.optim.Muon(hidden, lr=lr, weight_decay=decay, adjust_lr_fn=scale),
            torch.optim.AdamW([{"params": ends, "weight_decay": decay}, vectors], lr=lr, betas=(0.9, 0.95)),
        ]

    def step(self) -> None:
        for each in self._made:
            each.step()


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_are_torch_s(name: str) -> None:
    worst, losses = beside_torch(*CASES[name])
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, weights {worst:.1e} apart")
    assert losses[-1] < losses[0]
    assert worst < 1e-5
