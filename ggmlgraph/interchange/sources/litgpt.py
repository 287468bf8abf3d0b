"""Checkpoints of Lightning AI's LitGPT (lit_model.pth, model_config.yaml) and Lit-LLaMA (lit-llama.pth, which has no
configuration: the number of heads follows from the width for the published sizes, else it must be given).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ggmlgraph.errors import UsageError
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats import torch
from ggmlgraph.interchange.formats.stored import Stored
from ggmlgraph.interchange.formats.torch import TorchFile
from ggmlgraph.interchange.sources import adam
from ggmlgraph.interchange.sources.base import Given, ModelSource, count, named, read_yaml, with_its_head
from ggmlgraph.interchange.tokenizer import find_tokenizer
from ggmlgraph.tokenizers.jsonfile import read_json

WEIGHTS = "lit_model.pth"
CONFIGS = (("model_config.yaml", read_yaml), ("lit_config.json", read_json))
LITGPT, LIT_LLAMA = "transformer.h.0.norm_1.weight", "transformer.h.0.rms_1.scale"  # tensors that tell them
GROUPED = "transformer.h.0.attn.attn.weight"  # what the fused matrix was called while its rows lay group by group


def is_lit(tensors: dict[str, Stored]) -> bool:
    """Whether tensors of a PyTorch file have the names of LitGPT or Lit-LLaMA."""
    return LITGPT in tensors or LIT_LLAMA in tensors


def file(content: TorchFile, given: Given) -> ModelSource:
    """The checkpoint of a weight file, with the configuration and the tokenizer beside it."""
    path, tensors = content.path, content.model()
    if LIT_LLAMA in tensors:
        kind, config = "lit-llama", {}
    else:
        kind = "litgpt, grouped" if GROUPED in tensors else "litgpt"
        found = next(((path.with_name(name), read) for name, read in CONFIGS if path.with_name(name).is_file()), None)
        if found is None:
            raise UsageError(f"{path} has weights only: put its {CONFIGS[0][0]} or {CONFIGS[1][0]} beside it")
        config = found[1](found[0])
    checkpoint = naming.Checkpoint(config, tensors)
    identifier = kind.partition(",")[0]
    architecture, known, fields = named(path, lambda: naming.find(kind, identifier, checkpoint, given))
    fields, kept, notes = with_its_head(known, fields, tensors)
    return ModelSource(
        kind="Lit-LLaMA checkpoint" if kind == "lit-llama" else "LitGPT checkpoint",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=kept,
        notes=tuple(notes),
        n_ctx=count(config.get("block_size")),
        find_tokenizer=partial(find_tokenizer, path.parent, fields["n_vocab"]),
        moments=adam.beside(content, tensors, known),
    )


def folder(path: Path, given: Given) -> ModelSource:
    """The checkpoint in a folder."""
    return file(torch.load(path / WEIGHTS), given)
