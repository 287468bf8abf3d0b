"""Qwen2 (Yang et al. 2024): LLaMA with biases on queries, keys and values.

Exported by `ggmlgraph export qwen2`; parameter names are GGUF's. Rotary pairs are (i, i + head_dim/2), as in GGUF.
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg
from ggmlgraph.models import llama
from ggmlgraph.models.llama import attend


@dataclass(frozen=True)
class Config(llama.Config):
    """Sizes; see LLaMA's. window: positions that each sees, in the layers after the first n_full; 0: all."""

    n_head_kv: int = 2
    norm_eps: float = 1e-6
    rope_freq_base: float = 1e6
    window: int = 0
    n_full: int = 0


def attention(p: gg.Params, x: gg.Tensor, c: Config, window: int = 0) -> gg.Tensor:
    """Causal self-attention, (batch, ctx, n_embd) -> same. window: as `llama.attend`'s."""
    batch, ctx, n_embd = x.shape
    n_head_kv, head_dim = c.n_head_kv or c.n_head, c.head_dim or n_embd // c.n_head

    q = p.linear("attn_q", x, c.n_head * head_dim, bias=True).reshape(batch, ctx, c.n_head, head_dim)
    k = p.linear("attn_k", x, n_head_kv * head_dim, bias=True).reshape(batch, ctx, n_head_kv, head_dim)
    v = p.linear("attn_v", x, n_head_kv * head_dim, bias=True).reshape(batch, ctx, n_head_kv, head_dim)
    q, k = (gg.rotate(p, t, c, n_dims=head_dim, mode=2) for t in (q, k))
    return p.linear("attn_output", attend(q, k, v, window), n_embd, init=gg.residual(0.02, c.n_layer))


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    windows = llama.windows(p, tokens.shape[1], c.window, c.n_layer, c.n_full)
    return p.cross_entropy(llama.logits(p, tokens, c, attention, windows=windows), targets)


PRESETS = {
    "qwen2-0.5b": Config(151936, 896, 14, 2, 24, 4864, tied=True),
    "qwen2-1.5b": Config(151936, 1536, 12, 2, 28, 8960, tied=True),
    "qwen2-7b": Config(152064, 3584, 28, 4, 28, 18944),
    "qwen2-72b": Config(152064, 8192, 64, 8, 80, 29568, norm_eps=1e-5),
    "qwen2.5-0.5b": Config(151936, 896, 14, 2, 24, 4864, tied=True),
    "qwen2.5-1.5b": Config(151936, 1536, 12, 2, 28, 8960, tied=True),
    "qwen2.5-3b": Config(151936, 2048, 16, 2, 36, 11008, tied=True),
    "qwen2.5-7b": Config(152064, 3584, 28, 4, 28, 18944),
    "qwen2.5-14b": Config(152064, 5120, 40, 8, 48, 13824, norm_eps=1e-5),
    "qwen2.5-32b": Config(152064, 5120, 40, 8, 64, 27648, norm_eps=1e-5),
}
