"""The same models in plain PyTorch, written the way that is fastest there: one matrix for q, k and v and one for gate
and up, scaled_dot_product_attention, rotation in halves. Used by worker.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workloads import Workload


def attend(qkv: Tensor, n_head: int, rotate: Any) -> Tensor:
    """Causal attention over (batch, ctx, 3 n_embd) -> (batch, ctx, n_embd)."""
    batch, ctx, width = qkv.shape
    q, k, v = qkv.view(batch, ctx, 3, n_head, width // 3 // n_head).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
    return y.transpose(1, 2).reshape(batch, ctx, width // 3)


class LlamaBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int, n_ff: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.attn_norm, self.ffn_norm = nn.RMSNorm(n_embd, 1e-5), nn.RMSNorm(n_embd, 1e-5)
        self.qkv, self.output = nn.Linear(n_embd, 3 * n_embd, bias=False), nn.Linear(n_embd, n_embd, bias=False)
        self.gate_up, self.down = nn.Linear(n_embd, 2 * n_ff, bias=False), nn.Linear(n_ff, n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def rotate(t: Tensor) -> Tensor:
            a, b = t.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        x = x + self.output(attend(self.qkv(self.attn_norm(x)), self.n_head, rotate))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class GptBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int, n_ff: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.attn_norm, self.ffn_norm = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.qkv, self.output = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.up, self.down = nn.Linear(n_embd, n_ff), nn.Linear(n_ff, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.output(attend(self.qkv(self.attn_norm(x)), self.n_head, lambda t: t))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x)), approximate="tanh"))


class Llama(nn.Module):
    def __init__(self, w: Workload) -> None:
        super().__init__()
        c = w.config
        self.embedding = nn.Embedding(c.n_vocab, c.n_embd)
        self.blocks = nn.ModuleList(LlamaBlock(c.n_embd, c.n_head, w.n_ff) for _ in range(c.n_layer))
        self.norm, self.head = nn.RMSNorm(c.n_embd, 1e-5), nn.Linear(c.n_embd, c.n_vocab, bias=False)
        if c.tied:
            self.head.weight = self.embedding.weight
        i = torch.arange(0, c.n_embd // c.n_head, 2).float() / (c.n_embd // c.n_head)
        angles = torch.outer(torch.arange(w.ctx).float(), c.rope_freq_base**-i)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


class Gpt2(nn.Module):
    def __init__(self, w: Workload) -> None:
        super().__init__()
        c = w.config
        self.embedding, self.positions = nn.Embedding(c.n_vocab, c.n_embd), nn.Embedding(c.n_ctx, c.n_embd)
        self.blocks = nn.ModuleList(GptBlock(c.n_embd, c.n_head, w.n_ff) for _ in range(c.n_layer))
        self.norm, self.head = nn.LayerNorm(c.n_embd), nn.Linear(c.n_embd, c.n_vocab, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def build(w: Workload) -> nn.Module:
    """The workload's model, matrices drawn from a normal distribution as ours are."""
    torch.manual_seed(1)
    model: nn.Module = (Gpt2 if w.name == "W2" else Llama)(w)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, 0, 0.02)
    return model
