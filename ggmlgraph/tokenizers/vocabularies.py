"""Vocabularies of other programs in the forms we run: llama2.c's tokenizer.bin, GGUF's sections, tiktoken's ranks.

The first, and GGUF's kinds "llama" and "t5", hold what is left of a sentencepiece model: pieces, scores, types.
Put back into a model, sentencepiece encodes with them as it did before. GGUF's kind "gpt2" and tiktoken's files
are what is left of byte-level BPE, and become a tokenizer.json. Used by `load`; `togguf` reads PRE the other way.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.tokenizers import pipeline, spm
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


@dataclass(frozen=True)
class Splitting:
    """How byte-level BPE splits a text into words, and whether a word that is a token stays whole whatever the
    merges."""

    pattern: str = pipeline.GPT2
    keeps_tokens: bool = False

    def steps(self) -> dict[str, Any]:
        """The pre_tokenizer of a tokenizer.json."""
        use_regex = self.pattern == pipeline.GPT2
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
        if use_regex:
            return byte_level
        split = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False}
        return {"type": "Sequence", "pretokenizers": [split, byte_level]}


PRE = {  # tokenizer.ggml.pre: the names that llama.cpp knows these ways by
    "gpt-2": Splitting(),
    "llama-bpe": Splitting(pipeline.LLAMA3, keeps_tokens=True),
    "dbrx": Splitting(pipeline.LLAMA3),
    "qwen2": Splitting(pipeline.QWEN2),
    "gpt-4o": Splitting(pipeline.GPT4O),
    "tekken": Splitting(pipeline.TEKKEN, keeps_tokens=True),
}
SAME_PRE = {  # other names of theirs for the same
    "olmo": "gpt-2", "phi-2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "smaug-bpe": "dbrx",
    "deepseek-r1-qwen": "qwen2", "stablelm2": "qwen2", "llama4": "gpt-4o",
}  # fmt: skip
PRE_OF = {"gptneox": "gpt-2", "gpt2": "gpt-2"}  # of files from before there was a name, by architecture


def json_from_gguf(pairs: Mapping[str, Any]) -> bytes:
    """The tokenizer.json of a GGUF file whose tokenizer is "gpt2", byte-level BPE."""
    tokens, merges = pairs.get("tokenizer.ggml.tokens"), pairs.get("tokenizer.ggml.merges")
    types = pairs.get("tokenizer.ggml.token_type")
    pre = pairs.get("tokenizer.ggml.pre", PRE_OF.get(str(pairs.get("general.architecture"))))
    splitting = PRE.get(SAME_PRE.get(str(pre), str(pre)))
    if splitting is None:
        raise UnsupportedError(f"a GGUF tokenizer of model 'gpt2' that splits words as {pre!r} does")
    if not isinstance(tokens, list) or not isinstance(merges, list) or not isinstance(types, np.ndarray):
        raise FormatError("a GGUF tokenizer without tokens, merges or types")
    if len(tokens) != len(types):
        raise FormatError(f"a GGUF tokenizer of {len(tokens)} tokens and {len(types)} types")
    texts = [token.decode(errors="replace") for token in tokens]
    return byte_level_json(
        vocabulary={text: i for i, text in enumerate(texts)},
        merges=[merge.decode(errors="replace") for merge in merges],
        added=[(i, texts[i], kind == spm.CONTROL) for i, kind in enumerate(types.tolist())
               if kind in (spm.CONTROL, spm.USER_DEFINED)],
        splitting=splitting,
    )  # fmt: skip


def byte_level_json(
    vocabulary: Mapping[str, int], merges: list[str], added: list[tuple[int, str, bool]], splitting: Splitting
) -> bytes:
    """The tokenizer.json of byte-level BPE. added: id, name, whether a control token."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return msgspec.json.encode(
        {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": name, "special": special, **flags} for i, name, special in added],
            "pre_tokenizer": splitting.steps(),
            "decoder": decoder,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": splitting.keeps_tokens},
        }
    )


# ---------------------------------------------------------------- tiktoken


@dataclass(frozen=True)
class _Encoding:
    """A published encoding of tiktoken; its file has ranks only."""

    splitting: Splitting
    specials: tuple[str, ...]  # from the first id behind the ranks on; "" for none


def _reserved(first: int, end: int) -> tuple[str, ...]:
    return tuple(f"<|reserved_special_token_{i}|>" for i in range(first, end))


TIKTOKEN = {  # by the number of ranks
    50256: _Encoding(Splitting(), ("<|endoftext|>",)),
    100256: _Encoding(
        Splitting(pipeline.LLAMA3, True),
        ("", "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ),
    128000: _Encoding(
        Splitting(pipeline.LLAMA3, True),
        ("<|begin_of_text|>", "<|end_of_text|>", *_reserved(0, 4), "<|start_header_id|>", "<|end_header_id|>",
         *_reserved(4, 5), "<|eot_id|>", *_reserved(5, 251)),
    ),
    151643: _Encoding(Splitting(pipeline.QWEN2), ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    199998: _Encoding(Splitting(pipeline.GPT4O), ("", "<|endoftext|>")),
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
    return byte_level_json({spelt[raw]: rank for raw, rank in ranks.items()}, merges, added, encoding.splitting)


# ---------------------------------------------------------------- sentencepiece


def from_gguf(pairs: Mapping[str, Any]) -> bytes:
    """The keys tokenizer.ggml.* of a GGUF file: "llama" is sentencepiece's BPE, "t5" its unigram."""
    kind = pairs.get("tokenizer.ggml.model")
    if kind not in _SPM_KINDS:
        raise UnsupportedError(f"a GGUF tokenizer of model {kind!r}; read are 'llama', 't5' and 'gpt2'")
    tokens, scores = pairs.get("tokenizer.ggml.tokens"), pairs.get("tokenizer.ggml.scores")
    types = pairs.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(scores, np.ndarray) or not isinstance(types, np.ndarray):
        raise FormatError("a GGUF tokenizer without tokens, scores or types")
    if not len(tokens) == len(scores) == len(types):
        raise FormatError(f"a GGUF tokenizer of {len(tokens)} tokens, {len(scores)} scores and {len(types)} types")
    model = SpmModel(
        pieces=[token.decode(errors="replace") for token in tokens],
        scores=[float(score) for score in scores],
        types=[int(t) for t in types],
        model_type=_SPM_KINDS[kind],
        charsmap=_charsmap(pairs),
        add_dummy_prefix=bool(pairs.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(pairs.get("tokenizer.ggml.remove_extra_whitespaces", False)),
    )
    model.byte_fallback = model.types.count(spm.BYTE) == 256
    special = [_special(pairs, name, default, model) for name, default in _SPM_DEFAULTS[kind].items()]
    return spm.write(model, *special)


_SPM_KINDS = {"llama": spm.BPE, "t5": spm.UNIGRAM}
_SPM_DEFAULTS = {"llama": {"unknown": 0, "bos": 1, "eos": 2}, "t5": {"unknown": 2, "bos": 2, "eos": 1}}


def _charsmap(pairs: Mapping[str, Any]) -> bytes:
    table = pairs.get("tokenizer.ggml.precompiled_charsmap", np.empty(0, np.uint8))
    if not isinstance(table, np.ndarray) or table.dtype.itemsize != 1:
        raise FormatError("a GGUF tokenizer whose precompiled_charsmap is no array of bytes")
    return table.tobytes()


def _special(pairs: Mapping[str, Any], name: str, default: int, model: SpmModel) -> int:
    token = pairs.get(f"tokenizer.ggml.{name}_token_id", default)
    if type(token) is not int or not 0 <= token < len(model.pieces):
        raise FormatError(f"a GGUF tokenizer whose {name} token is {token!r}")
    return token
