"""What other formats call the parameters and sizes of models/gpt2.py. Read by `ggmlgraph convert`.

Hugging Face keeps the matrices of a block as (in, out): the original is written with convolutions of width 1.
"""

from __future__ import annotations

from ggmlgraph.interchange.naming import Choice, Format, Key, Rows, Without

TENSORS = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
    "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
    "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
    "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}

GELU = {"gelu_new": False, "gelu": True, "gelu_pytorch_tanh": False, "gelu_fast": False, "gelu_python": True}

HUGGING_FACE = Format(
    id="gpt2",
    sizes={
        "n_vocab": Key(("vocab_size",)),
        "n_embd": Key(("n_embd",)),
        "n_head": Key(("n_head",)),
        "n_layer": Key(("n_layer",)),
        "n_ctx": Key(("n_positions", "n_ctx")),
        "n_ff": Key(("n_inner",), 0),
        "norm_eps": Key(("layer_norm_epsilon",)),
        "exact_gelu": Choice(Key(("activation_function",), "gelu_new"), GELU),
        "tied": Key(("tie_word_embeddings",), True),
    },
    tensors=TENSORS,
    prefix="transformer.",
    transposed=("blk.{i}.attn_qkv", "blk.{i}.attn_output", "blk.{i}.ffn_up", "blk.{i}.ffn_down"),
    only=(
        (Key(("scale_attn_weights",)), (True,)),
        (Key(("scale_attn_by_inverse_layer_idx",)), (False,)),
        (Key(("add_cross_attention",)), (False,)),
    ),
    skip=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    order=(
        ("token_embd", "position_embd"),
        ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"),
        ("output_norm", "output"),
    ),
)

GGUF = Format(
    id="gpt2",
    sizes={
        "n_vocab": Rows("token_embd.weight"),
        "n_embd": Key(("gpt2.embedding_length",)),
        "n_head": Key(("gpt2.attention.head_count",)),
        "n_layer": Key(("gpt2.block_count",)),
        "n_ctx": Rows("position_embd.weight"),
        "n_ff": Key(("gpt2.feed_forward_length",)),
        "norm_eps": Key(("gpt2.attention.layer_norm_epsilon",)),
        "tied": Without("output.weight"),
    },
)

NANOGPT = Format(
    id="nanogpt",
    sizes={
        "n_vocab": Key(("vocab_size",)),
        "n_embd": Key(("n_embd",)),
        "n_head": Key(("n_head",)),
        "n_layer": Key(("n_layer",)),
        "n_ctx": Key(("block_size",)),
        "norm_eps": Key((), 1e-5),
        "bias": Key(("bias",), True),
        "exact_gelu": Key((), True),
        "tied": Key((), True),
    },
    tensors=TENSORS,
    skip=(r"transformer\.h\.\d+\.attn\.bias",),
)

LLM_C = Format(  # its file has no names: the reader gives ours
    id="llm.c",
    sizes={
        **{name: Key((name,)) for name in ("n_vocab", "n_embd", "n_head", "n_layer", "n_ctx")},
        "norm_eps": Key((), 1e-5),
        "tied": Key((), True),
    },
)

FORMATS = {"huggingface": HUGGING_FACE, "gguf": GGUF, "nanogpt": NANOGPT, "llm.c": LLM_C}
