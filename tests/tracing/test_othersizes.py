"""A file is the model at every batch and ctx that it says it takes, whatever the model does with sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.errors import ShapeError, UnsupportedError
from ggmlgraph.graphfile.dim import Dim
from ggmlgraph.models import gpt2, gpt_neox, llama
from ggmlgraph.tracing.tensor import Tensor

Body = Callable[[gg.Params, Tensor, int, int], Tensor]


def model(body: Body) -> Callable[..., Tensor]:
    """A language model whose hidden state is `body(p, x, batch, ctx)`, x the embedding (batch, ctx, 4)."""

    def loss(p: gg.Params, tokens: Tensor, targets: Tensor, c: None) -> Tensor:
        x = p.embedding("token_embd", tokens, 8, 4, init=gg.normal(1.0))
        return p.cross_entropy(p.linear("output", body(p, x, *tokens.shape), 8, init=gg.normal(1.0)), targets)

    return loss


def logits(path: Path, batch: int, ctx: int) -> Any:
    tokens = np.random.default_rng(0).integers(0, 8, (batch, ctx)).astype(np.int32)
    with gg.Runtime(path, threads=1, batch=batch, ctx=ctx) as rt:
        return rt.forward("logits", tokens=tokens, targets=tokens)[0].reshape(batch, ctx, 8)


def mean(x: Tensor, batch: int, n: Any) -> Tensor:
    """x + the mean of x over time, as n says it."""
    return x + x.permute(0, 2, 1).cont().sum(-1, keepdims=True).reshape(batch, 1, 4) / n


FOLLOW: dict[str, Body] = {
    "a mean over time": lambda p, x, b, t: mean(x, b, t),
    "a mean by a number": lambda p, x, b, t: mean(x, b, float(t)),
    "a mean by an int": lambda p, x, b, t: mean(x, b, int(t)),
    "a share of the batch": lambda p, x, b, t: x * (1.0 / (int(b) * int(t))),
    "a root of ctx": lambda p, x, b, t: x * (3.0 / math.sqrt(t)),
    "a number and ctx": lambda p, x, b, t: x * t * 0.25,
    "ctx squared": lambda p, x, b, t: x * (1e-3 * t * t),
    "the last 16 positions": lambda p, x, b, t: _last(x, b, t - 16, t),
    "the last 16, counted from the end": lambda p, x, b, t: _last(x, b, t - 16, t, negative=True),
    "the second half": lambda p, x, b, t: _last(x, b, t // 2, t),
    "up to the 16th from the end": lambda p, x, b, t: _last(x, b, 0, t - 8),
}  # fmt: skip


def _last(x: Tensor, batch: int, start: int, stop: int, *, negative: bool = False) -> Tensor:
    """x + the sum of some positions."""
    part = x[:, -16:] if negative else x[:, start:stop]
    return x + part.cont().permute(0, 2, 1).cont().sum(-1, keepdims=True).reshape(batch, 1, 4)


@pytest.mark.parametrize("ctx", [16, 24])
@pytest.mark.parametrize("what", FOLLOW)
def test_what_follows_from_sizes_is_the_model_at_other_sizes(what: str, ctx: int, tmp_path: Path) -> None:
    for batch, at in ((2, ctx), (3, 40)):
        graph = gg.trace(model(FOLLOW[what]), None, batch=batch, ctx=at)
        graph.save(tmp_path / f"{at}.bin")
        assert graph.fixed == ""
    np.testing.assert_allclose(
        logits(tmp_path / f"{ctx}.bin", 3, 40), logits(tmp_path / "40.bin", 3, 40), rtol=1e-5, atol=1e-6
    )


FIXED: dict[str, tuple[Body, str]] = {
    "another power": (lambda p, x, b, t: x * (1.0 / (t - 1)), "scale has a number that depends on batch or ctx"),
    "a number of another op": (lambda p, x, b, t: gg.leaky_relu(x, 1.0 / t), "leaky_relu has a number that depends"),
    "a bound of int": (lambda p, x, b, t: x + x[:, int(t) - 1 : int(t)].cont(), "view has a number that depends"),
    "a branch for longer texts": (lambda p, x, b, t: gg.relu(x) if t > 20 else x, "the model is another graph"),
    "a branch for shorter texts": (lambda p, x, b, t: gg.relu(x) if t < 10 else x, "the model is another graph"),
    "as many layers as positions": (lambda p, x, b, t: _layers(x, t), "the model is another graph"),
    "a shape of ints": (lambda p, x, b, t: x.reshape(int(b * t), 4).reshape(b, t, 4), "reshape"),
    "one size alone": (lambda p, x, b, t: _only(x, t, 16), "only 16"),
}  # fmt: skip


def _layers(x: Tensor, ctx: int) -> Tensor:
    for _ in range(ctx):
        x = gg.relu(x)
    return x


def _only(x: Tensor, ctx: int, only: int) -> Tensor:
    if ctx != only:
        raise ValueError(f"only {only}")
    return x


@pytest.mark.parametrize("what", FIXED)
def test_what_does_not_follow_keeps_the_sizes_and_says_where(what: str, tmp_path: Path) -> None:
    body, reason = FIXED[what]
    graph = gg.trace(model(body), None, batch=2, ctx=16)
    graph.save(tmp_path / "g.bin")
    assert reason in graph.fixed
    assert "test_othersizes.py:" in graph.fixed or "cannot be traced" in graph.fixed
    logits(tmp_path / "g.bin", 2, 16)
    with pytest.raises(UnsupportedError, match="ctx is fixed in this graph"):
        logits(tmp_path / "g.bin", 2, 32)


def test_a_slice_before_the_begin_at_other_sizes_is_refused_there(tmp_path: Path) -> None:
    gg.trace(model(FOLLOW["the last 16 positions"]), None, batch=2, ctx=16).save(tmp_path / "g.bin")
    with pytest.raises(Exception, match="expression '16\\*ctx-256' is -128"):
        logits(tmp_path / "g.bin", 2, 8)


@pytest.mark.parametrize(("batch", "ctx"), [(1, 1), (1, 2), (2, 1), (3, 7)])
@pytest.mark.parametrize("module", [llama, gpt2, gpt_neox])
def test_models_of_ours_take_any_size_wherever_they_were_exported(
    module: Any, batch: int, ctx: int, tmp_path: Path
) -> None:
    known = module.Config.__dataclass_fields__
    fields = {"n_vocab": 8, "n_embd": 16, "n_head": 2, "n_layer": 1, "n_ff": 24, "n_ctx": 32}
    config = module.Config(**{name: value for name, value in fields.items() if name in known})
    for b, t in ((batch, ctx), (3, 12)):
        graph = gg.trace(module.loss, config, batch=b, ctx=t)
        graph.save(tmp_path / f"{t}.bin")
        assert graph.fixed == ""
    np.testing.assert_array_equal(logits(tmp_path / f"{ctx}.bin", 3, 12), logits(tmp_path / "12.bin", 3, 12))


def test_sizes_that_merely_divide_are_not_tiled() -> None:
    with pytest.raises(ShapeError, match=r"test_othersizes\.py:\d+: mul: size 2 is not repeated to 4; gg\.repeat does"):
        gg.trace(model(lambda p, x, b, t: x * p("gain", 2)), None, batch=2, ctx=16)


@pytest.mark.parametrize("shape", [(4,), (1,), (1, 4), (16, 4), (16, 1), (2, 16, 4), (1, 16, 1)])
def test_sizes_of_one_are_repeated_as_in_numpy(shape: tuple[int, ...]) -> None:
    gg.trace(model(lambda p, x, b, t: x * p("gain", *shape)), None, batch=2, ctx=16)


def test_what_no_output_needs_is_not_in_the_file_nor_in_what_it_says(tmp_path: Path) -> None:
    def body(p: gg.Params, x: Tensor, b: int, t: int) -> Tensor:
        x.reshape(b * t, 4)[:, 0:2].named("unused")
        return x

    gg.trace(model(body), None, batch=2, ctx=16).save(tmp_path / "g.bin")
    assert logits(tmp_path / "g.bin", 3, 8).shape == (3, 8, 8)


def test_an_input_that_nothing_uses_is_in_the_file_and_in_what_it_says(tmp_path: Path) -> None:
    def loss(p: gg.Params, tokens: Tensor, targets: Tensor, c: None) -> Tensor:
        return p.embedding("token_embd", tokens, 8, 4).sum()

    gg.trace(loss, None, batch=2, ctx=16).save(tmp_path / "g.bin")
    with gg.Runtime(tmp_path / "g.bin", threads=1, batch=3, ctx=8) as rt:
        assert rt.metadata.inputs == {"tokens": "tokens", "targets": "targets"}
        rt.step((np.zeros((3, 8), np.int32), np.zeros((3, 8), np.int32)), lr=0.0)


def test_export_says_that_sizes_are_fixed_why_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        "def loss(p, tokens, targets, c):",
        "    x = p.embedding('e', tokens, 256, 4)",
        "    x = x * (1.0 / (tokens.shape[1] + 1))",
        "    return p.cross_entropy(p.linear('o', x, 256), targets)",
    ]
    Path("m.py").write_text("\n".join(lines))
    assert run(["export", "m.py", "-o", "g.bin"]) == 0
    said = capsys.readouterr().err
    assert said == "batch 16 and ctx 64 are fixed: m.py:3: scale has a number that depends on batch or ctx\n"
    assert run(["inspect", "g.bin"]) == 0
    assert "sizes       fixed: m.py:3: scale has a number" in capsys.readouterr().out


def test_a_dim_of_value_0_keeps_its_expression() -> None:
    assert (Dim(64, "ctx") - 64).expr == "ctx-64"  # type: ignore[attr-defined]
