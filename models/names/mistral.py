"""What other formats call the parameters and sizes of models/mistral.py: as those of LLaMA, plus the window.

A GGUF file calls it "llama" and is read as one: it does not say whether there is a window.
"""

from __future__ import annotations

from dataclasses import replace

from ggmlgraph.interchange.naming import Key
from ggmlgraph.models.names import llama

HUGGING_FACE = replace(
    llama.HUGGING_FACE,
    id="mistral",
    sizes={
        **llama.HUGGING_FACE.sizes,
        "window": Key(("sliding_window",), 0),
    },
)

FORMATS = {"huggingface": HUGGING_FACE, "gguf": llama.GGUF}
