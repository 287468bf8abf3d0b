"""A model becomes a folder that transformers loads. Used by `ggmlgraph export-hf`.

config.json in the spelling of transformers 5 with that of 4 beside it, model.safetensors with the names and the
order of rows found there, and the tokenizer (hftokenizer.py). Values stream from file to file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph import hftokenizer, safetensorsfile, trained
from ggmlgraph.durable import sync
from ggmlgraph.errors import UsageError
from ggmlgraph.sources.huggingface import CONFIG
from ggmlgraph.trained import Trained

WEIGHTS = "model.safetensors"


def export(model: Trained, folder: Path) -> list[str]:
    """Write the folder, whole or not at all; returns what the user should know.

    Raises UsageError if the folder is there, UnsupportedError for a model that transformers would get wrong.
    """
    known = model.format("huggingface")
    config = _config(model, trained.keys(model, known), known.id)
    outgoing = trained.outgoing(model, known)
    files, notes = hftokenizer.files(model.tokenizer)
    with _making(folder) as temporary:
        (temporary / CONFIG).write_bytes(_json(config))
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        safetensorsfile.write(temporary / WEIGHTS, {name: (t.shape, t.chunks) for name, t in outgoing.items()})
    if model.tokenizer and (n_missing := model.config["n_vocab"] - model.tokenizer.n_vocab):
        notes.append(f"the model has {n_missing} ids more than the tokenizer; they are never used")
    return notes


def _json(content: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _config(model: Trained, said: dict[str, Any], model_type: str) -> dict[str, Any]:
    config: dict[str, Any] = {"model_type": model_type, "dtype": "float32", "torch_dtype": "float32"}
    config["architectures"] = [ARCHITECTURES[model_type]]
    for key, value in said.items():
        place, *inner = key.split(".")
        if inner:
            config.setdefault(place, {})[inner[0]] = value
        else:
            config[key] = value
    if config.get("head_dim", 0) is None:  # not every model of theirs takes a null for the usual size
        config["head_dim"] = model.config["n_embd"] // model.config["n_head"]
    config["max_position_embeddings"] = model.n_ctx
    tokenizer = model.tokenizer
    config["bos_token_id"] = tokenizer.bos_id if tokenizer else None
    config["eos_token_id"] = tokenizer.eos_id if tokenizer else None
    return config


ARCHITECTURES = {  # what transformers calls its classes
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gemma": "GemmaForCausalLM",
    "phi": "PhiForCausalLM",
}


@contextmanager
def _making(folder: Path) -> Iterator[Path]:
    """A temporary folder, for the block to fill, which then gets the name; nothing is left behind if it fails."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already: choose another -o")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
