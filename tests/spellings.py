"""What a model may be written with, as numpy writes it and as we do: the cases of test_spellings.py, here and
beside real ggml, and the table of docs/language.md.

A case is two expressions over the same named arrays, `ours` with the package as `gg`, `numpys` with numpy as `np` (and
the few functions of scipy's or torch's that numpy lacks, below). Every result is compared, and its gradient where the
case has one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import ggmlgraph as gg

Shape = tuple[int, ...]
NORMAL = (
    "x",
    "y",
    "z",
    "w",
    "v",
)  # arrays of these names hold any numbers, others ones of 0.5 to 2
N_IDS = 4


@dataclass(frozen=True)
class Spelling:
    """One way to say something. Shapes are of the arrays of the expressions, by name."""

    section: str
    ours: str
    numpys: str
    shapes: dict[str, Shape]
    has_gradient: bool = True

    def __str__(self) -> str:
        return f"{self.ours} of {self.shapes}"

    def arrays(self) -> dict[str, Any]:
        """float32 values, the same at each call; int32 ones of names that begin with `ids`."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        return {name: _values(rng, name, shape) for name, shape in self.shapes.items()}

    def expected(self, arrays: dict[str, Any]) -> Any:
        """The result in float64."""
        return np.asarray(eval(self.numpys, {"np": np, **FUNCTIONS}, dict(arrays)), np.float64)


def _values(rng: Any, name: str, shape: Shape) -> Any:
    if name.startswith("ids"):
        return rng.integers(0, N_IDS, shape, dtype=np.int32)
    if name[0] in NORMAL:  # no two of a case closer than gradients are taken
        return (
            rng.permutation(max(1, int(np.prod(shape)))).reshape(shape) * 0.17 - 1.5 + 0.013 * NORMAL.index(name[0])
        ).astype("f4")
    return rng.uniform(0.5, 2, shape).astype(np.float32)


FUNCTIONS: dict[str, Any] = {}

ROW, COLUMN, BOX, ODD = (1, 7), (5, 1), (5, 7), (2, 3, 1, 7)


def _arithmetic() -> Iterable[Spelling]:
    shapes: list[tuple[Shape, Shape]] = [
        (BOX, BOX), (BOX, ROW), (ROW, BOX), (BOX, COLUMN), (COLUMN, BOX), (COLUMN, ROW), ((7,), BOX), (BOX, (7,)),
        (ODD, BOX), (BOX, ODD), ((1,), BOX), ((3, 1, 1), (2, 1, 5, 7)), ((1, 1, 1), (7,)),
    ]  # fmt: skip
    for symbol in "+-*/":
        for one, other in shapes:
            yield Spelling("Arithmetic", f"a {symbol} b", f"a {symbol} b", {"a": one, "b": other})
    numbers = (
        "x + 1", "1 + x", "x - 1", "1 - x", "x * 3", "3 * x", "x / 4", "-x", "x ** 2", "x ** 3", "x ** 7", "x ** 0",
        "x ** 1", "2 ** x", "np.float32(2) * x", "np.float32(2) - x",
    )  # fmt: skip
    positive = ("1 / a", "a ** 0.5", "a ** -1", "a ** -2", "a ** -0.5", "a ** 1.7", "a ** b", "2.5 / a")
    for text in (*numbers, *positive):
        yield Spelling("Arithmetic", text, text, {"x": BOX} if "x" in text else {"a": BOX, "b": ROW})


def _functions() -> Iterable[Spelling]:
    alike = ("exp", "sin", "cos", "tanh", "abs")
    pairs = [
        *((f"gg.{name}(x)", f"np.{name}(x)") for name in alike),
        ("gg.log(a)", "np.log(a)"), ("gg.sqrt(a)", "np.sqrt(a)"), ("gg.sqr(x)", "np.square(x)"),
        ("gg.sgn(x)", "np.sign(x)"), ("gg.step(x)", "np.heaviside(x, 0)"),
        ("gg.clamp(x, -0.7, 1)", "np.clip(x, -0.7, 1)"),
        ("gg.relu(x)", "np.maximum(x, 0)"), ("gg.leaky_relu(x, 0.1)", "np.maximum(x, 0.1 * x)"),
        ("gg.elu(x)", "np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)"), ("gg.sigmoid(x)", "1 / (1 + np.exp(-x))"),
        ("gg.silu(x)", "x / (1 + np.exp(-x))"), ("gg.gelu_quick(x)", "x / (1 + np.exp(-1.702 * x))"),
        ("gg.gelu(x)", "0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))"),
        ("gg.gelu_erf(x)", "0.5 * x * (1 + erf(x / 2**0.5))"),
        ("gg.hardsigmoid(x)", "np.clip((x + 3) / 6, 0, 1)"), ("gg.hardswish(x)", "x * np.clip((x + 3) / 6, 0, 1)"),
    ]  # fmt: skip
    for ours, numpys in pairs:
        shapes = {"a": BOX} if "(a)" in ours else {"x": BOX}
        yield Spelling("Functions", ours, numpys, shapes, has_gradient="sgn" not in ours and "step" not in ours)
    rows = {"x": (3, 4, 7)}
    for name, numpys in {
        "gg.norm(x, 1e-5)": "(x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)",
        "gg.rms_norm(x, 1e-5)": "x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)",
        "gg.soft_max(x)": "softmax(x, -1)",
        "gg.repeat(x, (6, 4, 14))": "np.tile(x, (2, 1, 2))",
    }.items():
        yield Spelling("Functions", name, numpys, rows)
    yield Spelling("Functions", "gg.mul_mat(w, x)", "x @ w.T", {"w": (5, 7), "x": (3, 4, 7)})
    yield Spelling("Functions", "gg.get_rows(x, ids)", "x[ids]", {"x": (4, 5), "ids": (6,)})
    yield Spelling("Functions", "gg.argsort(x)", "np.argsort(x, -1)", {"x": (3, 7)}, has_gradient=False)
    yield Spelling("Functions", "gg.diag(x)", "x * np.eye(7)", {"x": (3, 1, 7)})


def _comparisons() -> Iterable[Spelling]:
    for symbol in ("<", "<=", ">", ">=", "==", "!="):
        for text in (f"x {symbol} y", f"x {symbol} 0", f"0.1 {symbol} x", f"x {symbol} x"):
            yield Spelling("Masks", text, text, {"x": BOX, "y": COLUMN}, has_gradient=False)
    for ours, numpys in {"~(x > y)": "~(x > y)", "(x > y) & (x < 1)": "(x > y) & (x < 1)"}.items():
        yield Spelling("Masks", ours, numpys, {"x": BOX, "y": COLUMN}, has_gradient=False)
    yield Spelling("Masks", "(x > y) | (x < 0)", "(x > y) | (x < 0)", {"x": BOX, "y": COLUMN}, has_gradient=False)
    yield Spelling("Masks", "gg.equal(x, y)", "np.equal(x, y)", {"x": BOX, "y": (5, 1)}, has_gradient=False)
    yield Spelling("Masks", "gg.equal(x, x)", "np.equal(x, x)", {"x": BOX}, has_gradient=False)
    yield Spelling("Masks", "gg.logical_not(x > y)", "~(x > y)", {"x": BOX, "y": BOX}, has_gradient=False)


def _indices() -> Iterable[Spelling]:
    shapes: tuple[Shape, ...] = ((4, 6), (2, 3, 4, 6))
    keys = (
        "..., 2", ":, -1", "..., None, :", "1", "-1", "..., 1:5", "..., -3:-1", "..., ::2", "1::2", "..., ::-1", "::-1",
        "..., 4:1:-2", "..., 1, :", "..., 1, 2", "0, ..., 0", "...", "..., 1:3, 1:6:3", "1, ..., 1:", ":, 1:3, ...",
    )  # fmt: skip
    for key in keys:
        for shape in shapes:
            if key.count(",") < len(shape) + 1 and not (key == "..., None, :" and len(shape) == 4):
                yield Spelling("Indexing", f"x[{key}]", f"x[{key}]", {"x": shape})
    yield Spelling("Indexing", "x[3]", "x[3:4]", {"x": (6,)})
    yield Spelling("Indexing", "x[None, :, None]", "x[None, :, None]", {"x": (6,)})
    for axis in (0, 1, -1):
        for ids in ((5,), (2, 3)):
            text = f"(x, ids, axis={axis})"
            yield Spelling("Indexing", "gg.gather" + text, "np.take" + text, {"x": (4, 5), "ids": ids})
        yield Spelling("Indexing", f"gg.flip(x, {axis})", f"np.flip(x, {axis})", {"x": (2, 3, 6)})


def _layouts() -> Iterable[Spelling]:
    for axis in (0, 1, 2, 3, -1, -2):
        one: Shape = (2, 3, 4, 5)
        other = tuple(n + 2 if i == axis % 4 else n for i, n in enumerate(one))
        text = f"([x, y, x], axis={axis})"
        yield Spelling("Layout", "gg.concat" + text, "np.concatenate" + text, {"x": one, "y": other})
    for axis in (0, 1, 2, -1):
        text = f"([x, y], axis={axis})"
        yield Spelling("Layout", "gg.stack" + text, "np.stack" + text, {"x": (3, 4), "y": (3, 4)})
        yield Spelling("Layout", f"x.unsqueeze({axis})", f"np.expand_dims(x, {axis})", {"x": (3, 4)})
    for text in ("(x, 2, axis=1)[1]", "(x, 3, axis=-1)[0]", "(x, [1, 3], axis=1)[1]", "(x, [1], axis=0)[0]"):
        yield Spelling("Layout", "gg.split" + text, "np.split" + text, {"x": (2, 4, 6)})
    for text in ("1", "(1, 2)", "((0, 1), (0, 2))", "((1, 0), (0, 0))", "((2, 1), (1, 3))"):
        yield Spelling("Layout", f"gg.pad(x, {text})", f"np.pad(x, {text})", {"x": (3, 5)})
    box = {"x": (2, 3, 4, 5)}
    yield Spelling("Layout", "x.reshape(6, -1)", "x.reshape(6, -1)", box)
    yield Spelling("Layout", "x.permute(2, 0, 3, 1)", "x.transpose(2, 0, 3, 1)", box)
    yield Spelling("Layout", "x.T", "x.swapaxes(-2, -1)", box)
    yield Spelling("Layout", "x.cont()", "x.copy()", box)
    yield Spelling("Layout", "x.flatten()", "x.reshape(-1)", box)
    yield Spelling("Layout", "x.flatten(1, 2)", "x.reshape(2, 12, 5)", box)
    yield Spelling("Layout", "x.flatten(-2)", "x.reshape(2, 3, 20)", box)
    yield Spelling("Layout", "x.swapaxes(0, -1)", "x.swapaxes(0, -1)", box)
    yield Spelling("Layout", "x.swapaxes(1, 2)", "x.swapaxes(1, 2)", box)
    yield Spelling("Layout", "x.squeeze()", "x.squeeze()", {"x": (1, 3, 1, 4)})
    yield Spelling("Layout", "x.squeeze(-2)", "x.squeeze(-2)", {"x": (1, 3, 1, 4)})


def _log_sum_exp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


FUNCTIONS["erf"] = np.vectorize(math.erf)
FUNCTIONS["logsumexp"] = _log_sum_exp
FUNCTIONS["softmax"] = lambda x, axis: np.exp(x - _log_sum_exp(x, axis, keepdims=True))
FUNCTIONS["log_softmax"] = lambda x, axis: x - _log_sum_exp(x, axis, keepdims=True)


def _products() -> Iterable[Spelling]:
    sizes = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6, "q": 4, "d": 7}
    texts = (
        "ij->ji", "hij->jhi", "ij->", "ij->j", "hij", "bhij->hb", "ij,jk->ik", "ij,jk", "ij,jk->ki", "ji,jk->ik",
        "ij,kj->ik", "ij,ij->", "ij,ij->ij", "ij,ij->i", "ij,j->i", "i,i->", "i,j->ij", "ij,kh->ikjh", "bij,bjk->bik",
        "bij,jk->bik", "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "bhij,hjk->bhik", "bhij,bhij->hb", "bhij,hj->bi",
        "ijk,kjd->id", "ij,jk,kd->id", "ij,j,jk->ik", "ij,ik->i", "hij,hkj->ihk", "bi,bj->bij",
    )  # fmt: skip
    for text in texts:
        names = [f"x{i}" for i in range(text.count(",") + 1)]
        parts = text.partition("->")[0].split(",")
        shapes = {name: tuple(sizes[c] for c in part) for name, part in zip(names, parts, strict=True)}
        call = f'("{text}", {", ".join(names)})'
        yield Spelling("Products", "gg.einsum" + call, "np.einsum" + call, shapes)
    one: list[tuple[Shape, Shape]] = [
        ((4, 5), (5, 3)), ((2, 4, 5), (5, 3)), ((2, 4, 5), (2, 5, 3)), ((4, 5), (2, 5, 3)), ((2, 1, 4, 5), (3, 5, 2)),
        ((1, 4, 5), (3, 5, 2)), ((4, 5), (5,)), ((5,), (5, 3)), ((5,), (5,)), ((2, 4, 5), (5,)), ((5,), (2, 5, 3)),
    ]  # fmt: skip
    for x, y in one:
        yield Spelling("Products", "x @ y", "x @ y", {"x": x, "y": y})
    yield Spelling("Products", "x @ y.T", "x @ y.T", {"x": (4, 5), "y": (3, 5)})


def _constants() -> Iterable[Spelling]:
    for values in ("2.5", "[1, 0.5, -2]", "np.eye(5, 7)", "[[True], [False], [True], [True], [False]]"):
        ours = f"x * gg.constant({values})"
        shape: Shape = (5, 3) if values.startswith("[1") else BOX
        yield Spelling("Constants", ours, f"x * np.asarray({values})", {"x": shape})
    yield Spelling("Constants", "gg.gather(x, gg.constant([2, 0]))", "np.take(x, [2, 0], axis=0)", {"x": BOX})
    for call in ("5", "2, 9", "9, 2, -2", "0, 1, 0.1", "0.5, 4"):
        text = f"arange({call})"
        yield Spelling("Constants", f"x[:, None] * gg.{text}", f"x[:, None] * np.{text}", {"x": (3,)})
    yield Spelling("Constants", 'gg.gather(x, gg.arange(1, 5, 2, dtype="i32"))', "x[np.arange(1, 5, 2)]", {"x": BOX})
    yield Spelling("Constants", "ids.float(4)", "ids.astype(float)", {"ids": (2, 3)}, has_gradient=False)
    yield Spelling("Constants", "gg.stop_gradient(x)", "x", {"x": BOX}, has_gradient=False)


def _reductions() -> Iterable[Spelling]:
    box: dict[str, Shape] = {"x": (2, 3, 4, 5)}
    for name in ("sum", "mean", "var", "max", "min"):
        for text in ("", "axis=-1", "axis=0", "axis=1, keepdims=True", "axis=(0, 2)", "axis=(1, 3), keepdims=True"):
            yield Spelling("Reductions", f"x.{name}({text})", f"x.{name}({text})", box)
    for text in ("", ", axis=2", ", axis=(0, -1), keepdims=True"):
        yield Spelling("Reductions", f"gg.logsumexp(x{text})", f"logsumexp(x{text})", box)
    for name in ("argmax", "argmin"):
        for text in ("", "axis=-1", "axis=1"):
            yield Spelling("Reductions", f"x.{name}({text})", f"x.{name}({text})", {"x": (2, 3, 4)}, has_gradient=False)
    for axis in (0, 1, -1):
        for name in ("softmax", "log_softmax", "np.cumsum"):
            ours = "gg." + name.removeprefix("np.")
            yield Spelling("Reductions", f"{ours}(x, axis={axis})", f"{name}(x, axis={axis})", {"x": (2, 3, 6)})


def _selections() -> Iterable[Spelling]:
    for name in ("maximum", "minimum"):
        for one, other in ((BOX, BOX), (BOX, ROW), (COLUMN, BOX), (COLUMN, ROW)):
            yield Spelling("Selection", f"gg.{name}(x, y)", f"np.{name}(x, y)", {"x": one, "y": other})
        yield Spelling("Selection", f"gg.{name}(x, 0.3)", f"np.{name}(x, 0.3)", {"x": BOX})
        yield Spelling("Selection", f"gg.{name}(-0.3, x)", f"np.{name}(-0.3, x)", {"x": BOX})
    for arms in ("x, y", "x, 2", "0, y", "1, 2"):
        text = f"(z > 0.1, {arms})"
        shapes = {"z": COLUMN, "x": BOX, "y": ROW}
        yield Spelling("Selection", "gg.where" + text, "np.where" + text, shapes)
    for k in (-2, -1, 0, 1, 2):
        for name in ("tril", "triu"):
            for shape in ((4, 5), (2, 5, 3)):
                yield Spelling("Selection", f"gg.{name}(x, {k})", f"np.{name}(x, {k})", {"x": shape})


SPELLINGS: tuple[Spelling, ...] = (
    *_arithmetic(),
    *_functions(),
    *_comparisons(),
    *_indices(),
    *_layouts(),
    *_products(),
    *_constants(),
    *_reductions(),
    *_selections(),
)


@dataclass(frozen=True)
class Layer:
    """What numpy has no function for: torch's, `torch.nn.functional` as `F`, over the same arrays, if it has one."""

    section: str
    ours: str
    torchs: str
    shapes: dict[str, Shape]


IMAGES, SIGNALS, HEADS = {"x": (2, 4, 6, 7)}, {"x": (2, 4, 9)}, (2, 5, 3, 8)
LAYERS: tuple[Layer, ...] = (
    Layer("Windows", "gg.conv1d(x, w, b, stride=2, padding=1)", "F.conv1d(x, w, b, stride=2, padding=1)",
          SIGNALS | {"w": (5, 4, 3), "b": (5,)}),
    Layer("Windows", "gg.conv2d(x, w, groups=2)", "F.conv2d(x, w, groups=2)", IMAGES | {"w": (6, 2, 3, 3)}),
    Layer("Windows", "gg.conv_transpose1d(x, w, stride=2)", "F.conv_transpose1d(x, w, stride=2)",
          SIGNALS | {"w": (4, 5, 3)}),
    Layer("Windows", "gg.conv_transpose2d(x, w, stride=2)", "F.conv_transpose2d(x, w, stride=2)",
          IMAGES | {"w": (4, 5, 3, 3)}),
    Layer("Windows", "gg.max_pool1d(x, 3)", "F.max_pool1d(x, 3)", SIGNALS),
    Layer("Windows", "gg.avg_pool1d(x, 3)", "F.avg_pool1d(x, 3)", SIGNALS),
    Layer("Windows", "gg.max_pool2d(x, 2)", "F.max_pool2d(x, 2)", IMAGES),
    Layer("Windows", "gg.avg_pool2d(x, (2, 3))", "F.avg_pool2d(x, (2, 3))", IMAGES),
    Layer("Normalisation", "gg.group_norm(x, 2, g, b)", "F.group_norm(x, 2, g, b)", IMAGES | {"g": (4,), "b": (4,)}),
    Layer("Attention", "gg.attention(q, k, v)",
          "F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)"
          ".transpose(1, 2)", {"q": HEADS, "k": HEADS, "v": HEADS}),
    Layer("Attention", "gg.attention(q, k, v, causal=False, mask=m)",
          "F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), m).transpose(1, 2)",
          {"q": HEADS, "k": HEADS, "v": HEADS, "m": (5, 5)}),
    Layer("Attention", "gg.diag_mask_inf(x)", "x.masked_fill(torch.ones(5, 7).triu(1).bool(), -torch.inf)", {"x": BOX}),
    Layer("Attention", "gg.rope(q, ids, n_dims=8)", "", {"q": HEADS, "ids": (5,)}),
    Layer("Products", "gg.mul_mat_id(w, x, ids)", "(w[ids] @ x[..., None])[..., 0]",
          {"w": (4, 5, 7), "x": (6, 2, 7), "ids": (6, 2)}),
    Layer("Layout", "gg.upscale(x, (4, 6))", "F.interpolate(x[None, None], (4, 6))[0, 0]", {"x": (2, 3)}),
    Layer("Constants", "gg.timestep_embedding(t, 8)", "", {"t": (6,)}),
    Layer("Training", "gg.dropout(x, 0.1)", "F.dropout(x, 0.1, training=False)", {"x": BOX}),
    Layer("Training", "gg.stop_gradient(x)", "x.detach()", {"x": BOX}),
    Layer("Loops", "gg.scan(lambda c, x: (c * 0.9 + x, c), y, z)[1]", "", {"y": (7,), "z": (5, 7)}),
    Layer("Reductions", "gg.count_equal(ids, ids2)", "(ids == ids2).sum()", {"ids": (6,), "ids2": (6,)}),
    Layer("Losses", "gg.cross_entropy(x, ids)", "F.cross_entropy(x, ids.long())", {"x": (6, 4), "ids": (6,)}),
    Layer("Losses", "gg.cross_entropy(x, ids, label_smoothing=0.1)",
          "F.cross_entropy(x, ids.long(), label_smoothing=0.1)", {"x": (6, 4), "ids": (6,)}),
    Layer("Losses", "gg.mse(x, y)", "F.mse_loss(x, y)", {"x": BOX, "y": BOX}),
    Layer("Losses", "gg.huber(x, y)", "F.huber_loss(x, y)", {"x": BOX, "y": BOX}),
    Layer("Losses", "gg.bce(x, t)", "F.binary_cross_entropy_with_logits(x, t)", {"x": BOX, "t": BOX}),
    Layer("Losses", "gg.kl(x, gg.softmax(y))",
          'F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1), reduction="batchmean")', {"x": BOX, "y": BOX}),
)  # fmt: skip


def ops_written(ours: str, shapes: dict[str, Shape]) -> list[str]:
    """The ops of ggml that an expression writes into the file, over parameters and ids of these shapes."""
    names: list[str] = []

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor) -> gg.Tensor:
        given = {}
        for name, shape in shapes.items():
            ids = name.startswith("ids")
            given[name] = p.graph.input(name, shape, "i32", feed="") if ids else p(name, *shape)
        first = len(p.graph.nodes)
        eval(ours, {"gg": gg, "np": np}, given)
        names.extend(op.unary or op.ggml or "" for node in p.graph.nodes[first:] if (op := node.op))
        return p("none", 1) * 1.0

    gg.trace(loss, batch=1, ctx=1)
    return names


# ---------------------------------------------------------------- all of them as one graph


def graph_of(spellings: Iterable[Spelling]) -> tuple[Any, dict[str, Any]]:
    """A graph with the result of spelling i as the output result{i}, and the values of its parameters and inputs.

    The loss is the sum of all results, each times `weights_of` it.
    """
    cases, values = list(spellings), {}

    def loss(p: Any, tokens: Any, targets: Any, c: Any) -> Any:
        total: Any = p("none", 1).sum() * 0.0
        for i, case in enumerate(cases):
            given = {}
            for name, array in case.arrays().items():
                values[f"{i}.{name}"] = array
                if array.dtype == np.int32:
                    given[name] = p.graph.input(f"{i}.{name}", array.shape, "i32", feed="")
                else:
                    given[name] = p(f"{i}.{name}", *array.shape)
                    total = total + (given[name] * 0.0).sum()  # every parameter influences the loss
            y = eval(case.ours, {"gg": gg, "np": np}, given)
            y = y.cont() if not y.graph.is_contiguous(y.id) or y.name else y
            p.graph.rename(y.id, f"result{i}", gg_output())
            if y.dtype == "f32":
                weights = p.graph.constant(f"weights{i}", weights_of(y.shape, i))
                total = total + (y * weights).sum()
        return total

    graph = gg.trace(loss, SimpleNamespace(), batch=1, ctx=1)
    values["none"] = np.ones(1, np.float32)
    return graph, values


def gg_output() -> int:
    """The flag of an output."""
    from ggmlgraph.table.dialect import OUTPUT

    return OUTPUT


def weights_of(shape: Shape, i: int) -> Any:
    """What the elements of result i count in the loss, float32."""
    return np.random.default_rng(i).uniform(0.5, 1.5, shape).astype(np.float32)


def save(spellings: Iterable[Spelling], path: Path, dialect: str = "v2") -> dict[str, Any]:
    """Write the graph of spellings with its parameters' values; the values of its inputs."""
    graph, values = graph_of(spellings)
    inputs = {name: array for name, array in values.items() if array.dtype == np.int32}
    weights = {name: (lambda array=array: [array]) for name, array in values.items() if name not in inputs}
    graph.save(path, weights=weights, dialect=dialect)
    return inputs
