"""Losses: functions of a model's results that give one number to minimise, the mean over rows or elements.

All are written in ggml's own ops, so that stock ggml computes them. Of the plain cross-entropy the runtime makes one
fused op, which never forms the probabilities. Used by models; `Params.cross_entropy` is built on this module.
"""

from __future__ import annotations

import math

import numpy as np

from ggmlgraph.errors import ShapeError, UsageError
from ggmlgraph.table import ops
from ggmlgraph.tracing.tensor import Tensor

TINY = 2.0**-126  # changes no number but 0, so that 0 log 0 is 0


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Mean of -log softmax(logits)[target] over rows, nats -> (1,).

    logits: (..., n_classes). targets: int32 (...), classes; or float32 (..., n_classes), a distribution per row.
    weights: float32 (...), makes it sum(weights * row) / sum(weights): 0 leaves a row out; not all may be 0. With
    micro-batches it is the mean of theirs.
    label_smoothing: e mixes e / n_classes into the targets, 1 - e of which stay (Szegedy et al. 2016).
    z_loss: adds z_loss * logsumexp(logits)^2 to each row (Chowdhery et al. 2022, PaLM).

    torch.nn.functional.cross_entropy(reduction="mean"), where `weights` are of rows, not of classes; the mean of
    optax.softmax_cross_entropy or optax.softmax_cross_entropy_with_integer_labels.
    Raises ShapeError for targets or weights of other rows, UsageError for a smoothing outside 0..1 or a z_loss below 0.
    """
    if not 0 <= label_smoothing <= 1 or not 0 <= z_loss < math.inf:
        where = logits.graph.here()
        raise UsageError(
            f"{where}: cross_entropy: label_smoothing {label_smoothing} is not in 0..1 or z_loss {z_loss} below 0"
        )
    *rows, n_classes = logits.shape
    soft = targets.dtype == "f32"
    _check_shape("cross_entropy", targets, logits.shape if soft else tuple(rows), logits)
    if weights is not None:
        _check_shape("cross_entropy", weights, tuple(rows), logits)
    n = _product(rows)
    if not (soft or label_smoothing or z_loss):
        total = weighted_likelihood(logits, targets, _ones(logits, n) if weights is None else weights)
        return total * (-1.0 / n) if weights is None else total * -1.0 / weights.sum()
    flat = logits.reshape(n, n_classes)
    lse = _logsumexp(flat)
    if soft:
        labels = targets.reshape(n, n_classes)
        losses = lse * ops.sum_rows(labels) - ops.sum_rows(labels * flat)
    else:
        losses = lse - _chosen(flat, targets)
    if label_smoothing:
        losses = losses * (1.0 - label_smoothing) + (lse - ops.mean(flat)) * label_smoothing
    if z_loss:
        losses = losses + ops.sqr(lse) * z_loss
    if weights is None:
        return losses.sum() * (1.0 / n)
    return (losses * weights.reshape(n, 1)).sum() / weights.sum()


def weighted_likelihood(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * log softmax(logits)[target]: (..., n_classes), int32 (...), n numbers for n rows -> (1,).

    The form of which the runtime makes one stable op.
    """
    *rows, n_classes = logits.shape
    n = _product(rows)
    probabilities = ops.soft_max(logits)
    of_target = ops.get_rows(probabilities.reshape(n, n_classes, 1), targets.reshape(n, 1))
    return (ops.log(of_target) * weights.reshape(n, 1, 1)).sum()


def mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of (prediction - target)^2 over all elements of two tensors of one shape -> (1,).

    torch.nn.functional.mse_loss(reduction="mean"); the mean of optax.squared_error. Raises ShapeError.
    """
    _check_shape("mse", targets, predictions.shape, predictions)
    return _mean(ops.sqr(predictions - targets))


def huber(predictions: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """Mean over all elements of d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), d the difference -> (1,).

    torch.nn.functional.huber_loss(reduction="mean"); the mean of optax.huber_loss (Huber 1964). Raises ShapeError,
    UsageError for a delta that is not above 0.
    """
    _check_shape("huber", targets, predictions.shape, predictions)
    if not 0 < delta < math.inf:
        raise UsageError(f"{predictions.graph.here()}: huber: delta {delta} is not above 0")
    size = ops.abs(predictions - targets)
    near = delta - ops.relu(delta - size)  # the lesser of both; ggml's clamp is wrong in some versions
    return _mean(near * (size - near * 0.5))


def bce(logits: Tensor, targets: Tensor | float) -> Tensor:
    """Mean over all elements of -target log sigmoid(logit) - (1 - target) log sigmoid(-logit) -> (1,).

    targets: float32 of logits' shape, 0..1, or one number for all. No logit is too large for it. Raises ShapeError.
    torch.nn.functional.binary_cross_entropy_with_logits(reduction="mean"); the mean of
    optax.sigmoid_binary_cross_entropy.
    """
    if isinstance(targets, Tensor):
        _check_shape("bce", targets, logits.shape, logits)
    size = ops.abs(logits)
    # log(1 + e^z) = z/2 + |z|/2 - log sigmoid(|z|): the derivative of each term at 0 is right, unlike relu's.
    softplus = (logits + size) * 0.5 - ops.log(ops.sigmoid(size))
    return _mean(softplus - logits * targets)


def kl(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of the Kullback-Leibler divergence from softmax(logits) to targets, nats -> (1,).

    Sum over the last axis of target (log target - log softmax(logits)); targets: float32 of logits' shape, each row a
    distribution. torch.nn.functional.kl_div(log_softmax(logits), targets, reduction="batchmean") of two axes; the mean
    of optax.kl_divergence. Raises ShapeError.
    """
    _check_shape("kl", targets, logits.shape, logits)
    entropy = targets * ops.log(targets + TINY)
    return entropy.sum() * (1.0 / _product(logits.shape[:-1])) + cross_entropy(logits, targets)


# ---------------------------------------------------------------- parts


def _mean(x: Tensor) -> Tensor:
    return x.sum() * (1.0 / _product(x.shape))


def _logsumexp(x: Tensor) -> Tensor:
    """log(sum(exp(x))) of each row: (n, m) -> (n, 1), by the row's largest x and its probability, never small."""
    largest = ops.argmax(x)
    return _chosen(x, largest) - ops.log(_chosen(ops.soft_max(x), largest))


def _chosen(x: Tensor, ids: Tensor) -> Tensor:
    """One element of each row, by number: (n, m), int32 (n,) or of n elements -> (n, 1)."""
    n, m = x.shape
    return ops.get_rows(x.reshape(n, m, 1), ids.reshape(n, 1)).reshape(n, 1)


def _ones(like: Tensor, n: int) -> Tensor:
    return ops.repeat(like.graph.constant("constant.one", np.ones(1, np.float32)), shape=(n,))


def _product(sizes: tuple[int, ...] | list[int]) -> int:
    total = 1
    for n in sizes:
        total = n * total
    return total


def _check_shape(name: str, given: Tensor, wanted: tuple[int, ...], other: Tensor) -> None:
    if tuple(map(int, given.shape)) != tuple(map(int, wanted)):
        sizes = ", ".join(str(int(n)) for n in wanted)
        raise ShapeError(
            f"{other.graph.here()}: {name}: {given!r} is not of the shape ({sizes}) that goes with {other!r}"
        )
