"""A graph as it is drawn: the operations alone, each with what it takes, whatever lies between as a view.

A tensor that only looks at another's elements, or lays them out anew, is no box of a picture; it is part of the `Way`
from the operation that made them to the one that reads them. Used by `fold` and `diagram`.
"""

from __future__ import annotations

from collections.abc import Hashable, Set
from dataclasses import dataclass

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Program
from ggmlgraph.table.dialect import INPUT, LOSS, OUTPUT, PARAM
from ggmlgraph.table.op import TABLE

LAID_OUT = frozenset({"cont", "dup"})  # copies that change no element, drawn as the views are
MEMORY = frozenset({"empty"})  # what others write to; no box, and nothing that anyone takes
KEPT = OUTPUT | LOSS  # what has these flags is always a box


@dataclass(frozen=True)
class Way:
    """How an operation comes to a source."""

    source: int  # id of an operation or leaf
    seen: Hashable  # how: type and layout of what it sees, and the views between that move elements


@dataclass(frozen=True)
class Operation:
    """One box that is no leaf."""

    id: int
    op: str  # of the op table
    name: str  # "" if it has none
    shape: tuple[int, ...]  # as all that reads it sees it, if that is one and the same
    kind: Hashable  # op, attributes, layout, type: what copies of one another have in common
    ways: tuple[Way, ...]
    flops: float  # of matrix products
    nbytes: int  # of the result
    is_output: bool


@dataclass(frozen=True)
class Leaf:
    """Weights, an input, or numbers that the file has."""

    id: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    n_elements: int
    is_param: bool
    is_input: bool

    @property
    def kind(self) -> Hashable:
        """What leafs of copies have in common."""
        return self.dtype, self.shape, self.is_param, self.is_input


@dataclass(frozen=True)
class Operations:
    """The operations in an order in which sources come first, and the leafs by id."""

    listed: tuple[Operation, ...]
    leafs: dict[int, Leaf]


def of_program(program: Program, end: int | None = None) -> Operations:
    """The operations of a program, of which nothing runs, up to tensor `end`."""
    reader = _Reader(program)
    drawn = [i for i in range(len(program.graph))[:end] if reader.is_drawn(i)]
    listed = tuple(reader.operation(i) for i in _in_order(reader, drawn))
    used = {way.source for operation in listed for way in operation.ways}
    leafs = {i: _leaf(program.graph, i) for i in sorted(used) if program.graph.is_leaf(i)}
    return Operations(listed, leafs)


class _Reader:
    """Sees operations in the tensors of a program."""

    def __init__(self, program: Program) -> None:
        self.program, self.graph = program, program.graph
        self.readers: dict[int, list[int]] = {}
        for i in range(len(self.graph)):
            for source in self._sources(i):
                self.readers.setdefault(source, []).append(i)

    def _sources(self, i: int) -> list[int]:
        """What a tensor is made of; of one that another has written, that other."""
        if self.graph.is_leaf(i):
            return []
        op, src = TABLE[self.graph.op(i)], self.graph.src(i)
        if op.kernel is None and "by" in op.sources:
            return [src[op.sources.index("by")]]
        taken = [s for name, s in zip(op.sources, src, strict=False) if s not in (-1, i) and name not in op.layouts]
        return [s for s in taken if self.graph.op(s) not in MEMORY]

    def is_drawn(self, i: int) -> bool:
        graph = self.graph
        return not (graph.is_leaf(i) or graph.op(i) in MEMORY or self._is_view(i))

    def _is_view(self, i: int) -> bool:
        graph = self.graph
        if graph.is_leaf(i) or graph.flags(i) & KEPT or len(self._sources(i)) != 1:
            return False
        return graph.op(i) in LAID_OUT or TABLE[graph.op(i)].kernel is None

    def _shown(self, i: int) -> tuple[int, ...]:
        while len(readers := self.readers.get(i, [])) == 1 and self._is_view(readers[0]):
            i = readers[0]
        return self.graph.shape(i)

    def way(self, i: int) -> Way:
        """To the operation or leaf that tensor i shows."""
        seen: list[Hashable] = [(self.graph.dtype(i), self.graph.shape(i), self.graph.strides(i))]
        while self._is_view(i):
            if self.graph.op(i) != "reshape":
                seen.append(self._described(i))
            i = self._sources(i)[0]
        return Way(i, tuple(seen))

    def _described(self, i: int) -> Hashable:
        graph = self.graph
        return graph.op(i), tuple(graph.op_params(i)), graph.dtype(i), graph.shape(i), graph.strides(i)

    def operation(self, i: int) -> Operation:
        graph = self.graph
        kind = (self._described(i), tuple(s >= 0 for s in graph.src(i)))
        ways = tuple(self.way(s) for s in self._sources(i))
        is_output = bool(graph.flags(i) & KEPT)
        flops, nbytes = self.program.flops(i), graph.nbytes(i)
        return Operation(i, graph.op(i), graph.name(i), self._shown(i), kind, ways, flops, nbytes, is_output)

    def rests_on_weights(self, i: int, resting: Set[int]) -> bool:
        """Whether an operation takes weights, or something that rests on them."""
        sources = [self.way(s).source for s in self._sources(i)]
        return any(s in resting or self.graph.flags(s) & PARAM for s in sources)


def _in_order(reader: _Reader, drawn: list[int]) -> list[int]:
    """First what follows from no weights: what all layers share would else stand inside the first of them."""
    resting: set[int] = set()
    for i in drawn:
        if reader.rests_on_weights(i, resting):
            resting.add(i)
    return [i for i in drawn if i not in resting] + [i for i in drawn if i in resting]


def _leaf(graph: CoreGraph, i: int) -> Leaf:
    n, shape = 1, graph.shape(i)
    for size in shape:
        n *= size
    flags = graph.flags(i)
    return Leaf(i, graph.name(i), graph.dtype(i), shape, n, bool(flags & PARAM), bool(flags & INPUT))
