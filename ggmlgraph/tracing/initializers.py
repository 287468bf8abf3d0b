"""First values of parameters: the same bytes for the same (seed, name), on any machine and in any order.

A model names an initializer where it declares a parameter; the graph writer streams its chunks into the file.
Normals are runtime/kernels/normal.c's: Box-Muller out of exactly rounded operations, so no C library and no vector
extension changes a bit of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import normal as normals
from ggmlgraph.errors import UsageError
from ggmlgraph.philox import philox

_CHUNK = 65536  # numbers made at a time: a chunk stays in the L2 cache


@dataclass(frozen=True)
class Initializer:
    """`spec` is the stable name that goes into the graph's metadata; the values are mean + std * normal."""

    spec: str
    mean: float = field(repr=False)
    std: float = field(repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std >= 0):
            raise UsageError(f"{self.spec}: std must be finite and not negative")

    def chunks(self, name: str, shape: tuple[int, ...], seed: int) -> Iterator[NDArray[np.float32]]:
        """The flat values of parameter `name`, row-major, at most 65536 float32 at a time."""
        n, generator = math.prod(shape), philox(seed, name)
        for start in range(0, n, _CHUNK):
            values = np.full(min(_CHUNK, n - start), self.mean, np.float32)
            if self.std:
                bits = generator.random_raw(values.size + values.size % 2)
                normals.fill(values, bits, self.mean, self.std)
            yield values

    def fill(self, name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
        """The whole of parameter `name`: float32 of the given shape."""
        values = np.empty(math.prod(shape), np.float32)
        start = 0
        for chunk in self.chunks(name, shape, seed):
            values[start : start + chunk.size] = chunk
            start += chunk.size
        return values.reshape(shape)


def zeros() -> Initializer:
    """All 0."""
    return Initializer("zeros", 0.0, 0.0)


def ones() -> Initializer:
    """All 1."""
    return Initializer("ones", 1.0, 0.0)


def normal(std: float) -> Initializer:
    """Normal with mean 0. Raises UsageError if `std` is negative or not finite."""
    return Initializer(f"normal({float(std)!r})", 0.0, float(std))


def residual(std: float, n_layer: int) -> Initializer:
    """Normal for the projections that write into the residual stream: std / sqrt(2 n_layer).

    Each layer adds two of them, so the stream's variance stays independent of depth: "a modified initialization
    which accounts for the accumulation on the residual path with model depth" (Radford et al. 2019, GPT-2, 2.3).
    Raises UsageError if `n_layer` < 1.
    """
    if n_layer < 1:
        raise UsageError(f"residual: n_layer must be at least 1, not {n_layer}")
    return Initializer(f"residual({float(std)!r}, {n_layer})", 0.0, float(std) / math.sqrt(2 * n_layer))
