"""The op table: everything the project knows about an op, in one stanza each.

A stanza gives the op's place in ggml (`None`: internal to the runtime, never written to a file), its shape
rule (runtime/src/shape.c), its kernel (runtime/kernels, or a `scalar` formula the template vectorises) and
its derivative: `vjp(g, y, *sources)` returns one cotangent per source, None where there is none. In a rule
`y.eps` is a parameter of the node, `shape=a` means "of a's shape"; the gradient pass sums a cotangent down
to its source's shape where the op repeated it.

Shapes are in numpy order. Elementwise ops *tile* the second operand into the first; `mul_mat` repeats its
first operand in *groups* (grouped-query attention). Traced by `runtime/gen.py` at build time and called by
models at trace time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggmlgraph.table.op import op

if TYPE_CHECKING:
    from typing import TypeAlias

    from ggmlgraph.tracing.tensor import Tensor

    Offset: TypeAlias = int  # in bytes
    Shape: TypeAlias = tuple[int, ...] | Tensor  # a tensor: of its shape

# ---------------------------------------------------------------- elementwise, two operands


@op("ADD", kernel="elementwise", inplace=True, shape="broadcast", decoded=("a", "b"), result="a",
    scalar=lambda a, b: a + b, vjp=lambda g, y, a, b: (g, g))  # fmt: skip
def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b; b is tiled into a's shape."""


@op("SUB", kernel="elementwise", inplace=True, shape="broadcast",
    scalar=lambda a, b: a - b, vjp=lambda g, y, a, b: (g, -repeat_back(g, shape=b)))  # fmt: skip
def sub(a: Tensor, b: Tensor) -> Tensor:
    """a - b; b is tiled into a's shape."""


@op("MUL", kernel="elementwise", inplace=True, shape="broadcast",
    scalar=lambda a, b: a * b, vjp=lambda g, y, a, b: (g * b, g * a))  # fmt: skip
def mul(a: Tensor, b: Tensor) -> Tensor:
    """a * b; b is tiled into a's shape."""


@op("DIV", kernel="elementwise", inplace=True, shape="broadcast",
    scalar=lambda a, b: a / b, vjp=lambda g, y, a, b: (g / b, -(repeat_back(g * y, shape=b) / b)))  # fmt: skip
def div(a: Tensor, b: Tensor) -> Tensor:
    """a / b; b is tiled into a's shape."""


@op("ADD1", kernel="elementwise", inplace=True, shape="add1", decoded=("a", "b"), result="a",
    scalar=lambda a, b: a + b, vjp=lambda g, y, a, b: (g, g))  # fmt: skip
def add1(a: Tensor, b: Tensor) -> Tensor:
    """a + b for a tensor b of one element."""


# ---------------------------------------------------------------- elementwise, one operand


@op("SCALE", kernel="elementwise", inplace=True,
    scalar=lambda a, s: a * s, vjp=lambda g, y, a: (scale(g, y.s),))  # fmt: skip
def scale(a: Tensor, s: float) -> Tensor:
    """a * s for a number s."""


@op("SQR", kernel="elementwise", inplace=True, scalar=lambda a: a * a, vjp=lambda g, y, a: (scale(g * a, 2.0),))
def sqr(a: Tensor) -> Tensor:
    """a squared."""


@op("SQRT", kernel="elementwise", inplace=True, scalar="gg_sqrt", vjp=lambda g, y, a: (scale(g / y, 0.5),))
def sqrt(a: Tensor) -> Tensor:
    """Square root; NaN below zero."""


@op("LOG", kernel="elementwise", inplace=True, scalar="gg_log", vjp=lambda g, y, a: (g / a,))
def log(a: Tensor) -> Tensor:
    """Natural logarithm; -inf at zero, NaN below."""


@op("SIN", kernel="elementwise", inplace=True, scalar="gg_sin", vjp=lambda g, y, a: (g * cos(a),))
def sin(a: Tensor) -> Tensor:
    """Sine."""


@op("COS", kernel="elementwise", inplace=True, scalar="gg_cos", vjp=lambda g, y, a: (-(g * sin(a)),))
def cos(a: Tensor) -> Tensor:
    """Cosine."""


@op("CLAMP", kernel="elementwise", inplace=True, shape="clamp", infinite=("min", "max"), scalar="gg_clamp",
    vjp=lambda g, y, a: (g * within(a, y.min, y.max),))  # fmt: skip
def clamp(a: Tensor, min: float, max: float) -> Tensor:
    """The nearest number in min..max, each of which may be infinite."""


@op(kernel="elementwise", inplace=True, scalar="gg_within", no_gradient=True)
def within(a: Tensor, min: float, max: float) -> Tensor:
    """1 where min <= a <= max, else 0: the derivative of clamp."""


@op("UNARY", unary="ABS", kernel="elementwise", inplace=True, scalar="gg_abs", vjp=lambda g, y, a: (g * sgn(a),))
def abs(a: Tensor) -> Tensor:
    """Magnitude. Its derivative at 0 is taken to be 0."""


@op("UNARY", unary="SGN", kernel="elementwise", inplace=True, scalar=lambda a: step(a) - step(-a), no_gradient=True)
def sgn(a: Tensor) -> Tensor:
    """1 where a > 0, -1 where a < 0, else 0."""


@op("UNARY", unary="NEG", kernel="elementwise", inplace=True, scalar=lambda a: -a, vjp=lambda g, y, a: (-g,))
def neg(a: Tensor) -> Tensor:
    """-a."""


@op("UNARY", unary="EXP", kernel="elementwise", inplace=True, scalar="gg_exp", vjp=lambda g, y, a: (g * y,))
def exp(a: Tensor) -> Tensor:
    """e to the power a."""


@op("UNARY", unary="STEP", kernel="elementwise", inplace=True, scalar="gg_step", no_gradient=True)
def step(a: Tensor) -> Tensor:
    """1 where a > 0, else 0. Its derivative is zero almost everywhere and is not defined here."""


@op("UNARY", unary="RELU", kernel="elementwise", inplace=True, scalar="gg_relu", vjp=lambda g, y, a: (g * step(a),))
def relu(a: Tensor) -> Tensor:
    """max(a, 0)."""


@op("LEAKY_RELU", kernel="elementwise", inplace=True, scalar=lambda a, slope: relu(a) - slope * relu(-a),
    vjp=lambda g, y, a: (g * leaky_step(a, y.slope),))  # fmt: skip
def leaky_relu(a: Tensor, slope: float = 0.01) -> Tensor:
    """a where a > 0, else slope * a (Maas et al. 2013)."""


@op(kernel="elementwise", inplace=True, scalar=lambda a, slope: step(a) + slope * (1.0 - step(a)), no_gradient=True)
def leaky_step(a: Tensor, slope: float) -> Tensor:
    """1 where a > 0, else slope: the derivative of leaky_relu."""


def _expm1(a: Tensor) -> Tensor:
    """exp(a) - 1 for a <= 0, by t = tanh(a / 2), which loses no digits where a is small."""
    t = tanh(0.5 * a)
    return 2.0 * t / (1.0 - t)


@op("UNARY", unary="ELU", kernel="elementwise", inplace=True, scalar=lambda a: relu(a) + _expm1(-relu(-a)),
    vjp=lambda g, y, a: (elu_back(g, a),))  # fmt: skip
def elu(a: Tensor) -> Tensor:
    """a where a > 0, else exp(a) - 1 (Clevert et al. 2016)."""


@op(kernel="elementwise", inplace=True, scalar=lambda g, a: g * exp(-relu(-a)))
def elu_back(g: Tensor, a: Tensor) -> Tensor:
    """Cotangent of a in elu(a)."""


@op("UNARY", unary="TANH", kernel="elementwise", inplace=True, scalar="gg_tanh", vjp=lambda g, y, a: (g - g * sqr(y),))
def tanh(a: Tensor) -> Tensor:
    """Hyperbolic tangent."""


@op("UNARY", unary="SIGMOID", kernel="elementwise", inplace=True,
    scalar=lambda a: 1.0 / (1.0 + exp(-a)), vjp=lambda g, y, a: (g * (y - sqr(y)),))  # fmt: skip
def sigmoid(a: Tensor) -> Tensor:
    """1 / (1 + exp(-a))."""


@op("UNARY", unary="SILU", kernel="elementwise", inplace=True,
    scalar=lambda a: a * sigmoid(a), vjp=lambda g, y, a: (silu_back(a, g),))  # fmt: skip
def silu(a: Tensor) -> Tensor:
    """a * sigmoid(a) (Elfwing et al. 2017)."""


@op("SILU_BACK", kernel="elementwise", inplace="g",
    scalar=lambda a, g: g * (sigmoid(a) * (1.0 + a * (1.0 - sigmoid(a)))))  # fmt: skip
def silu_back(a: Tensor, g: Tensor) -> Tensor:
    """Cotangent of a in silu(a)."""


# gelu(a) = a * sigmoid(2u) with u = sqrt(2/pi) (a + 0.044715 a^3): the same function as 0.5 a (1 + tanh u),
# without its cancellation where a is negative. 1.5957691216057308 = 2 sqrt(2/pi), 0.134145 = 3 * 0.044715.


def _gelu_gate(a: Tensor) -> Tensor:
    return sigmoid(1.5957691216057308 * (a + 0.044715 * (a * a * a)))


def _gelu_slope(a: Tensor, s: Tensor) -> Tensor:
    return s * (1.0 + a * (1.0 - s) * (1.5957691216057308 * (1.0 + 0.134145 * (a * a))))


@op("UNARY", unary="GELU", kernel="elementwise", inplace=True,
    scalar=lambda a: a * _gelu_gate(a), vjp=lambda g, y, a: (gelu_back(g, a),))  # fmt: skip
def gelu(a: Tensor) -> Tensor:
    """GELU, tanh form (Hendrycks & Gimpel 2016, section 2). Stock ggml reads it from a half-precision table."""


@op(kernel="elementwise", inplace=True, scalar=lambda g, a: g * _gelu_slope(a, _gelu_gate(a)))
def gelu_back(g: Tensor, a: Tensor) -> Tensor:
    """Cotangent of a in gelu(a)."""


@op("UNARY", unary="GELU_QUICK", kernel="elementwise", inplace=True,
    scalar=lambda a: a * sigmoid(1.702 * a),
    vjp=lambda g, y, a: (silu_back(scale(a, 1.702), g),))  # fmt: skip
def gelu_quick(a: Tensor) -> Tensor:
    """GELU, sigmoid form: a * sigmoid(1.702 a) (Hendrycks & Gimpel 2016, section 2)."""


@op("UNARY", unary="GELU", exact=True, kernel="elementwise", inplace=True,
    scalar="gg_gelu_erf", vjp=lambda g, y, a: (gelu_erf_back(g, a),))  # fmt: skip
def gelu_erf(a: Tensor) -> Tensor:
    """GELU, exact form: a times the normal distribution function of a (Hendrycks & Gimpel 2016, equation 1)."""


@op(kernel="elementwise", inplace=True, scalar=lambda g, a: g * gelu_erf_slope(a))
def gelu_erf_back(g: Tensor, a: Tensor) -> Tensor:
    """Cotangent of a in gelu_erf(a)."""


@op(kernel="elementwise", inplace=True, scalar="gg_gelu_erf_slope")
def gelu_erf_slope(a: Tensor) -> Tensor:
    """Derivative of gelu_erf: normal distribution function plus a times its density."""


@op("UNARY", unary="HARDSIGMOID", kernel="elementwise", inplace=True, scalar="gg_hardsigmoid",
    vjp=lambda g, y, a: (hardsigmoid_back(g, a),))  # fmt: skip
def hardsigmoid(a: Tensor) -> Tensor:
    """(a + 3) / 6, but in 0..1 (Courbariaux et al. 2015, with the constants of Howard et al. 2019)."""


@op(kernel="elementwise", inplace=True, scalar=lambda g, a: g * (step(a + 3.0) * step(3.0 - a) / 6.0))
def hardsigmoid_back(g: Tensor, a: Tensor) -> Tensor:
    """Cotangent of a in hardsigmoid(a); 0 at the corners."""


@op("UNARY", unary="HARDSWISH", kernel="elementwise", inplace=True, scalar=lambda a: a * hardsigmoid(a),
    vjp=lambda g, y, a: (hardswish_back(g, a),))  # fmt: skip
def hardswish(a: Tensor) -> Tensor:
    """a * hardsigmoid(a) (Howard et al. 2019, section 5.2)."""


@op(kernel="elementwise", inplace=True,
    scalar=lambda g, a: g * (hardsigmoid(a) + a * (step(a + 3.0) * step(3.0 - a) / 6.0)))  # fmt: skip
def hardswish_back(g: Tensor, a: Tensor) -> Tensor:
    """Cotangent of a in hardswish(a)."""


def _swiglu_cotangents(g: Tensor, y: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    db = empty(shape=b)
    da = swiglu_back(g, a, b, db)
    return da, written(db, da)


@op(kernel="elementwise", inplace=True, scalar=lambda a, b: silu(a) * b, vjp=_swiglu_cotangents)
def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) * b, same shapes (Shazeer 2020). Keeps neither factor for the backward pass."""


@op(dense=("g", "a", "b", "db"), writes=("db",), inplace=True)
def swiglu_back(g: Tensor, a: Tensor, b: Tensor, db: Tensor) -> Tensor:
    """Cotangent of a in swiglu(a, b); that of b is left in db."""


# ---------------------------------------------------------------- reductions and repeats


@op("SUM", shape="scalar", dense=("a",), decoded=("a",), result="a", work="sum", rank=lambda a: 1,
    vjp=lambda g, y, a: (repeat(g, shape=a),))  # fmt: skip
def sum(a: Tensor) -> Tensor:
    """Sum of all elements -> (1,)."""


@op("SUM_ROWS", shape="row_scalars", rows=("a",), by_row=True, vjp=lambda g, y, a: (repeat(g, shape=a),))
def sum_rows(a: Tensor) -> Tensor:
    """Sum over the last axis: (..., n) -> (..., 1)."""


@op("MEAN", shape="row_scalars", rows=("a",), by_row=True,
    vjp=lambda g, y, a: (repeat(scale(g, a.row_share), shape=a),))  # fmt: skip
def mean(a: Tensor) -> Tensor:
    """Mean over the last axis: (..., n) -> (..., 1)."""


@op("COUNT_EQUAL", shape="count_equal", dense=("a", "b"), work="sum", no_gradient=True, rank=lambda a, b: 1)
def count_equal(a: Tensor, b: Tensor) -> Tensor:
    """How many elements of a and b, int32 of one shape, are equal -> int64 (1,)."""


@op("REPEAT", shape="repeat", decoded=("a",), result="a", by_row=True, vjp=lambda g, y, a: (repeat_back(g, shape=a),))
def repeat(a: Tensor, shape: Shape) -> Tensor:
    """Tile a into `shape`, each size a multiple of a's."""


@op("REPEAT_BACK", shape="repeat_back", dense=("a",), vjp=lambda g, y, a: (repeat(g, shape=a),))
def repeat_back(a: Tensor, shape: Shape) -> Tensor:
    """Sum the tiles of a into `shape`; the transpose of `repeat`."""


@op(shape="expand", view=True, kernel=None, by_row=True, vjp=lambda g, y, a: (repeat_back(g, shape=a),))
def expand(a: Tensor, shape: Shape) -> Tensor:
    """Repeat a along axes of size 1 into `shape`, by strides of 0: a view, which elementwise ops read in place."""


@op(shape="sum_products", dense=("a", "b"))
def sum_products(a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """repeat_back(a * b) of operands of one shape. The product is never stored."""


# ---------------------------------------------------------------- normalisation


@op("NORM", shape="norm", rows=("a",), inplace=True, by_row=True, vjp=lambda g, y, a: (norm_back(g, a, y.eps),))
def norm(a: Tensor, eps: float) -> Tensor:
    """(a - mean) / sqrt(variance + eps) over the last axis (Ba et al. 2016)."""


@op(shape="norm", rows=("g", "a"), inplace=True)
def norm_back(g: Tensor, a: Tensor, eps: float) -> Tensor:
    """Cotangent of a in norm(a)."""


def _norm_gain_cotangents(
    g: Tensor, y: Any, a: Tensor, gain: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    dgain, dbias = empty(shape=gain), None if bias is None else empty(shape=bias)
    da = norm_gain_back(g, a, gain, dgain, dbias, y.eps)
    return da, written(dgain, da), None if dbias is None else written(dbias, da)


@op(kernel="norm", shape="gain", rows=("a",), dense=("gain", "bias"), inplace=True, by_row=True,
    vjp=_norm_gain_cotangents)  # fmt: skip
def norm_gain(a: Tensor, gain: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """norm(a) * gain + bias with gain and bias (n,). Keeps only a for the backward pass."""


@op(shape="gain_back", rows=("g", "a"), dense=("gain", "dgain", "dbias"), writes=("dgain", "dbias"), inplace=True,
    work="gain_back")  # fmt: skip
def norm_gain_back(g: Tensor, a: Tensor, gain: Tensor, dgain: Tensor, dbias: Tensor | None, eps: float) -> Tensor:
    """Cotangent of a in norm_gain(a, gain, bias); those of gain and bias are left in dgain and dbias."""


@op("RMS_NORM", shape="norm", rows=("a",), inplace=True, by_row=True,
    vjp=lambda g, y, a: (rms_norm_back(a, g, y.eps),))  # fmt: skip
def rms_norm(a: Tensor, eps: float) -> Tensor:
    """a / sqrt(mean(a^2) + eps) over the last axis (Zhang & Sennrich 2019)."""


@op("RMS_NORM_BACK", shape="norm", rows=("a", "g"), inplace="g")
def rms_norm_back(a: Tensor, g: Tensor, eps: float) -> Tensor:
    """Cotangent of a in rms_norm(a)."""


def _rms_norm_gain_cotangents(g: Tensor, y: Any, a: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    dgain = empty(shape=gain)
    da = rms_norm_gain_back(g, a, gain, dgain, y.eps)
    return da, written(dgain, da)


@op(kernel="rms_norm", shape="gain", rows=("a",), dense=("gain",), inplace=True, by_row=True,
    vjp=_rms_norm_gain_cotangents)  # fmt: skip
def rms_norm_gain(a: Tensor, gain: Tensor, eps: float) -> Tensor:
    """rms_norm(a) * gain with gain (n,). Keeps only a for the backward pass."""


@op(shape="gain_back", rows=("g", "a"), dense=("gain", "dgain"), writes=("dgain",), inplace=True, work="gain_back")
def rms_norm_gain_back(g: Tensor, a: Tensor, gain: Tensor, dgain: Tensor, eps: float) -> Tensor:
    """Cotangent of a in rms_norm_gain(a, gain); that of gain is left in dgain."""


@op("GROUP_NORM", shape="group_norm", dense=("a",), inplace=True,
    vjp=lambda g, y, a: (group_norm_back(g, a, y.n_groups, y.eps),))  # fmt: skip
def group_norm(a: Tensor, n_groups: int, eps: float = 1e-6) -> Tensor:
    """norm over each group of channels with all their pixels (Wu & He 2018).

    a: (..., n_channels, height, width). A group is n_channels / n_groups channels, rounded up, the last what is left.
    """


@op(shape="group_norm", dense=("g", "a"), inplace=True)
def group_norm_back(g: Tensor, a: Tensor, n_groups: int, eps: float) -> Tensor:
    """Cotangent of a in group_norm(a)."""


# ---------------------------------------------------------------- dropout


@op(shape="dropout", dense=("a", "key"), inplace=True,
    vjp=lambda g, y, a, key: (dropout(g, key, y.rate, y.stream), None))  # fmt: skip
def dropout(a: Tensor, key: Tensor, rate: float, stream: int = 0) -> Tensor:
    """a / (1 - rate), or 0 with probability rate (Srivastava et al. 2014): as key, stream and place say.

    key: int32 (4,), the seed's two words, the step, and 1 + the micro-batch, or 0, with which the result is a.
    """


# ---------------------------------------------------------------- products


@op("MUL_MAT", shape="mul_mat", decoded=("b",), work="gemm",
    vjp=lambda g, y, a, b: (mul_mat_back(g, b, shape=a), out_prod(a, transpose(g))))  # fmt: skip
def mul_mat(a: Tensor, b: Tensor, prec: int = 0) -> Tensor:
    """Product of every row of b with every row of a: y = b @ a.T.

    a: (..., m, k), float32 or any type with a decoder; b: (..., n, k), batch dims of a repeat in groups into b's
    -> (..., n, m). `prec` is ggml's (0 default, 1 float32); products here are always accumulated in float32.
    """


@op(shape="mul_mat_back", work="gemm")
def mul_mat_back(g: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """Cotangent of a in mul_mat(a, b): g.T @ b, summed over the group that shares a.

    g: (..., n, m); b: (..., n, k) -> `shape` = (..., m, k).
    """


@op("OUT_PROD", shape="out_prod", work="gemm",
    vjp=lambda g, y, a, b: (mul_mat_back(transpose(b), g, shape=a), transpose(mul_mat(a, g))))  # fmt: skip
def out_prod(a: Tensor, b: Tensor) -> Tensor:
    """Sum over rows of outer products: y = b.T @ a. a: (..., k, m); b: (..., k, n) -> (..., n, m).

    Types and batch dims of a are as in `mul_mat`, whose cotangent with respect to b this is.
    """


@op("MUL_MAT_ID", shape="mul_mat_id", rows=("a", "b"), dense=("ids",), work="mul_mat_id", rank=lambda a, b, ids: 3,
    vjp=lambda g, y, a, b, ids: (
        mul_mat_id_back(g, b, ids, shape=a), mul_mat_id_rows_back(a, g, ids), None))  # fmt: skip
def mul_mat_id(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    """Products with the matrices that ids choose, as in a mixture of experts: y[t, u] = b[t, u] @ a[ids[t, u]].T.

    a: (n_expert, m, k), float32 or any type with a decoder; b: (n, n_used, k), or (n, 1, k), a row for all of ids[t];
    ids int32 (n, n_used) -> (n, n_used, m). Every id is checked against n_expert when it runs. Rows are grouped by
    matrix, so that a matrix meets all of its rows in one product.
    """


@op(shape="mul_mat_id", rows=("a", "g"), dense=("ids",), work="mul_mat_id")
def mul_mat_id_rows_back(a: Tensor, g: Tensor, ids: Tensor) -> Tensor:
    """Cotangent of b in mul_mat_id(a, b, ids), a row for each id: y[t, u] = g[t, u] @ a[ids[t, u]]."""


@op(shape="mul_mat_id_back", rows=("g", "b"), dense=("ids",), work="mul_mat_id_back")
def mul_mat_id_back(g: Tensor, b: Tensor, ids: Tensor, shape: Shape) -> Tensor:
    """Cotangent of a in mul_mat_id(a, b, ids): per matrix the sum of g[t, u].T @ b[t, u] where ids[t, u] is it."""


# ---------------------------------------------------------------- layout


@op("DUP", shape="like", kernel="cont", vjp=lambda g, y, a: (g,))
def dup(a: Tensor) -> Tensor:
    """A copy of a."""


@op("CONT", shape="cont", vjp=lambda g, y, a: (reshape(g, shape=a),))
def cont(a: Tensor, shape: Shape | None = None) -> Tensor:
    """A contiguous copy of a, in `shape` if one is given."""


@op("RESHAPE", shape="reshape", view=True, kernel=None, dense=("a",), vjp=lambda g, y, a: (reshape(g, shape=a),))
def reshape(a: Tensor, shape: Shape) -> Tensor:
    """The same elements in `shape`; a must be contiguous."""


@op("RESHAPE", exact=True, shape="reshape", view=True, kernel=None, dense=("a",), no_gradient=True)
def stop_gradient(a: Tensor, shape: Shape) -> Tensor:
    """The same elements, through which no gradient passes."""


@op("VIEW", shape="view", view=True, kernel=None, vjp=lambda g, y, a: (view_back(g, y, a),))
def view(a: Tensor, offset: Offset, shape: Shape) -> Tensor:
    """A window of a's memory: `shape` elements from byte `offset` on, with strides of their own."""


@op(shape="view_back", dense=("total",), layouts=("y", "a"), inplace="total")
def view_back(g: Tensor, y: Tensor, a: Tensor, total: Tensor | None = None) -> Tensor:
    """Cotangent of a contiguous a of which y is a window, plus total: total, by default zeros, with g added to where y
    lies in a."""


@op("CPY", shape="cpy", view="b", writes=("b",), vjp=lambda g, y, a, b: (reshape(g, shape=a), None))
def cpy(a: Tensor, b: Tensor) -> Tensor:
    """Writes the elements of a, in order, over those of b, and is b from then on; sizes may differ, their product not.

    Types may differ too: from any with a decoder to any with an encoder. The derivative takes no notice of rounding.

    What reads b's memory later sees it, however it lies there. No element of b may lie on another or in a.
    """


@op(kernel="cpy", shape="cast", by_row=True, vjp=lambda g, y, a: (g,))
def cast(a: Tensor, type: int) -> Tensor:
    """a in the element type of that number in the newest dialect. A file has it as a cpy whose b is itself."""


@op(shape="like", dense=("a",), view=True, kernel=None,
    vjp=lambda g, y, a, by: (cleared(g, by), cont(view_as(g, by), shape=by)))  # fmt: skip
def updated(a: Tensor, by: Tensor) -> Tensor:
    """a, after `by`, a window of its memory, has been written."""


@op(shape="view_as", dense=("a",), view=True, layouts=("like",), kernel=None,
    vjp=lambda g, y, a, like: (view_back(g, y, a), None))  # fmt: skip
def view_as(a: Tensor, like: Tensor) -> Tensor:
    """The window of a that `like` is in the memory where it lies."""


@op(shape="cleared", dense=("g",), layouts=("by",), inplace=True)
def cleared(g: Tensor, by: Tensor) -> Tensor:
    """g with zeros in the window that `by` is in the memory where it lies."""


@op("PERMUTE", shape="permute", view=True, kernel=None,
    vjp=lambda g, y, a: (permute_back(g, y.axis0, y.axis1, y.axis2, y.axis3),))  # fmt: skip
def permute(a: Tensor, axis0: int, axis1: int, axis2: int, axis3: int) -> Tensor:
    """ggml's permutation of dimensions: dimension i of a becomes dimension axis_i. See Tensor.permute."""


@op(shape="permute_back", view=True, kernel=None)
def permute_back(a: Tensor, axis0: int, axis1: int, axis2: int, axis3: int) -> Tensor:
    """The inverse of permute with the same axes."""


@op("TRANSPOSE", shape="transpose", view=True, kernel=None, vjp=lambda g, y, a: (transpose(g),))
def transpose(a: Tensor) -> Tensor:
    """Swap the last two axes: (..., n, m) -> (..., m, n)."""


@op("CONCAT", shape="concat", rows=("a", "b"),
    vjp=lambda g, y, a, b: (part(g, -1, shape=a), part(g, y.dim, shape=b)))  # fmt: skip
def concat(a: Tensor, b: Tensor, dim: int = 0) -> Tensor:
    """a, then b along ggml's dimension `dim`, 0 the last axis; the other sizes are equal."""


@op(shape="part", view=True, kernel=None)
def part(a: Tensor, dim: int, shape: Shape) -> Tensor:
    """The first `shape` elements of a along each dimension, but along dimension `dim`, if not -1, the last. A view."""


@op("PAD", shape="pad", rows=("a",), vjp=lambda g, y, a: (part(g, -1, shape=a),))
def pad(a: Tensor, shape: Shape) -> Tensor:
    """a in the first corner of zeros of `shape`."""


@op("UPSCALE", shape="upscale", rows=("a",), vjp=lambda g, y, a: (upscale_back(g, shape=a),))
def upscale(a: Tensor, shape: Shape) -> Tensor:
    """a in `shape`, of which no size is smaller: each element is the nearest one below, i * n_a / n."""


@op(shape="upscale_back", rows=("g",))
def upscale_back(g: Tensor, shape: Shape) -> Tensor:
    """Cotangent of a in upscale(a): the sum over all copies of an element."""


@op("DIAG", shape="diag", rows=("a",), rank=lambda a: a if a > 1 else 2, vjp=lambda g, y, a: (diagonal(g),))
def diag(a: Tensor) -> Tensor:
    """Square matrices of zeros with a on the diagonal: (..., 1, n) -> (..., n, n)."""


@op(shape="diagonal", view=True, kernel=None)
def diagonal(a: Tensor) -> Tensor:
    """The diagonal of square matrices: (..., n, n) -> (..., 1, n). A view."""


@op("SET", shape="set", dense=("a",), rows=("b",), inplace=True, vjp=lambda g, y, a, b: (
    clear(g, b, y.nb1, y.nb2, y.nb3, y.offset), window(g, y.nb1, y.nb2, y.nb3, y.offset, shape=b)))  # fmt: skip
def set(a: Tensor, b: Tensor, nb1: int, nb2: int, nb3: int, offset: int, inplace: int = 0) -> Tensor:
    """a, but b in a window of it: from byte `offset` on, in strides of nb1, nb2, nb3 bytes."""


@op(kernel="set", shape="set", dense=("a",), rows=("b",), inplace=True)
def clear(a: Tensor, b: Tensor, nb1: int, nb2: int, nb3: int, offset: int, inplace: int = 0) -> Tensor:
    """a, but zeros in a window of b's size: cotangent of a in set(a, b)."""


@op("ACC", kernel="set", shape="set", dense=("a",), rows=("b",), inplace=True,
    vjp=lambda g, y, a, b: (g, window(g, y.nb1, y.nb2, y.nb3, y.offset, shape=b)))  # fmt: skip
def acc(a: Tensor, b: Tensor, nb1: int, nb2: int, nb3: int, offset: int, inplace: int = 0) -> Tensor:
    """a, with b added to a window of it: from byte `offset` on, in strides of nb1, nb2, nb3 bytes."""


@op(shape="window", dense=("a",), view=True, kernel=None)
def window(a: Tensor, nb1: int, nb2: int, nb3: int, offset: int, shape: Shape) -> Tensor:
    """The window of a that `set` and `acc` write: cotangent of their second operand. A view."""


@op("GET_ROWS", shape="get_rows", rows=("a",), dense=("ids",), rank=lambda a, ids: ids + 1,
    vjp=lambda g, y, a, ids: (get_rows_back(g, ids, shape=a), None))  # fmt: skip
def get_rows(a: Tensor, ids: Tensor) -> Tensor:
    """Rows of a by number: a (..., v, d), ids int32 (..., n) -> float32 (..., n, d). Every id is checked against v.

    a is float32 or any type with a decoder, or int32, as then the result is.
    """


@op("GET_ROWS_BACK", shape="get_rows_back", rows=("g",), dense=("ids",), decoded=("g",))
def get_rows_back(g: Tensor, ids: Tensor, shape: Shape) -> Tensor:
    """Cotangent of a in get_rows(a, ids): rows of g summed into zeros of `shape`."""


@op(shape="get_rows_back", kernel="get_rows_back", rows=("g",), dense=("ids", "total"), inplace="total")
def add_rows(g: Tensor, ids: Tensor, total: Tensor, shape: Shape) -> Tensor:
    """total + get_rows_back(g, ids)."""


# ---------------------------------------------------------------- windows over images


@op("IM2COL", shape="im2col", dense=("b",), layouts=("a",), result="f16", rank=lambda a, b: b, vjp=lambda g, y, a, b: (
    None, im2col_back(a, g, y.s0, y.s1, y.p0, y.p1, y.d0, y.d1, y.is_2d, shape=b)))  # fmt: skip
def im2col(
    a: Tensor, b: Tensor, s0: int = 1, s1: int = 1, p0: int = 0, p1: int = 0, d0: int = 1, d1: int = 1, is_2d: int = 1
) -> Tensor:
    """The patches of images that a kernel meets, so that a convolution is a mul_mat; the kernel's size alone counts.

    a: (n_out, n_in, height, width); b: (n, n_in, height, width) -> (n, out_height, out_width, n_in * the kernel's
    height * width). With is_2d 0 all heights are absent. Strides s, paddings p and dilations d, the first across.
    """


@op("IM2COL_BACK", shape="im2col_back", dense=("g",), layouts=("a",))
def im2col_back(
    a: Tensor, g: Tensor, s0: int, s1: int, p0: int, p1: int, d0: int, d1: int, is_2d: int, shape: Shape
) -> Tensor:
    """Cotangent of b in im2col(a, b): the sum over all patches that an element is in."""


@op("CONV_TRANSPOSE_1D", shape="conv_transpose_1d", dense=("a", "b"), decoded=("a",), rank=lambda a, b: 2,
    vjp=lambda g, y, a, b: (
    conv_transpose_kernel_back(g, b, y.stride, 1, shape=a),
    conv_transpose_data_back(g, a, y.stride, 1, shape=b)))  # fmt: skip
def conv_transpose_1d(a: Tensor, b: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    """The transpose of a convolution (Zeiler et al. 2010): each element of b times the kernel, `stride` apart.

    a: (n_in, n_out, k); b: (n_in, n) -> (n_out, (n - 1) * stride + k). ggml knows padding 0 and dilation 1 only.
    """


@op("CONV_TRANSPOSE_2D", shape="conv_transpose_2d", dense=("a", "b"), decoded=("a",), rank=lambda a, b: b,
    vjp=lambda g, y, a, b: (
    conv_transpose_kernel_back(g, b, y.stride, 2, shape=a),
    conv_transpose_data_back(g, a, y.stride, 2, shape=b)))  # fmt: skip
def conv_transpose_2d(a: Tensor, b: Tensor, stride: int = 1) -> Tensor:
    """conv_transpose_1d in two dimensions. a: (n_in, n_out, height, width); b: (n, n_in, height, width).

    Stock ggml wants a in half precision.
    """


@op(shape="conv_transpose_back", dense=("g", "b"))
def conv_transpose_kernel_back(g: Tensor, b: Tensor, stride: int, dims: int, shape: Shape) -> Tensor:
    """Cotangent of the kernel in a transposed convolution of 1 or 2 dimensions."""


@op(shape="conv_transpose_back", dense=("g", "a"))
def conv_transpose_data_back(g: Tensor, a: Tensor, stride: int, dims: int, shape: Shape) -> Tensor:
    """Cotangent of the images in a transposed convolution of 1 or 2 dimensions."""


@op("POOL_1D", shape="pool_1d", dense=("a",), decoded=("a",),
    vjp=lambda g, y, a: (pool_1d_back(g, a, y.kind, y.k0, y.s0, y.p0),))  # fmt: skip
def pool_1d(a: Tensor, kind: int, k0: int, s0: int, p0: int = 0) -> Tensor:
    """Largest element (kind 0) or mean (kind 1) of windows of k0 elements, s0 apart, over rows with p0 zeros around."""


@op(shape="pool_1d_back", dense=("g", "a"))
def pool_1d_back(g: Tensor, a: Tensor, kind: int, k0: int, s0: int, p0: int) -> Tensor:
    """Cotangent of a in pool_1d(a); of equal largest elements the first has it all."""


@op("POOL_2D", shape="pool_2d", dense=("a",), decoded=("a",),
    vjp=lambda g, y, a: (pool_2d_back(g, a, y.kind, y.k0, y.k1, y.s0, y.s1, y.p0, y.p1),))  # fmt: skip
def pool_2d(a: Tensor, kind: int, k0: int, k1: int, s0: int, s1: int, p0: int = 0, p1: int = 0) -> Tensor:
    """pool_1d over the last two axes, by windows of k1 rows of k0."""


@op("POOL_2D_BACK", shape="pool_2d_back", dense=("g", "a"))
def pool_2d_back(g: Tensor, a: Tensor, kind: int, k0: int, k1: int, s0: int, s1: int, p0: int, p1: int) -> Tensor:
    """Cotangent of a in pool_2d(a); of equal largest elements the first has it all."""


# ---------------------------------------------------------------- order


@op("ARGSORT", shape="argsort", rows=("a",), work="argsort", no_gradient=True, by_row=True)
def argsort(a: Tensor, order: int = 0) -> Tensor:
    """Where the elements of each row come from when it is sorted, int32 of a's shape: order 0 rising, 1 falling.

    Equal elements keep their order; NaN comes last. The first k columns of a falling order are the top k.
    """


@op("ARGMAX", shape="argmax", rows=("a",), no_gradient=True, rank=lambda a: 1)
def argmax(a: Tensor) -> Tensor:
    """Where the largest element of each row is, the last of equal ones: (n, m) -> int32 (n,)."""


# ---------------------------------------------------------------- made of numbers


@op("ARANGE", shape="arange", no_gradient=True, rank=lambda: 1)
def arange(start: float, stop: float, step: float = 1.0) -> Tensor:
    """start + i * step for every i where it is below stop -> (n,)."""


@op("TIMESTEP_EMBEDDING", shape="timestep_embedding", dense=("timesteps",), rank=lambda timesteps: 2,
    vjp=lambda g, y, timesteps: (timestep_embedding_back(g, timesteps, y.dim, y.max_period),))  # fmt: skip
def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000) -> Tensor:
    """Cosines, then sines of a timestep times max_period^(-2i/dim) (Ho et al. 2020, appendix B).

    timesteps (n,) -> (n, dim); an odd dim is rounded up, and what is left of a row is 0.
    """


@op(shape="timestep_embedding_back", rows=("g",), dense=("timesteps",))
def timestep_embedding_back(g: Tensor, timesteps: Tensor, dim: int, max_period: int) -> Tensor:
    """Cotangent of timesteps in timestep_embedding(timesteps)."""


# ---------------------------------------------------------------- attention


@op("DIAG_MASK_INF", shape="diag_mask", rows=("a",), kernel="diag_mask", inplace=True,
    vjp=lambda g, y, a: (diag_mask_zero(g, y.n_past),))  # fmt: skip
def diag_mask_inf(a: Tensor, n_past: int = 0) -> Tensor:
    """-inf where column > row + n_past: a query attends to itself and what came before."""


@op("DIAG_MASK_ZERO", shape="diag_mask", rows=("a",), kernel="diag_mask", inplace=True,
    vjp=lambda g, y, a: (diag_mask_zero(g, y.n_past),))  # fmt: skip
def diag_mask_zero(a: Tensor, n_past: int = 0) -> Tensor:
    """0 where column > row + n_past."""


@op("SOFT_MAX", shape="soft_max", rows=("a", "mask"), decoded=("mask",), inplace=True, by_row=True,
    vjp=lambda g, y, a, mask: (soft_max_scaled_back(g, y, y.scale), None))  # fmt: skip
def soft_max(a: Tensor, mask: Tensor | None = None, scale: float = 1.0, max_bias: float = 0.0) -> Tensor:
    """softmax(a * scale + mask) over the last axis; the mask (n, m) is shared by the batch."""


@op("SOFT_MAX_BACK", rows=("g", "y"), inplace=True)
def soft_max_back(g: Tensor, y: Tensor) -> Tensor:
    """Cotangent of a in y = soft_max(a) without scale: y * (g - sum(g * y))."""


@op(kernel="soft_max_back", rows=("g", "y"), inplace=True)
def soft_max_scaled_back(g: Tensor, y: Tensor, scale: float) -> Tensor:
    """Cotangent of a in y = soft_max(a, scale=scale): scale * y * (g - sum(g * y))."""


def _attention_cotangents(
    g: Tensor, y: Any, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, None, None]:
    dk, dv = empty(shape=k), empty(shape=v)
    dq = attention_back(
        empty(shape=q), dk, dv, g, y, q, k, v, written(lse, y), mask, y.scale, y.n_past, y.window, y.soft_cap
    )
    return dq, written(dk, dq), written(dv, dq), None, None


@op(shape="attention", rows=("q", "k", "v"), dense=("lse", "mask"), writes=("lse",), work="attention",
    vjp=_attention_cotangents)  # fmt: skip
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float = 1.0,
    n_past: int = 0,
    window: int = 0,
    soft_cap: float = 0.0,
) -> Tensor:
    """softmax(scale * q @ k.T + mask) @ v per head; key j is visible to query i where j <= i + n_past, and, if there is
    a window, j > i + n_past - window. soft_cap > 0: scores before the mask are cap * tanh(scores / cap) (Gemma Team
    2024, section 2).

    q: (batch, ctx, n_head, head_dim); k, v: (batch, ctx_k, n_head_kv, head_dim), each head of which serves a group
    of query heads -> shape of q; mask: (batch or 1, n_head or 1, ctx or 1, ctx_k). Streams over
    blocks of keys (Milakov & Gimelshein 2018, Dao et al. 2022): the scores are never stored. When lse (batch, n_head,
    ctx) is given, it is left the logarithm of each softmax's denominator, which the backward pass needs.
    """


@op(shape="attention_back", rows=("g", "q", "k", "v"), dense=("dq", "dk", "dv", "y", "lse", "mask"),
    writes=("dq", "dk", "dv"), view=True, work="attention_back")  # fmt: skip
def attention_back(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    g: Tensor,
    y: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
    n_past: int,
    window: int,
    soft_cap: float,
) -> Tensor:
    """Cotangents of q, k and v in y = attention(q, k, v), left in dq, dk and dv; the result is dq."""


@op(shape="cached_attention", rows=("q", "k", "v"), dense=("k_cache", "v_cache", "n_past"),
    writes=("k_cache", "v_cache"), work="cached_attention", words={"scale": 0, "soft_cap": 3})  # fmt: skip
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    n_past: Tensor,
    scale: float = 1.0,
    soft_cap: float = 0.0,
) -> Tensor:
    """attention(q, k, v) of new positions to themselves and to the n_past[0] before them, which the caches hold.

    q: (batch, ctx, n_head, head_dim); k, v: (batch, ctx, n_head_kv, head_dim) -> shape of q. New position i is
    written to place n_past[0] + i of the caches and sees the places up to it. k_cache: (batch * n_head_kv, n_blocks,
    head_dim, 64); v_cache: (batch * n_head_kv, n_blocks * 64, head_dim). Positions
    beyond the caches' end are not kept.
    """


def _flash_cotangents(
    g: Tensor, y: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, None]:
    dk, dv = empty(shape=k), empty(shape=v)
    dq = flash_attn_ext_back(empty(shape=q), dk, dv, g, q, k, v, mask, y.scale, y.max_bias, y.logit_softcap)
    return dq, written(dk, dq), written(dv, dq), None


@op("FLASH_ATTN_EXT", shape="flash_attn_ext", rows=("q", "k", "v", "mask"), decoded=("k", "v", "mask"),
    work="flash_attn_ext", rank=lambda q, k, v, mask: q, vjp=_flash_cotangents)  # fmt: skip
def flash_attn_ext(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float = 1.0,
    max_bias: float = 0.0,
    logit_softcap: float = 0.0,
    prec: int = 0,
) -> Tensor:
    """softmax(scale * q @ k.T + mask) @ v per head, with the heads of the result beside one another.

    q: (batch, n_head, ctx, head_dim); k, v: (batch, n_head_kv, ctx_k, head_dim); mask (at least ctx, ctx_k)
    -> (batch, ctx, n_head, head_dim). max_bias > 0: the mask times each head's slope (ALiBi, Press et al. 2022).
    logit_softcap > 0: scores are cap * tanh(scores / cap) (Gemma Team 2024, section 2). Stock ggml wants the mask in
    half precision, its rows padded to a multiple of 32, and computes with halves.
    """


@op(shape="flash_attn_ext_back", rows=("g", "q", "k", "v", "mask"), dense=("dq", "dk", "dv"),
    writes=("dq", "dk", "dv"), view=True, work="flash_attn_ext")  # fmt: skip
def flash_attn_ext_back(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    max_bias: float,
    logit_softcap: float,
) -> Tensor:
    """Cotangents of q, k and v in flash_attn_ext(q, k, v), left in dq, dk and dv; the result is dq."""


@op("ROPE", shape="rope", rows=("a",), dense=("positions", "freq_factors"), decoded=("a",), result="a", inplace=True,
    words={"n_dims": 1, "mode": 2, "n_ctx_orig": 4, "freq_base": 5},
    vjp=lambda g, y, a, positions, freq_factors: (
        rope_back(g, positions, freq_factors, y.n_dims, y.mode, y.n_ctx_orig, y.freq_base, y.freq_scale,
                  y.ext_factor, y.attn_factor, y.beta_fast, y.beta_slow), None, None))  # fmt: skip
def rope(
    a: Tensor,
    positions: Tensor,
    freq_factors: Tensor | None = None,
    n_dims: int = 0,
    mode: int = 0,
    n_ctx_orig: int = 0,
    freq_base: float = 10000.0,
    freq_scale: float = 1.0,
    ext_factor: float = 0.0,
    attn_factor: float = 1.0,
    beta_fast: float = 0.0,
    beta_slow: float = 0.0,
) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of the first `n_dims` of each head.

    a: (batch, ctx, n_head, head_dim); positions: int32 (ctx,). mode 0 rotates pairs (2i, 2i+1), mode 2
    (GPT-NeoX) pairs (i, i + n_dims/2), by position * freq_base^(-2i/n_dims) * freq_scale.
    ext_factor > 0 is YaRN (Peng et al. 2023): pairs of more than beta_fast turns in n_ctx_orig are not scaled, and
    the result grows by 1 + 0.1 ln(1 / freq_scale).
    """


@op("ROPE_BACK", kernel="rope", shape="rope", rows=("g",), dense=("positions", "freq_factors"), decoded=("g",),
    result="g", inplace=True,
    words={"n_dims": 1, "mode": 2, "n_ctx_orig": 4, "freq_base": 5})  # fmt: skip
def rope_back(
    g: Tensor,
    positions: Tensor,
    freq_factors: Tensor | None = None,
    n_dims: int = 0,
    mode: int = 0,
    n_ctx_orig: int = 0,
    freq_base: float = 10000.0,
    freq_scale: float = 1.0,
    ext_factor: float = 0.0,
    attn_factor: float = 1.0,
    beta_fast: float = 0.0,
    beta_slow: float = 0.0,
) -> Tensor:
    """Cotangent of a in rope(a): the inverse rotation."""


# ---------------------------------------------------------------- loss


@op(shape="cross_entropy", dense=("logits", "targets", "weights"), work="cross_entropy",
    vjp=lambda g, y, logits, targets, weights: (
        cross_entropy_back(scale(g, y.scale), logits, targets, weights), None, None))  # fmt: skip
def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, scale: float = 1.0) -> Tensor:
    """scale * sum_t weights[t] * log softmax(logits[t])[targets[t]] -> (1,). Never forms the probabilities.

    logits: (..., n_vocab); targets int32 and weights: one per row of logits.
    """


@op(dense=("g", "logits", "targets", "weights"), shape="second")
def cross_entropy_back(g: Tensor, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cotangent of logits in cross_entropy: g * weights[t] * (onehot(targets[t]) - softmax(logits[t]))."""


@op(shape="linear_cross_entropy", dense=("w", "x", "targets", "weights"), writes=("dw", "dx"),
    work="linear_cross_entropy",
    vjp=lambda g, y, w, x, targets, weights, dw, dx: (
        written(dw, y) * g, written(dx, y) * g, None, None, None, None))  # fmt: skip
def linear_cross_entropy(
    w: Tensor,
    x: Tensor,
    targets: Tensor,
    weights: Tensor,
    dw: Tensor | None = None,
    dx: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """cross_entropy(mul_mat(w, x), targets, weights, scale) in chunks of rows: the logits are never stored.

    w: (n_vocab, k); x: (..., k) -> (1,). When dw and dx (shapes of w and x) are given, the same pass leaves
    the derivatives in them, so the backward pass only multiplies by g.
    """


@op(shape="sized", kernel=None)
def empty(shape: Shape) -> Tensor:
    """Memory of `shape` that a later node writes."""


@op(shape="first", dense=("a",), view=True, kernel=None)
def written(a: Tensor, by: Tensor) -> Tensor:
    """a, after node `by` has written it."""


@op("CROSS_ENTROPY_LOSS", shape="soft_cross_entropy", dense=("logits", "labels"), work="cross_entropy",
    rank=lambda logits, labels: 1,
    vjp=lambda g, y, logits, labels: (soft_cross_entropy_back(g, logits, labels), None))  # fmt: skip
def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows of -sum(labels * log softmax(logits)), labels being probabilities, of logits' shape -> (1,)."""


@op(shape="soft_cross_entropy_back", dense=("g", "logits", "labels"))
def soft_cross_entropy_back(g: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Cotangent of logits in soft_cross_entropy: g / n_rows * (sum(labels) * softmax(logits) - labels)."""


@op("CROSS_ENTROPY_LOSS_BACK", shape="soft_cross_entropy_back",
    dense=("logits", "labels", "g"))  # fmt: skip
def soft_cross_entropy_grad(logits: Tensor, labels: Tensor, g: Tensor) -> Tensor:
    """g / n_rows * (softmax(logits) - labels), which is the cotangent where each row of labels adds up to 1."""


# ---------------------------------------------------------------- optimiser


@op(shape="first", dense=("total", "g"), writes=("total",), view=True)
def accumulate(total: Tensor, g: Tensor, keep: Tensor) -> Tensor:
    """total = keep[0] * total + g, in place: gradients of several micro-batches."""


@op(shape="scalar", dense=("a",), work="sum")
def sum_sqr(a: Tensor, total: Tensor | None = None) -> Tensor:
    """Sum of squares of a, plus total[0] -> (1,)."""


# What updates parameters (execution/optimizers.py chooses). hyper: (lr, weight_decay, clip, clip_value), then up to
# eight numbers of the op's own. g is first scaled by clip / (norm + 1e-6) where the global norm, sqrt(sum_sqr[0]), is
# above clip > 0, then cut at +-clip_value if that is above 0; a norm that is not finite leaves everything as it is. The
# step is lr * rate * u, for a direction u, and p is first multiplied by 1 - lr * weight_decay * decay, with `cautious`
# only where u * p >= 0 (Chen et al. 2025, cautious weight decay).


@op(shape="first", dense=("p", "g", "m", "v"), writes=("p", "m", "v"), view=True)
def adamw(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    hyper: Tensor,
    sum_sqr: Tensor,
    rate: float = 1.0,
    decay: float = 1.0,
    cautious: int = 0,
) -> Tensor:
    """One AdamW update in place (Loshchilov & Hutter 2019, algorithm 2, decay multiplied by the rate, as torch's).

    hyper: (lr, weight_decay, clip, clip_value, beta1, beta2, eps, 1 - beta1^t, 1 - beta2^t).
    """


@op(shape="first", dense=("p", "g"), writes=("p",), view=True)
def sgd(
    p: Tensor, g: Tensor, hyper: Tensor, sum_sqr: Tensor, rate: float = 1.0, decay: float = 1.0, cautious: int = 0
) -> Tensor:
    """p -= lr * rate * (g + weight_decay * decay * p), in place: torch's SGD, whose decay is part of the gradient."""


@op(shape="first", dense=("p", "g", "m"), writes=("p", "m"), view=True)
def sgd_momentum(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    hyper: Tensor,
    sum_sqr: Tensor,
    rate: float = 1.0,
    decay: float = 1.0,
    cautious: int = 0,
) -> Tensor:
    """torch's SGD with momentum, in place: m = momentum * m + g, and the step is along m, or with nesterov along
    g + momentum * m (Sutskever et al. 2013); g has weight_decay * decay * p in it.

    hyper: (lr, weight_decay, clip, clip_value, momentum, nesterov).
    """


@op(shape="first", dense=("p", "g", "m"), writes=("p", "m"), view=True)
def lion(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    hyper: Tensor,
    sum_sqr: Tensor,
    rate: float = 1.0,
    decay: float = 1.0,
    cautious: int = 0,
) -> Tensor:
    """One Lion update in place (Chen et al. 2023, algorithm 2): along the sign of beta1 * m + (1 - beta1) * g; then
    m = beta2 * m + (1 - beta2) * g.

    hyper: (lr, weight_decay, clip, clip_value, beta1, beta2).
    """


@op(shape="first", dense=("p", "g", "r", "c"), writes=("p", "r", "c"), view=True, work="rows")
def adafactor(
    p: Tensor,
    g: Tensor,
    r: Tensor,
    c: Tensor,
    hyper: Tensor,
    sum_sqr: Tensor,
    rate: float = 1.0,
    decay: float = 1.0,
    cautious: int = 0,
) -> Tensor:
    """One Adafactor update in place (Shazeer & Stern 2018), of matrices: r and c are running means of squares of rows
    and columns, v = r c / max(mean(r), floor), u = g / sqrt(max(v, floor^2)), and the step is along
    u / max(1, rms(u) / threshold), times max(least_scale, rms(p)), at no more than most_rate unless that is 0.

    hyper: (lr, weight_decay, clip, clip_value, beta2 of this step, what is added to g^2, floor, least_scale, threshold,
    most_rate).
    """


@op(shape="first", dense=("p", "g", "v"), writes=("p", "v"), view=True, work="rows")
def adafactor_whole(
    p: Tensor,
    g: Tensor,
    v: Tensor,
    hyper: Tensor,
    sum_sqr: Tensor,
    rate: float = 1.0,
    decay: float = 1.0,
    cautious: int = 0,
) -> Tensor:
    """The same where v is kept as it is: of vectors and small matrices."""


@op(
    shape="first",
    dense=("p", "g", "v", "z", "average", "sums"),
    writes=("p", "v", "z", "average", "sums"),
    view=True,
)
def schedule_free(
    p: Tensor,
    g: Tensor,
    v: Tensor,
    z: Tensor,
    average: Tensor,
    sums: Tensor,
    hyper: Tensor,
    sum_sqr: Tensor,
    rate: float = 1.0,
    decay: float = 1.0,
) -> Tensor:
    """One schedule-free AdamW update in place (Defazio et al. 2024): z steps along g / sqrt(v) + decay of p, `average`
    is the mean of z, weighted by the squares of the largest rate so far, and p = (1 - beta1) z + beta1 average.

    hyper: (lr, weight_decay, clip, clip_value, beta1, beta2, eps, 1 - beta2^t, whether t is 1).
    """


@op(shape="first", dense=("average", "p"), writes=("average",), view=True)
def ema(average: Tensor, p: Tensor, hyper: Tensor, sum_sqr: Tensor) -> Tensor:
    """average += (1 - decay) * (p - average), in place, and at first p.

    hyper: (lr, weight_decay, clip, clip_value, decay, whether t is 1).
    """


@op(shape="first", dense=("g", "m"), writes=("m",))
def momentum(g: Tensor, m: Tensor, hyper: Tensor, sum_sqr: Tensor) -> Tensor:
    """m = momentum * m + (1 - momentum) * g, in place; the result is m or, with nesterov, the same formula again.

    hyper: (lr, weight_decay, clip, clip_value, momentum, nesterov).
    """


@op(shape="first", dense=("a",), inplace=True)
def unit(a: Tensor, sum_sqr: Tensor, eps: float) -> Tensor:
    """a / (sqrt(sum_sqr[0]) + eps): a divided by its own norm."""


@op(shape="same", dense=("s", "s2"), inplace="s2")
def newton_schulz(s: Tensor, s2: Tensor, a: float, b: float, c: float) -> Tensor:
    """a * I + b * s + c * s2 of square matrices: what a quintic Newton-Schulz step multiplies by (Jordan 2024)."""


@op(shape="first", dense=("p", "u"), writes=("p",), view=True)
def muon(
    p: Tensor,
    u: Tensor,
    hyper: Tensor,
    sum_sqr: Tensor,
    rate: float = 1.0,
    decay: float = 1.0,
    cautious: int = 0,
) -> Tensor:
    """The last part of a Muon update (Jordan 2024), in place: p steps along u, the orthogonalised momentum."""


@op(shape="first", dense=("p", "u", "v"), writes=("p", "v"), view=True, work="rows")
def normuon(
    p: Tensor,
    u: Tensor,
    v: Tensor,
    hyper: Tensor,
    sum_sqr: Tensor,
    rate: float = 1.0,
    decay: float = 1.0,
    cautious: int = 0,
) -> Tensor:
    """The last part of a NorMuon update (Li et al. 2025, algorithm 1), in place: v, one number a row, is the mean of
    the row's squares over steps, and p steps along u / (sqrt(v) + eps) divided by its norm.

    hyper: (lr, weight_decay, clip, clip_value, momentum, nesterov, beta2, eps).
    """


@op("OPT_STEP_ADAMW", shape="opt_step_adamw", dense=("p", "g", "m", "v"), writes=("p", "m", "v"), view=True,
    no_gradient=True)  # fmt: skip
def opt_step_adamw(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    iteration: Offset,
    alpha: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """ggml's AdamW update number `iteration` in place, with rate alpha; adamw is the one that training uses."""


# ---------------------------------------------------------------- what models are written with

PURPOSES: dict[str, tuple[str, ...]] = {  # public names, `gg.NAME`; what else ggml has, models say as below, if at all
    "Functions of elements": ("abs", "cos", "exp", "log", "sgn", "sin", "sqr", "sqrt", "step"),
    "Activations": (
        "elu", "gelu", "gelu_erf", "gelu_quick", "hardsigmoid", "hardswish", "leaky_relu", "relu", "sigmoid", "silu",
        "tanh",
    ),
    "Products": ("mul_mat", "mul_mat_id"),
    "Reductions": ("count_equal",),
    "Indexing and layout": ("argsort", "diag", "get_rows", "repeat", "upscale"),
    "Normalisation": ("norm", "rms_norm"),
    "Attention": ("diag_mask_inf", "rope", "soft_max"),
    "Constants": ("timestep_embedding",),
}  # fmt: skip
WRITTEN: dict[str, str] = {
    "acc": "gg.pad and +", "add": "a + b", "add1": "a + b", "cont": "a.cont()",
    "conv_transpose_1d": "gg.conv_transpose1d",
    "conv_transpose_2d": "gg.conv_transpose2d", "diag_mask_zero": "gg.tril(a)", "div": "a / b",
    "flash_attn_ext": "gg.attention", "im2col": "gg.conv1d or gg.conv2d", "mul": "a * b", "neg": "-a",
    "out_prod": "b.T @ a", "permute": "a.permute(...)", "pool_1d": "gg.max_pool1d or gg.avg_pool1d",
    "pool_2d": "gg.max_pool2d or gg.avg_pool2d", "reshape": "a.reshape(...)", "scale": "a * s",
    "set": "gg.concat or gg.where", "soft_cross_entropy": "gg.cross_entropy", "sub": "a - b",
    "sum_rows": "a.sum(-1, keepdims=True)", "transpose": "a.T", "view": "a[...]",
}  # fmt: skip
