"""The training program of a loss: forward pass, gradients and updates in one graph.

The graph it is made of stays as it is. Used by `programs.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.execution.optimizers import Update
from ggmlgraph.table.dialect import LOSS, OUTPUT, PARAM
from ggmlgraph.table.op import TABLE

DROPOUT_KEY = "dropout.key"  # leaf of a training graph
_WORD = 0xFFFFFFFF
UPDATES = [name for name, op in TABLE.items() if op.sources[-2:] == ("hyper", "sum_sqr")]


@dataclass(frozen=True)
class Settings:
    """How programs of a graph are made."""

    isa: str | None  # None: the best level
    matmul_precision: str
    fusions: int  # GG_FUSE_*


class TrainProgram(Program):
    """Node numbers divide its run: up to `loss` evaluates, up to `n_gradient` differentiates, the rest updates.

    recompute: how much of the forward pass is computed again instead of kept, 0 to `max_recompute`.
    """

    def __init__(
        self,
        forward: CoreGraph,
        updates: Mapping[str, Update],
        accumulate: int,
        pool: Pool,
        settings: Settings,
        recompute: int = 0,
    ) -> None:
        """forward: of `forward_of`; it becomes this program's. updates: of parameters by name."""
        self.recompute = recompute
        graph, self.max_recompute = _differentiate(forward, settings.fusions, recompute)
        self.share, self.loss = _share_and_loss(graph)
        self.keep = passes.accumulate(graph) if accumulate > 1 else -1
        self.n_gradient = len(graph)
        trained = [i for i in graph.flagged(PARAM) if passes.gradient_of(graph, i) >= 0]
        self.params = {graph.name(i): i for i in trained}
        passes.optimize(graph, {i: updates[graph.name(i)] for i in trained})
        self.hypers = {op: i for op in UPDATES if (i := graph.find(f"{op}.hyper")) >= 0}
        self.states = _states(graph, self.n_gradient)
        self.sum_sqr = graph.src(next(i for i in range(self.n_gradient, len(graph)) if graph.op(i) in UPDATES))[-1]
        graph.set_flags(self.sum_sqr, graph.flags(self.sum_sqr) | OUTPUT)
        self.key = graph.find(DROPOUT_KEY)
        super().__init__(graph, pool, settings.isa, settings.matmul_precision)

    @property
    def n_values(self) -> int:
        """Number of values that have a gradient."""
        return sum(math.prod(self.graph.shape(param)) for param in self.params.values())

    def gradients(self, into: NDArray[np.float32]) -> NDArray[np.float32]:
        """Copy the gradients, as the last run left them, one behind the other in the parameters' order."""
        for part, gradient in self._gradients(into):
            part[...] = gradient
        return into

    def set_gradients(self, values: NDArray[np.float32]) -> None:
        """Put others in their place, for what updates the parameters."""
        for part, gradient in self._gradients(values):
            gradient[...] = part

    def _gradients(self, flat: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Parts of `flat`, each with the gradient that it is of."""
        begin = 0
        for param in self.params.values():
            gradient = self.array(passes.gradient_of(self.graph, param))
            part = flat[begin : begin + gradient.size]
            begin += gradient.size
            yield part.reshape(gradient.shape), gradient

    @property
    def averages(self) -> dict[str, NDArray[Any]]:
        """Averages of parameters by name, where some are kept: flat."""
        found = {name: leafs["average"] for name, leafs in self.states.items() if "average" in leafs}
        return {name: self.leaf(i) for name, i in found.items()}

    def flops_of_step(self, accumulate: int) -> tuple[float, float]:
        """Operations of the gradients of so many micro-batches, and of the update."""
        return accumulate * self.flops(0, self.n_gradient), self.flops(self.n_gradient, self.end)

    def drop(self, seed: int, step: int, part: int) -> None:
        """What is dropped from now on: another mask for each step and each of its micro-batches, 0, 1, ..."""
        if self.key >= 0:
            words = (seed & _WORD, seed >> 32, step & _WORD, part + 1)
            self.leaf(self.key)[...] = np.array(words, np.uint32).view(np.int32)

    def drop_nothing(self) -> None:
        """Evaluate from now on."""
        if self.key >= 0:
            self.leaf(self.key)[...] = 0


def forward_of(
    graph: CoreGraph,
    loss: int,
    roots: Sequence[int],
    settings: Settings,
    *,
    dropout: Mapping[int, float],
    divisor: int = 1,
) -> CoreGraph:
    """The fused forward graph of a loss, and of `roots` besides. dropout: rates by node. divisor: what is
    differentiated is the loss divided by it, a micro-batch's share of the whole batch's mean."""
    if dropout:
        graph, loss, roots = passes.dropout(graph, dropout), loss + 1, [root + 1 for root in roots]
    if divisor > 1:
        graph = passes.copy(graph)
        graph.set_flags(loss, graph.flags(loss) & ~LOSS)
        share = graph.node(TABLE["scale"], [loss], {"s": 1.0 / divisor})
        graph.set_flags(share, LOSS)
        roots = [loss, *roots]
        loss = share
    return passes.fuse(graph, list(dict.fromkeys([loss, *roots])), settings.fusions, train=True)


def _differentiate(graph: CoreGraph, fusions: int, recompute: int) -> tuple[CoreGraph, int]:
    """Forward and backward pass of the one loss, and how far `recompute` can go."""
    loss = graph.flagged(LOSS)[0]
    passes.differentiate(graph, loss)
    n_levels = passes.recompute_levels(graph, loss)
    if recompute:
        graph = passes.recompute(graph, loss, recompute)
    return passes.fuse_gradients(graph, graph.flagged(OUTPUT), fusions), n_levels


def _states(graph: CoreGraph, begin: int) -> dict[str, dict[str, int]]:
    """What updates keep from step to step: by parameter, the leafs that its ops write, by their names in the table."""
    states: dict[str, dict[str, int]] = {}
    found: dict[str, int] = {}  # of the parameter whose update follows
    for i in range(begin, len(graph)):
        row = None if graph.is_leaf(i) else TABLE[graph.op(i)]
        if row is None:
            continue
        sources = dict(zip(row.sources, graph.src(i), strict=True))
        found |= {name: sources[name] for name in row.writes if name != "p"}
        if row.name in UPDATES and "p" in sources:
            param = graph.name(graph.base(sources["p"]))
            states[param] = states.get(param, {}) | found
            found = {}
    return states


def _share_and_loss(graph: CoreGraph) -> tuple[int, int]:
    """What is differentiated, and the loss that it is a share of, or itself."""
    share = graph.flagged(LOSS)[0]
    source = graph.src(share)[0] if graph.op(share) == "scale" else -1
    return share, source if source in graph.flagged(OUTPUT) else share
