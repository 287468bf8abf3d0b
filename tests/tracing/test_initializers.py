"""Initializers: reproducible bytes, right distributions."""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
import pytest

from ggmlgraph.errors import UsageError
from ggmlgraph.philox import philox
from ggmlgraph.tracing.initializers import (
    Initializer,
    from_array,
    full,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    orthogonal,
    residual,
    truncated_normal,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)


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
        (uniform(-1, 2), "w", 0, "2fc8863723626853"),
        (truncated_normal(0.02), "w", 0, "1eb309eefebde96a"),
        (xavier_normal(), "w", 1, "5203180127b89758"),
        (xavier_uniform(), "w", 0, "b7ffb7bf947c04ac"),
        (kaiming_normal(), "w", 0, "4ca15b43a83e9948"),
        (kaiming_uniform(), "w", 0, "f632a955bec1f29e"),
        (orthogonal(), "w", 0, "6801910cf32f34a0"),
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
        (uniform(-1, 0.5), "uniform(-1.0, 0.5)"),
        (truncated_normal(0.02), "truncated_normal(0.02, 2.0)"),
        (xavier_normal(), "xavier_normal(1.0)"),
        (xavier_uniform(2), "xavier_uniform(2.0)"),
        (kaiming_normal(), "kaiming_normal(0.0)"),
        (kaiming_uniform(0.1), "kaiming_uniform(0.1)"),
        (orthogonal(), "orthogonal(1.0)"),
        (full(3), "full(3.0)"),
        (from_array([1, 2]), "from_array(0a108fd7267a5566)"),
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


# ---------------------------------------------------------------- those that follow from the shape


def test_standard_deviations_and_bounds_are_torch_s() -> None:
    fan_in, fan_out = 200 * 3, 300 * 3
    for initializer, std, bound in (
        (uniform(-0.5, 1.5), 2 / math.sqrt(12), 1.5),
        (xavier_normal(2.0), 2 * math.sqrt(2 / (fan_in + fan_out)), None),
        (xavier_uniform(), math.sqrt(2 / (fan_in + fan_out)), math.sqrt(6 / (fan_in + fan_out))),
        (kaiming_normal(), math.sqrt(2 / fan_in), None),
        (kaiming_uniform(math.sqrt(5)), math.sqrt(1 / 3 / fan_in), math.sqrt(1 / fan_in)),
        (truncated_normal(0.1), 0.1 * 0.8796, 0.2),
    ):
        values = initializer.fill("w", (300, 200, 3), 0).astype(np.float64)
        assert values.std() == pytest.approx(std, rel=0.01)
        if bound:
            assert bound * 0.999 < np.abs(values).max() <= bound * (1 + 1e-6)


def test_uniform_and_truncated_values_are_even_over_their_range() -> None:
    """Kolmogorov-Smirnov at the 0.1 % level."""
    n = 100_000
    cut = math.erf(2 / math.sqrt(2))
    expected = np.array([0.5 + 0.5 * math.erf(v / math.sqrt(2)) / cut for v in np.linspace(-2, 2, 4001)])
    for initializer, grid, distribution in (
        (uniform(0, 1), np.linspace(0, 1, 1001), np.linspace(0, 1, 1001)),
        (truncated_normal(1.0), np.linspace(-2, 2, 4001), expected),
    ):
        found = np.searchsorted(np.sort(initializer.fill("w", (n,), 3)), grid) / n
        assert np.abs(found - distribution).max() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("shape", [(40, 40), (60, 20), (20, 60), (12, 3, 2, 2), (1, 1), (2, 1)])
def test_orthogonal_rows_or_columns_are_orthonormal(shape: tuple[int, ...]) -> None:
    q = orthogonal(3.0).fill("w", shape, 0).astype(np.float64).reshape(shape[0], -1) / 3
    small = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    np.testing.assert_allclose(small, np.eye(len(small)), atol=3e-7)


def test_orthogonal_matrices_lie_evenly_on_the_sphere() -> None:
    """Moments of the entries of Haar's measure: mean 0, E[q^2] = 1/n, E[q^4] = 3 / (n (n + 2)); traces E[t^2] = 1."""
    n = 6
    q = np.stack([orthogonal().fill(f"w{k}", (n, n), 0).astype(np.float64) for k in range(4000)])
    for power, expected in ((1, 0.0), (2, 1 / n), (4, 3 / (n * (n + 2)))):
        assert np.abs((q**power).mean(0) - expected).max() < 5 * (q**power).std() / math.sqrt(len(q))
    assert (np.trace(q, axis1=1, axis2=2) ** 2).mean() == pytest.approx(1, abs=0.12)
    assert np.abs(np.linalg.det(q).mean()) < 0.08


def test_arrays_are_themselves() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(from_array(values).fill("w", (2, 3), 0), values)
    assert (full(-2.5).fill("w", (70000,), 0) == -2.5).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(1, 0), "low 1.0 is above high 0.0"),
        (lambda: uniform(0, math.inf), "uniform: high must be finite"),
        (lambda: full(math.nan), "must be finite"),
        (lambda: full("a"), "must be finite"),  # type: ignore[arg-type]
        (lambda: truncated_normal(-1), "std must be finite and not negative"),
        (lambda: truncated_normal(1, 0), "bound must be finite"),
        (lambda: xavier_uniform(-1), "gain must be finite and not negative"),
        (lambda: kaiming_normal(math.inf), "a must be finite"),
        (lambda: from_array(["a"]), "are no numbers"),
        (lambda: from_array([[1], [2, 3]]), "from_array"),
        (lambda: from_array(1e39), "too large for float32"),
    ],
)
def test_an_initializer_that_makes_no_sense_is_refused(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]
