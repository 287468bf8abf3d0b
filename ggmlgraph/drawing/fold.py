"""Repeated blocks of a graph, found and proved: layers that are alike become one block with the number of its copies.

Names need not help. Operations in order are a text whose letters are their kinds; a run of blocks is a stretch that
equals itself some letters later. Whether two such stretches are the same computation is then checked wire by wire:
what is inside must come from the same place inside, what is carried from one block to the next must be carried by
all, what comes from outside must be the same tensor, or weights of the same kind that the block has for itself, or
results of the same size and equally far apart, as the backward pass of each layer takes its own layer's.
Blocks within blocks are found in the same way. Used by `diagram`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.drawing.operations import Operation, Operations, Way

LEAST_HIDDEN = 4  # operations that a fold must save
WINDOW = 4  # letters whose coming back suggests a period
MOST_PERIODS = 64  # suggestions tried in a stretch
MOST_STARTS = 16  # and places where the first block may begin


@dataclass(frozen=True)
class Repeat:
    """`len(copies)` blocks that are the same computation, each on what the one before it left."""

    copies: tuple[tuple[Operation, ...], ...]
    body: tuple[Item, ...]  # the first copy, itself folded


@dataclass(frozen=True)
class Part:
    """Items that are one box because there are too many to see at once; nothing is said of what they have in common."""

    items: tuple[Item, ...]


Item: TypeAlias = Operation | Repeat | Part


@dataclass(frozen=True)
class _Run:
    """Where blocks stand in the list of operations."""

    start: int
    period: int
    n: int

    @property
    def end(self) -> int:
        return self.start + self.n * self.period

    @property
    def hidden(self) -> int:
        return (self.n - 1) * self.period


def fold(operations: Operations) -> tuple[Item, ...]:
    """All operations, in order, those of repeated blocks in `Repeat`s."""
    return _Folder(operations).fold(0, len(operations.listed))


class _Folder:
    """The operations as a text, and what is needed to compare parts of it."""

    def __init__(self, operations: Operations) -> None:
        self.listed, self.leafs = operations.listed, operations.leafs
        self.place = {operation.id: i for i, operation in enumerate(self.listed)}
        self.letters = self._letters()
        self.cuts = cuts(operations)

    def _letters(self) -> NDArray[np.int64]:
        numbers: dict[Hashable, int] = {}
        kinds = ((o.kind, tuple((w.seen, self._kind(w)) for w in o.ways)) for o in self.listed)
        return np.array([numbers.setdefault(kind, len(numbers)) for kind in kinds], np.int64)

    def _kind(self, way: Way) -> Hashable:
        """Of what an operation takes, as far as it does not depend on where that stands."""
        return self.leafs[way.source].kind if way.source in self.leafs else None

    # ------------------------------------------------------------ folding

    def fold(self, begin: int, end: int) -> tuple[Item, ...]:
        """The operations of a stretch; the run that hides the most of them first."""
        items: list[Item] = []
        todo = [(begin, end)]
        while todo:
            begin, end = todo.pop()
            run = self._best(begin, end)
            if run is None:
                items.extend(self.listed[begin:end])
            elif (begin, end) == (run.start, run.end):
                items.append(self._repeat(run))
            else:
                todo += [(run.end, end), (run.start, run.end), (begin, run.start)]
        return tuple(items)

    def _repeat(self, run: _Run) -> Repeat:
        starts = range(run.start, run.end, run.period)
        copies = tuple(self.listed[start : start + run.period] for start in starts)
        return Repeat(copies, self.fold(run.start, run.start + run.period))

    def _best(self, begin: int, end: int) -> _Run | None:
        """The run that hides most; of those that hide as much, that of the shortest block."""
        found: list[_Run] = []
        for period in self._periods(begin, end):
            found += self._stretches(begin, end, period)
        best: _Run | None = None
        for run in sorted(found, key=lambda run: (-run.hidden, run.period)):
            if run.hidden < (best.hidden if best else LEAST_HIDDEN):
                break
            proved = self._proved(run)
            if proved.hidden >= LEAST_HIDDEN and (best is None or proved.hidden > best.hidden):
                best = proved
        return best

    def _periods(self, begin: int, end: int) -> list[int]:
        """After how many letters a few of them most often come again."""
        text = self.letters[begin:end]
        seen: dict[bytes, int] = {}
        distances: Counter[int] = Counter()
        for i in range(len(text) - WINDOW + 1):
            window = text[i : i + WINDOW].tobytes()
            if window in seen:
                distances[i - seen[window]] += 1
            seen[window] = i
        return [distance for distance, _ in distances.most_common(MOST_PERIODS)]

    def _stretches(self, begin: int, end: int, period: int) -> list[_Run]:
        """Where the text is the same `period` letters later, for at least a block."""
        text = self.letters[begin:end]
        same = np.concatenate(([False], text[:-period] == text[period:], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        runs = []
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            n, rest = divmod(int(last - first), period)
            if n:
                runs.append(_Run(self._start(begin + int(first), rest), period, n + 1))
        return runs

    def _start(self, first: int, rest: int) -> int:
        """Of the places where as many blocks can begin, the first at which the fewest results are on their way."""
        return first + int(np.argmin(self.cuts[first : first + rest + 1]))

    # ------------------------------------------------------------ proof

    def _proved(self, run: _Run) -> _Run:
        """The longest part of a run whose blocks are the same computation."""
        best, start = _Run(run.start, run.period, 1), run.start
        while start + 2 * run.period <= run.end:
            blocks = _Blocks(self, start, run.period)
            n = 1
            while start + (n + 1) * run.period <= run.end and blocks.follows(n):
                n += 1
            if n > best.n:
                best = _Run(start, run.period, n)
            start += n * run.period
        return best


class _Blocks:
    """Blocks that begin at `first`, compared one with the next."""

    def __init__(self, text: _Folder, first: int, period: int) -> None:
        self.text, self.first, self.period = text, first, period
        self.entries: dict[int, int] = {}  # what the first block takes from outside for what others carry
        self.steps: dict[tuple[int, int], int] = {}  # by operation and source: how far on the next block reads

    def follows(self, k: int) -> bool:
        """Whether block k is wired as the block before it."""
        listed, start = self.text.listed, self.first + k * self.period
        leafs: dict[int, int] = {}
        for j in range(self.period):
            before, after = listed[start + j - self.period], listed[start + j]
            for i, (a, b) in enumerate(zip(before.ways, after.ways, strict=True)):
                if b.source in self.text.leafs:
                    if leafs.setdefault(a.source, b.source) != b.source:
                        return False
                elif not self._matches(self.text.place[a.source], self.text.place[b.source], start, (j, i)):
                    return False
        return len(set(leafs.values())) == len(leafs)

    def _matches(self, a: int, b: int, start: int, slot: tuple[int, int]) -> bool:
        """Whether the operation at a is to the block before what that at b is to the block at `start`."""
        if b >= start or (b >= start - self.period > self.first):
            return a == b - self.period  # inside of the block, or carried from the one before
        if a == b < self.first:
            return self.steps.setdefault(slot, 0) == 0  # shared by all
        if a >= self.first:
            return False
        if b >= self.first:
            return self.entries.setdefault(b, a) == a
        return self.steps.setdefault(slot, b - a) == b - a  # each block's own, equally far apart


def cuts(operations: Operations) -> NDArray[np.int64]:
    """How many results are still to be read when the operation at a place comes: few where a block begins."""
    listed = operations.listed
    place = {operation.id: i for i, operation in enumerate(listed)}
    change = np.zeros(len(listed) + 1, np.int64)
    last = list(range(len(listed)))
    for i, operation in enumerate(listed):
        for way in operation.ways:
            if way.source in place:
                last[place[way.source]] = i
    for i, end in enumerate(last):
        change[i + 1] += 1
        if end + 1 < len(change):
            change[end + 1] -= 1
    return np.cumsum(change)


def operations_of(item: Item) -> Iterator[Operation]:
    """Those of an item, of all copies."""
    if isinstance(item, Repeat):
        for copy in item.copies:
            yield from copy
    elif isinstance(item, Part):
        for each in item.items:
            yield from operations_of(each)
    else:
        yield item
