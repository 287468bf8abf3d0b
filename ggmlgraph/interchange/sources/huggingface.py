"""Folders that transformers writes: config.json, and weights in safetensors or PyTorch files, in one or many.

A folder of a training run also has the optimiser's state. config.json is read in the spelling of transformers 4 and 5;
the names are data in models/names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ggmlgraph.errors import FormatError, UsageError
from ggmlgraph.files.strangers import refuse_stranger
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats import safetensors, torch
from ggmlgraph.interchange.formats.stored import Stored, Weight
from ggmlgraph.interchange.formats.wrappers import unwrapped
from ggmlgraph.interchange.naming import Format
from ggmlgraph.interchange.sources import adam, foreign
from ggmlgraph.interchange.sources.base import Given, ModelSource, Moments, count, named, with_its_head
from ggmlgraph.interchange.tokenizer import find_tokenizer
from ggmlgraph.tokenizers import settings
from ggmlgraph.tokenizers.jsonfile import read_json
from ggmlgraph.tokenizers.settings import Settings

CONFIG = "config.json"
Read = Callable[[Path], dict[str, Stored]]
PART = re.compile(r".*-(\d{1,9})-of-(\d{1,9})\.\w+")  # one of several files
NOTHING: Mapping[str, str] = MappingProxyType({})
OPTIMIZER = "optimizer.pt"  # that Trainer writes into the checkpoints of a run
WEIGHTS: tuple[tuple[str, Read], ...] = (  # in the order they are looked for
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
            tensors, listed = _shards(path, index, read)
            return _source(path, tensors, given, listed)
    if (numbered := _without_index(path)) is not None:
        return _source(path, numbered, given)
    foreign.refuse_folder(path)
    raise UsageError(f"{path} has no weights: neither {' nor '.join(name for name, _ in WEIGHTS)}")


def file(path: Path, tensors: dict[str, Stored], given: Given) -> ModelSource:
    """The checkpoint of one weight file, described by the config.json beside it."""
    foreign.refuse_adapter(path, tensors)
    if part := PART.fullmatch(path.name):
        raise UsageError(f"{path} is part {int(part[1])} of {int(part[2])}: give its folder, {path.parent}")
    if not (path.parent / CONFIG).exists():
        raise UsageError(f"{path} has weights only: put its {CONFIG} (or params.json) beside it, or give --model")
    return _source(path.parent, tensors, given)


def _source(path: Path, tensors: dict[str, Stored], given: Given, listed: Mapping[str, str] = NOTHING) -> ModelSource:
    """listed: names of tensors that an index lists, with the file that should have them."""
    config = read_json(path / CONFIG)
    tensors, names = unwrapped(tensors)
    foreign.refuse(path, config, tensors)
    identifier, checkpoint = config.get("model_type"), naming.Checkpoint(config, tensors)
    architecture, known, fields = named(
        path / CONFIG, lambda: naming.find("huggingface", identifier, checkpoint, given)
    )
    arranged = named(path, lambda: known.arranged(tensors))
    fields, arranged, notes = with_its_head(known, fields, arranged)
    prefix = known.prefix_of(tensors)
    for name, file in listed.items():
        if name not in names.values() and not known.skips(prefix + name) and name != known.theirs("output.weight"):
            raise FormatError(f"{path / file}: {name!r} is missing, which the index lists")
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
        as_in_file=lambda name: names.get(name.removeprefix(prefix), name.removeprefix(prefix)),
        notes=tuple(notes),
        moments=partial(_moments, path, known, fields, arranged) if has_state else None,
    )


def _said(path: Path, model: Any) -> Settings:
    """What the configuration says of special tokens."""
    ids, ends = settings.ids_beside(path)
    adds_bos = True if model in settings.BOS_MODELS else None
    return Settings(bos=ids.get("bos"), eos=ids.get("eos"), adds_bos=adds_bos, ends=ends)


def _moments(path: Path, known: Format, fields: Mapping[str, Any], tensors: Mapping[str, Weight]) -> Moments:
    """What Trainer keeps beside the weights."""
    content = torch.load(path / OPTIMIZER)
    tied = known.theirs("output.weight") if fields.get("tied") else ""
    untied = {name: stored for name, stored in tensors.items() if name != tied}
    parameters = known.in_order(untied, fields["n_layer"])
    return adam.moments(content, (), parameters)


def _shards(path: Path, index: Path, read: Read) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of all files of an index, which are taken as they are, and the table of the index."""
    table: Any = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise FormatError(f"{index}: no weight_map of names")
    shards = sorted(set(table.values()))
    unsafe = [name for name in shards if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name)]
    if unsafe:
        raise FormatError(f"{index}: {unsafe[0][:80]!r} is no plain file name")
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        raise FormatError(f"{path / missing[0]}: no such file; {index.name} lists {len(shards)}, {len(missing)} lack")
    return _together(path, shards, read), table


def _without_index(path: Path) -> dict[str, Stored] | None:
    """The tensors of files that are numbered, all of them there, without an index; None if there are no such files."""
    for name, read in WEIGHTS:
        stem, dot, suffix = name.partition(".")
        parts = sorted(path.glob(f"{stem}-*-of-*{dot}{suffix}"))
        found = [PART.fullmatch(part.name) for part in parts]
        counts = {int(each[2]) for each in found if each}
        if not parts:
            continue
        if len(counts) != 1 or counts != {len(parts)}:
            raise FormatError(f"{path}: {len(parts)} files such as {parts[0].name}, which are not all, and no index")
        return _together(path, [part.name for part in parts], read)
    return None


def _together(path: Path, files: list[str], read: Read) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for file in files:
        refuse_stranger(path / file)
        found = read(path / file)
        if twice := found.keys() & tensors.keys():
            raise FormatError(f"{path / file}: {min(twice)!r} is in another file too")
        tensors |= found
    return tensors
