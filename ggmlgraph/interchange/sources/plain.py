"""Files of tensors without a configuration, whose model the user names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats.stored import Stored
from ggmlgraph.interchange.naming import Format
from ggmlgraph.interchange.sources.base import ModelSource, named, with_its_head
from ggmlgraph.interchange.tokenizer import find_tokenizer

TOKENS = "token_embd.weight"


def file(path: Path, tensors: dict[str, Stored], architecture: str, config: dict[str, Any]) -> ModelSource:
    """The tensors as those of a model; their names are of a format that is known of it, or ours."""
    formats = naming.formats(architecture) if architecture in naming.architectures() else {}
    candidates = [Format(id=architecture, sizes={}), *formats.values()]
    known = next(
        (f for f in candidates if f.theirs(TOKENS) in named(path, partial(f.arranged, tensors))), candidates[0]
    )
    fields, arranged, notes = with_its_head(known, config, named(path, lambda: known.arranged(tensors)))
    return ModelSource(
        kind="file of tensors",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=arranged,
        notes=tuple(notes),
        n_ctx=config.get("n_ctx"),
        find_tokenizer=partial(find_tokenizer, path.parent, config.get("n_vocab")),
    )
