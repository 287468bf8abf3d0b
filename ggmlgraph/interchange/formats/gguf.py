"""GGUF files: their key-value pairs, which tensors are in them, and where. Used by the sources.

Every length and offset is checked against the file before it is used, by Python integers, which do not wrap. Read are
versions 2 and 3, little-endian, and tensors of F32, F16, BF16, F64 and the quantised types with a decoder. The format
is described in ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ggmlgraph.core import encoding
from ggmlgraph.errors import FormatError, UnsupportedError, UsageError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.interchange.formats.stored import FLOATS, QUANTISED, Stored, check_shape
from ggmlgraph.table.dialect import V2

MAGIC = b"GGUF"
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ARRAY = 1 << 21  # elements; a vocabulary has some 2^18 at most
MAX_KEY_NBYTES = 1 << 16
MAX_STRING_NBYTES = 1 << 20
MAX_RANK = 4
ALIGNMENTS = [8 << k for k in range(14)]

MAX_PARTS = 1 << 12
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")

_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
TYPES = {number: name.lower() for name, number in V2.types.items()}
READ = (*FLOATS, *QUANTISED)


@dataclass(frozen=True)
class GgufFile:
    """What a file says. Arrays of numbers are numpy arrays, arrays of strings lists of bytes."""

    pairs: dict[str, Any]
    tensors: dict[str, Stored]  # shapes in numpy order


def read(path: Path) -> GgufFile:
    """A file; of a model in several, the first stands for all. Raises FormatError with the offset of the first fault,
    UnsupportedError, or UsageError for another part than the first."""
    first = _read(path)
    count, number = first.pairs.get("split.count", 0), first.pairs.get("split.no", 0)
    if type(count) is not int or count < 2:
        return first
    name = PART.fullmatch(path.name)
    if number != 0:
        begin = f"{name[1]}-00001-of-{name[3]}.gguf" if name else "the first"
        raise UsageError(f"{path} is part {number + 1} of {count}: give {begin}")
    if name is None or count > MAX_PARTS:
        raise UsageError(f"{path} is part 1 of {count}, not named NAME-00001-of-{count:05}.gguf: where are the others?")
    tensors = dict(first.tensors)
    for k in range(1, count):
        other = path.with_name(f"{name[1]}-{k + 1:05}-of-{name[3]}.gguf")
        part = _read(other)
        if part.pairs.get("split.no") != k or part.pairs.get("split.count") != count:
            raise FormatError(f"{other}: not part {k + 1} of {count}, as its name says")
        if twice := part.tensors.keys() & tensors.keys():
            raise FormatError(f"{other}: {min(twice)!r} is in another part too")
        tensors |= part.tensors
    if (wanted := first.pairs.get("split.tensors.count", len(tensors))) != len(tensors):
        raise FormatError(f"{path}: its parts have {len(tensors)} tensors, not {wanted}")
    return GgufFile(first.pairs, tensors)


def _read(path: Path) -> GgufFile:
    file, size = open_regular(path)
    with file:
        return _Reader(path, file, size).read()


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.at = 0

    def read(self) -> GgufFile:
        if self._take(4) != MAGIC:
            raise self._fault("not a GGUF file")
        version = self._u32()
        if version not in (2, 3):
            raise UnsupportedError(f"{self.path}: GGUF version {version}, or big-endian; versions 2 and 3 are read")
        n_tensors, n_pairs = self._u64(), self._u64()
        if n_tensors > MAX_TENSORS or n_pairs > MAX_PAIRS:
            raise self._fault(f"{n_tensors} tensors and {n_pairs} keys")
        pairs: dict[str, Any] = {}
        for _ in range(n_pairs):
            key = self._text(MAX_KEY_NBYTES)
            if key in pairs:
                raise self._fault(f"the key {key!r} twice")
            pairs[key] = self._value(self._u32())
        return GgufFile(pairs, self._tensors(n_tensors, pairs.get("general.alignment", 32)))

    def _fault(self, reason: str) -> FormatError:
        return FormatError(f"{self.path}: GGUF, byte {self.at}: {reason}", offset=self.at)

    def _take(self, n: int) -> bytes:
        if n > self.size - self.at:
            raise self._fault("the file ends here, in the middle of its header")
        self.at += n
        return self.file.read(n)

    def _u32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _bytes(self, limit: int) -> bytes:
        n = self._u64()
        if n > limit:
            raise self._fault(f"a string of {n} bytes")
        return self._take(n)

    def _text(self, limit: int) -> str:
        raw = self._bytes(limit)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._fault("a name that is not UTF-8") from None

    # -- values

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._bytes(MAX_STRING_NBYTES).decode(errors="replace")
        if kind == _ARRAY:
            return self._array(self._u32())
        return self._numbers(kind, 1)[0].item()

    def _array(self, kind: int) -> Any:
        n = self._u64()
        if n > MAX_ARRAY:
            raise self._fault(f"an array of {n} elements")
        if kind == _STRING:
            if 8 * n > self.size - self.at:
                raise self._fault(f"an array of {n} strings, more than the file can hold")
            return [self._bytes(MAX_STRING_NBYTES) for _ in range(n)]
        return self._numbers(kind, n)

    def _numbers(self, kind: int, n: int) -> Any:
        if kind == _BOOL:
            raw = self._take(n)
            if raw.strip(b"\0\1"):
                raise self._fault("a boolean that is neither 0 nor 1")
            return np.frombuffer(raw, np.bool_)
        if kind not in _SCALARS:
            raise self._fault(f"a value of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(n * dtype.itemsize), dtype)

    # -- tensors

    def _tensors(self, n: int, alignment: Any) -> dict[str, Stored]:
        if alignment not in ALIGNMENTS:
            raise self._fault(f"an alignment of {alignment!r}")
        infos = [self._info() for _ in range(n)]
        base = self._aligned(self.at, alignment)
        tensors: dict[str, Stored] = {}
        at = 0
        for name, shape, dtype, offset in infos:
            if name in tensors:
                raise self._fault(f"two tensors named {name!r}")
            if offset != at:
                raise self._fault(f"{name!r} is said to begin at {offset} of the data instead of {at}")
            tensors[name] = Stored(self.path, base + offset, dtype, shape)
            end = base + offset + encoding.nbytes(dtype, math.prod(shape))
            if end > self.size:
                raise self._fault(f"{name!r} reaches {end - self.size} bytes beyond the end of the file")
            at = self._aligned(end, alignment) - base
        if n and self.size > self._aligned(end, alignment):
            raise self._fault(f"{self.size - end} bytes behind the last tensor")
        return tensors

    def _info(self) -> tuple[str, tuple[int, ...], str, int]:
        name = self._text(MAX_KEY_NBYTES)
        rank = self._u32()
        if rank > MAX_RANK:
            raise self._fault(f"{name!r} with {rank} axes")
        shape = tuple(reversed(struct.unpack(f"<{rank}Q", self._take(8 * rank))))
        check_shape(self.path, name, shape)
        kind, offset = self._u32(), self._u64()
        dtype = TYPES.get(kind, f"the unknown type {kind}")
        if dtype not in READ:
            raise UnsupportedError(f"{self.path}: {name!r} is {dtype}; read are {', '.join(READ)}")
        if math.prod(shape[-1:]) % encoding.element(dtype).block:
            raise self._fault(f"{name!r} of {dtype} with rows of {shape[-1]}, no whole blocks")
        return name, shape, dtype, offset

    @staticmethod
    def _aligned(offset: int, alignment: int) -> int:
        return -(-offset // alignment) * alignment
