"""GPT-2 (Radford et al. 2019) as a user's own model file: LayerNorm with bias, learned positions, GELU, tied head.

ggmlgraph export tests/bench/gpt2.py:loss n_vocab=50304 --batch 4 --ctx 256 -o gpt2.bin
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg


@dataclass(frozen=True)
class Config:
    """Sizes of the 124M model; the vocabulary is padded to a multiple of 128."""

    n_vocab: int = 50304
    n_ctx: int = 1024
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12
    norm_eps: float = 1e-5


def attention(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Causal self-attention, (batch, ctx, n_embd) -> same."""
    batch, ctx, n_embd = x.shape
    head_dim = n_embd // c.n_head
    qkv = p.linear("attn_qkv", x, 3 * n_embd, bias=True)
    q, k, v = (qkv[..., i * n_embd : (i + 1) * n_embd].reshape(batch, ctx, c.n_head, head_dim) for i in range(3))
    q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 1, 3), v.permute(0, 2, 3, 1).cont()
    weights = gg.soft_max(gg.diag_mask_inf(gg.mul_mat(k, q) * head_dim**-0.5))
    y = gg.mul_mat(v, weights).permute(0, 2, 1, 3).reshape(batch, ctx, n_embd)
    return p.linear("attn_output", y, n_embd, bias=True, init=gg.residual(0.02, c.n_layer))


def feed_forward(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Two linear layers with GELU between, (batch, ctx, n_embd) -> same."""
    hidden = gg.gelu(p.linear("ffn_up", x, 4 * c.n_embd, bias=True))
    return p.linear("ffn_down", hidden, c.n_embd, bias=True, init=gg.residual(0.02, c.n_layer))


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    positions = p.positions(tokens.shape[1])
    x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
    x = x + gg.get_rows(p("position_embd.weight", c.n_ctx, c.n_embd), positions)
    for i in range(c.n_layer):
        blk = p / f"blk.{i}"
        x = x + attention(blk, blk.layer_norm("attn_norm", x, c.norm_eps), c)
        x = x + feed_forward(blk, blk.layer_norm("ffn_norm", x, c.norm_eps), c)
    x = p.layer_norm("output_norm", x, c.norm_eps)
    return p.cross_entropy(p.share.linear("token_embd", x, c.n_vocab), targets)
