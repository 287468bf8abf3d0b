"""Checkpoints that are known and not read, with the way out: adapters, and weights that other programs quantised.

Used by `huggingface` and `interchange.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggmlgraph.errors import UnsupportedError
from ggmlgraph.interchange.formats.stored import Stored
from ggmlgraph.tokenizers.jsonfile import read_json

ADAPTER = "adapter_config.json"
_QUANTISED = (  # by what some tensor's name ends with
    (".g_idx", "GPTQ"), (".qweight", "GPTQ or AWQ"), (".quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes"), (".absmax", "bitsandbytes"), (".SCB", "bitsandbytes"),
    (".weight_scale_inv", "FP8"), (".weight_scale", "FP8"), (".weight_packed", "compressed-tensors"),
)  # fmt: skip


def refuse_folder(path: Path) -> None:
    """Raise UnsupportedError for a folder that holds no model of its own."""
    if (path / ADAPTER).is_file():
        base = read_json(path / ADAPTER).get("base_model_name_or_path")
        raise UnsupportedError(
            f"{path} is a LoRA adapter{f' of {base}' if isinstance(base, str) else ''}, not a model: give it to "
            f"`generate`, `merge` or `finetune` of its base, as --adapter {path}"
        )


def refuse_adapter(path: Path, names: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a file of an adapter's tensors."""
    if any(".lora_A." in name or ".lora_B." in name or ".lora_embedding_A" in name for name in names):
        raise UnsupportedError(
            f"{path} has the matrices of a LoRA adapter, not a model: give its folder to "
            "`generate`, `merge` or `finetune` of its base, as --adapter"
        )


def refuse(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> None:
    """Raise UnsupportedError for weights that another program quantised, or that are an adapter's."""
    refuse_adapter(path, tensors)
    said = config.get("quantization_config", config.get("quantization"))
    kind = said.get("quant_method", "MLX's") if isinstance(said, dict) else None
    kind = kind or next((kind for end, kind in _QUANTISED if any(name.endswith(end) for name in tensors)), None)
    if kind is None and any(n.endswith(".scales") and f"{n.removesuffix('scales')}biases" in tensors for n in tensors):
        kind = "MLX's"
    if kind is not None:
        raise UnsupportedError(
            f"{path}: weights quantised with {kind}, which is not read: take the original weights, or a GGUF file"
        )
