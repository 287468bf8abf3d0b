"""Reading texts on and on: the logits of the next token, while what was read before is not computed again.

A `CachedDecoder` keeps keys and values of every position; the runtime derives its programs from the graph (gg_cache),
whatever model it is. Where that cannot be done, because an op other than causal attention mixes positions or the graph
has a fixed size, a `WindowDecoder` computes the whole window anew for each token. Used by `generate` and `evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core.boundary import CoreGraph, exception, ffi, lib, new_error
from ggmlgraph.errors import UnsupportedError
from ggmlgraph.execution.program import Cost, Program
from ggmlgraph.execution.runtime import Runtime

OUTPUT = "logits"
CHUNKS = (256, 32, 8)  # positions of the programs that read a prompt
FLOPS_PER_THREAD = 2e6  # of a run; a thread with less to do costs more in waiting than it saves
Logits = NDArray[np.float32]


class Decoder(Protocol):
    """Texts of one batch, read in step. Position n_past is the next to be read."""

    batch: int
    ctx: int  # most positions
    n_past: int
    slow: str  # why each token computes the whole window anew; empty where it does not

    def advance(self, tokens: NDArray[np.int32]) -> Logits:
        """Read int32 (batch, n) further tokens; float32 (batch, n_vocab), of the token after them, until the next call.

        n_past + n is at most ctx.
        """

    def rewind(self, n_past: int) -> None:
        """Forget all but the first n_past positions."""

    def cost(self) -> Cost:
        """Memory and arithmetic of reading one token."""


def n_in_common(read: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens, from the first on, a text has in common with what has been read: where to rewind to."""
    pairs = zip(read, tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(read), len(tokens)))


def decoder_of(runtime: Runtime, batch: int = 1) -> Decoder:
    """The fastest decoder the graph allows, for at least `batch` texts of up to the runtime's ctx tokens."""
    try:
        return CachedDecoder(runtime, batch)
    except UnsupportedError as error:
        return WindowDecoder(runtime, batch, str(error))


class CachedDecoder:
    """See the module. Raises UnsupportedError, naming the node, if the graph mixes positions."""

    slow = ""

    def __init__(self, runtime: Runtime, batch: int = 1) -> None:
        self.batch, self.ctx, self.n_past = batch, runtime.window[1], 0
        self._runtime = runtime
        self._readers: dict[int, _Reader] = {}
        self._reader(min(CHUNKS))  # with more than one position, which is what shows how the graph mixes them
        self._step = self._reader(1)

    def _reader(self, n: int) -> _Reader:
        if n not in self._readers:
            first = next(iter(self._readers.values()), None)
            self._readers[n] = _Reader(self._runtime, self.batch, n, self.ctx, first)
        return self._readers[n]

    def advance(self, tokens: NDArray[np.int32]) -> Logits:
        n = tokens.shape[1]
        while n > 1:  # the last token by itself: of the others no logits are needed
            size = next((size for size in CHUNKS if n - 1 > size // 2), 1)
            count = min(size, n - 1)
            self._reader(size).read(tokens[:, -n : tokens.shape[1] - n + count], self.n_past)
            self.n_past += count
            n -= count
        logits = self._step.logits(tokens[:, -1:], self.n_past)
        self.n_past += 1
        return logits

    def rewind(self, n_past: int) -> None:
        self.n_past = n_past

    def cost(self) -> Cost:
        return self._step.program.cost()

    @contextmanager
    def profile(self) -> Iterator[list[tuple[str, float]]]:
        """(op, seconds) of each node of the reading of single tokens inside the `with`, filled in at its end."""
        spent: list[tuple[str, float]] = []
        with self._step.program.profile() as seconds:
            yield spent
        spent += [(self._step.program.graph.op(i), float(s)) for i, s in enumerate(seconds) if s]


class _Reader:
    """The program that reads n positions of each text."""

    def __init__(self, runtime: Runtime, batch: int, n: int, ctx: int, shared: _Reader | None) -> None:
        fused = runtime.at(batch=batch, ctx=n).fused(OUTPUT)
        feeds = {kind: fused.find(name) for name, kind in runtime.metadata.inputs.items()}
        ids = [feeds[kind] for kind in ("tokens", "positions") if feeds.get(kind, -1) >= 0]
        err = new_error()
        other = ffi.NULL if shared is None else shared.program.graph.handle
        handle = lib.gg_cache(fused.handle, len(ids), ids, ctx, other, err)
        if handle == ffi.NULL:
            raise exception(err)
        graph = fused.derived(handle)
        self.program: Program = Program(graph, runtime.isa, 1, runtime.matmul_precision)
        threads = min(runtime.threads, max(1, round(self.program.cost().flops / FLOPS_PER_THREAD)))
        if threads > 1:
            self.program = Program(graph, runtime.isa, threads, runtime.matmul_precision)
        runtime.check_memory(self.program)
        self._tokens = self._leaf(fused, feeds["tokens"], (batch, n))
        self._positions = self._leaf(fused, feeds["positions"], (n,)) if feeds.get("positions", -1) >= 0 else None
        self._n_past = self.program.leaf(graph.find("cache.n_past"))
        self._numbers = np.minimum(np.arange(ctx + n, dtype=np.int32), ctx - 1)
        self._cached = max((i + 1 for i in range(len(graph)) if graph.op(i) == "cached_attention"), default=0)
        self._output = graph.find(OUTPUT)
        self._logits: Logits | None = None

    def _leaf(self, fused: CoreGraph, tensor_id: int, shape: tuple[int, ...]) -> NDArray[Any]:
        return self.program.leaf(self.program.graph.find(fused.name(tensor_id))).reshape(shape)

    def _feed(self, tokens: NDArray[np.int32], n_past: int) -> None:
        """Places behind the tokens may hold anything: what is read from them is overwritten before it is seen."""
        self._tokens[:, : tokens.shape[1]] = tokens
        self._n_past[0] = n_past
        if self._positions is not None:
            self._positions[:] = self._numbers[n_past : n_past + len(self._positions)]

    def read(self, tokens: NDArray[np.int32], n_past: int) -> None:
        """Add at most n positions (batch, n) to the caches."""
        self._feed(tokens, n_past)
        self.program.run(0, self._cached)

    def logits(self, tokens: NDArray[np.int32], n_past: int) -> Logits:
        """The same for n = 1, and the logits (batch, n_vocab), a view."""
        self._feed(tokens, n_past)
        self.program.run()
        if self._logits is None:
            self._logits = self.program.array(self._output).reshape(len(self._tokens), -1)
        return self._logits


class WindowDecoder:
    """Computes every position of the window for each token. A graph of fixed batch may read more texts than asked."""

    def __init__(self, runtime: Runtime, batch: int = 1, slow: str = "") -> None:
        self.slow = slow
        self._runtime = runtime.at(batch=batch) if "batch" in runtime.sizes else runtime
        self.batch, self.ctx = self._runtime.window
        self.n_past = 0
        self._window = np.zeros((self.batch, self.ctx), np.int32)

    def advance(self, tokens: NDArray[np.int32]) -> Logits:
        self._window[: len(tokens), self.n_past : self.n_past + tokens.shape[1]] = tokens
        self.n_past += tokens.shape[1]
        logits = self._runtime.forward(OUTPUT, tokens=self._window)[0].reshape(self.batch, self.ctx, -1)
        last: Logits = logits[:, self.n_past - 1]
        return last

    def rewind(self, n_past: int) -> None:
        self.n_past = n_past

    def cost(self) -> Cost:
        return self._runtime.program(OUTPUT).cost()
