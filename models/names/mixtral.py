"""What other formats call the parameters and sizes of models/mixtral.py: as those of LLaMA, plus the experts.

Hugging Face keeps each expert's matrices apart, w1 the gate, w3 up, w2 down. A GGUF file calls the model "llama".
"""

from __future__ import annotations

from dataclasses import replace

from ggmlgraph.interchange.naming import Key
from ggmlgraph.models.names import llama

HUGGING_FACE = replace(
    llama.HUGGING_FACE,
    id="mixtral",
    sizes={
        **{name: value for name, value in llama.HUGGING_FACE.sizes.items() if name not in ("attn_bias", "ffn_bias")},
        "n_expert": Key(("num_local_experts",)),
        "n_expert_used": Key(("num_experts_per_tok",)),
        "window": Key(("sliding_window",), 0),
    },
    tensors={
        **{ours: theirs for ours, theirs in llama.TENSORS.items() if ".mlp." not in theirs},
        "blk.{i}.ffn_gate_inp": "model.layers.{i}.block_sparse_moe.gate",
        "blk.{i}.ffn_gate_exps": "model.layers.{i}.block_sparse_moe.experts.{e}.w1",
        "blk.{i}.ffn_up_exps": "model.layers.{i}.block_sparse_moe.experts.{e}.w3",
        "blk.{i}.ffn_down_exps": "model.layers.{i}.block_sparse_moe.experts.{e}.w2",
    },
    aliases=(
        (r"(model\.layers\.\d+\.)mlp\.gate\.weight", r"\1block_sparse_moe.gate.weight"),
        (r"(model\.layers\.\d+\.)mlp\.experts\.down_proj", r"\1block_sparse_moe.experts.{e}.w2.weight"),
    ),
    halves=(
        (
            r"(model\.layers\.\d+\.)mlp\.experts\.gate_up_proj",
            (r"\1block_sparse_moe.experts.{e}.w1.weight", r"\1block_sparse_moe.experts.{e}.w3.weight"),
        ),
    ),
    order=(),  # of the experts, it is not the same in all versions
)

GGUF = replace(
    llama.GGUF,
    sizes={
        **llama.GGUF.sizes,
        "n_expert": Key(("llama.expert_count",)),
        "n_expert_used": Key(("llama.expert_used_count",)),
    },
    only=tuple(setting for setting in llama.GGUF.only if str(setting[0]) != "llama.expert_count"),
)

FORMATS = {"huggingface": HUGGING_FACE, "gguf": GGUF}
