"""Random graphs: results and gradients are those of float64, whatever is fused, for any number of threads.

RANDOM_GRAPHS=100000 checks so many instead of a few thousand.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from graphcheck import check

N_GRAPHS = int(os.environ.get("RANDOM_GRAPHS", "2000"))
N_PARTS = 8  # for as many processes


@pytest.mark.parametrize("part", range(N_PARTS))
def test_results_and_gradients_are_those_of_float64_for_any_number_of_threads(part: int) -> None:
    outcomes = Counter(check(seed) for seed in range(part, N_GRAPHS, N_PARTS))
    assert outcomes["refused"] <= 0.15 * outcomes.total() + 5
