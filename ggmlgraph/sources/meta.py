"""Meta's own LLaMA checkpoints: params.json, consolidated.00.pth, and tokenizer.model beside them or one folder up."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph import naming, torchfile
from ggmlgraph import tokenizer as tokenizers
from ggmlgraph.errors import UnsupportedError, UsageError
from ggmlgraph.sources.source import Source, count, named, read_json, try_tokenizer
from ggmlgraph.stored import Stored

CONFIG = "params.json"
TOKENS = "tok_embeddings.weight"  # a tensor that tells these checkpoints from others


def folder(path: Path) -> Source:
    """The checkpoint in a folder."""
    parts = sorted(path.glob("consolidated.*.pth"))
    if not parts:
        raise UsageError(f"{path} has no weights: no consolidated.00.pth")
    return file(parts[0], torchfile.read(parts[0]))


def file(path: Path, tensors: dict[str, Stored]) -> Source:
    """The checkpoint of a consolidated.00.pth."""
    parts = sorted(path.parent.glob("consolidated.*.pth"))
    if len(parts) > 1:
        raise UnsupportedError(f"{path.parent} is split over {len(parts)} files; convert the Hugging Face form of it")
    params = read_json(path.parent / CONFIG)
    checkpoint = naming.Checkpoint(params, tensors)
    architecture, known, fields = named(path.parent / CONFIG, lambda: naming.find("meta", "llama", checkpoint))
    beside = [folder / "tokenizer.model" for folder in (path.parent, path.absolute().parent.parent)]
    found = next((candidate for candidate in beside if candidate.is_file()), None)
    tokenizer, reason = try_tokenizer(lambda: tokenizers.load(found)) if found else (None, "it has none")
    return Source(
        kind="Meta checkpoint",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=tensors,
        n_ctx=count(params.get("max_seq_len")),
        tokenizer=tokenizer,
        no_tokenizer=reason,
    )
