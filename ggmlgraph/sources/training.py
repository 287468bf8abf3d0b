"""Checkpoints of the training scripts of nanoGPT and llama2.c (github.com/karpathy): ckpt.pt.

A PyTorch file with the dictionaries "model" and "model_args" beside the optimiser's state.
"""

from __future__ import annotations

from typing import Any

from ggmlgraph import naming
from ggmlgraph.errors import FormatError
from ggmlgraph.sources.source import Given, Moments, Source, count, named
from ggmlgraph.stored import Stored
from ggmlgraph.torchfile import TorchFile

ARGUMENTS = "model_args"
FIRST, SECOND = "exp_avg", "exp_avg_sq"  # what PyTorch calls Adam's moments
LLAMA2_C = {"norm_eps": 1e-5}  # what its model has and its arguments do not say


def file(content: TorchFile, given: Given) -> Source:
    """The checkpoint in a file that has model arguments."""
    arguments: dict[str, Any] = content.at(ARGUMENTS)
    tensors = content.model()
    is_llama = "dim" in arguments
    kind, identifier = ("meta", "llama") if is_llama else ("nanogpt", "nanogpt")
    checkpoint = naming.Checkpoint(LLAMA2_C | arguments if is_llama else arguments, tensors)
    architecture, known, fields = named(content.path, lambda: naming.find(kind, identifier, checkpoint, given))
    return Source(
        kind="llama2.c training checkpoint" if is_llama else "nanoGPT checkpoint",
        path=content.path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=tensors,
        n_ctx=count(arguments.get("max_seq_len" if is_llama else "block_size")),
        tokenizer=None,
        no_tokenizer="training checkpoints have none",
        moments=_moments(content, {name: stored for name, stored in tensors.items() if not known.skips(name)}),
    )


def _moments(content: TorchFile, tensors: dict[str, Stored]) -> Moments | None:
    """The optimiser's state, which has numbers for names: first of the matrices, then of the vectors, in model order.

    Raises FormatError if it is not that of these tensors.
    """
    n = len(content.at("optimizer", "state"))
    if n == 0:
        return None
    unique = {stored: name for name, stored in reversed(tensors.items())}  # of tied tensors the first name
    names = [name for name in tensors if name in unique.values()]
    ordered = [name for name in names if len(tensors[name].shape) > 1] + [
        name for name in names if len(tensors[name].shape) < 2
    ]
    states = [content.tensors("optimizer", "state", i) for i in range(n)]
    shapes = [(tensors[name].shape,) * 2 for name in ordered]
    if [tuple(s[key].shape for key in (FIRST, SECOND) if key in s) for s in states] != shapes:
        raise FormatError(f"{content.path}: the optimiser's state is not that of the model's tensors")
    step = states[0]["step"].read().item() if "step" in states[0] else content.at("optimizer", "state", 0).get("step")
    if not isinstance(step, int | float) or not 1 <= step < 1 << 31:
        raise FormatError(f"{content.path}: the optimiser's step is {step!r}")
    first, second = ({name: s[key] for name, s in zip(ordered, states, strict=True)} for key in (FIRST, SECOND))
    return Moments(int(step), first, second)
