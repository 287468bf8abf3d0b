"""Files that are there whole or not at all: written under another name, synced, then renamed.

Used by everything that writes a file someone will read later: graphs, checkpoints, run directories, tokens.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITE_BEHIND = 16 << 20  # bytes


def sync(path: Path) -> None:
    """Wait until the disk has a file's bytes, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WriteBehind(io.FileIO):
    """A file to be written from begin to end, whose first parts go to the disk while the others are written.

    So what is left to `sync` is little, and writing takes as long as the disk or the writer, not both. What is written
    stays in memory for whoever reads it next.
    """

    def __init__(self, path: Path) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._sync: Future[None] | None = None
        self._path, self._asked = path, 0  # bytes that the disk was asked to take
        super().__init__(path, "w")

    def write(self, data: Any) -> int:
        n = super().write(data)
        at = self.tell()
        if at - self._asked >= WRITE_BEHIND and self._is_idle():
            self._sync, self._asked = self._pool.submit(sync, self._path), at
        return n

    def close(self) -> None:
        """Close the file; a sync that is under way goes on."""
        try:
            self._is_idle()
        finally:
            self._pool.shutdown(wait=False)
            super().close()

    def _is_idle(self) -> bool:
        """Whether no sync is under way. Raises what the last one raised: the disk tells of an error once."""
        if self._sync is None:
            return True
        if not self._sync.done():
            return False
        self._sync.result()
        return True


@contextmanager
def replacing(path: Path, meanwhile: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, for the block to write a file to, which then takes the place of `path`.

    meanwhile: what to do with the written file while the disk takes it in.
    If the block or that raises, nothing is left behind and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(sync, temporary)
            if meanwhile is not None:
                meanwhile(temporary)
            synced.result()
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
