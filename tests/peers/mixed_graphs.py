"""Graphs of several ops each, as ggml's users build them. Built by ggml_process.py with real ggml, checked by
test_mixed_graphs.py.

`g` has ggml's functions without their prefix, and leafs with values: ggml_process.Ggml. Sizes are ggml's, the fastest
axis first. What a graph returns is compared, in the order in which ggml computes it. A `@loss` returns one number, of
which the gradients with respect to its `param`s are compared with ggml's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Relative to the largest value.
F32_ROUNDING = 1e-5
EXP_TABLE = 1e-3  # v1 reads SILU and the exponentials of SOFT_MAX from tables of half-precision numbers
GELU_TABLE = 1e-3  # both do so with GELU
HALVES = 3e-3  # flash attention rounds queries, and sums up values, in half precision

F32, F16 = 0, 1  # types
MAX, MEAN = 0, 1  # kinds of pooling
NEOX = 2  # mode of rotation


@dataclass(frozen=True)
class Graph:
    """`dialects`: those that can say it. `tolerance`: more than F32_ROUNDING where ggml rounds more, `in_v1` there."""

    build: Callable[[Any], Any]
    dialects: tuple[str, ...] = ("v1", "v2a")
    tolerance: float = F32_ROUNDING
    in_v1: float = 0.0
    is_loss: bool = False


GRAPHS: dict[str, Graph] = {}


def graph(**properties: Any) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Puts the graph into GRAPHS under its function's name."""

    def enter(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
        GRAPHS[build.__name__] = Graph(build, **properties)
        return build

    return enter


def loss(**properties: Any) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """A graph that is differentiated too."""
    return graph(is_loss=True, **properties)


# ---------------------------------------------------------------- networks


@graph(dialects=("v2a",))
def convolutional_classifier(g: Any) -> Any:
    x = g.normal(14, 10, 3)
    x = g.relu(g.conv_2d(g.normal(3, 3, 3, 8), x, 1, 1, 1, 1, 1, 1))
    x = g.group_norm(g.pool_2d(x, MAX, 2, 2, 2, 2, 0, 0), 4)
    x = g.hardswish(g.conv_2d(g.normal(3, 3, 8, 6), x, 2, 2, 1, 1, 1, 1))
    x = g.reshape_1d(g.pool_2d(x, MEAN, 2, 2, 1, 1, 0, 0), 36)
    logits = g.add(g.mul_mat(g.normal(36, 5), x), g.normal(5))
    return logits, g.soft_max(logits)


@graph()
def recurrent_cell_unrolled(g: Any) -> Any:
    """A GRU over five steps, its inputs views of one tensor."""
    x, h = g.normal(6, 3, 5), g.normal(8, 3)
    w, u, b = g.normal(6, 24), g.normal(8, 24), g.normal(24)
    states = []
    for t in range(5):
        given = g.add(g.mul_mat(w, g.view_2d(x, 6, 3, 24, 72 * t)), b)
        kept = g.mul_mat(u, h)
        part = lambda a, k: g.cont(g.view_2d(a, 8, 3, 96, 32 * k))  # noqa: E731
        update = g.sigmoid(g.add(part(given, 0), part(kept, 0)))
        reset = g.sigmoid(g.add(part(given, 1), part(kept, 1)))
        new = g.tanh(g.add(part(given, 2), g.mul(reset, part(kept, 2))))
        h = g.add(h, g.mul(update, g.sub(new, h)))
        states.append(h)
    return tuple(states)


@graph(in_v1=EXP_TABLE)
def attention_with_alibi(g: Any) -> Any:
    """Six heads on two of keys; positions come in as slopes times a mask."""
    q, k, v = g.normal(8, 6, 7), g.normal(8, 2, 7), g.normal(8, 2, 7)
    mask = g.leaf(np.where(np.tri(7, dtype=bool), -np.abs(np.subtract.outer(np.arange(7), np.arange(7))), -np.inf))
    scores = g.mul_mat(g.permute(k, 0, 2, 1, 3), g.permute(q, 0, 2, 1, 3))
    weights = g.soft_max_ext(scores, mask, 8**-0.5, 8.0)
    mixed = g.mul_mat(g.cont(g.permute(v, 1, 2, 0, 3)), weights)
    return weights, g.cont_2d(g.permute(mixed, 0, 2, 1, 3), 48, 7)


@graph(in_v1=EXP_TABLE)
def mixture_of_experts(g: Any) -> Any:
    """Top two of four experts, as llama.cpp writes Mixtral's layer."""
    n_embd, n_ff, n_expert, n_used, n = 16, 24, 4, 2, 9
    x = g.normal(n_embd, n)
    probs = g.soft_max(g.mul_mat(g.normal(n_embd, n_expert), x))
    chosen = g.top_k(probs, n_used)
    weights = g.reshape_2d(g.get_rows(g.reshape_3d(probs, 1, n_expert, n), chosen), n_used, n)
    weights = g.reshape_3d(g.div(weights, g.sum_rows(weights)), 1, n_used, n)
    rows = g.reshape_3d(x, n_embd, 1, n)
    up = g.mul_mat_id(g.normal(n_embd, n_ff, n_expert), rows, chosen)
    gate = g.silu(g.mul_mat_id(g.normal(n_embd, n_ff, n_expert), rows, chosen))
    experts = g.mul(g.mul_mat_id(g.normal(n_ff, n_embd, n_expert), g.mul(up, gate), chosen), weights)
    parts = [g.view_2d(experts, n_embd, n, 4 * n_embd * n_used, 4 * n_embd * k) for k in range(n_used)]
    return g.add(*parts), weights


@graph(in_v1=EXP_TABLE)
def diffusion_time_embedding(g: Any) -> Any:
    steps = g.leaf(np.array([0.0, 1.0, 10.5, 500.0]))
    embedding = g.timestep_embedding(steps, 16, 10000)
    hidden = g.silu(g.add(g.mul_mat(g.normal(16, 12), embedding), g.normal(12)))
    scale = g.reshape_4d(g.mul_mat(g.normal(12, 6), hidden), 1, 1, 6, 4)
    x = g.group_norm(g.normal(5, 4, 6, 4), 3)
    return g.add(g.mul(x, scale), x)


@graph()
def convolutions_of_halves(g: Any) -> Any:
    """ggml_conv_2d with patches of halves, the only ones in v1, and its transpose: whole numbers, which halves hold."""
    x = g.leaf(g.rng.integers(-8, 9, (2, 3, 9, 8)))
    kernel = g.leaf(g.rng.integers(-4, 5, (4, 3, 3, 3)), "F16")
    patches = g.im2col(kernel, x, 1, 1, 1, 1, 1, 1, True, F16)
    y = g.mul_mat(g.reshape_2d(kernel, 27, 4), g.reshape_2d(patches, 27, 8 * 9 * 2))
    return y, g.conv_transpose_2d_p0(
        g.leaf(g.rng.integers(-9, 10, (3, 2, 3, 3)), "F16"), g.view_3d(x, 8, 9, 3, *x.nb[1:3], 0), 2
    )


@graph(tolerance=HALVES)
def flash_attention(g: Any) -> Any:
    """Four heads on two of keys and values of halves, under a mask of halves with as many rows as ggml wants."""
    q, k, v = g.normal(32, 5, 4), g.normal(32, 7, 2, type_name="F16"), g.normal(32, 7, 2, type_name="F16")
    mask = g.leaf(np.where(np.tri(32, 7, 2, dtype=bool), 0.0, -np.inf), "F16")
    softcap = [] if g.dialect == "v1" else [0.0]
    y = g.flash_attn_ext(q, k, v, mask, 32**-0.5, 0.0, *softcap)
    return y, g.mul_mat(g.normal(128, 6), g.reshape_2d(y, 128, 5))


@graph()
def images_enlarged_and_framed(g: Any) -> Any:
    x = g.upscale(g.pool_2d(g.normal(10, 6, 2), MAX, 2, 2, 2, 2, 0, 0), 2)
    x = g.upscale_ext(x, 25, 7, 2, 3)
    x = g.pad(x, 7, 3, 1, 0)
    ramp = g.arange(0.0, 16.0, 0.5)
    return x, g.add(x, ramp)


@graph()
def sound_through_convolutions(g: Any) -> Any:
    x = g.conv_transpose_1d(g.normal(4, 6, 3), g.normal(20, 3), 2, 0, 1)
    x = g.elu(g.pool_1d(x, MAX, 3, 3, 0))
    return x, g.pool_1d(g.add(x, g.repeat(g.normal(1, 6), x)), MEAN, 2, 2, 0)


# ---------------------------------------------------------------- layouts


@graph()
def views_of_views(g: Any) -> Any:
    x = g.normal(12, 10, 4)
    window = g.view_3d(x, 8, 6, 3, 48, 480, 48 * 2 + 4 * 3)
    inner = g.view_2d(window, 5, 6, 48, 480 + 4)
    turned = g.transpose(g.view_2d(g.permute(window, 0, 2, 1, 3), 8, 3, 480, 4 * 48))
    return g.cont(inner), g.cont(turned), g.sum_rows(g.cont(g.permute(window, 1, 2, 0, 3)))


@graph()
def concatenated_and_repeated(g: Any) -> Any:
    a, b = g.normal(3, 2, 4, 2), g.normal(3, 2, 1, 2)
    both = g.concat(a, g.neg(b), 2)
    tiled = g.repeat(g.view_3d(both, 3, 2, 5, 12, 24, 0), g.new("F32", 6, 4, 5))
    return both, tiled, g.repeat_back(g.sqr(tiled), g.new("F32", 3, 2, 1))


@graph(dialects=("v2a",))
def concatenated_along_every_dimension(g: Any) -> Any:
    x = g.normal(3, 2, 4, 2)
    for dim in range(4):
        x = g.concat(x, g.scale(x, 0.5), dim)
    return x


@graph(in_v1=EXP_TABLE)
def attention_in_place(g: Any) -> Any:
    """Each op writes over its operand, as llama.cpp did to save memory."""
    n_embd, n_head, n = 16, 2, 6
    x = g.norm_inplace(g.add_inplace(g.scale(g.normal(n_embd, n), 1.5), g.normal(n_embd)), 1e-5)
    q = g.reshape_3d(g.mul_mat(g.normal(n_embd, n_embd), x), 8, n_head, n)
    q = g.permute(g.rope_inplace(q, g.leaf(np.arange(n), "I32"), 8, 0, *([0] if g.dialect == "v1" else [])), 0, 2, 1, 3)
    scores = g.diag_mask_inf_inplace(g.scale_inplace(g.mul_mat(q, q), 8**-0.5), 0)
    weights = g.soft_max_inplace(scores)
    return g.relu_inplace(g.mul_mat(g.cont(g.transpose(q)), weights))


@graph()
def cache_of_keys_and_values(g: Any) -> Any:
    """Two tokens are written behind the three that are there, then all are read."""
    keys, values = g.normal(8, 6), g.normal(6, 8)
    k, v = g.normal(8, 2), g.normal(8, 2)
    written = g.cpy(k, g.view_2d(keys, 8, 2, 32, 3 * 32))
    transposed = g.cpy(g.transpose(v), g.view_2d(values, 2, 8, 24, 12))
    scores = g.mul_mat(g.view_2d(keys, 8, 5, 32, 0), g.normal(8, 2))
    return written, g.cont(transposed), scores, g.mul_mat(g.view_2d(values, 5, 8, 24, 0), scores)


@graph()
def cast_to_its_own_type(g: Any) -> Any:
    """ggml_cast is a CPY whose destination is itself."""
    return g.sum(g.cast(g.normal(6), F32))


@graph()
def windows_set_and_added_to(g: Any) -> Any:
    x = g.normal(7, 5, 2)
    y = g.set(x, g.normal(3, 2, 2), 28, 140, 280, 4 * 9)
    y = g.acc(y, g.normal(4, 3), 28, 140, 280, 4 * 2)
    y = g.set_1d(y, g.normal(5), 4 * 30)
    return y, g.set_2d(g.view_2d(y, 7, 10, 28, 0), g.normal(2, 2), 28, 4)


@graph()
def windows_written_in_place(g: Any) -> Any:
    """The source of SET and ACC is written itself, so that what reads it afterwards sees the windows."""
    x = g.sqr(g.normal(7, 5))
    before = g.sum(x)
    y = g.acc_inplace(g.set_1d_inplace(x, g.normal(5), 4 * 30), g.normal(3, 2), 28, 140, 140, 4 * 9)
    return before, y, g.sum(x)


@graph()
def outputs_written_in_place_later(g: Any) -> Any:
    """Every tensor is what its memory holds at the end: the first two are read after four ops that come behind them."""
    x = g.sqr(g.normal(6, 4))
    middle, before = g.view_2d(x, 6, 2, 24, 24), g.sum(x)
    y = g.sqr_inplace(g.scale_inplace(x, 0.5))
    row = g.cpy(g.normal(6), g.view_1d(y, 6, 24))
    after = g.sum(y)
    return x, middle, before, row, after, g.sum(g.set_1d_inplace(y, g.normal(5), 4 * 15))


@graph()
def products_of_turned_matrices(g: Any) -> Any:
    a, b = g.normal(5, 7, 2), g.normal(5, 9, 4)
    product = g.mul_mat(a, b)
    turned = g.mul_mat(g.cont(g.permute(a, 1, 0, 2, 3)), g.permute(product, 0, 1, 2, 3))
    outer = g.out_prod(g.normal(6, 7), g.normal(3, 7))
    cubes = g.mul_mat(g.permute(g.normal(4, 2, 6), 0, 2, 1, 3), g.permute(g.normal(4, 2, 3), 0, 2, 1, 3))
    return turned, outer, cubes, g.mul_mat(g.diag(g.normal(7)), product)


@graph()
def sums_up_to_each_place(g: Any) -> Any:
    """A cumulative sum, as a product with a triangle of ones."""
    ones = g.repeat(g.leaf(np.ones((1, 1))), g.new("F32", 9, 9))
    triangle = g.diag_mask_zero(ones, 0)
    running = g.mul_mat(triangle, g.normal(9, 4))
    return running, g.mul_mat(g.diag_mask_zero(ones, 2), running)


# ---------------------------------------------------------------- rows


@graph()
def norms_with_gains(g: Any) -> Any:
    x, gain, bias = g.normal(33, 7, 2), g.normal(33), g.normal(33)
    y = g.add(g.mul(g.norm(x, 1e-5), gain), bias)
    z = g.mul(g.rms_norm(g.add(x, y), 1e-6), gain)
    return z, g.group_norm(g.reshape_4d(z, 11, 3, 7, 2), 3), g.div(z, g.sqrt(g.add1(g.sqr(z), g.uniform(1, 2, 1))))


@graph()
def reductions_and_choices(g: Any) -> Any:
    x = g.normal(31, 6)
    best = g.argmax(x)
    rows = g.get_rows(g.normal(5, 31), best)
    order = g.argsort(x, 0)
    top = g.top_k(x, 4)
    means = g.reshape_1d(g.mean(g.abs(x)), 6)
    return best, rows, order, g.cont(top), g.clamp(g.add(means, g.sum_rows(g.dup(means))), 0.7, 6.0), g.sum(rows)


def _exact_rows(g: Any, n: int, n_rows: int) -> Any:
    """Whole numbers with a 127 in each block, which ggml rounds to 8 bits, or to halves, without a loss."""
    values = g.rng.integers(-127, 128, (n_rows, n))
    values[:, ::32] = 127
    return g.leaf(values)


@graph(tolerance=1e-4)
def products_of_quantised_matrices(g: Any) -> Any:
    types = ("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
    x = _exact_rows(g, 512, 3)
    return tuple(g.mul_mat(g.normal(512, 4, type_name=name), x) for name in types)


@graph()
def rows_of_quantised_tables(g: Any) -> Any:
    types = ("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
    ids = g.ids(9, 5)
    embedded = [g.get_rows(g.normal(256, 9, type_name=name), ids) for name in types]
    total = embedded[0]
    for rows in embedded[1:]:
        total = g.add(total, rows)
    return total, g.get_rows_back(total, ids, g.new("F32", 256, 9))


@graph(tolerance=GELU_TABLE)
def every_activation(g: Any) -> Any:
    names = ("abs", "sgn", "neg", "step", "tanh", "elu", "relu", "sigmoid", "gelu", "gelu_quick", "silu", "hardswish",
             "hardsigmoid")  # fmt: skip
    x, y = g.normal(37, 5), g.leaky_relu(g.normal(37, 5), 0.2, False)
    outputs = [getattr(g, name)(x) for name in names]
    for activated in outputs:
        y = g.add(y, g.mul(activated, x))
    return (*outputs, y)


@graph(dialects=("v2a",))
def fourier_features(g: Any) -> Any:
    angles = g.mul_mat(g.normal(2, 16), g.uniform(-1, 1, 2, 9))
    features = g.concat(g.sin(angles), g.cos(angles), 0)
    return features, g.sum_rows(g.exp(g.mul(features, features)))


@graph(in_v1=EXP_TABLE)
def cotangents_that_ggml_has_as_ops(g: Any) -> Any:
    x, dy = g.normal(16, 4, 3), g.normal(16, 4, 3)
    positions, probs = g.leaf(np.arange(3), "I32"), g.soft_max(x)
    words = [16, NEOX, 0, 0] if g.dialect == "v1" else [None, 16, NEOX, 0]
    xpos = [0.0, False] if g.dialect == "v1" else []
    back = g.rope_back(dy, positions, *words, 1e4, 1.0, 0.0, 1.0, 0.0, 0.0, *xpos)
    labels = g.soft_max(g.normal(16, 12))
    logits = g.cont_2d(g.soft_max_back(dy, probs), 16, 12)
    seed = g.leaf(np.array([0.7]))
    return (g.silu_back(x, dy), g.rms_norm_back(x, dy, 1e-5), logits, back,
            g.cross_entropy_loss_back(logits, labels, seed))  # fmt: skip


@graph(dialects=("v2a",))
def cotangents_of_windows(g: Any) -> Any:
    image, kernel = g.normal(9, 8, 3), g.normal(3, 3, 3, 4)
    pooled = g.pool_2d(image, MAX, 2, 2, 2, 2, 0, 0)
    patches = g.im2col(kernel, image, 2, 2, 1, 1, 1, 1, True, F32)
    return (g.pool_2d_back(g.sqr(pooled), image, MAX, 2, 2, 2, 2, 0.0, 0.0),
            g.im2col_back(kernel, patches, [9, 8, 3, 1], 2, 2, 1, 1, 1, 1, True))  # fmt: skip


# ---------------------------------------------------------------- losses that ggml differentiates


def _labels(g: Any, n_classes: int, n: int) -> Any:
    return g.leaf(np.eye(n_classes)[g.rng.integers(0, n_classes, n)])


@loss(in_v1=EXP_TABLE)
def classifier_loss(g: Any) -> Any:
    x = g.normal(10, 8)
    hidden = g.mul_mat(g.param(10, 16), x)
    hidden = g.relu(g.add(hidden, g.repeat(g.param(16), hidden)))
    hidden = g.mul(g.silu(hidden), g.repeat(g.param(16), hidden))
    return g.cross_entropy_loss(g.mul_mat(g.param(16, 5), hidden), _labels(g, 5, 8))


def _rotations(head_dim: int, n: int) -> Any:
    """The matrices by which ROPE turns a head at positions 0..n-1."""
    pairs = np.arange(0, head_dim, 2)
    angles = np.outer(np.arange(n), 10000.0 ** (-pairs / head_dim))
    matrices = np.zeros((n, head_dim, head_dim))
    matrices[:, pairs, pairs] = matrices[:, pairs + 1, pairs + 1] = np.cos(angles)
    matrices[:, pairs + 1, pairs] = np.sin(angles)
    matrices[:, pairs, pairs + 1] = -np.sin(angles)
    return matrices


@loss(in_v1=5e-3)
def llama_loss(g: Any) -> Any:
    """Two layers as train-text-from-scratch wrote them for ggml to differentiate: gains repeated, scores scaled.

    In v2a, whose derivative of ROPE aborts behind any op that has a parameter, matrices turn the heads.
    """
    n_vocab, n_embd, n_head, n_ff, n = 23, 16, 2, 24, 7
    head_dim, positions = n_embd // n_head, g.leaf(np.arange(n), "I32")
    rotations = g.leaf(_rotations(head_dim, n))

    def norm(x: Any) -> Any:
        return g.mul(g.repeat(g.param(n_embd), x), g.rms_norm(x, 1e-5))

    def heads(x: Any) -> Any:
        return g.reshape_3d(g.mul_mat(g.param(n_embd, n_embd), x), head_dim, n_head, n)

    def turned(x: Any) -> Any:
        x = g.rope(x, positions, head_dim, 0) if g.dialect == "v1" else g.mul_mat(rotations, x)
        return g.permute(x, 0, 2, 1, 3)

    x = g.get_rows(g.param(n_embd, n_vocab), g.ids(n_vocab, n))
    for _ in range(2):
        normed = norm(x)
        q, k, v = turned(heads(normed)), turned(heads(normed)), g.cont(g.permute(heads(normed), 1, 2, 0, 3))
        weights = g.soft_max(g.diag_mask_inf(g.scale(g.mul_mat(k, q), head_dim**-0.5), 0))
        mixed = g.reshape_2d(g.cont(g.permute(g.mul_mat(v, weights), 0, 2, 1, 3)), n_embd, n)
        x = g.add(x, g.mul_mat(g.param(n_embd, n_embd), mixed))
        normed = norm(x)
        gate, up = (g.mul_mat(g.param(n_embd, n_ff), normed) for _ in range(2))
        x = g.add(x, g.mul_mat(g.param(n_ff, n_embd), g.mul(g.silu(gate), up)))
    return g.cross_entropy_loss(g.mul_mat(g.param(n_embd, n_vocab), norm(x)), _labels(g, n_vocab, n))


@loss()
def arithmetic_loss(g: Any) -> Any:
    a, b = g.param(7, 4), g.param(7, 4, low=0.5, high=2.0)
    x = g.add(g.div(a, b), g.mul(g.sqr(a), g.log(b)))
    x = g.sub(g.sqrt(g.add(b, g.abs(x))), g.neg(g.scale(a, 0.3)))
    return g.sum(g.add(x, g.mul(g.step(a), g.add(g.dup(a), g.sgn(b)))))


@loss()
def layout_loss(g: Any) -> Any:
    a, b = g.param(6, 5, 2), g.param(3, 5)
    window = g.mul(g.cont(g.view_2d(a, 3, 5, 24, 120 + 4)), b)
    turned = g.reshape_2d(g.cont(g.permute(a, 1, 0, 2, 3)), 5, 12)
    turned = g.mul_mat(g.cont(g.transpose(b)), turned)
    rows = g.sum_rows(g.reshape_2d(a, 12, 5))
    tiles = g.repeat_back(g.sqr(g.repeat(b, g.new("F32", 6, 10))), g.new("F32", 3, 2))
    return g.add(g.add(g.sum(window), g.sum(g.sqr(turned))), g.add(g.sum(g.sqr(rows)), g.sum(g.sqr(tiles))))


@loss()
def writing_loss(g: Any) -> Any:
    a, b, c = g.param(6, 4), g.param(3, 2), g.param(6, 4)
    x = g.acc(g.set(g.sqr(a), b, 24, 96, 96, 28), g.sqr(b), 24, 96, 96, 4)
    x = g.add(g.mul(x, a), g.cpy(g.sqr(c), g.normal(6, 4)))
    return g.sum(g.mul(g.add1(x, g.leaf(np.array([0.5]))), g.diag_mask_zero(a, 1)))


@loss()
def rotation_loss(g: Any) -> Any:
    turned = g.rope(g.rms_norm(g.param(8, 2, 5), 1e-5), g.leaf(np.arange(5) + 3, "I32"), 6, NEOX)
    return g.sum(g.mul(turned, g.uniform(1, 2, 8, 2, 5)))


@loss(dialects=("v2a",))
def waves_loss(g: Any) -> Any:
    a, b = g.param(9, 4), g.param(9, 4)
    return g.sum(g.mul(g.exp(g.sin(a)), g.cos(g.add(a, b))))


@loss(dialects=("v2a",))
def convolution_loss(g: Any) -> Any:
    image, kernel = g.param(8, 6, 3), g.param(27, 4)
    patches = g.im2col(g.new("F32", 3, 3, 3, 4), image, 1, 1, 1, 1, 1, 1, True, F32)
    made = g.mul_mat(g.reshape_2d(patches, 27, 48), kernel)
    pooled = g.pool_2d(g.reshape_3d(made, 8, 6, 4), MAX, 2, 2, 2, 2, 0, 0)
    return g.cross_entropy_loss(g.reshape_1d(g.pool_2d(pooled, MEAN, 2, 3, 2, 3, 0, 0), 8), g.soft_max(g.normal(8)))


@graph(dialects=("v2a",))
def training_step(g: Any) -> Any:
    """Forward, ggml's own backward and its AdamW in one graph."""
    g.trains = True
    g.backward(arithmetic_loss(g))
    return tuple(g.opt_step_adamw(param, 0.1, 0.9, 0.999, 1e-8, 0.01) for param in g.params.values())
