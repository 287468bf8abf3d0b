"""Where data come from: files, folders, patterns, compression, and what is none of it."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from ggmlgraph.data.sources import sources_of
from ggmlgraph.errors import DataError, UsageError

TEXT = "ねこ and cats\n".encode() * 5000
PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gz": gzip.compress, "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}  # fmt: skip


def content(*specs: str | Path) -> bytes:
    found = b""
    for source in sources_of(specs):
        with source.open() as stream:
            found += stream.read()
    return found


def names(*specs: str | Path) -> list[str]:
    return [Path(source.name).name for source in sources_of(specs)]


@pytest.mark.parametrize("kind", PACK)
def test_compression_is_seen_by_content_whatever_the_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PACK[kind](TEXT))
    assert content(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_several_compressed_streams_in_a_file_are_one(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(PACK[kind](TEXT) + PACK[kind](b"") + PACK[kind](TEXT))
    assert content(tmp_path / "a") == TEXT * 2


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_compressed_data_that_end_early_are_an_error_after_what_there_is(kind: str, tmp_path: Path) -> None:
    packed = PACK[kind](os.urandom(100_000) + TEXT)
    (tmp_path / "a").write_bytes(packed[:-10])
    (source,) = sources_of([tmp_path / "a"])
    n = 0
    with source.open() as stream, pytest.raises(DataError, match=r"a: the compressed data end early, at byte \d+"):
        while block := stream.read(1000):
            n += len(block)
    assert n > 90_000


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_damaged_compressed_data_are_an_error(kind: str, tmp_path: Path) -> None:
    packed = bytearray(PACK[kind](os.urandom(5000)))
    packed[3000] ^= 0xFF
    (tmp_path / "a").write_bytes(packed)
    with pytest.raises(DataError, match=r"are damaged near byte|end early"):
        content(tmp_path / "a")


def test_a_folder_is_its_files_by_name_without_hidden_ones_and_circles(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", ".hidden", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    assert names(tmp_path) == ["a", "1", "2", "c"]


def test_a_pattern_is_the_files_that_it_names_each_once(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.json"):
        (tmp_path / name).write_bytes(b"x")
    assert names(f"{tmp_path}/*.txt", f"{tmp_path}/b*") == ["a.txt", "b.txt"]


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_bytes(b"x")
    assert names(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_standard_input_is_read_compressed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for pack in PACK.values():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pack(TEXT))))
        assert content("-") == TEXT


def test_what_is_no_source_is_one_line(tmp_path: Path, check_each: Callable[..., None]) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        "missing": "no such file", "empty": "there is no file in the folder", "*.none": "no file has such a name",
        "fifo": "is not a regular file", "loop": "symbolic links", "a\0b": "null",
    }  # fmt: skip

    def check(name: str) -> None:
        with pytest.raises((DataError, UsageError), match=cases[name]):
            sources_of([f"{tmp_path}/{name}"])

    check_each(cases, check)


def test_the_suffix_is_that_of_what_is_compressed(tmp_path: Path) -> None:
    for name in ("a.jsonl.zst", "b.TXT.gz", "c.json"):
        (tmp_path / name).write_bytes(b"x")
    assert [source.suffix for source in sources_of([tmp_path])] == [".jsonl", ".txt", ".json"]


def test_unpacking_holds_little_of_a_file_that_would_fill_the_memory(tmp_path: Path) -> None:
    import tracemalloc

    zeros = lzma.compress(bytes(1 << 26), preset=6)
    (tmp_path / "a").write_bytes(zeros)
    (source,) = sources_of([tmp_path / "a"])
    tracemalloc.start()
    with source.open() as stream:
        n = 0
        while block := stream.read(1 << 16):
            n += len(block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == 1 << 26
    assert peak < 1 << 25
