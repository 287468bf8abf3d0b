"""Documents of every kind of source, and what is passed over."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from ggmlgraph.data.documents import Faults, Reading, lines_of, pieces
from ggmlgraph.data.sources import sources_of
from ggmlgraph.errors import DataError


def documents(path: Path, reading: Reading | None = None, faults: Faults | None = None) -> list[str]:
    found, text = [], ""
    for source in sources_of([path]):
        for piece in pieces(source, reading or Reading(), faults or Faults(0)):
            text += piece.text
            if piece.ends:
                found.append(text)
                text = ""
    assert text == ""
    return found


def file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def records(path: Path, rows: list[Any]) -> Path:
    return file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def test_a_text_is_one_document_as_it_stands(tmp_path: Path) -> None:
    text = "\ufeffa\r\nb\0\n\n猫\u2028c"
    assert documents(file(tmp_path / "a", ("x" * 5000 + text).encode())) == ["x" * 5000 + text]


def test_a_byte_order_mark_at_the_start_is_skipped_everywhere(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    assert documents(file(tmp_path / "a", bom + b"a\n")) == ["a\n"]
    assert documents(file(tmp_path / "b", bom + b"a\n\nb"), Reading("blank-line")) == ["a", "b"]
    assert documents(file(tmp_path / "c", bom + b'{"text": "a"}\n')) == ["a"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_part_documents(tmp_path: Path, end: str) -> None:
    text = end.join(["one", "two", "", "three", "", " ", "", "four"])
    assert documents(file(tmp_path / "a", text.encode()), Reading("blank-line")) == [f"one{end}two", "three", "four"]


def test_lines_are_documents_if_asked_for(tmp_path: Path) -> None:
    assert documents(file(tmp_path / "a", b"a\nb\r\n\nc"), Reading("line")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "row",
    [{"text": "猫"}, {"id": "x", "text": "猫", "content": "b"}, {"content": "猫", "id": 3}, {"x": "猫", "y": 1},
     {"text": "猫", "meta": {"a": [1]}, "red_pajama_subset": "c4"}, {"url": "u", "raw_content": "猫"},
     {"id": "1", "url": "u", "title": "t", "text": "猫"}],
)  # fmt: skip
def test_the_text_of_a_record_is_found(tmp_path: Path, row: dict[str, Any]) -> None:
    assert documents(records(tmp_path / "a.jsonl", [row, row])) == ["猫", "猫"]


def test_the_field_of_the_text_can_be_chosen(tmp_path: Path) -> None:
    path = records(tmp_path / "a.jsonl", [{"text": "a", "a title": "b"}])
    assert documents(path, Reading(field="a title")) == ["b"]


def test_records_are_known_without_their_name_and_text_by_its(tmp_path: Path) -> None:
    assert documents(records(tmp_path / "wiki_00", [{"id": "1", "text": "a"}])) == ["a"]
    assert documents(file(tmp_path / "a.txt", b'{"text": "a"}')) == ['{"text": "a"}']
    assert documents(file(tmp_path / "a", b"{not json}")) == ["{not json}"]


BAD = {
    b'{"text": "b"': "no line of JSON", b"\0\0": "no line of JSON", b'{"text": 3}': "no text in the field 'text'",
    b'{"txt": "b"}': "no text in the field 'text'", b'{"text": "\xff"}': "not UTF-8",
    b'{"text": "\\ud800"}': "no line of JSON", b"[1]": "no text in the field 'text'",
    b"[" * 100000: "no text in the field 'text'",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD, ids=[f"{line[:16]!r}" for line in BAD])
def test_a_line_that_is_no_record_is_counted_with_its_place(tmp_path: Path, line: bytes) -> None:
    path = file(tmp_path / "a.jsonl", b'{"text": "a"}\r\n\n' + line + b'\n{"text": "c"}')
    faults = Faults(1)
    assert documents(path, faults=faults) == ["a", "c"]
    assert {why: (each.n, each.first) for why, each in faults.of[str(path)].items()} == {BAD[line]: (1, f"{path}:3")}
    with pytest.raises(DataError, match=rf"a\.jsonl:3: {BAD[line]}; `data prepare --max-bad N"):
        documents(path)


def test_bytes_that_are_not_utf8_are_left_out_and_counted(tmp_path: Path) -> None:
    path = file(tmp_path / "a", "é".encode() + b"a\xff\xfeb" + "猫".encode()[:2])
    faults = Faults(2)
    assert documents(path, faults=faults) == ["éab"]
    (skipped,) = faults.of[str(path)].values()
    assert (skipped.n, skipped.first) == (2, f"{path}: byte 3 (0xff)")
    with pytest.raises(DataError, match=r"a: byte 3 \(0xff\): not UTF-8"):
        documents(path)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_blocks_do_not_change_a_text(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggmlgraph.data.documents._BLOCK", size)
    data = "a猫é".encode() + b"\xff" + "😀x".encode()
    assert documents(file(tmp_path / "a", data), faults=Faults(9)) == ["a猫é😀x"]


def test_a_document_that_is_not_utf8_is_passed_over_where_there_are_several(tmp_path: Path) -> None:
    path = file(tmp_path / "a", b"a\n\nb\xff\n\nc")
    assert documents(path, Reading("blank-line"), Faults(1)) == ["a", "c"]
    with pytest.raises(DataError, match=r"byte 4 \(0xff\): not UTF-8"):
        documents(path, Reading("blank-line"))


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggmlgraph.data.documents.LONGEST", 100)
    path = records(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b" * 3000}, {"text": "c"}])
    faults = Faults(1)
    assert documents(path, faults=faults) == ["a", "c"]
    (skipped,) = faults.of[str(path)].values()
    assert skipped.first == f"{path}:2"


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"a\0b", "byte 1 is NUL"), ("text".encode("utf-16"), "UTF-16"), (b"PAR1" + b"x" * 99, "no whole parquet file"),
     (b"\x1f\x8b" + b"x" * 99, "are damaged"), (b'[{"text": 1}]', "one JSON array")],
)  # fmt: skip
def test_a_file_that_is_none_is_passed_over_as_one(tmp_path: Path, data: bytes, reason: str) -> None:
    file(tmp_path / "a.json", data)
    file(tmp_path / "b", b"text")
    faults = Faults(1)
    assert documents(tmp_path, faults=faults) == ["text"]
    assert reason in str(faults.of)
    with pytest.raises(DataError, match=f"{reason}.*--max-bad"):
        documents(tmp_path)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet_is_read_by_row_groups(tmp_path: Path, kind: Any) -> None:
    texts = [f"猫 {i}" for i in range(1000)]
    table = pyarrow.table({"id": range(1000), "text": pyarrow.array([*texts[:-1], None], kind)})
    parquet.write_table(table, tmp_path / "a", row_group_size=100)
    faults = Faults(1)
    assert documents(tmp_path / "a", faults=faults) == texts[:-1]
    assert "row 1000" in str(faults.of)
    with pytest.raises(DataError, match="no column of texts is named 'x': there are text"):
        documents(tmp_path / "a", Reading(field="x"))


def test_lines_are_those_of_all_documents(tmp_path: Path) -> None:
    file(tmp_path / "a", b"a\nb")
    records(tmp_path / "b.jsonl", [{"text": "c\nd"}, {"text": "e"}])
    assert list(lines_of([tmp_path])) == ["a", "b", "c", "d", "e"]


def test_whatever_bytes_a_file_has_it_is_documents_or_one_line(tmp_path: Path, check_each: Callable[..., None]) -> None:
    rng = random.Random(5)
    parquet.write_table(pyarrow.table({"text": ["a" * 50] * 9}), tmp_path / "p")
    seeds = [b'{"text": "a"}\n' * 9, (tmp_path / "p").read_bytes(), "猫\n\na".encode() * 20]

    def check(i: int) -> None:
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path = file(tmp_path / f"x{i}", bytes(data[: rng.randrange(1, len(data) + 1)]))
        try:
            documents(path, Reading("blank-line"))
        except DataError as error:
            assert "\n" not in str(error)

    check_each(range(300), check)
