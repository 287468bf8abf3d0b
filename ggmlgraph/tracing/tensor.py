"""The operand a model computes with: a handle on one node of a graph being traced.

Every method is an op or a few of them. A tensor has a shape and a dtype but no values: what would need values
(`if x:`, `float(x)`, iteration) raises and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from ggmlgraph.core.boundary import ggml_axes
from ggmlgraph.errors import ShapeError, here
from ggmlgraph.table import ops
from ggmlgraph.table.op import Op, Operand
from ggmlgraph.tracing import arithmetic
from ggmlgraph.tracing.calls import checked_methods

if TYPE_CHECKING:
    from ggmlgraph.tracing.tracer import Graph


def _home(name: str) -> Any:
    """A module that is written over tensors, whose methods are some of its functions."""
    return import_module(f"ggmlgraph.tracing.{name}")


_NO_VALUES = (
    "a tensor has no values while the graph is being traced, so {what} cannot depend on them: {x!r}; "
    "Python control flow may use shapes and the config, {instead}"
)
_CHOICE = "gg.where(mask, a, b) chooses between elements"
_NUMBER = "a tensor of one number takes part in arithmetic as it is"
_LOOP = "x[i] takes a part, and gg.scan goes through them"
_INSTEAD = {  # of methods that others have
    "transpose": "x.permute(...) or x.swapaxes(i, j)", "view": "x.reshape(...)", "t": "x.T", "mT": "x.T",
    "size": "x.shape", "dim": "len(x.shape)", "ndim": "len(x.shape)", "matmul": "x @ y", "mm": "x @ y", "bmm": "x @ y",
    "detach": "gg.stop_gradient(x)", "astype": "ids.float(n)", "to": "ids.float(n)", "pow": "x ** y",
    "expand": "gg.repeat(x, shape)", "tile": "gg.repeat(x, shape)", "take": "gg.gather(x, ids, axis)",
    "masked_fill": "gg.where(mask, value, x)", "chunk": "gg.split(x, n, axis)", "ravel": "x.flatten()",
    "clamp": "gg.clamp(x, low, high)", "clip": "gg.clamp(x, low, high)", "item": "rt.get(name) after a run",
    "numpy": "rt.get(name) after a run", "backward": "gg.Runtime(graph), which differentiates",
}  # fmt: skip


@checked_methods
class Tensor(Operand):
    """A node of `graph`; immutable."""

    __slots__ = ("graph", "id")
    graph: Graph
    id: int

    def __init__(self, graph: Graph, tensor_id: int) -> None:
        object.__setattr__(self, "graph", graph)
        object.__setattr__(self, "id", tensor_id)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{here()}: a tensor is immutable; cannot set {name} of {self!r}")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python's own questions
            raise AttributeError(name)
        raise AttributeError(f"{here()}: {self!r} has no {name!r}{_meant(name)}")

    def bind(self, op: Op, operands: list[Any], params: dict[str, Any]) -> Tensor:
        if op.name in arithmetic.BROADCASTING:
            return arithmetic.fitted(op, *operands)
        return self.graph.add(op, operands, params)

    # -- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in numpy order; those that depend on batch or ctx are `Dim`s."""
        return self.graph.nodes[self.id].shape

    @property
    def dtype(self) -> str:
        """ "f32", "i32", or the type of a weight that is stored otherwise."""
        return self.graph.nodes[self.id].dtype

    @property
    def name(self) -> str:
        return self.graph.nodes[self.id].name

    def __repr__(self) -> str:
        return self.graph.describe(self.id)

    def named(self, name: str) -> Tensor:
        """This tensor, under a name by which the runtime can read it. Raises if the name is taken."""
        self.graph.rename(self.id, name)
        return self

    # -- arithmetic, as numpy broadcasts: see arithmetic.py

    def __add__(self, other: Any) -> Tensor:
        return arithmetic.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return arithmetic.add(self, other)

    def __sub__(self, other: Any) -> Tensor:
        return arithmetic.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return arithmetic.reflected_sub(self, other)

    def __mul__(self, other: Any) -> Tensor:
        return arithmetic.mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return arithmetic.mul(self, other)

    def __truediv__(self, other: Any) -> Tensor:
        return arithmetic.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return arithmetic.reflected_div(self, other)

    def __pow__(self, other: Any) -> Tensor:
        """Whole numbers by products, 0.5 and -0.5 by roots, all else exp(other * log(self)), which is NaN below 0."""
        return arithmetic.power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return arithmetic.reflected_power(self, other)

    def __lt__(self, other: Any) -> Tensor:
        """Comparisons give masks: float32, 1 where it is so, else 0."""
        return arithmetic.less(self, other)

    def __le__(self, other: Any) -> Tensor:
        return arithmetic.less_equal(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return arithmetic.greater(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return arithmetic.greater_equal(self, other)

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return arithmetic.equal(self, other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return arithmetic.logical_not(arithmetic.equal(self, other))

    __hash__ = object.__hash__  # of the handle, as torch has it

    def __invert__(self) -> Tensor:
        """Masks combine: ~ not, & and, | or."""
        return arithmetic.logical_not(self)

    def __and__(self, other: Any) -> Tensor:
        return arithmetic.mul(self, other)

    def __or__(self, other: Any) -> Tensor:
        return ops.step(arithmetic.add(self, other))

    def __abs__(self) -> Tensor:
        return ops.abs(self)

    def __array_function__(self, function: Any, types: Any, inputs: Any, keywords: Any) -> NoReturn:
        self._no_numpy(function.__name__)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._no_numpy("array")

    def _no_numpy(self, name: str) -> NoReturn:
        import ggmlgraph as gg

        ours = {"concatenate": "concat", "take": "gather", "clip": "clamp", "absolute": "abs"}.get(name, name)
        instead = f"gg.{ours}" if ours in dir(gg) else "a function of gg"
        raise TypeError(f"{here()}: np.{name} takes no tensor, {self!r}; {instead} does")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Tensor:
        """What numpy calls for `np.float32(2) * x`, and for what it cannot do with a tensor."""
        name = arithmetic.REFLECTED.get(ufunc.__name__)
        if method != "__call__" or not name or len(inputs) != 2 or inputs[1] is not self:
            self._no_numpy(ufunc.__name__)
        return getattr(self, name)(inputs[0])  # type: ignore[no-any-return]

    def __matmul__(self, other: Any) -> Tensor:
        """self (..., n, k) @ other (..., k, m) -> (..., n, m), as numpy's; `x @ w.T` costs no copy of w."""
        return arithmetic.matmul(self, other)

    # -- layout

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """The same elements in `shape`, numbers or one tuple, one size of which may be -1.

        A tensor that is not contiguous is copied.
        """
        return ops.reshape(self.contiguous(), shape=_numbers(shape))

    def permute(self, *axes: int | Sequence[int]) -> Tensor:
        """Axis i of the result is axis axes[i] of this, numbers or one tuple; no copy."""
        order = _numbers(axes)
        if not all(isinstance(axis, int) for axis in order) or sorted(order) != list(range(len(self.shape))):
            raise ShapeError(f"{here()}: permute{order} is not a permutation of the axes of {self!r}")
        return ops.permute(self._whole(), *ggml_axes(order))

    @property
    def T(self) -> Tensor:
        """The last two axes swapped; no copy."""
        return ops.transpose(self._whole())

    def cont(self) -> Tensor:
        """A contiguous copy."""
        return ops.cont(self)

    def contiguous(self) -> Tensor:
        """This tensor if it is contiguous, else a copy."""
        return self if self.graph.is_contiguous(self.id) else self.cont()

    def _whole(self) -> Tensor:
        """This tensor, copied if it begins inside another: stock ggml's importer forgets where."""
        return self.cont() if self.graph.begins_inside(self.id) else self

    def __getitem__(self, key: Any) -> Tensor:
        """Whole numbers, slices of any step, None and `...`, as in numpy. Slices of step 1 are views, no copies."""
        return _home("indexing").index(self, key)  # type: ignore[no-any-return]

    def flatten(self, start: int = 0, end: int = -1) -> Tensor:
        """The axes from `start` to `end` joined into one."""
        return _home("layout").flatten(self, start, end)  # type: ignore[no-any-return]

    def squeeze(self, axis: int | None = None) -> Tensor:
        """Without an axis of size 1, or without any."""
        return _home("layout").squeeze(self, axis)  # type: ignore[no-any-return]

    def unsqueeze(self, axis: int) -> Tensor:
        """With a new axis of size 1 at that place of the result."""
        return _home("layout").unsqueeze(self, axis)  # type: ignore[no-any-return]

    def swapaxes(self, one: int, other: int) -> Tensor:
        """Two axes swapped; no copy."""
        return _home("layout").swapaxes(self, one, other)  # type: ignore[no-any-return]

    def float(self, n: int | None = None) -> Tensor:
        """Float32 numbers of int32 ids of 0 to n - 1, each checked against n when it runs; of float32 itself.

        ggml converts no int32: it is row number id of 0, 1, 2, ... n is at most 2^24.
        """
        return _home("constants").as_floats(self, n)  # type: ignore[no-any-return]

    # -- reductions: over one axis, several, or all; see reductions.py

    def sum(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """Sum over axes; over all, of shape (1,), where axis is None."""
        return _home("reductions").sum(self, axis, keepdims)  # type: ignore[no-any-return]

    def mean(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """Mean over axes; over all, of shape (1,), where axis is None."""
        return _home("reductions").mean(self, axis, keepdims)  # type: ignore[no-any-return]

    def max(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """Largest element over axes; over all, of shape (1,), where axis is None."""
        return _home("reductions").max(self, axis, keepdims)  # type: ignore[no-any-return]

    def min(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """Smallest element over axes; over all, of shape (1,), where axis is None."""
        return _home("reductions").min(self, axis, keepdims)  # type: ignore[no-any-return]

    def logsumexp(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """log(sum(exp(x))) over axes; over all, of shape (1,), where axis is None."""
        return _home("reductions").logsumexp(self, axis, keepdims)  # type: ignore[no-any-return]

    def var(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """Mean squared distance from the mean over axes; over all, of shape (1,), where axis is None."""
        return _home("reductions").var(self, axis, keepdims)  # type: ignore[no-any-return]

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Where the largest element is, int32: the last of equal ones."""
        return _home("reductions").argmax(self, axis, keepdims)  # type: ignore[no-any-return]

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Where the smallest element is, int32: the last of equal ones."""
        return _home("reductions").argmin(self, axis, keepdims)  # type: ignore[no-any-return]

    # -- what a tensor cannot do

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        what = "gg.where(mask, value, x) and gg.concat make others"
        raise TypeError(f"{here()}: a tensor is immutable, {self!r}; {what}")

    def __floordiv__(self, other: Any) -> NoReturn:
        raise TypeError(f"{here()}: ggml rounds no numbers, so // and % are of sizes alone: {self!r} and {other!r:.80}")

    __mod__ = __rmod__ = __rfloordiv__ = __floordiv__

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{self.graph.here()}: " + _NO_VALUES.format(what="`if`, `and`, `or`, `not`", x=self, instead=_CHOICE)
        )

    def __float__(self) -> NoReturn:
        raise TypeError(f"{self.graph.here()}: " + _NO_VALUES.format(what="float()", x=self, instead=_NUMBER))

    def __int__(self) -> NoReturn:
        raise TypeError(f"{self.graph.here()}: " + _NO_VALUES.format(what="int()", x=self, instead=_NUMBER))

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{self.graph.here()}: " + _NO_VALUES.format(what="iteration", x=self, instead=_LOOP))

    def __len__(self) -> NoReturn:
        raise TypeError(f"{self.graph.here()}: a tensor has no len(); use .shape: {self!r}")


def _numbers(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers that were given one by one, or as one tuple or list."""
    one = given[0] if len(given) == 1 else None
    return tuple(one) if isinstance(one, tuple | list) else given


def _meant(name: str) -> str:
    """What a method that there is not may have been meant for."""
    import ggmlgraph as gg

    if name in _INSTEAD:
        return f"; there is {_INSTEAD[name]}"
    close = get_close_matches(name, [each for each in dir(Tensor) if each[0] != "_"], 1, 0.75)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there is gg.{name}(x)" if name in dir(gg) else ""
