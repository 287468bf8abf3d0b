"""Cases of convolutions, pooling and group_norm, and what they are in float64; for tests/tracing and tests/peers.

All functions take batches of images (batch, n, height, width), or of signals (batch, n, length).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

import ggmlgraph as gg
from ggmlgraph.core.graph import CoreGraph

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """gg.NAME(*operands, *arguments, **keywords)."""

    name: str
    shapes: tuple[Shape, ...]
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)

    def operands(self) -> list[Array]:
        """Float32, distinct numbers."""
        rng = np.random.default_rng(len(self.name) + sum(map(len, self.shapes)))
        return [rng.normal(size=shape).astype(np.float32) for shape in self.shapes]


def _conv(name: str, x: Shape, w: Shape, b: int = 0, **keywords: Any) -> Case:
    return Case(name, (x, w, *([(b,)] if b else [])), keywords=keywords)


CASES = [
    _conv("conv1d", (2, 3, 9), (4, 3, 3), 4),
    _conv("conv1d", (1, 1, 5), (1, 1, 1)),
    _conv("conv1d", (2, 4, 17), (6, 2, 3), 6, stride=2, padding=3, dilation=2, groups=2),
    _conv("conv1d", (3, 5, 8), (5, 1, 8), groups=5),
    _conv("conv2d", (2, 3, 7, 6), (4, 3, 3, 3), 4),
    _conv("conv2d", (1, 1, 1, 1), (2, 1, 1, 1), 2),
    _conv("conv2d", (2, 3, 9, 11), (4, 3, 3, 2), 4, stride=(2, 3), padding=(1, 2), dilation=(3, 2)),
    _conv("conv2d", (3, 4, 6, 6), (8, 1, 3, 3), stride=2, padding=1, groups=4),
    _conv("conv_transpose1d", (2, 3, 5), (3, 4, 4), 4, stride=3, padding=2),
    _conv("conv_transpose1d", (1, 1, 1), (1, 1, 1)),
    _conv("conv_transpose2d", (2, 3, 4, 5), (3, 2, 3, 3), 2),
    _conv("conv_transpose2d", (2, 3, 4, 5), (3, 2, 4, 3), 2, stride=(2, 3), padding=(1, 2)),
    Case("max_pool1d", ((2, 3, 9),), (2,)),
    Case("max_pool1d", ((2, 3, 10),), (3, 2, 1)),
    Case("avg_pool1d", ((2, 3, 10),), (4, 3, 2)),
    Case("max_pool2d", ((2, 3, 8, 6),), (2,)),
    Case("max_pool2d", ((2, 3, 9, 7),), ((3, 2), (2, 1), (1, 1))),
    Case("avg_pool2d", ((2, 3, 8, 6),), (2,)),
    Case("avg_pool2d", ((2, 3, 9, 7),), (3, (2, 3), 1)),
    Case("group_norm", ((2, 6), (6,), (6,)), keywords={"n_groups": 2}),
    Case("group_norm", ((3, 4, 7),), keywords={"n_groups": 4, "eps": 1e-3}),
    Case("group_norm", ((2, 6, 3, 5), (6,), (6,)), keywords={"n_groups": 3}),
]


def save(case: Case, path: Path, dialect: str = "v2") -> None:
    """A file of the case, its operands parameters `operand.0`, ..., its result `y`; the loss is the sum of y times the
    leaf `g` and the input `one`."""

    def loss(p: gg.Params, one: Annotated[gg.Tensor, gg.Float(1)]) -> gg.Tensor:
        operands = [p(f"operand.{i}", *shape) for i, shape in enumerate(case.shapes)]
        x, *rest = operands
        function = getattr(gg, case.name)
        if case.name == "group_norm":
            keywords = dict(case.keywords)
            n_groups, names = keywords.pop("n_groups"), ("gain", "bias")
            y = function(x, n_groups, **dict(zip(names, rest, strict=False)), **keywords)
        else:
            y = function(x, *rest, *case.arguments, **case.keywords)
        rng = np.random.default_rng(1)
        g = p.graph.constant("g", rng.normal(size=[int(n) for n in y.shape]).astype(np.float32))
        return (y.named("y") * g).sum() * one

    graph = gg.trace(loss)
    values = {f"operand.{i}": (lambda v=v: [v]) for i, v in enumerate(case.operands())}
    graph.save(path, weights=values, dialect=dialect)


def g_of(graph: CoreGraph) -> Array:
    """What the loss multiplies y by."""
    tensor_id = graph.find("g")
    return np.frombuffer(graph.leaf_bytes(tensor_id), np.float32).reshape(graph.shape(tensor_id)).copy()


# ---------------------------------------------------------------- in float64


def float64(case: Case, operands: list[Array]) -> Array:
    """The result."""
    x, *rest = (np.asarray(each, np.float64) for each in operands)
    if case.name == "group_norm":
        return _group_norm(x, *rest, **case.keywords)
    if not case.name.endswith("1d"):
        return _FUNCTIONS[case.name[:-2]](x, *rest, *case.arguments, **case.keywords)
    rest = [each[..., None, :] if each.ndim == 3 else each for each in rest]
    neutral = {"stride": 1, "padding": 0, "dilation": 1}
    arguments = [(least, value) for least, value in zip((1, 1, 0), case.arguments, strict=False)]
    keywords = {k: (neutral[k], v) if k in neutral else v for k, v in case.keywords.items()}
    return np.squeeze(_FUNCTIONS[case.name[:-2]](x[:, :, None], *rest, *arguments, **keywords), 2)


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _conv64(
    x: Array, w: Array, b: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Array:
    (s1, s0), (p1, p0), (d1, d0) = _pair(stride), _pair(padding), _pair(dilation)
    x = np.pad(x, ((0, 0), (0, 0), (p1, p1), (p0, p0)))
    k1, k0 = (w.shape[2] - 1) * d1 + 1, (w.shape[3] - 1) * d0 + 1
    n = [(x.shape[2] - k1) // s1 + 1, (x.shape[3] - k0) // s0 + 1]
    y, per, out = np.zeros((len(x), len(w), *n)), w.shape[1], len(w) // groups
    for o in range(len(w)):
        channels = x[:, o // out * per : (o // out + 1) * per]
        for i in range(n[0]):
            for j in range(n[1]):
                patch = channels[:, :, i * s1 : i * s1 + k1 : d1, j * s0 : j * s0 + k0 : d0]
                y[:, o, i, j] = (patch * w[o]).sum((1, 2, 3))
    return y if b is None else y + b[:, None, None]


def _conv_transpose64(x: Array, w: Array, b: Array | None = None, stride: Any = 1, padding: Any = 0) -> Array:
    (s1, s0), (p1, p0), (k1, k0) = _pair(stride), _pair(padding), w.shape[2:]
    y = np.zeros((len(x), w.shape[1], (x.shape[2] - 1) * s1 + k1, (x.shape[3] - 1) * s0 + k0))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            y[:, :, i * s1 : i * s1 + k1, j * s0 : j * s0 + k0] += np.einsum("nc,cohw->nohw", x[:, :, i, j], w)
    y = y[:, :, p1 : y.shape[2] - p1, p0 : y.shape[3] - p0]
    return y if b is None else y + b[:, None, None]


def _pool64(outside: float, x: Array, size: Any, stride: Any = None, padding: Any = 0) -> Array:
    (k1, k0), (p1, p0) = _pair(size), _pair(padding)
    s1, s0 = _pair(size if stride is None else stride)
    x = np.pad(x, ((0, 0), (0, 0), (p1, p1), (p0, p0)), constant_values=outside)
    n = [(x.shape[2] - k1) // s1 + 1, (x.shape[3] - k0) // s0 + 1]
    windows = [[x[:, :, i * s1 : i * s1 + k1, j * s0 : j * s0 + k0] for j in range(n[1])] for i in range(n[0])]
    reduce = np.mean if outside == 0 else np.max
    return np.stack([np.stack([reduce(each, (2, 3)) for each in row], -1) for row in windows], -2)


def _group_norm(
    x: Array, gain: Array | None = None, bias: Array | None = None, *, n_groups: int, eps: float = 1e-5
) -> Array:
    grouped = x.reshape(len(x), n_groups, -1)
    y = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + eps)
    y, places = y.reshape(x.shape), (1,) * (x.ndim - 2)
    y = y if gain is None else y * gain.reshape(-1, *places)
    return y if bias is None else y + bias.reshape(-1, *places)


_FUNCTIONS: dict[str, Any] = {
    "conv": _conv64,
    "conv_transpose": _conv_transpose64,
    "max_pool": lambda *a, **k: _pool64(-np.inf, *a, **k),
    "avg_pool": lambda *a, **k: _pool64(0.0, *a, **k),
}
