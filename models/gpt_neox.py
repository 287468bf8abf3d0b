"""GPT-NeoX (Black et al. 2022), the architecture of Pythia: LayerNorm, partial rotary positions, parallel residual.

Exported by `ggmlgraph export gpt_neox`; parameter names are GGUF's, and so is the order of the rows of the fused
attn_qkv: [q, k, v][head][dim].
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg
from ggmlgraph.models.llama import attend


@dataclass(frozen=True)
class Config(gg.RotaryScaling):
    """Sizes. n_ff 0 means 4 n_embd; rotary_pct is the part of each head that is rotated; exact_gelu: by erf instead of
    tanh."""

    n_vocab: int = 50432
    n_embd: int = 256
    n_head: int = 8
    n_layer: int = 8
    n_ff: int = 0
    norm_eps: float = 1e-5
    rope_freq_base: float = 10000.0
    rotary_pct: float = 0.25
    parallel_residual: bool = True
    exact_gelu: bool = True
    attn_bias: bool = True
    tied: bool = False


def attention(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Causal self-attention, (batch, ctx, n_embd) -> same."""
    batch, ctx, n_embd = x.shape
    head_dim = n_embd // c.n_head
    n_rot = int(head_dim * c.rotary_pct)

    qkv = p.linear("attn_qkv", x, 3 * n_embd, bias=c.attn_bias)
    q, k, v = (qkv[..., i * n_embd : (i + 1) * n_embd].reshape(batch, ctx, c.n_head, head_dim) for i in range(3))
    q, k = (gg.rotate(p, t, c, n_dims=n_rot, mode=2) for t in (q, k))
    return p.linear("attn_output", attend(q, k, v), n_embd, bias=c.attn_bias, init=gg.residual(0.02, c.n_layer))


def feed_forward(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Two linear layers with GELU between, (batch, ctx, n_embd) -> same."""
    n_embd = x.shape[-1]
    gelu = gg.gelu_erf if c.exact_gelu else gg.gelu
    hidden = gelu(p.linear("ffn_up", x, c.n_ff or 4 * n_embd, bias=True))
    return p.linear("ffn_down", hidden, n_embd, bias=True, init=gg.residual(0.02, c.n_layer))


def block(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """One layer. Parallel: both halves read x. Sequential: the second reads the first's result."""
    attended = x + attention(p, p.layer_norm("attn_norm", x, c.norm_eps), c)
    normed = p.layer_norm("ffn_norm", x if c.parallel_residual else attended, c.norm_eps)
    return attended + feed_forward(p, normed, c)


def logits(p: gg.Params, tokens: gg.Tensor, c: Config) -> gg.Tensor:
    """int32 (batch, ctx) -> float32 (batch, ctx, n_vocab)."""
    x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
    for i in range(c.n_layer):
        x = block(p / f"blk.{i}", x, c)
    x = p.layer_norm("output_norm", x, c.norm_eps)
    return p.share.linear("token_embd", x, c.n_vocab) if c.tied else p.linear("output", x, c.n_vocab)


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    return p.cross_entropy(logits(p, tokens, c), targets)


PRESETS = {
    "pythia-14m": Config(50304, n_embd=128, n_head=4, n_layer=6),
    "pythia-31m": Config(50304, n_embd=256, n_head=8, n_layer=6),
    "pythia-70m": Config(50304, n_embd=512, n_head=8, n_layer=6),
    "pythia-160m": Config(50304, n_embd=768, n_head=12, n_layer=12),
    "pythia-410m": Config(50304, n_embd=1024, n_head=16, n_layer=24),
    "pythia-1b": Config(50304, n_embd=2048, n_head=8, n_layer=16),
    "pythia-1.4b": Config(50304, n_embd=2048, n_head=16, n_layer=24),
    "pythia-2.8b": Config(50304, n_embd=2560, n_head=32, n_layer=32),
    "pythia-6.9b": Config(50432, n_embd=4096, n_head=32, n_layer=32),
    "pythia-12b": Config(50688, n_embd=5120, n_head=40, n_layer=36),
    "gpt-neox-20b": Config(50432, n_embd=6144, n_head=64, n_layer=44),
}
