"""Training data from text: windows of a token store.

Which windows make up a batch is a pure function of the seed and the batch's number, so the position in the data is a
counter and a resumed run sees what the uninterrupted one would have seen. Used by `ggmlgraph train --data`; arrays.py
is the same for numpy files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data import order
from ggmlgraph.data.order import permute
from ggmlgraph.data.store import TokenStore
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.philox import philox

EVAL_TOKENS = 1 << 15  # of the validation part, at most, each time it is evaluated
_MAX_VALIDATION = 1 << 20  # tokens: more tells the loss no better and is missing from training

Windows = NDArray[np.int32]  # (n, ctx)


class TextData:
    """Windows of ctx + 1 tokens: the first ctx are the input, the last ctx the targets.

    The end of the text is for validation: val_fraction of the tokens, at most 2**20, at least one window; or another
    store, up to so many. The rest is for training: in every epoch a random start, windows at stride ctx from there, in
    a random order. `bits_per_nat` turns the loss that was evaluated last into bits per byte of text, None if it cannot.
    """

    def __init__(
        self,
        tokens: TokenStore,
        ctx: int,
        seed: int,
        *,
        n_vocab: int | None,
        val_fraction: float = 0.1,
        validation: TokenStore | None = None,
        nbytes: NDArray[np.int64] | None = None,
        stream: str = "data",
    ) -> None:
        """n_vocab: the model's, None if that is not known. nbytes: of UTF-8 that each id stands for. stream: of random
        bits, for data of which several are read at a time.

        Raises DataError for too few tokens or ids the model does not have; UsageError.
        """
        if ctx < 1:
            raise UsageError(f"ctx must be at least 1, not {ctx}")
        if not 0 < val_fraction < 1:
            raise UsageError(f"the validation fraction must be between 0 and 1, not {val_fraction}")
        window = ctx + 1
        self.name, self.ctx, self.seed, self.n_vocab, self.stream = tokens.name, ctx, seed, n_vocab, stream
        self.digest, self.order = tokens.digest, order.VERSION
        self.bits_per_nat: float | None = None
        self._tokens, self._nbytes = tokens, nbytes
        self._validation, self._val_start = tokens, 0
        if validation is None:
            self._check_length(tokens, 2 * window, ", a window each for training and validation")
            n_val = min(int(tokens.n_tokens * val_fraction), _MAX_VALIDATION)
            self.n_val = min(max(window, n_val), tokens.n_tokens - window)
            self.n_train = self._val_start = tokens.n_tokens - self.n_val
        else:
            self._check_length(tokens, window, " to train on")
            self._check_length(validation, window, " to validate")
            self._validation, self.n_train = validation, tokens.n_tokens
            self.n_val = min(validation.n_tokens, _MAX_VALIDATION)
            self.digest = blake2b(f"{tokens.digest} {validation.digest}".encode(), digest_size=16).hexdigest()
        self._check_ids(max((-1 if each.max_id is None else each.max_id) for each in (tokens, self._validation)))
        # One window fewer than fits leaves ctx starts or more to choose from, and makes every epoch equally long.
        self.windows_per_epoch = max(1, (self.n_train - ctx) // ctx)
        self._n_offsets = self.n_train - self.windows_per_epoch * ctx

    def batch(self, step: int, n: int) -> tuple[Windows, Windows]:
        """Batch number `step` (from 0) of batches of n, as `samples`."""
        return self.samples(step * n, n)

    def samples(self, first: int, n: int) -> tuple[Windows, Windows]:
        """The n windows of the run from number `first` on: tokens and targets, both int32 (n, ctx).

        Each is a function of its number and the seed, and of nothing else. Epochs follow one another.
        """
        return self.numbered(np.arange(first, first + n))

    def numbered(self, numbers: NDArray[np.int64]) -> tuple[Windows, Windows]:
        """The windows of the run with these numbers."""
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        starts = np.empty(len(numbers), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts[here] = self._window_starts(int(epoch), places[here])
        return self._windows(self._tokens, starts)

    def validation_batches(self, batch_size: int, max_tokens: int) -> Iterator[tuple[Windows, Windows, int]]:
        """The first windows of the validation part, side by side, at most max_tokens but at least one window.

        Yields (tokens, targets, n_rows): int32 (batch_size, ctx) twice. Rows from n_rows on only fill up the last batch
        (they repeat the first window) and must not count.
        """
        n_windows = min((self.n_val - 1) // self.ctx, max(1, max_tokens // self.ctx))
        for first in range(0, n_windows, batch_size):
            n_rows = min(batch_size, n_windows - first)
            starts = np.zeros(batch_size, np.int64)
            starts[:n_rows] = np.arange(first, first + n_rows) * self.ctx
            tokens, targets = self._windows(self._validation, self._val_start + starts)
            yield tokens, targets, n_rows

    def evaluate(self, runtime: Runtime) -> tuple[float, None]:
        """Mean loss over the first EVAL_TOKENS of the validation part, nats per token.

        A loss without weights takes whole batches only: what fills up the last one could not be left out of it.
        """
        batch, ctx = runtime.window
        losses, counts, n_bytes = [], [], 0
        for tokens, targets, n_rows in self.validation_batches(batch, EVAL_TOKENS):
            if runtime.has_loss_weights:
                weights = np.zeros((batch, ctx), np.float32)
                weights[:n_rows] = 1.0 / (n_rows * ctx)
                losses.append(runtime.loss(tokens, targets, weights))
            elif n_rows == batch:
                losses.append(runtime.loss(tokens, targets))
            elif not losses:  # there is no whole batch
                few = runtime.at(batch=n_rows) if "batch" in runtime.sizes else runtime
                losses.append(few.loss(tokens[: few.window[0]], targets[: few.window[0]]))
            else:
                break
            counts.append(n_rows)
            n_bytes += 0 if self._nbytes is None else int(self._nbytes[targets[:n_rows]].sum())
        self.bits_per_nat = sum(counts) * ctx / (math.log(2) * n_bytes) if n_bytes else None
        return float(np.average(losses, weights=counts)), None

    def _window_starts(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """First tokens of the windows at the given places of an epoch's order."""
        bits = philox(self.seed, f"{self.stream} epoch {epoch}")
        offset = int(bits.random_raw()) % self._n_offsets
        return offset + self.ctx * permute(places, self.windows_per_epoch, bits, self.order)

    def _windows(self, tokens: TokenStore, starts: NDArray[np.int64]) -> tuple[Windows, Windows]:
        found = tokens.at(starts, self.ctx + 1)
        self._check_ids(int(found.max(initial=-1)))  # again: of some stores that is not known before
        if found.min(initial=0) < 0:
            raise DataError(f"{tokens.name} has token id {found.min()}")
        windows = found.astype(np.int32)
        return windows[:, :-1].copy(), windows[:, 1:].copy()

    def _check_length(self, tokens: TokenStore, least: int, what: str) -> None:
        if tokens.n_tokens < least:
            raise DataError(f"{tokens.name} has {tokens.n_tokens} tokens; ctx {self.ctx} needs at least {least}{what}")

    def _check_ids(self, max_id: int) -> None:
        if max_id >= (1 << 31 if self.n_vocab is None else self.n_vocab):
            raise DataError(
                f"{self.name} has token id {max_id}, the model's n_vocab is {self.n_vocab}: "
                "use the tokenizer the model was exported with"
            )
