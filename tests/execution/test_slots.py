"""A step divided into slots: sums that depend on the slots and not on who computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import ggmlgraph as gg
from ggmlgraph.errors import UsageError
from ggmlgraph.execution.slots import Block, TreeSum, Values, blocks_of, slots_of
from ggmlgraph.models import llama


class Share:
    """One of several processes, of which a test collects what the others have."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    lead = share = total = gathered = None


def summed(values: NDArray[np.float32], ranks: int) -> Values:
    """What `ranks` processes find for the sum over the first axis."""
    whole = TreeSum(values.shape[1])
    for rank in range(ranks):
        part = TreeSum(values.shape[1])
        for slot in slots_of(rank, ranks, len(values)):
            part.add(Block(0, slot), values[slot].copy())
        assert [block for block, _ in part.blocks()] == list(blocks_of(slots_of(rank, ranks, len(values))))
        for block, partial in part.blocks():
            whole.add(block, partial.copy())
    return whole.total()


def by_definition(values: NDArray[np.float32]) -> Values:
    """The tree that splits n at the largest power of two below n."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    return by_definition(values[:half]) + by_definition(values[half:])


@given(st.integers(1, 40), st.data())
def test_sum_over_slots_is_the_same_for_every_number_of_ranks(n_slots: int, data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, n_slots))
    values = np.random.default_rng(n_slots).standard_normal((n_slots, 64)).astype(np.float32)
    np.testing.assert_array_equal(summed(values, ranks), by_definition(values))


def test_order_of_the_sum_matters() -> None:
    values = np.random.default_rng(0).standard_normal((7, 4096)).astype(np.float32)
    in_order = values[0].copy()
    for row in values[1:]:
        in_order += row
    assert (summed(values, 3) != in_order).any()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slots") / "graph.bin"
    config = llama.Config(n_vocab=32, n_embd=24, n_head=2, n_layer=1, n_ff=48)
    gg.trace(llama.loss, config, batch=1, ctx=16).save(path)
    return path


def batch_of(n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    tokens = np.random.default_rng(n).integers(0, 32, (n, 17)).astype(np.int32)
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def test_slots_find_the_gradient_of_the_whole_batch(graph: Path) -> None:
    batch = batch_of(12)
    with gg.Runtime(graph, batch=12) as whole, gg.Runtime(graph, batch=2, accumulate=6, slots=3) as parts:
        assert parts.backward(batch) == pytest.approx(whole.backward(batch), rel=1e-6)
        for name in whole.params:
            np.testing.assert_allclose(parts.gradient(name), whole.gradient(name), rtol=1e-4, atol=1e-7)


def test_steps_of_slots_train(graph: Path) -> None:
    with gg.Runtime(graph, batch=1, accumulate=4, slots=4) as rt:
        losses = [rt.step(batch_of(4), lr=1e-2).loss for _ in range(10)]
    assert losses[-1] < losses[0]


def test_slots_that_do_not_divide_the_micro_batches_are_refused(graph: Path) -> None:
    with pytest.raises(UsageError, match="slots 3 do not divide the 4 micro-batches of a step"):
        gg.Runtime(graph, accumulate=4, slots=3)


def test_more_ranks_than_slots_are_refused(graph: Path) -> None:
    with pytest.raises(UsageError, match="3 ranks for 2 slots: each needs at least one"):
        gg.Runtime(graph, accumulate=4, slots=2, ranks=Share(0, 3))
