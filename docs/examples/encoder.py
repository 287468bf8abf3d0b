"""What stood where tokens are masked: an encoder whose attention sees both sides, a loss over the masked places alone.

python docs/examples/encoder.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

import ggmlgraph as gg

N_VOCAB, MASK = 24, 23
Tokens = Annotated[gg.Tensor, gg.Ids("batch", "ctx")]
Masked = Annotated[gg.Tensor, gg.Float("batch", "ctx")]
BATCH, CTX, STEPS, LR = 16, 16, 500, 1e-2


@dataclass(frozen=True)
class Config:
    """Sizes; n_ctx is the number of learned positions."""

    n_embd: int = 32
    n_head: int = 4
    n_layer: int = 2
    n_ctx: int = 64


def layer(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Attention and two linear layers, each added to x, (batch, ctx, n_embd) -> same."""
    batch, ctx, n_embd = x.shape
    h = p.layer_norm("attn_norm", x, 1e-5)
    names = ("attn_q", "attn_k", "attn_v")
    q, k, v = (p.linear(name, h, n_embd).reshape(batch, ctx, c.n_head, n_embd // c.n_head) for name in names)
    x = x + p.linear("attn_output", gg.attention(q, k, v, causal=False).reshape(batch, ctx, n_embd), n_embd)
    h = gg.gelu(p.linear("ffn_up", p.layer_norm("ffn_norm", x, 1e-5), 4 * n_embd, bias=True))
    return x + p.linear("ffn_down", h, n_embd, bias=True)


def loss(p: gg.Params, tokens: Tokens, targets: Tokens, masked: Masked, c: Config) -> gg.Tensor:
    """Mean cross-entropy over the places where `masked` is 1, nats."""
    positions = p.positions(tokens.shape[1], limit=c.n_ctx)
    x = p.embedding("token_embd", tokens, N_VOCAB, c.n_embd, init=gg.normal(0.2))
    x = x + p.embedding("position_embd", positions, c.n_ctx, c.n_embd, init=gg.normal(0.2))
    for i in range(c.n_layer):
        x = layer(p / f"blk.{i}", x, c)
    logits = p.share.linear("token_embd", p.layer_norm("output_norm", x, 1e-5), N_VOCAB)
    return gg.cross_entropy(logits, targets, masked)


def batch(step: int) -> dict[str, Any]:
    """Rows that count on by a step of their own, a fifth of them masked."""
    rng = np.random.default_rng(step)
    begin, by = rng.integers(0, MASK, (BATCH, 1)), rng.integers(1, 4, (BATCH, 1))
    targets = ((begin + by * np.arange(CTX)) % MASK).astype(np.int32)
    masked = rng.random((BATCH, CTX)) < 0.2
    return {"tokens": np.where(masked, MASK, targets), "targets": targets, "masked": masked.astype(np.float32)}


def main(steps: int = STEPS) -> list[float]:
    """Train; the losses."""
    gg.trace(loss, Config(), batch=BATCH, ctx=CTX).save("encoder.bin")
    with gg.Runtime("encoder.bin") as rt:
        losses = [rt.step(batch(step), lr=LR).loss for step in range(steps)]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, of a guess {np.log(MASK):.3f}")
    return losses


if __name__ == "__main__":
    main()
