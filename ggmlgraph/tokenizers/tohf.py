"""The tokenizer files of a folder for transformers. Used by `exporthf`.

transformers runs tokenizer.json; a sentencepiece model is spelt as one (its BPE scores as merges, its normaliser
as steps), and goes along as tokenizer.model too, for programs that read that.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from ggmlgraph.tokenizers import pipeline, spm
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.spm import SpmModel
from ggmlgraph.tokenizers.vocabularies import Splitting, byte_level_json

JSON = "tokenizer.json"


def files(tokenizer: Tokenizer | None) -> tuple[dict[str, bytes], list[str]]:
    """Contents by name, and what the user should know."""
    if tokenizer is None:
        return {}, ["no tokenizer: transformers will take ids, not text"]
    written, notes = {}, []
    if isinstance(tokenizer, SentencePieceTokenizer):
        written = {JSON: _encoded(_sentencepiece(tokenizer)), "tokenizer.model": tokenizer.payload()}
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        written = {JSON: tokenizer.payload()}
    elif isinstance(tokenizer, BytesTokenizer):
        bytes_ = {pipeline.spelt(bytes([byte])): byte for byte in range(256)}
        written = {JSON: byte_level_json(bytes_, [], [], Splitting())}
    elif isinstance(tokenizer, CharsTokenizer):
        written = {JSON: _encoded(_chars(tokenizer))}
        notes.append("characters outside the alphabet, which are refused here, are dropped by transformers")
    written["tokenizer_config.json"] = _encoded(_config(tokenizer))
    return written, notes


def _encoded(content: dict[str, Any]) -> bytes:
    return msgspec.json.encode(content) + b"\n"


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config["add_bos_token"] = tokenizer.adds_bos
    for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if said := tokenizer.name_of(token):
            config[name] = said
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return config


def _chars(tokenizer: CharsTokenizer) -> dict[str, Any]:
    vocabulary = {c: i for i, c in enumerate(tokenizer.alphabet)}
    return {"version": "1.0", "decoder": {"type": "Fuse"}, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}


# ---------------------------------------------------------------- sentencepiece


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    model = tokenizer.model
    typed = list(enumerate(zip(model.pieces, model.types, strict=True)))
    added = [
        {"id": i, "content": piece, "special": kind != spm.USER_DEFINED, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False}
        for i, (piece, kind) in typed if kind in (spm.CONTROL, spm.UNKNOWN, spm.USER_DEFINED)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": _sequence("normalizers", _normalizers(model)),
        "post_processor": _begins_with(tokenizer) if tokenizer.adds_bos else None,
        "decoder": _sequence("decoders", _decoders(model)),
        "model": _unigram(model) if model.model_type == spm.UNIGRAM else _bpe(model),
    }


def _sequence(key: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", key: steps}


def _normalizers(model: SpmModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        table = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if model.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": spm.SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": spm.SPACE}]


def _decoders(model: SpmModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": spm.SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _begins_with(tokenizer: Tokenizer) -> dict[str, Any]:
    name = tokenizer.name_of(tokenizer.bos_id)
    bos = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    tokens = {name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": tokens,
    }


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
