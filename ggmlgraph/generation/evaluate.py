"""How good a model is: perplexity on a text, and accuracy on multiple-choice questions. Used by `ggmlgraph eval`.

Perplexity is llama.cpp's (tools/perplexity): the text, behind a begin-of-text token if the model expects one, is cut
into whole windows of ctx tokens side by side, whose first token is replaced by begin-of-text if there is one; in each
window the predictions from token ctx // 2 on are scored, ctx - 1 - ctx // 2 of them. With a stride it is that of
Hugging Face's "Perplexity of fixed-length models": windows begin every `stride` tokens and score what no window before
them scored, the first one all, so each token but the first is scored once, behind at least ctx - stride others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data.corpus import TextSource, open_file, open_source
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation.decoding import OUTPUT, reader_of
from ggmlgraph.generation.generate import n_vocab_of
from ggmlgraph.tokenizers.base import Ids, Tokenizer

MAX_EXPONENT = 709.0  # whose exponential a float64 still holds
_ROWS = 64  # of logits that are worked on at a time


def log_probabilities(logits: NDArray[np.float32], tokens: Ids) -> NDArray[np.float64]:
    """log softmax(logits[i])[tokens[i]]: float32 (n, n_vocab), int32 (n,) -> float64 (n,)."""
    found = np.empty(len(tokens))
    for first in range(0, len(tokens), _ROWS):
        rows, ids = logits[first : first + _ROWS], tokens[first : first + _ROWS]
        largest = rows.max(axis=1)
        sums = np.exp(rows - largest[:, None]).sum(axis=1, dtype=np.float64)
        found[first : first + _ROWS] = rows[np.arange(len(ids)), ids] - largest - np.log(sums)
    return found


# ---------------------------------------------------------------- perplexity


@dataclass(frozen=True)
class Perplexity:
    """Of the windows so far. Nats per token and their sum of squares."""

    n_windows: int  # done
    of_windows: int
    n_tokens: int  # scored
    loss: float  # mean negative log-likelihood
    loss_error: float  # standard error of the mean
    n_bytes: int = 0  # of text that the scored tokens stand for

    @property
    def value(self) -> float:
        return math.exp(self.loss) if self.loss < MAX_EXPONENT else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The loss by the text's bytes, which does not depend on the tokenizer."""
        return self.loss * self.n_tokens / (math.log(2) * self.n_bytes) if self.n_bytes else math.nan

    @property
    def error(self) -> float:
        """Standard error of the value, to first order."""
        return self.value * self.loss_error


@dataclass(frozen=True)
class _Window:
    begin: int  # first token
    scored: int  # from this token of the text on
    end: int


def windows(n_tokens: int, ctx: int, stride: int | None) -> list[_Window]:
    """See the module. Raises DataError for a text of less than a window."""
    if n_tokens < ctx and stride is None:
        raise DataError(f"the text has {n_tokens} tokens, one window is {ctx}; choose a smaller --ctx, or --stride")
    if n_tokens < 2:
        raise DataError("the text has fewer than two tokens")
    if stride is None:
        return [_Window(i, i + ctx // 2 + 1, i + ctx) for i in range(0, n_tokens - ctx + 1, ctx)]
    found, scored = [], 1
    for begin in range(0, n_tokens, stride):
        end = min(begin + ctx, n_tokens)
        found.append(_Window(begin, scored, end))
        scored = end
        if end == n_tokens:
            break
    return found


def perplexity(
    runtime: Runtime, tokenizer: Tokenizer, text: str | Path, stride: int | None = None
) -> Iterator[Perplexity]:
    """After each window the result so far; the windows' size is the runtime's ctx.

    Raises UsageError for a stride that is not in 1 .. ctx; DataError for a text that is too short, or has no ids.
    """
    n_vocab_of(runtime)
    one = runtime.at(batch=1) if "batch" in runtime.sizes else runtime
    batch, ctx = one.window
    if ctx < (3 if stride is None else 2):  # of a window without stride the second half is scored, but for its first
        raise UsageError(f"windows of {ctx} tokens predict nothing; choose a larger --ctx")
    if stride is not None and not 1 <= stride < ctx:
        raise UsageError(f"stride {stride} is not in 1..{ctx - 1}")
    ids = _ids(open_source(text), tokenizer)
    todo = windows(len(ids), ctx, stride)
    n_tokens, n_bytes, total, squares = 0, 0, 0.0, 0.0
    for i, window in enumerate(todo):
        tokens = np.zeros((batch, ctx), np.int32)
        tokens[0, : window.end - window.begin] = ids[window.begin : window.end]
        tokens[0, : len(tokenizer.beginning)] = tokenizer.beginning
        logits = one.forward(OUTPUT, tokens=tokens)[0].reshape(batch, ctx, -1)[0]
        rows = logits[window.scored - 1 - window.begin : window.end - 1 - window.begin]
        losses = -log_probabilities(rows, ids[window.scored : window.end])
        n_tokens += len(losses)
        n_bytes += sum(len(tokenizer.piece(i)) for i in ids[window.scored : window.end].tolist())
        total += float(losses.sum())
        squares += float((losses**2).sum())
        loss = total / n_tokens
        variance = max(0.0, squares / n_tokens - loss * loss)
        yield Perplexity(i + 1, len(todo), n_tokens, loss, math.sqrt(variance / max(1, n_tokens - 1)), n_bytes)


def _ids(source: TextSource, tokenizer: Tokenizer) -> Ids:
    return np.concatenate([np.array(tokenizer.beginning, np.int32), *tokenizer.encode_stream(source.chunks())])


# ---------------------------------------------------------------- multiple choice


class Question(msgspec.Struct, frozen=True):
    """One line of a file of questions; other fields are left alone."""

    choices: list[str]
    answer: int | str  # number of the right choice, from 0, or the choice itself
    prompt: str | None = None
    question: str | None = None  # another name of prompt

    @property
    def text(self) -> str:
        return self.prompt or self.question or ""

    @property
    def right(self) -> int:
        return self.answer if isinstance(self.answer, int) else self.choices.index(self.answer)


def read_questions(path: Path) -> list[Question]:
    """Lines of JSON. Raises DataError with the number of the line that is wrong."""
    found = []
    for number, line in enumerate(open_file(path).lines(), 1):
        if not line.strip():
            continue
        try:
            question = msgspec.json.decode(line, type=Question)
        except (msgspec.DecodeError, RecursionError) as error:
            raise DataError(f"{path}:{number}: {error}") from None
        if not question.text or len(question.choices) < 2 or "" in question.choices:
            raise DataError(f"{path}:{number}: needs a prompt (or question) and at least two choices, none empty")
        if question.answer not in (
            range(len(question.choices)) if isinstance(question.answer, int) else question.choices
        ):
            raise DataError(
                f"{path}:{number}: answer {question.answer!r} is none of the {len(question.choices)} choices"
            )
        found.append(question)
    if not found:
        raise DataError(f"{path}: no line has a question")
    return found


@dataclass(frozen=True)
class Accuracy:
    """Of the questions so far: how often the right choice is the likeliest, as it is and by its length."""

    n: int
    of: int
    n_right: int  # log-likelihood of the choice
    n_right_by_length: int  # divided by the choice's number of characters

    @property
    def value(self) -> float:
        return self.n_right / self.n

    @property
    def by_length(self) -> float:
        return self.n_right_by_length / self.n

    def error(self, accuracy: float) -> float:
        """Standard error of an accuracy over these questions."""
        return math.sqrt(accuracy * (1 - accuracy) / (self.n - 1)) if self.n > 1 else math.nan


def accuracy(runtime: Runtime, tokenizer: Tokenizer, questions: Sequence[Question]) -> Iterator[Accuracy]:
    """After each question the result so far.

    A choice follows its prompt after a space, unless there is white space between them already, and its tokens are
    those that the whole has beyond the prompt's, as in EleutherAI's lm-evaluation-harness, whose acc and acc_norm these
    are.
    A prompt too long for the runtime's ctx counts from its end.
    """
    scorer = _Scorer(runtime, tokenizer)
    n_right = n_by_length = 0
    for i, question in enumerate(questions):
        scores = np.array([scorer.score(question.text, choice) for choice in question.choices])
        lengths = np.array([len(choice) for choice in question.choices])
        n_right += int(scores.argmax() == question.right)
        n_by_length += int((scores / lengths).argmax() == question.right)
        yield Accuracy(i + 1, len(questions), n_right, n_by_length)


class _Scorer:
    """Log-likelihoods of choices; what they have in common with the one before is not computed again."""

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer) -> None:
        n_vocab_of(runtime)
        self._reader, self._tokenizer = reader_of(runtime), tokenizer

    def score(self, prompt: str, choice: str) -> float:
        space = "" if prompt[-1].isspace() or choice[0].isspace() else " "
        text = prompt.rstrip()
        bos = self._tokenizer.beginning
        n_prompt = len(bos) + len(self._tokenizer.encode(text))
        ids = [*bos, *self._tokenizer.encode(prompt + space + choice).tolist()]
        if len(ids) > self._reader.ctx:
            cut = len(ids) - self._reader.ctx
            ids, n_prompt = [*bos, *ids[cut + len(bos) :]], n_prompt - cut
        n_prompt = min(max(n_prompt, 1), len(ids) - 1)
        return self._log_likelihood(ids, n_prompt)

    def _log_likelihood(self, ids: list[int], first: int) -> float:
        """Of the tokens from `first` on, given those before."""
        tokens = np.array(ids, np.int32)
        known = min(self._reader.n_known(ids), first - 1)
        self._reader.rewind(known)
        total = 0.0
        for end in range(first, len(ids)):
            logits = self._reader.advance(tokens[None, known:end])
            total += float(log_probabilities(logits, tokens[end : end + 1])[0])
            known = end
        return total
