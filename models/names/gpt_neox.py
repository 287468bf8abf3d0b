"""What other formats call the parameters and sizes of models/gpt_neox.py. Read by `ggmlgraph convert`.

Hugging Face keeps the rows of the fused query_key_value as [head][q, k, v][dim]; GGUF and we as [q, k, v][head][dim].
"""

from __future__ import annotations

from dataclasses import replace

from ggmlgraph.interchange import rotarynames
from ggmlgraph.interchange.naming import Choice, Format, Key, RotaryShare, RowOrder, Rows, Without
from ggmlgraph.models.names import gpt2
from ggmlgraph.models.names.llama import LIT_ABSENT, ROTARY

HUGGING_FACE = Format(
    id="gpt_neox",
    sizes={
        "n_vocab": Key(("vocab_size",)),
        "n_embd": Key(("hidden_size",)),
        "n_head": Key(("num_attention_heads",)),
        "n_layer": Key(("num_hidden_layers",)),
        "n_ff": Key(("intermediate_size",)),
        "norm_eps": Key(("layer_norm_eps",)),
        "rope_freq_base": Key(("rope_parameters.rope_theta", "rotary_emb_base", "rope_theta"), 10000.0),
        **rotarynames.huggingface(),
        "rotary_pct": Key(("rope_parameters.partial_rotary_factor", "rotary_pct"), 0.25),
        "parallel_residual": Key(("use_parallel_residual",), True),
        "exact_gelu": Choice(Key(("hidden_act",), "gelu"), gpt2.GELU),
        "attn_bias": Key(("attention_bias",), True),
        "tied": Key(("tie_word_embeddings",), False),
    },
    tensors={
        "token_embd": "gpt_neox.embed_in",
        "blk.{i}.attn_norm": "gpt_neox.layers.{i}.input_layernorm",
        "blk.{i}.attn_qkv": "gpt_neox.layers.{i}.attention.query_key_value",
        "blk.{i}.attn_output": "gpt_neox.layers.{i}.attention.dense",
        "blk.{i}.ffn_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
        "blk.{i}.ffn_up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
        "blk.{i}.ffn_down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "embed_out",
    },
    rows={"blk.{i}.attn_qkv": RowOrder(("n_head", 3, -1), (1, 0, 2))},
    skip=(ROTARY, r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)"),
    aliases=((r"lm_head\.weight", "embed_out.weight"),),
    order=(
        ("token_embd",),
        ("attn_norm", "ffn_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"),
        ("output_norm", "output"),
    ),
)

GGUF = Format(
    id="gptneox",
    sizes={
        "n_vocab": Rows("token_embd.weight"),
        "n_embd": Key(("gptneox.embedding_length",)),
        "n_head": Key(("gptneox.attention.head_count",)),
        "n_layer": Key(("gptneox.block_count",)),
        "n_ff": Key(("gptneox.feed_forward_length",)),
        "norm_eps": Key(("gptneox.attention.layer_norm_epsilon",)),
        "rope_freq_base": Key(("gptneox.rope.freq_base",), 10000.0),
        **rotarynames.gguf("gptneox"),
        "rotary_pct": RotaryShare(
            "gptneox.rope.dimension_count", "gptneox.embedding_length", "gptneox.attention.head_count", default=1.0
        ),
        "parallel_residual": Key(("gptneox.use_parallel_residual",), True),
        "tied": Without("output.weight"),
    },
    needs_head=True,
)

LITGPT = Format(
    id="litgpt",
    sizes={
        "n_vocab": Key(("padded_vocab_size",)),
        "n_embd": Key(("n_embd",)),
        "n_head": Key(("n_head",)),
        "n_layer": Key(("n_layer",)),
        "n_ff": Key(("intermediate_size",)),
        "norm_eps": Key(("norm_eps",)),
        "rope_freq_base": Key(("rope_base",), 10000.0),
        **rotarynames.litgpt(),
        "rotary_pct": Key(("rotary_percentage",)),
        "parallel_residual": Key(("parallel_residual",)),
    },
    tensors={
        "token_embd": "transformer.wte",
        "blk.{i}.attn_norm": "transformer.h.{i}.norm_1",
        "blk.{i}.attn_qkv": "transformer.h.{i}.attn.qkv",
        "blk.{i}.attn_output": "transformer.h.{i}.attn.proj",
        "blk.{i}.ffn_norm": "transformer.h.{i}.norm_2",
        "blk.{i}.ffn_up": "transformer.h.{i}.mlp.fc",
        "blk.{i}.ffn_down": "transformer.h.{i}.mlp.proj",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    only=(
        (Key(("mlp_class_name", "_mlp_class")), ("GptNeoxMLP",)),
        (Key(("norm_class_name", "_norm_class")), ("LayerNorm",)),
        (Key(("gelu_approximate",)), ("none",)),
        (Key(("bias",)), (True,)),
        (Key(("shared_attention_norm",)), (False,)),
        (Key(("lm_head_bias",)), (False,)),
        *LIT_ABSENT,
    ),
)
LITGPT_GROUPED = replace(
    LITGPT,
    tensors={**(LITGPT.tensors or {}), "blk.{i}.attn_qkv": "transformer.h.{i}.attn.attn"},
    rows=HUGGING_FACE.rows,
)

FORMATS = {"huggingface": HUGGING_FACE, "gguf": GGUF, "litgpt": LITGPT, "litgpt, grouped": LITGPT_GROUPED}
