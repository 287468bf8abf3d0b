"""Gemma (Gemma Team 2024): LLaMA with GeGLU, scaled embeddings, and heads of a size of their own; tied.

Exported by `ggmlgraph export gemma`; parameter names are GGUF's, and so are the gains of its norms: what Hugging Face
adds 1 to is here the whole gain. Rotary pairs are (i, i + head_dim/2), as in GGUF.
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg
from ggmlgraph.models.llama import attend


@dataclass(frozen=True)
class Config(gg.RotaryScaling):
    """Sizes. n_head_kv 1: one key and value head serves all (multi-query attention)."""

    n_vocab: int = 256000
    n_embd: int = 256
    n_head: int = 8
    n_head_kv: int = 1
    n_layer: int = 8
    n_ff: int = 1024
    head_dim: int = 64
    norm_eps: float = 1e-6
    rope_freq_base: float = 10000.0
    tied: bool = True
    attn_bias: bool = False


def attention(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Causal self-attention, (batch, ctx, n_embd) -> same."""
    batch, ctx, n_embd = x.shape
    q = p.linear("attn_q", x, c.n_head * c.head_dim, bias=c.attn_bias).reshape(batch, ctx, c.n_head, c.head_dim)
    k = p.linear("attn_k", x, c.n_head_kv * c.head_dim, bias=c.attn_bias).reshape(batch, ctx, c.n_head_kv, c.head_dim)
    v = p.linear("attn_v", x, c.n_head_kv * c.head_dim, bias=c.attn_bias).reshape(batch, ctx, c.n_head_kv, c.head_dim)
    q, k = (gg.rotate(p, t, c, n_dims=c.head_dim, mode=2) for t in (q, k))
    return p.linear("attn_output", attend(q, k, v), n_embd, bias=c.attn_bias, init=gg.residual(0.02, c.n_layer))


def feed_forward(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """GeGLU (Shazeer 2020), (batch, ctx, n_embd) -> same."""
    hidden = gg.gelu(p.linear("ffn_gate", x, c.n_ff)) * p.linear("ffn_up", x, c.n_ff)
    return p.linear("ffn_down", hidden, x.shape[-1], init=gg.residual(0.02, c.n_layer))


def logits(p: gg.Params, tokens: gg.Tensor, c: Config) -> gg.Tensor:
    """int32 (batch, ctx) -> float32 (batch, ctx, n_vocab)."""
    x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd) * c.n_embd**0.5
    for i in range(c.n_layer):
        blk = p / f"blk.{i}"
        x = x + attention(blk, blk.rms_norm("attn_norm", x, c.norm_eps), c)
        x = x + feed_forward(blk, blk.rms_norm("ffn_norm", x, c.norm_eps), c)
    x = p.rms_norm("output_norm", x, c.norm_eps)
    return p.share.linear("token_embd", x, c.n_vocab) if c.tied else p.linear("output", x, c.n_vocab)


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    return p.cross_entropy(logits(p, tokens, c), targets)


PRESETS = {
    "gemma-2b": Config(n_embd=2048, n_head=8, n_layer=18, n_ff=16384, head_dim=256),
    "gemma-7b": Config(n_embd=3072, n_head=16, n_head_kv=16, n_layer=28, n_ff=24576, head_dim=256),
}
