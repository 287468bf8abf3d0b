"""The examples of docs/examples in torch, each written again from what its docstrings say.

A twin takes weights by our names and a batch, and gives the loss. Used by test_examples.py and bench/beside_torch.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch

F = torch.nn.functional
Weights = dict[str, Any]


def linear(w: Weights, name: str, x: Any) -> Any:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w: Weights, name: str, x: Any) -> Any:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def classifier(w: Weights, image: Any, label: Any) -> Any:
    scores = linear(w, "output", F.relu(linear(w, "hidden", image.flatten(1))))
    return F.cross_entropy(scores, label.long(), label_smoothing=0.05)


def regressor(w: Weights, x: Any, y: Any) -> Any:
    for i in range(2):
        x = norm(w, f"layer.{i}.norm", F.silu(linear(w, f"layer.{i}.up", x)))
    return F.huber_loss(linear(w, "output", x), y, delta=0.5)


def encoder(w: Weights, tokens: Any, targets: Any, masked: Any) -> Any:
    x = w["token_embd.weight"][tokens.long()] + w["position_embd.weight"][: tokens.shape[1]]
    for i in range(2):
        b = f"blk.{i}"
        h = norm(w, f"{b}.attn_norm", x)
        q, k, v = (linear(w, f"{b}.attn_{part}", h).unflatten(-1, (4, -1)).transpose(1, 2) for part in "qkv")
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(w, f"{b}.attn_output", y)
        h = F.gelu(linear(w, f"{b}.ffn_up", norm(w, f"{b}.ffn_norm", x)), approximate="tanh")
        x = x + linear(w, f"{b}.ffn_down", h)
    logits = F.linear(norm(w, "output_norm", x), w["token_embd.weight"])
    losses = F.cross_entropy(logits.flatten(0, 1), targets.long().flatten(), reduction="none")
    return (losses * masked.flatten()).sum() / masked.sum()


def contrastive(w: Weights, left: Any, right: Any) -> Any:
    def encode(side: str, x: Any) -> Any:
        y = linear(w, f"{side}.output", F.relu(linear(w, f"{side}.hidden", x)))
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) / math.sqrt(y.shape[-1])

    scores = encode("left", left) @ encode("right", right).T / 0.1
    own = torch.arange(len(left))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def autoencoder(w: Weights, wave: Any) -> Any:
    code = linear(w, "encoder.code", F.silu(linear(w, "encoder.hidden", wave)))
    return F.mse_loss(linear(w, "decoder.wave", F.silu(linear(w, "decoder.hidden", code))), wave)


def _make(w: Weights, noise: Any) -> Any:
    return linear(w, "maker.points", F.silu(linear(w, "maker.hidden", noise)))


def _judge(w: Weights, points: Any, real: float) -> Any:
    logits = linear(w, "judge.logit", F.silu(linear(w, "judge.hidden", points)))
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))


def judge_loss(w: Weights, points: Any, noise: Any) -> Any:
    return _judge(w, points, 1.0) + _judge(w, _make(w, noise).detach(), 0.0)


def maker_loss(w: Weights, noise: Any) -> Any:
    return _judge(w, _make(w, noise), 1.0)


TWINS = {f.__name__: f for f in (classifier, regressor, encoder, contrastive, autoencoder, judge_loss, maker_loss)}


class Twin:
    """One of them in training, from the weights of a runtime, which says which of them are trained."""

    def __init__(self, name: str, weights: dict[str, Any], trained: list[str], decay: float, **options: Any) -> None:
        self._loss = TWINS[name]
        self._weights = {k: torch.from_numpy(v.copy()).requires_grad_(k in trained) for k, v in weights.items()}
        matrices = {k for k in trained if self._weights[k].ndim >= 2}
        groups = [
            {"params": [self._weights[k] for k in trained if k in matrices], "weight_decay": decay},
            {"params": [self._weights[k] for k in trained if k not in matrices], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW([group for group in groups if group["params"]], **options)
        self._trained = [self._weights[k] for k in trained]

    def step(self, batch: dict[str, Any], clip: float) -> float:
        """One update; the loss before it."""
        loss = self._loss(self._weights, **{name: torch.from_numpy(x) for name, x in batch.items()})
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, clip)
        self._optimizer.step()
        return float(loss.item())
