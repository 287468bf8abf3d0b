"""Phi-1.5 and Phi-2 (Li et al. 2023): GPT-NeoX's parallel block with one LayerNorm for both halves, and biases.

Exported by `ggmlgraph export phi2`; parameter names are GGUF's. The first n_rot elements of each head are rotated, in
pairs (i, i + n_rot/2).
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg
from ggmlgraph.models.llama import attend


@dataclass(frozen=True)
class Config(gg.RotaryScaling):
    """Sizes. 0 means: n_head_kv, n_head; n_ff, 4 n_embd. rotary_pct is the part of each head that is rotated."""

    n_vocab: int = 51200
    n_embd: int = 256
    n_head: int = 8
    n_head_kv: int = 0
    n_layer: int = 8
    n_ff: int = 0
    norm_eps: float = 1e-5
    rope_freq_base: float = 10000.0
    rotary_pct: float = 0.5
    tied: bool = False


def attention(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Causal self-attention, (batch, ctx, n_embd) -> same."""
    batch, ctx, n_embd = x.shape
    n_head_kv, head_dim = c.n_head_kv or c.n_head, n_embd // c.n_head
    n_rot = int(head_dim * c.rotary_pct)

    q = p.linear("attn_q", x, n_embd, bias=True).reshape(batch, ctx, c.n_head, head_dim)
    k = p.linear("attn_k", x, n_head_kv * head_dim, bias=True).reshape(batch, ctx, n_head_kv, head_dim)
    v = p.linear("attn_v", x, n_head_kv * head_dim, bias=True).reshape(batch, ctx, n_head_kv, head_dim)
    q, k = (gg.rotate(p, t, c, n_dims=n_rot, mode=2) for t in (q, k))
    return p.linear("attn_output", attend(q, k, v), n_embd, bias=True, init=gg.residual(0.02, c.n_layer))


def feed_forward(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Two linear layers with GELU between, (batch, ctx, n_embd) -> same."""
    n_embd = x.shape[-1]
    hidden = gg.gelu(p.linear("ffn_up", x, c.n_ff or 4 * n_embd, bias=True))
    return p.linear("ffn_down", hidden, n_embd, bias=True, init=gg.residual(0.02, c.n_layer))


def logits(p: gg.Params, tokens: gg.Tensor, c: Config) -> gg.Tensor:
    """int32 (batch, ctx) -> float32 (batch, ctx, n_vocab)."""
    x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
    for i in range(c.n_layer):
        blk = p / f"blk.{i}"
        normed = blk.layer_norm("attn_norm", x, c.norm_eps)
        x = x + attention(blk, normed, c) + feed_forward(blk, normed, c)
    x = p.layer_norm("output_norm", x, c.norm_eps)
    head = p.share.linear("token_embd", x, c.n_vocab) if c.tied else p.linear("output", x, c.n_vocab)
    return head + p("output.bias", c.n_vocab, init=gg.zeros())


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    return p.cross_entropy(logits(p, tokens, c), targets)


PRESETS = {
    "phi-1": Config(n_embd=2048, n_head=32, n_layer=24),
    "phi-1.5": Config(n_embd=2048, n_head=32, n_layer=24),
    "phi-2": Config(n_embd=2560, n_head=32, n_layer=32, rotary_pct=0.4),
}
