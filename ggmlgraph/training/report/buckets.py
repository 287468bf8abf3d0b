"""A million steps in the room of a few thousand: the least, the mean and the most of each stretch of steps.

What stood out in a stretch stands out in the picture too, which a selection of steps would not promise. Used by `page`,
whose script merges neighbouring stretches again for what a screen has room for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.training.report.history import AXES, CURVES, Column, History

MOST = 4096  # stretches; a shorter run is kept step by step
SPARSE = ("val_loss", "val_accuracy")  # curves of few points, which are kept as points


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
class Buckets:
    """A history in stretches. axes: of the last step of each."""

    axes: dict[str, Column]
    curves: dict[str, Curve]
    points: dict[str, Points]


def bucket(history: History, most: int = MOST) -> Buckets:
    """All of a history in at most `most` stretches, equally long but for rounding."""
    n, columns = len(history), history.columns
    starts = evenly(n, most)
    ends = np.append(starts[1:], n)[: len(starts)] - 1
    return Buckets(
        {name: columns[name][ends] for name in AXES},
        {name: Curve(*[columns[name]] * 3).merged(starts) for name in CURVES if name not in SPARSE},
        {name: _points(columns[name], starts, most) for name in SPARSE},
    )


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """Where stretches of n things begin, at most so many and of as equal a length as can be."""
    return np.unique(np.linspace(0, n, min(most, n), endpoint=False).astype(np.int64))


def _points(column: Column, starts: NDArray[np.int64], most: int) -> Points:
    at = np.flatnonzero(~np.isnan(column))
    at = at[evenly(len(at), most)]
    return Points(np.searchsorted(starts, at, "right") - 1, column[at])
