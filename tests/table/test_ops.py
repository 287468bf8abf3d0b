"""Every op of the table on every ISA level this machine has: forward and gradient against float64 numpy.

A bound is on the largest error, never the mean, and a value that is not finite must be so in the reference too.
Gradients are compared with central differences of the float64 reference, elementwise and in random directions.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from opcheck import EPS32, as_float64, assert_within, build, gradients, written_operands
from reference import NO_SAMPLE_GRADIENT, REFERENCE, SAMPLES, WRITES, Sample

from ggmlgraph.core.levels import isa_levels
from ggmlgraph.table.op import TABLE

LINEAR = {  # sums of products: the error is bounded by what the magnitudes add up to
    "mul_mat", "mul_mat_back", "mul_mat_id", "mul_mat_id_back", "mul_mat_id_rows_back", "out_prod", "sum", "sum_rows",
    "mean", "repeat_back", "sum_products", "upscale_back", "view_back", "get_rows_back", "add_rows", "sum_sqr",
}  # fmt: skip
PRODUCTS = {"mul_mat", "mul_mat_back", "mul_mat_id", "mul_mat_id_back", "mul_mat_id_rows_back", "out_prod"}
NORMALISING = {
    "hardswish_back",  # not in proportion where its terms cancel
    "norm", "norm_back", "norm_gain", "norm_gain_back", "rms_norm", "rms_norm_back", "rms_norm_gain",
    "rms_norm_gain_back", "group_norm", "group_norm_back",
    "soft_max", "soft_max_back", "soft_max_scaled_back", "attention", "attention_back",
    "flash_attn_ext", "flash_attn_ext_back", "conv_transpose_1d", "conv_transpose_2d", "conv_transpose_kernel_back",
    "conv_transpose_data_back", "im2col_back", "pool_1d", "pool_2d", "pool_1d_back", "pool_2d_back",
    "cached_attention", "rope", "rope_back",
    "timestep_embedding", "timestep_embedding_back", "cross_entropy", "cross_entropy_back",
    "linear_cross_entropy", "soft_cross_entropy", "soft_cross_entropy_back", "soft_cross_entropy_grad", "adamw",
    "sgd", "sgd_momentum", "lion", "momentum", "newton_schulz", "adafactor", "adafactor_whole", "schedule_free",
    "ema", "muon", "normuon",
    "opt_step_adamw",
}  # fmt: skip
N_ELEMENTS, N_DIRECTIONS = 12, 2  # differences taken per operand

LEVELS = isa_levels()
LEVELS_SHARE = max(map(len, SAMPLES.values()))  # samples of one op: what the reference computes is kept for its levels
OPS = [op for op, samples in SAMPLES.items() if samples]


def finite_case(sample: Sample) -> bool:
    """Random operands; for exp not so large that one term of the sum hides the others in the difference."""
    largest = 10 if sample.op == "exp" else np.inf
    return all(o is None or (o.kind != "values" and o.high <= largest) for o in sample.operands)


def trained_operands(sample: Sample) -> frozenset[int]:
    """Float operands the op has a derivative for."""
    op = TABLE[sample.op]
    if op.vjp is None or op.name in NO_SAMPLE_GRADIENT:
        return frozenset()
    skipped = {
        "mask", "positions", "freq_factors", "ids", "targets", "weights", "labels", *op.writes, *op.layouts,
    }  # fmt: skip
    return frozenset(
        k
        for k, o in enumerate(sample.operands)
        if o is not None and o.kind in ("f32", "distinct") and op.sources[k] not in skipped
    )


def differentiable(sample: Sample) -> bool:
    """Whether the sample has a derivative, and all memory that it needs."""
    whole = len(written_operands(sample)) == len(TABLE[sample.op].writes)
    return whole and bool(trained_operands(sample)) and finite_case(sample)


DIFFERENTIABLE = {op: found for op, samples in SAMPLES.items() if (found := [*filter(differentiable, samples)])}


def bound(sample: Sample, values: list[Any], expected: Any) -> Any:
    """The largest error allowed for each element of the result."""
    if sample.op in LINEAR:
        magnitudes = [abs(v) if v is not None and v.dtype.kind == "f" else v for v in values]
        terms = max(1, max(v.size for v in values if v is not None) // max(1, expected.size))
        if sample.op in PRODUCTS:
            terms = max(values[0].shape + values[1].shape)
        return 2.0 * np.sqrt(terms) * EPS32 * REFERENCE[sample.op](*magnitudes, **sample.keywords()) + 1e-7
    if sample.op in NORMALISING:
        finite = np.abs(expected[np.isfinite(expected)])
        return 1e-5 * np.abs(expected) + 2e-6 * max(1.0, finite.max(initial=0.0))
    return 2e-6 * np.abs(expected) + 1e-7


@lru_cache(LEVELS_SHARE)
def reference(sample: Sample) -> tuple[Any, Any]:
    """The result, and the largest error allowed for each element of it."""
    values = as_float64(sample.arrays())
    with np.errstate(all="ignore"):
        expected = np.asarray(REFERENCE[sample.op](*values, **sample.keywords()))
        return expected, bound(sample, values, expected)


@lru_cache(LEVELS_SHARE)
def differences(sample: Sample) -> tuple[Any, list[tuple[int, Any, float]]]:
    """Weights for the result's elements, and how their sum changes: (operand, direction in it, derivative)."""
    rng = np.random.default_rng(zlib.crc32(str(sample).encode()))
    exact = as_float64(sample.arrays())
    weights = rng.uniform(-1, 1, np.size(REFERENCE[sample.op](*exact, **sample.keywords())))

    def loss(k: int, direction: Any, step: float) -> float:
        moved = [v + step * direction if i == k else v for i, v in enumerate(exact)]
        y = np.ravel(REFERENCE[sample.op](*moved, **sample.keywords()))
        finite = np.isfinite(y)
        return float((y[finite] * weights[finite]).sum())

    step = 1e-6
    return weights, [
        (k, direction, (loss(k, direction, step) - loss(k, direction, -step)) / (2 * step))
        for k in trained_operands(sample)
        for direction in directions(exact[k].shape, rng)
    ]


def directions(shape: tuple[int, ...], rng: Any) -> Any:
    """Single elements, then random directions through all of them."""
    n = int(np.prod(shape))
    for i in rng.permutation(n)[:N_ELEMENTS]:
        unit = np.zeros(n)
        unit[i] = 1.0
        yield unit.reshape(shape)
    for _ in range(N_DIRECTIONS):
        yield rng.uniform(-1, 1, shape)


@pytest.mark.parametrize("op", TABLE)
def test_every_op_has_a_reference_and_samples(op: str) -> None:
    assert op in REFERENCE
    assert len(SAMPLES[op]) >= 1


@pytest.mark.parametrize("op", [o.name for o in TABLE.values() if o.ggml])
def test_every_op_a_file_can_hold_has_a_derivative_or_says_that_it_has_none(op: str) -> None:
    backward = op.endswith(("_back", "_grad"))  # helpers of first derivatives: second ones are not taken
    assert backward or TABLE[op].no_gradient != bool(TABLE[op].vjp) or op == "diag_mask_zero"


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("op", OPS)
def test_forward_is_the_reference(op: str, isa: str, check_each: Any) -> None:
    def check(sample: Sample) -> None:
        values = sample.arrays()
        expected, limit = reference(sample)
        call = build(sample, values)
        program = call.program(isa, threads=1)
        program.run()
        if sample.op != "empty":
            assert_within(call.result(program), expected, limit)
        for name, written in WRITES.get(sample.op, lambda *_, **__: {})(*as_float64(values), **sample.params).items():
            k = TABLE[sample.op].sources.index(name)
            limit = bound(sample, as_float64(values), written)
            assert_within(call.result(program, call.operands[k]), written, limit)

    check_each(SAMPLES[op], check, isa)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("op", [op for op in OPS if op != "empty"])
def test_result_is_the_same_for_any_number_of_threads(op: str, isa: str, check_each: Any) -> None:
    def check(sample: Sample) -> None:
        results = []
        for threads in (1, 2, 3, 8):
            call = build(sample, sample.arrays())
            program = call.program(isa, threads)
            program.run()
            written = [call.operands[k] for k in written_operands(sample)]
            results.append(b"".join(call.result(program, i).tobytes() for i in (call.y, *written)))
        assert len(set(results)) == 1

    check_each(SAMPLES[op], check, isa)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("op", list(DIFFERENTIABLE))
def test_gradient_is_the_difference_quotient(op: str, isa: str, check_each: Any) -> None:
    def check(sample: Sample) -> None:
        weights, quotients = differences(sample)
        call = build(sample, sample.arrays(), trained_operands(sample))
        found = gradients(call, weights, isa, threads=2)
        for k, direction, expected in quotients:
            operand = sample.operands[k]
            assert operand is not None
            outside = np.nan_to_num(operand.store(direction.astype(np.float32)), nan=0.0)
            terms = found[k].reshape(-1) * outside.reshape(-1)
            limit = 2e-5 * (np.abs(terms).sum() + 1.0)
            assert abs(terms.sum(dtype=np.float64) - expected) <= limit, f"{TABLE[sample.op].sources[k]}"

    check_each(DIFFERENTIABLE[op], check, isa)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_gradient_of_one_operand_is_that_among_all(k: int) -> None:
    sample = next(s for s in DIFFERENTIABLE["attention"] if s.operands[0].shape[1] > 64)  # type: ignore[union-attr]
    weights = np.random.default_rng(0).uniform(-1, 1, sample.operands[0].shape)  # type: ignore[union-attr]
    together, alone = (
        gradients(build(sample, sample.arrays(), trained), weights, LEVELS[0], threads=2)
        for trained in (trained_operands(sample), frozenset({k}))
    )
    np.testing.assert_array_equal(alone[k], together[k])
    assert [i for i, g in enumerate(alone) if g is not None] == [k]
