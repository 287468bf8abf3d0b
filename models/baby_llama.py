"""Baby LLaMA: one small LLaMA layer that learns a sine wave quantised to 8 levels. Trains in seconds.

Its tokens are the characters of a bar chart, so the text it generates is the plot of the wave.
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg
from ggmlgraph.models import llama

TOKENIZER = "chars:▁▂▃▄▅▆▇█"
CORPUS = "builtin:sine"


@dataclass(frozen=True)
class Config(llama.Config):
    """A LLaMA of one layer over 8 tokens."""

    n_vocab: int = 8
    n_embd: int = 32
    n_head: int = 4
    n_layer: int = 1
    n_ff: int = 64


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    return llama.loss(p, tokens, targets, c)
