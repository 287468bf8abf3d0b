"""Which files data come from: files, folders, patterns, standard input and builtin texts, plain or compressed.

What a file is compressed with is seen by how it begins, not by its name. Used by documents.py and prepare.py.
"""

from __future__ import annotations

import glob
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ggmlgraph.data.corpus import builtin
from ggmlgraph.errors import DataError, GGError, UnsupportedError
from ggmlgraph.files.regular import open_regular

STDIN, _STANDARD_INPUT = "-", "standard input"
_BLOCK = 1 << 20  # bytes
_FED = 1 << 10  # bytes unpacked at a time: what comes out of them is at most some 30,000 times as much
_MOST_MEMORY = 1 << 28  # bytes that unpacking may take
_PACKED = (".gz", ".xz", ".zst", ".zstd")


@dataclass(frozen=True)
class Source:
    """One stream of bytes: `name` is what errors call it, `open` gives its unpacked bytes from the start."""

    name: str
    open: Callable[[], io.BufferedReader]
    path: Path | None = None  # None: standard input, or builtin

    @property
    def can_be_read_again(self) -> bool:
        return self.name != _STANDARD_INPUT

    @property
    def suffix(self) -> str:
        """Of the name without that of its compression: ".jsonl" of "a.jsonl.zst"."""
        name = Path(self.name.lower())
        return (name.with_suffix("") if name.suffix in _PACKED else name).suffix

    @property
    def state(self) -> str:
        """Changes when the file is written to."""
        if self.path is None:
            return ""
        status = self.path.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"

    def digest(self) -> str:
        """Hash of the unpacked content and its size: the same wherever the file lies."""
        content, nbytes = blake2b(digest_size=16), 0
        with self.open() as stream:
            while block := stream.read(_BLOCK):
                content.update(block)
                nbytes += len(block)
        return f"{nbytes}:{content.hexdigest()}"


def sources_of(specs: Iterable[str | Path]) -> list[Source]:
    """The sources that paths, folders, patterns, "-" and builtin:NAME stand for, each once, folders in their order.

    Raises UsageError for an unknown builtin; DataError for what is not there, holds nothing, or is no regular file.
    """
    found = [source for spec in specs for source in _named(spec)]
    return list({source.path or source.name: source for source in found}.values())


def _named(spec: str | Path) -> Iterator[Source]:
    if isinstance(spec, str) and spec == STDIN:
        yield Source(_STANDARD_INPUT, _standard_input)
        return
    if isinstance(spec, str) and spec.startswith("builtin:"):
        data = builtin(spec)
        yield Source(spec, lambda: io.BufferedReader(io.BytesIO(data)))
        return
    path = Path(spec)
    try:
        if path.is_dir():
            paths = list(_below(path))
            if not paths:
                raise DataError(f"{path}: there is no file in the folder")
        elif not os.path.lexists(path) and glob.has_magic(str(path)):
            found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  (it may be absolute)
            paths = [Path(name) for name in found if not Path(name).is_dir()]
            if not paths:
                raise DataError(f"{path}: no file has such a name")
        else:
            paths = [path]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    yield from map(_file, paths)


def _below(folder: Path) -> Iterator[Path]:
    """The files of a folder, name by name; hidden ones, special ones and folders that were entered already are not."""
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            status = path.stat()
        except OSError:
            continue  # a link that leads nowhere, or in a circle
        if stat.S_ISREG(status.st_mode):
            yield path
        elif stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in entered:
            entered.add((status.st_dev, status.st_ino))
            names = sorted((name for name in os.listdir(path) if not name.startswith(".")), reverse=True)  # noqa: PTH208
            waiting += [path / name for name in names]


def _file(path: Path) -> Source:
    try:
        open_regular(path)[0].close()
    except GGError as error:
        raise DataError(str(error)) from None
    name = str(path).encode(errors="backslashreplace").decode()  # JSON has no names that are not UTF-8
    return Source(name, lambda: _unpacked(open_regular(path)[0], name), path)


# ---------------------------------------------------------------- compression


def _standard_input() -> io.BufferedReader:
    stream = sys.stdin.buffer if hasattr(sys.stdin, "buffer") else io.BytesIO(sys.stdin.read().encode())
    return _unpacked(stream, _STANDARD_INPUT)


def _unpacked(stream: BinaryIO, name: str) -> io.BufferedReader:
    """What the stream holds, compressed or not. Reading raises DataError where that is damaged, or ends early."""
    start = stream.read(_FED)
    new = next((new for magic, new in _UNPACKERS.items() if start.startswith(magic)), None)
    blocks = chain([start], iter(lambda: stream.read(_BLOCK if new is None else _FED), b""))
    return io.BufferedReader(_Blocks(blocks if new is None else _chunks(blocks, name, new), stream), _BLOCK)


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UnsupportedError("zstd needs: pip install 'ggmlgraph[zstd]'") from None
    return zstandard.ZstdDecompressor(max_window_size=_MOST_MEMORY >> 1).decompressobj()


_UNPACKERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY),
    b"\x28\xb5\x2f\xfd": _zstd,
}


def _chunks(blocks: Iterator[bytes], name: str, new: Callable[[], Any]) -> Iterator[bytes]:
    """What a file of one or more compressed streams holds."""
    at, packed = 0, next(blocks, b"")
    while packed:
        unpacker = new()
        while not unpacker.eof:
            if not packed:
                raise DataError(f"{name}: the compressed data end early, at byte {at}", offset=at)
            try:
                yield from _unpack(unpacker, packed)
            except _errors() as error:
                raise DataError(f"{name}: the compressed data are damaged near byte {at}: {error}", offset=at) from None
            at += len(packed)
            packed = unpacker.unused_data if unpacker.eof else next(blocks, b"")
        packed = (packed or next(blocks, b"")).lstrip(b"\0")  # padding


def _unpack(unpacker: Any, packed: bytes) -> Iterator[bytes]:
    """What comes out of a few bytes; of xz, the only one of which that can be very much, a part at a time."""
    if not isinstance(unpacker, lzma.LZMADecompressor):
        yield unpacker.decompress(packed)
        return
    yield unpacker.decompress(packed, _BLOCK)
    while not (unpacker.eof or unpacker.needs_input):
        yield unpacker.decompress(b"", _BLOCK)


def _errors() -> tuple[type[Exception], ...]:
    """What unpacking raises for damaged data."""
    zstandard = sys.modules.get("zstandard")
    return (zlib.error, lzma.LZMAError, *(() if zstandard is None else (zstandard.ZstdError,)))


class _Blocks(io.RawIOBase):
    """Blocks of bytes as one stream, which fills what it is given."""

    def __init__(self, blocks: Iterator[bytes], below: BinaryIO) -> None:
        self._blocks, self._below, self._rest = blocks, below, memoryview(b"")
        self._error: GGError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer):
            if not self._rest and not self._next(told=filled == 0):
                break
            n = min(len(buffer) - filled, len(self._rest))
            buffer[filled : filled + n] = self._rest[:n]
            self._rest = self._rest[n:]
            filled += n
        return filled

    def _next(self, *, told: bool) -> bool:
        """Whether there is another block. An error waits until what came before it is read."""
        try:
            if self._error is None:
                self._rest = memoryview(next((block for block in self._blocks if block), b""))
        except GGError as error:
            self._error = error
        if self._error is not None and told:
            raise self._error
        return len(self._rest) > 0

    def close(self) -> None:
        if self._below is not getattr(sys.stdin, "buffer", None):
            self._below.close()
        super().close()
