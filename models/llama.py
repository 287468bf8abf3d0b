"""LLaMA (Touvron et al. 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Exported by `ggmlgraph export llama`; parameter names are GGUF's. Rotary pairs are (2i, 2i+1), as in Meta's and
GGUF's weights. Its parts serve the models that came after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ggmlgraph as gg

Attention = Callable[[gg.Params, gg.Tensor, Any, int], gg.Tensor]  # one half of a block; the number is its window
FeedForward = Callable[[gg.Params, gg.Tensor, Any], gg.Tensor]  # the other


@dataclass(frozen=True)
class Config(gg.RotaryScaling):
    """Sizes. 0 means: n_head_kv, n_head; n_ff, the paper's 8/3 n_embd rounded up to a multiple of 256; head_dim,
    n_embd / n_head."""

    n_vocab: int = 32000
    n_embd: int = 256
    n_head: int = 8
    n_head_kv: int = 0
    n_layer: int = 16
    n_ff: int = 0
    norm_eps: float = 1e-5
    rope_freq_base: float = 10000.0
    tied: bool = False
    head_dim: int = 0
    attn_bias: bool = False
    ffn_bias: bool = False


def attend(q: gg.Tensor, k: gg.Tensor, v: gg.Tensor, window: int = 0) -> gg.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v for each head, causal: each head of k and v serves a group of q's.

    window: each position sees itself and the window - 1 before it; 0: all before it.

    q: (batch, ctx, n_head, head_dim); k, v: (batch, ctx, n_head_kv, head_dim) -> (batch, ctx, n_head * head_dim).
    """
    batch, ctx, n_head, head_dim = q.shape
    return gg.attention(q, k, v, window=window or None).reshape(batch, ctx, n_head * head_dim)


def attention(p: gg.Params, x: gg.Tensor, c: Config, window: int = 0) -> gg.Tensor:
    """Causal self-attention, (batch, ctx, n_embd) -> same. window: as `attend`'s."""
    batch, ctx, n_embd = x.shape
    n_head_kv, head_dim = c.n_head_kv or c.n_head, c.head_dim or n_embd // c.n_head

    q = p.linear("attn_q", x, c.n_head * head_dim, bias=c.attn_bias).reshape(batch, ctx, c.n_head, head_dim)
    k = p.linear("attn_k", x, n_head_kv * head_dim, bias=c.attn_bias).reshape(batch, ctx, n_head_kv, head_dim)
    v = p.linear("attn_v", x, n_head_kv * head_dim, bias=c.attn_bias).reshape(batch, ctx, n_head_kv, head_dim)
    q, k = (gg.rotate(p, t, c, n_dims=head_dim, mode=0) for t in (q, k))
    return p.linear("attn_output", attend(q, k, v, window), n_embd, bias=c.attn_bias, init=gg.residual(0.02, c.n_layer))


def n_ff(n_embd: int) -> int:
    """The paper's width of the hidden layer: 8/3 n_embd, rounded up to a multiple of 256."""
    return -(-8 * n_embd // 3 // 256) * 256


def feed_forward(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """SwiGLU, (batch, ctx, n_embd) -> same."""
    n_embd = x.shape[-1]
    width = c.n_ff or n_ff(n_embd)
    gate = gg.silu(p.linear("ffn_gate", x, width, bias=c.ffn_bias))
    hidden = gate * p.linear("ffn_up", x, width, bias=c.ffn_bias)
    return p.linear("ffn_down", hidden, n_embd, bias=c.ffn_bias, init=gg.residual(0.02, c.n_layer))


def windows(p: gg.Params, ctx: int, window: int, n_layer: int, n_full: int = 0) -> Sequence[int]:
    """What `attend` takes in each layer: the first n_full see all positions, the others `window` of them (0: all).

    Where ctx is within the window, all layers see all; longer contexts of such a graph are refused later.
    """
    if not window or n_full >= n_layer:
        return [0] * n_layer
    if ctx <= window:
        p.positions(ctx, limit=window)
        return [0] * n_layer
    return [0] * n_full + [window] * (n_layer - n_full)


def logits(
    p: gg.Params,
    tokens: gg.Tensor,
    c: Config,
    attention: Attention = attention,
    feed_forward: FeedForward = feed_forward,
    windows: Sequence[int] = (),
) -> gg.Tensor:
    """int32 (batch, ctx) -> float32 (batch, ctx, n_vocab). Later models give halves, and windows, of their own."""
    x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
    for i in range(c.n_layer):
        blk = p / f"blk.{i}"
        x = x + attention(blk, blk.rms_norm("attn_norm", x, c.norm_eps), c, windows[i] if windows else 0)
        x = x + feed_forward(blk, blk.rms_norm("ffn_norm", x, c.norm_eps), c)
    x = p.rms_norm("output_norm", x, c.norm_eps)
    return p.share.linear("token_embd", x, c.n_vocab) if c.tied else p.linear("output", x, c.n_vocab)


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    return p.cross_entropy(logits(p, tokens, c), targets)


LLAMA3_1: dict[str, Any] = {
    "rope_freq_base": 500000.0, "rope_scaling": "llama3", "rope_n_ctx_orig": 8192, "rope_beta_fast": 4.0,
}  # fmt: skip
PRESETS = {
    "llama-7b": Config(n_embd=4096, n_head=32, n_layer=32, norm_eps=1e-6),
    "llama-13b": Config(n_embd=5120, n_head=40, n_layer=40, norm_eps=1e-6),
    "llama-30b": Config(n_embd=6656, n_head=52, n_layer=60, norm_eps=1e-6),
    "llama-65b": Config(n_embd=8192, n_head=64, n_layer=80),
    "llama2-7b": Config(n_embd=4096, n_head=32, n_layer=32),
    "llama2-13b": Config(n_embd=5120, n_head=40, n_layer=40),
    "llama2-70b": Config(n_embd=8192, n_head=64, n_head_kv=8, n_layer=80, n_ff=28672),
    "llama3-8b": Config(128256, 4096, 32, 8, 32, 14336, rope_freq_base=500000.0),
    "llama3-70b": Config(128256, 8192, 64, 8, 80, 28672, rope_freq_base=500000.0),
    "llama3.1-8b": Config(128256, 4096, 32, 8, 32, 14336, rope_factor=8.0, **LLAMA3_1),
    "llama3.1-70b": Config(128256, 8192, 64, 8, 80, 28672, rope_factor=8.0, **LLAMA3_1),
    "llama3.1-405b": Config(128256, 16384, 128, 8, 126, 53248, rope_factor=8.0, **LLAMA3_1),
    "llama3.2-1b": Config(128256, 2048, 32, 8, 16, 8192, tied=True, rope_factor=32.0, **LLAMA3_1),
    "llama3.2-3b": Config(128256, 3072, 24, 8, 28, 8192, tied=True, rope_factor=32.0, **LLAMA3_1),
    "smollm2-135m": Config(49152, 576, 9, 3, 30, 1536, rope_freq_base=100000.0, tied=True),
    "smollm2-360m": Config(49152, 960, 15, 5, 32, 2560, rope_freq_base=100000.0, tied=True),
    "smollm2-1.7b": Config(49152, 2048, 32, 32, 24, 8192, rope_freq_base=130000.0, tied=True),
    "tinyllama-1.1b": Config(n_embd=2048, n_head=32, n_head_kv=4, n_layer=22),
    "stories260k": Config(512, 64, 8, 4, 5, 172, tied=True),  # llama2.c's
    "stories15m": Config(n_embd=288, n_head=6, n_layer=6, n_ff=768, tied=True),
    "stories42m": Config(n_embd=512, n_head=8, n_layer=8, n_ff=1376, tied=True),
    "stories110m": Config(n_embd=768, n_head=12, n_layer=12, n_ff=2048, tied=True),
}
