"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import io
import time
from pathlib import Path

import pytest

from ggmlgraph import durable


def test_a_file_written_behind_has_the_bytes_that_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "WRITE_BEHIND", 5000)
    parts = [bytes([i]) * (i * 997) for i in range(40)]
    with io.BufferedWriter(durable.WriteBehind(tmp_path / "file")) as stream:
        for part in parts:
            stream.write(part)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


def test_an_error_of_the_disk_is_raised_by_a_later_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, "the disk is broken", str(path))

    monkeypatch.setattr(durable, "WRITE_BEHIND", 1)
    monkeypatch.setattr(durable, "sync", failing)
    with pytest.raises(OSError, match="the disk is broken"), durable.WriteBehind(tmp_path / "file") as file:
        for _ in range(1000):
            file.write(b"part")
            time.sleep(0.001)


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError), durable.replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"half")
        raise OSError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"
