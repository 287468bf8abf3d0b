"""Checkpoints of the training scripts of nanoGPT and llama2.c (github.com/karpathy): ckpt.pt.

A PyTorch file with the dictionaries "model" and "model_args" beside the optimiser's state.
"""

from __future__ import annotations

from typing import Any

from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats.torch import TorchFile
from ggmlgraph.interchange.sources import adam
from ggmlgraph.interchange.sources.base import Given, ModelSource, count, named, with_its_head

ARGUMENTS = "model_args"
LLAMA2_C = {"norm_eps": 1e-5}  # what its model has and its arguments do not say


def file(content: TorchFile, given: Given) -> ModelSource:
    """The checkpoint in a file that has model arguments."""
    arguments: dict[str, Any] = content.at(ARGUMENTS)
    tensors = content.model()
    is_llama = "dim" in arguments
    kind, identifier = ("meta", "llama") if is_llama else ("nanogpt", "nanogpt")
    checkpoint = naming.Checkpoint(LLAMA2_C | arguments if is_llama else arguments, tensors)
    architecture, known, fields = named(content.path, lambda: naming.find(kind, identifier, checkpoint, given))
    fields, kept, notes = with_its_head(known, fields, tensors)
    return ModelSource(
        kind="llama2.c training checkpoint" if is_llama else "nanoGPT checkpoint",
        path=content.path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=kept,
        notes=tuple(notes),
        n_ctx=count(arguments.get("max_seq_len" if is_llama else "block_size")),
        no_tokenizer="training checkpoints have none",
        moments=adam.beside(content, tensors, known),
    )
