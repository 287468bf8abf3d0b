"""The lines of docs/from-others.md give the same loss and gradients in PyTorch, in JAX and here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

import ggmlgraph as gg

TOKENS = np.random.default_rng(0).integers(0, 32, (2, 8)).astype(np.int32)
TARGETS = np.random.default_rng(1).integers(0, 32, (2, 8)).astype(np.int32)


def loss_of(title: str) -> Any:
    """The function of a section."""
    page = (ROOT / "docs/from-others.md").read_text(encoding="utf-8")
    source = re.search(rf"## {title}\n\n```python\n(.*?)```", page, re.S)
    assert source, title
    names: dict[str, Any] = {}
    exec(source[1], names)
    return names["loss"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """The loss here, parameters and gradients."""
    path = Path(tmp_path_factory.mktemp("lines")) / "graph.bin"
    gg.trace(loss_of("Here"), batch=2, ctx=8).save(path)
    with gg.Runtime(path, threads=1) as rt:
        loss = rt.backward((TOKENS, TARGETS))
        return loss, {n: rt.get(n) for n in rt.params}, {n: rt.gradient(n) for n in rt.params}


def compare(ours: Any, loss: float, gradients: dict[str, Any]) -> None:
    assert abs(loss - ours[0]) <= 1e-5
    for name, gradient in ours[2].items():
        np.testing.assert_allclose(gradient, gradients[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_pytorchs_lines_give_the_same_loss_and_gradients(ours: Any) -> None:
    torch = pytest.importorskip("torch")
    p = {name: torch.tensor(array, requires_grad=True) for name, array in ours[1].items()}
    loss = loss_of("From PyTorch")(p, torch.from_numpy(TOKENS).long(), torch.from_numpy(TARGETS).long())
    loss.backward()
    compare(ours, loss.item(), {name: each.grad.numpy() for name, each in p.items()})


def test_jaxs_lines_give_the_same_loss_and_gradients(ours: Any) -> None:
    jax = pytest.importorskip("jax")
    loss, gradients = jax.value_and_grad(loss_of("From JAX"))(ours[1], TOKENS, TARGETS)
    compare(ours, float(loss), gradients)
