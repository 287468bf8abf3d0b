"""Token stores: what data are once they are tokens, in a folder, mapped by blocks and checked as they are read.

    store.json      what there is, sealed by its own hash
    NNNNNN.ids      ids, little-endian, uint16 if the tokenizer has at most 65536, else uint32; nothing else
    NNNNNN.sums     BLAKE2b, 8 bytes, of every 64 KiB of them
    documents       uint64: where each document ends, its end token included, in tokens from the first shard's begin
    tokenizer.bin   the tokenizer (tokenizers/leaf.py)

docs/data.md specifies it. prepare.py writes stores; others.py opens those of other programs as the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data.documents import Skipped
from ggmlgraph.data.numbers import Numbers
from ggmlgraph.errors import DataError, FormatError, GGError
from ggmlgraph.files.regular import open_regular, read_regular
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes

MANIFEST, DOCUMENTS, TOKENIZER = "store.json", "documents", "tokenizer.bin"
BLOCK = 1 << 16  # bytes under one sum
SUM = 8  # bytes of a sum
_MOST_MANIFEST, _MOST_TOKENIZER = 1 << 28, 1 << 30
_MOST_TOKENS = 1 << 50


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of a store's files of ids."""

    name: str  # of its files, without .ids
    n_tokens: int
    sums: str  # hash of its sums


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one source gave."""

    name: str
    n_documents: int = 0
    n_tokens: int = 0
    nbytes: int = 0  # of the text that is in the store, in UTF-8
    n_chars: int = 0
    skipped: dict[str, Skipped] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`store.json`."""

    version: Literal[1] = 1
    dtype: Literal["<u2", "<u4"]
    n_vocab: int  # of the tokenizer
    max_id: int  # the highest there is; -1 without tokens
    end: int | None  # the token that ends documents
    n_unknown: int  # tokens that stand for what the tokenizer has no ids for
    tokenizer: str  # hash of tokenizer.bin
    documents: str  # hash of that file
    shards: list[Shard]
    sources: list[Report]


class _Sealed(msgspec.Struct):
    manifest: msgspec.Raw
    blake2b: str


def content_hash(data: bytes) -> str:
    """BLAKE2b, 16 bytes."""
    return blake2b(data, digest_size=16).hexdigest()


def sealed(manifest: Manifest) -> bytes:
    """The bytes of store.json."""
    text = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Sealed(msgspec.Raw(text), content_hash(text)))


@dataclass(frozen=True)
class IdFile:
    """A file of ids."""

    path: Path
    n_tokens: int
    dtype: np.dtype[Any]
    offset: int = 0  # of the first id, bytes
    sums: bytes | None = None  # of its blocks


@dataclass(frozen=True)
class TokenStore:
    """Tokens in one order, in one or more files; those of others do not say everything."""

    path: Path
    name: str  # what errors call it
    files: Sequence[IdFile]
    digest: str  # of the content: the same wherever it lies
    n_vocab: int | None = None
    max_id: int | None = None
    tokenizer_digest: str = ""
    n_unknown: int = 0
    manifest: Manifest | None = None
    reused: bool = False
    _readers: list[_Reader] = field(default_factory=list)

    @cached_property
    def n_tokens(self) -> int:
        return sum(each.n_tokens for each in self.files)

    @property
    def unknown(self) -> float:
        """Share of the tokens that stand for what the tokenizer has no ids for."""
        return self.n_unknown / max(1, self.n_tokens)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.array([each.n_tokens for each in self.files], np.int64).cumsum()

    def at(self, starts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
        """The n tokens from each start on, across files: int64 (len(starts), n).

        Raises DataError where a file is no longer what was written.
        """
        if not self._readers:
            self._readers.extend(_Reader(each) for each in self.files)
        found = np.empty((len(starts), n), np.int64)
        for row, start in zip(found, starts.tolist(), strict=True):
            done = 0
            while done < n:
                i = int(np.searchsorted(self._ends, start + done, side="right"))
                if i == len(self.files):
                    raise DataError(f"{self.name} has no token {start + done}")
                here = start + done - (int(self._ends[i - 1]) if i else 0)
                n_here = min(n - done, self.files[i].n_tokens - here)
                row[done : done + n_here] = self._readers[i].at(here, n_here)
                done += n_here
        return found

    @property
    def ids(self) -> NDArray[np.int64]:
        """All of them, int64 (n_tokens,)."""
        return self.at(np.zeros(1, np.int64), self.n_tokens).reshape(-1)

    @cached_property
    def documents(self) -> NDArray[np.uint64]:
        """Where each document ends; none where that is not known. Raises DataError if the file was changed."""
        if self.manifest is None:
            return np.empty(0, np.uint64)
        data = read_regular(self.path / DOCUMENTS, _MOST_TOKENS)
        if content_hash(data) != self.manifest.documents:
            raise DataError(f"{self.path / DOCUMENTS} is not what was written")
        return np.frombuffer(data, "<u8")

    def tokenizer(self) -> Tokenizer | None:
        """The one whose ids these are; None if that is not known. Raises DataError if it was changed."""
        if self.manifest is None:
            return None
        data = read_regular(self.path / TOKENIZER, _MOST_TOKENIZER)
        if content_hash(data) != self.manifest.tokenizer:
            raise DataError(f"{self.path / TOKENIZER} is not what was written")
        return tokenizer_from_bytes(data)

    def verify(self) -> None:
        """Read everything. Raises DataError if something is not what was written."""
        step = 1 << 20
        for begin in range(0, self.n_tokens, step):
            self.at(np.array([begin]), min(step, self.n_tokens - begin))
        _ = self.documents, self.tokenizer()


class _Reader:
    """The ids of a file, each block checked when it is first read."""

    def __init__(self, file: IdFile) -> None:
        self._file = file
        self._numbers = Numbers(file.path, file.offset, file.dtype)
        self._unchecked = None if file.sums is None else np.ones(len(file.sums) // SUM, np.bool_)

    def at(self, start: int, n: int) -> NDArray[Any]:
        if self._unchecked is not None:
            size = self._file.dtype.itemsize
            for block in range(start * size // BLOCK, ((start + n) * size - 1) // BLOCK + 1):
                if self._unchecked[block]:
                    self._check(block)
                    self._unchecked[block] = False
        return self._numbers.at(np.array([start]), n).reshape(-1)

    def _check(self, block: int) -> None:
        file, per_block = self._file, BLOCK // self._file.dtype.itemsize
        assert file.sums is not None
        n = min(per_block, file.n_tokens - block * per_block)
        data = self._numbers.at(np.array([block * per_block]), n)[0].tobytes()
        if blake2b(data, digest_size=SUM).digest() != file.sums[block * SUM : (block + 1) * SUM]:
            at = block * BLOCK
            raise DataError(f"{file.path}: bytes {at} to {at + len(data)} are not what was written", offset=at)


def sums_of(data: bytes) -> bytes:
    """The sums of a file's blocks, of a part that begins at one."""
    return b"".join(blake2b(data[at : at + BLOCK], digest_size=SUM).digest() for at in range(0, len(data), BLOCK))


def is_store(path: Path) -> bool:
    """Whether there is a store of ours."""
    return (path / MANIFEST).is_file()


def open_store(path: Path) -> TokenStore:
    """A store of ours; its sizes are checked now, its content as it is read.

    Raises FormatError for what is none, or not whole.
    """
    manifest = read_manifest(path)
    dtype, files = np.dtype(manifest.dtype), []
    for shard in manifest.shards:
        ids = path / f"{shard.name}.ids"
        nbytes = _size(ids)
        if nbytes != shard.n_tokens * dtype.itemsize:
            raise FormatError(f"{ids} has {nbytes} bytes instead of {shard.n_tokens * dtype.itemsize}")
        sums = read_regular(ids.with_suffix(".sums"), nbytes // BLOCK * SUM + SUM)
        if content_hash(sums) != shard.sums or len(sums) != -(-nbytes // BLOCK) * SUM:
            raise FormatError(f"{ids.with_suffix('.sums')} is not what was written")
        files.append(IdFile(ids, shard.n_tokens, dtype, 0, sums))
    content = [manifest.tokenizer, manifest.documents, *(each.sums for each in manifest.shards)]
    return TokenStore(
        path, str(path), files, content_hash(" ".join(content).encode()), manifest.n_vocab, manifest.max_id,
        manifest.tokenizer, manifest.n_unknown, manifest,
    )  # fmt: skip


def read_manifest(path: Path) -> Manifest:
    """What store.json says. Raises FormatError."""
    file = path / MANIFEST
    try:
        seal = msgspec.json.decode(read_regular(file, _MOST_MANIFEST), type=_Sealed)
        text = bytes(seal.manifest)
        if content_hash(text) != seal.blake2b:
            raise FormatError(f"{file} is not what was written")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{file}: not of a token store: {error}") from None
    names = [shard.name for shard in manifest.shards]
    wrong = [shard for shard in manifest.shards if not (0 < shard.n_tokens < _MOST_TOKENS and shard.name.isdecimal())]
    if wrong or len(set(names)) != len(names) or not -1 <= manifest.max_id < max(1, manifest.n_vocab):
        raise FormatError(f"{file}: not of a token store: its shards or ids make no sense")
    return manifest


def _size(path: Path) -> int:
    try:
        file, nbytes = open_regular(path)
    except GGError as error:
        raise FormatError(str(error)) from None
    file.close()
    return nbytes
