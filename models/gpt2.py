"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each half of a block, GELU.

Exported by `ggmlgraph export gpt2`; parameter names are GGUF's, and so is the order of the rows of the fused
attn_qkv: [q, k, v][head][dim].
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg
from ggmlgraph.models.llama import attend


@dataclass(frozen=True)
class Config:
    """Sizes, by default of the smallest published. n_ctx is the number of learned positions; n_ff 0 means 4 n_embd;
    exact_gelu: by erf instead of tanh."""

    n_vocab: int = 50257
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12
    n_ctx: int = 1024
    n_ff: int = 0
    norm_eps: float = 1e-5
    bias: bool = True
    exact_gelu: bool = False
    tied: bool = True


def attention(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Causal self-attention, (batch, ctx, n_embd) -> same."""
    batch, ctx, n_embd = x.shape
    head_dim = n_embd // c.n_head

    qkv = p.linear("attn_qkv", x, 3 * n_embd, bias=c.bias)
    q, k, v = (qkv[..., i * n_embd : (i + 1) * n_embd].reshape(batch, ctx, c.n_head, head_dim) for i in range(3))
    return p.linear("attn_output", attend(q, k, v), n_embd, bias=c.bias, init=gg.residual(0.02, c.n_layer))


def feed_forward(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Two linear layers with GELU between, (batch, ctx, n_embd) -> same."""
    n_embd = x.shape[-1]
    gelu = gg.gelu_erf if c.exact_gelu else gg.gelu
    hidden = gelu(p.linear("ffn_up", x, c.n_ff or 4 * n_embd, bias=c.bias))
    return p.linear("ffn_down", hidden, n_embd, bias=c.bias, init=gg.residual(0.02, c.n_layer))


def logits(p: gg.Params, tokens: gg.Tensor, c: Config) -> gg.Tensor:
    """int32 (batch, ctx) -> float32 (batch, ctx, n_vocab)."""
    positions = p.positions(tokens.shape[1], limit=c.n_ctx)
    x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
    x = x + p.embedding("position_embd", positions, c.n_ctx, c.n_embd)
    for i in range(c.n_layer):
        blk = p / f"blk.{i}"
        x = x + attention(blk, blk.layer_norm("attn_norm", x, c.norm_eps, bias=c.bias), c)
        x = x + feed_forward(blk, blk.layer_norm("ffn_norm", x, c.norm_eps, bias=c.bias), c)
    x = p.layer_norm("output_norm", x, c.norm_eps, bias=c.bias)
    return p.share.linear("token_embd", x, c.n_vocab) if c.tied else p.linear("output", x, c.n_vocab)


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    return p.cross_entropy(logits(p, tokens, c), targets)


PRESETS = {
    "gpt2-medium": Config(n_embd=1024, n_head=16, n_layer=24),
    "gpt2-large": Config(n_embd=1280, n_head=20, n_layer=36),
    "gpt2-xl": Config(n_embd=1600, n_head=25, n_layer=48),
    "nanogpt-char": Config(65, n_embd=384, n_head=6, n_layer=6, n_ctx=256, bias=False, exact_gelu=True),
}
