"""Qwen3 (Yang et al. 2025): LLaMA with RMSNorm of each query and key, and heads of a size of their own.

Exported by `ggmlgraph export qwen3`; parameter names are GGUF's. Rotary pairs are (i, i + head_dim/2), as in GGUF.
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

    q = p.linear("attn_q", x, c.n_head * head_dim, bias=c.attn_bias).reshape(batch, ctx, c.n_head, head_dim)
    k = p.linear("attn_k", x, n_head_kv * head_dim, bias=c.attn_bias).reshape(batch, ctx, n_head_kv, head_dim)
    v = p.linear("attn_v", x, n_head_kv * head_dim, bias=c.attn_bias).reshape(batch, ctx, n_head_kv, head_dim)
    q, k = p.rms_norm("attn_q_norm", q, c.norm_eps), p.rms_norm("attn_k_norm", k, c.norm_eps)
    q, k = (gg.rotate(p, t, c, n_dims=head_dim, mode=2) for t in (q, k))
    return p.linear("attn_output", attend(q, k, v, window), n_embd, bias=c.attn_bias, init=gg.residual(0.02, c.n_layer))


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    windows = llama.windows(p, tokens.shape[1], c.window, c.n_layer, c.n_full)
    return p.cross_entropy(llama.logits(p, tokens, c, attention, windows=windows), targets)


PRESETS = {
    "qwen3-0.6b": Config(151936, 1024, 16, 8, 28, 3072, head_dim=128, tied=True),
    "qwen3-1.7b": Config(151936, 2048, 16, 8, 28, 6144, head_dim=128, tied=True),
    "qwen3-4b": Config(151936, 2560, 32, 8, 36, 9728, head_dim=128, tied=True),
    "qwen3-8b": Config(151936, 4096, 32, 8, 36, 12288, head_dim=128),
    "qwen3-14b": Config(151936, 5120, 40, 8, 40, 17408, head_dim=128),
    "qwen3-32b": Config(151936, 5120, 64, 8, 64, 25600, head_dim=128),
}
