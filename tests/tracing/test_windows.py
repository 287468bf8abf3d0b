"""Convolutions, pooling and group_norm against float64, forward and gradient; and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from windows import CASES, float64, g_of, save

import ggmlgraph as gg
from ggmlgraph.errors import ShapeError, UsageError

STEP = 1e-6


def test_values_and_gradients_are_what_float64_says(tmp_path: Path) -> None:
    for case in CASES:
        save(case, tmp_path / "graph.bin")
        operands = case.operands()
        wanted = float64(case, operands)
        with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
            y = rt.forward("y")[0]
            assert y.shape == wanted.shape, case
            assert np.abs(y - wanted).max() < 3e-6 * max(1, np.abs(wanted).max()), case
            rt.backward({"one": np.ones(1, np.float32)})
            g, rng = g_of(rt.graph).reshape(wanted.shape), np.random.default_rng(2)
            for i, operand in enumerate(operands):
                direction = rng.normal(size=operand.shape)
                sides = [[*operands[:i], operand + sign * STEP * direction, *operands[i + 1 :]] for sign in (1, -1)]
                slope = np.diff([(float64(case, side) * g).sum() for side in reversed(sides)])[0] / (2 * STEP)
                found = (rt.gradient(f"operand.{i}") * direction).sum()
                assert abs(found - slope) < 1e-5 * max(1, np.linalg.norm(g) * np.linalg.norm(direction)), (case, i)


def called(function: Any, *shapes: tuple[int, ...], **keywords: Any) -> Any:
    def loss(p: gg.Params, tokens: gg.Tensor) -> gg.Tensor:
        return function(*(p(f"p{i}", *s) for i, s in enumerate(shapes)), **keywords).sum()

    return gg.trace(loss)


def test_what_fits_not_is_one_line_with_the_models_place() -> None:
    image, kernel = (2, 3, 8, 8), (4, 3, 3, 3)
    wrong: list[tuple[type[Exception], str, Any]] = [
        (ShapeError, "conv2d: x = .* has 3 axes, not 4", lambda: called(gg.conv2d, (3, 8, 8), kernel)),
        (ShapeError, "conv2d: x = .* has 3 channels, w = .* takes 2", lambda: called(gg.conv2d, image, (4, 2, 3, 3))),
        (ShapeError, "conv2d: b = .* each of 4 channels", lambda: called(gg.conv2d, image, kernel, (3,))),
        (ShapeError, "the kernel is larger than the image", lambda: called(gg.conv2d, image, (4, 3, 9, 3))),
        (UsageError, "conv2d: stride is 0", lambda: called(gg.conv2d, image, kernel, stride=0)),
        (UsageError, "conv2d: padding is -1", lambda: called(gg.conv2d, image, kernel, padding=(-1, 0))),
        (UsageError, "conv2d: dilation is .1, 2, 3.", lambda: called(gg.conv2d, image, kernel, dilation=(1, 2, 3))),
        (UsageError, "conv2d: groups is 3", lambda: called(gg.conv2d, image, (4, 1, 3, 3), groups=3)),
        (TypeError, "conv1d: stride is .1, 1.", lambda: called(gg.conv1d, (2, 3, 8), (4, 3, 3), stride=(1, 1))),
        (UsageError, "padding 3 is not less", lambda: called(gg.conv_transpose2d, image, (3, 4, 3, 3), padding=3)),
        (ShapeError, "max_pool2d: x = .* is not .batch", lambda: called(gg.max_pool2d, (8, 8), size=2)),
        (UsageError, "more than half of the window", lambda: called(gg.avg_pool2d, image, size=2, padding=2)),
        (UsageError, "max_pool1d: size is 0", lambda: called(gg.max_pool1d, (2, 3, 8), size=0)),
        (UsageError, "n_groups is 2, not .* divides the 3", lambda: called(gg.group_norm, image, n_groups=2)),
        (ShapeError, "group_norm: x = ", lambda: called(gg.group_norm, (3,), n_groups=1)),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message) as error:
            call()
        assert str(error.value).startswith("tests/tracing/test_windows.py:")
        assert "\n" not in str(error.value)
