"""Text out: the next token from the logits, again and again.

A model reads a prompt in one go and then each token it has drawn. Its window is the runtime's ctx; when that is full,
the last half of it is read anew and the text goes on from there, behind a begin-of-text token if the model expects one.
A prompt longer than the window counts from its end.
Used by `ggmlgraph generate` and `chat` and, for samples, by the trainer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core.limits import DEFAULT, Limits
from ggmlgraph.core.program import Cost
from ggmlgraph.errors import DataError, UnsupportedError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation.choice import choose
from ggmlgraph.generation.decoding import OUTPUT, reader_of
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.philox import philox
from ggmlgraph.tokenizers.base import Ids, TextDecoder, Tokenizer
from ggmlgraph.training.run import Run


@dataclass
class _Text:
    """One text on its way."""

    window: list[int]  # of its tokens those that the model sees
    bits: np.random.Philox
    left: int  # tokens still to be drawn
    losses: list[float] | None = None  # of the tokens that were drawn, if they are wanted

    def draw(self, logits: NDArray[np.float32], how: Sampling, ends: Collection[int]) -> int | None:
        """Put a token behind the window; None if it ends the text."""
        uniform = (int(self.bits.random_raw()) >> 11) * 2.0**-53
        token = choose(logits, how, uniform, self.window)
        if self.losses is not None:
            self.losses.append(loss_of(logits, token))
        self.left = self.left - 1 if token not in ends else 0
        if token in ends:
            return None
        self.window.append(token)
        return token


class Generator:
    """A language model that continues texts, up to `batch` at a time."""

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, batch: int = 1) -> None:
        """Raises DataError if the tokenizer has ids the model does not have."""
        n_vocab = n_vocab_of(runtime)
        if tokenizer.n_vocab > n_vocab:
            raise DataError(f"the tokenizer has {tokenizer.n_vocab} ids, the model's n_vocab is {n_vocab}")
        self.tokenizer = tokenizer
        self.reader = reader_of(runtime, batch)

    def cost(self) -> Cost:
        """Memory and arithmetic of one token."""
        return self.reader.cost()

    def notes(self, prompts: Sequence[str]) -> Iterator[str]:
        """What a person should know before these prompts are continued: a line each."""
        if self.reader.slow:
            yield f"slow: each token computes the whole window anew, because {self.reader.slow}"
        for prompt in prompts:
            if (n := len(self.ids(prompt))) > self.reader.ctx:
                yield (
                    f"a prompt of {n} tokens counts from its end: the window is {self.reader.ctx} tokens; "
                    "--ctx widens it as far as the model goes"
                )

    # ------------------------------------------------------------ tokens

    def tokens(
        self, prompt: Ids, n: int, how: Sampling, stream: str = "sample", *, reuse: bool = False
    ) -> Iterator[int]:
        """At most n further ids, fewer if the end-of-text token is drawn. `stream` names the random numbers used.

        reuse: where the text begins like the last one, what was computed of that serves again; the weights must not
        have changed.
        """
        text = self._begin(prompt, n, how, stream)
        for (token,) in self._steps([text], how, self.reader.n_known(text.window[:-1]) if reuse else 0):
            if token is not None:
                yield token

    def _begin(self, prompt: Ids, n: int, how: Sampling, stream: str) -> _Text:
        return _Text(self._window([int(token) for token in prompt], self.reader.ctx), philox(how.seed, stream), n)

    def _window(self, tokens: list[int], n: int) -> list[int]:
        """The last n tokens, the first of them begin-of-text if the model's texts begin so."""
        if len(tokens) <= n:
            return tokens
        beginning = self.tokenizer.beginning
        return (beginning + tokens[len(tokens) - n + len(beginning) :])[:n]

    def _steps(self, texts: Sequence[_Text], how: Sampling, n_read: int = 0) -> Iterator[list[int | None]]:
        """The next token of each text, until all have ended; None after its end, and while its prompt is being read.

        Texts are read in step, position by position; the shortest prompt decides how much of all is read at first
        (as in Meta's generation code for LLaMA).
        """
        ctx, n_vocab, ends = self.reader.ctx, self.tokenizer.n_vocab, self.tokenizer.end_ids
        while any(text.left for text in texts):
            end = min(len(text.window) for text in texts if text.left)
            if end > ctx:
                for text in texts:
                    text.window = self._window(text.window[: end - 1], ctx // 2) + text.window[end - 1 :]
                n_read, end = 0, ctx // 2 + 1
            rows = np.zeros((len(texts), end - n_read), np.int32)
            for row, text in zip(rows, texts, strict=True):
                part = text.window[n_read:end]
                row[: len(part)] = part
            self.reader.rewind(n_read)
            logits = self.reader.advance(rows)
            n_read = end
            yield [
                text.draw(row[:n_vocab], how, ends) if text.left and len(text.window) == end else None
                for row, text in zip(logits, texts, strict=True)
            ]

    # ------------------------------------------------------------ text

    def ids(self, prompt: str) -> Ids:
        """Of a prompt as the model's texts begin: behind a begin-of-text token if it expects one, never empty."""
        ids = np.concatenate([np.array(self.tokenizer.beginning, np.int32), self.tokenizer.encode(prompt)])
        return ids if ids.size else first_token(self.tokenizer)

    def text(
        self, prompt: str, n: int, how: Sampling, stream: str = "sample", stop: Sequence[str] = ()
    ) -> Iterator[str]:
        """The prompt and then its continuation, in pieces as they come, up to the first of the strings `stop`."""
        written = Written(self.tokenizer, self.tokenizer.encode(prompt), stop)
        yield written.prompt
        for token in self.tokens(self.ids(prompt), n, how, stream):
            yield written.push(token)
            if written.stopped:
                return
        yield written.finish()

    def scored(self, prompt: str, n: int, how: Sampling, stream: str = "sample") -> list[tuple[str, float | None]]:
        """What `text` gives, in the pieces that each token adds to it, with -log of the probability that the model gave
        it, nats; None for the prompt's."""
        written = Written(self.tokenizer, self.tokenizer.encode(prompt))
        found: list[tuple[str, float | None]] = [(written.prompt, None)]
        text = self._begin(self.ids(prompt), n, how, stream)
        losses: list[float] = []
        text.losses = losses
        for (token,) in self._steps([text], how):
            if token is not None:
                found.append((written.push(token), losses[-1]))
        return [*found, (written.finish(), None)]

    def texts(
        self, prompts: Sequence[str], n: int, how: Sampling, stream: str = "sample", stop: Sequence[str] = ()
    ) -> list[str]:
        """What `text` gives for each prompt, computed together as far as the batch goes."""
        found: list[str] = []
        for first in range(0, len(prompts), self.reader.batch):
            found += self._texts(prompts[first : first + self.reader.batch], n, how, stream, stop)
        return found

    def _texts(self, prompts: Sequence[str], n: int, how: Sampling, stream: str, stop: Sequence[str]) -> list[str]:
        texts = [self._begin(self.ids(prompt), n, how, stream) for prompt in prompts]
        written = [Written(self.tokenizer, self.tokenizer.encode(prompt), stop) for prompt in prompts]
        found = [w.prompt for w in written]
        for tokens in self._steps(texts, how):
            for i, token in enumerate(tokens):
                if token is not None:
                    found[i] += written[i].push(token)
                    if written[i].stopped:
                        texts[i].left = 0
        return [text + w.finish() for text, w in zip(found, written, strict=True)]


class Written:
    """The text of tokens drawn one by one, ready to show: no broken character, and nothing of a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Ids, stop: Sequence[str] = ()) -> None:
        self._decoder = TextDecoder(tokenizer)
        self._stop = [s for s in stop if s]
        self._held = ""  # perhaps the beginning of a stop string
        self.prompt = "".join(self._decoder.push(token) for token in prompt)
        self.stopped = False

    def push(self, token: int) -> str:
        """What this token adds to the text that is certain; after the first stop string `stopped`, and nothing more."""
        self._held += self._decoder.push(token)
        return self._release(final=False)

    def finish(self) -> str:
        """The rest."""
        self._held += self._decoder.finish()
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        if self.stopped:
            return ""
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        self.stopped = bool(found)
        n = min(found) if found else len(self._held) if final else self._certain()
        out, self._held = self._held[:n], self._held[n:]
        return out

    def _certain(self) -> int:
        """Characters before the first that may begin a stop string."""
        for at in range(max(0, len(self._held) - max(map(len, self._stop), default=0)), len(self._held)):
            if any(s.startswith(self._held[at:]) for s in self._stop):
                return at
        return len(self._held)


def loss_of(logits: NDArray[np.float32], token: int) -> float:
    """-log of the probability of a token, nats. logits: float32 (n_vocab,)."""
    values = logits.astype(np.float64)
    most = values.max()
    return float(most + np.log(np.exp(values - most).sum()) - values[token])


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


def open_model(
    path: Path, *, threads: int | None = None, ctx: int | None = None, limits: Limits = DEFAULT
) -> tuple[Runtime, Tokenizer]:
    """A model and its tokenizer from a run directory (its latest whole checkpoint), a checkpoint or a graph file.

    Raises DataError if there is no tokenizer.
    """
    run = Run.open(path)
    runtime = run.runtime(threads=threads, ctx=ctx, limits=limits)
    tokenizer = run.tokenizer(runtime.tokenizer_bytes())
    if tokenizer is None:
        raise DataError("the graph has no tokenizer; export it with --tokenizer")
    return runtime, tokenizer
