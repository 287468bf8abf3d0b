"""A random order of many things, in constant memory: which of them comes when is computed, not stored.

Used by text.py and arrays.py for the order of an epoch. So the only state of an order is how far it has come, whatever
the batch and however many read it. VERSION changes when the same seed gives another order; runs begun before go on in
theirs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8  # of the Feistel network
MOST_SORTED = 256  # so many are put in order one by one
VERSION = 2  # of new runs; in version 1 the network ordered few things too, not all orders of 5 or 6 equally often


def permute(places: NDArray[np.int64], n: int, bits: np.random.Philox, version: int = VERSION) -> NDArray[np.int64]:
    """Where a random permutation of 0 .. n - 1, chosen by the bits, sends each of `places`.

    Few are sorted by a random number each, which makes all orders equally likely. Of many, a Feistel network permutes
    the numbers of 2 b bits; while its result is n or more, it is applied again, which keeps it a permutation of
    0 .. n - 1 (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    if n <= MOST_SORTED and version > 1:
        return np.argsort(bits.random_raw(n), kind="stable")[places]
    keys = bits.random_raw(ROUNDS)
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    values = _feistel(places.astype(np.uint64), half, keys)
    while (outside := values >= n).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low = np.uint64((1 << int(half)) - 1)
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return left << half | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit in changes every bit out."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
