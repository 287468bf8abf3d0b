"""First values of parameters: the same bytes for the same (seed, name), on any machine and in any order.

A model names an initializer where it declares a parameter; the graph writer streams its chunks into the file.
Normals are Box-Muller in float64 out of exactly rounded operations only (+ - * / sqrt and bit moves). Library
logarithms and cosines differ in their last bit between C libraries and vector extensions, so log, sin and cos
are polynomials here, fdlibm's (Sun Microsystems, e_log.c, k_sin.c, k_cos.c), good to about 1e-16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import UsageError
from ggmlgraph.philox import philox

_CHUNK = 65536  # numbers made at a time: the float64 temporaries stay in the L2 cache

_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_LOG = (  # of 2 atanh(s) - 2 s, in s^2, s^4 ...
    "0x1.5555555555593p-1", "0x1.999999997fa04p-2", "0x1.2492494229359p-2", "0x1.c71c51d8e78afp-3",
    "0x1.7466496cb03dep-3", "0x1.39a09d078c69fp-3", "0x1.2f112df3e5244p-3",
)  # fmt: skip
_SIN = (
    "-0x1.5555555555549p-3", "0x1.111111110f8a6p-7", "-0x1.a01a019c161d5p-13",
    "0x1.71de357b1fe7dp-19", "-0x1.ae5e68a2b9cebp-26", "0x1.5d93a5acfd57cp-33",
)  # fmt: skip
_COS = (
    "0x1.555555555554cp-5", "-0x1.6c16c16c15177p-10", "0x1.a01a019cb1590p-16",
    "-0x1.27e4f809c52adp-22", "0x1.1ee9ebdb4b1c4p-29", "-0x1.8fae9be8838d4p-37",
)  # fmt: skip


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
        n = math.prod(shape)
        normals = _normals(name, n, seed) if self.std else None
        for start in range(0, n, _CHUNK):
            if normals is None:
                yield np.full(min(_CHUNK, n - start), self.mean, np.float32)
            else:
                yield (self.mean + self.std * next(normals)).astype(np.float32)

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


def _normals(name: str, n: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """`n` standard normals in chunks; the i-th does not depend on n."""
    generator = philox(seed, name)
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        raw = generator.random_raw(size + size % 2)
        yield _box_muller(raw[0::2], raw[1::2])[:size]


def _box_muller(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Two normals out of each pair of 64-bit words: float64 (2 n,).

    The first word is the radius, by 53 bits. The second is the angle: 53 bits place it in the quarter turn around
    0, where the polynomials hold; its lowest two bits choose the quarter.
    """
    uniform = ((first >> 11) + 1).astype(np.float64) * 2.0**-53  # (0, 1]: its logarithm is finite
    radius = np.sqrt(-2.0 * _log(uniform))
    radius = np.where(second & 2, -radius, radius)
    turn = ((second >> 11).astype(np.float64) * 2.0**-53 - 0.5) * (math.pi / 2)
    sin, cos = _sin(turn), _cos(turn)
    swap = (second & 1).astype(np.bool_)
    normals = np.empty(2 * first.size)
    normals[0::2] = radius * np.where(swap, sin, cos)
    normals[1::2] = radius * np.where(swap, cos, sin)
    return normals


def _polynomial(x: NDArray[np.float64], coefficients: tuple[str, ...]) -> NDArray[np.float64]:
    """c0 + c1 x + c2 x^2 + ... by Horner's rule, coefficients as hexadecimal floats."""
    value = np.full_like(x, float.fromhex(coefficients[-1]))
    for coefficient in reversed(coefficients[:-1]):
        value *= x
        value += float.fromhex(coefficient)
    return value


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of normal numbers x > 0: x = 2^k (1 + f), s = f / (2 + f), log(1 + f) = 2 atanh(s)."""
    bits = x.view(np.uint64)
    k = (bits >> 52).astype(np.float64) - 1023.0
    mantissa = (bits & 0x000F_FFFF_FFFF_FFFF | 0x3FF0_0000_0000_0000).view(np.float64)  # [1, 2)
    high = mantissa > math.sqrt(2)
    f = np.where(high, mantissa * 0.5, mantissa) - 1.0
    k += high
    s = f / (2.0 + f)
    z = s * s
    half_square = 0.5 * f * f
    rest = s * (half_square + z * _polynomial(z, _LOG))
    return k * _LN2_HIGH - ((half_square - (rest + k * _LN2_LOW)) - f)


def _sin(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sine for |x| <= pi/4."""
    z = x * x
    return x + x * z * _polynomial(z, _SIN)


def _cos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine for |x| <= pi/4."""
    z = x * x
    return 1.0 - (0.5 * z - z * z * _polynomial(z, _COS))
