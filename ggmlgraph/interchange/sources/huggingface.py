"""Folders that transformers writes: config.json, and weights in safetensors or PyTorch files, in one or many.

A folder of a training run also has the optimiser's state. config.json is read in the spelling of transformers 4 and 5;
the names are data in models/names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ggmlgraph.errors import FormatError, UsageError
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats import safetensors, torch
from ggmlgraph.interchange.formats.stored import Stored, Weight
from ggmlgraph.interchange.naming import Format
from ggmlgraph.interchange.sources import adam
from ggmlgraph.interchange.sources.base import Given, ModelSource, Moments, count, named
from ggmlgraph.interchange.tokenizer import find_tokenizer
from ggmlgraph.strangers import refuse_stranger
from ggmlgraph.tokenizers import settings
from ggmlgraph.tokenizers.jsonfile import read_json
from ggmlgraph.tokenizers.settings import Settings

CONFIG = "config.json"
OPTIMIZER = "optimizer.pt"  # that Trainer writes into the checkpoints of a run
WEIGHTS: tuple[tuple[str, Callable[[Path], dict[str, Stored]]], ...] = (  # in the order they are looked for
    ("model.safetensors", safetensors.read),
    ("pytorch_model.bin", torch.read),
)


def folder(path: Path, given: Given) -> ModelSource:
    """The checkpoint in a folder."""
    for name, read in WEIGHTS:
        if (path / name).exists():
            refuse_stranger(path / name)
            return _source(path, read(path / name), given)
        if (index := path / f"{name}.index.json").exists():
            return _source(path, _shards(path, index, read), given)
    raise UsageError(f"{path} has no weights: neither {' nor '.join(name for name, _ in WEIGHTS)}")


def file(path: Path, tensors: dict[str, Stored], given: Given) -> ModelSource:
    """The checkpoint of one weight file, described by the config.json beside it."""
    if not (path.parent / CONFIG).exists():
        raise UsageError(f"{path} has weights only: put its {CONFIG} (or params.json) beside it, or give --model")
    return _source(path.parent, tensors, given)


def _source(path: Path, tensors: dict[str, Stored], given: Given) -> ModelSource:
    config = read_json(path / CONFIG)
    identifier, checkpoint = config.get("model_type"), naming.Checkpoint(config, tensors)
    architecture, known, fields = named(
        path / CONFIG, lambda: naming.find("huggingface", identifier, checkpoint, given)
    )
    arranged = named(path, lambda: known.arranged(tensors))
    has_state = (path / OPTIMIZER).is_file()
    return ModelSource(
        kind="Hugging Face checkpoint",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=arranged,
        n_ctx=count(config.get("max_position_embeddings", config.get("n_positions"))),
        find_tokenizer=partial(find_tokenizer, path, fields["n_vocab"]),
        said=_said(path, identifier),
        moments=partial(_moments, path, known, fields, arranged) if has_state else None,
    )


def _said(path: Path, model: Any) -> Settings:
    """What the configuration says of special tokens."""
    ids = settings.ids_beside(path)
    return Settings(bos=ids.get("bos"), eos=ids.get("eos"), adds_bos=True if model in settings.BOS_MODELS else None)


def _moments(path: Path, known: Format, fields: Mapping[str, Any], tensors: Mapping[str, Weight]) -> Moments:
    """What Trainer keeps beside the weights."""
    content = torch.load(path / OPTIMIZER)
    tied = known.theirs("output.weight") if fields.get("tied") else ""
    untied = {name: stored for name, stored in tensors.items() if name != tied}
    parameters = known.in_order(untied, fields["n_layer"])
    return adam.moments(content, (), parameters)


def _shards(path: Path, index: Path, read: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    """The tensors of all files of an index, which must be just those the index lists."""
    table: Any = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise FormatError(f"{index}: no weight_map of names")
    shards = sorted(set(table.values()))
    unsafe = [name for name in shards if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name)]
    if unsafe:
        raise FormatError(f"{index}: {unsafe[0][:80]!r} is no plain file name")
    tensors: dict[str, Stored] = {}
    for shard in shards:
        refuse_stranger(path / shard)
        found = read(path / shard)
        wanted = {name for name, place in table.items() if place == shard}
        if found.keys() != wanted:
            name = min(found.keys() ^ wanted)
            raise FormatError(f"{path / shard}: {name!r} is {'missing' if name in wanted else 'not in the index'}")
        tensors |= found
    return tensors
