"""Reading texts on and on: the logits of the next token, while what was read before is not computed again.

A `CachedReader` keeps keys and values of every position; the runtime derives its programs from the graph (gg_cache),
whatever model it is. Where that cannot be done, because an op other than causal attention mixes positions or the graph
has a fixed size, a `WindowReader` computes the whole window anew for each token. Used by `generate` and `evaluate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Cost, Program
from ggmlgraph.errors import UnsupportedError
from ggmlgraph.execution.runtime import Runtime

OUTPUT = "logits"
CHUNKS = (256, 32, 8)  # positions of the programs that read a prompt
FLOPS_PER_THREAD = 2e6  # of a run; a thread with less to do costs more in waiting than it saves
Logits = NDArray[np.float32]


class TokenReader(ABC):
    """Texts of one batch, read in step.

    batch: the most texts. ctx: the most positions. read: the first text's tokens so far. slow: why each token computes
    the whole window anew; empty where it does not.
    """

    def __init__(self, batch: int, ctx: int, slow: str = "") -> None:
        self.batch, self.ctx, self.slow = batch, ctx, slow
        self.read: list[int] = []

    @property
    def n_past(self) -> int:
        """Positions read: the number of the next."""
        return len(self.read)

    def advance(self, tokens: NDArray[np.int32]) -> Logits:
        """Read further tokens, int32 (n_texts, n); float32 (n_texts, n_vocab), of the token after them, until the next
        call. n_texts is at most batch, n_past + n at most ctx.
        """
        logits = self._advance(tokens)
        self.read += tokens[0].tolist()
        return logits[: len(tokens)]

    def rewind(self, n_past: int) -> None:
        """Forget all but the first n_past positions."""
        del self.read[n_past:]

    def n_known(self, tokens: Sequence[int]) -> int:
        """How many of a text's tokens, from the first on, the first text read begins with: where to rewind to."""
        pairs = zip(self.read, tokens, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.read), len(tokens)))

    @abstractmethod
    def _advance(self, tokens: NDArray[np.int32]) -> Logits:
        """As `advance`; float32 (batch, n_vocab)."""

    @abstractmethod
    def cost(self) -> Cost:
        """Memory and arithmetic of reading one token."""


def reader_of(runtime: Runtime, batch: int = 1) -> TokenReader:
    """The fastest reader the graph allows, for at least `batch` texts of up to the runtime's ctx tokens."""
    try:
        return CachedReader(runtime, batch)
    except UnsupportedError as error:
        return WindowReader(runtime, batch, str(error))


class CachedReader(TokenReader):
    """See the module. Raises UnsupportedError, naming the node, if the graph mixes positions."""

    def __init__(self, runtime: Runtime, batch: int = 1) -> None:
        super().__init__(batch, runtime.window[1])
        self._runtime = runtime
        self._chunks: dict[int, _Chunk] = {}
        self._chunk(min(CHUNKS))  # with more than one position, which is what shows how the graph mixes them
        self._step = self._chunk(1)

    def _chunk(self, n: int) -> _Chunk:
        if n not in self._chunks:
            first = next(iter(self._chunks.values()), None)
            self._chunks[n] = _Chunk(self._runtime, self.batch, n, self.ctx, first)
        return self._chunks[n]

    def _advance(self, tokens: NDArray[np.int32]) -> Logits:
        done, last = 0, tokens.shape[1] - 1
        while done < last:  # the last token by itself: of the others no logits are needed
            size = next((size for size in CHUNKS if last - done > size // 2), 1)
            part = tokens[:, done : min(done + size, last)]
            self._chunk(size).read(part, self.n_past + done)
            done += part.shape[1]
        return self._step.logits(tokens[:, last:], self.n_past + last)

    def cost(self) -> Cost:
        return self._step.program.cost()

    @contextmanager
    def profile(self) -> Iterator[list[tuple[str, float]]]:
        """(op, seconds) of each node of the reading of single tokens inside the `with`, filled in at its end."""
        spent: list[tuple[str, float]] = []
        with self._step.program.profile() as seconds:
            yield spent
        spent += [(self._step.program.graph.op(i), float(s)) for i, s in enumerate(seconds) if s]


class _Chunk:
    """The program that reads n positions of each text."""

    def __init__(self, runtime: Runtime, batch: int, n: int, ctx: int, shared: _Chunk | None) -> None:
        fused = runtime.at(batch=batch, ctx=n).programs.fused(OUTPUT)
        feeds = {kind: fused.find(name) for name, kind in runtime.metadata.inputs.items()}
        ids = [feeds[kind] for kind in ("tokens", "positions") if feeds.get(kind, -1) >= 0]
        graph = passes.cache(fused, ids, ctx, None if shared is None else shared.program.graph)
        self.program: Program = self._program(graph, runtime, 1)
        threads = min(runtime.threads, max(1, round(self.program.cost().flops / FLOPS_PER_THREAD)))
        if threads > 1:
            self.program = self._program(graph, runtime, threads)
        runtime.programs.check(self.program)
        self._tokens = self._leaf(fused, feeds["tokens"], (batch, n))
        self._positions = self._leaf(fused, feeds["positions"], (n,)) if feeds.get("positions", -1) >= 0 else None
        self._n_past = self.program.leaf(graph.find("cache.n_past"))
        self._numbers = np.minimum(np.arange(ctx + n, dtype=np.int32), ctx - 1)
        self._cached = max((i + 1 for i in range(len(graph)) if graph.op(i) == "cached_attention"), default=0)
        self._output = graph.find(OUTPUT)
        self._logits: Logits | None = None

    def _program(self, graph: CoreGraph, runtime: Runtime, threads: int) -> Program:
        settings = runtime.settings
        return Program(graph, runtime.pools.of(threads), settings.isa, settings.matmul_precision)

    def _leaf(self, fused: CoreGraph, tensor_id: int, shape: tuple[int, ...]) -> NDArray[Any]:
        return self.program.leaf(self.program.graph.find(fused.name(tensor_id))).reshape(shape)

    def _feed(self, tokens: NDArray[np.int32], n_past: int) -> None:
        """Places behind the tokens, and other texts, may hold anything: it is overwritten before it is seen."""
        self._tokens[: len(tokens), : tokens.shape[1]] = tokens
        self._n_past[0] = n_past
        if self._positions is not None:
            self._positions[:] = self._numbers[n_past : n_past + len(self._positions)]

    def read(self, tokens: NDArray[np.int32], n_past: int) -> None:
        """Add at most n positions to the caches."""
        self._feed(tokens, n_past)
        self.program.run(0, self._cached)

    def logits(self, tokens: NDArray[np.int32], n_past: int) -> Logits:
        """The same for n = 1, and the logits (batch, n_vocab), a view."""
        self._feed(tokens, n_past)
        self.program.run()
        if self._logits is None:
            self._logits = self.program.array(self._output).reshape(len(self._tokens), -1)
        return self._logits


class WindowReader(TokenReader):
    """Computes every position of the window for each token. A graph of fixed batch may read more texts than asked."""

    def __init__(self, runtime: Runtime, batch: int = 1, slow: str = "") -> None:
        self._runtime = runtime.at(batch=batch) if "batch" in runtime.sizes else runtime
        super().__init__(*self._runtime.window, slow)
        self._window = np.zeros((self.batch, self.ctx), np.int32)

    def _advance(self, tokens: NDArray[np.int32]) -> Logits:
        end = self.n_past + tokens.shape[1]
        self._window[: len(tokens), self.n_past : end] = tokens
        logits = self._runtime.forward(OUTPUT, tokens=self._window)[0].reshape(self.batch, self.ctx, -1)
        last: Logits = logits[:, end - 1]
        return last

    def cost(self) -> Cost:
        return self._runtime.programs.forward(OUTPUT).cost()
