"""What other formats call the parameters and sizes of models/llama.py. Read by `ggmlgraph convert`.

Hugging Face keeps the rows of q and k so that rotary pairs are half a head apart, (i, i + head_dim / 2); Meta, GGUF
and we keep pairs side by side, (2i, 2i + 1).
"""

from __future__ import annotations

from dataclasses import replace

from ggmlgraph.interchange import rotarynames
from ggmlgraph.interchange.naming import (
    Columns,
    Format,
    Fused,
    Key,
    Layers,
    RotaryShare,
    RowOrder,
    Rows,
    Tied,
    Value,
    With,
    Without,
)

TENSORS = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ORDER = (
    ("token_embd",),
    ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm"),
    ("output_norm", "output"),
)
ROTARY = r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)"  # what is computed, at any level
SAME_MODEL = ((Key(("hidden_act",)), ("silu",)),)

HUGGING_FACE = Format(
    id="llama",
    sizes={
        "n_vocab": Key(("vocab_size",)),
        "n_embd": Key(("hidden_size",)),
        "n_head": Key(("num_attention_heads",)),
        "n_head_kv": Key(("num_key_value_heads", "num_attention_heads")),
        "n_layer": Key(("num_hidden_layers",)),
        "n_ff": Key(("intermediate_size",)),
        "head_dim": Key(("head_dim",), 0),
        "norm_eps": Key(("rms_norm_eps",)),
        "rope_freq_base": Key(("rope_parameters.rope_theta", "rope_theta"), 10000.0),
        **rotarynames.huggingface(),
        "tied": Key(("tie_word_embeddings",), False),
        "attn_bias": Key(("attention_bias",), False),
        "ffn_bias": Key(("mlp_bias",), False),
    },
    tensors=TENSORS,
    prefix="model.",
    rows={
        "blk.{i}.attn_q": RowOrder(("n_head", 2, -1), (0, 2, 1)),
        "blk.{i}.attn_k": RowOrder(("n_head_kv", 2, -1), (0, 2, 1)),
    },
    only=SAME_MODEL,
    skip=(ROTARY,),
    order=ORDER,
)


def gguf_sizes(prefix: str, *, llama3: bool = False) -> dict[str, Value]:
    """Where GGUF gives the sizes of a model of LLaMA's kind. llama3: as rotarynames.gguf."""
    return {
        "n_vocab": Rows("token_embd.weight"),
        "n_embd": Key((f"{prefix}.embedding_length",)),
        "n_head": Key((f"{prefix}.attention.head_count",)),
        "n_head_kv": Key((f"{prefix}.attention.head_count_kv", f"{prefix}.attention.head_count")),
        "n_layer": Key((f"{prefix}.block_count",)),
        "n_ff": Key((f"{prefix}.feed_forward_length",)),
        "head_dim": Key((f"{prefix}.attention.key_length",), 0),
        "norm_eps": Key((f"{prefix}.attention.layer_norm_rms_epsilon",)),
        "rope_freq_base": Key((f"{prefix}.rope.freq_base",), 10000.0),
        **rotarynames.gguf(prefix, llama3=llama3),
        "tied": Without("output.weight"),
    }


GGUF = Format(
    id="llama",
    sizes=gguf_sizes("llama", llama3=True)
    | {"attn_bias": With("blk.0.attn_q.bias"), "ffn_bias": With("blk.0.ffn_up.bias")},
    skip=(r"optimizer\..*",),
    only=(
        (Key(("training.type",)), ("train_model",)),
        (Key(("llama.expert_count",)), (0,)),
        (
            RotaryShare(
                "llama.rope.dimension_count",
                "llama.embedding_length",
                "llama.attention.head_count",
                head_dim="llama.attention.key_length",
            ),
            (1.0,),
        ),
    ),
)

META = Format(
    id="llama",
    sizes={
        "n_vocab": Rows("tok_embeddings.weight"),  # params.json of LLaMA 1 and 2 says -1
        "n_embd": Key(("dim",)),
        "n_head": Key(("n_heads",)),
        "n_head_kv": Key(("n_kv_heads", "n_heads")),
        "n_layer": Key(("n_layers",)),
        "n_ff": Rows("layers.0.feed_forward.w1.weight"),
        "norm_eps": Key(("norm_eps",)),
        "rope_freq_base": Key(("rope_theta",), 10000.0),
        **rotarynames.meta(),
        "tied": Tied("output.weight", "tok_embeddings.weight"),
    },
    tensors={
        "token_embd": "tok_embeddings",
        "blk.{i}.attn_norm": "layers.{i}.attention_norm",
        "blk.{i}.attn_q": "layers.{i}.attention.wq",
        "blk.{i}.attn_k": "layers.{i}.attention.wk",
        "blk.{i}.attn_v": "layers.{i}.attention.wv",
        "blk.{i}.attn_output": "layers.{i}.attention.wo",
        "blk.{i}.ffn_norm": "layers.{i}.ffn_norm",
        "blk.{i}.ffn_gate": "layers.{i}.feed_forward.w1",
        "blk.{i}.ffn_up": "layers.{i}.feed_forward.w3",
        "blk.{i}.ffn_down": "layers.{i}.feed_forward.w2",
        "output_norm": "norm",
        "output": "output",
    },
    skip=(r"rope\.freqs", r"freqs_(cos|sin)"),
)

LLAMA2_C = Format(  # its file has no names: the reader gives ours, and those of the header's fields in llama2.c
    id="llama2.c",
    sizes={
        "n_vocab": Key(("vocab_size",)),
        "n_embd": Key(("dim",)),
        "n_head": Key(("n_heads",)),
        "n_head_kv": Key(("n_kv_heads",)),
        "n_layer": Key(("n_layers",)),
        "n_ff": Key(("hidden_dim",)),
        "norm_eps": Key((), 1e-5),
        "rope_freq_base": Key((), 10000.0),
        "tied": Without("output.weight"),
    },
)

GGML = Format(  # names are ours: the reader gives them
    id="ggml",
    sizes={
        "n_vocab": Key(("n_vocab",)),
        "n_embd": Key(("n_embd",)),
        "n_head": Key(("n_head",)),
        "n_head_kv": Key(("n_head",)),
        "n_layer": Key(("n_layer",)),
        "n_ff": Key(("n_ff",)),
        "norm_eps": Key((), 1e-6),  # which ggml's rms_norm had built in then
        "rope_freq_base": Key((), 10000.0),
        "tied": Without("output.weight"),
    },
)

LIT_TENSORS = {
    "token_embd": "transformer.wte",
    "blk.{i}.attn_norm": "transformer.h.{i}.norm_1",
    "blk.{i}.attn_q": "transformer.h.{i}.attn.qkv",
    "blk.{i}.attn_k": "transformer.h.{i}.attn.qkv",
    "blk.{i}.attn_v": "transformer.h.{i}.attn.qkv",
    "blk.{i}.attn_output": "transformer.h.{i}.attn.proj",
    "blk.{i}.ffn_norm": "transformer.h.{i}.norm_2",
    "blk.{i}.ffn_gate": "transformer.h.{i}.mlp.fc_1",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.fc_2",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
QKV = ("blk.{i}.attn_q", "blk.{i}.attn_k", "blk.{i}.attn_v")

LIT_ABSENT = tuple(  # what other models of LitGPT have
    (Key((key,)), ("none",))
    for key in (
        "attention_logit_softcapping", "attention_scores_scalar", "final_logit_softcapping",
        "rope_local_base_freq", "sliding_window_size",
    )
)  # fmt: skip

LITGPT = Format(
    id="litgpt",
    sizes={
        "n_vocab": Key(("padded_vocab_size",)),
        "n_embd": Key(("n_embd",)),
        "n_head": Key(("n_head",)),
        "n_head_kv": Key(("n_query_groups", "n_head")),
        "n_layer": Key(("n_layer",)),
        "n_ff": Key(("intermediate_size",)),
        "head_dim": Key(("head_size",), 0),
        "norm_eps": Key(("norm_eps",)),
        "rope_freq_base": Key(("rope_base",), 10000.0),
        **rotarynames.litgpt(),
        "tied": Tied("lm_head.weight", "transformer.wte.weight"),
    },
    tensors=LIT_TENSORS,
    rows={name: Fused(part, halves=True) for part, name in enumerate(QKV)},
    only=(
        (Key(("mlp_class_name", "_mlp_class")), ("LLaMAMLP",)),
        (Key(("norm_class_name", "_norm_class")), ("RMSNorm",)),
        (Key(("parallel_residual",)), (False,)),
        (Key(("bias",)), (False,)),
        (Key(("attn_bias",)), (False,)),
        (Key(("norm_qk",)), (False,)),
        (Key(("rotary_percentage",)), (1.0, 1)),
        (Key(("scale_embeddings",)), (False,)),
        *LIT_ABSENT,
    ),
)
LITGPT_GROUPED = replace(
    LITGPT,
    tensors={**LIT_TENSORS, **dict.fromkeys(QKV, "transformer.h.{i}.attn.attn")},
    rows={name: Fused(part, grouped=True, halves=True) for part, name in enumerate(QKV)},
)
LIT_LLAMA = Format(
    id="lit-llama",
    sizes={
        "n_vocab": Rows("transformer.wte.weight"),
        "n_embd": Columns("transformer.wte.weight"),
        "n_head": Columns("transformer.wte.weight", known={4096: 32, 5120: 40, 6656: 52, 8192: 64}),
        "n_head_kv": Columns("transformer.wte.weight", known={4096: 32, 5120: 40, 6656: 52, 8192: 64}),
        "n_layer": Layers("transformer.h.{i}.rms_1.scale"),
        "n_ff": Rows("transformer.h.0.mlp.c_fc1.weight"),
        "norm_eps": Key((), 1e-5),
        "rope_freq_base": Key((), 10000.0),
        "tied": Without("lm_head.weight"),
    },
    tensors={
        "token_embd": "transformer.wte",
        "blk.{i}.attn_norm.weight": "transformer.h.{i}.rms_1.scale",
        "blk.{i}.attn_q": "transformer.h.{i}.attn.c_attn",
        "blk.{i}.attn_k": "transformer.h.{i}.attn.c_attn",
        "blk.{i}.attn_v": "transformer.h.{i}.attn.c_attn",
        "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
        "blk.{i}.ffn_norm.weight": "transformer.h.{i}.rms_2.scale",
        "blk.{i}.ffn_gate": "transformer.h.{i}.mlp.c_fc1",
        "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc2",
        "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
        "output_norm.weight": "transformer.ln_f.scale",
        "output": "lm_head",
    },
    rows={name: Fused(part) for part, name in enumerate(QKV)},
    skip=(r"transformer\.h\.\d+\.attn\.rope_cache",),
)

FORMATS = {
    "huggingface": HUGGING_FACE,
    "gguf": GGUF,
    "meta": META,
    "llama2.c": LLAMA2_C,
    "ggml": GGML,
    "litgpt": LITGPT,
    "litgpt, grouped": LITGPT_GROUPED,
    "lit-llama": LIT_LLAMA,
}
