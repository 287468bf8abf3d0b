"""Optimisers as parts of a runtime: against float64 formulas, on any number of threads, through checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stepping import N_VOCAB, Arrays, apart, batches, graph, trained

import ggmlgraph as gg
from ggmlgraph.errors import CheckpointError, UsageError
from ggmlgraph.execution import checkpoint, optimizers
from ggmlgraph.execution.optimizers import CLASSES, Optimizer, parse, spelled

N_STEPS = 50
EVERY = [
    *CLASSES,
    "adamw:cautious=true",
    "sgd:momentum=0",
    "sgd:nesterov=true",
    "muon:cautious=true",
    "adafactor:form=optax",
]

Formula = Callable[[Arrays, Arrays, Arrays, int, float, float], None]  # weights, state, gradients, t, lr, decay


def beside_formula(formula: Formula, optimizer: Optimizer, lr: float, decay: float) -> tuple[float, list[float]]:
    """How far apart 50 steps of ours and of a formula in float64 end."""
    weights: Arrays = {}
    state: Arrays = {}

    def begin(first: Arrays) -> None:
        weights.update({name: w.astype(np.float64) for name, w in first.items()})

    def see(step: int, gradients: Arrays, norm: float) -> None:
        formula(weights, state, {name: g.astype(np.float64) for name, g in gradients.items()}, step + 1, lr, decay)

    ours, losses = trained(optimizer, N_STEPS, see, begin, lr, weight_decay=decay, clip=0)
    return apart(ours, weights), losses


def lion(weights: Arrays, state: Arrays, gradients: Arrays, t: int, lr: float, decay: float) -> None:
    """Chen et al. 2023, algorithm 2, with the usual betas."""
    for name, g in gradients.items():
        m = state.get(name, np.zeros_like(g))
        u = np.sign(0.9 * m + 0.1 * g)
        weights[name] -= lr * (u + decay * weights[name] * (g.ndim > 1))
        state[name] = 0.99 * m + 0.01 * g


def cautious_lion(weights: Arrays, state: Arrays, gradients: Arrays, t: int, lr: float, decay: float) -> None:
    for name, g in gradients.items():
        m = state.get(name, np.zeros_like(g))
        u = np.sign(0.9 * m + 0.1 * g)
        weights[name] -= lr * (u + decay * weights[name] * (g.ndim > 1) * (u * weights[name] >= 0))
        state[name] = 0.99 * m + 0.01 * g


def cautious_adamw(weights: Arrays, state: Arrays, gradients: Arrays, t: int, lr: float, decay: float) -> None:
    """Chen et al. 2025: weights decay only where the step goes the same way."""
    for name, g in gradients.items():
        m = state[f"m.{name}"] = 0.9 * state.get(f"m.{name}", 0 * g) + 0.1 * g
        v = state[f"v.{name}"] = 0.95 * state.get(f"v.{name}", 0 * g) + 0.05 * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        w = weights[name]
        weights[name] = w - lr * u - lr * decay * w * (g.ndim > 1) * (u * w >= 0)


def orthogonal(u: np.ndarray[Any, Any]) -> Any:
    """Five steps of Newton-Schulz (Jordan 2024)."""
    x = u / (np.linalg.norm(u) + 1e-7)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return x.T if u.shape[0] > u.shape[1] else x


def for_matrices(step: Callable[[Arrays, str, Any], Any]) -> Formula:
    """Hidden matrices along `step` of the state, the name and the orthogonalised momentum; AdamW for the others."""

    def formula(weights: Arrays, state: Arrays, gradients: Arrays, t: int, lr: float, decay: float) -> None:
        hidden = {name: g for name, g in gradients.items() if g.ndim == 2 and N_VOCAB not in g.shape}
        for name, g in hidden.items():
            m = state[name] = 0.95 * state.get(name, 0 * g) + 0.05 * g
            u = step(state, name, orthogonal(0.95 * m + 0.05 * g))
            weights[name] = weights[name] * (1 - lr * decay) - lr * u
        adamw(weights, state, {name: g for name, g in gradients.items() if name not in hidden}, t, lr, decay)

    return formula


def normuon(state: Arrays, name: str, u: Any) -> Any:
    """Li et al. 2025, algorithm 1."""
    v = state[f"v.{name}"] = 0.95 * state.get(f"v.{name}", 0.0) + 0.05 * np.mean(u**2, 1, keepdims=True)
    u = u / (np.sqrt(v) + 1e-8)
    return 0.2 * np.sqrt(u.size) / np.linalg.norm(u) * u


def moonlight(state: Arrays, name: str, u: Any) -> Any:
    return 0.2 * np.sqrt(max(u.shape)) * u


def keller_jordan(state: Arrays, name: str, u: Any) -> Any:
    return np.sqrt(max(1, u.shape[0] / u.shape[1])) * u


def adamw(weights: Arrays, state: Arrays, gradients: Arrays, t: int, lr: float, decay: float) -> None:
    for name, g in gradients.items():
        m = state[f"m.{name}"] = 0.9 * state.get(f"m.{name}", 0 * g) + 0.1 * g
        v = state[f"v.{name}"] = 0.95 * state.get(f"v.{name}", 0 * g) + 0.05 * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        weights[name] = weights[name] - lr * (u + decay * weights[name] * (g.ndim > 1))


def schedule_free(weights: Arrays, state: Arrays, gradients: Arrays, t: int, lr: float, decay: float) -> None:
    """Defazio et al.'s AdamWScheduleFree, which keeps y (the weights) and z, at a constant rate: c = 1 / t."""
    for name, g in gradients.items():
        y = weights[name]
        z = state.get(f"z.{name}", y.copy())
        v = state[f"v.{name}"] = 0.999 * state.get(f"v.{name}", 0 * g) + 0.001 * g**2
        g = g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * y * (g.ndim > 1)
        y = y + (z - y) / t
        weights[name] = y + lr * (0.9 * (1 - 1 / t) - 1) * g
        state[f"z.{name}"] = z - lr * g


FORMULAS: dict[str, tuple[Formula, Optimizer, float, float]] = {
    "lion": (lion, gg.Lion(), 3e-3, 1.0),
    "lion, cautious": (cautious_lion, gg.Lion(cautious=True), 3e-3, 1.0),
    "muon": (for_matrices(moonlight), gg.Muon(), 1e-2, 0.1),
    "muon, keller_jordan": (for_matrices(keller_jordan), gg.Muon(scale="keller_jordan"), 1e-2, 0.1),
    "normuon": (for_matrices(normuon), gg.NorMuon(), 1e-2, 0.1),
    "schedule_free": (schedule_free, gg.ScheduleFree(), 1e-2, 0.1),
    "adamw, cautious": (cautious_adamw, gg.AdamW(cautious=True), 1e-2, 0.5),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_fifty_steps_are_those_of_the_formula(name: str) -> None:
    worst, losses = beside_formula(*FORMULAS[name])
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, weights {worst:.1e} apart")
    assert losses[-1] < losses[0]
    assert worst < 1e-5


def run(spelling: str, n_steps: int, threads: int = 1, accumulate: int = 1, **options: Any) -> Arrays:
    """Weights and state after some steps."""
    optimizer = parse(spelling)
    with gg.Runtime(graph(), threads=threads, accumulate=accumulate, optimizer=optimizer, **options) as rt:
        for batch in batches(n_steps, accumulate):
            rt.step(batch, lr=optimizer.usual_lr, weight_decay=optimizer.usual_decay)
        weights, state = rt.state()
        return {name: array.copy() for name, array in (weights | state).items()}


def assert_same(a: Arrays, b: Arrays) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("spelling", EVERY)
def test_weights_and_state_are_the_same_bytes_on_any_number_of_threads(spelling: str) -> None:
    assert_same(run(spelling, 4, threads=1), run(spelling, 4, threads=3))


@pytest.mark.parametrize("spelling", EVERY)
def test_a_saved_run_goes_on_as_if_it_had_not_stopped(spelling: str, tmp_path: Path) -> None:
    optimizer, steps = parse(spelling), batches(7)
    with gg.Runtime(graph(), threads=1, optimizer=optimizer) as rt:
        for k, batch in enumerate(steps):
            if k == 3:
                rt.save(tmp_path / "half")
            rt.step(batch, lr=optimizer.usual_lr)
        wanted = {name: array.copy() for name, array in (rt.state()[0] | rt.state()[1]).items()}
    with gg.Runtime(graph(), threads=1, optimizer=optimizer) as rt:
        rt.load(tmp_path / "half")
        for batch in steps[3:]:
            rt.step(batch, lr=optimizer.usual_lr)
        assert_same(rt.state()[0] | rt.state()[1], wanted)


@pytest.mark.parametrize("spelling", EVERY)
def test_two_micro_batches_are_one_batch(spelling: str) -> None:
    """To rounding: the sums of the gradient differ in order. After one step the sign of each number is the same."""
    optimizer = parse(spelling)
    (tokens, targets), after = batches(1, 2)[0], []
    for batch, accumulate in ((6, 1), (3, 2)):
        with gg.Runtime(graph(), threads=1, batch=batch, accumulate=accumulate, optimizer=optimizer) as rt:
            rt.step((tokens, targets), lr=optimizer.usual_lr)
            after.append(rt.get("down.weight"))
    assert np.mean(np.abs(after[0] - after[1]) > 1e-3 * optimizer.usual_lr) < 0.01


@pytest.mark.parametrize("spelling", EVERY)
def test_a_gradient_that_is_not_finite_changes_nothing(spelling: str) -> None:
    optimizer = parse(spelling)
    with gg.Runtime(graph(), threads=1, optimizer=optimizer) as rt:
        first, second = batches(2)
        rt.step(first, lr=optimizer.usual_lr)
        bad = rt.get("gate.weight")
        bad[...] = np.inf
        rt.set("gate.weight", bad)
        before = {name: array.copy() for name, array in (rt.state()[0] | rt.state()[1]).items()}
        assert not np.isfinite(rt.step(second, lr=optimizer.usual_lr).grad_norm)
        assert_same(rt.state()[0] | rt.state()[1], before)
        assert rt.n_steps == 1


def test_schedule_free_is_evaluated_and_saved_at_the_average(tmp_path: Path) -> None:
    steps, (tokens, targets) = batches(5), batches(1)[0]
    with gg.Runtime(graph(), threads=1, optimizer=gg.ScheduleFree()) as rt:
        for batch in steps:
            rt.step(batch, lr=1e-2)
        y, x = rt.get("down.weight"), rt.state()[0]["down.weight"].copy()
        z = rt.state()[1]["z.down.weight"]
        np.testing.assert_allclose(x, z + (y - z) / 0.9, atol=1e-6)  # x = lerp(y, z, 1 - 1 / beta1)
        loss = rt.loss(tokens, targets)
        assert loss == rt.forward("loss", tokens=tokens, targets=targets)[0].item()
        np.testing.assert_array_equal(rt.get("down.weight"), y)
        rt.save(tmp_path / "saved")
    with gg.Runtime(graph(), threads=1) as other:
        checkpoint.load_weights(other, tmp_path / "saved")
        np.testing.assert_array_equal(other.get("down.weight"), x)
        assert other.loss(tokens, targets) == loss


def test_an_average_of_weights_is_evaluated_and_saved_and_training_does_not_see_it(tmp_path: Path) -> None:
    after, steps = {}, batches(6)
    for ema in (0.0, 0.5):
        average = None
        with gg.Runtime(graph(), threads=1, ema=ema) as rt:
            for k, batch in enumerate(steps):
                if k == 3:
                    rt.save(tmp_path / f"{ema}")
                rt.step(batch, lr=1e-2)
                rt.loss(*batch)
                w = rt.get("down.weight").astype(np.float64)
                average = w if average is None or not ema else ema * average + (1 - ema) * w
            np.testing.assert_allclose(rt.state()[0]["down.weight"], average, atol=1e-6)
            after[ema] = rt.get("down.weight")
        with gg.Runtime(graph(), threads=1, ema=ema) as rt:
            rt.load(tmp_path / f"{ema}")
            for batch in steps[3:]:
                rt.step(batch, lr=1e-2)
            np.testing.assert_array_equal(rt.get("down.weight"), after[ema])
    np.testing.assert_array_equal(after[0.0], after[0.5])


def test_the_norm_that_is_told_is_the_gradient_s_whatever_the_optimiser() -> None:
    norms = set()
    for spelling in EVERY:
        with gg.Runtime(graph(), threads=1, optimizer=parse(spelling), ema=0.0) as rt:
            norms.add(rt.step(batches(1)[0], lr=1e-3).grad_norm)
    assert len(norms) == 1


def test_values_of_the_gradient_are_cut_where_that_is_asked() -> None:
    with gg.Runtime(graph(), threads=1, optimizer=gg.SGD(momentum=0.0)) as rt:
        before = rt.weights()["output.weight"].copy()
        rt.step(batches(1)[0], lr=1.0, weight_decay=0, clip=0, clip_value=1e-6)
        moved = np.abs(before - rt.get("output.weight"))
        gradient = np.abs(rt.gradient("output.weight"))
        np.testing.assert_allclose(moved, np.minimum(gradient, 1e-6), atol=1e-8)
        assert (gradient > 1e-6).any() and (gradient < 1e-6).any()


def test_a_checkpoint_of_another_optimiser_is_refused_in_one_line(tmp_path: Path) -> None:
    with gg.Runtime(graph(), threads=1) as rt:
        rt.step(batches(1)[0], lr=1e-3)
        rt.save(tmp_path / "adamw")
    with (
        gg.Runtime(graph(), threads=1, optimizer=gg.Lion()) as rt,
        pytest.raises(CheckpointError, match="the optimiser adamw, not of lion: go on with that one, or"),
    ):
        rt.load(tmp_path / "adamw")


@pytest.mark.parametrize("spelling", EVERY)
def test_what_is_spelled_is_read_back(spelling: str) -> None:
    assert parse(spelled(parse(spelling))) == parse(spelling)


@pytest.mark.parametrize(
    ("spelling", "told"),
    [
        ("adam", "'adam' is no optimiser; did you mean adamw"),
        ("lion:bta1=0.9", "lion has no 'bta1'; did you mean beta1"),
        ("lion:beta1=1", "beta1 1.0 is not from 0 to below 1"),
        ("lion:beta1=x", "lion:beta1=x"),
        ("lion:beta1", "expected lion:KEY=VALUE"),
        ("sgd:momentum=0,nesterov=true", "nesterov needs a momentum"),
        ("sgd:cautious=true", "cannot be cautious"),
    ],
)
def test_a_misspelt_optimiser_is_told_with_what_was_meant(spelling: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse(spelling)


def test_every_optimiser_is_public_under_its_name() -> None:
    assert all(getattr(gg, kind.__name__) is getattr(optimizers, kind.__name__) for kind in CLASSES.values())
