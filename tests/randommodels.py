"""Graph files of every architecture with small sizes and random weights. Used by the tests of exports and of peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tracing import architectures
from ggmlgraph.tracing.tracer import trace

SIZES = {"n_vocab": 256, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_ff": 48}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_n_ctx_orig": 16, "rope_beta_fast": 4.0}
LLAMA3 = YARN | {"rope_scaling": "llama3"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, heads of another size": ("llama", {"n_head_kv": 2, "tied": True, "head_dim": 12}),
    "llama, linear": ("llama", {"rope_scaling": "linear", "rope_factor": 4.0}),
    "llama, yarn": ("llama", YARN | {"rope_beta_slow": 0.5, "rope_attn_factor": 0.9}),
    "llama, llama3": ("llama", LLAMA3 | {"head_dim": 20}),
    "mistral": ("mistral", {"window": 64}),
    "mixtral": ("mixtral", {"n_expert": 3}),
    "qwen2": ("qwen2", {"n_head_kv": 2}),
    "qwen2, yarn": ("qwen2", YARN | {"n_head_kv": 2}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "gemma": ("gemma", {"head_dim": 12}),
    "phi2": ("phi2", {"rotary_pct": 0.5}),
    "phi2, tied": ("phi2", {"rotary_pct": 0.5, "tied": True}),
    "qwen2, windows": ("qwen2", {"n_head_kv": 2, "window": 64, "n_full": 1}),
    "gpt2": ("gpt2", {"n_ctx": 64}),
    "gpt2, untied": ("gpt2", {"n_ctx": 64, "tied": False}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, tied": ("gpt_neox", {"tied": True}),
    "gpt_neox, yarn": ("gpt_neox", YARN | {"rotary_pct": 0.5}),
    "gpt_neox, sequential": ("gpt_neox", {"parallel_residual": False, "rotary_pct": 1.0}),
}


def graph_of(architecture: str, path: Path, tokenizer: Tokenizer | None = None, **fields: Any) -> Path:
    """A graph with random weights, gains and biases too."""
    loaded = architectures.load(architecture)
    graph = trace(loaded.loss, architectures.config(loaded, {**SIZES, **fields}), batch=1, ctx=16)
    rng = np.random.default_rng(0)
    shapes = {node.name: tuple(map(int, node.shape)) for node in graph.nodes if node.initializer}
    values = {name: rng.standard_normal(shape).astype("<f4") * np.float32(0.3) for name, shape in shapes.items()}
    for array in values.values():
        if array.ndim == 1:
            array[:] = 1 + array / 4  # near 1, where Gemma's gains less 1 are exact
    weights = {name: (lambda array=array: iter([array.reshape(-1)])) for name, array in values.items()}
    graph.save(path, weights=weights, tokenizer=tokenizer.to_bytes() if tokenizer else None)
    return path
