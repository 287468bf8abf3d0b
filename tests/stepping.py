"""A small model trained step by step, and the gradients it saw: what another implementation of an optimiser needs to
take the same steps. Used by the tests of optimisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import ggmlgraph as gg
from ggmlgraph.execution.optimizers import Optimizer

N_VOCAB, N_EMBD, BATCH, CTX = 37, 16, 3, 8

Arrays = dict[str, np.ndarray[Any, Any]]


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: None) -> gg.Tensor:
    """Matrices that are wide, tall and square, vectors, and a matrix of one row."""
    x = p.embedding("token_embd", tokens, N_VOCAB, N_EMBD)
    wide = gg.silu(p.linear("up", p.rms_norm("norm", x, 1e-5), 2 * N_EMBD, bias=True))
    x = x + p.linear("down", wide, N_EMBD) + p.linear("square", x, N_EMBD)
    gate = p.linear("gate", x, 1)
    return p.cross_entropy(p.linear("output", x * gate, N_VOCAB), targets)


def graph() -> gg.Graph:
    return gg.trace(loss, None, batch=BATCH, ctx=CTX)


def batches(n: int, accumulate: int = 1) -> list[tuple[Any, Any]]:
    """Of a text that can be learnt: each token is followed by the next but one."""
    starts = np.random.default_rng(0).integers(0, N_VOCAB, (n, BATCH * accumulate, 1))
    windows = (starts + 2 * np.arange(CTX + 1)) % N_VOCAB
    return [(w[:, :-1].astype(np.int32), w[:, 1:].astype(np.int32)) for w in windows]


def trained(
    optimizer: Optimizer,
    n_steps: int,
    see: Callable[[int, Arrays, float], None],
    begin: Callable[[Arrays], None],
    lr: float,
    **options: Any,
) -> tuple[Arrays, list[float]]:
    """Weights after n_steps, and the losses before each. begin: sees the first weights, scaled up so that decay and
    scale show; see(step, gradients, norm): each step's gradients."""
    groups = {key: options.pop(key) for key in ("lr_of", "decay_of") if key in options}
    with gg.Runtime(graph(), threads=1, optimizer=optimizer, **groups) as rt:
        for name in rt.params:
            rt.set(name, (5 * rt.get(name)).astype(np.float32))
        begin({name: rt.get(name) for name in rt.params})
        losses = []
        for step, batch in enumerate(batches(n_steps)):
            result = rt.step(batch, lr=lr, **options)
            see(step, {name: rt.gradient(name) for name in rt.params}, result.grad_norm)
            losses.append(result.loss)
        return {name: rt.get(name) for name in rt.params}, losses


def apart(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference of a weight, beside the largest weight of its tensor."""
    return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in ours)
