"""Training data from text: windows of a token file.

Which windows make up a batch is a pure function of the seed and the batch's number, so the position in the data is a
counter and a resumed run sees what the uninterrupted one would have seen. Used by `ggmlgraph train --data`; arrays.py
is the same for numpy files.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data import order
from ggmlgraph.data.numbers import Numbers
from ggmlgraph.data.order import permute
from ggmlgraph.data.tokens import HEADER_NBYTES, TokenFile
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.philox import philox

EVAL_TOKENS = 1 << 15  # of the validation part, at most, each time it is evaluated
_MAX_VALIDATION = 1 << 20  # tokens: more tells the loss no better and is missing from training

Windows = NDArray[np.int32]  # (n, ctx)


class TextData:
    """Windows of ctx + 1 tokens: the first ctx are the input, the last ctx the targets.

    The end of the text is for validation: val_fraction of the tokens, at most 2**20, at least one window. The rest is
    for training: in every epoch a random start, windows at stride ctx from there, in a random order.
    """

    def __init__(
        self, tokens: TokenFile, ctx: int, seed: int, *, n_vocab: int | None, val_fraction: float = 0.1
    ) -> None:
        """`n_vocab` is the model's, None if that is not known.

        Raises DataError for too few tokens or ids the model does not have; UsageError.
        """
        if ctx < 1:
            raise UsageError(f"ctx must be at least 1, not {ctx}")
        if not 0 < val_fraction < 1:
            raise UsageError(f"the validation fraction must be between 0 and 1, not {val_fraction}")
        n_tokens, window = tokens.header.n_tokens, ctx + 1
        if n_tokens < 2 * window:
            raise DataError(
                f"{tokens.name} has {n_tokens} tokens; ctx {ctx} needs at least {2 * window}, a window each for "
                "training and validation"
            )
        self.name, self.ctx, self.seed, self.n_vocab = tokens.name, ctx, seed, n_vocab
        self.digest, self.order = tokens.header.digest, order.VERSION
        self._check_ids(tokens.header.max_id)
        self.n_val = min(max(window, min(int(n_tokens * val_fraction), _MAX_VALIDATION)), n_tokens - window)
        self.n_train = n_tokens - self.n_val
        self._ids = Numbers(tokens.path, HEADER_NBYTES, np.dtype(tokens.header.dtype))
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
        epochs, places = np.divmod(np.arange(first, first + n), self.windows_per_epoch)
        starts = np.empty(n, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts[here] = self._window_starts(int(epoch), places[here])
        return self._windows(starts)

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
            tokens, targets = self._windows(self.n_train + starts)
            yield tokens, targets, n_rows

    def evaluate(self, runtime: Runtime) -> tuple[float, None]:
        """Mean loss over the first EVAL_TOKENS of the validation part, nats per token.

        A loss without weights takes whole batches only: what fills up the last one could not be left out of it.
        """
        batch, ctx = runtime.window
        losses, counts = [], []
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
        return float(np.average(losses, weights=counts)), None

    def _window_starts(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """First tokens of the windows at the given places of an epoch's order."""
        bits = philox(self.seed, f"data epoch {epoch}")
        offset = int(bits.random_raw()) % self._n_offsets
        return offset + self.ctx * permute(places, self.windows_per_epoch, bits, self.order)

    def _windows(self, starts: NDArray[np.int64]) -> tuple[Windows, Windows]:
        windows = self._ids.at(starts, self.ctx + 1).astype(np.int32)
        self._check_ids(int(windows.max(initial=-1)))  # again: the file may have changed since its header was written
        return windows[:, :-1].copy(), windows[:, 1:].copy()

    def _check_ids(self, max_id: int) -> None:
        if self.n_vocab is not None and max_id >= self.n_vocab:
            raise DataError(
                f"{self.name} has token id {max_id}, the model's n_vocab is {self.n_vocab}: "
                "use the tokenizer the model was exported with"
            )
