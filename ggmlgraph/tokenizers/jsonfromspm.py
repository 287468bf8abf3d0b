"""A sentencepiece model spelt as a tokenizer.json: its BPE scores as merges, its normaliser as steps.

Used by `tohf`, and by `interchange.tokenizer` where transformers would do the same.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

from ggmlgraph.tokenizers import spm
from ggmlgraph.tokenizers.spm import SpmModel


def spelt(model: SpmModel, scheme: Literal["", "first", "always"] = "") -> dict[str, Any]:
    """The tokenizer.json.

    scheme: which stretches of a text with special tokens in it get the space that is put before a text. "first":
    one at the very beginning; "always": all, but for those that begin with a space; "": all, as sentencepiece does it.
    """
    typed = list(enumerate(zip(model.pieces, model.types, strict=True)))
    added = [
        {"id": i, "content": piece, "special": kind != spm.USER_DEFINED, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False}
        for i, (piece, kind) in typed if kind in (spm.CONTROL, spm.UNKNOWN, spm.USER_DEFINED)
    ]  # fmt: skip
    metaspace = {"type": "Metaspace", "replacement": spm.SPACE, "prepend_scheme": scheme, "split": False}
    by_metaspace = bool(scheme) and model.add_dummy_prefix
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": _sequence("normalizers", _normalizers(model, escapes=not by_metaspace)),
        "pre_tokenizer": metaspace if by_metaspace else None,
        "decoder": _sequence("decoders", _decoders(model)),
        "model": _unigram(model) if model.model_type == spm.UNIGRAM else _bpe(model),
    }


def as_llama(data: bytes, scheme: Literal["first", "always", "never"]) -> bytes:
    """A tokenizer.json with the steps that transformers' LlamaTokenizer has, whatever steps the file has."""
    file: dict[str, Any] = json.loads(data)
    space = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if scheme != "never" else []
    replace = {"type": "Replace", "pattern": {"String": spm.SPACE}, "content": " "}
    file["normalizer"] = None
    file["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": spm.SPACE, "prepend_scheme": scheme, "split": False,
    }  # fmt: skip
    file["decoder"] = _sequence("decoders", [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *space])
    file["model"] |= {"fuse_unk": True, "byte_fallback": True}
    return json.dumps(file, ensure_ascii=False).encode()


def _sequence(key: str, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"type": "Sequence", key: steps} if steps else None


def _normalizers(model: SpmModel, *, escapes: bool) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        table = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if model.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if not escapes:
        return steps
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": spm.SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": spm.SPACE}]


def _decoders(model: SpmModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": spm.SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _unigram(model: SpmModel) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": model.types.index(spm.UNKNOWN),
        "vocab": list(zip(model.pieces, model.scores, strict=True)),
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: SpmModel) -> dict[str, Any]:
    """Sentencepiece joins the neighbours whose union has the highest score: any two that make a piece are a merge."""
    scored = zip(model.pieces, model.scores, model.types, strict=True)
    scores = {piece: score for piece, score, kind in scored if kind == spm.NORMAL}
    merges = [
        (piece[:i], piece[i:])
        for piece in sorted(scores, key=scores.__getitem__, reverse=True)
        for i in range(1, len(piece))
        if piece[:i] in scores and piece[i:] in scores
    ]
    return {
        "type": "BPE",
        "unk_token": model.pieces[model.types.index(spm.UNKNOWN)],
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "vocab": {piece: i for i, piece in enumerate(model.pieces)},
        "merges": merges,
    }
