"""Adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors.

Read and written is LoRA (peft 0.21): rank, alpha, their patterns, rsLoRA, linear layers and embeddings. A field of the
config that asks for anything else is refused by its name, never dropped. Used by `attaching` and `export-hf --lora`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.durable import making
from ggmlgraph.errors import FormatError, UnsupportedError, UsageError
from ggmlgraph.finetuning import factors, lora
from ggmlgraph.finetuning.basis import Opened
from ggmlgraph.finetuning.factors import Adapters, Factors
from ggmlgraph.finetuning.theirs import Names, names_of
from ggmlgraph.graphfile import lowrank
from ggmlgraph.graphfile.lowrank import Weight
from ggmlgraph.interchange.formats import safetensors, torch
from ggmlgraph.interchange.formats.stored import Stored
from ggmlgraph.tokenizers.jsonfile import read_json

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
KIND = "huggingface"
MAX_RANK = 1 << 16
READ = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout"}  # which this module follows
ANY = {  # which say nothing of what a trained adapter computes: the tensors do, or nothing does
    "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode",
    "runtime_config", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
    "qalora_group_size", "ephemeral_gpu_offload", "ensure_weight_tying",
}  # fmt: skip
SAME = {"init_lora_weights": (True, False, "gaussian"), "bias": ("none",), "megatron_core": ("megatron.core",)}


# ---------------------------------------------------------------- in


def read(folder: Path, opened: Opened) -> Adapters:
    """The adapters in a folder, of the graph that is opened.

    Raises UnsupportedError for what is no plain LoRA, naming the field; FormatError for tensors that do not fit.
    """
    config = read_json(folder / CONFIG)
    _check(folder, config)
    names, tensors = names_of(opened, KIND), _tensors(folder)
    found: dict[str, Factors] = {}
    for weight in opened.matrices().values():
        path = names.format.theirs(weight.name).removesuffix(".weight")
        keys = _keys(path, weight)
        if not path or not any(key in tensors for key in keys):
            continue
        if missing := next((key for key in keys if key not in tensors), None):
            raise FormatError(f"{folder}: {missing!r} is missing")
        found[weight.name] = _factors(folder, config, path, weight, names, [tensors.pop(key) for key in keys])
    if tensors:
        raise FormatError(
            f"{folder}: {next(iter(tensors))!r} is beside no matrix of {opened.path}, a {names.format.id}"
        )
    if not found:
        raise FormatError(f"{folder}: it has no adapters")
    init = lora.GAUSSIAN if config.get("init_lora_weights") == "gaussian" else lora.KAIMING
    return Adapters(found, _number(folder, config, "r", 8), _number(folder, config, "lora_alpha", 8),
                    bool(config.get("use_rslora")), _number(folder, config, "lora_dropout", 0.0), init)  # fmt: skip


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(f"{folder}: peft_type is {config.get('peft_type')!r}, not LORA")
    for field, value in config.items():
        if field in READ or field in ANY or value in (None, False, [], {}, ""):
            continue
        if field not in SAME or value not in SAME[field]:
            raise UnsupportedError(
                f"{folder}: {field} is {value!r}, which is not read: merge it with peft (merge_and_unload), save, and "
                "take the result"
            )


def _number(folder: Path, config: Mapping[str, Any], field: str, default: Any) -> Any:
    value = config.get(field, default)
    whole = field == "r"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 <= value <= MAX_RANK:
        raise FormatError(f"{folder}: {field} is {value!r}")
    return value


def _of_path(folder: Path, config: Mapping[str, Any], field: str, path: str, default: Any) -> Any:
    """The value of the first pattern that fits a module's path, as PEFT matches them."""
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
        raise FormatError(f"{folder}: {field} is no object")
    for key, value in patterns.items():
        if _fits(folder, field, key, path):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_RANK:
                raise FormatError(f"{folder}: {field}: {key!r} is {value!r}")
            return value
    return default


SIMPLE = re.compile(r"[\w.\-\\^$|()\[\]]*")  # no repetition: matching takes time linear in the path


def _fits(folder: Path, field: str, key: str, path: str) -> bool:
    plain = key.replace(".*", "").replace("\\d+", "").replace("[0-9]+", "")
    if len(key) > 4096 or not SIMPLE.fullmatch(plain):
        raise UnsupportedError(f"{folder}: {field}: {key!r} is a pattern that is not read")
    try:
        return re.fullmatch(rf"(.*\.)?({key})", path) is not None
    except re.error as error:
        raise FormatError(f"{folder}: {field}: {key!r}: {error}") from None


def _tensors(folder: Path) -> dict[str, Stored]:
    if (folder / WEIGHTS).exists():
        return safetensors.read(folder / WEIGHTS)
    if (folder / PICKLED).exists():
        return torch.read(folder / PICKLED)
    raise UsageError(f"{folder} has no {WEIGHTS}")


def _keys(path: str, weight: Weight) -> list[str]:
    ends = ("lora_A.weight", "lora_B.weight") if weight.kind == "matrix" else ("lora_embedding_A", "lora_embedding_B")
    return [f"{PREFIX}{path}.{end}" for end in ends]


def _factors(
    folder: Path, config: Mapping[str, Any], path: str, weight: Weight, names: Names, stored: Iterable[Stored]
) -> Factors:
    a, b = (_values(each) for each in stored)
    rank = int(_of_path(folder, config, "rank_pattern", path, _number(folder, config, "r", 8)))
    alpha = float(_of_path(folder, config, "alpha_pattern", path, _number(folder, config, "lora_alpha", 8)))
    if weight.kind == "table":
        a = np.ascontiguousarray(a.T)
    wanted = lowrank.shapes(weight, rank)
    if (a.shape, b.shape) != wanted:
        what = f"{list(a.shape)} and {list(b.shape)}, not {list(wanted[0])} and {list(wanted[1])}"
        raise FormatError(f"{folder}: the adapter of {path}, whose rank is said to be {rank}, is {what}")
    if weight.kind == "matrix":
        b = names.rows_in(weight.name, b)
    return Factors(weight.kind, a, b, alpha, factors.scale_of(rank, alpha, rslora=bool(config.get("use_rslora"))))


def _values(stored: Stored) -> NDArray[np.float32]:
    if len(stored.shape) != 2:
        raise FormatError(f"{stored.path}: a factor of shape {list(stored.shape)}")
    return np.concatenate([np.empty(0, np.float32), *stored.chunks()]).reshape(stored.shape)


# ---------------------------------------------------------------- out


def write(opened: Opened, folder: Path) -> int:
    """Write the adapters of a graph as a folder, whole or not at all; how many there are.

    Raises UsageError if there are none or the folder is there, UnsupportedError for what PEFT has no names for.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already: choose another -o")
    adapters, names = factors.adapters_of(opened), names_of(opened, KIND)
    factors.check_alone(opened)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, own in adapters.of.items():
        weight = Weight(name, own.kind, (0, 0), "f32")
        a, b = (own.a, names.rows_out(name, own.b)) if own.kind == "matrix" else (own.a.T, own.b)
        tensors |= zip(_keys(names.path(name), weight), map(np.ascontiguousarray, (a, b)), strict=True)
    with making(folder) as temporary:
        (temporary / CONFIG).write_bytes(_json(_config(opened, adapters, names)))
        values = {key: (v.shape, partial(iter, [v.reshape(-1)])) for key, v in tensors.items()}
        safetensors.write(temporary / WEIGHTS, values)
    return len(adapters.of)


def _json(content: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(dict(sorted(content.items()))), indent=2) + b"\n"


def _config(opened: Opened, adapters: Adapters, names: Names) -> dict[str, Any]:
    paths = {name: names.path(name) for name in adapters.of}
    said = adapters.initializer
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "revision": None,
        "inference_mode": True, "r": adapters.rank, "lora_alpha": adapters.alpha, "lora_dropout": adapters.dropout,
        "use_rslora": adapters.rslora, "bias": "none",
        "init_lora_weights": "gaussian" if said == lora.GAUSSIAN else True,
        "fan_in_fan_out": any(names.format.is_transposed(name) for name in adapters.of),
        "target_modules": _targets(set(paths.values()), set(_all_paths(opened, names))),
        "rank_pattern": {paths[n]: own.rank for n, own in adapters.of.items() if own.rank != adapters.rank},
        "alpha_pattern": {paths[n]: own.alpha for n, own in adapters.of.items() if own.alpha != adapters.alpha},
        "modules_to_save": None, "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None,
        "use_dora": False, "lora_bias": False,
    }  # fmt: skip


def _all_paths(opened: Opened, names: Names) -> Iterator[str]:
    for name in opened.matrices():
        theirs = names.format.theirs(name)
        if theirs and "{e}" not in theirs:
            yield theirs.removesuffix(".weight")


def _targets(adapted: set[str], every: set[str]) -> list[str]:
    """The modules by the ends of their paths, if that means them alone; else by their whole paths."""
    ends = {path.rpartition(".")[2] for path in adapted}
    meant = {path for path in every if any(path == end or path.endswith(f".{end}") for end in ends)}
    return sorted(ends if meant == adapted else adapted)
