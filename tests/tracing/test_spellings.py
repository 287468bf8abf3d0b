"""What a model may be written with gives numpy's values and shapes, and the gradients that central differences give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import spellings
from spellings import SPELLINGS, Spelling

import ggmlgraph as gg

STEP = 1e-5


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], dict[str, Any]]:
    """Every result, and every parameter's gradient."""
    path = tmp_path_factory.mktemp("spellings") / "graph.bin"
    inputs = spellings.save(SPELLINGS, path)
    with gg.Runtime(path, threads=1) as rt:
        for name, array in inputs.items():
            rt.set(name, array)
        results = rt.forward(*[f"result{i}" for i in range(len(SPELLINGS))])
        none = np.zeros((1, 1), np.int32)
        rt.backward((none, none))
        return results, {name: rt.gradient(name) for name in rt.params}


def test_results_are_numpys_in_value_and_shape(computed: Any, check_each: Callable[..., None]) -> None:
    def check(case: tuple[int, Spelling]) -> None:
        i, spelling = case
        arrays = {n: a if a.dtype == np.int32 else a.astype(np.float64) for n, a in spelling.arrays().items()}
        expected, actual = spelling.expected(arrays), computed[0][i]
        assert actual.shape == (expected.shape or (1,))
        np.testing.assert_allclose(actual, expected.reshape(actual.shape), rtol=2e-5, atol=2e-6)

    check_each(list(enumerate(SPELLINGS)), check)


def test_gradients_are_those_of_numpys_expressions(computed: Any, check_each: Callable[..., None]) -> None:
    def check(case: tuple[int, Spelling]) -> None:
        i, spelling = case
        arrays = {n: a if a.dtype == np.int32 else a.astype(np.float64) for n, a in spelling.arrays().items()}
        y = spelling.expected(arrays)
        weights = spellings.weights_of(y.shape or (1,), i).reshape(y.shape).astype(np.float64)
        rng = np.random.default_rng(i)
        for name, array in arrays.items():
            if array.dtype == np.int32:
                continue
            gradient = computed[1][f"{i}.{name}"].astype(np.float64)
            for _ in range(3):
                d = rng.normal(size=array.shape)
                ends = [spelling.expected({**arrays, name: array + s * d}) for s in (STEP, -STEP)]
                numeric = (weights * (ends[0] - ends[1])).sum() / (2 * STEP) if spelling.has_gradient else 0.0
                scale = 1 + np.abs(gradient * d).sum()
                assert abs(numeric - (gradient * d).sum()) <= 2e-5 * scale, name

    check_each(list(enumerate(SPELLINGS)), check)
