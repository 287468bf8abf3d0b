"""GGUF files of llama.cpp, not quantised. Names of tensors are ours."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph import gguffile, naming
from ggmlgraph import tokenizer as tokenizers
from ggmlgraph.sources.source import Given, Source, count, named, try_tokenizer


def file(path: Path, given: Given) -> Source:
    """The checkpoint in a file."""
    content = gguffile.read(path)
    identifier = content.pairs.get("general.architecture")
    checkpoint = naming.Checkpoint(content.pairs, content.tensors)
    architecture, known, fields = named(path, lambda: naming.find("gguf", identifier, checkpoint, given))
    tokenizer, reason = try_tokenizer(lambda: tokenizers.from_gguf(content.pairs))
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
