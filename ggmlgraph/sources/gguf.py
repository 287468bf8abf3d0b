"""GGUF files of llama.cpp, not quantised. Names of tensors are ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggmlgraph import gguffile, naming, tokenizersettings, vocabularies
from ggmlgraph.sources.source import Given, Source, count, named, try_tokenizer
from ggmlgraph.tokenizer import ByteLevelTokenizer, SentencePieceTokenizer, Tokenizer


def file(path: Path, given: Given) -> Source:
    """The checkpoint in a file."""
    content = gguffile.read(path)
    identifier = content.pairs.get("general.architecture")
    checkpoint = naming.Checkpoint(content.pairs, content.tensors)
    architecture, known, fields = named(path, lambda: naming.find("gguf", identifier, checkpoint, given))
    tokenizer, reason = try_tokenizer(lambda: _tokenizer(content.pairs))
    return Source(
        kind="GGUF file",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=content.tensors,
        n_ctx=count(content.pairs.get(f"{identifier}.context_length")),
        tokenizer=tokenizer,
        no_tokenizer=reason,
    )


def _tokenizer(pairs: Mapping[str, Any]) -> Tokenizer:
    settings = tokenizersettings.from_gguf(pairs)
    if pairs.get("tokenizer.ggml.model") == "gpt2":
        return ByteLevelTokenizer(vocabularies.json_from_gguf(pairs)).apply(settings)
    return SentencePieceTokenizer(vocabularies.from_gguf(pairs)).apply(settings)
