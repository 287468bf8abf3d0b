"""Vocabularies of other programs in the forms we run: llama2.c's tokenizer.bin, and the section of GGUF files.

Both hold what is left of a sentencepiece BPE model: pieces, scores, types. Put back into a model, sentencepiece
encodes with them as it did before. GGUF's other kind is what is left of a tokenizer.json. Used by `tokenizer.load` and
by the source of GGUF files.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ggmlgraph import spm
from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.spm import SpmModel

GPT2_PRE = ("gpt-2", "olmo", "default")  # values of tokenizer.ggml.pre that mean GPT-2's pattern
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
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
    return piece.replace(" ", spm.SPACE), spm.BYTE if _BYTE_PIECE.fullmatch(piece) else spm.NORMAL


def _fault(reason: str, offset: int) -> FormatError:
    return FormatError(f"not a llama2.c tokenizer: {reason} at byte {offset}", offset=offset)


def json_from_gguf(pairs: Mapping[str, Any]) -> bytes:
    """The tokenizer.json of a GGUF file whose tokenizer is "gpt2", byte-level BPE, with GPT-2's way to split words."""
    tokens, merges = pairs.get("tokenizer.ggml.tokens"), pairs.get("tokenizer.ggml.merges")
    types, pre = pairs.get("tokenizer.ggml.token_type"), pairs.get("tokenizer.ggml.pre")
    if pre not in GPT2_PRE:
        raise UnsupportedError(f"a GGUF tokenizer of model 'gpt2' that splits words as {pre!r} does")
    if not isinstance(tokens, list) or not isinstance(merges, list) or not isinstance(types, np.ndarray):
        raise FormatError("a GGUF tokenizer without tokens, merges or types")
    if len(tokens) != len(types):
        raise FormatError(f"a GGUF tokenizer of {len(tokens)} tokens and {len(types)} types")
    texts = [token.decode(errors="replace") for token in tokens]
    added = [
        {"id": i, "content": texts[i], "special": int(types[i]) == spm.CONTROL, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for i in np.flatnonzero(np.isin(types, (spm.CONTROL, spm.USER_DEFINED))).tolist()
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {text: i for i, text in enumerate(texts)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [merge.decode(errors="replace") for merge in merges]}
    return msgspec.json.encode(
        {"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}
    )


def from_gguf(pairs: Mapping[str, Any]) -> bytes:
    """The keys tokenizer.ggml.* of a GGUF file whose tokenizer is "llama", sentencepiece BPE."""
    kind = pairs.get("tokenizer.ggml.model")
    if kind != "llama":
        raise UnsupportedError(f"a GGUF tokenizer of model {kind!r} is not read, only 'llama'")
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
        model_type=spm.BPE,
        add_dummy_prefix=bool(pairs.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(pairs.get("tokenizer.ggml.remove_extra_whitespaces", False)),
    )
    model.byte_fallback = model.types.count(spm.BYTE) == 256
    special = [_special(pairs, name, default, model) for name, default in (("unknown", 0), ("bos", 1), ("eos", 2))]
    return spm.write(model, *special)


def _special(pairs: Mapping[str, Any], name: str, default: int, model: SpmModel) -> int:
    token = pairs.get(f"tokenizer.ggml.{name}_token_id", default)
    if type(token) is not int or not 0 <= token < len(model.pieces):
        raise FormatError(f"a GGUF tokenizer whose {name} token is {token!r}")
    return token
