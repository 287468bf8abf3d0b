"""The oracle itself: complete, self-consistent, and its backward formulas checked by central differences.

The derivative rules of the op table are run here too, on numpy float64: what C will do is these formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from reference import NO_SAMPLE_GRADIENT, REFERENCE, SAMPLES, WRITES, Array, Sample

from ggmlgraph.table import ops
from ggmlgraph.table.op import TABLE, Op, Operand

ALL = [sample for samples in SAMPLES.values() for sample in samples]


def operands(sample: Sample) -> list[Any]:
    """The sample's arrays in float64; ids stay integers."""
    return [a if a is None or a.dtype == np.int32 else a.astype(np.float64) for a in sample.arrays()]


def evaluate(sample: Sample, arrays: list[Any]) -> Array:
    with np.errstate(all="ignore"):
        return REFERENCE[sample.op](*arrays, **sample.keywords())


# ---------------------------------------------------------------- completeness


def test_every_op_of_the_table_has_a_reference() -> None:
    assert set(REFERENCE) == set(TABLE)


def test_every_op_of_the_table_has_at_least_ten_samples() -> None:
    assert set(SAMPLES) == set(TABLE)
    assert min(map(len, SAMPLES.values())) >= 10


def test_every_op_that_writes_operands_says_what_it_writes() -> None:
    assert set(WRITES) == {op.name for op in TABLE.values() if op.writes}


@pytest.mark.parametrize("op", TABLE.values(), ids=TABLE)
def test_samples_call_their_op_as_its_row_says(op: Op) -> None:
    for sample in SAMPLES[op.name]:
        assert len(sample.operands) == len(op.sources)
        assert set(sample.params) <= {p.name for p in op.params}
        assert {p.name for p in op.params if p.default is None} <= set(sample.params)
        for name, operand in zip(op.sources, sample.operands, strict=True):
            assert operand is not None or name in op.optional
            if operand is not None:
                assert operand.layout == "dense" or name not in op.dense
                assert operand.layout != "transposed" or name not in op.rows


@pytest.mark.parametrize("op", [op for op in TABLE.values() if op.shape == "broadcast"], ids=lambda op: op.name)
def test_all_sixteen_broadcast_masks_are_sampled(op: Op) -> None:
    masks = {
        tuple(small == 1 and large > 1 for small, large in zip(b.shape, a.shape, strict=True))
        for a, b in (sample.operands for sample in SAMPLES[op.name] if len(sample.operands) == 2)
        if a is not None and b is not None and len(a.shape) == len(b.shape) == 4
    }
    assert len(masks) == 16


def test_samples_have_names_of_their_own() -> None:
    assert len({str(sample) for sample in ALL}) == len(ALL)


def test_a_sample_is_the_same_at_each_call_and_differs_from_the_next() -> None:
    first, again, other = (s.arrays()[0] for s in (SAMPLES["add"][0], SAMPLES["add"][0], SAMPLES["add"][1]))
    assert first is not None
    assert other is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("layout", ["permuted", "transposed", "sliced"])
def test_a_layout_only_changes_where_elements_lie(layout: str) -> None:
    sample = next(s for s in ALL if any(o is not None and o.layout == layout for o in s.operands))
    operand, values = next(
        (o, a) for o, a in zip(sample.operands, sample.arrays(), strict=True) if o and o.layout == layout
    )
    memory = operand.store(values)
    axes = {"permuted": (-2, -3), "transposed": (-1, -2)}
    seen = memory.swapaxes(*axes[layout]) if layout in axes else memory[..., 3:-2]
    assert memory.flags.c_contiguous
    assert np.array_equal(seen, values)
    assert not seen.flags.c_contiguous


@pytest.mark.parametrize("op", [op for op in TABLE.values() if op.sized], ids=lambda op: op.name)
def test_a_sized_op_gives_the_size_asked_for(op: Op) -> None:
    for sample in SAMPLES[op.name]:
        assert evaluate(sample, operands(sample)).shape == sample.shape


# ---------------------------------------------------------------- known values


def call(op: str, *arrays: Any, **params: Any) -> Any:
    return REFERENCE[op](*(None if a is None else np.asarray(a) for a in arrays), **params)


@pytest.mark.parametrize(
    ("op", "argument", "value"),
    [
        ("gelu", 1.0, 0.8411919906082768), ("gelu_erf", 1.0, 0.8413447460685429), ("gelu_erf", -6.0, -5.919526e-09),
        ("silu", 1.0, 0.7310585786300049), ("silu", -800.0, 0.0), ("sigmoid", -1.0, 0.2689414213699951),
        ("gelu_erf_slope", 0.0, 0.5), ("step", 0.0, 0.0), ("relu", -3.0, 0.0), ("sqr", -3.0, 9.0),
    ],
)  # fmt: skip
def test_an_activation_has_its_published_value(op: str, argument: float, value: float) -> None:
    assert call(op, [argument])[0] == pytest.approx(value, rel=1e-6)


def test_mul_mat_is_b_times_a_transposed() -> None:
    assert call("mul_mat", [[1.0, 2.0], [3.0, 4.0]], [[1.0, 10.0]]).tolist() == [[21.0, 43.0]]


def test_mul_mat_repeats_matrices_in_groups_and_elementwise_ops_tile() -> None:
    heads = np.array([1.0, 2.0]).reshape(2, 1, 1)
    ones = np.ones((4, 1, 1))
    assert call("mul_mat", heads, ones).ravel().tolist() == [1, 1, 2, 2]
    assert call("mul", ones, heads).ravel().tolist() == [1, 2, 1, 2]


def test_out_prod_is_b_transposed_times_a() -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.arange(8.0).reshape(2, 4)
    assert np.array_equal(call("out_prod", a, b), b.T @ a)


def test_normed_rows_have_mean_0_and_variance_1() -> None:
    y = call("norm", np.random.default_rng(0).normal(5, 3, (4, 100)), eps=0.0)
    assert np.allclose(y.mean(-1), 0)
    assert np.allclose(y.var(-1), 1)


def test_rope_turns_the_pairs_of_each_mode_by_the_position_times_the_frequency() -> None:
    x = np.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 4)
    fast, slow = 3.0, 3.0 * 10000**-0.5
    turned = {mode: call("rope", x, [3], None, n_dims=4, mode=mode).ravel() for mode in (0, 2)}
    assert np.allclose(turned[0], [math.cos(fast), math.sin(fast), -math.sin(slow), math.cos(slow)])
    assert np.allclose(turned[2], [math.cos(fast), -math.sin(slow), math.sin(fast), math.cos(slow)])


def test_rope_back_undoes_rope() -> None:
    for sample in SAMPLES["rope"]:
        a, *rest = operands(sample)
        if not {"attn_factor", "ext_factor"} & set(sample.params):  # which change the length too
            assert np.allclose(call("rope_back", evaluate(sample, [a, *rest]), *rest, **sample.params), a)


def test_permute_moves_dimension_i_to_place_axis_i_in_ggmls_order() -> None:
    a = np.zeros((2, 3, 5, 7))  # ne = 7, 5, 3, 2
    assert call("permute", a, axis0=1, axis1=2, axis2=0, axis3=3).shape == (2, 5, 7, 3)


def test_permute_back_undoes_permute() -> None:
    for sample in SAMPLES["permute"]:
        (a,) = operands(sample)
        assert np.array_equal(call("permute_back", evaluate(sample, [a]), **sample.params), a)


def test_view_is_a_window_of_memory() -> None:
    a = np.arange(12.0).reshape(3, 4)
    assert call("view", a, offset=4, shape=(3, 2), strides=(16, 4)).tolist() == [[1, 2], [5, 6], [9, 10]]


def test_get_rows_takes_each_list_from_its_own_table() -> None:
    tables = np.arange(12.0).reshape(2, 3, 2)
    assert call("get_rows", tables, [[0, 2], [1, 1]]).tolist() == [[[0, 1], [4, 5]], [[8, 9], [8, 9]]]


def test_diag_mask_hides_what_comes_later() -> None:
    assert call("diag_mask_zero", np.ones((2, 4)), n_past=1).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_cross_entropy_is_the_weighted_sum_of_log_probabilities() -> None:
    logits = np.log([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    y = call("cross_entropy", logits, [2, 1], [1.0, 10.0])
    assert y.tolist() == pytest.approx([math.log(0.5) + 10 * math.log(0.8)])


def test_linear_cross_entropy_leaves_the_derivatives_of_both_factors() -> None:
    sample = SAMPLES["linear_cross_entropy"][5]
    w, x, targets, weights, *_ = operands(sample)
    written = WRITES["linear_cross_entropy"](*operands(sample))
    dlogits = call("cross_entropy_back", [1.0], call("mul_mat", w, x), targets, weights)
    assert np.allclose(written["dw"], call("mul_mat_back", dlogits, x, shape=w.shape))
    assert np.allclose(written["dx"], dlogits @ w)


WEIGHT_DECAY, CLIP = 1, 2
HYPER = np.array([0.1, 0.0, 0.0, 0.0, 0.9, 0.999, 1e-8, 1 - 0.9, 1 - 0.999, 0.0, 0.0, 0.0])


def adamw(hyper: Array, norm: float = 1.0, decay: float = 1) -> dict[str, Array]:
    p, g, zero = np.array([1.0, 1.0]), np.array([3.0, -0.5]), np.zeros(2)
    return WRITES["adamw"](p, g, zero, zero, hyper, np.array([norm**2]), decay=decay)


def test_the_first_step_of_adamw_is_the_rate_against_the_gradients_sign() -> None:
    assert np.allclose(adamw(HYPER)["p"], [0.9, 1.1])


def test_adamw_decays_weights_by_the_rate_unless_exempt() -> None:
    decayed = HYPER + 0.5 * (np.arange(12) == WEIGHT_DECAY)
    assert np.allclose(adamw(decayed)["p"], [0.85, 1.05])
    assert np.allclose(adamw(decayed, decay=0)["p"], [0.9, 1.1])


def test_adamw_clips_only_a_norm_above_the_limit() -> None:
    clipped = HYPER + 2.0 * (np.arange(12) == CLIP)
    assert np.allclose(adamw(clipped, norm=4.0)["m"], 0.1 * np.array([1.5, -0.25]))
    assert np.allclose(adamw(clipped, norm=1.0)["m"], 0.1 * np.array([3.0, -0.5]))


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_adamw_skips_a_step_whose_norm_is_not_finite(norm: float) -> None:
    updated = adamw(HYPER, norm=norm)
    assert updated["p"].tolist() == [1.0, 1.0]
    assert not updated["m"].any()


# ---------------------------------------------------------------- derivatives

STEP = 1e-6
TOLERANCE = 1e-7  # of the largest term, beside which central differences round
N_DIRECTIONS = 4


def written(op: Op, values: list[Any], params: dict[str, Any]) -> dict[str, Array]:
    """What the op leaves in its operands, by their names."""
    return WRITES[op.name](*values, **params) if op.writes else {}


class Ref(Operand):
    """An operand that computes: a rule of the op table applied to it gives its value."""

    def __init__(self, value: Array, **params: Any) -> None:
        self.value = value
        self.params = params

    def bind(self, op: Op, operands: list[Any], params: dict[str, Any]) -> Ref:
        shape = params.get("shape")
        if isinstance(shape, Ref):
            params = params | {"shape": shape.value.shape}
        values = [None if x is None else x.value for x in operands]
        for name, value in written(op, values, params).items():
            operands[op.sources.index(name)].value = value
        return Ref(REFERENCE[op.name](*values, **params))

    @property
    def row_share(self) -> float:
        return 1 / self.value.shape[-1]

    def __getattr__(self, name: str) -> Any:
        return self.params[name]


def node(sample: Sample, y: Array) -> Ref:
    """The output, from which a rule reads parameters."""
    op = TABLE[sample.op]
    params = {p.name: p.default for p in op.params} | sample.params
    return Ref(y, **params)


def cotangents(sample: Sample, arrays: list[Any], g: Array) -> list[Array | None]:
    """The rule's results, summed to their sources' shapes as the gradient pass does."""
    op = TABLE[sample.op]
    assert op.vjp is not None
    sources = [None if a is None else Ref(a) for a in arrays]
    results = op.vjp(Ref(g), node(sample, evaluate(sample, arrays)), *sources)
    return [
        None if c is None or a is None else REFERENCE["repeat_back"](c.value, a.shape)
        for c, a in zip(results, arrays, strict=True)
    ]


def directions(rng: np.random.Generator, a: Array) -> Iterator[Array]:
    """Random ones, less where a is small: log and sqrt bend sharply there."""
    for _ in range(N_DIRECTIONS):
        yield rng.normal(size=a.shape) * np.minimum(1.0, np.abs(a))


def differentiable(op: Op) -> list[Sample]:
    """The op's samples without infinities and kinks; of a fused op, those that leave behind what its rule needs."""
    samples = [
        s for s in SAMPLES[op.name] if not any(o and o.kind == "values" and o.shape == (3, 31) for o in s.operands)
    ]
    if op.name == "soft_max":
        samples = [s for s in samples if not any(o and o.kind == "values" for o in s.operands)]
    return [s for s in samples if all(s.operands[op.sources.index(name)] for name in op.writes)]


RULED = [op for op in TABLE.values() if op.vjp and op.name not in NO_SAMPLE_GRADIENT]


@pytest.mark.parametrize("op", RULED, ids=lambda op: op.name)
def test_the_derivative_rule_agrees_with_central_differences(op: Op) -> None:
    for sample in differentiable(op):
        rng = np.random.default_rng(sample.index)
        arrays = operands(sample)
        for name, value in written(op, arrays, sample.params).items():
            arrays[op.sources.index(name)] = value
        y = evaluate(sample, arrays)
        g = np.where(np.isfinite(y), rng.normal(size=y.shape), 0.0)

        def loss(k: int, a: Array, sample: Sample = sample, arrays: list[Any] = arrays, g: Array = g) -> Array:
            y = evaluate(sample, [*arrays[:k], a, *arrays[k + 1 :]])
            return np.where(g == 0.0, 0.0, g * np.where(np.isfinite(y), y, 0.0))

        for k, cotangent in enumerate(cotangents(sample, arrays, g)):
            if cotangent is None:
                continue
            assert cotangent.shape == arrays[k].shape
            for d in directions(rng, arrays[k]):
                difference = loss(k, arrays[k] + STEP * d) - loss(k, arrays[k] - STEP * d)
                numeric, analytic = difference.sum() / (2 * STEP), (cotangent * d).sum()
                scale = 1.0 + np.abs(cotangent * d).sum() + 1e-3 * np.abs(g * np.where(g == 0.0, 0.0, y)).sum()
                assert abs(numeric - analytic) <= TOLERANCE * scale, (str(sample), op.sources[k], numeric, analytic)


def test_every_backward_op_is_used_by_a_derivative_rule_checked_above() -> None:
    used: set[str] = set()

    class Trace(Ref):
        def bind(self, op: Op, operands: list[Any], params: dict[str, Any]) -> Trace:
            used.add(op.name)
            return self

        def __getattr__(self, name: str) -> Any:
            return 0

    for op in TABLE.values():
        if op.vjp:
            op.vjp(Trace(np.ones(1)), Trace(np.ones(1)), *(Trace(np.ones(1)) for _ in op.sources))
    backward = {name for name in TABLE if name.endswith("_back")}
    assert backward - used == {"soft_max_back"}  # only files have it; the rules use soft_max_scaled_back


def test_the_table_is_that_of_the_ops_module() -> None:
    assert all(getattr(ops, name).__wrapped__.__name__ == name for name in TABLE)
