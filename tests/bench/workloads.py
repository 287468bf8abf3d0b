"""The whole steps that are measured, and how much arithmetic each must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpt2

from ggmlgraph.models import llama


@dataclass(frozen=True)
class Workload:
    """A model at one batch and context."""

    name: str
    loss: Callable[..., Any]
    config: Any
    n_ff: int
    n_mats: int  # matrices of a feed-forward layer
    batch: int
    ctx: int

    @property
    def tokens(self) -> int:
        return self.batch * self.ctx

    @property
    def flops(self) -> float:
        """6 per token and weight of a product, and attention in full, not halved for its mask (Kaplan et al. 2020)."""
        c = self.config
        per_layer = 4 * c.n_embd**2 + self.n_mats * c.n_embd * self.n_ff
        products = c.n_layer * per_layer + c.n_vocab * c.n_embd
        return 6.0 * products * self.tokens + 12.0 * c.n_layer * c.n_embd * self.ctx * self.tokens


W1 = Workload("W1", llama.loss, llama.Config(n_vocab=32000), n_ff=768, n_mats=3, batch=16, ctx=64)
W2 = Workload("W2", gpt2.loss, gpt2.Config(), n_ff=3072, n_mats=2, batch=4, ctx=256)
W3 = Workload(
    "W3", llama.loss, llama.Config(n_vocab=32000, n_embd=768, n_head=12, n_layer=12, tied=True),
    n_ff=2048, n_mats=3, batch=4, ctx=256,
)  # fmt: skip
WORKLOADS = {w.name: w for w in (W1, W2, W3)}
