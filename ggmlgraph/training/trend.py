"""A curve in one line of text: what the loss has done since the run began. Used by `console`."""

from __future__ import annotations

import math
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
GAP = "×"  # no step of a stretch had a finite loss
MOST = 256  # stretches that are kept; twice as long ones when they are full
TOP = 0.9  # share of the stretches that lie below the top: the first steps would else flatten all that follow


class Trend:
    """The mean loss of stretches of equally many steps, in bounded memory however long a run is."""

    def __init__(self) -> None:
        self._sums: list[tuple[float, int]] = []  # sum and number of the finite losses of a stretch
        self._size = 1  # steps of a stretch
        self._n = 0  # steps of the last stretch

    def add(self, loss: float | None) -> None:
        """The next step's."""
        if self._n == self._size or not self._sums:
            if len(self._sums) == MOST:
                self._sums = _paired(self._sums)
                self._size *= 2
            self._sums.append((0.0, 0))
            self._n = 0
        total, n = self._sums[-1]
        self._sums[-1] = (total, n) if loss is None else (total + loss, n + 1)
        self._n += 1

    def drawn(self, width: int) -> str:
        """All steps so far in at most `width` characters, fewer while there are few steps."""
        n = len(self._sums)
        edges = [k * n // width for k in range(width + 1)] if 0 < width < n else list(range(n + 1))
        means = [_mean(self._sums[begin:end]) for begin, end in pairwise(edges)]
        there = sorted(mean for mean in means if math.isfinite(mean))
        if width < 1 or len(there) < 2:
            return ""
        low, high = there[0], there[math.ceil(TOP * (len(there) - 1))]
        return "".join(_block(mean, low, high) for mean in means)


def _mean(sums: list[tuple[float, int]]) -> float:
    n = sum(count for _, count in sums)
    return sum(total for total, _ in sums) / n if n else math.nan


def _paired(sums: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Stretches of twice the length; the last one may be of one alone."""
    pairs = zip(sums[::2], [*sums[1::2], (0.0, 0)], strict=False)
    return [(a + b, n + m) for (a, n), (b, m) in pairs]


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return GAP
    share = (value - low) / (high - low) if high > low else 0.0
    return BLOCKS[min(len(BLOCKS) - 1, int(share * len(BLOCKS)))]
