"""Random orders: permutations, each thing anywhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ggmlgraph.data.order import permute
from ggmlgraph.philox import philox


@given(n=st.integers(1, 3000), seed=st.integers(0, 9))
def test_permutation_is_a_permutation(n: int, seed: int) -> None:
    order = permute(np.arange(n), n, philox(seed, "test").random_raw(8))
    assert np.array_equal(np.sort(order), np.arange(n))


def test_permutation_puts_every_window_everywhere() -> None:
    """Where the first of 5 windows goes over 2000 keys: chi-squared, 4 degrees of freedom, 0.1 % level."""
    places = [int(permute(np.zeros(1, np.int64), 5, philox(0, str(i)).random_raw(8))[0]) for i in range(2000)]
    counts = np.bincount(places, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5
