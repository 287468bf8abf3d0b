"""Zip archives by the strictest rules: where each entry's bytes are in the file. Used by torch.py.

Zip says everything twice (a header before each entry, a directory at the end) and readers differ in whom they
believe, which is how a file shows one content to a scanner and another to the program that loads it. Here both must
agree, entries are stored as they are, lie one behind the other from the first byte to the directory without
overlap, and have unique relative names; the directory ends the file. What PyTorch writes passes, zip64 included.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ggmlgraph.errors import FormatError

MAX_ENTRIES = 1 << 20
MAX_DIRECTORY_NBYTES = 256 << 20
CHUNK = 1 << 20

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_DESCRIPTOR, _UTF8 = 0x8, 0x800  # flags: sizes follow the data; the name is UTF-8
_ZIP64 = 1  # id of the extra field with 64-bit sizes


@dataclass(frozen=True)
class Entry:
    """One stored entry."""

    name: str
    offset: int  # of its bytes in the file
    nbytes: int
    crc: int


def read_entries(path: Path, file: BinaryIO, size: int) -> dict[str, Entry]:
    """The entries of an archive by name, headers checked, contents not: see `check`. Raises FormatError."""
    return _Archive(path, file, size).entries()


def check_entry(path: Path, file: BinaryIO, entry: Entry) -> None:
    """Raise FormatError unless an entry's bytes have its checksum; reads them once, a megabyte at a time."""
    file.seek(entry.offset)
    crc, left = 0, entry.nbytes
    while left:
        chunk = file.read(min(left, CHUNK))
        if not chunk:
            break
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    if left or crc != entry.crc:
        raise FormatError(f"{path}: {entry.name!r} is damaged: its checksum is wrong", offset=entry.offset)


@dataclass(frozen=True)
class _Central:
    """An entry as the directory has it."""

    name: bytes
    flags: int
    crc: int
    nbytes: int
    offset: int  # of its local header


class _Archive:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def entries(self) -> dict[str, Entry]:
        n, start, nbytes = self._directory()
        found: dict[str, Entry] = {}
        at = 0
        for central in sorted(self._centrals(n, start, nbytes), key=lambda c: c.offset):
            if central.offset != at:
                raise self._fault("entries that overlap, or bytes between them", at)
            entry, at = self._local(central, start)
            if entry.name in found:
                raise self._fault(f"two entries named {entry.name!r}", central.offset)
            found[entry.name] = entry
        if at != start:
            raise self._fault("bytes that belong to no entry", at)
        return found

    def _fault(self, reason: str, offset: int) -> FormatError:
        return FormatError(f"{self.path}: zip archive, byte {offset}: {reason}", offset=offset)

    def _at(self, offset: int, nbytes: int) -> bytes:
        """Bytes of the file."""
        if not 0 <= offset <= self.size - nbytes:
            raise self._fault("the file ends inside a header", max(0, min(offset, self.size)))
        self.file.seek(offset)
        return self.file.read(nbytes)

    # -- the end of the archive

    def _directory(self) -> tuple[int, int, int]:
        """Number of entries, offset and size of the directory."""
        at = self.size - _END.size
        magic, disk, first, here, n, nbytes, start, comment = _END.unpack(self._at(at, _END.size))
        if magic != b"PK\x05\x06" or comment or disk or first or here != n:
            raise self._fault("no directory at the end", at)
        if self.size >= _END.size + _LOCATOR.size and self._at(at - _LOCATOR.size, 4) == b"PK\x06\x07":
            end, (n, nbytes, start) = self._directory64(at - _LOCATOR.size, (n, nbytes, start))
        else:
            end = at
        if start + nbytes != end or not n <= MAX_ENTRIES or nbytes > MAX_DIRECTORY_NBYTES:
            raise self._fault("a directory of an impossible size or place", at)
        return n, start, nbytes

    def _directory64(self, at: int, narrow: tuple[int, int, int]) -> tuple[int, tuple[int, int, int]]:
        """The 64-bit end record before the locator at `at`: its offset and the three numbers, checked by `narrow`."""
        _, disk, end, disks = _LOCATOR.unpack(self._at(at, _LOCATOR.size))
        fields = _END64.unpack(self._at(end, _END64.size))
        magic, nbytes, _, _, number, first, here, *wide = fields
        if magic != b"PK\x06\x06" or end + _END64.size != at or nbytes != _END64.size - 12:
            raise self._fault("a damaged 64-bit end record", at)
        if disk or disks != 1 or number or first or here != wide[0]:
            raise self._fault("an archive of several parts", at)
        for short, long, limit in zip(narrow, wide, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True):
            if short not in (long, limit):
                raise self._fault("two end records that differ", at)
        return end, (wide[0], wide[1], wide[2])

    # -- entries

    def _centrals(self, n: int, start: int, nbytes: int) -> list[_Central]:
        directory = self._at(start, nbytes)
        found, at = [], 0
        for _ in range(n):
            central, at = self._central(directory, at, start)
            found.append(central)
        if at != nbytes:
            raise self._fault("a directory longer than its entries", start + at)
        return found

    def _central(self, directory: bytes, at: int, start: int) -> tuple[_Central, int]:
        if at + _CENTRAL.size > len(directory):
            raise self._fault("the directory ends inside an entry", start + at)
        fields = _CENTRAL.unpack_from(directory, at)
        magic, _, _, flags, method, _, _, crc, packed, nbytes, n_name, n_extra, n_comment, disk, _, _, offset = fields
        end = at + _CENTRAL.size + n_name + n_extra + n_comment
        if magic != b"PK\x01\x02" or end > len(directory) or disk not in (0, 0xFFFF):
            raise self._fault("a damaged entry of the directory", start + at)
        if method != 0 or flags & ~(_DESCRIPTOR | _UTF8):
            raise self._fault("an entry that is compressed or encrypted", start + at)
        name = directory[at + _CENTRAL.size : at + _CENTRAL.size + n_name]
        extra = directory[at + _CENTRAL.size + n_name : end - n_comment]
        nbytes, packed, offset = self._widen(extra, (nbytes, packed, offset), start + at)
        if packed != nbytes:
            raise self._fault("a stored entry of two sizes", start + at)
        return _Central(name, flags, crc, nbytes, offset), end

    def _widen(self, extra: bytes, narrow: tuple[int, int, int], at: int) -> list[int]:
        """Uncompressed size, size and offset, from the zip64 field where the 32-bit ones are all ones."""
        wide, begin = b"", 0
        while begin < len(extra):
            kind, n = struct.unpack("<2H", extra[begin : begin + 4].ljust(4, b"\xff"))
            end = begin + 4 + n
            if end > len(extra):
                raise self._fault("a damaged extra field", at)
            if kind == _ZIP64:
                wide, n_before = extra[begin + 4 : end], len(wide)
                if n_before:
                    raise self._fault("two zip64 fields", at)
            begin = end
        values = []
        for value in narrow:
            if value == 0xFFFFFFFF:
                if len(wide) < 8:
                    raise self._fault("a zip64 field that is too short", at)
                value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
            values.append(value)
        return values

    def _local(self, central: _Central, end: int) -> tuple[Entry, int]:
        """The entry behind its own header, which must agree with the directory; and the offset after it."""
        at = central.offset
        fields = _LOCAL.unpack(self._at(at, _LOCAL.size))
        magic, _, flags, method, _, _, crc, packed, nbytes, n_name, n_extra = fields
        rest = self._at(at + _LOCAL.size, n_name + n_extra)
        name, data = rest[:n_name], at + _LOCAL.size + n_name + n_extra
        if magic != b"PK\x03\x04" or (flags, method, name) != (central.flags, 0, central.name):
            raise self._fault("a header that differs from the directory", at)
        if not (flags & _DESCRIPTOR and crc == packed == nbytes == 0):
            sizes = self._widen(rest[n_name:], (nbytes, packed, 0), at)
            if (crc, sizes[0], sizes[1]) != (central.crc, central.nbytes, central.nbytes):
                raise self._fault("a header whose size or checksum differs from the directory", at)
        after = data + central.nbytes
        if flags & _DESCRIPTOR:
            after += self._descriptor(central, after)
        if after > end:
            raise self._fault("an entry that reaches beyond the archive", at)
        return Entry(self._name(name, at), data, central.nbytes, central.crc), after

    def _descriptor(self, central: _Central, at: int) -> int:
        """Bytes of the record of sizes behind an entry's data, which must agree too."""
        forms = ["<4sI2Q"] if central.nbytes >= 1 << 32 else ["<4s3I", "<4sI2Q"]
        for form in forms:
            record = struct.pack(form, b"PK\x07\x08", central.crc, central.nbytes, central.nbytes)
            if at + len(record) <= self.size and self._at(at, len(record)) == record:
                return len(record)
        raise self._fault("sizes behind an entry that differ from the directory", min(at, self.size))

    def _name(self, raw: bytes, at: int) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._fault("a name that is not UTF-8", at) from None
        parts = name.split("/")
        if not name.isprintable() or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
            raise self._fault(f"the unsafe name {name[:80]!r}", at)
        return name
