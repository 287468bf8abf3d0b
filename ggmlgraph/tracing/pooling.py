"""Largest element or mean of windows over the last axis or the last two, as torch.nn.functional has them.

All are ggml's POOL_2D: its POOL_1D knows neither overlapping windows nor padding. Used by models.
"""

from __future__ import annotations

from ggmlgraph.errors import ShapeError, UsageError
from ggmlgraph.table import ops
from ggmlgraph.tracing.convolution import Pair, _number, _pair
from ggmlgraph.tracing.tensor import Tensor

MAX, MEAN = 0, 1  # kinds of ggml's


def max_pool1d(x: Tensor, size: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """Largest element of each window, as torch.nn.functional.max_pool1d.

    x: (batch, n, length) -> (batch, n, (length + 2 padding - size) // stride + 1). Windows are `stride` apart, default
    `size`; what padding adds is never the largest. Raises ShapeError, UsageError.
    """
    return _pool_1d(x, MAX, size, stride, padding, "max_pool1d")


def avg_pool1d(x: Tensor, size: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """Mean of each window, with padding's zeros, as torch.nn.functional.avg_pool1d; sizes as of `max_pool1d`."""
    return _pool_1d(x, MEAN, size, stride, padding, "avg_pool1d")


def max_pool2d(x: Tensor, size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Largest element of each window, as torch.nn.functional.max_pool2d.

    x: (batch, n, height, width) -> (batch, n, height_out, width_out), sizes as of `max_pool1d`. A pair is (along the
    height, along the width). Raises ShapeError, UsageError.
    """
    return _pool(x, MAX, size, stride, padding, "max_pool2d")


def avg_pool2d(x: Tensor, size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Mean of each window, with padding's zeros, as torch.nn.functional.avg_pool2d; sizes as of `max_pool2d`."""
    return _pool(x, MEAN, size, stride, padding, "avg_pool2d")


def _pool_1d(x: Tensor, kind: int, size: int, stride: int | None, padding: int, name: str) -> Tensor:
    if len(x.shape) != 3:
        raise ShapeError(f"{x.graph.here()}: {name}: x = {x!r} is not (batch, n, length)")
    size, padding = _number(x, name, "size", size, 1), _number(x, name, "padding", padding, 0)
    stride = size if stride is None else _number(x, name, "stride", stride, 1)
    batch, n, length = x.shape
    y = _pool(x.reshape(batch, n, 1, length), kind, (1, size), (1, stride), (0, padding), name)
    return y.reshape(batch, n, y.shape[-1])


def _pool(x: Tensor, kind: int, size: Pair, stride: Pair | None, padding: Pair, name: str) -> Tensor:
    if len(x.shape) != 4:
        raise ShapeError(f"{x.graph.here()}: {name}: x = {x!r} is not (batch, n, height, width)")
    (k1, k0), (p1, p0) = _pair(x, name, "size", size, 1), _pair(x, name, "padding", padding, 0)
    s1, s0 = (k1, k0) if stride is None else _pair(x, name, "stride", stride, 1)
    if 2 * p0 > k0 or 2 * p1 > k1:
        raise UsageError(f"{x.graph.here()}: {name}: padding {padding} is more than half of the window {size}")
    return ops.pool_2d(x.contiguous(), kind, k0, k1, s0, s1, p0, p1)
