"""Losses and their gradients beside float64: the formula of each, central differences for its slope."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError

N, CLASSES = 6, 5
Ids = Annotated[gg.Tensor, gg.Ids("batch")]
Rows = Annotated[gg.Tensor, gg.Float("batch", CLASSES)]
Weights = Annotated[gg.Tensor, gg.Float("batch")]

Array = Any


def scores(p: gg.Params, like: gg.Tensor) -> gg.Tensor:
    """What the losses are of, (batch, CLASSES): a parameter, so that its gradient can be read."""
    return p("z", N, CLASSES)


def lse(z: Array) -> Array:
    top = z.max(-1)
    return np.log(np.exp(z - top[:, None]).sum(-1)) + top


def log_softmax(z: Array) -> Array:
    return z - lse(z)[:, None]


def softplus(z: Array) -> Array:
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def one_hot(ids: Array) -> Array:
    return np.eye(CLASSES)[ids]


def smooth(labels: Array, e: float) -> Array:
    return labels * (1 - e) + e / CLASSES


def of_ids(**options: float) -> Callable[..., gg.Tensor]:
    def loss(p: gg.Params, ids: Ids) -> gg.Tensor:
        return gg.cross_entropy(scores(p, ids), ids, **options)

    return loss


def of_weighted(**options: float) -> Callable[..., gg.Tensor]:
    def loss(p: gg.Params, ids: Ids, weights: Weights) -> gg.Tensor:
        return gg.cross_entropy(scores(p, ids), ids, weights, **options)

    return loss


def of_rows(function: Callable[..., gg.Tensor], **options: float) -> Callable[..., gg.Tensor]:
    def loss(p: gg.Params, labels: Rows) -> gg.Tensor:
        return function(scores(p, labels), labels, **options)

    return loss


def entropy(labels: Array) -> Array:
    return np.where(labels > 0, labels * np.log(np.where(labels > 0, labels, 1)), 0).sum(-1)


def huber(d: Array, delta: float) -> Array:
    return np.where(np.abs(d) <= delta, d * d / 2, delta * (np.abs(d) - delta / 2)).mean()


# The loss, and what it is of scores z (float64), ids, labels and weights.
LOSSES: dict[str, tuple[Callable[..., gg.Tensor], Callable[..., Array]]] = {
    "ids": (of_ids(), lambda z, ids, y, w: -(one_hot(ids) * log_softmax(z)).sum(-1).mean()),
    "weighted": (of_weighted(), lambda z, ids, y, w: -((one_hot(ids) * log_softmax(z)).sum(-1) * w).sum() / w.sum()),
    "smoothed": (
        of_ids(label_smoothing=0.2),
        lambda z, ids, y, w: -(smooth(one_hot(ids), 0.2) * log_softmax(z)).sum(-1).mean(),
    ),
    "z_loss": (
        of_ids(z_loss=0.1),
        lambda z, ids, y, w: (-(one_hot(ids) * log_softmax(z)).sum(-1) + 0.1 * lse(z) ** 2).mean(),
    ),
    "all": (
        of_weighted(label_smoothing=0.1, z_loss=0.01),
        lambda z, ids, y, w: (
            ((-(smooth(one_hot(ids), 0.1) * log_softmax(z)).sum(-1) + 0.01 * lse(z) ** 2) * w).sum() / w.sum()
        ),
    ),
    "soft": (of_rows(gg.cross_entropy), lambda z, ids, y, w: -(y * log_softmax(z)).sum(-1).mean()),
    "soft smoothed": (
        of_rows(gg.cross_entropy, label_smoothing=0.3),
        lambda z, ids, y, w: -(smooth(y, 0.3) * log_softmax(z)).sum(-1).mean(),
    ),
    "mse": (of_rows(gg.mse), lambda z, ids, y, w: ((z - y) ** 2).mean()),
    "huber": (of_rows(gg.huber), lambda z, ids, y, w: huber(z - y, 1.0)),
    "huber 0.3": (of_rows(gg.huber, delta=0.3), lambda z, ids, y, w: huber(z - y, 0.3)),
    "bce": (of_rows(gg.bce), lambda z, ids, y, w: (softplus(z) - z * y).mean()),
    "kl": (of_rows(gg.kl), lambda z, ids, y, w: (entropy(y) - (y * log_softmax(z)).sum(-1)).mean()),
}


def inputs(seed: int = 0, scale: float = 1.0) -> tuple[dict[str, Array], Array]:
    rng = np.random.default_rng(seed)
    labels = rng.dirichlet(np.ones(CLASSES), N).astype(np.float32)
    labels[0] = one_hot(2)
    weights = rng.uniform(0, 1, N).astype(np.float32)
    weights[3] = 0
    z = (rng.normal(size=(N, CLASSES)) * scale).astype(np.float32)
    z[1] = 0
    return {"ids": rng.integers(0, CLASSES, N, dtype=np.int32), "labels": labels, "weights": weights}, z


def of(case: str, path: Path, given: dict[str, Array], z: Array) -> tuple[float, Array]:
    """Loss and gradient of a case."""
    gg.trace(LOSSES[case][0], batch=N).save(path / "g.bin")
    with gg.Runtime(path / "g.bin", threads=1) as rt:
        rt.set("z", z)
        loss = rt.backward({name: given[name] for name in rt.inputs})
        return loss, rt.gradient("z")


def slope(function: Callable[[Array], Array], z: Array) -> Array:
    found, h = np.zeros_like(z), 1e-5
    for at in np.ndindex(*z.shape):
        low, high = z.copy(), z.copy()
        low[at] -= h
        high[at] += h
        found[at] = (function(high) - function(low)) / (2 * h)
    return found


def test_a_loss_and_its_gradient_are_the_formula_s(check_each: Any, tmp_path: Path) -> None:
    def check(case: tuple[str, float]) -> None:
        name, scale = case
        given, z = inputs(scale=scale)
        formula = lambda z: LOSSES[name][1](z, given["ids"], given["labels"].astype(np.float64), given["weights"])  # noqa: E731
        loss, gradient = of(name, tmp_path, given, z)
        assert loss == pytest.approx(formula(z.astype(np.float64)), rel=2e-5)
        np.testing.assert_allclose(gradient, slope(formula, z.astype(np.float64)), rtol=2e-3, atol=2e-5 * scale)

    check_each([(name, scale) for name in LOSSES for scale in (1.0, 8.0)], check)


def test_logits_of_any_size_have_finite_losses_and_gradients(check_each: Any, tmp_path: Path) -> None:
    def check(case: str) -> None:
        given, _ = inputs()
        z = np.full((N, CLASSES), -1e4, np.float32)
        z[:, 0] = 1e4
        formula = lambda z: LOSSES[case][1](z, given["ids"], given["labels"].astype(np.float64), given["weights"])  # noqa: E731
        loss, gradient = of(case, tmp_path, given, z)
        assert loss == pytest.approx(formula(z.astype(np.float64)), rel=1e-5)
        assert np.isfinite(gradient).all()

    check_each(LOSSES, check)


def test_the_cross_entropy_of_ids_is_one_op_of_the_runtime(tmp_path: Path) -> None:
    def loss(p: gg.Params, x: Rows, ids: Ids) -> gg.Tensor:
        return gg.cross_entropy(p.linear("a", x, 7), ids)

    gg.trace(loss, batch=N).save(tmp_path / "g.bin")
    with gg.Runtime(tmp_path / "g.bin") as rt:
        graph = rt.programs.train.graph
        names = {graph.op(i) for i in range(len(graph))}
    assert "linear_cross_entropy" in names
    assert "soft_max" not in names


def test_the_mean_of_a_loss_follows_the_batch(check_each: Any, tmp_path: Path) -> None:
    def check(function: Callable[..., gg.Tensor]) -> None:
        def loss(p: gg.Params, x: Rows, labels: Rows) -> gg.Tensor:
            return function(p.linear("a", x, CLASSES), labels)

        graph = gg.trace(loss, batch=2)
        graph.save(tmp_path / "g.bin")
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(8, CLASSES)).astype(np.float32), rng.dirichlet(np.ones(CLASSES), 8).astype(np.float32)
        with gg.Runtime(tmp_path / "g.bin") as two, two.at(batch=8) as eight:
            parts = [two.loss_of({"x": x[i : i + 2], "labels": y[i : i + 2]}) for i in range(0, 8, 2)]
            assert eight.loss_of({"x": x, "labels": y}) == pytest.approx(np.mean(parts), rel=1e-5)

    check_each([gg.cross_entropy, gg.mse, gg.bce, gg.kl, gg.huber], check)


def test_operands_that_do_not_go_together_are_one_line(check_each: Any) -> None:
    cases: dict[str, tuple[Callable[..., Any], str]] = {
        "ids of other rows": (lambda p, x, y, i: gg.cross_entropy(x, p.positions(3)), r"cross_entropy: .*shape \(2\)"),
        "labels": (lambda p, x, y, i: gg.cross_entropy(x, y), r"cross_entropy: %y .*shape \(2, 5\)"),
        "weights": (lambda p, x, y, i: gg.cross_entropy(x, i, x), r"cross_entropy: %x .*shape \(2\)"),
        "smoothing": (lambda p, x, y, i: gg.cross_entropy(x, i, label_smoothing=2), "label_smoothing 2 is not in 0..1"),
        "z": (lambda p, x, y, i: gg.cross_entropy(x, i, z_loss=-1), "z_loss -1 below 0"),
        **{f.__name__: (lambda p, x, y, i, f=f: f(x, y), rf"{f.__name__}: %y .*shape \(2, 5\) that goes with %x")
           for f in (gg.mse, gg.bce, gg.kl, gg.huber)},
        "delta": (lambda p, x, y, i: gg.huber(x, x, delta=0.0), "delta 0.0 is not above 0"),
    }  # fmt: skip

    def check(case: str) -> None:
        body, message = cases[case]

        def loss(p: gg.Params, x: Rows, y: Annotated[gg.Tensor, gg.Float("batch", 4)], i: Ids) -> gg.Tensor:
            return body(p, x, y, i)  # type: ignore[no-any-return]

        with pytest.raises(GGError, match=rf"test_losses\.py:\d+: .*{message}"):
            gg.trace(loss, batch=2)

    check_each(cases, check)
