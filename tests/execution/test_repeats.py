"""What broadcasting repeats is read where it lies, forward and in the gradient; the file holds ggml's repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import ggmlgraph as gg

BATCH, N, WIDTH = 3, 7, 40
Features = Annotated[gg.Tensor, gg.Float("batch", N, "width")]
Targets = Annotated[gg.Tensor, gg.Float("batch", "width")]


@dataclass(frozen=True)
class Config:
    """The size of a row."""

    width: int = WIDTH


def reciprocal(p: gg.Params, h: gg.Tensor) -> gg.Tensor:
    return (1 / (2 + gg.exp(h))).mean(1)


def smaller_by_larger(p: gg.Params, h: gg.Tensor) -> gg.Tensor:
    gain = p("gain", WIDTH, init=gg.full(0.7))
    return (gain / (3 + h * h) - gain).mean(1)


def both_ways(p: gg.Params, h: gg.Tensor) -> gg.Tensor:
    columns, rows = p.linear("c", h, 1), h.mean(1)[:, None]
    return ((columns + rows) * (columns - rows)).mean(1)


def root_mean_square(p: gg.Params, h: gg.Tensor) -> gg.Tensor:
    return (h / ((h * h).mean(-1, keepdims=True) + 1e-5) ** 0.5).mean(1)


def over_any_axes(p: gg.Params, h: gg.Tensor) -> gg.Tensor:
    return ((h - h.mean(0)) * gg.tanh(h - h.mean((0, 2), keepdims=True))).sum(1)


MODELS: list[Callable[[gg.Params, gg.Tensor], gg.Tensor]] = [
    reciprocal, smaller_by_larger, both_ways, root_mean_square, over_any_axes,
]  # fmt: skip


def export(path: Path, model: Callable[[gg.Params, gg.Tensor], gg.Tensor]) -> Path:
    def loss(p: gg.Params, x: Features, y: Targets, c: Config) -> gg.Tensor:
        return ((model(p, p.linear("a", x, c.width, init=gg.normal(0.3))) - y) ** 2).mean()

    gg.trace(loss, Config(), batch=BATCH).save(path, seed=2)
    return path


def batch() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {"x": rng.normal(size=(BATCH, N, WIDTH)).astype("f"), "y": rng.normal(size=(BATCH, WIDTH)).astype("f")}


def gradients(path: Path, **options: Any) -> tuple[float, dict[str, Any], Counter[str]]:
    with gg.Runtime(path, **{"threads": 1} | options) as rt:
        value = rt.backward(batch())
        graph = rt.programs.train.graph
        return value, {n: rt.gradient(n) for n in rt.params}, Counter(graph.op(i) for i in range(len(graph)))


@pytest.mark.parametrize("model", MODELS)
def test_no_repeated_copy_is_stored_and_gradients_stay(
    tmp_path: Path, model: Callable[[gg.Params, gg.Tensor], gg.Tensor]
) -> None:
    path = export(tmp_path / "graph.bin", model)
    value, ours, ops = gradients(path)
    plain_value, plain, plain_ops = gradients(path, fusions=())
    assert plain_ops["repeat"] > 0
    assert ops["repeat"] == 0
    assert ops["expand"] > 0
    assert value == pytest.approx(plain_value, rel=1e-6)
    for name, wanted in plain.items():
        assert np.abs(ours[name] - wanted).max() < 1e-5 * np.abs(wanted).max(), name


@pytest.mark.parametrize("model", MODELS)
def test_threads_change_no_bit(tmp_path: Path, model: Callable[[gg.Params, gg.Tensor], gg.Tensor]) -> None:
    path = export(tmp_path / "graph.bin", model)
    found = [gradients(path, threads=n)[1] for n in (1, 2, 8)]
    assert len({b"".join(g.tobytes() for g in gradient.values()) for gradient in found}) == 1


def test_a_product_with_what_a_sum_was_made_of_is_summed_without_being_stored(tmp_path: Path) -> None:
    def model(p: gg.Params, h: gg.Tensor) -> gg.Tensor:
        return gg.silu(h / (h * h).mean(-1, keepdims=True)).mean(1)

    _, _, ops = gradients(export(tmp_path / "graph.bin", model))
    assert ops["sum_products"] == 1
    assert ops["repeat_back"] == 0


def test_a_repeat_for_a_product_is_a_copy(tmp_path: Path) -> None:
    def model(p: gg.Params, h: gg.Tensor) -> gg.Tensor:
        return p.linear("b", gg.repeat(h.mean(-1, keepdims=True), shape=h), WIDTH).mean(1)

    _, _, ops = gradients(export(tmp_path / "graph.bin", model))
    assert ops["repeat"] == 3  # and those of both means' cotangents, which go into products too
