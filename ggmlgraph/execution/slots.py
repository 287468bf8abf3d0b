"""The gradient of a step as a sum over slots: the same bits however many processes share them out.

A step of `accumulate` micro-batches is divided into equal slots. A slot's micro-batches are added up in order, as the
graph does it; the slots are added by a binary tree over their numbers, which splits n slots at the largest power of two
below n. Floating-point sums depend on their order and on nothing else, so ranks that each compute a range of slots and
add up along the tree find what one process finds. Used by `Runtime`; cluster/mpi.py is the `Ranks` of several machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """The slots index * 2**level up to those of the next block of that level: a node of the tree."""

    level: int
    index: int

    @property
    def is_right(self) -> bool:
        return self.index % 2 == 1

    @property
    def parent(self) -> Block:
        return Block(self.level + 1, self.index // 2)


class TreeSum:
    """Sums of neighbouring blocks, float32 (n): those that make up a block of the next level become one."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._open: list[tuple[Block, Values]] = []
        self._spare: list[Values] = []

    def buffer(self) -> Values:
        """Memory for the next block, to be filled and given to `add`."""
        return self._spare.pop() if self._spare else np.empty(self._n, np.float32)

    def add(self, block: Block, values: Values) -> None:
        """Take the sum of the block that follows those added so far. `values` belong to the tree from now on."""
        while block.is_right and self._open and self._open[-1][0] == Block(block.level, block.index - 1):
            values = self._merge(values)
            block = block.parent
        self._open.append((block, values))

    def blocks(self) -> Iterator[tuple[Block, Values]]:
        """The blocks that wait for others, in the order of their slots."""
        return iter(self._open)

    def total(self) -> Values:
        """The sum of all: what the tree's right edge lacks is left out. Valid until `clear`."""
        _, values = self._open.pop()
        while self._open:
            values = self._merge(values)
        self._open.append((Block(0, 0), values))
        return values

    def clear(self) -> None:
        """Begin the next step; the memory stays."""
        self._spare += [values for _, values in self._open]
        self._open.clear()

    def _merge(self, right: Values) -> Values:
        _, left = self._open.pop()
        np.add(left, right, out=left)
        self._spare.append(right)
        return left


Facts = Mapping[str, Any]  # JSON values
Kind = Literal["run", "state", "step", "check", "end"]  # of what rank 0 has the others do (library/following.py)


class Ranks(Protocol):
    """The processes that compute a step together. Rank 0 decides, the others follow."""

    rank: int  # of this one, 0 to size - 1
    size: int

    def lead(self, kind: Kind, facts: Facts, arrays: Mapping[str, NDArray[Any]]) -> None:
        """By rank 0: have the others do something. By others: nothing."""

    def share(self, arrays: Iterable[NDArray[Any]]) -> None:
        """Rank 0's values in place of the others'."""

    def total(self, mine: TreeSum, n_slots: int) -> Values:
        """The sum of all ranks' slots, of which this one has `mine`."""

    def gathered(self, numbers: list[float]) -> list[float]:
        """All ranks' numbers, in the order of the ranks."""


class Alone:
    """One process, which computes all slots."""

    rank, size = 0, 1

    def lead(self, kind: Kind, facts: Facts, arrays: Mapping[str, NDArray[Any]]) -> None:
        pass

    def share(self, arrays: Iterable[NDArray[Any]]) -> None:
        pass

    def total(self, mine: TreeSum, n_slots: int) -> Values:
        return mine.total()

    def gathered(self, numbers: list[float]) -> list[float]:
        return numbers


def slots_of(rank: int, n_ranks: int, n_slots: int) -> range:
    """The slots that a rank computes."""
    return range(rank * n_slots // n_ranks, (rank + 1) * n_slots // n_ranks)


def blocks_of(slots: range) -> Iterator[Block]:
    """The blocks that remain of a range of slots when all that can be added up within it is."""
    begin = slots.start
    while begin < slots.stop:
        most = (slots.stop - begin).bit_length() - 1
        level = min(most, (begin & -begin).bit_length() - 1) if begin else most
        yield Block(level, begin >> level)
        begin += 1 << level
