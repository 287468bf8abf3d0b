"""Random orders: permutations, each thing anywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggmlgraph.data.order import MOST_SORTED, permute
from ggmlgraph.philox import philox


@given(n=st.integers(1, 3000), seed=st.integers(0, 9))
def test_permutation_is_a_permutation(n: int, seed: int) -> None:
    order = permute(np.arange(n), n, philox(seed, "test"))
    assert np.array_equal(np.sort(order), np.arange(n))


def test_permutation_puts_every_window_everywhere() -> None:
    """Where the first of 5 windows goes over 20000 keys: chi-squared, 4 degrees of freedom, 0.1 % level."""
    places = [int(permute(np.zeros(1, np.int64), 5, philox(0, str(i)))[0]) for i in range(20000)]
    counts = np.bincount(places, minlength=5)
    assert ((counts - 4000) ** 2 / 4000).sum() < 18.5


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_orders_of_few_are_equally_likely(n: int) -> None:
    """Chi-squared over all n! orders, at the 0.1 % level (Wilson and Hilferty's approximation)."""
    orders = {order: i for i, order in enumerate(itertools.permutations(range(n)))}
    n_draws = 20 * len(orders)
    counts = np.zeros(len(orders))
    for i in range(n_draws):
        counts[orders[tuple(permute(np.arange(n), n, philox(n, str(i))).tolist())]] += 1
    k = len(orders) - 1
    most = k * (1 - 2 / (9 * k) + 3.09 * (2 / (9 * k)) ** 0.5) ** 3
    assert ((counts - 20) ** 2 / 20).sum() < most


@pytest.mark.parametrize("n", [MOST_SORTED + 1, 1000, 4097])
def test_neighbours_in_an_order_of_many_are_strangers(n: int) -> None:
    """How far apart windows are that follow one another: as for random pairs, mean (n² - 1) / 3 n, within 4 sigma."""
    distances = [np.abs(np.diff(permute(np.arange(n), n, philox(0, str(i))))).mean() for i in range(200)]
    sigma = n / 18**0.5 / (200 * n) ** 0.5
    assert abs(np.mean(distances) - (n * n - 1) / (3 * n)) < 4 * sigma


def test_the_first_version_of_orders_is_what_it_was() -> None:
    assert permute(np.arange(6), 6, philox(0, "epoch"), 1).tolist() == [5, 0, 3, 2, 1, 4]
