"""Losses and their gradients beside float64: the formula of each, central differences for its slope."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from losses import CLASSES, LOSSES, Array, Ids, N, Rows, inputs

import ggmlgraph as gg
from ggmlgraph.errors import GGError


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
