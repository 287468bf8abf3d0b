"""Files that are not what their names say, recognised by how they begin, with the way out.

Used by the readers of checkpoints, tokenizers and their settings, before they say what is wrong in their own terms.
"""

from __future__ import annotations

import codecs
import os

from ggmlgraph.errors import FormatError
from ggmlgraph.files.regular import open_regular

_BY_START: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run `git lfs pull` where it was cloned"),
    (b"<!DOCTYPE html", "a web page, not the file: download it again"),
    (b"<!doctype html", "a web page, not the file: download it again"),
    (b"<html", "a web page, not the file: download it again"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (codecs.BOM_UTF16_LE, "text in UTF-16: save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "text in UTF-16: save it as UTF-8"),
)
N_START = 64  # bytes that tell


def refuse_stranger(path: str | os.PathLike[str]) -> None:
    """Raise FormatError if a file is none of the kinds we read, or as `open_regular`."""
    file, _ = open_regular(path)
    with file:
        reason = stranger(file.read(N_START))
    if reason:
        raise FormatError(f"{os.fspath(path)}: {reason}", offset=0)


def stranger(start: bytes) -> str:
    """What a file that begins so is, if that is none of the files we read; "" if there is nothing strange."""
    if not start:
        return "an empty file"
    if not start.strip(b"\0"):
        return "zeros only: a download that was cut short, or a file of a full disk"
    return next((what for magic, what in _BY_START if start[:N_START].lstrip(b" \r\n").startswith(magic)), "")
