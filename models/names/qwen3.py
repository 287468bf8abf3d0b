"""What other formats call the parameters and sizes of models/qwen3.py: as those of LLaMA, with rows in our order."""

from __future__ import annotations

from dataclasses import replace

from ggmlgraph.models.names import llama
from ggmlgraph.models.names.qwen2 import WINDOWS

HUGGING_FACE = replace(
    llama.HUGGING_FACE,
    id="qwen3",
    sizes={
        **{name: value for name, value in llama.HUGGING_FACE.sizes.items() if name != "ffn_bias"},
        **WINDOWS,
    },
    tensors={
        **llama.TENSORS,
        "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
        "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    },
    rows={},
    order=(("token_embd",), (*llama.ORDER[1][:4], "attn_q_norm", "attn_k_norm", *llama.ORDER[1][4:]), llama.ORDER[2]),
)

GGUF = replace(
    llama.GGUF,
    id="qwen3",
    sizes=llama.gguf_sizes("qwen3"),
    only=(),
)

FORMATS = {"huggingface": HUGGING_FACE, "gguf": GGUF}
