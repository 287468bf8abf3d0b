"""Vocabularies of other programs in the forms we run: llama2.c's tokenizer.bin, GGUF's sections, tiktoken's ranks.

The first, and GGUF's kinds "llama" and "t5", hold what is left of a sentencepiece model: pieces, scores, types.
Put back into a model, sentencepiece encodes with them as it did before. GGUF's kind "gpt2" and tiktoken's files
are what is left of byte-level BPE, as are the vocab.json and merges.txt of old folders, and become a tokenizer.json.
Used by `interchange.tokenizer`.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.tokenizers import pipeline, splitting, spm
from ggmlgraph.tokenizers.splitting import Splitting
from ggmlgraph.tokenizers.spm import SpmModel

_LLAMA2C_SPECIAL = {0: ("<unk>", spm.UNKNOWN), 1: ("<s>", spm.CONTROL), 2: ("</s>", spm.CONTROL)}


def is_llama2c(data: bytes) -> bool:
    """Whether a tokenizer file looks like llama2.c's: it begins with a small int32, the length of its longest piece."""
    return len(data) > 4 and data[0] > 0 and not any(data[1:4])


def from_llama2c(data: bytes) -> bytes:
    """tokenizer.bin: int32 longest piece, then for each piece float32 score, int32 bytes, the bytes; spaces as such."""
    model = SpmModel(model_type=spm.BPE, remove_extra_whitespaces=False)
    at = 4
    while at < len(data):
        if at + 8 > len(data) or len(model.pieces) == spm.MAX_PIECES:
            raise _fault("it ends inside a piece, or has too many", at)
        score, n = struct.unpack_from("<fi", data, at)
        if not 0 <= n <= min(spm.MAX_PIECE_NBYTES, len(data) - at - 8):
            raise _fault(f"a piece of {n} bytes", at)
        piece, kind = _LLAMA2C_SPECIAL.get(len(model.pieces)) or _piece(data[at + 8 : at + 8 + n], at)
        model.pieces.append(piece)
        model.scores.append(score)
        model.types.append(kind)
        at += 8 + n
    model.byte_fallback = model.types.count(spm.BYTE) == 256
    return spm.write(model)


def _piece(raw: bytes, at: int) -> tuple[str, int]:
    try:
        piece = raw.decode()
    except UnicodeDecodeError:
        raise _fault("a piece that is not UTF-8", at) from None
    return piece.replace(" ", spm.SPACE), spm.BYTE if spm.BYTE_PIECE.fullmatch(piece) else spm.NORMAL


def _fault(reason: str, offset: int) -> FormatError:
    return FormatError(f"not a llama2.c tokenizer: {reason} at byte {offset}", offset=offset)


# ---------------------------------------------------------------- byte-level BPE


def byte_level_json(
    vocabulary: Mapping[str, int],
    merges: list[str],
    added: list[tuple[int, str, bool]],
    way: Splitting,
    *,
    composes: bool = False,
) -> bytes:
    """The tokenizer.json of byte-level BPE. added: id, name, whether a control token; composes: NFC comes first."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return msgspec.json.encode(
        {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": name, "special": special, **flags} for i, name, special in added],
            "normalizer": {"type": "NFC"} if composes else None,
            "pre_tokenizer": way.steps(),
            "decoder": decoder,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": way.keeps_tokens},
        }
    )


# ---------------------------------------------------------------- tiktoken


@dataclass(frozen=True)
class _Encoding:
    """A published encoding of tiktoken; its file has ranks only."""

    way: Splitting
    specials: tuple[str, ...]  # from the first id behind the ranks on; "" for none


def _reserved(first: int, end: int) -> tuple[str, ...]:
    return tuple(f"<|reserved_special_token_{i}|>" for i in range(first, end))


TIKTOKEN = {  # by the number of ranks
    50256: _Encoding(Splitting(), ("<|endoftext|>",)),
    100256: _Encoding(
        Splitting((splitting.LLAMA3,), True),
        ("", "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ),
    128000: _Encoding(
        Splitting((splitting.LLAMA3,), True),
        ("<|begin_of_text|>", "<|end_of_text|>", *_reserved(0, 4), "<|start_header_id|>", "<|end_header_id|>",
         *_reserved(4, 5), "<|eot_id|>", *_reserved(5, 251)),
    ),
    151643: _Encoding(Splitting((splitting.QWEN2,)), ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    199998: _Encoding(Splitting((splitting.GPT4O,)), ("", "<|endoftext|>")),
}  # fmt: skip
_RANK = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,7})")


def is_tiktoken(data: bytes) -> bool:
    """Whether a file's first line is a token in base64 and its rank."""
    return _RANK.fullmatch(data[:4096].partition(b"\n")[0].rstrip()) is not None


def json_from_tiktoken(data: bytes) -> bytes:
    """A file of ranks: a line for each token, its bytes in base64 and its rank, which is its id.

    tiktoken joins the two neighbours whose union has the lowest rank, so every way to make a token of two is a merge.
    Raises UnsupportedError if the number of ranks is of no encoding that is known: the file does not say how text
    is split.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        found = _RANK.fullmatch(line.strip())
        if found is None or len(found[1]) > spm.MAX_PIECE_NBYTES:
            raise FormatError(f"not a tiktoken file: line {number} is no token in base64 and its rank")
        try:
            ranks[base64.b64decode(found[1], validate=True)] = int(found[2])
        except binascii.Error:
            raise FormatError(f"not a tiktoken file: line {number} is not base64") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise FormatError(f"a tiktoken file of {len(ranks)} tokens whose ranks are not 0 to {len(ranks) - 1}")
    encoding = TIKTOKEN.get(len(ranks))
    if encoding is None:
        known = ", ".join(map(str, TIKTOKEN))
        raise UnsupportedError(f"a tiktoken file of {len(ranks)} ranks: how it splits text is known for {known}")
    spelt = {raw: pipeline.spelt(raw) for raw in ranks}
    merges = [
        f"{spelt[token[:i]]} {spelt[token[i:]]}"
        for token in sorted(ranks, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    added = [(len(ranks) + i, name, True) for i, name in enumerate(encoding.specials) if name]
    return byte_level_json({spelt[raw]: rank for raw, rank in ranks.items()}, merges, added, encoding.way)


# ---------------------------------------------------------------- vocab.json and merges.txt

_COMPOSES = ("Qwen2Tokenizer", "GPTNeoXTokenizer")
_OF_CLASS = {  # transformers' classes whose way to split is not in their files
    "GPT2Tokenizer": Splitting(),
    "GPTNeoXTokenizer": Splitting(),
    "Qwen2Tokenizer": Splitting((splitting.QWEN2,)),
}
_CLASS_OF = {  # that transformers takes for a model whose folder names none
    "gpt2": "GPT2Tokenizer", "phi": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer", "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}  # fmt: skip
_TEXT_END = "<|endoftext|>"
SPECIAL_OF_CLASS: dict[str, dict[str, str]] = {  # special tokens of transformers' classes, where no file names others
    "GPT2Tokenizer": {"bos": _TEXT_END, "eos": _TEXT_END, "unk": _TEXT_END},
    "GPTNeoXTokenizer": {"bos": _TEXT_END, "eos": _TEXT_END, "unk": _TEXT_END, "pad": "<|padding|>"},
    "Qwen2Tokenizer": {"eos": _TEXT_END, "unk": _TEXT_END, "pad": _TEXT_END},
    "LlamaTokenizer": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "GemmaTokenizer": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
}
NO_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")  # names that say nothing of a way to split


def class_of(kind: str | None, model: str | None) -> str:
    """The class of transformers that a folder says, or that is taken for its model; "" if there is none."""
    name = (kind or "").removesuffix("Fast")
    return _CLASS_OF.get(model or "", "") if name in ("", *NO_CLASSES) else name


def json_from_merges(vocabulary: Any, merges: str, kind: str | None, model: str | None) -> bytes:
    """The tokenizer.json of a vocab.json, decoded, and the text of a merges.txt.

    kind: the class of transformers they are for, if that is known; model: what their folder calls the model.
    Raises FormatError; UnsupportedError if it is not known how such a tokenizer splits text.
    """
    name = class_of(kind, model)
    way = _OF_CLASS.get(name)
    if way is None:
        raise UnsupportedError(f"how a {name or kind or model or 'tokenizer'} splits text is not known here")
    if not isinstance(vocabulary, dict) or not all(type(token) is int for token in vocabulary.values()):
        raise FormatError("not an object of ids by token")
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    wrong = next((line for line in lines if line.count(" ") != 1), None)
    if wrong is not None:
        raise FormatError(f"a merge {wrong[:60]!r} that is not two tokens")
    return byte_level_json(vocabulary, lines, [], way, composes=name in _COMPOSES)


# ---------------------------------------------------------------- GGUF

_SPM_KINDS = {"llama": spm.BPE, "t5": spm.UNIGRAM}
_DEFAULTS = {  # ids that llama.cpp takes where a file says none
    "llama": {"unknown": 0, "bos": 1, "eos": 2}, "t5": {"unknown": 2, "bos": 2, "eos": 1}, "gpt2": {},
}  # fmt: skip
_NAMED = ("bos", "eos", "unknown")
_TOKENS, _SCORES, _TYPES, _MERGES, _PRE = (
    f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "token_type", "merges", "pre")
)


@dataclass
class _Vocabulary:
    """The tokens of a GGUF file, each text once; what a person should know of them."""

    kind: str
    texts: list[str]
    types: list[int]
    special: dict[str, int]  # ids of _NAMED, where there are such
    notes: list[str]


def _vocabulary(pairs: Mapping[str, Any], kind: str) -> _Vocabulary:
    tokens = pairs.get(_TOKENS)
    if not isinstance(tokens, list) or not tokens:
        raise FormatError(f"no {_TOKENS}")
    texts = [_utf8(token, i) for i, token in enumerate(tokens)]
    special = {name: _special(pairs, name, kind, len(texts)) for name in _NAMED}
    known = {name: token for name, token in special.items() if token is not None}
    types = _types(pairs, texts, known, kind)
    last = {text: i for i, text in enumerate(texts)}
    notes = []
    for i, text in enumerate(texts):
        if text and last[text] == i:
            continue
        if text:
            notes.append(f"the token {text!r} is there twice, as {i} and {last[text]}: text becomes {last[text]}")
        texts[i], types[i] = f"[PAD{i}]", spm.UNUSED
        if texts[i] in last:
            raise FormatError(f"{_TOKENS}: {text!r} ({i}) is there twice, and so is {texts[i]!r}")
    return _Vocabulary(kind, texts, types, known, notes)


def _utf8(token: bytes, i: int) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        raise FormatError(f"{_TOKENS}: token {i}, {token[:40]!r}, is not UTF-8") from None


def _special(pairs: Mapping[str, Any], name: str, kind: str, n: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    token = pairs.get(key, _DEFAULTS[kind].get(name))
    if token is not None and (type(token) is not int or not 0 <= token < n):
        raise FormatError(f"{key} is {token!r}, the file has tokens 0 to {n - 1}")
    return token


def _types(pairs: Mapping[str, Any], texts: list[str], special: Mapping[str, int], kind: str) -> list[int]:
    """The type of each token. Where the file says none, what its name and the special ids make it."""
    said = pairs.get(_TYPES)
    if said is None:
        types = [spm.BYTE if kind != "gpt2" and spm.BYTE_PIECE.fullmatch(text) else spm.NORMAL for text in texts]
        for token in special.values():
            types[token] = spm.CONTROL
    elif not isinstance(said, np.ndarray) or said.dtype.kind not in "iu" or len(said) != len(texts):
        raise FormatError(f"{_TYPES} is no list of {len(texts)} numbers, one for each token")
    else:
        types = [spm.NORMAL if t == 0 else int(t) for t in said.tolist()]
    for text, t in zip(texts, types, strict=True):
        if not spm.NORMAL <= t <= spm.BYTE:
            raise FormatError(f"{_TYPES} of {text!r} is {t}")
    return types


def json_from_gguf(pairs: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """The tokenizer.json of a GGUF file whose tokenizer is "gpt2", byte-level BPE; what to know of it."""
    label = pairs.get(_PRE, splitting.OF_ARCHITECTURE.get(str(pairs.get("general.architecture"))))
    if label is None:
        raise UnsupportedError(f"{_PRE} is missing: how it splits text into words is not known")
    way = splitting.labelled(str(label))
    if way is None:
        raise UnsupportedError(f"{_PRE} is {label!r}, a way to split text into words that is not known here")
    found = _vocabulary(pairs, "gpt2")
    said = pairs.get(_MERGES)
    if not isinstance(said, list):
        raise FormatError(f"no {_MERGES}")
    vocabulary = {text: i for i, text in enumerate(found.texts)}
    merges = [_utf8(merge, i) for i, merge in enumerate(said)]
    kept = [merge for merge in merges if _makes_token(merge, vocabulary)]
    if len(kept) < len(merges):
        lost = next(merge for merge in merges if not _makes_token(merge, vocabulary))
        found.notes.append(f"{len(merges) - len(kept)} merges are of tokens that are not there, such as {lost!r}")
    added = [
        (i, found.texts[i], t == spm.CONTROL) for i, t in enumerate(found.types) if t in (spm.CONTROL, spm.USER_DEFINED)
    ]
    return byte_level_json(vocabulary, kept, added, way), found.notes


def _makes_token(merge: str, vocabulary: Mapping[str, int]) -> bool:
    left, _, right = merge.partition(" ")
    return left in vocabulary and right in vocabulary and left + right in vocabulary


def spm_from_gguf(pairs: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """The sentencepiece model of a GGUF file: "llama" is BPE, "t5" unigram; what to know of it."""
    kind = str(pairs.get("tokenizer.ggml.model"))
    if kind not in _SPM_KINDS:
        raise UnsupportedError(f"tokenizer.ggml.model is {kind!r}; read are 'llama', 't5' and 'gpt2'")
    found = _vocabulary(pairs, kind)
    model = SpmModel(
        pieces=found.texts,
        scores=_scores(pairs, found.texts),
        types=_with_one_unknown(found),
        model_type=_SPM_KINDS[kind],
        charsmap=_charsmap(pairs),
        add_dummy_prefix=bool(pairs.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(pairs.get("tokenizer.ggml.remove_extra_whitespaces", False)),
    )
    for text, t in zip(model.pieces, model.types, strict=True):
        if len(text.encode()) > spm.MAX_PIECE_NBYTES or "\0" in text:
            raise FormatError(f"{_TOKENS}: {text[:40]!r} has more than {spm.MAX_PIECE_NBYTES} bytes, or a NUL")
        if t == spm.BYTE and not spm.BYTE_PIECE.fullmatch(text):
            raise FormatError(f"{_TYPES} says that {text!r} is a byte, which is spelt <0xNN>")
    model.byte_fallback = model.types.count(spm.BYTE) == 256
    return spm.write(model, *(found.special[name] for name in ("unknown", "bos", "eos"))), found.notes


def _with_one_unknown(found: _Vocabulary) -> list[int]:
    """The types, where just the token that stands for what is unknown says so."""
    types = [spm.CONTROL if t == spm.UNKNOWN else t for t in found.types]
    types[found.special["unknown"]] = spm.UNKNOWN
    return types


def _scores(pairs: Mapping[str, Any], texts: list[str]) -> list[float]:
    said = pairs.get(_SCORES)
    if said is None:
        raise UnsupportedError(f"{_SCORES} is missing: which pieces are joined first is not known")
    if not isinstance(said, np.ndarray) or said.dtype.kind not in "fiu" or len(said) != len(texts):
        raise FormatError(f"{_SCORES} is no list of {len(texts)} numbers, one for each token")
    for text, score in zip(texts, said.tolist(), strict=True):
        if not math.isfinite(score):
            raise FormatError(f"{_SCORES} of {text!r} is {score}")
    return [float(score) for score in said.tolist()]


def _charsmap(pairs: Mapping[str, Any]) -> bytes:
    table = pairs.get("tokenizer.ggml.precompiled_charsmap", np.empty(0, np.uint8))
    if not isinstance(table, np.ndarray) or table.dtype.itemsize != 1:
        raise FormatError("tokenizer.ggml.precompiled_charsmap is no array of bytes")
    return table.tobytes()
