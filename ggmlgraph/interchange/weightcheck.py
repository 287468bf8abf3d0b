"""Whether a converted model reads plain English: finds weights whose rows were taken in a wrong order.

Nothing else would tell, since every shape fits. The model reads the text as it is and, as further texts of the same
batch, as if its rows lay in each order that some format has and ours has not: rows of a matrix in another order are
columns of its result in that order, so no weight is moved. They stay in the file, and each is let go once it was used.
Used by `convert`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Program
from ggmlgraph.errors import DataError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation.decoding import OUTPUT
from ggmlgraph.generation.evaluate import log_probabilities
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.naming import RowOrder
from ggmlgraph.tokenizers.base import Tokenizer

Order = dict[str, NDArray[np.int64]]  # by name without .weight ("blk.0.attn_q"): for each row the row that is put there

MOST_CTX = 16
RELEASED_NBYTES = 1 << 20  # smaller leafs may hold what is fed, which must stay
CLEARLY_BELOW = 0.8  # of ln(n_vocab): what a trained model's loss on plain English is under
CLEARLY_BETTER = 0.99
TEXT = (
    "Once upon a time, there was a little girl who lived in a small house near the forest. Every day she went out to "
    "play with her dog. "
)


@dataclass(frozen=True)
class Check:
    """What a converted model makes of plain text."""

    loss: float  # nats per token
    ceiling: float  # ln(n_vocab), the loss of a model that knows nothing
    reordered: float  # the least loss with rows in an order that other formats have

    @property
    def passed(self) -> bool:
        return self.loss < CLEARLY_BELOW * self.ceiling and not self.permuted

    @property
    def permuted(self) -> bool:
        """Whether the model is better with its rows in another order. Trained weights are much worse then."""
        return self.reordered < CLEARLY_BETTER * self.loss


def check(path: Path, tokenizer: Tokenizer) -> Check:
    """Losses of a graph file on a built-in text.

    Raises MemoryLimitError if there is no memory to run it, DataError if its window is too short to.
    """
    base = Runtime(path, fusions=(), mapped=True)
    ids = tokenizer.encode(TEXT)
    ctx = min(MOST_CTX, len(ids) - 1, base.metadata.limits.get("ctx", MOST_CTX))
    if ctx < 1:
        raise DataError("the text is too short for it")
    orders = list(_other_orders(base.graph, base.metadata.model, base.metadata.config))
    with base.at(batch=1 + len(orders), ctx=ctx) as runtime:
        runtime.feed(np.tile(ids[:ctx], (1 + len(orders), 1)))
        logits = _run(runtime.programs.forward(OUTPUT), orders).reshape(1 + len(orders), ctx, -1)
        losses = [-float(log_probabilities(rows, ids[1 : ctx + 1]).mean()) for rows in logits]
        return Check(losses[0], math.log(logits.shape[-1]), min(losses[1:], default=math.inf))


def _other_orders(graph: CoreGraph, architecture: str, config: Mapping[str, Any]) -> Iterator[Order]:
    """The orders of rows that some format has and we have not, there and back: what a mistake would leave."""
    n_rows = {graph.name(i): graph.shape(i)[0] for i in range(len(graph)) if graph.op(i) == "none" and graph.shape(i)}
    seen: list[Order] = []
    for known in naming.formats(architecture).values():
        there: Order = {}
        for name, n in n_rows.items():
            stem, _, kind = name.rpartition(".")
            order = known.row_order(name)
            if kind == "weight" and isinstance(order, RowOrder):
                there[stem] = order.index(n, config)
        back = {stem: np.argsort(index) for stem, index in there.items()}
        for found in (there, back):
            if found and not any(_same(found, other) for other in seen):
                seen.append(found)
                yield found


def _same(a: Order, b: Order) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[stem], b[stem]) for stem in a)


def _run(program: Program, orders: list[Order]) -> NDArray[np.float32]:
    """The output, for the first text as the graph computes it, for the others with rows of weights in other orders."""
    graph = program.graph
    sources = [[s for s in graph.src(i) if s >= 0 and graph.is_leaf(s)] for i in range(len(graph))]
    last_use = {graph.name(s).rpartition(".")[0]: i for i, leafs in enumerate(sources) for s in leafs}
    begin = 0
    for stem, i in sorted(last_use.items(), key=lambda item: item[1]):  # whose result is that of the weights together
        if any(stem in order for order in orders):
            program.run(begin, i + 1)
            _reorder(program.array(i), stem, orders)
            begin = _release(graph, sources, begin, i + 1)
    program.run(begin)
    _release(graph, sources, begin, len(graph))
    return program.array(graph.find(OUTPUT))


def _release(graph: CoreGraph, sources: list[list[int]], begin: int, end: int) -> int:
    """Let go of the weights that nodes begin .. end have used; returns the end."""
    for s in {s for leafs in sources[begin:end] for s in leafs}:
        if graph.nbytes(s) >= RELEASED_NBYTES:
            graph.release(s)
    return end


def _reorder(result: NDArray[np.float32], stem: str, orders: list[Order]) -> None:
    texts = result.reshape(1 + len(orders), -1, result.shape[-1])
    for text, order in zip(texts[1:], orders, strict=True):
        if stem in order:
            text[...] = text[:, order[stem]]
