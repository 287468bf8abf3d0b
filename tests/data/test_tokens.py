"""Corpora, token files and datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggmlgraph.data import corpus
from ggmlgraph.data.corpus import SINE_ALPHABET, lines_of, open_source, sine_levels
from ggmlgraph.data.tokens import Dataset, TokenFile, prepare
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.philox import philox
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
    with pytest.raises(DataError, match="no: No such file"):
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
    tokens = prepare([text_file(tmp_path / "a", "é日\n".encode() * 9)], BYTES, tmp_path)
    assert tokens.ids.tolist() == list("é日\n".encode() * 9)


def test_sources_follow_each_other(tmp_path: Path) -> None:
    sources = [text_file(tmp_path / name, name.encode()) for name in ("b", "a")]
    assert prepare(sources, BYTES, tmp_path).ids.tobytes() == b"b\0a\0"


def test_blocks_do_not_change_sentencepiece_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text_file(tmp_path / "a", "the fox, the dog: 日本語 the\n".encode() * 1000)
    tokenizer = train_tokenizer(lines_of([path]), tmp_path / "x.model", n_vocab=290)
    monkeypatch.setattr(corpus, "_BLOCK", 999)
    assert prepare([path], tokenizer, tmp_path).ids.tolist() == tokenizer.encode(path.read_text()).tolist()


def test_prepared_file_is_reused(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    assert [prepare([path], BYTES, tmp_path).reused for _ in range(2)] == [False, True]


def test_moved_source_is_reused(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    prepare([path], BYTES, tmp_path)
    assert prepare([path.rename(tmp_path / "b")], BYTES, tmp_path).reused


def test_changed_source_is_tokenised_again(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    prepare([path], BYTES, tmp_path)
    assert prepare([text_file(path, b"abd")], BYTES, tmp_path).ids.tolist() == list(b"abd")


def test_another_tokenizer_tokenises_again(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    prepare([path], BYTES, tmp_path)
    assert prepare([path], CharsTokenizer("cba"), tmp_path).ids.tolist() == [2, 1, 0]


@pytest.mark.parametrize("damage", ["cut", "magic", "json", "type"])
def test_damaged_token_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    path = text_file(tmp_path / "a", b"abcdef")
    tokens = prepare([path], BYTES, tmp_path)
    data = tokens.path.read_bytes()
    damaged = {
        "cut": data[:-1],
        "magic": b"x" + data[1:],
        "json": data.replace(b"}", b" "),
        "type": data.replace(b"<u2", b"<O2"),
    }
    tokens.path.unlink()
    tokens.path.write_bytes(damaged[damage])
    again = prepare([path], BYTES, tmp_path)
    assert (again.reused, again.ids.tolist()) == (False, list(b"abcdef"))


def test_small_vocabularies_take_two_bytes_an_id(tmp_path: Path) -> None:
    assert prepare([text_file(tmp_path / "a", b"abc")], BYTES, tmp_path).ids.dtype == np.uint16


def test_vocabularies_above_65536_take_four_bytes_an_id(tmp_path: Path) -> None:
    alphabet = "".join(map(chr, range(0x10000, 0x20001)))
    tokens = prepare([text_file(tmp_path / "a", "\U00020000".encode())], CharsTokenizer(alphabet), tmp_path)
    assert (tokens.ids.dtype, tokens.ids.tolist()) == (np.dtype(np.int32), [65536])


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    prepare([text_file(tmp_path / "a", b"abc")], BYTES, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".tokens"]


def test_failure_leaves_no_token_file(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepare([text_file(tmp_path / "a", b"abc\xff")], BYTES, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_character_without_an_id_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"odd\.txt: character 'x' .* at position 2"):
        prepare([text_file(tmp_path / "odd.txt", b"abx")], CharsTokenizer("ab"), tmp_path)


def test_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a", b"abc")
    with pytest.raises(DataError, match="cannot be written"):
        prepare([path], BYTES, path)


def test_preparing_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no text"):
        prepare([], BYTES, tmp_path)


# ---------------------------------------------------------------- datasets

CTX = 8


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """1000 tokens, id i at place i."""
    return counting(tmp_path, 1000)


def counting(folder: Path, n: int) -> TokenFile:
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    return prepare([text_file(folder / "count", alphabet[:n].encode())], CharsTokenizer(alphabet), folder)


def dataset(tokens: TokenFile, seed: int = 0, ctx: int = CTX, val_fraction: float = 0.1) -> Dataset:
    return Dataset(tokens, ctx, seed, n_vocab=2000, val_fraction=val_fraction)


def epoch_starts(data: Dataset, epoch: int) -> list[int]:
    """First tokens of an epoch's windows in their order."""
    n = data.windows_per_epoch
    return [int(data.batch(step, 1)[0][0, 0]) for step in range(epoch * n, (epoch + 1) * n)]


def test_batch_is_int32_rows_of_ctx(tokens: TokenFile) -> None:
    inputs, targets = dataset(tokens).batch(3, 5)
    assert {(a.shape, a.dtype) for a in (inputs, targets)} == {((5, CTX), np.dtype(np.int32))}


def test_inputs_are_consecutive_tokens(tokens: TokenFile) -> None:
    inputs, _ = dataset(tokens).batch(0, 5)
    assert (np.diff(inputs, axis=1) == 1).all()


def test_targets_are_the_next_tokens(tokens: TokenFile) -> None:
    inputs, targets = dataset(tokens).batch(0, 5)
    assert (targets == inputs + 1).all()


def test_batch_does_not_depend_on_what_was_read_before(tokens: TokenFile) -> None:
    used = dataset(tokens)
    for step in range(50):
        used.batch(step, 7)
    assert np.array_equal(used.batch(20, 7), dataset(tokens).batch(20, 7))


def test_batch_size_does_not_change_the_order(tokens: TokenFile) -> None:
    data = dataset(tokens)
    singles = [data.batch(step, 1)[0][0] for step in range(300)]
    assert np.array_equal(np.concatenate([data.batch(step, 10)[0] for step in range(30)]), singles)


def test_batches_never_change(tokens: TokenFile) -> None:
    golden = [[722, 850, 290, 522], [586, 154, 746, 770], [266, 82, 202, 842]]
    assert [dataset(tokens, seed=7).batch(step, 4)[0][:, 0].tolist() for step in (0, 1, 1000)] == golden


def test_epoch_shows_each_window_once(tokens: TokenFile) -> None:
    data = dataset(tokens)
    starts = np.sort(epoch_starts(data, 2))
    assert (np.diff(starts) == CTX).all()


def test_epochs_differ_in_order(tokens: TokenFile) -> None:
    orders = {tuple(np.array(epoch_starts(dataset(tokens), epoch)) // CTX) for epoch in range(5)}
    assert len(orders) == 5


def test_epochs_start_anywhere(tokens: TokenFile) -> None:
    assert {min(epoch_starts(dataset(tokens), epoch)) for epoch in range(60)} >= set(range(CTX))


def test_seeds_differ_in_order(tokens: TokenFile) -> None:
    assert epoch_starts(dataset(tokens, seed=0), 0) != epoch_starts(dataset(tokens, seed=1), 0)


@given(n=st.integers(1, 3000), seed=st.integers(0, 9))
def test_permutation_is_a_permutation(n: int, seed: int) -> None:
    from ggmlgraph.data.tokens import permute

    order = permute(np.arange(n), n, philox(seed, "test").random_raw(8))
    assert np.array_equal(np.sort(order), np.arange(n))


def test_permutation_puts_every_window_everywhere() -> None:
    """Where the first of 5 windows goes over 2000 keys: chi-squared, 4 degrees of freedom, 0.1 % level."""
    from ggmlgraph.data.tokens import permute

    places = [int(permute(np.zeros(1, np.int64), 5, philox(0, str(i)).random_raw(8))[0]) for i in range(2000)]
    counts = np.bincount(places, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5


def validation(data: Dataset, batch_size: int = 4, max_tokens: int = 10**6) -> Iterator[int]:
    for inputs, _, n_rows in data.validation_batches(batch_size, max_tokens):
        yield from inputs[:n_rows, 0].tolist()


def test_validation_is_the_last_part(tokens: TokenFile) -> None:
    assert list(validation(dataset(tokens))) == list(range(900, 900 + 99 // CTX * CTX, CTX))


def test_training_never_sees_validation(tokens: TokenFile) -> None:
    data = dataset(tokens)
    assert max(int(data.batch(step, 50)[1].max()) for step in range(50)) == 899


def test_validation_stops_at_max_tokens(tokens: TokenFile) -> None:
    assert len(list(validation(dataset(tokens), max_tokens=5 * CTX + 1))) == 5


def test_validation_has_one_window_at_least(tokens: TokenFile) -> None:
    assert len(list(validation(dataset(tokens), max_tokens=0))) == 1


def test_last_validation_batch_is_filled_up(tokens: TokenFile) -> None:
    shapes = [(inputs.shape, n_rows) for inputs, _, n_rows in dataset(tokens).validation_batches(5, 10**6)]
    assert shapes == [((5, CTX), 5), ((5, CTX), 5), ((5, CTX), 2)]


def test_validation_is_capped(tokens: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggmlgraph.data.tokens._MAX_VALIDATION", 50)
    assert dataset(tokens, val_fraction=0.5).n_val == 50


@pytest.mark.parametrize("n", [2 * CTX + 2, 2 * CTX + 3, 3 * CTX, 4 * CTX + 5])
@pytest.mark.parametrize("val_fraction", [0.01, 0.99])
def test_short_text_has_a_window_of_each(tmp_path: Path, n: int, val_fraction: float) -> None:
    data = dataset(counting(tmp_path, n), val_fraction=val_fraction)
    seen = {int(data.batch(step, 1)[1].max()) for step in range(200)}
    assert max(seen) < data.n_train <= min(validation(data))


def test_too_short_text_tells_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"count has 17 tokens; ctx 8 needs at least 18"):
        dataset(counting(tmp_path, 17))


def test_text_without_tokens_is_too_short(tmp_path: Path) -> None:
    tokens = prepare([text_file(tmp_path / "bom", b"\xef\xbb\xbf")], BYTES, tmp_path)
    with pytest.raises(DataError, match="bom has 0 tokens"):
        dataset(tokens)


def test_id_above_the_models_vocabulary_is_an_error(tokens: TokenFile) -> None:
    with pytest.raises(DataError, match="token id 999, the model's n_vocab is 999"):
        Dataset(tokens, CTX, 0, n_vocab=999)


@pytest.mark.parametrize(("ctx", "val_fraction"), [(0, 0.1), (8, 0.0), (8, 1.0)])
def test_senseless_settings_are_usage_errors(tokens: TokenFile, ctx: int, val_fraction: float) -> None:
    with pytest.raises(UsageError):
        dataset(tokens, ctx=ctx, val_fraction=val_fraction)
