"""First values of parameters: the same bytes for the same (seed, name), on any machine and in any order.

A model names an initializer where it declares a parameter; the graph writer streams its chunks into the file.
Normals are runtime/kernels/normal.c's: Box-Muller out of exactly rounded operations, so no C library and no vector
extension changes a bit of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggmlgraph.core import normal as normals
from ggmlgraph.errors import UsageError
from ggmlgraph.philox import philox

_CHUNK = 65536  # numbers made at a time: a chunk stays in the L2 cache


Values = Iterator[NDArray[np.float32]]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Initializer:
    """`spec` is the stable name that goes into the graph's metadata; `make` gives the flat values of a parameter."""

    spec: str
    make: Callable[[str, Sizes, int], Values] = field(repr=False)  # name, shape, seed: chunks of any length
    check: Callable[[Sizes], object] = field(repr=False, default=lambda shape: None)  # raises UsageError

    def chunks(self, name: str, shape: Sizes, seed: int) -> Values:
        """The flat values of parameter `name`, row-major, at most 65536 float32 at a time."""
        for values in self.make(name, shape, seed):
            yield from (values[at : at + _CHUNK] for at in range(0, values.size, _CHUNK))

    def fill(self, name: str, shape: Sizes, seed: int) -> NDArray[np.float32]:
        """The whole of parameter `name`: float32 of the given shape."""
        values = np.empty(math.prod(shape), np.float32)
        start = 0
        for chunk in self.chunks(name, shape, seed):
            values[start : start + chunk.size] = chunk
            start += chunk.size
        return values.reshape(shape)


# ---------------------------------------------------------------- streams of numbers


def _sizes(n: int) -> Iterator[int]:
    """Of the chunks of n numbers."""
    return (min(_CHUNK, n - start) for start in range(0, n, _CHUNK))


def _full(value: float, n: int) -> Values:
    return (np.full(size, value, np.float32) for size in _sizes(n))


def _normals(name: str, n: int, seed: int, std: float) -> Values:
    if not std:
        yield from _full(0.0, n)
        return
    generator = philox(seed, name)
    for size in _sizes(n):
        values = np.zeros(size, np.float32)
        normals.fill(values, generator.random_raw(size + size % 2), 0.0, std)
        yield values


def _uniforms(name: str, n: int, seed: int, low: float, high: float) -> Values:
    """low + (high - low) k / 2^24 with k from the upper bits of one word each."""
    generator = philox(seed, name)
    for size in _sizes(n):
        bits = generator.random_raw(size) >> np.uint64(40)
        yield (low + (high - low) * (bits.astype(np.float64) * 2.0**-24)).astype(np.float32)


def _truncated(name: str, n: int, seed: int, std: float, bound: float) -> Values:
    """The normals within the bound, of a stream that goes on until there are n."""
    generator = philox(seed, name)
    while n > 0:
        values = np.zeros(_CHUNK, np.float32)
        normals.fill(values, generator.random_raw(_CHUNK), 0.0, 1.0)
        values = values[np.abs(values) <= bound][:n] * np.float32(std)
        n -= values.size
        yield values


def _sum(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of the rows, always in the same order: halves are added, then halves of those."""
    while len(rows) > 1:
        half = len(rows) // 2
        rest = rows[2 * half :]
        rows = rows[:half] + rows[half : 2 * half]
        if len(rest):
            rows[0] += rest[0]
    result: NDArray[np.float64] = rows[0]
    return result


def _orthogonal(name: str, shape: Sizes, seed: int, gain: float) -> Values:
    """Q of the QR decomposition of a matrix of normals, R's diagonal being positive, times the gain.

    Column k of such a matrix, after the reflections before it, is again m - k independent normals (Stewart 1980), so
    the reflections are made of normals at once and applied to the identity, the last first. In float64, of sums,
    products, quotients and roots alone, each exactly rounded and in an order that no machine changes.
    """
    n_rows, n_columns = shape[0], math.prod(shape[1:])
    m, n = max(n_rows, n_columns), min(n_rows, n_columns)
    stream = np.concatenate([np.empty(0, np.float32), *_normals(name, m * n - n * (n - 1) // 2, seed, 1.0)])
    q, end = np.eye(m, n), stream.size
    signs = np.ones(n)
    for k in reversed(range(n)):
        v = stream[end - (m - k) : end].astype(np.float64)
        end -= m - k
        signs[k] = 1.0 if v[0] < 0 else -1.0
        v[0] -= signs[k] * np.sqrt(_sum((v * v)[:, None])[0])
        if (square := _sum((v * v)[:, None])[0]) > 0:
            block = q[k:, k:]
            block -= v[:, None] * (_sum(v[:, None] * block) * (2.0 / square))
    q = q * (signs * gain)
    yield (q if n_rows >= n_columns else q.T).astype(np.float32).reshape(-1)


# ---------------------------------------------------------------- what a model names


def _number(what: str, value: float, *, least: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        at_least = "" if least == -math.inf else " and not negative"
        raise UsageError(f"{what} must be finite{at_least}, not {value!r:.80}")
    return float(value)


def _normal(spec: str, std: float) -> Initializer:
    _number(f"{spec}: std", std, least=0.0)
    return Initializer(spec, lambda name, shape, seed: _normals(name, math.prod(shape), seed, std))


def _fans(spec: str, shape: Sizes) -> tuple[int, int]:
    """fan_in and fan_out as torch has them: axis 1 and axis 0, each times the product of the axes behind."""
    if len(shape) < 2:
        raise UsageError(f"{spec} needs two axes or more, (n_out, n_in, ...), not {len(shape)}")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _scaled(spec: str, std_of: Callable[[int, int], float], *, uniform: bool) -> Initializer:
    """Of a standard deviation that follows from fan_in and fan_out."""

    def make(name: str, shape: Sizes, seed: int) -> Values:
        std = std_of(*_fans(spec, shape))
        if not uniform:
            return _normals(name, math.prod(shape), seed, std)
        bound = math.sqrt(3.0) * std
        return _uniforms(name, math.prod(shape), seed, -bound, bound)

    return Initializer(spec, make, lambda shape: _fans(spec, shape))


def zeros() -> Initializer:
    """All 0."""
    return Initializer("zeros", lambda name, shape, seed: _full(0.0, math.prod(shape)))


def ones() -> Initializer:
    """All 1."""
    return Initializer("ones", lambda name, shape, seed: _full(1.0, math.prod(shape)))


def full(value: float) -> Initializer:
    """All `value`. Raises UsageError if it is not finite."""
    value = _number("full: the value", value)
    return Initializer(f"full({value!r})", lambda name, shape, seed: _full(value, math.prod(shape)))


def normal(std: float) -> Initializer:
    """Normal with mean 0. Raises UsageError if `std` is negative or not finite."""
    return _normal(f"normal({float(std)!r})", float(std))


def truncated_normal(std: float, bound: float = 2.0) -> Initializer:
    """Normal with mean 0, values beyond bound * std drawn again; std is that of the normal before.

    jax.nn.initializers.truncated_normal; torch.nn.init.trunc_normal_ with b = -a = bound * std. Raises UsageError.
    """
    std, bound = _number("truncated_normal: std", std, least=0.0), _number("truncated_normal: bound", bound, least=0.1)
    return Initializer(
        f"truncated_normal({std!r}, {bound!r})",
        lambda name, shape, seed: _truncated(name, math.prod(shape), seed, std, bound),
    )


def uniform(low: float, high: float) -> Initializer:
    """Uniform from low to high. Raises UsageError unless both are finite and low <= high."""
    low, high = _number("uniform: low", low), _number("uniform: high", high)
    if low > high:
        raise UsageError(f"uniform: low {low} is above high {high}")
    return Initializer(
        f"uniform({low!r}, {high!r})", lambda name, shape, seed: _uniforms(name, math.prod(shape), seed, low, high)
    )


def xavier_normal(gain: float = 1.0) -> Initializer:
    """Normal, std = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010); fans as in torch: a matrix is
    (n_out, n_in). torch.nn.init.xavier_normal_. Raises UsageError, also where a parameter has no two axes."""
    gain = _number("xavier_normal: gain", gain, least=0.0)
    return _scaled(f"xavier_normal({gain!r})", lambda i, o: gain * math.sqrt(2.0 / (i + o)), uniform=False)


def xavier_uniform(gain: float = 1.0) -> Initializer:
    """Uniform within +-gain sqrt(6 / (fan_in + fan_out)). torch.nn.init.xavier_uniform_; see `xavier_normal`."""
    gain = _number("xavier_uniform: gain", gain, least=0.0)
    return _scaled(f"xavier_uniform({gain!r})", lambda i, o: gain * math.sqrt(2.0 / (i + o)), uniform=True)


def kaiming_normal(a: float = 0.0) -> Initializer:
    """Normal, std = sqrt(2 / (1 + a^2) / fan_in) for leaky_relu of slope a, 0: relu (He et al. 2015).

    torch.nn.init.kaiming_normal_, whose defaults these are. Raises UsageError as `xavier_normal`.
    """
    a = _number("kaiming_normal: a", a)
    return _scaled(f"kaiming_normal({a!r})", lambda i, o: math.sqrt(2.0 / (1.0 + a * a) / i), uniform=False)


def kaiming_uniform(a: float = 0.0) -> Initializer:
    """Uniform within +-sqrt(6 / (1 + a^2) / fan_in). torch.nn.init.kaiming_uniform_; see `kaiming_normal`."""
    a = _number("kaiming_uniform: a", a)
    return _scaled(f"kaiming_uniform({a!r})", lambda i, o: math.sqrt(2.0 / (1.0 + a * a) / i), uniform=True)


def orthogonal(gain: float = 1.0) -> Initializer:
    """Rows or columns, whichever are fewer, that are orthonormal, times gain: (n, m, ...), the axes behind the first
    taken as one (Saxe et al. 2014). torch.nn.init.orthogonal_. Raises UsageError as `xavier_normal`."""
    gain = _number("orthogonal: gain", gain)
    spec = f"orthogonal({gain!r})"
    make = lambda name, shape, seed: _orthogonal(name, shape, seed, gain)  # noqa: E731
    return Initializer(spec, make, lambda shape: _fans(spec, shape))


def from_array(array: ArrayLike) -> Initializer:
    """These values, float32, whatever the seed; the parameter must have their shape. Raises UsageError if they are no
    numbers, or too large for float32."""
    try:
        given = np.array(array)
    except ValueError as error:
        raise UsageError(f"from_array: {error}") from None
    if given.dtype.kind not in "biuf":
        raise UsageError(f"from_array: {given.dtype} are no numbers")
    with np.errstate(over="ignore"):
        values = given.astype("<f4")
    if (np.isfinite(given) & ~np.isfinite(values)).any():
        raise UsageError("from_array: a number is too large for float32")
    spec = f"from_array({blake2b(values.tobytes(), digest_size=8).hexdigest()})"

    def check(shape: Sizes) -> None:
        if tuple(shape) != values.shape:
            raise UsageError(f"from_array: the array is {list(values.shape)}, the parameter {list(shape)}")

    return Initializer(spec, lambda name, shape, seed: iter([values.reshape(-1)]), check)


def residual(std: float, n_layer: int) -> Initializer:
    """Normal for the projections that write into the residual stream: std / sqrt(2 n_layer).

    Each layer adds two of them, so the stream's variance stays independent of depth: "a modified initialization
    which accounts for the accumulation on the residual path with model depth" (Radford et al. 2019, GPT-2, 2.3).
    Raises UsageError if `n_layer` < 1.
    """
    if n_layer < 1:
        raise UsageError(f"residual: n_layer must be at least 1, not {n_layer}")
    return _normal(f"residual({float(std)!r}, {n_layer})", float(std) / math.sqrt(2 * n_layer))
