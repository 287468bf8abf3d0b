"""Steps that go wrong: losses or gradients that are not finite, and losses that leap.

A leap is told by a robust z-score: how far a loss lies above the median of the last ones, in standard deviations as
their median absolute deviation estimates them (Iglewicz and Hoaglin 1993). Leaps never enter the window, so that many
of them do not come to look usual. All of it is part of a checkpoint: a resumed run judges as one that never stopped.
Used by the training loop.
"""

from __future__ import annotations

import math
from statistics import median

import msgspec

WINDOW = 128  # losses that a new one is measured by
LEAST = 32  # of them, before any is called a leap
MOST_Z = 8.0
NORMAL = 1.4826  # standard deviations of a normal distribution in a median absolute deviation
NOISE = 0.01  # of the median: least deviation, where the losses hardly differ
MOST_IN_A_ROW = 5  # bad steps, which are no chance then


class Watch(msgspec.Struct):
    """What is kept of the last steps."""

    losses: list[float] = []
    n_skipped: int = 0  # in a row, the last step included
    n_leaps: int = 0  # in a row, likewise

    @property
    def is_calm(self) -> bool:
        """Whether the last step was as steps should be."""
        return not (self.n_skipped or self.n_leaps)

    def skipped(self) -> bool:
        """Take note of a step that was not finite; whether there are too many in a row."""
        self.n_skipped += 1
        return self.n_skipped >= MOST_IN_A_ROW

    def leap(self, loss: float) -> float | None:
        """Take note of a finite loss; its z-score if it is a leap, and None if not."""
        self.n_skipped = 0
        z = self._z(loss)
        if z > MOST_Z:
            self.n_leaps += 1
            return z
        self.n_leaps = 0
        self.losses = [*self.losses[1 - WINDOW :], loss]
        return None

    @property
    def has_leapt(self) -> bool:
        """Whether the loss has leapt so many times in a row that it is no chance."""
        return self.n_leaps >= MOST_IN_A_ROW

    def accept(self) -> None:
        """Call usual from now on what the losses have become."""
        self.losses, self.n_leaps = [], 0

    def _z(self, loss: float) -> float:
        if len(self.losses) < LEAST:
            return -math.inf
        middle = median(self.losses)
        deviation = NORMAL * median(abs(each - middle) for each in self.losses)
        return (loss - middle) / max(deviation, NOISE * abs(middle), 1e-12)
