"""Initializers: reproducible bytes, right distributions."""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
import pytest

from ggmlgraph.errors import UsageError
from ggmlgraph.philox import philox
from ggmlgraph.tracing.initializers import Initializer, normal, ones, residual, zeros


def digest(values: np.ndarray) -> str:
    return blake2b(values.astype("<f4").tobytes(), digest_size=8).hexdigest()


def test_generator_is_philox4x64_10() -> None:
    """The known answer of Random123 (kat_vectors: counter 0, key 0); numpy counts up before it draws."""
    words = np.random.Philox(key=0, counter=2**256 - 1).random_raw(4)
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert words.tolist() == known


@pytest.mark.parametrize(
    ("initializer", "name", "seed", "golden"),
    [
        (normal(0.02), "token_embd", 0, "fbbf413f9fd65954"),
        (normal(0.02), "token_embd", 1, "76699393edad6f14"),
        (normal(1.0), "output", 2**64 - 1, "72e114d87e6a1da5"),
        (residual(0.02, 12), "blk.0.attn_output", 0, "885c2f8a0da076b0"),
    ],
)
def test_bytes_never_change(initializer: Initializer, name: str, seed: int, golden: str) -> None:
    assert digest(initializer.fill(name, (317, 256), seed)) == golden


def test_first_normals_never_change() -> None:
    golden = ["0x1.e908a60000000p-1", "-0x1.3be8160000000p+0", "-0x1.6b2c280000000p-4", "0x1.452fd40000000p+0"]
    assert [float(x).hex() for x in normal(1.0).fill("w", (4,), 0)] == golden


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5), (65536,), (65537,), (2, 65536)])
def test_chunks_are_the_filled_tensor(shape: tuple[int, ...]) -> None:
    initializer = normal(0.5)
    chunks = [np.empty(0, np.float32), *initializer.chunks("w", shape, 3)]
    assert np.concatenate(chunks).tolist() == initializer.fill("w", shape, 3).ravel().tolist()


def test_values_are_float32_of_the_shape() -> None:
    values = normal(0.5).fill("w", (3, 4, 5), 0)
    assert (values.shape, values.dtype) == ((3, 4, 5), np.dtype(np.float32))


def test_a_longer_tensor_starts_with_the_shorter_one() -> None:
    assert normal(1.0).fill("w", (70001,), 0)[:999].tolist() == normal(1.0).fill("w", (999,), 0).tolist()


def test_names_give_independent_values() -> None:
    a, b = (normal(1.0).fill(name, (100_000,), 0).astype(np.float64) for name in ("blk.0.w", "blk.1.w"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(a.size)


def test_seeds_give_different_values() -> None:
    assert not np.array_equal(normal(1.0).fill("w", (8,), 0), normal(1.0).fill("w", (8,), 1))


def test_normals_follow_the_normal_distribution() -> None:
    """Kolmogorov-Smirnov: the largest distance to the distribution function, at the 0.1 % level."""
    x = np.sort(normal(1.0).fill("w", (200_000,), 0).astype(np.float64))
    expected = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    rank = np.arange(1, x.size + 1) / x.size
    assert np.abs(expected - rank).max() < 1.95 / math.sqrt(x.size)


def test_neighbouring_normals_are_uncorrelated() -> None:
    x = normal(1.0).fill("w", (200_000,), 0).astype(np.float64)
    assert abs(np.corrcoef(x[0::2], x[1::2])[0, 1]) < 4 / math.sqrt(x.size / 2)


def test_std_scales_exactly() -> None:
    assert np.array_equal(normal(0.25).fill("w", (999,), 0), normal(1.0).fill("w", (999,), 0) * np.float32(0.25))


def test_residual_divides_by_the_root_of_two_per_layer() -> None:
    assert np.array_equal(residual(0.02, 8).fill("w", (99,), 0), normal(0.02 / 4).fill("w", (99,), 0))


def test_zeros_are_zero() -> None:
    assert not zeros().fill("b", (70000,), 0).any()


def test_ones_are_one() -> None:
    assert (ones().fill("g", (70000,), 0) == 1).all()


@pytest.mark.parametrize(
    ("initializer", "spec"),
    [
        (zeros(), "zeros"),
        (ones(), "ones"),
        (normal(0.02), "normal(0.02)"),
        (normal(1), "normal(1.0)"),
        (residual(0.02, 12), "residual(0.02, 12)"),
    ],
)
def test_spec_names_the_initializer(initializer: Initializer, spec: str) -> None:
    assert initializer.spec == spec


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_std_must_be_finite_and_not_negative(std: float) -> None:
    with pytest.raises(UsageError, match="std"):
        normal(std)


def test_residual_needs_a_layer() -> None:
    with pytest.raises(UsageError, match="n_layer"):
        residual(0.02, 0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_is_64_bits(seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        philox(seed, "w")
