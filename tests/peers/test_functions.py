"""Convolutions, pooling, group_norm, attention and dropout beside torch, whose arguments they take, and real ggml."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_ggml
from windows import CASES, g_of, save

import ggmlgraph as gg
from ggmlgraph.tracing.attention import alibi_slopes

torch = pytest.importorskip("torch", reason="for want of torch")
BATCH, CTX, N_HEAD, HEAD_DIM, N_VOCAB = 2, 12, 4, 8, 31


@pytest.fixture(params=real_ggml.DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    with real_ggml.or_skip(f"real ggml of dialect {name}"):
        real_ggml.library(name)
    return name


def torchs(case: Any, operands: list[Any]) -> Any:
    """torch.nn.functional's function of the same name, called alike."""
    function, keywords = getattr(torch.nn.functional, case.name), dict(case.keywords)
    if case.name == "group_norm":
        return function(operands[0], keywords.pop("n_groups"), *operands[1:], **keywords)
    return function(*operands, *case.arguments, **keywords)


def test_values_and_gradients_are_torchs(tmp_path: Path) -> None:
    for case in CASES:
        save(case, tmp_path / "graph.bin")
        operands = [torch.from_numpy(each.copy()).requires_grad_() for each in case.operands()]
        y = torchs(case, operands)
        with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
            ours = rt.forward("y")[0]
            assert ours.shape == tuple(y.shape), case
            assert np.abs(ours - y.detach().numpy()).max() < 1e-5, case
            (y * torch.from_numpy(g_of(rt.graph).reshape(ours.shape))).sum().backward()
            rt.backward({"one": np.ones(1, np.float32)})
            for i, operand in enumerate(operands):
                wanted = operand.grad.numpy()
                assert np.abs(rt.gradient(f"operand.{i}") - wanted).max() < 2e-5 * max(1, np.abs(wanted).max()), (
                    case,
                    i,
                )


def test_real_ggml_computes_their_files(dialect: str, tmp_path: Path) -> None:
    for case in CASES:
        if dialect == "v1" and (case.name == "group_norm" or case.name.startswith("conv")):
            continue  # which knows no eps but 1e-6, and kernels in half precision alone
        path = tmp_path / "graph.bin"
        save(case, path, dialect)
        theirs = real_ggml.compute(dialect, path, {"one": np.ones(1, np.float32)}, ["y"])["y"]
        with gg.Runtime(path, threads=1) as rt:
            ours = rt.forward("y")[0]
        assert np.abs(theirs - ours.ravel()).max() < 1e-5 * max(1, np.abs(ours).max()), case


# ---------------------------------------------------------------- attention


@dataclass(frozen=True)
class Empty:
    """A config without sizes."""


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "all": {"causal": False},
    "window": {"window": 3},
    "alibi": {"alibi": True},
    "alibi_window": {"alibi": True, "window": 5},
    "soft_cap": {"soft_cap": 1.5},
    "scale": {"scale": 0.7},
}


def attention_loss(options: dict[str, Any]) -> Any:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Empty) -> gg.Tensor:
        x = gg.dropout(p.embedding("token_embd", tokens, N_VOCAB, 16, init=gg.normal(1.0)), 0.1)
        n = {"q": N_HEAD, "k": 2, "v": 2}
        q, k, v = (
            p.linear(name, x, n[name] * HEAD_DIM, init=gg.normal(0.3)).named(f"heads.{name}")
            for name in ("q", "k", "v")
        )
        heads = (each.reshape(*tokens.shape, -1, HEAD_DIM) for each in (q, k, v))
        y = gg.attention(*heads, **options).named("y")
        return p.cross_entropy(p.linear("output", y.reshape(*tokens.shape, -1), N_VOCAB), targets)

    return loss


def test_attention_is_torchs(tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, N_VOCAB, (BATCH, CTX), np.int32)
    distance = torch.arange(CTX)[:, None] - torch.arange(CTX)
    for name, options in OPTIONS.items():
        if "soft_cap" in options:
            continue  # which torch's function has not
        gg.trace(attention_loss(options), Empty(), batch=BATCH, ctx=CTX).save(tmp_path / "graph.bin", seed=3)
        with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
            y, *operands = rt.forward("y", "heads.q", "heads.k", "heads.v", tokens=tokens)
        q, k, v = (torch.from_numpy(x.reshape(BATCH, CTX, -1, HEAD_DIM)).transpose(1, 2) for x in operands)
        visible = (distance >= 0) | (not options.get("causal", True))
        visible = visible & (distance < options.get("window", math.inf))
        slopes = torch.from_numpy(alibi_slopes(N_HEAD)) if "alibi" in options else torch.zeros(N_HEAD)
        mask = torch.where(visible, -slopes[:, None, None] * distance, -math.inf)
        wanted = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=options.get("scale"), enable_gqa=True
        )
        assert np.abs(y.reshape(BATCH, CTX, N_HEAD, HEAD_DIM) - wanted.transpose(1, 2).numpy()).max() < 1e-5, name


def test_real_ggml_computes_attention_and_what_evaluation_makes_of_dropout(dialect: str, tmp_path: Path) -> None:
    tokens, targets = np.random.default_rng(1).integers(0, N_VOCAB, (2, BATCH, CTX), np.int32)
    numbers = np.arange(CTX, dtype=np.float32)
    weights = np.full((BATCH, CTX), 1 / (BATCH * CTX), np.float32)
    rounding = 1e-3 if dialect == "v1" else 1e-4  # its exponentials come out of a table of halves
    for name, options in OPTIONS.items():
        path = tmp_path / "graph.bin"
        gg.trace(attention_loss(options), Empty(), batch=BATCH, ctx=CTX).save(path, seed=3, dialect=dialect)
        given = {"tokens": tokens, "targets": targets, "loss_weights": weights}
        given |= {"positions_f32": numbers} if "alibi" in options else {}
        theirs = real_ggml.compute(dialect, path, given, ["logits", "loss"])
        with gg.Runtime(path, threads=1) as rt:
            ours = rt.forward("logits", "loss", tokens=tokens, targets=targets)
        for output, values in zip(("logits", "loss"), ours, strict=True):
            assert np.abs(theirs[output] - values.ravel()).max() < rounding * np.abs(values).max(), (name, output)
