"""Convolutions and their transposes over one axis or two, as torch.nn.functional has them; written in ggml's own ops.

A convolution is im2col and a product, as ggml's own is. Used by models.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from ggmlgraph.errors import ShapeError, UsageError
from ggmlgraph.table import ops
from ggmlgraph.tracing.tensor import Tensor

Pair: TypeAlias = int | tuple[int, int]  # one number for both axes, or (along the height, along the width)


def conv1d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of signals with kernels, as torch.nn.functional.conv1d.

    x: (batch, n_in, length); w: (n_out, n_in / groups, k); b: (n_out,) -> (batch, n_out, length_out), where
    length_out is (length + 2 padding - dilation (k - 1) - 1) // stride + 1; `padding` zeros at both ends. float32.
    Raises ShapeError, and UsageError for a stride, padding, dilation or number of groups that is none.
    """
    _check(x, w, b, 3, w.shape[0], w.shape[1] * groups if len(w.shape) == 3 else 0, "conv1d")
    s, p, d = (_number(x, "conv1d", *each) for each in _named(stride, padding, dilation))
    _check_groups(x, w, groups, "conv1d")
    batch, n_in, length = x.shape
    signals = x.reshape(batch * groups, n_in // groups, length)
    patches = ops.im2col(w, signals, s, 0, p, 0, d, 0, 0)
    return _add_bias(_product(patches, w, groups, (batch, w.shape[0], patches.shape[1])), b)


def conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of images with kernels, as torch.nn.functional.conv2d.

    x: (batch, n_in, height, width); w: (n_out, n_in / groups, k_height, k_width); b: (n_out,) -> (batch, n_out,
    height_out, width_out), sizes as of `conv1d`. A pair is (along the height, along the width). float32. Raises
    ShapeError, and UsageError for a stride, padding, dilation or number of groups that is none.
    """
    _check(x, w, b, 4, w.shape[0], w.shape[1] * groups if len(w.shape) == 4 else 0, "conv2d")
    (s1, s0), (p1, p0), (d1, d0) = (_pair(x, "conv2d", *each) for each in _named(stride, padding, dilation))
    _check_groups(x, w, groups, "conv2d")
    batch, n_in, height, width = x.shape
    images = x.reshape(batch * groups, n_in // groups, height, width)
    patches = ops.im2col(w, images, s0, s1, p0, p1, d0, d1, 1)
    return _add_bias(_product(patches, w, groups, (batch, w.shape[0], *patches.shape[1:3])), b)


def conv_transpose1d(x: Tensor, w: Tensor, b: Tensor | None = None, *, stride: int = 1, padding: int = 0) -> Tensor:
    """The transpose of `conv1d`, as torch.nn.functional.conv_transpose1d: each element's kernel, `stride` on.

    x: (batch, n_in, length); w: (n_in, n_out, k); b: (n_out,) -> (batch, n_out, (length - 1) stride - 2 padding + k).
    padding is less than k. Raises as `conv1d`.
    """
    _check(x, w, b, 3, w.shape[-2], w.shape[0], "conv_transpose1d")
    (batch, n_in, length), (_, n_out, k) = x.shape, w.shape
    s = _number(x, "conv_transpose1d", "stride", stride, 1)
    p = _number(x, "conv_transpose1d", "padding", padding, 0)
    y = _transposed(x.reshape(batch, n_in, 1, length), w.reshape(n_in, n_out, 1, k), (1, s), (0, p), "conv_transpose1d")
    return _add_bias(y.reshape(batch, n_out, y.shape[-1]), b)


def conv_transpose2d(x: Tensor, w: Tensor, b: Tensor | None = None, *, stride: Pair = 1, padding: Pair = 0) -> Tensor:
    """The transpose of `conv2d`, as torch.nn.functional.conv_transpose2d.

    x: (batch, n_in, height, width); w: (n_in, n_out, k_height, k_width); b: (n_out,) -> (batch, n_out, height_out,
    width_out), sizes as of `conv_transpose1d`. Raises as `conv1d`.
    """
    _check(x, w, b, 4, w.shape[-3] if len(w.shape) > 2 else 0, w.shape[0], "conv_transpose2d")
    strides = _pair(x, "conv_transpose2d", "stride", stride, 1)
    return _add_bias(
        _transposed(x, w, strides, _pair(x, "conv_transpose2d", "padding", padding, 0), "conv_transpose2d"), b
    )


def _product(patches: Tensor, w: Tensor, groups: int, shape: tuple[int, ...]) -> Tensor:
    """Each group's patches (batch * groups, places..., k) with its kernels -> shape (batch, n_out, places...)."""
    batch, n_out = shape[:2]
    patches = patches.reshape(batch, groups, -1, patches.shape[-1])
    y = ops.mul_mat(w.reshape(groups, n_out // groups, patches.shape[-1]), patches)
    return y.T.reshape(*shape)


def _transposed(x: Tensor, w: Tensor, stride: tuple[int, int], padding: tuple[int, int], name: str) -> Tensor:
    """The convolution of x with zeros between its elements by the kernel turned around. ggml's own transposed
    convolution takes one image, and kernels of half precision."""
    n_in, n_out, *sizes = w.shape
    for p, k in zip(padding, sizes, strict=True):
        if p >= k:
            raise UsageError(f"{x.graph.here()}: {name}: padding {p} is not less than the kernel's size {k}")
    n = sizes[0] * sizes[1]
    backwards = x.graph.constant(f"backwards.{n}", np.eye(n, dtype=np.float32)[::-1])
    turned = ops.mul_mat(backwards, w.reshape(n_in * n_out, n)).reshape(n_in, n_out, *sizes)
    outside = sizes[0] - 1 - padding[0], sizes[1] - 1 - padding[1]
    return conv2d(_spread(x, stride), turned.permute(1, 0, 2, 3).cont(), padding=outside)


def _spread(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """x with stride - 1 zeros between neighbours."""
    if stride == (1, 1):
        return x
    (batch, n, height, width), (s1, s0) = x.shape, stride
    wide = ops.pad(x.reshape(batch * n, height, width, 1), shape=(batch * n, height, width, s0))
    rows = wide.reshape(batch * n, height, 1, width * s0)
    apart = ops.pad(rows, shape=(batch * n, height, s1, width * s0)).reshape(batch, n, height * s1, width * s0)
    return apart[..., : (height - 1) * s1 + 1, : (width - 1) * s0 + 1].cont()


def _add_bias(y: Tensor, b: Tensor | None) -> Tensor:
    return y if b is None else y + b.reshape(b.shape[0], *[1] * (len(y.shape) - 2))


# ---------------------------------------------------------------- checks


def _check(x: Tensor, w: Tensor, b: Tensor | None, rank: int, n_out: int, n_in: int, name: str) -> None:
    where = f"{x.graph.here()}: {name}: "
    for what, tensor in (("x", x), ("w", w)):
        if len(tensor.shape) != rank:
            raise ShapeError(f"{where}{what} = {tensor!r} has {len(tensor.shape)} axes, not {rank}")
    if x.shape[1] != n_in:
        raise ShapeError(f"{where}x = {x!r} has {x.shape[1]} channels, w = {w!r} takes {n_in}")
    if b is not None and b.shape != (n_out,):
        raise ShapeError(f"{where}b = {b!r} is not one number for each of {n_out} channels")


def _check_groups(x: Tensor, w: Tensor, groups: int, name: str) -> None:
    if not isinstance(groups, int) or groups < 1 or w.shape[0] % groups:
        where = f"{x.graph.here()}: {name}: "
        raise UsageError(f"{where}groups is {groups!r}, not a number that divides the {w.shape[0]} kernels")


def _named(stride: Pair, padding: Pair, dilation: Pair) -> tuple[tuple[str, Pair, int], ...]:
    """Each with its name and its least."""
    return (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1))


def _number(x: Tensor, name: str, what: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{x.graph.here()}: {name}: {what} is {value!r}, not a whole number from {least} on")
    return value


def _pair(x: Tensor, name: str, what: str, value: object, least: int) -> tuple[int, int]:
    values = value if isinstance(value, tuple) else (value, value)
    if len(values) != 2:
        raise UsageError(f"{x.graph.here()}: {name}: {what} is {value!r}, not one number or two")
    first, second = (_number(x, name, what, each, least) for each in values)
    return first, second
