"""What is left of a large graph, folded, in parts that can be seen at once, and these in parts of their own.

A part ends where few results are on their way to what follows. Used by `ggmlgraph draw` where there are too many boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.drawing.fold import Item, Part, Repeat, cuts, operations_of
from ggmlgraph.drawing.operations import Operations

MOST_ITEMS = 60  # of a part, and of the whole
MOST_PARTS = 30
SLACK = 4  # a part may be longer or shorter by one in so many of its items


def parted(items: Sequence[Item], operations: Operations) -> tuple[Item, ...]:
    """The items, or parts of them; the insides of repeated blocks likewise."""
    place = {operation.id: i for i, operation in enumerate(operations.listed)}
    return _Parts(place, cuts(operations)).of(items)


class _Parts:
    def __init__(self, place: dict[int, int], cut: NDArray[np.int64]) -> None:
        self._place, self._cut = place, cut

    def of(self, items: Sequence[Item]) -> tuple[Item, ...]:
        n = min(MOST_PARTS, math.ceil(len(items) / MOST_ITEMS))
        if n < 2:
            return tuple(self._inside(item) for item in items)
        edges = [0, *(self._edge(items, len(items) / n, k) for k in range(1, n)), len(items)]
        return tuple(Part(self.of(items[begin:end])) for begin, end in pairwise(edges))

    def _inside(self, item: Item) -> Item:
        return replace(item, body=self.of(item.body)) if isinstance(item, Repeat) else item

    def _edge(self, items: Sequence[Item], size: float, k: int) -> int:
        """Where part k begins: of the places near its share, the one at which the fewest results are on their way."""
        near = range(math.ceil(k * size - size / SLACK), math.floor(k * size + size / SLACK) + 1)
        return min(near, key=lambda i: (self._cut[self._place[next(operations_of(items[i])).id]], abs(i - k * size)))
