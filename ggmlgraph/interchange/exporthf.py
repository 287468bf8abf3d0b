"""A model becomes a folder that transformers loads. Used by `ggmlgraph export-hf`.

config.json in the spelling of transformers 5 with that of 4 beside it, model.safetensors, or several files with an
index, with the names and the order of rows found there, and the tokenizer (tokenizers/tohf.py). Values stream from
file to file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph.durable import making
from ggmlgraph.errors import UsageError
from ggmlgraph.interchange import trained
from ggmlgraph.interchange.formats import safetensors
from ggmlgraph.interchange.sources.huggingface import CONFIG
from ggmlgraph.interchange.trained import Outgoing, Trained
from ggmlgraph.tokenizers import tohf
from ggmlgraph.tokenizers.base import Tokenizer

WEIGHTS, SHARD = "model.safetensors", "model-{:05}-of-{:05}.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARD_NBYTES = 5 * 10**9  # at most in one file, unless one tensor is larger


def export(model: Trained, folder: Path, shard_nbytes: int = SHARD_NBYTES) -> list[str]:
    """Write the folder, whole or not at all; returns what the user should know.

    Raises UsageError if the folder is there, UnsupportedError for a model that transformers would get wrong.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already: choose another -o")
    known = model.format("huggingface")
    config = _config(model, trained.keys(model, known), known.id)
    outgoing = trained.outgoing(model, known)
    files, notes = tohf.files(model.tokenizer)
    with making(folder) as temporary:
        (temporary / CONFIG).write_bytes(_json(config))
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        _write(temporary, outgoing, shard_nbytes)
    if model.tokenizer and (n_missing := model.config["n_vocab"] - model.tokenizer.n_vocab):
        notes.append(f"the model has {n_missing} ids more than the tokenizer; they are never used")
    return notes


def _write(folder: Path, tensors: dict[str, Outgoing], shard_nbytes: int) -> None:
    """The weights in one file, or in several with an index that says what is where."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_nbytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    files = [SHARD.format(k + 1, len(shards)) for k in range(len(shards))] if len(shards) > 1 else [WEIGHTS]
    for file, names in zip(files, shards, strict=True):
        safetensors.write(folder / file, {name: (tensors[name].shape, tensors[name].chunks) for name in names})
    if len(files) > 1:
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        (folder / INDEX).write_bytes(_json({"metadata": total, "weight_map": places}))


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
    config["eos_token_id"] = _ends(tokenizer) if tokenizer else None
    return config


def _ends(tokenizer: Tokenizer) -> int | list[int] | None:
    """What texts end at, a list where it is several, eos first."""
    others = sorted(tokenizer.end_ids - {tokenizer.eos_id})
    return [*([] if tokenizer.eos_id is None else [tokenizer.eos_id]), *others] if others else tokenizer.eos_id


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
