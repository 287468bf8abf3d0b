"""Mistral (Jiang et al. 2023): LLaMA with grouped-query attention over a sliding window of positions.

Exported by `ggmlgraph export mistral`; parameter names are GGUF's. Exported at a context within the window the model is
LLaMA's, and longer contexts are refused later; exported at a longer one it masks what lies before the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg
from ggmlgraph.models import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Sizes; window 0 means that every position sees all before it."""

    n_head_kv: int = 2
    window: int = 4096


def logits(p: gg.Params, tokens: gg.Tensor, c: Config) -> gg.Tensor:
    """int32 (batch, ctx) -> float32 (batch, ctx, n_vocab)."""
    return llama.logits(p, tokens, c, windows=llama.windows(p, tokens.shape[1], c.window, c.n_layer))


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    return p.cross_entropy(logits(p, tokens, c), targets)


PRESETS = {
    "mistral-7b": Config(n_embd=4096, n_head=32, n_head_kv=8, n_layer=32, n_ff=14336),
    "mistral-7b-v0.3": Config(32768, 4096, 32, 8, 32, 14336, rope_freq_base=1e6, window=0),
    "mistral-nemo-12b": Config(131072, 5120, 32, 8, 40, 14336, rope_freq_base=1e6, head_dim=128, window=0),
}
