"""A million steps in the room of a few thousand: the least, the mean and the most of each stretch of steps.

What stood out in a stretch stands out in the picture too, which a selection of steps would not promise. Used by `page`,
whose script merges neighbouring stretches again for what a screen has room for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.training.report.history import AXES, Column, History, Layers

MOST = 4096  # stretches; a shorter run is kept step by step
SPARSE = ("val_loss", "val_bits_per_byte", "val_accuracy", "memory")  # curves of few points, which are kept as points
MOST_POINTS = 1024
MOST_CELLS, MOST_COLUMNS, LEAST_COLUMNS = 6000, 128, 16  # of a map of layers
LEAST_NOISE, MOST_NOISE = 16, 64  # steps that a difference is averaged over: at least, and one in so many of all


@dataclass(frozen=True)
class Curve:
    """One number a stretch; NaN where there is none."""

    least: Column
    mean: Column
    most: Column

    def merged(self, starts: NDArray[np.int64]) -> Curve:
        """In fewer stretches, which begin at `starts` of these."""
        if not len(starts):
            return self
        there = ~np.isnan(self.mean)
        counts = np.add.reduceat(there, starts, dtype=np.int64)
        sums = np.add.reduceat(np.where(there, self.mean, 0.0), starts)
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        return Curve(np.fmin.reduceat(self.least, starts), mean, np.fmax.reduceat(self.most, starts))


@dataclass(frozen=True)
class Points:
    """Numbers that few steps have, by the stretch of their step."""

    at: NDArray[np.int64]
    values: Column


@dataclass(frozen=True)
class Maps:
    """Sizes of layers over the run, means of stretches that end at the stretches `at` of the curves."""

    names: tuple[str, ...]
    at: NDArray[np.int64]
    values: NDArray[np.float64]  # (3, n_layers, n)


@dataclass(frozen=True)
class Buckets:
    """A history in stretches. axes: of the last step of each."""

    axes: dict[str, Column]
    curves: dict[str, Curve]
    points: dict[str, Points]
    maps: Maps | None = None


def bucket(history: History, most: int = MOST) -> Buckets:
    """All of a history in at most `most` stretches, equally long but for rounding."""
    n, columns = len(history), history.columns
    starts = evenly(n, most)
    ends = np.append(starts[1:], n)[: len(starts)] - 1
    return Buckets(
        {name: columns[name][ends] for name in AXES},
        {name: Curve(*[columns[name]] * 3).merged(starts) for name in columns if name not in (*AXES, *SPARSE)},
        {name: _points(columns[name], starts) for name in SPARSE},
        None if history.layers is None or not n else _maps(history.layers, columns["step"][ends]),
    )


def difference(base: History, other: History, steps: Column) -> Curve:
    """How far the loss of `other` lies above that of `base` at each of `steps`: the mean over the steps around it, and
    two standard errors of that mean to either side, the noise of steps taken as independent. NaN where one has none."""
    common, ours, theirs = np.intersect1d(base.columns["step"], other.columns["step"], return_indices=True)
    above = other.columns["loss"][theirs] - base.columns["loss"][ours]
    common, above = common[np.isfinite(above)], above[np.isfinite(above)]
    width = min(len(common), max(LEAST_NOISE, len(common) // MOST_NOISE))
    if width < 2:
        return Curve(*[np.full(len(steps), np.nan)] * 3)
    sums = np.concatenate([[[0.0, 0.0]], np.cumsum(np.stack([above, above**2], 1), axis=0)])
    begin = np.clip(np.searchsorted(common, steps) - width // 2, 0, len(common) - width)
    mean, square = ((sums[begin + width] - sums[begin]) / width).T
    error = 2 * np.sqrt(np.maximum(square - mean**2, 0.0) / (width - 1))
    mean = np.where((steps < common[0]) | (steps > common[-1]), np.nan, mean)
    return Curve(mean - error, mean, mean + error)


def _maps(layers: Layers, ends: Column) -> Maps:
    """In as many stretches as a map has room for."""
    n = len(layers.steps)
    most = min(MOST_COLUMNS, max(LEAST_COLUMNS, MOST_CELLS // len(layers.names)))
    starts = evenly(n, most)
    there = np.isfinite(layers.values)
    counts = np.add.reduceat(there, starts, axis=2, dtype=np.int64)
    sums = np.add.reduceat(np.where(there, layers.values, 0.0), starts, axis=2)
    values = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    lasts = layers.steps[np.append(starts[1:], n) - 1]
    return Maps(layers.names, np.minimum(np.searchsorted(ends, lasts), len(ends) - 1), values)


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """Where stretches of n things begin, at most so many and of as equal a length as can be."""
    return np.unique(np.linspace(0, n, min(most, n), endpoint=False).astype(np.int64))


def _points(column: Column, starts: NDArray[np.int64]) -> Points:
    at = np.flatnonzero(~np.isnan(column))
    at = at[evenly(len(at), MOST_POINTS)]
    return Points(np.searchsorted(starts, at, "right") - 1, column[at])
