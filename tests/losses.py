"""Cases of the losses: each as a function of a parameter z, and its formula in float64.

Used by tracing/test_losses.py, and by the peers that compute the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

import ggmlgraph as gg

N, CLASSES = 6, 5
Ids = Annotated[gg.Tensor, gg.Ids("batch")]
Rows = Annotated[gg.Tensor, gg.Float("batch", CLASSES)]
Weights = Annotated[gg.Tensor, gg.Float("batch")]

Array = Any


def scores(p: gg.Params, like: gg.Tensor) -> gg.Tensor:
    """What the losses are of, (batch, CLASSES): a parameter, so that its gradient can be read."""
    return p("z", N, CLASSES)


def lse(z: Array) -> Array:
    top = z.max(-1)
    return np.log(np.exp(z - top[:, None]).sum(-1)) + top


def log_softmax(z: Array) -> Array:
    return z - lse(z)[:, None]


def softplus(z: Array) -> Array:
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def one_hot(ids: Array) -> Array:
    return np.eye(CLASSES)[ids]


def smooth(labels: Array, e: float) -> Array:
    return labels * (1 - e) + e / CLASSES


def of_ids(**options: float) -> Callable[..., gg.Tensor]:
    def loss(p: gg.Params, ids: Ids) -> gg.Tensor:
        return gg.cross_entropy(scores(p, ids), ids, **options)

    return loss


def of_weighted(**options: float) -> Callable[..., gg.Tensor]:
    def loss(p: gg.Params, ids: Ids, weights: Weights) -> gg.Tensor:
        return gg.cross_entropy(scores(p, ids), ids, weights, **options)

    return loss


def of_rows(function: Callable[..., gg.Tensor], **options: float) -> Callable[..., gg.Tensor]:
    def loss(p: gg.Params, labels: Rows) -> gg.Tensor:
        return function(scores(p, labels), labels, **options)

    return loss


def entropy(labels: Array) -> Array:
    return np.where(labels > 0, labels * np.log(np.where(labels > 0, labels, 1)), 0).sum(-1)


def huber(d: Array, delta: float) -> Array:
    return np.where(np.abs(d) <= delta, d * d / 2, delta * (np.abs(d) - delta / 2)).mean()


# The loss, and what it is of scores z (float64), ids, labels and weights.
LOSSES: dict[str, tuple[Callable[..., gg.Tensor], Callable[..., Array]]] = {
    "ids": (of_ids(), lambda z, ids, y, w: -(one_hot(ids) * log_softmax(z)).sum(-1).mean()),
    "weighted": (of_weighted(), lambda z, ids, y, w: -((one_hot(ids) * log_softmax(z)).sum(-1) * w).sum() / w.sum()),
    "smoothed": (
        of_ids(label_smoothing=0.2),
        lambda z, ids, y, w: -(smooth(one_hot(ids), 0.2) * log_softmax(z)).sum(-1).mean(),
    ),
    "z_loss": (
        of_ids(z_loss=0.1),
        lambda z, ids, y, w: (-(one_hot(ids) * log_softmax(z)).sum(-1) + 0.1 * lse(z) ** 2).mean(),
    ),
    "all": (
        of_weighted(label_smoothing=0.1, z_loss=0.01),
        lambda z, ids, y, w: (
            ((-(smooth(one_hot(ids), 0.1) * log_softmax(z)).sum(-1) + 0.01 * lse(z) ** 2) * w).sum() / w.sum()
        ),
    ),
    "soft": (of_rows(gg.cross_entropy), lambda z, ids, y, w: -(y * log_softmax(z)).sum(-1).mean()),
    "soft smoothed": (
        of_rows(gg.cross_entropy, label_smoothing=0.3),
        lambda z, ids, y, w: -(smooth(y, 0.3) * log_softmax(z)).sum(-1).mean(),
    ),
    "mse": (of_rows(gg.mse), lambda z, ids, y, w: ((z - y) ** 2).mean()),
    "huber": (of_rows(gg.huber), lambda z, ids, y, w: huber(z - y, 1.0)),
    "huber 0.3": (of_rows(gg.huber, delta=0.3), lambda z, ids, y, w: huber(z - y, 0.3)),
    "bce": (of_rows(gg.bce), lambda z, ids, y, w: (softplus(z) - z * y).mean()),
    "kl": (of_rows(gg.kl), lambda z, ids, y, w: (entropy(y) - (y * log_softmax(z)).sum(-1)).mean()),
}


def inputs(seed: int = 0, scale: float = 1.0) -> tuple[dict[str, Array], Array]:
    rng = np.random.default_rng(seed)
    labels = rng.dirichlet(np.ones(CLASSES), N).astype(np.float32)
    labels[0] = one_hot(2)
    weights = rng.uniform(0, 1, N).astype(np.float32)
    weights[3] = 0
    z = (rng.normal(size=(N, CLASSES)) * scale).astype(np.float32)
    z[1] = 0
    return {"ids": rng.integers(0, CLASSES, N, dtype=np.int32), "labels": labels, "weights": weights}, z
