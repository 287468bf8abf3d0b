"""Opening files that a command was given: regular files alone, without ever waiting, errors in one line.

A FIFO without writer would keep `open` waiting, a device or a pipe has no size to check against. Used by everything
that reads graphs, checkpoints, tokenizers, texts and configurations.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import BinaryIO

from ggmlgraph.errors import FormatError, GGError, UsageError


def open_regular(path: str | os.PathLike[str]) -> tuple[BinaryIO, int]:
    """An open file and its size in bytes.

    Raises GGError if it is not there or may not be read, UsageError if it is a directory, a pipe or a device.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise GGError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise GGError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "is a directory, not a regular file" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
        raise UsageError(f"{name}: {kind}")
    return os.fdopen(descriptor, "rb"), status.st_size


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """A file's content. Raises as `open_regular`, and FormatError beyond `most` bytes."""
    file, size = open_regular(path)
    with file:
        if size > most:
            raise FormatError(f"{os.fspath(path)}: {size} bytes, at most {most} are read")
        return file.read(size)


def map_regular(path: str | os.PathLike[str], access: int = mmap.ACCESS_READ) -> mmap.mmap | bytes:
    """A file's content, mapped; raises as `open_regular`."""
    file, size = open_regular(path)
    with file:
        try:
            return mmap.mmap(file.fileno(), 0, access=access) if size else b""
        except (OSError, ValueError) as error:
            raise GGError(f"{os.fspath(path)}: cannot be mapped: {error}") from None
