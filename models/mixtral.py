"""Mixtral (Jiang et al. 2024): LLaMA with a sparse mixture of experts in place of each feed-forward layer.

Exported by `ggmlgraph export mixtral`; parameter names are GGUF's. A router chooses n_expert_used of n_expert SwiGLUs
for each token; only these are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import ggmlgraph as gg
from ggmlgraph.models import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Sizes; see LLaMA's. window: positions that each sees; 0: all."""

    n_head_kv: int = 2
    rope_freq_base: float = 1e6
    n_expert: int = 8
    n_expert_used: int = 2
    window: int = 0


def experts(p: gg.Params, x: gg.Tensor, c: Config) -> gg.Tensor:
    """Sum over the chosen experts of softmax(top-k scores) * SwiGLU, (batch, ctx, n_embd) -> same (section 2.1)."""
    batch, ctx, n_embd = x.shape
    n_tokens, n_ff = batch * ctx, c.n_ff or llama.n_ff(n_embd)
    x = x.reshape(n_tokens, 1, n_embd)

    scores = p.linear("ffn_gate_inp", x, c.n_expert).reshape(n_tokens, c.n_expert)
    chosen = gg.argsort(scores, order=1)[:, : c.n_expert_used].cont()
    top = gg.get_rows(scores.reshape(n_tokens, c.n_expert, 1), chosen)
    weights = gg.soft_max(top.reshape(n_tokens, c.n_expert_used)).reshape(n_tokens, c.n_expert_used, 1)

    gate = gg.mul_mat_id(p("ffn_gate_exps.weight", c.n_expert, n_ff, n_embd), x, chosen)
    up = gg.mul_mat_id(p("ffn_up_exps.weight", c.n_expert, n_ff, n_embd), x, chosen)  # (n_tokens, n_expert_used, n_ff)
    down = p("ffn_down_exps.weight", c.n_expert, n_embd, n_ff, init=gg.residual(0.02, c.n_layer))
    y = gg.mul_mat_id(down, gg.silu(gate) * up, chosen) * weights  # (n_tokens, n_expert_used, n_embd)
    total = y[:, 0:1].cont()
    for i in range(1, c.n_expert_used):
        total = total + y[:, i : i + 1].cont()
    return total.reshape(batch, ctx, n_embd)


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """Mean negative log-likelihood of targets, nats per token."""
    windows = llama.windows(p, tokens.shape[1], c.window, c.n_layer)
    return p.cross_entropy(llama.logits(p, tokens, c, feed_forward=experts, windows=windows), targets)


PRESETS = {
    "mixtral-8x7b": Config(n_embd=4096, n_head=32, n_head_kv=8, n_layer=32, n_ff=14336),
    "mixtral-8x22b": Config(32768, 6144, 48, 8, 56, 16384),
}
