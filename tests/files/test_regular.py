"""Only regular files are opened, nothing waits, and every refusal is one typed line with the path."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ggmlgraph.core.importer import identify, import_file
from ggmlgraph.data.corpus import open_source
from ggmlgraph.errors import FormatError, GGError, UsageError
from ggmlgraph.files.regular import map_regular, open_regular, read_regular
from ggmlgraph.graphfile import reader
from ggmlgraph.interchange.formats import gguf, safetensors, torch
from ggmlgraph.interchange.tokenizer import load_tokenizer

READERS: dict[str, Callable[[Path], Any]] = {
    "open": open_regular,
    "map": map_regular,
    "read": lambda path: read_regular(path, 100),
    "importer": import_file,
    "identify": identify,
    "reader": reader.read,
    "text": open_source,
    "gguf": gguf.read,
    "safetensors": safetensors.read,
    "torch": torch.read,
    "tokenizer": load_tokenizer,
}


def strange(folder: Path) -> dict[str, Path]:
    """Paths by what they are: none is a regular file."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing")
    (folder / "to a fifo").symlink_to("fifo")
    here = socket.socket(socket.AF_UNIX)
    here.bind(str(folder / "socket"))
    here.close()
    names = ("fifo", "folder", "loop", "dangling", "to a fifo", "socket", "missing", "folder/below/x", "a" * 300)
    return {name: folder / name for name in names} | {
        "terminal": Path("/dev/tty"), "null": Path("/dev/null"), "zero": Path("/dev/zero"), "nul": folder / "a\0b",
    }  # fmt: skip


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_no_regular_file_is_refused_at_once(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for kind, path in strange(tmp_path).items():
        raised: list[BaseException] = []

        def attempt(path: Path = path, raised: list[BaseException] = raised) -> None:
            try:
                read(path)
            except GGError as error:
                raised.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive(), kind
        assert len(raised) == 1, kind
        assert str(raised[0]).startswith(str(path).replace("\0", "\\x00")), kind


def test_the_kind_of_what_is_there_is_said(tmp_path: Path) -> None:
    paths = strange(tmp_path)
    with pytest.raises(UsageError, match="folder: is a directory, not a regular file"):
        open_regular(paths["folder"])
    with pytest.raises(UsageError, match="fifo: is not a regular file"):
        open_regular(paths["fifo"])
    with pytest.raises(GGError, match="missing: no such file"):
        open_regular(paths["missing"])


@pytest.mark.skipif(os.geteuid() == 0, reason="for want of a user who may not read everything")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(0o000)
    with pytest.raises(GGError, match="secret: Permission denied"):
        open_regular(tmp_path / "secret")


def test_content_is_read_and_mapped_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert read_regular(path, 3) == b"abc"
    assert map_regular(path)[:] == b"abc"
    with pytest.raises(FormatError, match="3 bytes, at most 2 are read"):
        read_regular(path, 2)
    path.write_bytes(b"")
    assert map_regular(path) == b""
