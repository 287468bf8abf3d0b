"""GGUF files of llama.cpp. Names of tensors are ours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ggmlgraph.errors import FormatError
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats import gguf
from ggmlgraph.interchange.formats.gguf import GgufFile
from ggmlgraph.interchange.formats.stored import Weight
from ggmlgraph.interchange.sources import ggml
from ggmlgraph.interchange.sources.base import Given, ModelSource, Moments, count, named, with_its_head
from ggmlgraph.interchange.tokenizer import in_gguf
from ggmlgraph.tokenizers import settings


def file(path: Path, given: Given, order: str | None = None) -> ModelSource:
    """The checkpoint in a file. order: in which its moments follow each other, if it is one of a training run."""
    content = gguf.read(path)
    identifier = content.pairs.get("general.architecture")
    checkpoint = naming.Checkpoint(content.pairs, content.tensors)
    architecture, known, fields = named(path, lambda: naming.find("gguf", identifier, checkpoint, given))
    tensors: Mapping[str, Weight] = content.tensors
    if known.needs_head:  # so a head that is the embedding is there once more
        fields, tensors, _ = with_its_head(known, fields | {"tied": True}, tensors)
    return ModelSource(
        kind="GGUF file",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=tensors,
        n_ctx=count(content.pairs.get(f"{identifier}.context_length")),
        find_tokenizer=partial(in_gguf, content.pairs, path),
        said=settings.from_gguf(content.pairs),
        moments=partial(_moments, path, content, fields, order) if order else None,
    )


def _moments(path: Path, content: GgufFile, fields: Mapping[str, Any], order: str) -> Moments:
    """Adam's state of a checkpoint of llama.cpp's trainer. Raises FormatError if it has none."""
    step = content.pairs.get("optimizer.iteration_count")
    flat = [content.tensors.get(f"optimizer.adam.{which}_moments") for which in ("first", "second")]
    first, second = flat
    if first is None or second is None or not isinstance(step, int) or step < 1:
        raise FormatError(f"{path}: it has no state of an Adam optimiser")
    return ggml.moments(path, step, (first, second), content.tensors, ggml.ordered(order, fields["n_layer"]))
