"""Files and folders that are there whole or not at all: written under another name, synced, then renamed.

Used by everything that writes something to be read later: graphs, checkpoints, run directories, tokens, exports.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ggmlgraph.errors import UsageError

WRITE_BEHIND = 16 << 20  # bytes
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    If the block or that raises, nothing is left behind and `path` is as it was. OSErrors of writing name `path`. Raises
    UsageError for a device, a pipe or a folder, which a file is not to take the place of.
    """
    if path.exists() and not path.is_file() and not path.is_symlink():
        raise UsageError(f"{path} is there and is no file: choose another name")
    with _naming(path), _temporary(path, _new_file) as temporary:
        yield temporary
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(sync, temporary)
            if meanwhile is not None:
                meanwhile(temporary)
            synced.result()
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """As `replacing`, a temporary folder, for the block to write files into; `folder` is not there, or empty."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _naming(folder), _temporary(folder, _new_folder) as temporary:
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        temporary.replace(folder)
        sync(folder.parent)


# ---------------------------------------------------------------- temporary names

NAME_LENGTH = 48  # of the name it stands for, which may be as long as names can be


@contextmanager
def _temporary(path: Path, new: Callable[[Path], int]) -> Iterator[Path]:
    """A new path that no other writer of `path` has, and no longer when the block is left.

    It is locked, so that what a killed process has left is known by its missing lock: the next writer deletes it.
    """
    start = f".{path.name[:NAME_LENGTH]}."
    _sweep(path.parent, start)
    temporary, lock = _locked(path.parent, start, new)
    try:
        yield temporary
    finally:
        _delete(temporary)
        os.close(lock)


def _locked(folder: Path, start: str, new: Callable[[Path], int]) -> tuple[Path, int]:
    while True:
        path = folder / f"{start}{secrets.token_hex(4)}.tmp"
        descriptor = new(path)
        with suppress(OSError):  # where files cannot be locked, nothing is deleted either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):  # another writer took it for a left one before it was locked
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return path, descriptor
        os.close(descriptor)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _sweep(folder: Path, start: str) -> None:
    """Delete temporary files whose writers are gone."""
    name = re.compile(re.escape(start) + r"[0-9a-f]{8}\.tmp")
    found = []
    with suppress(OSError):  # writing will say what is wrong with the folder
        found = [path for path in folder.iterdir() if name.fullmatch(path.name)]
    for path in found:
        with suppress(OSError):  # it is gone, or somebody else's
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(path)
            finally:
                os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError that names no file, a temporary one, or that says that the disk takes no more, is of `path`."""
    try:
        yield
    except OSError as error:
        own = error.filename is None or Path(os.fsdecode(error.filename)).name.startswith(
            f".{path.name[:NAME_LENGTH]}."
        )
        if error.errno is not None and (own or error.errno in FULL):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
