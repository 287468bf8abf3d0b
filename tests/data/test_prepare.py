"""Texts, and what they become: token stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggmlgraph.data import corpus
from ggmlgraph.data.corpus import SINE_ALPHABET, open_source, sine_levels
from ggmlgraph.data.documents import lines_of
from ggmlgraph.data.prepare import prepared
from ggmlgraph.data.store import MANIFEST
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers import spm
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tokenizers.training import train_tokenizer

BYTES = BytesTokenizer()


def text_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def text_of(path: Path) -> str:
    return "".join(open_source(path).chunks())


# ---------------------------------------------------------------- text in


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert text_of(text_file(tmp_path / "a", b"\xef\xbb\xbfab")) == "ab"


def test_byte_order_mark_inside_is_text(tmp_path: Path) -> None:
    assert text_of(text_file(tmp_path / "a", "ab\ufeffc".encode())) == "ab\ufeffc"


def test_carriage_returns_are_kept(tmp_path: Path) -> None:
    assert text_of(text_file(tmp_path / "a", b"a\r\nb\rc")) == "a\r\nb\rc"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_characters_across_blocks_are_whole(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", size)
    assert text_of(text_file(tmp_path / "a", "é日😀\n".encode() * 5)) == "é日😀\n" * 5


@pytest.mark.parametrize("size", [1, 4, 1 << 20])
@pytest.mark.parametrize("data", [b"ab\xe6\x97\xa5c\xffd", b"abcdef\x80", b"abcdef\xe6\x97", b"\xef\xbb\xbfabc\xff"])
def test_invalid_utf8_tells_file_and_byte(
    tmp_path: Path, data: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", size)
    with pytest.raises(DataError, match="bad: byte 6 ") as raised:
        text_of(text_file(tmp_path / "bad", data))
    assert raised.value.offset == 6


def test_lines_are_the_text_split_at_line_feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", 2)
    assert list(open_source(text_file(tmp_path / "a", b"ab\n\ncde\nf")).lines()) == ["ab", "", "cde", "f"]


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no: no such file"):
        open_source(tmp_path / "no")


def test_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a directory"):
        open_source(tmp_path)


def test_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        open_source(text_file(tmp_path / "a", b""))


def test_path_with_nul_is_an_error() -> None:
    with pytest.raises(DataError, match="null"):
        open_source("a\0b")


def test_unknown_builtin_lists_the_known() -> None:
    with pytest.raises(UsageError, match="builtin:pydoc, builtin:sine"):
        open_source("builtin:moby-dick")


def test_pydoc_is_text_that_is_always_there() -> None:
    assert len("".join(open_source("builtin:pydoc").chunks())) > 300_000


def test_pydoc_is_the_same_each_time() -> None:
    assert open_source("builtin:pydoc").digest() == open_source("builtin:pydoc").digest()


def test_one_period_of_the_sine() -> None:
    wave = [4, 4, 5, 6, 6, 7, 7, 7, 7, 7, 6, 6, 5, 5, 4, 3, 2, 2, 1, 1, 0, 0, 0, 0, 0, 1, 1, 2, 3]
    assert sine_levels(0, 29).tolist() == wave


def test_sine_levels_continue_anywhere() -> None:
    assert sine_levels(45, 90).tolist() == sine_levels(0, 135)[45:].tolist()


def test_sine_text_spells_the_levels() -> None:
    text = "".join(open_source("builtin:sine").chunks())
    assert CharsTokenizer(SINE_ALPHABET).encode(text).tolist() == sine_levels(0, len(text)).tolist()


# ---------------------------------------------------------------- token files


def test_prepared_ids_are_the_encoded_text(tmp_path: Path) -> None:
    tokens = prepared([text_file(tmp_path / "a", "é日\n".encode() * 9)], BYTES, tmp_path)
    assert tokens.ids.tolist() == list("é日\n".encode() * 9)


def test_sources_follow_each_other(tmp_path: Path) -> None:
    sources = [text_file(tmp_path / name, name.encode()) for name in ("b", "a")]
    assert prepared(sources, BYTES, tmp_path).ids.tolist() == [*b"ba"]


def test_blocks_do_not_change_sentencepiece_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text_file(tmp_path / "a", "the fox, the dog: 日本語 the\n".encode() * 1000)
    tokenizer = train_tokenizer(lines_of([path]), tmp_path / "x.model", n_vocab=290)
    monkeypatch.setattr(corpus, "_BLOCK", 999)
    wanted = [*tokenizer.encode(path.read_text()).tolist(), tokenizer.eos_id]
    assert prepared([path], tokenizer, tmp_path).ids.tolist() == wanted


def test_prepared_file_is_reused(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    assert [prepared([path], BYTES, tmp_path).reused for _ in range(2)] == [False, True]


def test_moved_source_is_reused(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    prepared([path], BYTES, tmp_path)
    assert prepared([path.rename(tmp_path / "b")], BYTES, tmp_path).reused


def test_changed_source_is_tokenised_again(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    prepared([path], BYTES, tmp_path)
    assert prepared([text_file(path, b"abd")], BYTES, tmp_path).ids.tolist() == list(b"abd")


def test_another_tokenizer_tokenises_again(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    prepared([path], BYTES, tmp_path)
    assert prepared([path], CharsTokenizer("cba"), tmp_path).ids.tolist() == [2, 1, 0]


@pytest.mark.parametrize("damage", ["cut", "no ids", "seal", "json", "sums"])
def test_damaged_store_is_made_anew(tmp_path: Path, damage: str) -> None:
    path = text_file(tmp_path / "a", b"abcdef")
    tokens = prepared([path], BYTES, tmp_path)
    ids, manifest, sums = (tokens.path / name for name in ("000000.ids", MANIFEST, "000000.sums"))
    match damage:
        case "cut":
            ids.write_bytes(ids.read_bytes()[:-1])
        case "no ids":
            ids.unlink()
        case "seal":
            manifest.write_bytes(manifest.read_bytes().replace(b'"n_vocab":256', b'"n_vocab":257'))
        case "json":
            manifest.write_bytes(manifest.read_bytes()[:-9])
        case "sums":
            sums.write_bytes(bytes(8))
    again = prepared([path], BYTES, tmp_path)
    assert (again.reused, again.ids.tolist()) == (False, list(b"abcdef"))


def test_small_vocabularies_take_two_bytes_an_id(tmp_path: Path) -> None:
    assert prepared([text_file(tmp_path / "a", b"abc")], BYTES, tmp_path).files[0].dtype == np.uint16


def test_vocabularies_above_65536_take_four_bytes_an_id(tmp_path: Path) -> None:
    alphabet = "".join(map(chr, range(0x10000, 0x20001)))
    tokens = prepared([text_file(tmp_path / "a", "\U00020000".encode())], CharsTokenizer(alphabet), tmp_path)
    assert (tokens.files[0].dtype, tokens.ids.tolist()) == (np.dtype(np.uint32), [65536])


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    prepared([text_file(tmp_path / "a", b"abc")], BYTES, tmp_path / "cache")
    (store,) = (tmp_path / "cache").iterdir()
    names = {"store.json", "documents", "tokenizer.bin", "000000.ids", "000000.sums"}
    assert {path.name for path in store.iterdir()} == names


def test_failure_leaves_no_token_file(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepared([text_file(tmp_path / "a", b"abc\xff")], BYTES, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_character_without_an_id_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"odd\.txt: character 'x' .* at position 2"):
        prepared([text_file(tmp_path / "odd.txt", b"abx")], CharsTokenizer("ab"), tmp_path)


def test_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    with pytest.raises(DataError, match="cannot be written"):
        prepared([path], BYTES, path)


def test_preparing_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no text"):
        prepared([], BYTES, tmp_path)


def test_standard_input_is_for_stores_that_are_prepared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="standard input can be read once only: make a store of it"):
        prepared(["-"], BYTES, tmp_path)


# ---------------------------------------------------------------- what is no text, or another's


def narrow(tmp_path: Path) -> Tokenizer:
    """A tokenizer that knows the letters a to f and nothing else, not even bytes."""
    model = spm.SpmModel()
    model.pieces = ["<unk>", "<s>", "</s>", *"abcdef", "\u2581"]
    model.types = [spm.UNKNOWN, spm.CONTROL, spm.CONTROL, *[spm.NORMAL] * 7]
    model.scores = [0.0] * len(model.pieces)
    (tmp_path / "narrow.model").write_bytes(spm.write(model))
    return load_tokenizer(tmp_path / "narrow.model")


def test_a_text_that_the_tokenizer_mostly_does_not_know_is_refused_with_the_share(tmp_path: Path) -> None:
    path = text_file(tmp_path / "text", ("a x y z " * 200).encode())
    with pytest.raises(DataError, match=r"text: \d\d% of the tokens would stand for what the tokenizer"):
        prepared([path], narrow(tmp_path), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_share_of_what_the_tokenizer_does_not_know_is_kept(tmp_path: Path) -> None:
    path = text_file(tmp_path / "text", ("abcdefx" * 100).encode())
    assert 0 < prepared([path], narrow(tmp_path), tmp_path / "cache").unknown < 0.3


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.JSONL"])
@pytest.mark.parametrize("data", [b'{"text": "a"}\n', b"\xef\xbb\xbf  [1, 2]", b"\n\n{}"])
def test_json_is_not_trained_as_text(name: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JSON, of which quotes, braces and names of fields would count as text"):
        open_source(text_file(tmp_path / name, data))


def test_json_under_the_name_of_a_text_is_text(tmp_path: Path) -> None:
    assert text_of(text_file(tmp_path / "a.txt", b'{"text": 1}')) == '{"text": 1}'
    assert text_of(text_file(tmp_path / "a.json", b"no json")) == "no json"


@pytest.mark.parametrize("data", ["a text".encode("utf-16"), "a text".encode("utf-16-le"), b"abc\0def", bytes(100)])
def test_what_is_no_utf8_text_is_named(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"UTF-16 text; make UTF-8 of it|is NUL, so this is no text"):
        open_source(text_file(tmp_path / "a", data))
