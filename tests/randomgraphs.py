"""Random graph files, and float64 memory in which they are computed as ggml would, in the order of their nodes.

Graphs share subexpressions, look at memory through slices, permutations and strides of any kind, tile operands along
any axis, and write: by CPY into windows of leafs and of results, by ops in place, by SET and ACC. Numbers stay in a
range in which float32 can be compared. Used by graphcheck.py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from reference import REFERENCE

from ggmlgraph.core.boundary import pack_params
from ggmlgraph.graphfile import records, writer
from ggmlgraph.graphfile.records import Record
from ggmlgraph.table.dialect import LOSS, PARAM, V2
from ggmlgraph.table.op import TABLE

Array = Any
Shape = tuple[int, ...]  # numpy order, always four axes
Rng = np.random.Generator

LARGEST = 30.0  # of the numbers in a graph

SMOOTH = ("sqr", "sin", "cos", "tanh", "sigmoid", "silu", "gelu", "gelu_quick", "neg", "exp", "dup", "cont")
WITH_CORNERS = ("abs", "relu", "leaky_relu", "elu", "hardswish", "clamp")  # not where an operand lies on one
CORNERS = {"hardswish": (-3.0, 3.0), "clamp": (-0.5, 0.75)}


class Unfit(Exception):
    """A step that would leave the range in which float32 is compared."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: in the memory of a root, in elements."""

    root: int
    offset: int
    shape: Shape
    strides: Shape

    def elements(self) -> Array:
        """For each element its place in the root's memory."""
        return self.offset + sum(i * s for i, s in zip(np.indices(self.shape), self.strides, strict=True))

    def of(self, memory: dict[int, Array]) -> Array:
        base = memory[self.root]
        strides = [base.itemsize * s for s in self.strides]
        return np.ndarray(self.shape, base.dtype, base, base.itemsize * self.offset, strides)

    @property
    def is_dense(self) -> bool:
        return all(n == 1 or s == d for n, s, d in zip(self.shape, self.strides, dense(self.shape), strict=True))


def dense(shape: Shape) -> Shape:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def size(shape: Shape) -> int:
    return math.prod(shape)


class Graph:
    """A graph as it grows: the records of its file, and float64 memory in which every node has been computed."""

    def __init__(self, rng: Rng, largest: int) -> None:
        self.rng, self.largest = rng, largest  # elements of a tensor
        self.records: list[Record] = []
        self.tensors: list[Tensor] = []
        self.steps: list[Callable[[dict[int, Array]], None] | None] = []  # None: a leaf
        self.memory: dict[int, Array] = {}
        self.leafs: dict[int, Array] = {}  # as they were at first
        self.params: list[int] = []
        self.states: list[int] = []  # leafs that are written
        self.usable: list[int] = []  # tensors of finite numbers

    # ------------------------------------------------------------ tensors

    def _add(self, tensor: Tensor, name: str, hidden: bool = False, **fields: Any) -> int:
        ne = tuple(reversed(tensor.shape))
        nb = tuple(4 * s for s in reversed(tensor.strides))
        fields.setdefault("type", "F32")
        self.records.append(Record(name, ne=ne, nb=nb, **fields))  # type: ignore[arg-type]
        self.tensors.append(tensor)
        if fields["type"] == "F32" and not hidden:
            self.usable.append(len(self.tensors) - 1)
        return len(self.tensors) - 1

    def leaf(self, values: Array, flags: int = 0) -> int:
        """A leaf of these values, integers as int32."""
        whole = values.dtype.kind == "i"
        stored = values.astype("<i4" if whole else "<f4")
        i = len(self.tensors)
        self.leafs[i] = stored.astype(int if whole else float).reshape(-1)
        self.memory[i] = self.leafs[i].copy()
        self.steps.append(None)
        if flags & PARAM:
            self.params.append(i)
        shape = (1,) * (4 - values.ndim) + values.shape
        data = partial(iter, [stored.tobytes()])
        tensor = Tensor(i, 0, shape, dense(shape))
        return self._add(tensor, f"leaf {i}", flags=flags, data=data, type="I32" if whole else "F32")

    def numbers(self, shape: Shape, flags: int = 0) -> int:
        """A leaf of random numbers, now and then a parameter."""
        flags = flags or int(self.rng.choice([0, PARAM], p=[0.7, 0.3]))
        return self.leaf(self.rng.uniform(-1, 1, shape), flags)

    def take(self, compute: Callable[[dict[int, Array]], None]) -> None:
        compute(self.memory)
        self.steps.append(compute)

    def value(self, i: int) -> Array:
        return self.tensors[i].of(self.memory)

    def op(
        self, name: str, src: list[int], shape: Shape | None = None, *, in_place: bool = False, hidden: bool = False,
        **params: Any,
    ) -> int:  # fmt: skip
        """A node that computes.

        in_place: over the memory of its first source, as its name says. hidden: of any numbers, and not for every use.
        """
        row = TABLE[name]
        params = {p.name: p.default for p in row.params} | params
        known = params if shape is None or not row.sized else params | {"shape": shape}
        sources = [self.tensors[s] for s in src]
        function = partial(_computed, name, sources, known)
        with np.errstate(all="ignore"):
            y = function(self.memory)
        if not hidden and not (y.size <= self.largest and np.abs(y).max() <= LARGEST):
            raise Unfit
        i = len(self.tensors)
        to = sources[0] if in_place else Tensor(i, 0, y.shape, dense(y.shape))
        if in_place and to.shape != y.shape:
            raise Unfit
        if not in_place:
            self.memory[i] = np.empty(y.size)
        self.take(partial(_store, function, to))
        label = f"{name} {i}" + " (view)" * in_place
        words = pack_params(row, params)
        return self._add(to, label, hidden, op=row.ggml, unary=row.unary, src=tuple(src), op_params=words)

    def window(self, name: str, a: int, tensor: Tensor, **params: Any) -> int:
        """A view."""
        self.steps.append(lambda memory: None)
        op_params = pack_params(TABLE[name], params) if params else bytes(64)
        return self._add(tensor, f"{name} {len(self.tensors)}", op=TABLE[name].ggml, src=(a,), op_params=op_params)

    def copy_into(self, a: int, b: int) -> int:
        to, source = self.tensors[b], self.tensors[a]
        self.take(partial(_store, lambda memory: source.of(memory).reshape(to.shape), to))
        return self._add(to, f"cpy {len(self.tensors)}", op="CPY", src=(a, b))

    # ------------------------------------------------------------ the float64 side

    def run(self, leafs: dict[int, Array]) -> dict[int, Array]:
        """Memory after all nodes, in the order of the file."""
        memory = {i: values.copy() for i, values in leafs.items()}
        for i, step in enumerate(self.steps):
            if step is None:
                continue
            if self.tensors[i].root == i:
                memory[i] = np.empty(size(self.tensors[i].shape))
            step(memory)
        return memory

    def content(self) -> bytes:
        """The file."""
        nodes = [i for i, r in enumerate(self.records) if r.op != "NONE"]
        stream = io.BytesIO()
        placed = records.order(self.records, nodes, V2)
        writer.emit(stream, placed, V2, writer.work_nbytes(placed))
        return stream.getvalue()


RANKS = {"get_rows": (3, 3), "mul_mat_id": (3, 3, 2), "conv_transpose_1d": (3, 2), "rope": (4, 1)}  # the reference's


def _computed(name: str, sources: list[Tensor], params: dict[str, Any], memory: dict[int, Array]) -> Array:
    operands = [s.of(memory) for s in sources]
    for k, rank in enumerate(RANKS.get(name, ())):
        operands[k] = operands[k].reshape(operands[k].shape[4 - rank :])
    y = np.array(REFERENCE[name](*operands, **params), float)
    return y.reshape((1,) * (4 - y.ndim) + y.shape)


def _store(function: Callable[[dict[int, Array]], Array], to: Tensor, memory: dict[int, Array]) -> None:
    y = np.array(function(memory))
    to.of(memory)[...] = y


# ---------------------------------------------------------------- steps of a random graph

Move = Callable[[Graph], None]
MOVES: list[tuple[Move, float]] = []


def move(weight: float) -> Callable[[Move], Move]:
    def enter(function: Move) -> Move:
        MOVES.append((function, weight))
        return function

    return enter


def need(holds: Any) -> None:
    if not holds:
        raise Unfit


def pick(g: Graph, fits: Callable[[Tensor], bool] = lambda t: True) -> int:
    """A tensor of numbers, more often a late one."""
    fitting = [i for i in g.usable if fits(g.tensors[i])]
    need(fitting)
    return fitting[-1 - min(int(g.rng.exponential(len(fitting) / 3)), len(fitting) - 1)]


def pick_or_make(g: Graph, shape: Shape, fits: Callable[[Tensor], bool]) -> int:
    fitting = [i for i in g.usable if fits(g.tensors[i])]
    if fitting and g.rng.random() < 0.6:
        return int(g.rng.choice(fitting))
    return g.numbers(shape)


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def tiles(small: Shape, large: Shape) -> bool:
    return all(n % m == 0 for m, n in zip(small, large, strict=True))


def may_be_written(g: Graph, i: int) -> bool:
    """Not a parameter, for a gradient is of what it was at first; and each axis steps over those of smaller strides."""
    t, span = g.tensors[i], 1
    for stride, n in sorted(zip(t.strides, t.shape, strict=True)):
        if n > 1 and stride < span:
            return False
        span += (n - 1) * stride
    return t.root not in g.params


def away_from(values: Array, corners: tuple[float, ...]) -> bool:
    return all(np.abs(values - c).min() > 1e-3 for c in corners)


def steady(rows: Array) -> bool:
    """Rows that a norm does not blow up."""
    return bool(rows.shape[-1] > 1 and rows.var(-1).min() > 0.02)


@move(3)
def unary(g: Graph) -> None:
    a, name = pick(g), str(g.rng.choice(SMOOTH + WITH_CORNERS))
    need(name not in WITH_CORNERS or away_from(g.value(a), CORNERS.get(name, (0.0,))))
    params = {"clamp": {"min": -0.5, "max": 0.75}, "leaky_relu": {"slope": 0.1}}.get(name, {})
    g.op(name, [a], in_place=name != "dup" and g.rng.random() < 0.25 and may_be_written(g, a), **params)


@move(1)
def scale(g: Graph) -> None:
    a = pick(g)
    g.op(
        "scale",
        [a],
        in_place=g.rng.random() < 0.25 and may_be_written(g, a),
        s=float(g.rng.choice([-1.5, 0.5, 1.0, 2.0])),
    )


@move(5)
def binary(g: Graph) -> None:
    a, name = pick(g), str(g.rng.choice(["add", "sub", "mul", "div"], p=[0.45, 0.15, 0.3, 0.1]))
    shape = g.tensors[a].shape
    part = tuple(int(g.rng.choice([n, 1, *divisors(n)])) for n in shape)
    b = pick_or_make(g, part, lambda t: tiles(t.shape, shape))
    need(name != "div" or np.abs(g.value(b)).min() > 0.3)
    g.op(name, [a, b], in_place=g.rng.random() < 0.15 and may_be_written(g, a))


@move(0.3)
def add_one_number(g: Graph) -> None:
    g.op("add1", [pick(g), pick_or_make(g, (1,), lambda t: size(t.shape) == 1)])


@move(2)
def permute(g: Graph) -> None:
    permuted(g, pick(g))


def permuted(g: Graph, a: int) -> int:
    axes = [int(i) for i in g.rng.permutation(4)]
    ne, nb = g.tensors[a].shape[::-1], g.tensors[a].strides[::-1]
    placed = sorted(zip(axes, ne, nb, strict=True))
    shape, strides = tuple(n for _, n, _ in placed[::-1]), tuple(s for *_, s in placed[::-1])
    t = g.tensors[a]
    return g.window("permute", a, Tensor(t.root, t.offset, shape, strides), **{f"axis{i}": axes[i] for i in range(4)})


@move(1)
def transpose(g: Graph) -> None:
    a = pick(g)
    t = g.tensors[a]
    swap = [0, 1, 3, 2]
    shape, strides = (tuple(x[i] for i in swap) for x in (t.shape, t.strides))
    g.window("transpose", a, Tensor(t.root, t.offset, shape, strides))


def slice_of(g: Graph, a: int) -> int:
    """A window of a with a's strides."""
    t = g.tensors[a]
    shape = tuple(int(g.rng.integers(1, n + 1)) for n in t.shape)
    begin = [int(g.rng.integers(0, n - m + 1)) for n, m in zip(t.shape, shape, strict=True)]
    need(t.strides[3] == 1 or shape[3] == 1)
    offset = sum(b * s for b, s in zip(begin, t.strides, strict=True))
    return g.window("view", a, Tensor(t.root, t.offset + offset, shape, (*t.strides[:3], 1)), offset=4 * offset)


def usually_dense(g: Graph) -> int:
    """What a slice has a gradient of is dense."""
    return pick(g, lambda t: t.is_dense or g.rng.random() < 0.1)


@move(3)
def view(g: Graph) -> None:
    slice_of(g, usually_dense(g))


@move(1.5)
def strided_view(g: Graph) -> None:
    """A window of any strides: elements in another order, more than once, or not at all."""
    a = usually_dense(g)
    t = g.tensors[a]
    n = size(t.shape)
    kind = g.rng.integers(3)
    shape, strides = t.shape, t.strides
    if kind == 0:  # all elements, outer axes changed
        order = [*g.rng.permutation(3), 3]
        strides = tuple(t.strides[i] for i in order)
        shape = tuple(t.shape[i] for i in order)
        if size(t.shape) == t.shape[3] * max(t.shape[:3]) or g.rng.random() < 0.5:
            order = [*g.rng.permutation(3), 3]
            shape = tuple(shape[i] for i in order)
    elif kind == 1:
        shape = tuple(int(g.rng.integers(1, 5)) for _ in range(4))
        strides = (*(int(g.rng.integers(0, 7)) for _ in range(3)), 1)
    else:  # rows that overlap
        width = int(g.rng.integers(1, n + 1))
        shape, strides = (1, 1, int(g.rng.integers(1, n - width + 2)), width), (n, n, 1, 1)
    strides = (*strides[:3], 1)
    last = sum((m - 1) * s for m, s in zip(shape, strides, strict=True))
    need(last < n and t.is_dense and size(shape) <= g.largest)
    offset = int(g.rng.integers(0, n - last))
    g.window("view", a, Tensor(t.root, t.offset + offset, shape, strides), offset=4 * offset)


@move(4)
def beside_itself(g: Graph) -> None:
    """A tensor and its own elements in another order, or its beginning and its end, as operands of one op."""
    a = pick(g, lambda t: t.is_dense)
    t = g.tensors[a]
    n, name = size(t.shape), str(g.rng.choice(["add", "add", "sub", "mul"]))
    need(n > 1)
    if g.rng.random() < 0.5:
        order = [*g.rng.permutation(3), 3]
        shape = tuple(t.shape[i] for i in order)
        whole = a if g.rng.random() < 0.5 else g.window("reshape", a, Tensor(t.root, t.offset, shape, dense(shape)))
        shape, strides = g.tensors[whole].shape, tuple(t.strides[i] for i in g.rng.permutation(3))
        need(sum((m - 1) * s for m, s in zip(shape, (*strides, 1), strict=True)) < n)
        other = g.window("view", a, Tensor(t.root, t.offset, shape, (*strides, 1)), offset=0)
        g.op(name, [whole, other])
        return
    shift = int(g.rng.integers(1, min(n, 9)))
    m = n - shift
    parts = [g.window("view", a, Tensor(t.root, t.offset + at, (1, 1, 1, m), (m, m, m, 1)), offset=4 * at)
             for at in (0, shift)]  # fmt: skip
    g.op(name, parts[:: int(g.rng.choice([1, 1, -1]))])


def disturb(g: Graph, a: int) -> None:
    """Between two steps of a pattern, write what its first step has read."""
    if g.rng.random() < 0.2 and may_be_written(g, a):
        if g.rng.random() < 0.5:
            g.op("scale", [a], in_place=True, s=0.5)
        else:
            to = slice_of(g, a)
            g.copy_into(g.numbers(g.tensors[to].shape), to)


def reshaped(rng: Rng, n: int) -> Shape:
    shape = []
    for _ in range(3):
        shape.append(int(rng.choice(divisors(n))))
        n //= shape[-1]
    return tuple(int(m) for m in rng.permutation([*shape, n]))


@move(1.5)
def reshape(g: Graph) -> None:
    a = pick(g, lambda t: t.is_dense)
    t = g.tensors[a]
    shape = reshaped(g.rng, size(t.shape))
    g.window("reshape", a, Tensor(t.root, t.offset, shape, dense(shape)))


@move(0.7)
def cont_as(g: Graph) -> None:
    a = pick(g)
    g.op("cont", [a], reshaped(g.rng, size(g.tensors[a].shape)))


@move(1)
def reduce(g: Graph) -> None:
    g.op(str(g.rng.choice(["sum_rows", "mean", "sum"])), [pick(g)])


@move(1)
def repeat(g: Graph) -> None:
    a = pick(g)
    g.op("repeat", [a], tuple(n * int(g.rng.choice([1, 1, 2, 3])) for n in g.tensors[a].shape))


@move(2)
def broadcast(g: Graph) -> None:
    """An operand repeated along axes of size 1, as it is or in other sizes or turned, on either side of another."""
    a = pick(g, lambda t: 1 in t.shape)
    shape = tuple(int(g.rng.choice([1, 2, 3, 5])) if n == 1 else n for n in g.tensors[a].shape)
    need(size(shape) <= g.largest)
    wide = g.op("repeat", [a], shape)
    disturb(g, int(g.rng.choice([a, wide])))
    if g.rng.random() < 0.4:
        shape = reshaped(g.rng, size(shape))
        wide = g.window("reshape", wide, Tensor(wide, 0, shape, dense(shape)))
    if g.rng.random() < 0.3:
        wide = permuted(g, wide)
    shape = g.tensors[wide].shape
    part = tuple(int(g.rng.choice([n, n, 1])) for n in shape)
    b = pick_or_make(g, part, lambda t: tiles(t.shape, shape))
    src = [b, wide] if g.tensors[b].shape == shape and g.rng.random() < 0.5 else [wide, b]
    name = str(g.rng.choice(["add", "sub", "mul", "div"]))
    need(name != "div" or np.abs(g.value(src[1])).min() > 0.3)
    y = g.op(name, src)
    if g.rng.random() < 0.5:
        g.op(str(g.rng.choice(["sqr", "tanh", "neg"])), [wide])
    if g.rng.random() < 0.4:
        g.op("repeat_back", [y], tuple(int(g.rng.choice([n, 1])) for n in g.tensors[y].shape))


@move(0.5)
def repeat_back(g: Graph) -> None:
    a = pick(g)
    g.op("repeat_back", [a], tuple(int(g.rng.choice(divisors(n))) for n in g.tensors[a].shape))


@move(1.5)
def normalise(g: Graph) -> None:
    a, name = pick(g), str(g.rng.choice(["norm", "rms_norm"]))
    need(steady(g.value(a)))
    y = g.op(name, [a], in_place=g.rng.random() < 0.1 and may_be_written(g, a), eps=1e-5)
    n = g.tensors[a].shape[3]
    if g.rng.random() < 0.7:
        disturb(g, a)
        y = g.op("mul", [y, g.numbers((n,))])
        if g.rng.random() < 0.5:
            g.op("add", [y, g.numbers((n,))])


@move(0.5)
def group_norm(g: Graph) -> None:
    a = pick(g)
    shape = g.tensors[a].shape
    n_groups = int(g.rng.integers(1, shape[1] + 1))
    width = -(-shape[1] // n_groups)
    for begin in range(0, shape[1], width):
        need(steady(g.value(a)[:, begin : begin + width].reshape(shape[0], -1)))
    g.op("group_norm", [a], n_groups=n_groups, eps=1e-5)


@move(1)
def swiglu(g: Graph) -> None:
    a = pick(g)
    shape = g.tensors[a].shape
    gate = g.op("silu", [a])
    disturb(g, a)
    g.op("mul", [gate, pick_or_make(g, shape, lambda t: t.shape == shape)])


@move(1)
def soft_max(g: Graph) -> None:
    a = pick(g)
    *_, n, m = g.tensors[a].shape
    src = [a] if g.rng.random() < 0.6 else [a, g.leaf(g.rng.uniform(-2, 2, (n + int(g.rng.integers(3)), m)))]
    g.op("soft_max", src, scale=float(g.rng.choice([0.5, 1.0, 1.0])))


@move(0.5)
def causal_soft_max(g: Graph) -> None:
    masked = g.op("diag_mask_inf", [pick(g)], hidden=True, n_past=int(g.rng.integers(0, 3)))
    g.op("soft_max", [masked])


@move(0.5)
def diag_mask_zero(g: Graph) -> None:
    g.op("diag_mask_zero", [pick(g)], n_past=int(g.rng.integers(0, 3)))


@move(2)
def product(g: Graph) -> None:
    """mul_mat or out_prod, with a new or an old operand on either side."""
    x, name = pick(g), str(g.rng.choice(["mul_mat", "mul_mat", "out_prod"]))
    axis = 3 if name == "mul_mat" else 2  # summed over
    shape = g.tensors[x].shape
    other = int(g.rng.integers(1, 6))
    outer = tuple(int(g.rng.choice(divisors(n))) for n in shape[:2])
    inner = (other, shape[3]) if axis == 3 else (shape[2], other)
    a = pick_or_make(g, (*outer, *inner), lambda t: t.shape[axis] == shape[axis] and tiles(t.shape[:2], shape[:2]))
    if tiles(shape[:2], g.tensors[a].shape[:2]) and g.rng.random() < 0.5:
        a, x = x, a
    g.op(name, [a, x])


@move(1)
def get_rows(g: Graph) -> None:
    table = pick(g, lambda t: t.shape[0] == 1)
    _, n_lists, v, _ = g.tensors[table].shape
    ids = g.leaf(g.rng.integers(0, v, (n_lists, int(g.rng.integers(1, 5)))))
    g.op("get_rows", [table, ids])


@move(0.4)
def mul_mat_id(g: Graph) -> None:
    b = pick(g, lambda t: t.shape[0] == 1)
    _, n, n_given, k = g.tensors[b].shape
    n_used, n_experts = n_given * int(g.rng.choice([1, 2])), int(g.rng.integers(1, 4))
    matrices = g.numbers((n_experts, int(g.rng.integers(1, 5)), k))
    g.op("mul_mat_id", [matrices, b, g.leaf(g.rng.integers(0, n_experts, (n, n_used)))])


@move(1)
def concat(g: Graph) -> None:
    a, dim = pick(g), int(g.rng.integers(4))
    shape = list(g.tensors[a].shape)

    def fits(t: Tensor) -> bool:
        return all(i == 3 - dim or n == m for i, (n, m) in enumerate(zip(t.shape, shape, strict=True)))

    new = tuple(int(g.rng.integers(1, 4)) if i == 3 - dim else n for i, n in enumerate(shape))
    src = [a, pick_or_make(g, new, fits)]
    g.op("concat", src[:: int(g.rng.choice([1, -1]))], dim=dim)


@move(0.5)
def grow(g: Graph) -> None:
    a, name = pick(g), str(g.rng.choice(["pad", "upscale"]))
    g.op(name, [a], tuple(n + int(g.rng.choice([0, 0, 1, 2])) for n in g.tensors[a].shape))


@move(0.3)
def diag(g: Graph) -> None:
    g.op("diag", [pick(g, lambda t: t.shape[2] == 1)])


@move(1.5)
def put_into(g: Graph) -> None:
    """SET or ACC."""
    a, name = pick(g), str(g.rng.choice(["set", "acc"]))
    t = g.tensors[a]
    shape = tuple(int(g.rng.integers(1, n + 1)) for n in t.shape)
    begin = [int(g.rng.integers(0, n - m + 1)) for n, m in zip(t.shape, shape, strict=True)]
    strides = dense(t.shape)
    b = pick_or_make(g, shape, lambda other: other.shape == shape)
    in_place = bool(g.rng.random() < 0.3 and may_be_written(g, a))
    g.op(name, [a, b], in_place=in_place, nb1=4 * strides[2], nb2=4 * strides[1], nb3=4 * strides[0],
         offset=4 * sum(i * s for i, s in zip(begin, strides, strict=True)), inplace=int(in_place))  # fmt: skip


@move(2)
def copy_into(g: Graph) -> None:
    """CPY into a window of a state or of what was computed."""
    if not g.states or g.rng.random() < 0.2:
        g.states.append(g.leaf(g.rng.uniform(-1, 1, random_shape(g.rng, g.largest))))
    b = int(g.rng.choice(g.states)) if g.rng.random() < 0.5 else pick(g)
    need(may_be_written(g, b))
    b = slice_of(g, b)
    t = g.tensors[b]
    a = pick_or_make(g, t.shape, lambda other: size(other.shape) == size(t.shape))
    places = g.tensors[a].elements()
    need(g.tensors[a].root != t.root or places.max() < t.elements().min() or places.min() > t.elements().max())
    g.copy_into(a, b)


@move(0.7)
def rope(g: Graph) -> None:
    a = pick(g, lambda t: t.shape[3] > 1)
    _, ctx, _, n = g.tensors[a].shape
    n_dims = 2 * int(g.rng.integers(1, n // 2 + 1))
    g.op(
        "rope", [a, g.leaf(g.rng.integers(0, 20, ctx))], n_dims=n_dims, mode=int(g.rng.choice([0, 2])), freq_base=100.0
    )


@move(0.5)
def flash_attention(g: Graph) -> None:
    q = pick(g)
    batch, n_head, ctx, n = g.tensors[q].shape
    n_kv, n_keys = int(g.rng.choice(divisors(n_head))), int(g.rng.integers(1, 6))
    src = [q, g.numbers((batch, n_kv, n_keys, n)), g.numbers((batch, n_kv, n_keys, n))]
    src += [g.leaf(g.rng.uniform(-1, 1, (ctx, n_keys)))] if g.rng.random() < 0.5 else []
    g.op("flash_attn_ext", src, scale=0.5)


@move(1)
def attention(g: Graph) -> None:
    """As a model writes it."""
    q = pick(g)
    batch, ctx, n_head, n = g.tensors[q].shape
    same = (batch, ctx, n_head if g.rng.random() < 0.5 else 1, n)
    k, v = (pick_or_make(g, same, lambda t: t.shape == same) for _ in range(2))
    heads = {"axis0": 0, "axis1": 2, "axis2": 1, "axis3": 3}

    def turned(i: int, axes: dict[str, int], order: list[int]) -> int:
        t = g.tensors[i]
        shape, strides = (tuple(x[o] for o in order) for x in (t.shape, t.strides))
        return g.window("permute", i, Tensor(t.root, t.offset, shape, strides), **axes)

    scores = g.op("mul_mat", [turned(k, heads, [0, 2, 1, 3]), turned(q, heads, [0, 2, 1, 3])])
    if g.rng.random() < 0.7:
        scores = g.op("scale", [scores], s=0.5)
    if g.rng.random() < 0.3:
        scores = g.op("scale", [g.op("tanh", [scores])], s=float(g.rng.choice([0.7, 2.0])))
    for _ in range(int(g.rng.choice([0, 0, 1, 2]))):
        full = g.tensors[scores].shape
        mask = (*(int(g.rng.choice([n, 1])) for n in full[:3]), full[3])
        scores = g.op("add", [scores, pick_or_make(g, mask, lambda t, mask=mask: t.shape == mask)])
    if g.rng.random() < 0.7:
        scores = g.op("diag_mask_inf", [scores], hidden=True, n_past=0)
    weights = g.op("soft_max", [scores])
    disturb(g, int(g.rng.choice([q, k, v])))
    values = g.op("cont", [turned(v, heads | {"axis0": 1, "axis1": 2, "axis2": 0}, [0, 2, 3, 1])])
    g.op("cont", [turned(g.op("mul_mat", [values, weights]), heads, [0, 2, 1, 3])])


@move(0.4)
def convolve(g: Graph) -> None:
    b = pick(g)
    channels, height, width = g.tensors[b].shape[1:]
    window = (int(g.rng.integers(1, height + 1)), int(g.rng.integers(1, width + 1)))
    kernel = g.numbers((int(g.rng.integers(1, 3)), channels, *window))
    p = {name: int(g.rng.integers(low, 3)) for name, low in (("s0", 1), ("s1", 1), ("p0", 0), ("p1", 0))}
    g.op("im2col", [kernel, b], d0=1, d1=1, is_2d=1, **p)


@move(0.3)
def spread(g: Graph) -> None:
    b = pick(g, lambda t: t.shape[:2] == (1, 1))
    kernel = g.numbers((g.tensors[b].shape[2], int(g.rng.integers(1, 4)), int(g.rng.integers(1, 4))))
    g.op("conv_transpose_1d", [kernel, b], stride=int(g.rng.integers(1, 3)))


@move(0.4)
def pool(g: Graph) -> None:
    a, kind = pick(g), int(g.rng.integers(2))
    values = np.sort(g.value(a).reshape(-1))
    need(kind or np.diff(values).min(initial=1) > 1e-3)
    k0, k1 = (int(g.rng.integers(1, n + 1)) for n in g.tensors[a].shape[:1:-1])
    if g.rng.random() < 0.5:
        g.op("pool_1d", [a], kind=kind, k0=k0, s0=int(g.rng.integers(1, 3)))
    else:
        g.op("pool_2d", [a], kind=kind, k0=k0, k1=k1, s0=int(g.rng.integers(1, 3)), s1=1)


# ---------------------------------------------------------------- whole graphs


def random_shape(rng: Rng, largest: int) -> Shape:
    while True:
        shape = tuple(int(n) for n in rng.choice([1, 1, 2, 3, 4, 5, 8], 4))
        if largest > 1000:
            shape = (*shape[:3], int(rng.choice([shape[3], 64, 257, 1500])))
        if size(shape) <= largest // 2:
            return shape


def cross_entropy(g: Graph) -> None:
    """As a file spells it."""
    x = pick(g, lambda t: t.shape[3] <= 16)
    n = size(g.tensors[x].shape[:3])
    v = int(g.rng.integers(2, 8))
    logits = g.op("mul_mat", [g.numbers((v, g.tensors[x].shape[3])), x])
    disturb(g, x)
    p = g.op("soft_max", [logits])
    column = g.window("reshape", p, Tensor(p, 0, (1, n, v, 1), dense((1, n, v, 1))))
    rows = g.op("get_rows", [column, g.leaf(g.rng.integers(0, v, (n, 1)))])
    weights = g.leaf(g.rng.uniform(0, 1 / n, (n, 1, 1)))
    g.op("scale", [g.op("sum", [g.op("mul", [g.op("log", [rows]), weights])])], s=-1.0)


def random_graph(seed: int) -> Graph:
    """A graph with a loss, the last tensor, that depends on every parameter."""
    rng = np.random.default_rng(seed)
    g = Graph(rng, int(rng.choice([60, 300, 300, 12000])))
    for _ in range(int(rng.integers(1, 4))):
        g.numbers(random_shape(rng, g.largest), PARAM)
    weights = np.array([w for _, w in MOVES])
    for _ in range(int(rng.integers(4, 24))):
        attempt(g, MOVES[rng.choice(len(MOVES), p=weights / weights.sum())][0])
    if rng.random() < 0.3:
        attempt(g, cross_entropy)
    add_loss(g)
    return g


def attempt(g: Graph, step: Move) -> None:
    """What a step that gives up has added stays, used by nobody."""
    with suppress(Unfit):
        step(g)


def sources_of(g: Graph, tensors: list[int]) -> set[int]:
    """All that tensors are computed from, but for what writes into memory."""
    found, todo = set(tensors), list(tensors)
    while todo:
        record = g.records[todo.pop()]
        taken = {"IM2COL": record.src[1:], "CPY": record.src[:1]}.get(record.op, record.src)  # not for its place alone
        new = {*taken} - found
        found |= new
        todo += new
    return found


def add_loss(g: Graph) -> None:
    """The sum of random multiples of some tensors, and of parameters that these do not take."""
    computed = [i for i in g.usable if g.steps[i] is not None]
    chosen = computed[-1:] + [int(i) for i in g.rng.choice(computed, int(g.rng.integers(3)))] if computed else []
    total = -1
    for i in [*chosen, *sorted({*g.params} - sources_of(g, chosen))]:
        shape = g.tensors[i].shape
        weights = g.leaf(g.rng.uniform(-1, 1, shape) / np.sqrt(size(shape)))
        term = g.op("sum", [g.op("mul", [i, weights], hidden=True)], hidden=True)
        total = term if total < 0 else g.op("add", [total, term], hidden=True)
    g.records[total] = replace(g.records[total], flags=LOSS)


def describe(g: Graph) -> str:
    """A line a record."""
    return "\n".join(
        f"{i:3} {r.name:24} {r.unary or r.op:16} {list(g.tensors[i].shape)} nb {list(g.tensors[i].strides)} "
        f"at {g.tensors[i].root}+{g.tensors[i].offset} src {list(r.src)} {'PARAM' if r.is_param else ''}"
        for i, r in enumerate(g.records)
    )
