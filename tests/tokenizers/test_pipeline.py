"""tokenizer.json: pipelines of any kind encode as the package does and decode piece by piece; no file is trusted."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggmlgraph.data.documents import lines_of
from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.interchange.tokenizer import in_gguf, load_tokenizer
from ggmlgraph.tokenizers import spm, vocabularies
from ggmlgraph.tokenizers.base import TextDecoder, Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tokenizers.pipeline import read, spelt
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.splitting import LLAMA3, Splitting
from ggmlgraph.tokenizers.tohf import files
from ggmlgraph.tokenizers.training import train_tokenizer

package = pytest.importorskip("tokenizers", reason="for want of tokenizers")

TEXT = "The quick brown fox jumps over the lazy dog, said Zoë.\n  Pack my box with 12 dozen liquor jugs! " * 30
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level() -> Any:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)


def llama() -> Any:
    """As transformers writes LLaMA's: BPE over a text whose spaces are U+2581, bytes for what is unknown."""
    from tokenizers import decoders, models, normalizers, trainers

    tokenizer = package.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return tokenizer, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL + bytes_)


def unigram() -> Any:
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>")


def word_piece() -> Any:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer, trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL)


PIPELINES: dict[str, Callable[[], Any]] = {
    "byte level": byte_level, "llama": llama, "unigram": unigram, "word piece": word_piece,
}  # fmt: skip


@pytest.fixture(scope="module", params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Any:
    """The package's tokenizer, trained."""
    tokenizer, trainer = PIPELINES[request.param]()
    tokenizer.train_from_iterator([TEXT], trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] in SPECIAL]
    return package.Tokenizer.from_str(json.dumps(file))


@pytest.fixture(scope="module")
def ours(pipeline: Any) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(pipeline.to_str().encode())


def test_ids_are_the_packages_however_the_text_is_cut(pipeline: Any, ours: HuggingFaceTokenizer) -> None:
    text = TEXT * 4 + "日本 x"
    wanted = pipeline.encode(text, add_special_tokens=False).ids
    chunks = [text[i : i + 777] for i in range(0, len(text), 777)]
    assert np.concatenate(list(ours.encode_stream(chunks))).tolist() == wanted


def test_streamed_text_is_what_the_package_decodes(pipeline: Any, ours: HuggingFaceTokenizer) -> None:
    ids = pipeline.encode(TEXT[:700], add_special_tokens=False).ids
    assert ours.decode(ids) == pipeline.decode(ids)


@given(text=st.text(st.characters(codec="utf-8") | st.sampled_from(" \na日😀")))
@settings(max_examples=60, deadline=None)
def test_no_broken_character_is_ever_streamed(text: str, ours: HuggingFaceTokenizer) -> None:
    decoder = TextDecoder(ours)
    pieces = [decoder.push(token) for token in ours.encode(text.replace("\ufffd", "")).tolist()]
    assert "\ufffd" not in "".join(pieces)


def test_the_leaf_round_trips(ours: HuggingFaceTokenizer) -> None:
    again = tokenizer_from_bytes(ours.to_bytes())
    assert again.encode(TEXT[:500]).tolist() == ours.encode(TEXT[:500]).tolist()


def test_control_tokens_are_known_by_name(ours: HuggingFaceTokenizer) -> None:
    assert (ours.bos_id, ours.eos_id, dict(ours.specials)) == (1, 2, {"<unk>": 0, "<s>": 1, "</s>": 2})
    assert ours.decode([1, *ours.encode("fox"), 2]) == "fox"


def test_a_post_processor_that_puts_bos_first_is_seen() -> None:
    tokenizer, trainer = byte_level()
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = package.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    assert HuggingFaceTokenizer(tokenizer.to_str().encode()).adds_bos


# ---------------------------------------------------------------- sentencepiece as tokenizer.json


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def sentencepiece(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text(TEXT)
    return train_tokenizer(lines_of([folder / "text"]), folder / "m.model", request.param, n_vocab=300)


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="▁") | st.sampled_from(" \nethor"), min_size=1))
@settings(max_examples=60, deadline=None)
def test_a_sentencepiece_model_spelt_as_tokenizer_json_gives_its_ids(
    text: str, sentencepiece: SentencePieceTokenizer
) -> None:
    spelt = _spelt(sentencepiece)
    if not any(name in text for name in SPECIAL):
        assert spelt.encode(text).tolist() == sentencepiece.encode(text).tolist()
        assert spelt.decode(spelt.encode(text)) == text


_SPELT: dict[int, HuggingFaceTokenizer] = {}


def _spelt(tokenizer: SentencePieceTokenizer) -> HuggingFaceTokenizer:
    if id(tokenizer) not in _SPELT:
        _SPELT[id(tokenizer)] = HuggingFaceTokenizer(files(tokenizer)[0]["tokenizer.json"])
    return _SPELT[id(tokenizer)]


# ---------------------------------------------------------------- files nobody vouches for

MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
BAD_TABLE = base64.b64encode(b"\4\0\0\0\xff\xff\0\0x\0").decode()
HOSTILE: dict[str, dict[str, Any]] = {
    "no vocabulary": {"model": MODEL | {"vocab": {}}},
    "ids that repeat": {"model": MODEL | {"vocab": {"a": 0, "b": 0, "ab": 1}}},
    "a negative id": {"model": MODEL | {"vocab": {"a": -1, "b": 0, "ab": 1}}},
    "an id that would take all memory": {"model": MODEL | {"vocab": {"a": 0, "b": 1, "ab": 4294967295}}},
    "a merge of nothing": {"model": MODEL | {"merges": [["a", "z"]]}},
    "a prefix that is cut inside a character": {
        "model": {"type": "BPE", "vocab": {"a": 0, "é": 1, "aé": 2}, "merges": [["a", "é"]],
                  "continuing_subword_prefix": "x"}
    },
    "a prefix longer than what it is cut from": {"model": MODEL | {"continuing_subword_prefix": "zzzz"}},
    "merging by chance": {"model": MODEL | {"dropout": 0.5}},
    "an unknown token that is none": {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 5}},
    "a panic when it decodes": {"decoder": {"type": "Strip", "content": "a", "start": 1, "stop": 5}},
    "a panic when it encodes": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a step that does not exist": {"normalizer": {"type": "Magic"}},
    "an expression that takes for ever": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
    },
    "a hidden expression": {"decoder": {"type": "Sequence", "decoders": [{"x": {"Regex": "a*"}}]}},
    "a table that points outside itself": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": BAD_TABLE}},
    "a table that is no base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "\u00e9"}},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((FormatError, UnsupportedError)) as raised:
        HuggingFaceTokenizer(json.dumps({"version": "1.0", "model": MODEL, **HOSTILE[name]}).encode())
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("data", [b"{", b"{}", b'{"model": 1}', b'{"model": {"vocab": []}}', b"\xff{", b"[" * 10**5])
def test_what_is_no_tokenizer_json_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        HuggingFaceTokenizer(data)


def test_deep_nesting_is_refused() -> None:
    steps: dict[str, Any] = {"type": "NFC"}
    for _ in range(100):
        steps = {"type": "Sequence", "normalizers": [steps]}
    with pytest.raises(GGError):
        read(json.dumps({"model": MODEL, "normalizer": steps}).encode())


# ---------------------------------------------------------------- tiktoken and GGUF

RANKS = [bytes([b]) for b in range(256)] + [b"th", b" th", b" the", b"he", b"the", b"in", b"ing", b"  "]


def tiktoken_bytes(ranks: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))


@pytest.fixture
def small_tiktoken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    encoding = vocabularies._Encoding(Splitting((LLAMA3,), True), ("<|end|>",))
    monkeypatch.setitem(vocabularies.TIKTOKEN, len(RANKS), encoding)
    (tmp_path / "x.tiktoken").write_bytes(tiktoken_bytes(RANKS))
    return tmp_path / "x.tiktoken"


def merged(word: bytes) -> list[int]:
    """tiktoken's algorithm: join the neighbours whose union has the lowest rank, again and again."""
    rank = {token: i for i, token in enumerate(RANKS)}
    parts = [bytes([b]) for b in word]
    if word in rank:
        return [rank[word]]
    while True:
        pairs = [(rank.get(parts[i] + parts[i + 1], 10**9), i) for i in range(len(parts) - 1)]
        lowest, at = min(pairs, default=(10**9, 0))
        if lowest == 10**9:
            return [rank[part] for part in parts]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_ranks_encode_as_tiktoken_does(small_tiktoken: Path) -> None:
    tokenizer = load_tokenizer(small_tiktoken)
    words = ["The", " theing", " in", " the", " there", "  ", " thinthe", "é日"]
    for word in words:
        assert tokenizer.encode(word).tolist() == merged(word.encode())
    assert tokenizer.encode("<|end|>").tolist() == [len(RANKS)]
    assert tokenizer.decode(tokenizer.encode(" the ing é日😀")) == " the ing é日😀"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiktoken_bytes(RANKS[:9]), "how it splits text is known for"),
        (tiktoken_bytes(RANKS).replace(b" 5\n", b" 6\n"), "ranks are not"),
        (b"AA== 0\nhello\n", "line 2"),
        (b"AA== 0\nA=== 1\n", "line 2"),
    ],
)
def test_a_malformed_file_of_ranks_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(data)
    with pytest.raises(GGError, match=reason):
        load_tokenizer(tmp_path / "x.tiktoken")


def tokenizer_from_gguf(pairs: dict[str, Any]) -> Tokenizer:
    found = in_gguf(pairs, Path("x.gguf"))
    assert found is not None
    return found.tokenizer


def pairs_of(tokenizer: SentencePieceTokenizer, kind: str) -> dict[str, Any]:
    model = tokenizer.model
    return {
        "tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": [piece.encode() for piece in model.pieces],
        "tokenizer.ggml.scores": np.float32(model.scores), "tokenizer.ggml.token_type": np.int32(model.types),
        "tokenizer.ggml.add_space_prefix": model.add_dummy_prefix, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip


def test_a_gguf_vocabulary_encodes_as_the_model_it_is_of(sentencepiece: SentencePieceTokenizer) -> None:
    kind = "t5" if sentencepiece.model.model_type == spm.UNIGRAM else "llama"
    again = tokenizer_from_gguf(pairs_of(sentencepiece, kind))
    assert again.encode(TEXT).tolist() == sentencepiece.encode(TEXT).tolist()
    assert (again.bos_id, again.eos_id) == (1, 2)


@pytest.mark.parametrize("table", [np.float32([1]), "x", np.uint8([255, 0, 0, 0, 1])])
def test_a_gguf_vocabulary_with_a_bad_table_is_refused(table: Any, sentencepiece: SentencePieceTokenizer) -> None:
    with pytest.raises(FormatError):
        tokenizer_from_gguf(pairs_of(sentencepiece, "t5") | {"tokenizer.ggml.precompiled_charsmap": table})


@pytest.mark.parametrize("pre", ["gpt-2", "olmo", "llama-bpe", "qwen2", "gpt-4o", "tekken"])
def test_byte_level_gguf_vocabularies_split_words_as_they_say(pre: str) -> None:
    tokens = [spelt(bytes([b])) for b in range(256)] + ["12", "<s>"]
    pairs = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": [b"1 2"],
        "tokenizer.ggml.tokens": [token.encode() for token in tokens],
        "tokenizer.ggml.token_type": np.int32([1] * 257 + [3]),
    }  # fmt: skip
    ids = tokenizer_from_gguf(pairs).encode("12<s>").tolist()
    assert ids == ([ord("1"), ord("2"), 257] if pre in ("qwen2", "tekken") else [256, 257])


def test_an_unknown_way_to_split_words_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'magic'"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "magic"})
