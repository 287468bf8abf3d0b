"""Sources become a token store: read as a stream, encoded on all cores, in the sources' order whatever their number.

What is written lies in a folder `.NAME.preparing` beside the store until all is there, with a journal that is renewed
after each shard: a process that was killed leaves what it had, and the next call goes on from there. Used by the
commands `data` and `train`.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b, file_digest
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph import machine
from ggmlgraph.data.documents import EMPTY, TWICE, Faults, Piece, Reading, Skipped, pieces
from ggmlgraph.data.sources import Source, sources_of
from ggmlgraph.data.store import (
    BLOCK,
    DOCUMENTS,
    MANIFEST,
    TOKENIZER,
    Manifest,
    Report,
    Shard,
    TokenStore,
    content_hash,
    is_store,
    open_store,
    sealed,
    sums_of,
)  # fmt: skip
from ggmlgraph.durable import making, replacing, sync
from ggmlgraph.errors import DataError, FormatError, GGError, UsageError
from ggmlgraph.files.regular import read_regular
from ggmlgraph.tokenizers.base import Segment, Tokenizer, encodable
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes

MOST_UNKNOWN = 0.25  # of the tokens, of which one may stand for a whole word: more, and the text is in other letters
SHARD_TOKENS = 1 << 26
_BATCH = 1 << 18  # characters that one process encodes at a time
_FEW = 16  # batches, which one process encodes sooner than others have begun
_SHORT = 1 << 12  # characters of a document that is not looked at for places to cut it
_COMPARED = 1 << 24  # characters of a document that is held to be compared with others
_JOURNAL, _HASHES = "journal.json", "hashes"


@dataclass(frozen=True)
class Plan:
    """How a store is made."""

    reading: Reading = field(default_factory=Reading)
    end: int | None = None  # the token after each document; None: none
    deduplicate: bool = False
    most_bad: int = 0
    n_processes: int = field(default_factory=machine.n_threads)
    shard_tokens: int = SHARD_TOKENS


class Position(msgspec.Struct, frozen=True):
    """How far the sources are read."""

    source: int = 0  # those before it are read
    n_segments: int = 0  # of this one


class _Journal(msgspec.Struct):
    """What is done, and of what."""

    key: str  # of tokenizer, sources and plan
    position: Position = Position()
    reports: list[Report] = []  # of the sources before it
    skipped: dict[str, dict[str, Skipped]] = {}  # in them
    shards: list[Shard] = []
    n_documents: int = 0
    n_hashes: int = 0  # of documents of the sources before it
    n_unknown: int = 0
    max_id: int = -1
    n_tokens_here: int = 0  # of the source at which the shards end


class Told(NamedTuple):
    """How far it is."""

    source: str
    nbytes: int  # read, of text
    n_tokens: int


def prepare(
    specs: Sequence[str | Path],
    tokenizer: Tokenizer,
    path: Path,
    plan: Plan,
    tell: Callable[[Told], None] | None = None,
) -> TokenStore:
    """The sources' tokens, one document after the other, as a store at `path`, whole or not at all.

    Raises DataError for a source that cannot be read, more bad documents than allowed, or a text that is mostly unknown
    to the tokenizer; UsageError if there is something at `path`, or no source.
    """
    sources = sources_of(specs)
    if not sources:
        raise UsageError("no text to tokenise")
    if path.exists():
        raise UsageError(f"{path} is there already: choose another -o")
    path.parent.mkdir(parents=True, exist_ok=True)
    resumable = all(source.can_be_read_again for source in sources)
    with _Work(path, _key(sources, tokenizer, plan), resumable=resumable) as work:
        Preparation(sources, tokenizer, plan, work, tell or (lambda _: None)).run()
        work.finish()
    return open_store(path)


def _key(sources: Sequence[Source], tokenizer: Tokenizer, plan: Plan) -> str:
    """What must be the same for a store that was begun to be gone on with. How many processes is not."""
    parts = [tokenizer.to_bytes(), repr((plan.reading, plan.end, plan.deduplicate, plan.shard_tokens)).encode()]
    parts += [f"{each.name} {each.state}".encode() for each in sources]
    return content_hash(b"".join(len(part).to_bytes(8, "little") + part for part in parts))


class _Work:
    """The folder that becomes the store, locked: what is in it, and how far it is."""

    def __init__(self, path: Path, key: str, *, resumable: bool) -> None:
        self.path = path
        self.folder = path.with_name(f".{path.name}.preparing")
        self.folder.mkdir(exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise GGError(f"{path} is in use: another process is preparing it") from None
        self.journal = self._read(key) if resumable else None
        if self.journal is None:
            for old in self.folder.iterdir():
                old.unlink()
            self.journal = _Journal(key)
        self.keep = resumable

    def __enter__(self) -> _Work:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder.exists() and not (self.keep and self.journal and self.journal.shards):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _read(self, key: str) -> _Journal | None:
        try:
            journal = msgspec.json.decode(read_regular(self.folder / _JOURNAL, 1 << 30), type=_Journal)
        except (GGError, msgspec.DecodeError):
            return None
        return journal if journal.key == key else None

    def write(self, name: str, data: bytes) -> None:
        """A whole file, on the disk."""
        with (self.folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def save(self) -> None:
        """The journal, after what it tells of."""
        assert self.journal is not None
        sync(self.folder)
        with replacing(self.folder / _JOURNAL) as temporary:
            temporary.write_bytes(msgspec.json.encode(self.journal))

    def finish(self) -> None:
        """The folder becomes the store."""
        for name in (_JOURNAL, _HASHES):
            (self.folder / name).unlink(missing_ok=True)
        sync(self.folder)
        self.folder.rename(self.path)
        sync(self.path.parent)


# ---------------------------------------------------------------- the work


class _Batch(NamedTuple):
    """Segments of documents, and where the sources are read up to with them."""

    segments: list[Segment]
    ends: list[bool]  # whether a document ends with the segment
    sources: list[int]
    position: Position


class _Encoded(NamedTuple):
    ids: bytes  # as the store has them
    n_tokens: NDArray[np.int64]  # of each segment
    n_unknown: int
    max_id: int


class Preparation:
    """One call of `prepare`."""

    def __init__(
        self, sources: Sequence[Source], tokenizer: Tokenizer, plan: Plan, work: _Work, tell: Callable[[Told], None]
    ) -> None:
        assert work.journal is not None
        self._sources, self._tokenizer, self._plan, self._work, self._tell = sources, tokenizer, plan, work, tell
        self._journal = journal = work.journal
        self._dtype: Literal["<u2", "<u4"] = "<u2" if tokenizer.n_vocab <= 1 << 16 else "<u4"
        self._faults = Faults(plan.most_bad, journal.skipped)
        self._counts = [[r.n_documents, r.n_tokens, r.nbytes, r.n_chars] for r in journal.reports]
        self._counts += [[0, 0, 0, 0] for _ in sources[len(journal.reports) :]]
        if journal.position.source < len(sources):
            self._counts[journal.position.source][1] = journal.n_tokens_here
        self._hashes: dict[bytes, None] = {}  # in their order
        self._n_hashes_before: dict[int, int] = {}  # by source
        self._nbytes = 0

    def run(self) -> None:
        """Write everything but the last rename."""
        work, journal = self._work, self._journal
        n_before = sum(shard.n_tokens for shard in journal.shards)
        with self._appending(DOCUMENTS, journal.n_documents * 8) as documents:
            if self._plan.deduplicate:
                self._hashes = _read_hashes(work.folder / _HASHES, journal.n_hashes)
            with _Writer(self, n_before, documents) as writer:
                for batch, encoded in encode(self._tokenizer, self._batches(), self._plan, self._dtype):
                    writer.add(batch, encoded)
                writer.close_shard()
        self._seal()

    def _appending(self, name: str, size: int) -> BinaryIO:
        file = (self._work.folder / name).open("a+b")
        file.truncate(size)
        file.seek(size)
        return file

    def _seal(self) -> None:
        journal, work = self._journal, self._work
        if not journal.shards:
            raise DataError(f"{_all(self._sources)}: no text, and so no tokens")
        leaf = self._tokenizer.to_bytes()
        work.write(TOKENIZER, leaf)
        manifest = Manifest(
            dtype=self._dtype, n_vocab=self._tokenizer.n_vocab, max_id=journal.max_id, end=self._plan.end,
            n_unknown=journal.n_unknown, tokenizer=content_hash(leaf),
            documents=_hash_of(work.folder / DOCUMENTS), shards=journal.shards,
            sources=self.reports(len(self._sources)),
        )  # fmt: skip
        n_tokens = sum(shard.n_tokens for shard in journal.shards)
        if journal.n_unknown > MOST_UNKNOWN * n_tokens:
            work.keep = False
            raise DataError(
                f"{self._sources[0].name}: {journal.n_unknown / n_tokens:.0%} of the tokens would stand for what the "
                "tokenizer does not know: give a tokenizer that has these characters"
            )
        work.write(MANIFEST, sealed(manifest))

    def reports(self, n: int) -> list[Report]:
        """Of the first n sources."""
        return [
            Report(source.name, n_documents, n_tokens, nbytes, n_chars, self._faults.of.get(source.name, {}))
            for source, (n_documents, n_tokens, nbytes, n_chars) in zip(
                self._sources[:n], self._counts[:n], strict=True
            )
        ]

    # ------------------------------------------------------------ reading

    def _batches(self) -> Iterator[_Batch]:
        """All there is to encode, from the journal's position on."""
        begin = self._journal.position
        segments: list[Segment] = []
        ends: list[bool] = []
        of: list[int] = []
        n_chars = 0
        for i in range(begin.source, len(self._sources)):
            n_passed = begin.n_segments if i == begin.source else 0
            self._n_hashes_before[i] = len(self._hashes)
            for number, (segment, is_end) in enumerate(self._segments(i)):
                if number < n_passed:
                    continue
                segments.append(segment)
                ends.append(is_end)
                of.append(i)
                n_chars += len(segment[1])
                if n_chars >= _BATCH:
                    yield _Batch(segments, ends, of, Position(i, number + 1))
                    segments, ends, of, n_chars = [], [], [], 0
        if segments:
            yield _Batch(segments, ends, of, Position(len(self._sources)))

    def _segments(self, i: int) -> Iterator[tuple[Segment, bool]]:
        """The segments of a source's documents, and whether the document ends with each."""
        source = self._sources[i]
        try:
            for document in self._documents(i):
                if isinstance(document, str):
                    yield ("", document), True
                    continue
                last: Segment | None = None
                for segments in self._tokenizer.segments(document):
                    for segment in segments:
                        if last is not None:
                            yield last, False
                        last = segment
                if last is not None:
                    yield last, True
        except DataError as error:
            raise _of(source.name, error) from None

    def _documents(self, i: int) -> Iterator[str | Iterator[str]]:
        """The documents of a source, but those that are empty or there already: short ones whole, others in pieces."""
        source, faults, counts = self._sources[i], self._faults, self._counts[i]
        stream = pieces(source, self._plan.reading, faults)
        number = 0
        for first in stream:
            number += 1
            held = _held(first, stream, _COMPARED if self._plan.deduplicate else 1)
            if not any(piece.text for piece in held):
                faults.passed(source.name, EMPTY, lambda n=number: f"document {n}")  # type: ignore[misc]
                continue
            if held[-1].ends and self._plan.deduplicate and self._is_known(held):
                faults.passed(source.name, TWICE, lambda n=number: f"document {n}")  # type: ignore[misc]
                continue
            counts[0] += 1
            if first.ends and len(first.text) < _SHORT:
                yield self._count(counts, encodable(first.text))
            else:
                yield self._counted(counts, held, stream)

    def _counted(self, counts: list[int], held: list[Piece], stream: Iterator[Piece]) -> Iterator[str]:
        piece = held[-1]
        for piece in held:
            yield self._count(counts, piece.text)
        while not piece.ends:
            piece = next(stream, Piece("", True))
            yield self._count(counts, piece.text)

    def _count(self, counts: list[int], text: str) -> str:
        nbytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        counts[2] += nbytes
        counts[3] += len(text)
        self._nbytes += nbytes
        return text

    def _is_known(self, held: list[Piece]) -> bool:
        """Whether there was a document of the same words; white space does not count."""
        text = " ".join("".join(piece.text for piece in held).split())
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in self._hashes:
            return True
        self._hashes[key] = None
        return False

    # ------------------------------------------------------------ what the writer says

    def wrote(self, batch: _Batch, encoded: _Encoded, n_tokens: int) -> None:
        """Count a batch; n_tokens: of all so far."""
        for source, n in zip(batch.sources, encoded.n_tokens.tolist(), strict=True):
            self._counts[source][1] += n
        self._journal.n_unknown += encoded.n_unknown
        self._journal.max_id = max(self._journal.max_id, encoded.max_id)
        self._tell(Told(self._sources[batch.sources[-1]].name, self._nbytes, n_tokens))

    def wrote_shard(self, shard: Shard, n_documents: int, position: Position) -> None:
        """Keep that a shard is whole, which ends where the sources are read up to `position`."""
        journal, i = self._journal, position.source
        names = {source.name for source in self._sources[:i]}
        journal.shards = [*journal.shards, shard]
        journal.position, journal.n_documents = position, n_documents
        journal.reports = self.reports(i)
        journal.skipped = {name: of for name, of in self._faults.of.items() if name in names}
        journal.n_tokens_here = self._counts[i][1] if i < len(self._sources) else 0
        if self._plan.deduplicate:
            journal.n_hashes = self._n_hashes_before.get(i, len(self._hashes))
            self._work.write(_HASHES, b"".join(islice(self._hashes, journal.n_hashes)))
        self._work.save()

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._dtype)

    @property
    def shard_tokens(self) -> int:
        return self._plan.shard_tokens

    @property
    def n_shards(self) -> int:
        return len(self._journal.shards)

    @property
    def folder(self) -> Path:
        return self._work.folder


def _held(first: Piece, stream: Iterator[Piece], most: int) -> list[Piece]:
    """The first pieces of a document, up to so many characters, or all."""
    held, n = [first], len(first.text)
    while not held[-1].ends and n < most:
        held.append(next(stream, Piece("", True)))
        n += len(held[-1].text)
    return held


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def _read_hashes(path: Path, n: int) -> dict[bytes, None]:
    data = path.read_bytes()[: n * 16] if n else b""
    return dict.fromkeys(data[at : at + 16] for at in range(0, len(data), 16))


def _of(name: str, error: DataError) -> DataError:
    """The error with the source's name before it."""
    if str(error).startswith(name):
        return error
    return DataError(f"{name}: {error}", offset=error.offset)


def _all(sources: Sequence[Source]) -> str:
    return sources[0].name if len(sources) == 1 else f"{sources[0].name} and {len(sources) - 1} more"


class _Writer:
    """Writes shards one after the other; a context manager."""

    def __init__(self, of: Preparation, n_tokens: int, documents: BinaryIO) -> None:
        self._of, self._documents, self._n_tokens = of, documents, n_tokens
        self._file: BinaryIO | None = None
        self._here, self._sums, self._rest = 0, b"", b""  # tokens of the shard; sums; bytes that are not summed yet
        self._position = Position()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, batch: _Batch, encoded: _Encoded) -> None:
        """Append a batch."""
        self._position = batch.position
        if encoded.ids:
            if self._file is None:
                self._file = (self._of.folder / f"{self._name}.ids").open("wb")
            self._file.write(encoded.ids)
            data = self._rest + encoded.ids
            whole = len(data) // BLOCK * BLOCK
            self._sums += sums_of(data[:whole])
            self._rest = data[whole:]
        ends = self._n_tokens + np.cumsum(encoded.n_tokens)
        self._documents.write(ends[np.array(batch.ends, np.bool_)].astype("<u8").tobytes())
        n = int(encoded.n_tokens.sum())
        self._n_tokens += n
        self._here += n
        self._of.wrote(batch, encoded, self._n_tokens)
        if self._here >= self._of.shard_tokens:
            self.close_shard()

    @property
    def _name(self) -> str:
        return f"{self._of.n_shards:06d}"

    def close_shard(self) -> None:
        """The shard is whole."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sums = self._sums + sums_of(self._rest)
        with (self._of.folder / f"{self._name}.sums").open("wb") as file:
            file.write(sums)
            file.flush()
            os.fsync(file.fileno())
        self._documents.flush()
        os.fsync(self._documents.fileno())
        shard = Shard(self._name, self._here, content_hash(sums))
        self._file, self._here, self._sums, self._rest = None, 0, b"", b""
        self._of.wrote_shard(shard, self._documents.tell() // 8, self._position)


# ---------------------------------------------------------------- encoding on all cores


def encode(
    tokenizer: Tokenizer, batches: Iterator[_Batch], plan: Plan, dtype: str
) -> Iterator[tuple[_Batch, _Encoded]]:
    """The batches encoded, in their order; few by this process, more by as many as the plan has."""
    first = list(islice(batches, _FEW if plan.n_processes > 1 else 1))
    if len(first) < _FEW:
        for batch in chain(first, batches):
            yield batch, _encoded(tokenizer, batch.segments, batch.ends, plan.end, dtype)
        return
    with ProcessPoolExecutor(
        plan.n_processes, multiprocessing.get_context("spawn"), _begin, (tokenizer.to_bytes(), plan.end, dtype)
    ) as pool:
        waiting: deque[tuple[_Batch, Future[_Encoded]]] = deque()
        try:
            for batch in chain(first, batches):
                waiting.append((batch, pool.submit(_work, batch.segments, batch.ends)))
                if len(waiting) > 2 * plan.n_processes + 2:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        except BrokenProcessPool:
            raise GGError("a process that encodes text was ended: out of memory? the same command goes on") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _next(waiting: deque[tuple[_Batch, Future[_Encoded]]]) -> tuple[_Batch, _Encoded]:
    batch, future = waiting.popleft()
    return batch, future.result()


def _encoded(tokenizer: Tokenizer, segments: list[Segment], ends: list[bool], end: int | None, dtype: str) -> _Encoded:
    parts, n_tokens = [], []
    last = np.array([] if end is None else [end], np.int32)
    for ids, is_end in zip(tokenizer.encode_segments(segments), ends, strict=True):
        parts.append(ids)
        if is_end:
            parts.append(last)
        n_tokens.append(ids.size + (last.size if is_end else 0))
    ids = np.concatenate([np.empty(0, np.int32), *parts])
    n_unknown = int(np.count_nonzero(ids == tokenizer.unk_id)) if tokenizer.unk_id is not None else 0
    return _Encoded(ids.astype(dtype).tobytes(), np.array(n_tokens, np.int64), n_unknown, int(ids.max(initial=-1)))


_worker: tuple[Tokenizer, int | None, str] | None = None  # of a process that encodes


def _begin(leaf: bytes, end: int | None, dtype: str) -> None:
    """A process that encodes: it leaves Ctrl-C to the first, and ends when that is gone."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent.join,), daemon=True).start()
    _worker = tokenizer_from_bytes(leaf), end, dtype


def _end_after(waiting: Callable[[], None]) -> None:
    waiting()
    os._exit(1)


def _work(segments: list[Segment], ends: list[bool]) -> _Encoded:
    assert _worker is not None
    tokenizer, end, dtype = _worker
    return _encoded(tokenizer, segments, ends, end, dtype)


# ---------------------------------------------------------------- beside a run


def prepared(specs: Sequence[str | Path], tokenizer: Tokenizer, folder: Path, plan: Plan | None = None) -> TokenStore:
    """The sources' tokens as a store in the folder, named by tokenizer, content and plan: a moved file is not encoded
    again, and a changed one is. A store that is damaged is made anew.

    Raises as `prepare`.
    """
    plan = plan or Plan(end=tokenizer.eos_id)
    sources = sources_of(specs)
    if not sources:
        raise UsageError("no text to tokenise")
    if not all(source.can_be_read_again for source in sources):
        raise UsageError("standard input can be read once only: make a store of it, ggmlgraph data prepare - -o STORE")
    parts = [tokenizer.to_bytes(), repr((plan.reading, plan.end, plan.deduplicate)).encode()]
    parts += [source.digest().encode() for source in sources]
    path = folder / content_hash(b"".join(len(part).to_bytes(8, "little") + part for part in parts))
    name = _all(sources)
    if is_store(path):
        with suppress(FormatError):
            return replace(open_store(path), name=name, reused=True)
        shutil.rmtree(path)
    try:
        return replace(prepare(specs, tokenizer, path, plan), name=name)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def reopen(folder: Path, digest: str) -> TokenStore | None:
    """The store with this digest in a folder of such stores; None if it is not there, or damaged."""
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        with suppress(GGError):
            if (store := open_store(path.parent)).digest == digest:
                return store
    return None


def keep(store: TokenStore, folder: Path) -> TokenStore:
    """The same store, copied to another folder. Raises OSError."""
    path = folder / store.path.name
    with making(path) as temporary:
        for file in store.path.iterdir():
            shutil.copyfile(file, temporary / file.name)
    return open_store(path)
