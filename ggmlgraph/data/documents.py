"""Documents of a source: plain text, lines of JSON, parquet. What is none is faults, with its place, and passed over.

A file is known by how it begins: parquet by its magic, lines of JSON by a first line `{"name": ...`, unless it is named
.txt; everything else is UTF-8 text. Lines of JSON are those of RedPajama, of C4, of WikiExtractor's --json and of
whoever puts a text in a field. CC-100's layout is text of which blank lines part the documents. Used by prepare.py and
by the command `tokenizer`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from ggmlgraph.data.sources import Source, sources_of
from ggmlgraph.errors import DataError, GGError, UnsupportedError

Split = Literal["file", "blank-line", "line"]
FIELDS = ("text", "content", "raw_content", "body", "document")  # where a record's text is looked for, in this order
LONGEST = 1 << 28  # bytes of a record, or of a document that is held in memory
_BLOCK = 1 << 20  # bytes read at a time
_SNIFFED = 1 << 12  # bytes at the start that say what a file is
_RECORD = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:')
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_NOT_UTF8 = re.compile("[\udc80-\udcff]+")
NO_TEXT = "no text in the field"
EMPTY, TWICE = "empty", "there already"  # what is passed over and not bad


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    ends: bool  # the document ends with it


@dataclass(frozen=True)
class Reading:
    """How sources are read."""

    split: Split = "file"  # what of a plain text is a document
    field: str | None = None  # of records; None: found


class Skipped(msgspec.Struct):
    """What was passed over for one reason."""

    n: int
    first: str  # where


class TooManyFaultsError(DataError):
    """One more than was allowed."""


class Faults:
    """What sources have that is no document, by source and reason. More than `most` bad ones are an error."""

    def __init__(self, most: int, of: dict[str, dict[str, Skipped]] | None = None) -> None:
        """of: what was found before."""
        self.most, self.of = most, of or {}
        self.n = sum(each.n for found in self.of.values() for why, each in found.items() if why not in (EMPTY, TWICE))

    def bad(self, source: str, reason: str, place: Callable[[], str]) -> None:
        """Raises DataError if that is one too many."""
        self.n += 1
        if self.n > self.most:
            allowed = f"; {self.most} were allowed" if self.most else ""
            raise TooManyFaultsError(f"{place()}: {reason}{allowed}; `data prepare --max-bad N` passes over as many")
        self.passed(source, reason, place)

    def passed(self, source: str, reason: str, place: Callable[[], str]) -> None:
        """What is passed over and not bad."""
        of = self.of.setdefault(source, {})
        if reason in of:
            of[reason].n += 1
        else:
            of[reason] = Skipped(1, place())


def pieces(source: Source, how: Reading, faults: Faults) -> Iterator[Piece]:
    """A source's documents, one after the other, in pieces of some MiB at most.

    Raises DataError for more that is bad than `faults` allows: records without text, bytes that are not UTF-8, a file
    that is no text, or ends early.
    """
    begun = False
    try:
        with source.open() as stream:
            for piece in _read(source, stream, how, faults):
                begun = not piece.ends
                yield piece
    except UnsupportedError as error:
        raise UnsupportedError(f"{source.name}: {error}") from None
    except TooManyFaultsError:
        raise
    except (GGError, OSError) as error:
        message = str(error).removeprefix(f"{source.name}: ")
        faults.bad(source.name, message, lambda: source.name)
        if begun:
            yield Piece("", True)


def _read(source: Source, stream: BufferedReader, how: Reading, faults: Faults) -> Iterator[Piece]:
    start = stream.peek(_SNIFFED)[:_SNIFFED]
    if start.startswith(b"PAR1"):
        yield from _parquet(source, how, faults)
    elif not start:
        faults.passed(source.name, EMPTY, lambda: source.name)
    elif _is_records(start, source.suffix):
        yield from _records(source, _lines(source, stream, faults), how, faults)
    elif reason := _no_text(start):
        raise DataError(f"{source.name}: {reason}")
    elif how.split == "file":
        yield from _text(source, stream, faults)
    else:
        yield from _parts(source, _lines(source, stream, faults), how.split == "line", faults)


def _no_text(start: bytes) -> str:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16 text; make UTF-8 of it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
    at = start.find(b"\0")
    return f"byte {at} is NUL, so this is no text" if at >= 0 else ""


def _is_records(start: bytes, suffix: str) -> bool:
    start = start.removeprefix(codecs.BOM_UTF8)
    if suffix in _JSON_SUFFIXES and start.lstrip()[:1] == b"[":
        raise DataError("one JSON array; make lines of its records: jq -c '.[]' FILE > NEW.jsonl")
    if suffix == ".txt":
        return False
    return bool(_RECORD.match(start)) or (suffix in _JSON_SUFFIXES and start.lstrip()[:1] == b"{")


# ---------------------------------------------------------------- text


def _text(source: Source, stream: BufferedReader, faults: Faults) -> Iterator[Piece]:
    """One document: the whole file, but for a byte-order mark at its start."""
    rest, offset, is_first = b"", 0, True
    while True:
        block = stream.read(_BLOCK)
        data = rest + block
        if is_first and data.startswith(codecs.BOM_UTF8):
            data, offset = data[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
        text, used = codecs.utf_8_decode(data, "surrogateescape", not block)
        if not text.isascii() and _NOT_UTF8.search(text):
            text = _without_bad(text, source, offset, faults)
        yield Piece(text, not block)
        if not block:
            return
        rest, offset, is_first = data[used:], offset + used, False


def _without_bad(text: str, source: Source, offset: int, faults: Faults) -> str:
    for found in _NOT_UTF8.finditer(text):
        before, byte = found.start(), ord(found[0][0]) - 0xDC00

        def place(before: int = before, byte: int = byte) -> str:
            at = offset + len(text[:before].encode("utf-8", "surrogateescape"))
            return f"{source.name}: byte {at} (0x{byte:02x})"

        faults.bad(source.name, "not UTF-8", place)
    return _NOT_UTF8.sub("", text)


class _Line(NamedTuple):
    number: int  # from 1
    offset: int  # of its first byte
    data: bytes  # with its line feed


def _lines(source: Source, stream: BufferedReader, faults: Faults) -> Iterator[_Line]:
    """The lines, but those that are too long."""
    number, offset = 0, 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            line, offset = line[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
        if len(line) > LONGEST:
            n_bytes = len(line)
            while line and not line.endswith(b"\n"):
                line = stream.readline(_BLOCK)
                n_bytes += len(line)
            faults.bad(source.name, f"a line of more than {LONGEST:,} bytes", lambda n=number: f"{source.name}:{n}")  # type: ignore[misc]
            offset += n_bytes
            continue
        yield _Line(number, offset, line)
        offset += len(line)


def _parts(source: Source, lines: Iterator[_Line], each_line: bool, faults: Faults) -> Iterator[Piece]:
    """Documents that are lines, or that blank lines part; without the line feed at their end."""
    held: list[bytes] = []
    nbytes = start = 0
    for line in lines:
        is_blank = not line.data.strip()
        if held and (is_blank or each_line or nbytes + len(line.data) > LONGEST):
            yield from _part(source, held, start, faults)
            held, nbytes = [], 0
        if not is_blank:
            start = start if held else line.offset
            held.append(line.data)
            nbytes += len(line.data)
    if held:
        yield from _part(source, held, start, faults)


def _part(source: Source, lines: list[bytes], start: int, faults: Faults) -> Iterator[Piece]:
    data = b"".join(lines).rstrip(b"\r\n")
    try:
        yield Piece(data.decode(), True)
    except UnicodeDecodeError as error:
        at = start + error.start
        byte = data[error.start]
        faults.bad(source.name, "not UTF-8", lambda: f"{source.name}: byte {at} (0x{byte:02x})")


# ---------------------------------------------------------------- records


def _records(source: Source, lines: Iterator[_Line], how: Reading, faults: Faults) -> Iterator[Piece]:
    field, decoder = how.field, None
    for line in lines:
        if not line.data.strip():
            continue
        try:
            if decoder is None:
                field = field or _field_of(msgspec.json.decode(line.data))
                record = msgspec.defstruct("Record", [("text", str)], rename={"text": field})
                decoder = msgspec.json.Decoder(record)
            text: str = decoder.decode(line.data).text  # type: ignore[attr-defined]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DataError) as error:
            reason = _why(error, field)
            faults.bad(source.name, reason, lambda n=line.number: f"{source.name}:{n}")  # type: ignore[misc]
            continue
        yield Piece(text, True)


def _why(error: Exception, field: str | None) -> str:
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, msgspec.ValidationError):
        return f"{NO_TEXT} {field!r}"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) or "utf-8" in str(error).lower() else "no line of JSON"


def _field_of(record: Any) -> str:
    """Which field of a record is its text. Raises DataError."""
    if not isinstance(record, dict):
        raise DataError("no record, which begins with {")
    texts = [name for name, value in record.items() if isinstance(value, str)]
    known = next((name for name in FIELDS if name in texts), None)
    if known is None and len(texts) != 1:
        raise DataError(f"which field is the text? there are {', '.join(texts[:20]) or 'none'}: give --field NAME")
    return known or texts[0]


def _parquet(source: Source, how: Reading, faults: Faults) -> Iterator[Piece]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UnsupportedError("parquet needs: pip install 'ggmlgraph[parquet]'") from None
    if source.path is None:
        raise DataError("parquet can be read from a file only")
    try:
        with parquet.ParquetFile(source.path) as file:
            names = [each.name for each in file.schema_arrow if str(each.type) in ("string", "large_string")]
            field = how.field or _field_of(dict.fromkeys(names, ""))
            if field not in names:
                raise DataError(f"no column of texts is named {field!r}: there are {', '.join(names) or 'none'}")
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0):
                    row += 1
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError:
                        faults.bad(source.name, "not UTF-8", lambda n=row: f"{source.name}: row {n}")  # type: ignore[misc]
                        continue
                    if text is None:
                        faults.bad(source.name, f"{NO_TEXT} {field!r}", lambda n=row: f"{source.name}: row {n}")  # type: ignore[misc]
                        continue
                    yield Piece(text, True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"no whole parquet file: {' '.join(str(error).split())[:200]}") from None


def lines_of(specs: Iterable[str | Path], how: Reading = Reading(), faults: Faults | None = None) -> Iterator[str]:
    """The lines of all documents, without the line feeds; one is held at a time."""
    counted, rest = faults or Faults(0), ""
    for source in sources_of(specs):
        for piece in pieces(source, how, counted):
            *whole, rest = (rest + piece.text).split("\n")
            yield from whole
            if piece.ends:
                yield rest
                rest = ""
