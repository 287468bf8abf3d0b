"""What other formats call the parameters and sizes of models/llama.py. Read by `ggmlgraph convert`.

Hugging Face keeps the rows of q and k so that rotary pairs are half a head apart, (i, i + head_dim / 2); Meta, GGUF
and we keep pairs side by side, (2i, 2i + 1).
"""

from __future__ import annotations

from ggmlgraph.naming import Format, Key, RotaryShare, RowOrder, Rows, Value, Without

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
SAME_MODEL = (
    (Key(("hidden_act",)), ("silu",)),
    (Key(("rope_parameters.rope_type", "rope_scaling.rope_type", "rope_scaling.type")), ("default",)),
)

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
        "tied": Key(("tie_word_embeddings",), False),
    },
    tensors=TENSORS,
    prefix="model.",
    rows={
        "blk.{i}.attn_q": RowOrder(("n_head", 2, -1), (0, 2, 1)),
        "blk.{i}.attn_k": RowOrder(("n_head_kv", 2, -1), (0, 2, 1)),
    },
    only=(*SAME_MODEL, (Key(("attention_bias",)), (False,)), (Key(("mlp_bias",)), (False,))),
    skip=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)


def gguf_sizes(prefix: str) -> dict[str, Value]:
    """Where GGUF gives the sizes of a model of LLaMA's kind."""
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
        "tied": Without("output.weight"),
    }


GGUF = Format(
    id="llama",
    sizes=gguf_sizes("llama"),
    only=(
        (Key(("llama.rope.scaling.type",)), ("none",)),
        (Key(("llama.rope.scale_linear",)), (1.0,)),
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
        "tied": Without("output.weight"),
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
    only=((Key(("use_scaled_rope",)), (False,)),),
    skip=(r"rope\.freqs",),
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

FORMATS = {"huggingface": HUGGING_FACE, "gguf": GGUF, "meta": META, "llama2.c": LLAMA2_C}
