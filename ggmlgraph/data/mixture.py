"""Training data of several texts in given proportions.

Which text a window is of follows Megatron's rule (NVIDIA/Megatron-LM, megatron/core/datasets/helpers.cpp): the one
that is furthest behind its share. Shares are rounded to multiples of 1/PERIOD, so that the pattern repeats and any
place of it is found without those before. Used by `ggmlgraph train --mix`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data.text import TextData, Windows
from ggmlgraph.errors import UsageError
from ggmlgraph.execution.runtime import Runtime

PERIOD = 1 << 14  # windows
PROPORTIONS: dict[str, dict[str, float]] = {
    # Touvron et al., "LLaMA", 2023, table 1: sampling proportions, %.
    "llama": {"commoncrawl": 67.0, "c4": 15.0, "github": 4.5, "wikipedia": 4.5, "books": 4.5, "arxiv": 2.5,
              "stackexchange": 2.0},
    # RedPajama-Data 1T: tokens, 10^9.
    "redpajama": {"commoncrawl": 878, "c4": 175, "github": 59, "books": 26, "arxiv": 28, "wikipedia": 24,
                  "stackexchange": 20},
}  # fmt: skip


def pattern(weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each window of a period: which text it is of, and how many of that text came before it: int64 (PERIOD,) twice.

    At any place each text is behind or ahead of its share by less than two windows.
    """
    quota = _quotas(weights)
    share, used = quota / PERIOD, np.zeros(len(weights))
    chosen, before = np.empty(PERIOD, np.int64), np.empty(PERIOD, np.int64)
    for i in range(PERIOD):
        behind = np.where(used < quota, share * max(i, 1) - used, -np.inf)
        chosen[i] = part = int(behind.argmax())
        before[i] = used[part]
        used[part] += 1
    return chosen, before


def _quotas(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Windows of each in a period: the largest remainders get what is left."""
    exact = weights / weights.sum() * PERIOD
    quota: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: PERIOD - int(quota.sum())]] += 1
    return quota


class MixtureData:
    """`parts` by name and their weights, of any sum."""

    def __init__(self, parts: Mapping[str, TextData], weights: Mapping[str, float]) -> None:
        """Raises UsageError for a weight that is too small to be seen once in a period."""
        self._parts = list(parts.values())
        self._weights = np.array([weights[name] for name in parts], np.float64)
        self._quota = _quotas(self._weights)
        if not self._quota.all():
            small = list(parts)[int(np.argmin(self._quota))]
            raise UsageError(f"the weight {weights[small]:g} of {small} is less than one window in {PERIOD}")
        self._chosen, self._before = pattern(self._weights)
        shares = " ".join(f"{each.digest}={n}" for each, n in zip(self._parts, self._quota.tolist(), strict=True))
        self.digest = blake2b(shares.encode(), digest_size=16).hexdigest()
        self.bits_per_nat: float | None = None
        self.n_train, self.n_val = (sum(getattr(each, name) for each in self._parts) for name in ("n_train", "n_val"))

    @property
    def order(self) -> int:
        return self._parts[0].order

    @order.setter
    def order(self, version: int) -> None:
        for each in self._parts:
            each.order = version

    def samples(self, first: int, n: int) -> tuple[Windows, Windows]:
        """The n windows of the run from number `first` on: tokens and targets, both int32 (n, ctx)."""
        periods, places = np.divmod(np.arange(first, first + n), PERIOD)
        chosen, before = self._chosen[places], self._before[places]
        found = tuple(np.empty((n, self._parts[0].ctx), np.int32) for _ in range(2))
        for i, part in enumerate(self._parts):
            here = chosen == i
            if here.any():
                rows = part.numbered(periods[here] * self._quota[i] + before[here])
                found[0][here], found[1][here] = rows
        return found[0], found[1]

    def evaluate(self, runtime: Runtime) -> tuple[float, None]:
        """Mean loss of the parts, weighted as they are mixed, nats per token."""
        losses = np.array([part.evaluate(runtime)[0] for part in self._parts])
        shares = self._quota / PERIOD
        rates = [part.bits_per_nat for part in self._parts]
        known = [rate for rate in rates if rate is not None]
        self.bits_per_nat = 1 / float(shares @ (1 / np.array(known))) if len(known) == len(rates) else None
        return float(shares @ losses), None
