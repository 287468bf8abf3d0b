"""What other formats call the parameters and sizes of models/gemma.py. Read by `ggmlgraph convert`.

Hugging Face stores the gains of norms less 1. What its config calls "gelu" was always computed in the tanh form.
"""

from __future__ import annotations

from ggmlgraph.interchange import rotarynames
from ggmlgraph.interchange.naming import Format, Key, Rows
from ggmlgraph.models.names import llama

HUGGING_FACE = Format(
    id="gemma",
    sizes={
        "n_vocab": Key(("vocab_size",)),
        "n_embd": Key(("hidden_size",)),
        "n_head": Key(("num_attention_heads",)),
        "n_head_kv": Key(("num_key_value_heads", "num_attention_heads")),
        "n_layer": Key(("num_hidden_layers",)),
        "n_ff": Key(("intermediate_size",)),
        "head_dim": Key(("head_dim",)),
        "norm_eps": Key(("rms_norm_eps",)),
        "rope_freq_base": Key(("rope_parameters.rope_theta", "rope_theta"), 10000.0),
        **rotarynames.huggingface(),
        "tied": Key(("tie_word_embeddings",), True),
        "attn_bias": Key(("attention_bias",), False),
    },
    tensors=llama.TENSORS,
    prefix="model.",
    gains_less_one=True,
    only=((Key(("hidden_activation", "hidden_act")), ("gelu_pytorch_tanh", "gelu")),),
    skip=llama.HUGGING_FACE.skip,
    order=llama.ORDER,
)

GGUF = Format(
    id="gemma",
    sizes={
        "n_vocab": Rows("token_embd.weight"),
        "n_embd": Key(("gemma.embedding_length",)),
        "n_head": Key(("gemma.attention.head_count",)),
        "n_head_kv": Key(("gemma.attention.head_count_kv", "gemma.attention.head_count")),
        "n_layer": Key(("gemma.block_count",)),
        "n_ff": Key(("gemma.feed_forward_length",)),
        "head_dim": Key(("gemma.attention.key_length",)),
        "norm_eps": Key(("gemma.attention.layer_norm_rms_epsilon",)),
        "rope_freq_base": Key(("gemma.rope.freq_base",), 10000.0),
        **rotarynames.gguf("gemma"),
    },
)

FORMATS = {"huggingface": HUGGING_FACE, "gguf": GGUF}
