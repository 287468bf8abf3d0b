"""What other formats call the parameters and sizes of models/phi2.py. Read by `ggmlgraph convert`."""

from __future__ import annotations

from ggmlgraph.interchange import rotarynames
from ggmlgraph.interchange.naming import Format, Key, RotaryShare, Rows, Without
from ggmlgraph.models.names.llama import ROTARY

HUGGING_FACE = Format(
    id="phi",
    sizes={
        "n_vocab": Key(("vocab_size",)),
        "n_embd": Key(("hidden_size",)),
        "n_head": Key(("num_attention_heads",)),
        "n_head_kv": Key(("num_key_value_heads", "num_attention_heads")),
        "n_layer": Key(("num_hidden_layers",)),
        "n_ff": Key(("intermediate_size",)),
        "norm_eps": Key(("layer_norm_eps",)),
        "rope_freq_base": Key(("rope_parameters.rope_theta", "rope_theta"), 10000.0),
        **rotarynames.huggingface(),
        "tied": Key(("tie_word_embeddings",), False),
        "rotary_pct": Key(("rope_parameters.partial_rotary_factor", "partial_rotary_factor"), 0.5),
    },
    tensors={
        "token_embd": "model.embed_tokens",
        "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
        "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
        "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
        "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
        "blk.{i}.attn_output": "model.layers.{i}.self_attn.dense",
        "blk.{i}.ffn_up": "model.layers.{i}.mlp.fc1",
        "blk.{i}.ffn_down": "model.layers.{i}.mlp.fc2",
        "output_norm": "model.final_layernorm",
        "output": "lm_head",
    },
    only=(
        (Key(("hidden_act",)), ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")),
        (Key(("qk_layernorm",)), (False,)),
    ),
    skip=(ROTARY,),
    order=(
        ("token_embd",),
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", "attn_norm"),
        ("output_norm", "output"),
    ),
)

GGUF = Format(
    id="phi2",
    sizes={
        "n_vocab": Rows("token_embd.weight"),
        "n_embd": Key(("phi2.embedding_length",)),
        "n_head": Key(("phi2.attention.head_count",)),
        "n_head_kv": Key(("phi2.attention.head_count_kv", "phi2.attention.head_count")),
        "n_layer": Key(("phi2.block_count",)),
        "n_ff": Key(("phi2.feed_forward_length",)),
        "norm_eps": Key(("phi2.attention.layer_norm_epsilon",)),
        "rope_freq_base": Key(("phi2.rope.freq_base",), 10000.0),
        **rotarynames.gguf("phi2"),
        "tied": Without("output.weight"),
        "rotary_pct": RotaryShare(
            "phi2.rope.dimension_count", "phi2.embedding_length", "phi2.attention.head_count", default=1.0
        ),
    },
    needs_head=True,
)

FORMATS = {"huggingface": HUGGING_FACE, "gguf": GGUF}
