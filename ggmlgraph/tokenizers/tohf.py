"""The tokenizer files of a folder for transformers. Used by `exporthf`.

transformers runs tokenizer.json; a sentencepiece model is spelt as one (jsonfromspm.py), and goes along as
tokenizer.model too, for programs that read that.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ggmlgraph.tokenizers import jsonfromspm, pipeline
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.splitting import Splitting
from ggmlgraph.tokenizers.vocabularies import byte_level_json

JSON = "tokenizer.json"


def files(tokenizer: Tokenizer | None) -> tuple[dict[str, bytes], list[str]]:
    """Contents by name, and what the user should know."""
    if tokenizer is None:
        return {}, ["no tokenizer: transformers will take ids, not text"]
    written, notes = {}, []
    if isinstance(tokenizer, SentencePieceTokenizer):
        spelt = jsonfromspm.spelt(tokenizer.model)
        spelt["post_processor"] = _begins_with(tokenizer) if tokenizer.adds_bos else None
        written = {JSON: _encoded(spelt), "tokenizer.model": tokenizer.payload()}
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
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    for name, token in ids.items():
        if said := tokenizer.name_of(token):
            config[f"{name}_token"] = said
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return config


def _chars(tokenizer: CharsTokenizer) -> dict[str, Any]:
    vocabulary = {c: i for i, c in enumerate(tokenizer.alphabet)}
    return {"version": "1.0", "decoder": {"type": "Fuse"}, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}


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
