"""What other formats call the parameters and sizes of models/qwen2.py: as those of LLaMA, with rows in our order."""

from __future__ import annotations

from dataclasses import replace

from ggmlgraph.interchange.naming import FullLayers, Key, Where
from ggmlgraph.models.names import llama

WINDOWED = Key(("use_sliding_window",), False)
WINDOWS = {
    "window": Where(WINDOWED, Key(("sliding_window",), 0)),
    "n_full": Where(WINDOWED, FullLayers(Key(("max_window_layers",), 28), Key(("layer_types",)))),
}
HUGGING_FACE = replace(
    llama.HUGGING_FACE,
    id="qwen2",
    sizes={
        **{name: value for name, value in llama.HUGGING_FACE.sizes.items() if name not in ("attn_bias", "ffn_bias")},
        **WINDOWS,
    },
    rows={},
)

GGUF = replace(
    llama.GGUF,
    id="qwen2",
    sizes=llama.gguf_sizes("qwen2"),
    only=(),
)

FORMATS = {"huggingface": HUGGING_FACE, "gguf": GGUF}
