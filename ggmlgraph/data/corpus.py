"""One text: a plain UTF-8 file or `builtin:NAME`, read as a stream.

A byte-order mark at the start is skipped; everything else, CRLF included, is text as it stands. Used by whoever reads
what a person wrote, and by sources.py, which finds what models are trained on, for the builtin texts.
"""

from __future__ import annotations

import codecs
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import DataError, GGError, UsageError
from ggmlgraph.files.regular import open_regular

SINE_ALPHABET = "▁▂▃▄▅▆▇█"
SINE_PERIOD = 29  # samples; a prime, so that windows at any usual stride start at every phase
_SINE_SAMPLES = 20000
_BLOCK = 1 << 20  # bytes read at a time
_SNIFFED = 1 << 10  # bytes at the start that say what a file is
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class TextSource:
    """One text: `name` is what errors call it, `open` gives its bytes from the start."""

    name: str
    open: Callable[[], BinaryIO]

    def digest(self) -> str:
        """Hash of the content and its size: the same wherever the file lies."""
        content, nbytes = blake2b(digest_size=16), 0
        with self.open() as stream:
            while block := stream.read(_BLOCK):
                content.update(block)
                nbytes += len(block)
        return f"{nbytes}:{content.hexdigest()}"

    def chunks(self) -> Iterator[str]:
        """The text in chunks of about 1 MiB, cut anywhere between two characters.

        Raises DataError with the byte offset of the first byte that is not UTF-8.
        """
        with self.open() as stream:
            start = stream.read(len(codecs.BOM_UTF8))
            rest, offset = (b"", len(start)) if start == codecs.BOM_UTF8 else (start, 0)
            while block := stream.read(_BLOCK):
                text, rest, offset = self._decode(rest + block, offset, final=False)
                yield text
            yield self._decode(rest, offset, final=True)[0]

    def _decode(self, data: bytes, offset: int, final: bool) -> tuple[str, bytes, int]:
        """The text of `data`, which starts at byte `offset`; the bytes of a cut character; their offset."""
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            at = offset + error.start
            raise DataError(f"{self.name}: byte {at} (0x{data[error.start]:02x}) is not UTF-8", offset=at) from None
        return text, data[used:], offset + used

    def lines(self) -> Iterator[str]:
        """The text line by line, without the line feeds; one line is held at a time."""
        rest: list[str] = []
        for chunk in self.chunks():
            first, *others = chunk.split("\n")
            rest.append(first)
            for line in others:
                yield "".join(rest)
                rest = [line]
        yield "".join(rest)


def open_source(spec: str | Path) -> TextSource:
    """The text a path or `builtin:NAME` names, to learn from or to be judged by.

    Raises UsageError for an unknown builtin; DataError as `open_file`, and if the file begins as the JSON that its name
    says.
    """
    if isinstance(spec, str) and spec.startswith("builtin:"):
        data = builtin(spec)
        return TextSource(spec, lambda: io.BytesIO(data))
    path = Path(spec)
    source = open_file(path)
    with source.open() as stream:
        start = stream.read(_SNIFFED)
    if path.suffix.lower() in JSON_SUFFIXES and start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        raise DataError(
            f"{path}: JSON, of which quotes, braces and names of fields would count as text; take its texts out first "
            f"(such as jq -r .text FILE > NEW.txt), or rename it to .txt to take it as it is"
        )
    return source


def open_file(path: Path) -> TextSource:
    """A file that people or programs wrote in UTF-8, of whatever form.

    Raises DataError if it is missing, empty, unreadable, not a regular file, or begins as UTF-16 or with a NUL.
    """
    try:
        file, size = open_regular(path)
    except GGError as error:
        raise DataError(str(error)) from None
    with file:
        start = file.read(_SNIFFED)
    if size == 0:
        raise DataError(f"{path}: the file is empty")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: UTF-16 text; make UTF-8 of it: iconv -f UTF-16 -t UTF-8 FILE > NEW")
    if b"\0" in start:
        raise DataError(f"{path}: byte {start.index(0)} is NUL, so this is no text", offset=start.index(0))
    return TextSource(str(path), lambda: open_regular(path)[0])


def builtin(spec: str) -> bytes:
    """The text of builtin:NAME, in UTF-8. Raises UsageError."""
    text = _BUILTINS.get(spec.removeprefix("builtin:"))
    if text is None:
        raise UsageError(f"{spec}: no such corpus; there are " + ", ".join(f"builtin:{name}" for name in _BUILTINS))
    return text().encode()


def sine_levels(start: int, n: int) -> NDArray[np.int32]:
    """Samples start .. start + n - 1 of the quantised sine wave: int32 (n,), 0 (lowest) to 7.

    Sample i is round(3.5 + 3.5 sin(2 pi i / 29)); the character of level v is SINE_ALPHABET[v].
    """
    # Sample 0 is 3.5, which rounds to the even 4; no other lies near a half, so the last bit of sin does not matter.
    wave = [round(3.5 + 3.5 * math.sin(2 * math.pi * i / SINE_PERIOD)) for i in range(SINE_PERIOD)]
    return np.array(wave, np.int32)[(start + np.arange(n)) % SINE_PERIOD]


def _sine() -> str:
    return "".join(SINE_ALPHABET[level] for level in sine_levels(0, _SINE_SAMPLES))


def _pydoc() -> str:
    """The help topics of the running Python: about 0.5 MB of technical English that every installation has."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


_BUILTINS: dict[str, Callable[[], str]] = {"pydoc": _pydoc, "sine": _sine}
