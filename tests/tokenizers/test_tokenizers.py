"""Tokenizers: round trips, streaming, files nobody vouches for, training."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import REAL

from ggmlgraph.data.documents import lines_of
from ggmlgraph.errors import DataError, FormatError, GGError, UnsupportedError, UsageError
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers import spm
from ggmlgraph.tokenizers.base import TextDecoder, Tokenizer
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.settings import Settings, from_gguf
from ggmlgraph.tokenizers.training import train_tokenizer

TEXT = (
    "The quick brown fox jumps over the lazy dog. " * 3 + "\n  Pack my box with five dozen liquor jugs: 1234567890.\n"
)
AWKWARD = [
    "",
    " ",
    "  two  spaces ",
    "\n",
    "a\r\nb\tc\n\n d",
    "日本語😀",
    "▁",
    " ▁▁a ▁",
    "\0",
    "\ufdd0▁\ufdd1",
    "<s></s><unk><0x41>",
]
UNIGRAM_VOCAB = 305
ANY_TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from(" \n▁a"))


def shared(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"for want of ../shared/data, {name} in it")
    return REAL / name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "fox.txt"
    path.write_text(TEXT * 20)
    return path


@pytest.fixture(scope="module")
def bpe(corpus: Path) -> SentencePieceTokenizer:
    return train_tokenizer(lines_of([corpus]), corpus.with_name("bpe.model"), "bpe", n_vocab=340)


@pytest.fixture(scope="module")
def unigram(corpus: Path) -> SentencePieceTokenizer:
    return train_tokenizer(lines_of([corpus]), corpus.with_name("unigram.model"), "unigram", n_vocab=UNIGRAM_VOCAB)


@pytest.fixture(scope="module")
def prefixing(corpus: Path) -> SentencePieceTokenizer:
    """A lossless model that puts a space in front of a text, as LLaMA's does."""
    return trained(corpus, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)


@pytest.fixture(scope="module")
def normalizing(corpus: Path) -> SentencePieceTokenizer:
    return trained(corpus, vocab_size=80, normalization_rule_name="nmt_nfkc")


def trained(corpus: Path, vocab_size: int = 340, **options: Any) -> SentencePieceTokenizer:
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_writer=out, vocab_size=vocab_size, minloglevel=3, hard_vocab_limit=False, **options
    )
    return SentencePieceTokenizer(out.getvalue())


@pytest.fixture(params=["bytes", "bpe", "unigram", "prefixing"])
def lossless(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer: Tokenizer = BytesTokenizer() if request.param == "bytes" else request.getfixturevalue(request.param)
    return tokenizer


@pytest.fixture(params=["bytes", "chars", "bpe"])
def any_kind(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytes":
        return BytesTokenizer()
    tokenizer: Tokenizer = (
        CharsTokenizer("▁▂▃▄▅▆▇█") if request.param == "chars" else request.getfixturevalue(request.param)
    )
    return tokenizer


# ---------------------------------------------------------------- every kind


@pytest.mark.parametrize("text", AWKWARD)
def test_decoding_gives_the_encoded_text(lossless: Tokenizer, text: str) -> None:
    assert lossless.decode(lossless.encode(text)) == text


@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_bpe_round_trips_any_text(bpe: SentencePieceTokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_space_prefixing_model_round_trips_any_text(prefixing: SentencePieceTokenizer, text: str) -> None:
    assert prefixing.decode(prefixing.encode(text)) == text


@given(text=ANY_TEXT)
def test_bytes_round_trip_any_text(text: str) -> None:
    tokenizer = BytesTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text("▁▂▃▄▅▆▇█"))
def test_chars_round_trip_their_alphabet(text: str) -> None:
    tokenizer = CharsTokenizer("▁▂▃▄▅▆▇█")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_are_int32_below_n_vocab(any_kind: Tokenizer) -> None:
    ids = any_kind.encode("▂▁█")
    assert ids.dtype == np.int32
    assert (ids < any_kind.n_vocab).all()


def test_no_text_has_no_ids(any_kind: Tokenizer) -> None:
    assert any_kind.encode("").shape == (0,)


def test_leaf_round_trips(any_kind: Tokenizer) -> None:
    again = tokenizer_from_bytes(any_kind.to_bytes())
    assert (again.kind, again.to_bytes()) == (any_kind.kind, any_kind.to_bytes())


def test_leaf_may_be_padded(any_kind: Tokenizer) -> None:
    assert tokenizer_from_bytes(any_kind.to_bytes() + bytes(31)).to_bytes() == any_kind.to_bytes()


def test_leaf_starts_with_one_line_of_json() -> None:
    assert CharsTokenizer("ab").to_bytes() == b'{"kind":"chars","nbytes":2}\nab'


@pytest.mark.parametrize(
    "leaf",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b"\xff\n",
        b"[" * 5000 + b"\n",
        b'{"kind":"bytes"}\n',
        b'{"kind":"magic","nbytes":0}\n',
        b'{"kind":"bytes","nbytes":0}',
        b'{"kind":"bytes","nbytes":1}\n',
        b'{"kind":"bytes","nbytes":-1}\n',
        b'{"kind":"bytes","nbytes":true}\n',
        b'{"kind":"bytes","nbytes":1}\nx',
        b'{"kind":"bytes","nbytes":0}\nx',
        b'{"kind":"bytes","nbytes":0,"more":1}\n',
        b'{"kind":"chars","nbytes":0}\n',
        b'{"kind":"chars","nbytes":2}\naa',
        b'{"kind":"chars","nbytes":1}\n\xff',
        b'{"kind":"sentencepiece","nbytes":0}\n',
    ],
)
def test_malformed_leaf_is_a_format_error(leaf: bytes) -> None:
    with pytest.raises(FormatError):
        tokenizer_from_bytes(leaf)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_decoding_an_id_outside_the_vocabulary_is_an_error(any_kind: Tokenizer, token: int) -> None:
    with pytest.raises(DataError, match=f"token id {token} "):
        any_kind.decode([token])


def test_lone_surrogate_is_an_error(any_kind: Tokenizer) -> None:
    with pytest.raises(DataError, match="surrogate"):
        any_kind.encode("\ud800")


# ---------------------------------------------------------------- streaming


def test_decoder_holds_a_character_back_until_it_is_whole() -> None:
    decoder = TextDecoder(BytesTokenizer())
    assert [decoder.push(byte) for byte in "a日b".encode()] == ["a", "", "", "日", "b"]


def test_decoder_replaces_an_unfinished_character_at_the_end() -> None:
    decoder = TextDecoder(BytesTokenizer())
    assert decoder.push(0xE6) + decoder.finish() == "\ufffd"


@given(ids=st.lists(st.integers(0, 255)))
def test_streamed_text_is_the_decoded_text(ids: list[int]) -> None:
    decoder = TextDecoder(BytesTokenizer())
    assert "".join(map(decoder.push, ids)) + decoder.finish() == bytes(ids).decode(errors="replace")


def test_only_the_first_prefixed_space_is_dropped(prefixing: SentencePieceTokenizer) -> None:
    decoder = TextDecoder(prefixing)
    assert "".join(decoder.push(i) for i in prefixing.encode(" the fox the")) == " the fox the"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "prefixing", "normalizing"])
@pytest.mark.parametrize("size", [1000, 4096, 70000])
def test_chunks_do_not_change_ids(kind: str, size: int, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    text = (TEXT + "日本語 ▁") * 500 + "a" * 70000
    chunks = (text[i : i + size] for i in range(0, len(text), size))
    assert np.concatenate(list(tokenizer.encode_stream(chunks))).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("kind", ["bpe", "prefixing", "normalizing"])
def test_segments_do_not_change_ids(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    text = TEXT * 200
    assert tokenizer.encode(text).tolist() == tokenizer._processor.encode(text)


def test_long_line_without_a_place_to_cut_is_encoded(bpe: SentencePieceTokenizer) -> None:
    pair = next(p for p in bpe.model.pieces if len(p) == 2 and p.isalpha())
    text = pair[0] * 3 + pair * 40000
    assert bpe.decode(bpe.encode(text)) == text


# ---------------------------------------------------------------- chars


def test_chars_ids_follow_the_alphabet() -> None:
    assert CharsTokenizer("zay").encode("ayz").tolist() == [1, 2, 0]


def test_unknown_character_is_named_with_its_position() -> None:
    with pytest.raises(DataError, match=re.escape("'c' (U+0063) at position 5")):
        list(CharsTokenizer("ab").encode_stream(["abb", "bacb"]))


def test_unknown_unprintable_character_is_escaped() -> None:
    with pytest.raises(DataError, match=re.escape(r"'\n' (U+000A)")):
        CharsTokenizer("ab").encode("a\n")


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_alphabet_has_each_character_once(alphabet: str) -> None:
    with pytest.raises(UsageError, match="alphabet"):
        CharsTokenizer(alphabet)


# ---------------------------------------------------------------- sentencepiece


def test_control_tokens_are_known(bpe: SentencePieceTokenizer) -> None:
    assert (bpe.bos_id, bpe.eos_id) == (1, 2)


def test_control_tokens_decode_to_nothing(bpe: SentencePieceTokenizer) -> None:
    assert bpe.decode([1, *bpe.encode("fox"), 2]) == "fox"


def test_encoding_adds_no_control_tokens(bpe: SentencePieceTokenizer) -> None:
    assert not {1, 2} & set(bpe.encode("<s>fox</s>").tolist())


def test_model_trained_here_encodes_by_parts(bpe: SentencePieceTokenizer) -> None:
    parts = np.concatenate([bpe.encode("The quick"), bpe.encode(" brown fox")])
    assert bpe.decode(parts) == "The quick brown fox"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "prefixing", "normalizing"])
def test_decoding_agrees_with_sentencepiece(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode("  Pack my\nbox 日本 with").tolist()
    assert tokenizer.decode(ids) == tokenizer._processor.decode(ids)


REAL_MODELS = [
    "llama-spm/tokenizer.model",
    "stories260K/tok512.model",
    "llm-jp-tok/code10K_en20K_ja30K.ver2.2.model",
    "sentencepiece-ja/test_ja_model.model",
]


@pytest.mark.parametrize("model", REAL_MODELS)
def test_real_model_gives_sentencepiece_ids(model: str) -> None:
    tokenizer = load_tokenizer(shared(model))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    lines = shared("corpora/wagahaiwa_nekodearu.txt").read_text().splitlines()[:200]
    assert [tokenizer.encode(line).tolist() for line in lines] == tokenizer._processor.encode(lines)


@pytest.mark.parametrize("model", REAL_MODELS[:3])
def test_real_byte_fallback_model_round_trips(model: str) -> None:
    tokenizer = load_tokenizer(shared(model))
    text = shared("corpora/wagahaiwa_nekodearu.txt").read_text()[:20000] + "".join(AWKWARD)
    assert tokenizer.decode(tokenizer.encode(text)) == text


# ---------------------------------------------------------------- files nobody vouches for


def field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + len(payload).to_bytes(1, "little") + payload


PIECE = field(1, field(1, b"a"))
UNKNOWN = field(1, field(1, b"<unk>") + b"\x18\x02")


@pytest.mark.parametrize(
    ("data", "reason", "offset"),
    [
        (b"", "no pieces", 0),
        (b"hello", "wire type 0|not a message|ends|wire type", None),
        (PIECE, "unknown piece", len(PIECE)),
        (UNKNOWN + PIECE + PIECE, "same piece twice", None),
        (UNKNOWN + b"\x0b", "wire type 3", len(UNKNOWN)),
        (UNKNOWN + b"\x0a\x7fab", "ends 125 bytes after", len(UNKNOWN)),
        (UNKNOWN + b"\x80" * 11, "does not end", len(UNKNOWN)),
        (UNKNOWN + b"\x08\x01", "not a message", len(UNKNOWN)),
        (UNKNOWN + field(1, b""), "an empty piece", len(UNKNOWN)),
        (UNKNOWN + field(1, field(1, b"\xff")), "not UTF-8", len(UNKNOWN) + 4),
        (UNKNOWN + field(1, field(1, b"a") + b"\x15\x00\x00\xc0\x7f"), "not finite", len(UNKNOWN)),
        (UNKNOWN + field(1, field(1, b"a") + b"\x18\x09"), "type 9", len(UNKNOWN)),
        (UNKNOWN + field(1, field(1, b"a") + b"\x18\x06"), "<0xNN>", len(UNKNOWN)),
        (UNKNOWN + field(2, b"\x98\x02\x01"), "0 byte pieces", None),
        (UNKNOWN + field(2, b"") + field(2, b""), "a second trainer", len(UNKNOWN) + 2),
        (UNKNOWN + field(3, field(2, b"\xff\xff\xff\xffab\0")), "normalization table", None),
    ],
)
def test_malformed_model_is_a_format_error_with_its_offset(data: bytes, reason: str, offset: int | None) -> None:
    with pytest.raises(FormatError, match=reason) as raised:
        spm.read(data)
    assert offset in (None, raised.value.offset)


def test_oversized_piece_is_refused() -> None:
    piece = b"\x0a\x81\x08" + b"a" * 1025
    with pytest.raises(FormatError, match="a piece of 1025 bytes"):
        spm.read(UNKNOWN + b"\x0a\x84\x08" + piece)


def test_normalization_table_that_leaves_its_trie_is_refused() -> None:
    table = (4).to_bytes(4, "little") + (1 << 10).to_bytes(4, "little") + b"\0"
    with pytest.raises(FormatError, match="points outside itself"):
        spm.read(UNKNOWN + PIECE + field(3, field(2, table)))


def test_denormalizing_model_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="denormalizer"):
        spm.read(UNKNOWN + PIECE + field(5, field(2, b"x")))


def test_oversized_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spm, "MAX_NBYTES", 8)
    with pytest.raises(FormatError, match="at most 8"):
        spm.read(UNKNOWN)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_model_gives_a_typed_error_or_loads(normalizing: SentencePieceTokenizer, data: st.DataObject) -> None:
    model = bytearray(normalizing.payload())
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(GGError):
        SentencePieceTokenizer(bytes(model)).encode("Ｔhe ① quick 日本")


def test_load_names_the_file_that_is_no_model(corpus: Path) -> None:
    with pytest.raises(FormatError, match=f"{corpus}: .* at byte 0"):
        load_tokenizer(corpus)


def test_refused_model_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FormatError):
        SentencePieceTokenizer(UNKNOWN + field(1, field(1, b"a\0")))
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- training


def test_training_writes_a_loadable_model(bpe: SentencePieceTokenizer, corpus: Path) -> None:
    assert load_tokenizer(corpus.with_name("bpe.model")).to_bytes() == bpe.to_bytes()


def test_trained_model_has_the_asked_vocabulary(bpe: SentencePieceTokenizer) -> None:
    assert bpe.n_vocab == 340


def test_trained_types_are_the_asked_ones(bpe: SentencePieceTokenizer, unigram: SentencePieceTokenizer) -> None:
    assert (bpe.model.model_type, unigram.model.model_type) == (spm.BPE, spm.UNIGRAM)


def test_bpe_training_is_repeatable(bpe: SentencePieceTokenizer, corpus: Path, tmp_path: Path) -> None:
    assert train_tokenizer(lines_of([corpus]), tmp_path / "x", "bpe", 340).payload() == bpe.payload()


def test_unigram_training_is_repeatable(unigram: SentencePieceTokenizer, corpus: Path, tmp_path: Path) -> None:
    assert train_tokenizer(lines_of([corpus]), tmp_path / "x", "unigram", UNIGRAM_VOCAB).payload() == unigram.payload()


def test_training_prints_nothing(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(lines_of([corpus]), tmp_path / "x", n_vocab=340)
    assert capfd.readouterr() == ("", "")


def test_text_without_spaces_still_round_trips_them(tmp_path: Path) -> None:
    (tmp_path / "ja.txt").write_text("吾輩は猫である\n名前はまだ無い\n" * 9)
    tokenizer = train_tokenizer(lines_of([tmp_path / "ja.txt"]), tmp_path / "x", n_vocab=275)
    assert tokenizer.decode(tokenizer.encode("a  b ")) == "a  b "


def test_long_lines_are_trained_on(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("abc " * 300_000)
    assert "abc" in "".join(
        train_tokenizer(lines_of([tmp_path / "one.txt"]), tmp_path / "x", n_vocab=264).model.pieces[259:]
    )


def test_too_large_vocabulary_tells_the_highest(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"5000 is too high for this text; the highest possible is \d+$"):
        train_tokenizer(lines_of([corpus]), tmp_path / "x", n_vocab=5000)


def test_the_highest_vocabulary_told_can_be_trained(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        train_tokenizer(lines_of([corpus]), tmp_path / "x", n_vocab=5000)
    highest = int(str(raised.value).split()[-1])
    assert train_tokenizer(lines_of([corpus]), tmp_path / "x", n_vocab=highest).n_vocab == highest


def test_too_small_vocabulary_tells_the_lowest(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"100 is too low .* needs \d+$"):
        train_tokenizer(lines_of([corpus]), tmp_path / "x", n_vocab=100)


def test_training_on_invalid_utf8_tells_where(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\n\xff")
    with pytest.raises(DataError, match=r"bad\.txt: byte 4"):
        train_tokenizer(lines_of([tmp_path / "bad.txt"]), tmp_path / "x")


def test_training_on_blank_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(DataError, match="nothing to train"):
        train_tokenizer(lines_of([tmp_path / "blank.txt"]), tmp_path / "x")


def test_failed_training_leaves_no_file(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        train_tokenizer(lines_of([corpus]), tmp_path / "x", n_vocab=5000)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- settings


def test_settings_travel_in_the_leaf(bpe: SentencePieceTokenizer) -> None:
    settings = Settings(chat_template="{{ messages }}\n" * 1000, bos="<s>", eos=7, adds_bos=True)
    tokenizer = tokenizer_from_bytes(SentencePieceTokenizer(bpe.payload()).apply(settings).to_bytes())
    assert tokenizer.settings == settings
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 7, True)
    assert tokenizer.name_of(tokenizer.bos_id) == "<s>"


def test_settings_beside_a_tokenizer_are_applied(bpe: SentencePieceTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(bpe.payload())
    config = {"eos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "T"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path / "tokenizer.model")
    assert (loaded.eos_id, loaded.chat_template, loaded.adds_bos) == (1, "T", False)


@pytest.mark.parametrize("config", ["[]", "{", '{"chat_template": "' + "x" * (1 << 20) + 'y"}'])
def test_malformed_settings_are_a_format_error(config: str, bpe: SentencePieceTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(bpe.payload())
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(FormatError):
        load_tokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("pairs", "adds_bos"),
    [
        ({"tokenizer.ggml.model": "llama"}, True),
        ({"tokenizer.ggml.model": "gpt2"}, False),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_bos_token": False}, False),
    ],
)
def test_gguf_settings_have_llamacpps_defaults(pairs: dict[str, Any], adds_bos: bool) -> None:
    pairs = {**pairs, "tokenizer.chat_template": "T", "tokenizer.ggml.eos_token_id": 5}
    assert from_gguf(pairs) == Settings("T", None, 5, adds_bos)
