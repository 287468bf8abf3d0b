"""The tokenizer of a folder is taken from all its files together, whole, or an error names token and file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.interchange.sources.base import BEGINS_WITH_BOS, completed
from ggmlgraph.interchange.tokenizer import find_tokenizer, in_gguf, load_tokenizer
from ggmlgraph.tokenizers import spm, togguf
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tokenizers.pipeline import spelt
from ggmlgraph.tokenizers.settings import Settings, from_gguf
from ggmlgraph.tokenizers.splitting import LABELS, SAME

pytest.importorskip("tokenizers", reason="for want of tokenizers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BYTES = {spelt(bytes([b])): b for b in range(256)}
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}


def spm_bytes(byte_fallback: bool = True) -> bytes:
    """A BPE model like LLaMA's: <unk> <s> </s>, the bytes, a few pieces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *LETTERS, "▁a", "th", "▁th", "he"]
    types = [spm.UNKNOWN, spm.CONTROL, spm.CONTROL, *[spm.BYTE] * 256, *[spm.NORMAL] * (len(LETTERS) + 5)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) - 259)]
    model = spm.SpmModel(pieces, scores, types, spm.BPE, byte_fallback, remove_extra_whitespaces=False)
    return spm.write(model)


N_SPM = 3 + 256 + 1 + 26 + 4


def write(folder: Path, **files: Any) -> Path:
    """A folder of files; "__" in a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def byte_level(**model: Any) -> dict[str, Any]:
    vocab = {**BYTES, "th": 256, "<|end|>": 257}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 257, "content": "<|end|>", **FLAGS}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h"], **model},
    }


# ---------------------------------------------------------------- added tokens

ADDED: dict[str, dict[str, Any]] = {
    "added_tokens_decoder": {
        "tokenizer_config__json": {
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {
                str(N_SPM): {"content": "<|im_start|>", **FLAGS}, str(N_SPM + 1): {"content": "<|im_end|>", **FLAGS},
            },
        }
    },
    "added_tokens.json": {
        "added_tokens__json": {"<|im_end|>": N_SPM + 1, "<|im_start|>": N_SPM},
        "special_tokens_map__json": {"eos_token": {"content": "<|im_end|>"}},
    },
    "special_tokens_map.json alone": {
        "special_tokens_map__json": {"eos_token": "</s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    },
    "extra_special_tokens": {
        "tokenizer_config__json": {
            "eos_token": "</s>", "extra_special_tokens": {"a": "<|im_start|>", "b": "<|im_end|>"},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
@pytest.mark.parametrize("way", ADDED)
def test_added_tokens_are_part_of_the_tokenizer_wherever_a_folder_says_them(
    name: str, way: str, tmp_path: Path
) -> None:
    write(tmp_path, **{name.replace(".", "__"): spm_bytes()}, **ADDED[way])
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<|im_start|>").tolist() == [N_SPM]
    assert tokenizer.encode("a<|im_end|>").tolist()[-1] == N_SPM + 1
    assert tokenizer.n_vocab == N_SPM + 2
    assert tokenizer.name_of(tokenizer.eos_id) == ("</s>" if "alone" in way or "extra" in way else "<|im_end|>")


def test_a_tokenizer_json_goes_before_a_sentencepiece_model(tmp_path: Path) -> None:
    found = find_tokenizer(write(tmp_path, tokenizer__json=byte_level(), tokenizer__model=spm_bytes()))
    assert found is not None
    assert found.files == ("tokenizer.json",)
    assert found.tokenizer.n_vocab == 258


def test_a_sentencepiece_model_alone_stays_one(tmp_path: Path) -> None:
    assert load_tokenizer(write(tmp_path, tokenizer__model=spm_bytes())).kind == "sentencepiece"


WRONG_ADDED: dict[str, tuple[dict[str, Any], str]] = {
    "an id that is not free": ({"added_tokens__json": {"<a>": N_SPM + 5}}, "added_tokens.json: .*'<a>' is 295; .*290"),
    "an id of another token": (
        {"tokenizer_config__json": {"added_tokens_decoder": {"7": {"content": "<a>"}}}},
        "tokenizer_config.json: .*'<a>' is 7; the next free id is 290",
    ),
    "a token that has another id": (
        {"tokenizer_config__json": {"added_tokens_decoder": {"300": {"content": "th"}}}},
        "'th' is 300; the vocabulary has it as 287",
    ),
    "no token": ({"tokenizer_config__json": {"added_tokens_decoder": {"300": 4}}}, "'300' is no id with a token"),
    "no object": ({"tokenizer_config__json": {"added_tokens_decoder": 4}}, "added_tokens_decoder is no object"),
    "no JSON": ({"tokenizer_config__json": "{"}, "tokenizer_config.json: not JSON"),
    "beyond the model": ({"added_tokens__json": {"<a>": N_SPM}}, "'<a>' is 290, the model has ids 0 to 289"),
}


@pytest.mark.parametrize("name", WRONG_ADDED)
def test_an_added_token_that_cannot_be_kept_is_named_with_its_file(name: str, tmp_path: Path) -> None:
    files, reason = WRONG_ADDED[name]
    write(tmp_path, tokenizer__model=spm_bytes(), **files)
    with pytest.raises(FormatError, match=reason) as raised:
        find_tokenizer(tmp_path, N_SPM)
    assert str(tmp_path) in str(raised.value)


def test_a_padding_token_beyond_the_model_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, tokenizer__model=spm_bytes(), tokenizer_config__json={"pad_token": "[PAD]"})
    found = find_tokenizer(tmp_path, N_SPM)
    assert found is not None
    assert (found.tokenizer.n_vocab, found.tokenizer.pad_id) == (N_SPM, None)


def test_an_end_of_text_token_that_the_leaf_does_not_have_is_an_error(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, tokenizer__model=spm_bytes()))
    with pytest.raises(FormatError, match="end-of-text token is said to be '<nothing>'"):
        tokenizer.apply(Settings(eos="<nothing>"))


@pytest.mark.parametrize(
    ("flags", "text", "names"),
    [
        ({"lstrip": True}, "th  <x> th", ["th", "<x>", "Ġ", "th"]),
        ({"rstrip": True}, "th <x>  th", ["th", "Ġ", "<x>", "th"]),
        ({"single_word": True}, "th<x>th <x>", ["th", "<", "x", ">", "th", "Ġ", "<x>"]),
        ({"special": False}, "th<x>", ["th", "<x>"]),
    ],
)
def test_flags_of_added_tokens_count(flags: dict[str, bool], text: str, names: list[str], tmp_path: Path) -> None:
    listed = {"258": {"content": "<x>", **FLAGS, **flags}}
    write(tmp_path, tokenizer__json=byte_level(), tokenizer_config__json={"added_tokens_decoder": listed})
    tokenizer = load_tokenizer(tmp_path)
    ids = {**byte_level()["model"]["vocab"], "<x>": 258}
    assert tokenizer.encode(text).tolist() == [ids[name] for name in names]


# ---------------------------------------------------------------- begin- and end-of-text


def test_config_json_alone_says_begin_of_text(tmp_path: Path) -> None:
    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer__model=spm_bytes(), config__json=config))
    assert (tokenizer.beginning, tokenizer.eos_id) == ([1], 2)


def test_generation_config_json_goes_before_config_json(tmp_path: Path) -> None:
    write(tmp_path, tokenizer__json=byte_level(), config__json={"model_type": "gpt2", "eos_token_id": 5})
    write(tmp_path, generation_config__json={"eos_token_id": [257, 4]})
    assert load_tokenizer(tmp_path).eos_id == 257


def test_flags_that_tokenizer_config_json_says_count_for_tokens_added_before(tmp_path: Path) -> None:
    decoder = {"257": {"content": "<|end|>", **FLAGS, "lstrip": True}}
    config = {"eos_token": "<|end|>", "added_tokens_decoder": decoder}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer__json=byte_level(), tokenizer_config__json=config))
    assert tokenizer.encode("th  <|end|>").tolist() == [256, 257]


def test_a_unigram_model_under_llamas_class_is_refused(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", "▁", *LETTERS]
    model = spm.SpmModel(pieces, [-float(i) for i in range(len(pieces))],
                         [spm.UNKNOWN, spm.CONTROL, spm.CONTROL, *[spm.NORMAL] * 27], spm.UNIGRAM, False)  # fmt: skip
    write(tmp_path, tokenizer__model=spm.write(model), tokenizer_config__json={"tokenizer_class": "LlamaTokenizer"})
    with pytest.raises(UnsupportedError, match=r"tokenizer\.model: a unigram model, .* LlamaTokenizer"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_whose_class_is_not_said_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tokenizer__model=spm_bytes(), tokenizer_config__json={"eos_token": "</s>"})
    write(tmp_path, config__json={"model_type": "llama"})
    with pytest.raises(UnsupportedError, match=r"tokenizer\.model: tokenizer_config\.json names no tokenizer_class"):
        load_tokenizer(tmp_path)


def several_ends(folder: Path) -> Path:
    """A folder whose texts end at three tokens, <|end|> among them."""
    file = byte_level()
    file["model"]["vocab"] |= {"<|eot|>": 258, "<|eom|>": 259}
    file["added_tokens"] += [{"id": i, "content": name, **FLAGS} for i, name in ((258, "<|eot|>"), (259, "<|eom|>"))]
    return write(
        folder, tokenizer__json=file, tokenizer_config__json={"eos_token": "<|end|>"},
        generation_config__json={"eos_token_id": [257, 258, 259]}, config__json={"eos_token_id": 257},
    )  # fmt: skip


def test_of_several_tokens_at_which_texts_end_all_are_kept(tmp_path: Path) -> None:
    found = find_tokenizer(several_ends(tmp_path), 260)
    assert found is not None
    tokenizer = found.tokenizer
    assert (tokenizer.eos_id, tokenizer.end_ids) == (257, {257, 258, 259})
    assert tokenizer_from_bytes(tokenizer.to_bytes()).end_ids == {257, 258, 259}
    pairs, notes = togguf.section(tokenizer, 260)
    assert not notes
    assert from_gguf(pairs).ends == (258, 259)


def test_an_id_of_a_configuration_that_is_no_control_token_is_no_end_of_text(tmp_path: Path) -> None:
    write(tmp_path, tokenizer__json=byte_level(), config__json={"model_type": "llama", "eos_token_id": 2})
    assert load_tokenizer(tmp_path).eos_id is None


def test_a_tokenizer_given_by_hand_takes_begin_of_text_from_the_checkpoint(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, x__model=spm_bytes()) / "x.model")
    assert completed(tokenizer, BEGINS_WITH_BOS).beginning == [1]


def test_what_a_tokenizer_json_puts_before_a_text_counts(tmp_path: Path) -> None:
    file = byte_level()
    bos = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    file["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [257], "tokens": ["<|end|>"]}},
    }  # fmt: skip
    write(tmp_path, tokenizer__json=file, tokenizer_config__json={"add_bos_token": False})
    assert load_tokenizer(tmp_path).beginning == [257]


# ---------------------------------------------------------------- vocab.json and merges.txt


@pytest.mark.parametrize(
    ("kind", "model", "digits"),
    [
        ("GPT2Tokenizer", None, 2), (None, "gpt2", 2), ("PreTrainedTokenizerFast", "phi", 2),
        ("Qwen2TokenizerFast", None, 1), (None, "qwen3", 1), ("GPTNeoXTokenizerFast", None, 2), (None, "gpt_neox", 2),
    ],
)  # fmt: skip
def test_vocab_and_merges_split_as_their_class_does(
    kind: str | None, model: str | None, digits: int, tmp_path: Path
) -> None:
    vocab = {**BYTES, "12": 256}
    config = {"tokenizer_class": kind} if kind else {}
    write(tmp_path, vocab__json=vocab, merges__txt="#version: 0.2\n1 2\n", tokenizer_config__json=config)
    write(tmp_path, config__json={"model_type": model} if model else {})
    assert len(load_tokenizer(tmp_path).encode("12")) == (1 if digits == 2 else 2)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"vocab__json": BYTES}, "merges.txt: no such file"),
        ({"vocab__json": BYTES, "merges__txt": "a b", "config__json": {"model_type": "llama"}}, "how a llama splits"),
        ({"vocab__json": {"a": "b"}, "merges__txt": "", "config__json": {"model_type": "gpt2"}}, "object of ids"),
        ({"vocab__json": BYTES, "merges__txt": "a b c", "config__json": {"model_type": "gpt2"}}, "'a b c'"),
        ({"vocab__json": BYTES, "merges__txt": "a zz", "config__json": {"model_type": "gpt2"}}, "zz"),
        ({"tekken__json": "{}"}, "tekken.json: a vocabulary of a kind that is not read"),
        ({"tokenizer__model": "version https://git-lfs.github.com/spec/v1\noid"}, "tokenizer.model: a Git LFS pointer"),
        ({"tokenizer__json": "version https://git-lfs.github.com/spec/v1\noid"}, "tokenizer.json: a Git LFS pointer"),
    ],
)
def test_a_tokenizer_that_is_there_and_cannot_be_read_is_named(
    files: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(GGError, match=reason):
        find_tokenizer(write(tmp_path, **files))


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert find_tokenizer(write(tmp_path, config__json={"model_type": "llama"})) is None


# ---------------------------------------------------------------- GGUF


def gguf_spm(**changes: Any) -> dict[str, Any]:
    model = spm.read(spm_bytes())
    pairs: dict[str, Any] = {
        "model": "llama", "tokens": [piece.encode() for piece in model.pieces], "scores": np.float32(model.scores),
        "token_type": np.int32(model.types), "unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    pairs |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in pairs.items() if value is not None}


def gguf_bpe(**changes: Any) -> dict[str, Any]:
    tokens = [*BYTES, "th", "<|end|>"]
    pairs: dict[str, Any] = {
        "model": "gpt2", "pre": "gpt-2", "tokens": [token.encode() for token in tokens], "merges": [b"t h"],
        "token_type": np.int32([1] * 257 + [3]), "eos_token_id": 257,
    }  # fmt: skip
    pairs |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in pairs.items() if value is not None}


def with_types(**at: int) -> Any:
    types = np.int32(spm.read(spm_bytes()).types)
    for i, kind in at.items():
        types[int(i.removeprefix("t"))] = kind
    return types


def renamed(pairs: dict[str, Any], **names: bytes) -> list[bytes]:
    tokens = list(pairs["tokenizer.ggml.tokens"])
    for i, name in names.items():
        tokens[int(i.removeprefix("t"))] = name
    return tokens


KEPT: dict[str, dict[str, Any]] = {
    "unknown as control": gguf_spm(token_type=with_types(t0=spm.CONTROL)),
    "unknown by its type alone": gguf_spm(unknown_token_id=None),
    "two of type unknown": gguf_spm(token_type=with_types(t1=spm.UNKNOWN)),
    "a type that is not defined": gguf_spm(token_type=with_types(t270=0)),
    "no types": gguf_spm(token_type=None),
    "a piece twice": gguf_spm(tokens=renamed(gguf_spm(), t285=b"z")),
    "empty pieces": gguf_spm(tokens=renamed(gguf_spm(), t288=b"", t289=b"")),
    "gpt2, a token twice": gguf_bpe(tokens=renamed(gguf_bpe(), t256=b"a")),
    "gpt2, no types": gguf_bpe(token_type=None),
    "gpt2, empty tokens": gguf_bpe(tokens=renamed(gguf_bpe(), t256=b"", t1=b"")),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_gguf_vocabulary_with_oddities_is_kept(name: str) -> None:
    found = in_gguf(KEPT[name], Path("x.gguf"))
    assert found is not None
    assert found.tokenizer.decode(found.tokenizer.encode("the path")) == "the path"


def test_of_a_token_that_is_there_twice_the_later_is_text_and_both_are_named() -> None:
    found = in_gguf(KEPT["gpt2, a token twice"], Path("x.gguf"))
    assert found is not None
    assert found.tokenizer.encode("a").tolist() == [256]
    assert found.notes[0] == f"the token 'a' is there twice, as {ord('a')} and 256: text becomes 256"


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a negative type": (gguf_spm(token_type=with_types(t3=-1)), "token_type of '<0x00>' is -1"),
    "a byte that is none": (gguf_spm(token_type=with_types(t280=spm.BYTE)), "says that 'u' is a byte"),
    "a score that is no number": (gguf_spm(scores=np.float32([np.nan] * N_SPM)), "scores of '<unk>' is nan"),
    "no scores": (gguf_spm(scores=None), "scores is missing"),
    "too few scores": (gguf_spm(scores=np.float32([0])), "scores is no list of 290"),
    "a special id beyond": (gguf_spm(eos_token_id=4000), "eos_token_id is 4000, the file has tokens 0 to 289"),
    "not UTF-8": (gguf_spm(tokens=renamed(gguf_spm(), t270=b"\xff")), r"token 270, b'\\xff', is not UTF-8"),
    "a piece too long": (gguf_spm(tokens=renamed(gguf_spm(), t270=b"x" * 2000)), "has more than 1024 bytes"),
    "another way to split": (gguf_bpe(pre="kimi-k2"), "tokenizer.ggml.pre is 'kimi-k2'"),
    "no way to split": (gguf_bpe(pre=None), "tokenizer.ggml.pre is missing"),
    "no merges": (gguf_bpe(merges=None), "no tokenizer.ggml.merges"),
    "another kind": (gguf_bpe(model="rwkv"), "tokenizer.ggml.model is 'rwkv'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_gguf_vocabulary_that_cannot_be_kept_names_file_key_and_token(name: str) -> None:
    pairs, reason = BROKEN[name]
    with pytest.raises((FormatError, UnsupportedError), match=rf"^x\.gguf: .*{reason}"):
        in_gguf(pairs, Path("x.gguf"))


DIGITS_APART = {"smollm", "deepseek-coder", "viking"} | {"qwen2", "qwen35", "tekken", "seed-coder", "bailingmoe"}
DIGITS_APART |= {"ufakzeka", "laguna"}
BY_THREE = {"llama-bpe", "dbrx", "gpt-4o", "deepseek-v3", "falcon", "jais-2", "minicpm5", "default"}


@pytest.mark.parametrize("label", [*LABELS, *(label for others in SAME.values() for label in others)])
def test_every_label_of_llamacpp_splits_numbers_as_it_does_there(label: str) -> None:
    tokens = [*BYTES, "12", "123", "1234"]
    pairs = gguf_bpe(
        pre=label, tokens=[t.encode() for t in tokens], merges=[b"1 2", b"12 3", b"123 4"], token_type=None,
        eos_token_id=None,
    )  # fmt: skip
    found = in_gguf(pairs, Path("x.gguf"))
    assert found is not None
    ids = found.tokenizer.encode("1234").tolist()
    first = next((name for name, others in SAME.items() if label in others), label)
    apart, three = [ord("1"), ord("2"), ord("3"), ord("4")], [257, ord("4")]
    assert ids == (apart if first in DIGITS_APART else three if first in BY_THREE else [258])
    text = "Hello, World! It's 3.5€ x==y\n\n\tdef f(a):  return `a`$ 日本語 가 ñ ² Ω"
    assert found.tokenizer.decode(found.tokenizer.encode(text)) == text
