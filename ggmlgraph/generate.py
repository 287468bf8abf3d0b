"""Text out: the next token from the logits, again and again.

The window of the last ctx tokens is computed anew for every token. A shorter text is padded on the right: attention
is causal, so the padding changes nothing before it, and the row of the last real token is read.
Used by `ggmlgraph generate` and, for samples, by the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggmlgraph import checkpoint, rundir
from ggmlgraph import tokenizer as tokenizers
from ggmlgraph.errors import CheckpointError, DataError, GGError, UnsupportedError, UsageError
from ggmlgraph.philox import philox
from ggmlgraph.runtime import Cost, Runtime
from ggmlgraph.tokenizer import Decoder, Ids, Tokenizer

OUTPUT = "logits"


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature 0: the likeliest one. top_k 0 and top_p 1 leave every token in."""

    temperature: float = 0.8
    top_k: int = 40  # the k likeliest
    top_p: float = 0.95  # of these, the fewest with this much probability together
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature {self.temperature} must be 0 or more")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p} must be in 0..1")


def choose(logits: NDArray[np.float32], how: Sampling, uniform: float) -> int:
    """The token that `uniform`, a number in [0, 1), draws. logits: float32 (n_vocab,)."""
    if not np.isfinite(logits).all():
        raise GGError("the model's logits are not finite")
    if how.temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[: how.top_k or None]
    z = logits[order].astype(np.float64) / how.temperature
    cumulative = np.cumsum(np.exp(z - z[0]))
    n = int(np.searchsorted(cumulative, how.top_p * cumulative[-1])) + 1
    cumulative = cumulative[:n]
    return int(order[min(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), len(cumulative) - 1)])


class Generator:
    """A language model that continues texts."""

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer) -> None:
        """Raises DataError if the tokenizer has ids the model does not have."""
        self._runtime = runtime.at(batch=1) if "batch" in runtime.sizes else runtime
        self._batch, self._ctx = self._runtime.window
        self.tokenizer = tokenizer
        n_vocab = n_vocab_of(runtime)
        if tokenizer.n_vocab > n_vocab:
            raise DataError(f"the tokenizer has {tokenizer.n_vocab} ids, the model's n_vocab is {n_vocab}")

    def cost(self) -> Cost:
        """Memory and arithmetic of one token."""
        return self._runtime.program(OUTPUT).cost()

    def tokens(self, prompt: Ids, n: int, how: Sampling, stream: str = "sample") -> Iterator[int]:
        """At most n further ids, fewer if the end-of-text token is drawn. `stream` names the random numbers used."""
        bits = philox(how.seed, stream)
        text = [int(token) for token in prompt]
        for _ in range(n):
            token = choose(self._logits(text[-self._ctx :]), how, (int(bits.random_raw()) >> 11) * 2.0**-53)
            if token == self.tokenizer.eos_id:
                return
            text.append(token)
            yield token

    def _logits(self, text: list[int]) -> NDArray[np.float32]:
        """Of the token after `text`, among those the tokenizer has: float32 (n_vocab,)."""
        window = np.zeros((self._batch, self._ctx), np.int32)
        window[0, : len(text)] = text
        logits = self._runtime.forward(OUTPUT, tokens=window)[0].reshape(self._batch, self._ctx, -1)
        row: NDArray[np.float32] = logits[0, len(text) - 1, : self.tokenizer.n_vocab]
        return row

    def text(self, prompt: str, n: int, how: Sampling, stream: str = "sample") -> Iterator[str]:
        """The prompt and then its continuation, in pieces as they come."""
        ids = self.tokenizer.encode(prompt)
        decoder = Decoder(self.tokenizer)
        yield "".join(decoder.push(token) for token in ids)
        for token in self.tokens(ids if ids.size else first_token(self.tokenizer), n, how, stream):
            yield decoder.push(token)
        yield decoder.finish()


def first_token(tokenizer: Tokenizer) -> Ids:
    """What a text without a prompt begins after: a line feed, else the begin-of-text token, else id 0.

    The line feed first, because training text has no begin-of-text tokens, so its embedding is untrained.
    """
    try:
        return tokenizer.encode("\n")
    except DataError:
        return np.array([tokenizer.bos_id or 0], np.int32)


def n_vocab_of(runtime: Runtime) -> int:
    """Size of the model's vocabulary: the last axis of its logits. Raises UnsupportedError if it has none."""
    tensor_id = runtime.graph.find(OUTPUT)
    if tensor_id < 0:
        raise UnsupportedError(f"the graph has no output {OUTPUT!r}: it is no language model")
    return runtime.graph.shape(tensor_id)[-1]


def open_model(path: Path, *, threads: int | None = None, ctx: int | None = None) -> tuple[Runtime, Tokenizer]:
    """A model and its tokenizer from a run directory (its latest whole checkpoint), a checkpoint or a graph file."""
    if not path.is_dir():
        runtime = Runtime(path, threads=threads, ctx=ctx)
        return runtime, tokenizer_of(runtime, None)
    run = path if rundir.graph_path(path).exists() else path.absolute().parent
    if not rundir.graph_path(run).exists():
        raise CheckpointError(f"{path} is no run directory: it has no graph.bin")
    found = path
    if run == path:
        latest, _ = checkpoint.latest(run, (checkpoint.WEIGHTS,))
        if latest is None:
            raise CheckpointError(f"{path} has no checkpoint yet")
        found = latest
    manifest = checkpoint.verify(found, ())
    runtime = Runtime(rundir.graph_path(run), threads=threads, ctx=ctx or manifest.sizes.get("ctx"))
    checkpoint.load_weights(runtime, found)
    return runtime, tokenizer_of(runtime, rundir.tokenizer_path(run))


def tokenizer_of(runtime: Runtime, beside: Path | None) -> Tokenizer:
    """The tokenizer in the graph, else the one beside it in the run directory. Raises DataError if there is none."""
    data = runtime.tokenizer_bytes()
    if data is None and beside is not None and beside.exists():
        data = beside.read_bytes()
    if data is None:
        raise DataError("the graph has no tokenizer; export it with --tokenizer")
    return tokenizers.from_bytes(data)
