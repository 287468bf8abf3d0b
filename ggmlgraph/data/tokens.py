"""Tokens out: text sources become a token file, a token file becomes batches.

`prepare` tokenises once, in bounded memory, into a memory-mapped file that later runs reuse. `Dataset` cuts it into
windows; which windows make up a batch is a pure function of the seed and the batch's number, so the position
in the data is a counter and a resumed run sees what the uninterrupted one would have seen.
Used by the training loop and the command `data`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data.corpus import TextSource, open_source
from ggmlgraph.durable import replacing
from ggmlgraph.errors import DataError, FormatError, UsageError
from ggmlgraph.philox import philox
from ggmlgraph.tokenizers.base import Tokenizer

Batch = NDArray[np.int32]

_MAGIC = b"ggtokens 1\n"
_HEADER_NBYTES = 512  # magic, one line of JSON, spaces; then the ids, little-endian
_MAX_VALIDATION = 1 << 20  # tokens: more tells the loss no better and is missing from training


@dataclass(frozen=True)
class TokenHeader:
    """What a token file says about its ids."""

    dtype: Literal["<u2", "<i4"]  # uint16 if n_vocab <= 65536, else int32
    n_tokens: int
    n_vocab: int  # of the tokenizer
    max_id: int  # the highest id there is; -1 without tokens
    digest: str  # of the tokenizer and of the sources' content


@dataclass(frozen=True)
class TokenFile:
    """A memory-mapped token file; `name` is what errors call the text."""

    path: Path
    name: str
    header: TokenHeader
    ids: NDArray[Any]  # uint16 or int32 (n_tokens,), read-only
    reused: bool  # it was there already


def prepare(sources: Sequence[str | Path], tokenizer: Tokenizer, cache_dir: str | Path) -> TokenFile:
    """The sources' ids, one source after the other, in cache_dir/DIGEST.tokens.

    The digest is of the tokenizer and of the sources' content, not of their paths, so a moved file is not tokenised
    again and a changed one is. The file appears complete or not at all; one that is damaged is made anew.
    Raises DataError for a source that cannot be read or encoded, UsageError for no or an unknown source.
    """
    if not sources:
        raise UsageError("no text to tokenise")
    opened = [open_source(source) for source in sources]
    name = opened[0].name if len(opened) == 1 else f"{opened[0].name} and {len(opened) - 1} more"
    digest = _digest(opened, tokenizer)
    path = Path(cache_dir) / f"{digest}.tokens"
    try:
        header, ids = _map(path)
        if header.digest == digest:
            return TokenFile(path, name, header, ids, reused=True)
    except (FormatError, OSError):
        pass  # made anew; if the folder itself is at fault, writing says so
    try:
        _write_tokens(path, opened, tokenizer, digest)
        header, ids = _map(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
    return TokenFile(path, name, header, ids, reused=False)


def _digest(sources: Sequence[TextSource], tokenizer: Tokenizer) -> str:
    digest = blake2b(_MAGIC, digest_size=16)
    for part in (tokenizer.to_bytes(), *(source.digest().encode() for source in sources)):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _write_tokens(path: Path, sources: Sequence[TextSource], tokenizer: Tokenizer, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(bytes(_HEADER_NBYTES))
        header = _write_ids(stream, sources, tokenizer, digest)
        stream.seek(0)
        stream.write((_MAGIC + msgspec.json.encode(header)).ljust(_HEADER_NBYTES - 1) + b"\n")


def _write_ids(stream: BinaryIO, sources: Sequence[TextSource], tokenizer: Tokenizer, digest: str) -> TokenHeader:
    dtype: Literal["<u2", "<i4"] = "<u2" if tokenizer.n_vocab <= 1 << 16 else "<i4"
    n_tokens, max_id = 0, -1
    for source in sources:
        try:
            for ids in tokenizer.encode_stream(source.chunks()):
                stream.write(ids.astype(dtype).tobytes())
                n_tokens += ids.size
                max_id = max(max_id, int(ids.max(initial=-1)))
        except DataError as error:
            message = str(error) if str(error).startswith(source.name) else f"{source.name}: {error}"
            raise DataError(message, offset=error.offset) from None
    return TokenHeader(dtype, n_tokens, tokenizer.n_vocab, max_id, digest)


def _map(path: Path) -> tuple[TokenHeader, NDArray[Any]]:
    """Map a token file. Raises FormatError if it is not a complete one, OSError if it cannot be read."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_NBYTES)
        nbytes = os.fstat(stream.fileno()).st_size
    try:
        header = msgspec.json.decode(start.removeprefix(_MAGIC), type=TokenHeader)
    except msgspec.DecodeError as error:
        raise FormatError(f"{path}: not a token file: {error}", offset=0) from None
    wanted = _HEADER_NBYTES + header.n_tokens * np.dtype(header.dtype).itemsize
    if not start.startswith(_MAGIC) or nbytes != wanted:
        raise FormatError(f"{path}: not a complete token file: {nbytes} bytes instead of {wanted}", offset=0)
    if header.n_tokens == 0:
        return header, np.empty(0, header.dtype)  # an empty range cannot be mapped
    return header, np.memmap(path, header.dtype, "r", _HEADER_NBYTES, (header.n_tokens,))


class Dataset:
    """Windows of ctx + 1 tokens: the first ctx are the input, the last ctx the targets.

    The end of the text is for validation: val_fraction of the tokens, at most 2**20, at least one window. The rest is
    for training: in every epoch a random start, windows at stride ctx from there, in a random order.
    """

    def __init__(self, tokens: TokenFile, ctx: int, seed: int, *, n_vocab: int, val_fraction: float = 0.1) -> None:
        """`n_vocab` is the model's. Raises DataError for too few tokens or ids the model does not have; UsageError."""
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
        self._check_ids(tokens.header.max_id)
        self.n_val = min(max(window, min(int(n_tokens * val_fraction), _MAX_VALIDATION)), n_tokens - window)
        self.n_train = n_tokens - self.n_val
        self._train, self._val = tokens.ids[: self.n_train], tokens.ids[self.n_train :]
        # One window fewer than fits leaves ctx starts or more to choose from, and makes every epoch equally long.
        self.windows_per_epoch = max(1, (self.n_train - ctx) // ctx)
        self._n_offsets = self.n_train - self.windows_per_epoch * ctx

    def batch(self, step: int, batch_size: int) -> tuple[Batch, Batch]:
        """Batch number `step` (from 0) of the run: tokens and targets, both int32 (batch_size, ctx).

        A function of (seed, step, batch_size) and nothing else. Batches run on over the ends of epochs.
        """
        samples = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, places = np.divmod(samples, self.windows_per_epoch)
        starts = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts[here] = self._window_starts(int(epoch), places[here])
        return self._windows(self._train, starts)

    def validation_batches(self, batch_size: int, max_tokens: int) -> Iterator[tuple[Batch, Batch, int]]:
        """The first windows of the validation part, side by side, at most max_tokens but at least one window.

        Yields (tokens, targets, n_rows): int32 (batch_size, ctx) twice. Rows from n_rows on only fill up the last batch
        (they repeat the first window) and must not count.
        """
        n_windows = min((self.n_val - 1) // self.ctx, max(1, max_tokens // self.ctx))
        for first in range(0, n_windows, batch_size):
            n_rows = min(batch_size, n_windows - first)
            starts = np.zeros(batch_size, np.int64)
            starts[:n_rows] = np.arange(first, first + n_rows) * self.ctx
            tokens, targets = self._windows(self._val, starts)
            yield tokens, targets, n_rows

    def _window_starts(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """First tokens of the windows at the given places of an epoch's order."""
        bits = philox(self.seed, f"data epoch {epoch}").random_raw(1 + ROUNDS)
        offset = int(bits[0]) % self._n_offsets
        return offset + self.ctx * permute(places, self.windows_per_epoch, bits[1:])

    def _windows(self, ids: NDArray[Any], starts: NDArray[np.int64]) -> tuple[Batch, Batch]:
        windows = ids[starts[:, None] + np.arange(self.ctx + 1)].astype(np.int32)
        self._check_ids(int(windows.max(initial=-1)))  # again: the file may have changed since its header was written
        return windows[:, :-1].copy(), windows[:, 1:].copy()

    def _check_ids(self, max_id: int) -> None:
        if max_id >= self.n_vocab:
            raise DataError(
                f"{self.name} has token id {max_id}, the model's n_vocab is {self.n_vocab}: "
                "use the tokenizer the model was exported with"
            )


ROUNDS = 8  # keys that `permute` takes


def permute(places: NDArray[np.int64], n: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a random permutation of 0 .. n - 1, chosen by the keys, sends each of `places`, in constant memory.

    A Feistel network permutes the numbers of 2 b bits; while its result is n or more, it is applied again, which keeps
    it a permutation of 0 .. n - 1 (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    values = _feistel(places.astype(np.uint64), half, keys)
    while (outside := values >= n).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low = np.uint64((1 << int(half)) - 1)
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return left << half | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit in changes every bit out."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
