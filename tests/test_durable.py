"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fulldisk import file_size_limit

from ggmlgraph import durable
from ggmlgraph.errors import UsageError


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


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_path_write_two_files(tmp_path: Path) -> None:
    with durable.replacing(tmp_path / "file") as one, durable.replacing(tmp_path / "file") as two:
        one.write_bytes(b"one")
        two.write_bytes(b"two")
        assert len(contents(tmp_path)) == 2
    assert (contents(tmp_path), (tmp_path / "file").read_bytes()) == (["file"], b"one")


WRITER = """
import os, sys, time
from pathlib import Path
from ggmlgraph import durable
from ggmlgraph.errors import UsageError
with getattr(durable, sys.argv[1])(Path(sys.argv[2])) as temporary:
    (temporary / "part" if sys.argv[1] == "making" else temporary).write_bytes(b"half")
    print("written", flush=True)
    time.sleep(60)
"""


def writer(how: str, path: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of writing `path`."""
    process = subprocess.Popen([sys.executable, "-P", "-c", WRITER, how, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("how", ["replacing", "making"])
def test_what_a_killed_writer_left_is_swept_by_the_next_and_what_a_living_one_writes_is_not(
    how: str, tmp_path: Path
) -> None:
    path = tmp_path / "target"
    killed, living = writer(how, path), writer(how, path)
    try:
        killed.kill()
        killed.communicate()
        assert len(contents(tmp_path)) == 2
        with durable.replacing(path) as temporary:
            temporary.write_bytes(b"whole")
        assert len(contents(tmp_path)) == 2
        assert path.read_bytes() == b"whole"
    finally:
        living.kill()
        living.communicate()
    with durable.replacing(path) as temporary:
        temporary.write_bytes(b"again")
    assert contents(tmp_path) == ["target"]


@pytest.mark.parametrize("name", [".target.notes.tmp", ".target.12345678.tmp.txt", ".other.12345678.tmp", "target.tmp"])
def test_files_of_others_are_not_swept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with durable.replacing(tmp_path / "target") as temporary:
        temporary.touch()
    assert contents(tmp_path) == sorted([name, "target"])


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "[a-z]*", os.fsdecode(b"\xff")])
def test_any_name_that_a_file_may_have_can_be_written(name: str, tmp_path: Path) -> None:
    with durable.replacing(tmp_path / name) as temporary:
        temporary.touch()
    assert contents(tmp_path) == [name]


def test_a_file_may_be_read_by_whom_the_mask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with durable.replacing(tmp_path / "file") as temporary:
            temporary.touch()
        with durable.making(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")] == [0o640, 0o750]


def test_a_disk_that_takes_no_more_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(5000))
    for write in (lambda path: path.write_bytes(bytes(5000)), lambda path: shutil.copyfile(tmp_path / "source", path)):
        with (
            file_size_limit(4096),
            pytest.raises(OSError, match="too large") as raised,
            durable.replacing(tmp_path / "file") as temporary,
        ):
            write(temporary)
        assert raised.value.filename == str(tmp_path / "file")
    assert contents(tmp_path) == ["source"]


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, durable.replacing(tmp_path / "file"):
        (tmp_path / "other").read_bytes()
    assert raised.value.filename == str(tmp_path / "other")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half"), durable.making(tmp_path / "a" / "folder") as temporary:
        (temporary / "part").touch()
        raise ValueError("half")
    assert contents(tmp_path / "a") == []
    with durable.making(tmp_path / "a" / "folder") as temporary:
        (temporary / "part").touch()
    assert contents(tmp_path / "a" / "folder") == ["part"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_a_file_takes_the_place_of_no_pipe_device_or_folder(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        pytest.skip("only root makes devices")
    before = path.stat()
    with pytest.raises(UsageError, match="is there and is no file"), durable.replacing(path) as temporary:
        temporary.write_bytes(b"x")
    assert (path.stat().st_mode, path.stat().st_ino) == (before.st_mode, before.st_ino)
    assert [p.name for p in tmp_path.iterdir()] == [kind]
