"""Meta's own LLaMA checkpoints: params.json, consolidated.00.pth, and tokenizer.model beside them or one folder up.

The larger ones are split over several files, consolidated.00.pth, .01.pth, ...: each has a part of every matrix, of its
rows or of its columns, and the whole of every norm (fairscale's ColumnParallelLinear and RowParallelLinear).
"""

from __future__ import annotations

import re
from pathlib import Path

from ggmlgraph.errors import FormatError, UsageError
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats import torch
from ggmlgraph.interchange.formats.stored import Stored, Weight, joined
from ggmlgraph.interchange.sources.base import (
    BEGINS_WITH_BOS,
    Given,
    ModelSource,
    count,
    first_file,
    named,
    with_its_head,
)
from ggmlgraph.interchange.tokenizer import find_tokenizer
from ggmlgraph.tokenizers.jsonfile import read_json

CONFIG = "params.json"
TOKENS = "tok_embeddings.weight"  # a tensor that tells these checkpoints from others
BY_COLUMNS = re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight")


def folder(path: Path, given: Given) -> ModelSource:
    """The checkpoint in a folder."""
    parts = sorted(path.glob("consolidated.*.pth"))
    if not parts:
        raise UsageError(f"{path} has no weights: no consolidated.00.pth")
    return file(parts[0], torch.read(parts[0]), given)


def file(path: Path, tensors: dict[str, Stored], given: Given) -> ModelSource:
    """The checkpoint of a consolidated.00.pth, and of those beside it."""
    params = read_json(path.parent / CONFIG)
    parts = sorted(path.parent.glob("consolidated.*.pth"))
    if len(parts) > 1:
        whole = _joined(path.parent, [torch.read(part) for part in parts], count(params.get("dim")))
    else:
        whole = dict(tensors)
    checkpoint = naming.Checkpoint(params, whole)
    architecture, known, fields = named(path.parent / CONFIG, lambda: naming.find("meta", "llama", checkpoint, given))
    beside = first_file(*(folder / "tokenizer.model" for folder in (path.parent, path.absolute().parent.parent)))
    fields, kept, notes = with_its_head(known, fields, whole)
    return ModelSource(
        kind="Meta checkpoint",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=kept,
        notes=tuple(notes),
        n_ctx=count(params.get("max_seq_len")),
        find_tokenizer=lambda: None if beside is None else find_tokenizer(beside),
        said=BEGINS_WITH_BOS,
    )


def _joined(path: Path, files: list[dict[str, Stored]], n_embd: int | None) -> dict[str, Weight]:
    """The tensors of all files, each put together from its parts."""
    whole: dict[str, Weight] = {}
    for name, first in files[0].items():
        if any(file.keys() != files[0].keys() for file in files):
            raise FormatError(f"{path}: its files do not have the same tensors")
        parts = [file[name] for file in files]
        if len(first.shape) != 2:
            whole[name] = first
        elif BY_COLUMNS.fullmatch(name) or (name == TOKENS and first.shape[1] != n_embd):  # LLaMA 3 splits the rows
            whole[name] = joined(name, parts, 1)
        else:
            whole[name] = joined(name, parts, 0)
    return whole
