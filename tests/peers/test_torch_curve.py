"""Training curves against PyTorch: the same weights, the same batches, 50 AdamW steps with clipping and decay.

The models are written again in plain torch float32, from the papers; skipped where torch is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.models import gpt_neox, llama

torch = pytest.importorskip("torch", reason="for want of torch")
F = torch.nn.functional

N_STEPS, BATCH, CTX = 50, 4, 32
LR, WEIGHT_DECAY, CLIP, BETAS, EPS = 3e-3, 0.1, 0.5, (0.9, 0.95), 1e-8

LLAMA = llama.Config(n_vocab=211, n_embd=48, n_head=6, n_head_kv=2, n_layer=3, n_ff=80)
LLAMA_TIED = llama.Config(n_vocab=211, n_embd=48, n_head=6, n_layer=2, n_ff=80, tied=True)
NEOX = gpt_neox.Config(n_vocab=211, n_embd=48, n_head=3, n_layer=3, rotary_pct=0.5)
NEOX_SEQUENTIAL = gpt_neox.Config(n_vocab=211, n_embd=48, n_head=3, n_layer=2, parallel_residual=False)

Weights = dict[str, Any]


def rotate(x: Any, n_dims: int, *, interleaved: bool) -> Any:
    """Rotary positions on x (batch, ctx, n_head, head_dim)."""
    i = torch.arange(0, n_dims, 2, dtype=torch.float32)
    angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-i / n_dims)
    cos, sin = torch.cos(angle)[None, :, None], torch.sin(angle)[None, :, None]
    rotated, rest = x[..., :n_dims], x[..., n_dims:]
    if interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = rotated.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([turned, rest], -1)


def attend(q: Any, k: Any, v: Any) -> Any:
    """Causal attention over (batch, ctx, n_head, head_dim) -> (batch, ctx, n_embd)."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    y = scores.masked_fill(mask, -torch.inf).softmax(-1) @ v
    return y.transpose(1, 2).flatten(-2)


def llama_logits(w: Weights, tokens: Any, c: llama.Config) -> Any:
    def norm(x: Any, name: str) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c.norm_eps) * w[f"{name}.weight"]

    def heads(x: Any, name: str) -> Any:
        return F.linear(x, w[name]).unflatten(-1, (-1, c.n_embd // c.n_head))

    x = w["token_embd.weight"][tokens]
    for i in range(c.n_layer):
        b = f"blk.{i}"
        h = norm(x, f"{b}.attn_norm")
        q, k, v = (heads(h, f"{b}.attn_{part}.weight") for part in "qkv")
        q, k = (rotate(t, c.n_embd // c.n_head, interleaved=True) for t in (q, k))
        x = x + F.linear(attend(q, k, v), w[f"{b}.attn_output.weight"])
        h = norm(x, f"{b}.ffn_norm")
        gate, up = F.linear(h, w[f"{b}.ffn_gate.weight"]), F.linear(h, w[f"{b}.ffn_up.weight"])
        x = x + F.linear(F.silu(gate) * up, w[f"{b}.ffn_down.weight"])
    return F.linear(norm(x, "output_norm"), w["token_embd.weight" if c.tied else "output.weight"])


def neox_logits(w: Weights, tokens: Any, c: gpt_neox.Config) -> Any:
    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], c.norm_eps)

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["token_embd.weight"][tokens]
    head_dim = c.n_embd // c.n_head
    for i in range(c.n_layer):
        b = f"blk.{i}"
        qkv = linear(norm(x, f"{b}.attn_norm"), f"{b}.attn_qkv").chunk(3, -1)
        q, k, v = (t.unflatten(-1, (c.n_head, head_dim)) for t in qkv)
        q, k = (rotate(t, int(head_dim * c.rotary_pct), interleaved=False) for t in (q, k))
        attended = x + linear(attend(q, k, v), f"{b}.attn_output")
        h = norm(x if c.parallel_residual else attended, f"{b}.ffn_norm")
        x = attended + linear(F.gelu(linear(h, f"{b}.ffn_up")), f"{b}.ffn_down")
    return F.linear(norm(x, "output_norm"), w["output.weight"])


def torch_losses(weights: dict[str, np.ndarray], batches: list[Any], logits: Callable[..., Any], c: Any) -> list[float]:
    w = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in weights.items()}
    groups = [
        {"params": [p for p in w.values() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in w.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    losses = []
    for tokens, targets in batches:
        y = logits(w, torch.from_numpy(tokens).long(), c)
        loss = F.cross_entropy(y.flatten(0, 1), torch.from_numpy(targets).long().flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("loss", "logits", "config"),
    [
        pytest.param(llama.loss, llama_logits, LLAMA, id="llama-grouped-query"),
        pytest.param(llama.loss, llama_logits, LLAMA_TIED, id="llama-tied"),
        pytest.param(gpt_neox.loss, neox_logits, NEOX, id="gpt-neox-parallel"),
        pytest.param(gpt_neox.loss, neox_logits, NEOX_SEQUENTIAL, id="gpt-neox-sequential"),
    ],
)
def test_fifty_steps_follow_torch(tmp_path: Path, loss: Any, logits: Any, config: Any) -> None:
    gg.trace(loss, config, batch=BATCH, ctx=CTX).save(tmp_path / "graph.bin", seed=3)
    # a stream the model can learn, so that the losses move
    stream = np.random.default_rng(0).integers(0, 211, 1 << 16) % np.arange(1, (1 << 16) + 1).clip(max=29)
    at = np.random.default_rng(1).integers(0, len(stream) - CTX - 1, (N_STEPS, BATCH))
    windows = stream[at[..., None] + np.arange(CTX + 1)].astype(np.int32)
    batches = [(w[:, :-1].copy(), w[:, 1:].copy()) for w in windows]

    adamw = gg.AdamW(beta1=BETAS[0], beta2=BETAS[1], eps=EPS)
    with gg.Runtime(tmp_path / "graph.bin", threads=2, optimizer=adamw) as rt:
        weights = {name: rt.get(name) for name in rt.params}
        ours = [rt.step(b, lr=LR, weight_decay=WEIGHT_DECAY, clip=CLIP).loss for b in batches]
    theirs = torch_losses(weights, batches, logits, config)

    worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    print(f"{ours[0]:.4f} -> {ours[-1]:.4f}, largest relative difference {worst:.1e}")
    assert ours[-1] < 0.8 * ours[0]
    assert worst < 1e-4
