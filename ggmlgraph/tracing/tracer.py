"""Tracing: run a model's Python once, record a graph of ops.

Every node is added to a C graph as the model calls its op, so shapes and their errors come from the one set of shape
rules. A second C graph, the shadow, is traced along at other sizes of batch and ctx (two primes): a size that
differs between the two depends on a named size, and how is read off the factors. Whether that is all that depends on
them, othersizes.py sees when the graph is saved. Used by models through `trace` and by `export`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggmlgraph.core import passes
from ggmlgraph.core.boundary import in_file_order
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.errors import UNPRINTABLE, FormatError, GGError, ShapeError, UsageError, escaped, here, short
from ggmlgraph.graphfile.dim import Dim, evaluate
from ggmlgraph.graphfile.metadata import MAX_FACTOR, MAX_GROUPS, Number, ParamGroup, SizeExpressions
from ggmlgraph.table.dialect import INPUT, LOSS, OUTPUT, PARAM
from ggmlgraph.table.op import Op
from ggmlgraph.tracing import export
from ggmlgraph.tracing.initializers import Initializer
from ggmlgraph.tracing.inputs import TOKENS, signature, sizes_of
from ggmlgraph.tracing.params import Params
from ggmlgraph.tracing.slips import told
from ggmlgraph.tracing.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


SHADOW_SIZES = (1009, 1013)  # primes, so that a product of named sizes has one factorisation
MAX_NAME_NBYTES = 63  # of a tensor, as in ggml
RESERVED = ("__metadata__",)  # names that files of weights have for something else


_TRACED: ContextVar[Graph | None] = ContextVar("traced", default=None)


def being_traced(what: str) -> Graph:
    """The graph that a model's function is writing, for calls without a tensor. Raises UsageError outside of one."""
    graph = _TRACED.get()
    if graph is None:
        raise UsageError(f"{here()}: {what} is called outside of a function that gg.trace traces")
    return graph


@dataclass(frozen=True)
class Node:
    """One tensor of the graph."""

    op: Op | None  # None: a leaf
    src: tuple[int, ...]  # ids, -1 where absent
    params: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str
    name: str  # "" for a node nobody named
    flags: int
    where: str  # "file.py:41" of the call
    feed: str = ""  # what an input is filled with, unless by its own name
    initializer: Initializer | None = None
    values: bytes | None = None  # of a constant


def trace(
    loss: Callable[..., Any],
    config: Any = None,
    batch: int = 1,
    ctx: int = 64,
    types: Mapping[str, str] | None = None,
) -> Graph:
    """Trace `loss(p, input, ..., config)` -> the scalar to minimise, or that and a dict of outputs by name.

    p: `Params`. Inputs: parameters annotated `Annotated[gg.Tensor, gg.Float("batch", 28, 28)]` or `gg.Ids(...)`; those
    called tokens and targets need none: int32 (batch, ctx), filled from text. The scalar: float32, one element.
    batch and ctx are example sizes: the graph can be run at any, unless `fixed` says why not; `save` sees whether it
    can, for which it runs the function once more. A graph whose inputs do not name one of them does not have it.
    types: the element types, by name, of parameters that are not float32; these are weights, but not trained.
    Raises ShapeError with file, line and both operands where the model's shapes do not fit, UsageError for a parameter
    of the function that says nothing of what it is.
    """
    if not callable(loss):
        raise UsageError(f"{here()}: trace: the loss is {loss!r:.80}, not a function of (p, input, ..., config)")
    code = getattr(loss, "__code__", None)
    where = f"{short(code.co_filename)}:{code.co_firstlineno}" if code else _title(loss)
    taken = signature(loss, where)
    given = {"batch": batch, "ctx": ctx}
    graph = Graph({name: given[name] for name in taken.names()}, types)
    sizes = {name: graph.size(name) for name in graph.sizes}
    inputs = []
    for name, each in taken.inputs.items():
        feed = name if name in ("tokens", "targets") and each == TOKENS else ""
        inputs.append(graph.input(name, sizes_of(each, name, sizes, config, where), each.dtype, feed=feed, where=where))
    outer = _TRACED.set(graph)
    try:
        result = loss(Params(graph), *inputs, *([config] if taken.takes_config else []))
    except Exception as error:
        if (instead := told(error, config)) is None:
            raise
        raise instead.with_traceback(error.__traceback__) from None
    finally:
        _TRACED.reset(outer)
    scalar, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    graph.rename(_scalar(scalar, loss, where).id, "loss", LOSS | OUTPUT)
    _name_outputs(graph, outputs, where)
    graph.check_groups()
    graph.model, graph.config = model_name(loss), config
    graph.trace_at = lambda sizes: trace(loss, config, sizes.get("batch", 1), sizes.get("ctx", 1), types)
    return graph


def _title(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def _scalar(value: Any, loss: Callable[..., Any], where: str) -> Tensor:
    """The loss as a tensor of shape (1,). Raises ShapeError for anything that is not one number."""
    one = isinstance(value, Tensor) and all(n == 1 and not isinstance(n, Dim) for n in value.shape)
    if not one or value.dtype != "f32":
        got = "nothing, None; is a return missing?" if value is None else f"{value!r:.200}"
        raise ShapeError(f"{where}: {_title(loss)} must return a scalar tensor of shape (1,), not {got}")
    tensor: Tensor = value
    return tensor if tensor.shape == (1,) else tensor.reshape(1)


def _name_outputs(graph: Graph, outputs: Any, where: str) -> None:
    """Name what a model returns beside its loss, so that it can be asked for when the graph is run."""
    if not isinstance(outputs, Mapping):
        raise UsageError(f"{where}: beside the loss a dict of outputs by name may be returned, not {outputs!r:.80}")
    for name, tensor in outputs.items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{where}: the output {name!r} is no tensor but {tensor!r:.80}")
        if tensor.name not in ("", name):
            raise UsageError(f"{where}: the output {name!r} is called {tensor.name!r} already")
        graph.rename(tensor.id, name, OUTPUT)


def model_name(function: Callable[..., Any]) -> str:
    """ "llama" for ggmlgraph.models.llama.loss, the module's or file's own name otherwise."""
    return str(function.__module__).rpartition(".")[2]


class Graph:
    """What `trace` gives: the nodes of a model in creation order, which is topological order; index = id.

    `print(graph)` shows a line per node, with the place of its call. nodes: `Node`s. sizes: the named sizes, batch and
    ctx. fixed: why it can be run at these alone, if so, which `save` finds out.
    """

    def __init__(self, sizes: dict[str, int], types: Mapping[str, str] | None = None) -> None:
        for name, value in sizes.items():
            if value < 1:
                raise UsageError(f"{name} is {value}, must be at least 1")
        self.sizes = sizes
        self.types = types or {}
        self.nodes: list[Node] = []
        self.model = ""
        self.config: Any = None
        self.trace_at: Callable[[dict[str, int]], Graph] | None = None  # the model again, at other sizes
        self.core = CoreGraph()
        self.fixed = ""  # why the graph cannot be re-sized, if so
        self.groups: list[tuple[ParamGroup, str]] = []  # and where they were declared
        self.limits: dict[str, int] = {}  # the largest values of named sizes
        self._names: dict[str, int] = {}
        self._arrays: dict[Any, Tensor] = {}  # constants without names, by what they hold
        self._shadow: CoreGraph | None = CoreGraph()
        primes = [p for p in (*SHADOW_SIZES, 1019, 1021) if p not in sizes.values()]
        self._shadow_sizes = dict(zip(sizes, primes, strict=False))
        self._exprs: dict[tuple[int, int], str] = {}  # sums and quotients the model wrote, by value and shadow value
        self.dropouts: dict[int, float] = {}  # by node, the rate at which its elements are dropped in training
        self.numbers: dict[int, Number] = {}  # by node, what a scale multiplies by, where that depends on sizes

    # ------------------------------------------------------------ named sizes

    def size(self, name: str) -> int:
        """A named size as a Dim."""
        return Dim(self.sizes[name], name)

    def limit(self, name: str, most: int) -> None:
        """A named size, if the graph has it, may not be larger than this. Raises ShapeError if it is."""
        if name not in self.sizes:
            return
        if self.sizes[name] > most:
            raise ShapeError(f"{self.here()}: {name} is {self.sizes[name]}, the model takes at most {most}")
        self.limits[name] = most

    def _shadow_value(self, value: int) -> int:
        if not isinstance(value, Dim):
            return value
        try:
            shadow = evaluate(value.expr, self._shadow_sizes, minimum=0)
        except FormatError as error:
            self.fix(f"{self.here()}: {error} at other sizes")
            return value
        self._exprs[int(value), shadow] = value.expr
        return shadow

    def expect(self, size: int) -> None:
        """Know the expression of a size that an op will give without being asked for it."""
        self._shadow_value(size)

    def _symbol(self, value: int, shadow: int) -> int:
        """The value as a Dim where it depends on named sizes."""
        if value == shadow:
            return value
        factors, rest, product = [], shadow, 1
        for name, prime in self._shadow_sizes.items():
            while rest % prime == 0:
                rest //= prime
                product *= self.sizes[name]
                factors.append(name)
        if factors and rest * product == value:
            return Dim(value, "*".join([*([str(rest)] if rest != 1 else []), *factors]))
        if (value, shadow) in self._exprs:
            return Dim(value, self._exprs[value, shadow])
        self.fix(f"{self.here()}: size {value} follows no expression of {' and '.join(self.sizes)}")
        return value

    def fix(self, reason: str) -> None:
        """Keep the sizes as they are, for this reason, unless there is one already."""
        self.fixed = self.fixed or reason
        self._shadow = None
        self.numbers = {}

    # ------------------------------------------------------------ adding

    def input(self, name: str, shape: tuple[int, ...], dtype: str, feed: str, where: str = "") -> Tensor:
        """A leaf that is filled before each run with what `feed` names; the same one when asked for again."""
        if name in self._names:
            return Tensor(self, self._names[name])
        return self._leaf(name, shape, dtype, INPUT, where or self.here(), feed=feed)

    def parameter(
        self, name: str, shape: tuple[int, ...], initializer: Initializer, *, shared: bool = False, trained: bool = True
    ) -> Tensor:
        """A leaf that is trained unless it has another type or is not to be; see Params. shared: it may be there."""
        if name in self._names:
            self._check_again(self.nodes[self._names[name]], shape, shared=shared, trained=trained)
            return Tensor(self, self._names[name])
        if not isinstance(initializer, Initializer):
            what = f"{initializer!r:.80} is no initializer such as gg.normal(0.02), gg.zeros() or gg.ones()"
            raise UsageError(f"{self.here()}: parameter {name}: {what}")
        if not shape:
            raise ShapeError(f"{self.here()}: parameter {name} has no sizes; p({name!r}, 1) is one number")
        if not all(isinstance(n, int) for n in shape):
            raise ShapeError(f"{self.here()}: parameter {name}: {shape!r:.80} is no shape of whole numbers")
        if any(isinstance(n, Dim) for n in shape):
            raise ShapeError(f"{self.here()}: parameter {name} {_numbers(shape)} depends on batch or ctx")
        try:
            initializer.check(shape)
        except UsageError as error:
            raise UsageError(f"{self.here()}: parameter {name}: {error}") from None
        dtype = self.types.get(name, "f32")
        flags = PARAM if dtype == "f32" and trained else 0
        return self._leaf(name, shape, dtype, flags, self.here(), initializer=initializer)

    def _check_again(self, node: Node, shape: tuple[int, ...], *, shared: bool, trained: bool) -> None:
        """Raise unless a parameter may be declared once more like this."""
        name = node.name
        if node.shape != tuple(shape):
            here, there = _numbers(shape), _numbers(node.shape)
            raise ShapeError(f"{self.here()}: parameter {name} is {here} here but {there} at {node.where}")
        if node.initializer is None:
            raise UsageError(f"{self.here()}: parameter {name}: the name was taken at {node.where}")
        if not shared:
            how = "give another name, or declare it in p.share if it is to be the same"
            raise UsageError(f"{self.here()}: parameter {name} was declared at {node.where} already: {how}")
        if node.dtype == "f32" and trained != bool(node.flags & PARAM):
            here, there = ("trained", "frozen") if trained else ("frozen", "trained")
            raise UsageError(f"{self.here()}: parameter {name} is {here} here but {there} at {node.where}")

    def group(self, pattern: str, lr: float, decay: float) -> None:
        """Factors of the learning rate and the weight decay, for parameters by name; see Params.group."""
        for what, factor in (("lr", lr), ("decay", decay)):
            if not isinstance(factor, int | float) or not 0 <= factor <= MAX_FACTOR:
                raise UsageError(f"{self.here()}: group {pattern}: {what} {factor!r:.80} is not in 0..{MAX_FACTOR:g}")
        if len(self.groups) == MAX_GROUPS:
            raise UsageError(f"{self.here()}: more than {MAX_GROUPS} groups")
        self.groups.append((ParamGroup(pattern, float(lr), float(decay)), self.here()))

    def check_groups(self) -> None:
        """Raise UsageError for a group without parameters."""
        names = [node.name for node in self.nodes if node.flags & PARAM]
        for group, where in self.groups:
            if not any(fnmatchcase(name, group.pattern) for name in names):
                near = get_close_matches(group.pattern, names, 3, 0)
                raise UsageError(
                    f"{where}: no trained parameter is called {group.pattern!r}; there are {', '.join(near) or 'none'}"
                )

    def constant(self, name: str, values: NDArray[Any]) -> Tensor:
        """A leaf of these values, float32 or int32, neither trained nor fed; the same one when asked for again."""
        if name in self._names:
            if self.nodes[self._names[name]].values is None:
                raise UsageError(f"{self.here()}: the name {name!r} was taken at {self.nodes[self._names[name]].where}")
            return Tensor(self, self._names[name])
        dtype, stored = ("i32", "<i4") if values.dtype == np.int32 else ("f32", "<f4")
        return self._leaf(name, values.shape, dtype, 0, self.here(), values=values.astype(stored).tobytes())

    def number(self, value: Any) -> Tensor:
        """A constant of one element, the same one when asked for again; a size times the constant 1."""
        if isinstance(value, Dim):
            return self.number(1) * int(value)
        number = float(np.float32(value))
        if not math.isfinite(number):
            raise UsageError(f"{self.here()}: the number {value!r} is not finite in float32")
        return self.constant(f"const.{number:.9g}", np.full(1, number, np.float32))

    def array(self, values: NDArray[Any]) -> Tensor:
        """A constant of these values, float32 or int32; the same one for equal ones."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._arrays:
            self._arrays[key] = self.constant(f"array.{len(self._arrays)}.{'x'.join(map(str, values.shape))}", values)
        return self._arrays[key]

    def _leaf(self, name: str, shape: tuple[int, ...], dtype: str, flags: int, where: str, **rest: Any) -> Tensor:
        self._check_name(name)
        try:
            self._names[name] = self.core.leaf(dtype, shape, flags, name)
        except GGError as error:
            raise type(error)(f"{self.here()}: {error}", code=error.code) from None
        if self._shadow is not None:
            self._shadow.leaf(dtype, [self._shadow_value(n) for n in shape], flags, name)
        self.nodes.append(Node(None, (), {}, tuple(shape), dtype, name, flags, where, **rest))
        return Tensor(self, self._names[name])

    def add(
        self, op: Op, operands: list[Any], params: dict[str, Any], strides: list[tuple[int, ...]] | None = None
    ) -> Tensor:
        """Record one op. Raises ShapeError naming the user's line and both operands."""
        given = zip(op.sources, operands, strict=True)
        src = [-1 if x is None and name in op.optional else self._id_of(op, x) for name, x in given]
        params = dict(params)
        shape = params.pop("shape", None)
        shape = self.nodes[shape.id].shape if isinstance(shape, Tensor) else shape
        self._check_numbers(op, params, shape)
        asked = "" if shape is None else f", shape = {_sizes(shape)}"
        shape, shadow_shape = self._resolve(shape, src)
        if op.shape == "broadcast":
            self._check_broadcast(op, src)
        try:
            node = self.core.node(op, src, params, shape, strides[0] if strides else None)
        except GGError as error:
            hint = "; ids.float(n) makes numbers of ids" if str(error).endswith("must be float32, not i32") else ""
            message = f"{self.here()}: {op.name}: {error}{hint}: {self._operands(op, src)}{asked}"
            raise type(error)(message, code=error.code) from None
        if self._shadow is not None:
            try:
                shadow_params = {name: self._shadow_value(value) for name, value in params.items()}
                self._shadow.node(op, src, shadow_params, shadow_shape, strides[1] if strides else None)
            except GGError:
                self.fix(f"{self.here()}: {op.name} has a size that is no expression of {' and '.join(self.sizes)}")
        rank = self._rank(op, src, shape)
        dtype = self.core.dtype(node)
        self.nodes.append(Node(op, tuple(src), params, self._shape(node, rank), dtype, "", 0, self.here()))
        return Tensor(self, node)

    def _check_numbers(self, op: Op, params: dict[str, Any], shape: Any) -> None:
        """Raise TypeError for an argument that is no number of its kind, or a shape that is not of whole numbers."""
        for param in op.params:
            kind, what = (Real, "a number") if param.kind == "f32" else (Integral, "a whole number")
            if not isinstance(params[param.name], kind):
                raise TypeError(f"{self.here()}: {op.name}: {param.name} is {params[param.name]!r:.80}, not {what}")
        if shape is not None and not (isinstance(shape, Sequence) and all(isinstance(n, Integral) for n in shape)):
            raise TypeError(f"{self.here()}: {op.name}: {shape!r:.80} is no shape of whole numbers")

    def _check_broadcast(self, op: Op, src: list[int]) -> None:
        """Raise ShapeError where ggml would tile the second operand: only sizes of 1 are repeated, as in numpy."""
        for core in (self.core, self._shadow):
            if core is None:
                continue
            for n, m in zip(core.shape(src[0], 4), core.shape(src[1], 4), strict=True):
                if m not in (1, n) and n % m == 0:
                    where = "" if core is self.core else " at other sizes"
                    what = f"size {m} is not repeated to {n}{where}; gg.repeat does that"
                    raise ShapeError(f"{self.here()}: {op.name}: {what}: {self._operands(op, src)}")

    def _id_of(self, op: Op, operand: Any) -> int:
        if not isinstance(operand, Tensor):
            hint = "; is a return missing in what gave it?" if operand is None else ""
            raise TypeError(f"{self.here()}: {op.name} takes tensors, got {operand!r:.80}{hint}")
        if operand.graph is not self:
            raise TypeError(f"{self.here()}: {op.name}: an operand belongs to another graph")
        return operand.id

    def _resolve(self, shape: tuple[int, ...] | None, src: list[int]) -> tuple[Any, Any]:
        """A requested shape and the shadow's, with -1 replaced by what is left."""
        if shape is None:
            return None, None
        shadow = [self._shadow_value(n) for n in shape]
        if -1 in shape:
            cores = [self.core, self._shadow] if self._shadow is not None else [self.core]
            for core, sizes in zip(cores, (list(shape), shadow), strict=False):
                total = _product(core.shape(src[0]))
                sizes[sizes.index(-1)] = total // max(1, -_product(sizes))
                shape = tuple(sizes) if core is self.core else shape
        return shape, shadow

    def _shape(self, node: int, rank: int) -> tuple[int, ...]:
        shape = self.core.shape(node, rank)
        if self._shadow is None:
            return shape
        return tuple(self._symbol(*pair) for pair in zip(shape, self._shadow.shape(node, rank), strict=True))

    def _rank(self, op: Op, src: list[int], shape: tuple[int, ...] | None) -> int:
        ranks = [len(self.nodes[i].shape) if i >= 0 else 0 for i in src]
        if shape is not None:
            return len(shape)
        return op.rank(*ranks) if op.rank else max(ranks)

    def strides(self, node: int) -> list[tuple[int, ...]]:
        """Bytes from one element to the next along each of four axes, and those of the shadow."""
        return [core.strides(node) for core in self._cores()]

    def is_contiguous(self, node: int) -> bool:
        """Whether a reshape or slice may look straight into the node's memory.

        Not from the middle of another tensor: stock ggml's importer forgets the offset of a view's view. Older ggml
        looks at strides of axes of size 1 too, which a view keeps from its source.
        """
        cores = self._cores()
        if self.begins_inside(node) or not all(core.is_contiguous(node) for core in cores):
            return False
        op = self.nodes[node].op
        return op is None or op.name != "view" or all(_is_packed(core, node) for core in cores)

    def has_rows(self, node: int) -> bool:
        """Whether the elements of the last axis lie beside one another."""
        return self.nodes[node].dtype != "f32" or all(core.strides(node)[-1] == 4 for core in self._cores())

    def begins_inside(self, node: int) -> bool:
        """Whether a node lies in another's memory, and not at its begin; at any sizes."""
        return any(core.begins_inside(node) for core in self._cores())

    def _cores(self) -> list[CoreGraph]:
        return [self.core] if self._shadow is None else [self.core, self._shadow]

    def _check_name(self, name: str) -> None:
        """Raise UsageError for a name that no tensor of a file may have."""
        if not isinstance(name, str) or not name or UNPRINTABLE.search(name):
            raise UsageError(
                f"{self.here()}: {name!r:.80} cannot be a tensor's name: it is empty or has control characters"
            )
        if len(name.encode()) > MAX_NAME_NBYTES:
            raise UsageError(f"{self.here()}: the name {name:.80} is longer than {MAX_NAME_NBYTES} bytes")
        if name in RESERVED or name.startswith("ggmlgraph."):
            raise UsageError(f"{self.here()}: no tensor of a model may be called {name}")

    def rename(self, node: int, name: str, flags: int = 0) -> None:
        """Name a node and add flags to it."""
        self._check_name(name)
        if self._names.get(name, node) != node:
            other = self.nodes[self._names[name]]
            raise UsageError(f"{self.here()}: the name {name!r} was taken at {other.where}")
        self.core.set_name(node, name, flags)
        self._names.pop(self.nodes[node].name, None)
        self._names[name] = node
        self.nodes[node] = replace(self.nodes[node], name=name, flags=self.nodes[node].flags | flags)

    # ------------------------------------------------------------ places and text

    def here(self) -> str:
        """ "file.py:41": where the model's own code is being executed."""
        return here()

    def label(self, node: int) -> str:
        """ "%attn_q.weight", or by its number."""
        return f"%{self.nodes[node].name or node}"

    def describe(self, node: int) -> str:
        """ "%attn_q.weight f32[256,256]"."""
        return f"{self.label(node)} {self.nodes[node].dtype}{_sizes(self.nodes[node].shape)}"

    def _operands(self, op: Op, src: list[int]) -> str:
        return ", ".join(f"{name} = {self.describe(i)}" for name, i in zip(op.sources, src, strict=True) if i >= 0)

    def lines(self) -> Iterator[str]:
        """One line per node, parameters and inputs first."""
        for i, node in enumerate(self.nodes):
            if node.op is None:
                other = "constant" if node.values else f"input {node.feed}".rstrip()
                yield f"{self.describe(i)} = {f'param {node.initializer.spec}' if node.initializer else other}"
        for i, node in enumerate(self.nodes):
            if node.op is not None:
                arguments = [self.label(s) for s in node.src if s >= 0]
                arguments += [f"{p.name}={node.params[p.name]:g}" for p in node.op.params
                              if node.params[p.name] != p.default]  # fmt: skip
                yield f"{self.describe(i)} = {node.op.name}({', '.join(arguments)})"

    def __repr__(self) -> str:
        shapes = [node.shape for node in self.nodes if node.initializer]
        sizes = "".join(f", {name} {value}" for name, value in self.sizes.items())
        n_nodes, n_params = len(self.nodes), sum(map(_product, shapes))
        return escaped(f"<Graph {self.model or 'unnamed'}: {n_nodes:,} nodes, {n_params:,} parameters{sizes}>")

    def _repr_html_(self) -> str:
        """For notebooks: one line, and all nodes behind it."""
        return f"<details><summary><code>{escape(repr(self))}</code></summary><pre>{escape(str(self))}</pre></details>"

    def __str__(self) -> str:
        lines = list(self.lines())
        order = [i for i, n in enumerate(self.nodes) if n.op is None] + [i for i, n in enumerate(self.nodes) if n.op]
        width = min(72, max(map(len, lines), default=0))
        return "\n".join(f"{line:<{width}}  # {self.nodes[i].where}" for line, i in zip(lines, order, strict=True))

    # ------------------------------------------------------------ checks and saving

    def check_gradient(self) -> None:
        """Raise UnsupportedError naming the ops without derivative, if the loss needs any."""

        def where(node: int) -> str:
            return f"{self.nodes[node].where if 0 <= node < len(self.nodes) else '?'}: "

        passes.check_derivatives(self.core, self._names["loss"], where)

    def exprs(self, node: int) -> SizeExpressions | None:
        """How a leaf's or sized node's sizes, a view's offset, a scale's factor depend on named sizes, if they do."""
        op = self.nodes[node].op
        if node in self.numbers:
            return SizeExpressions(s=self.numbers[node])
        if self._shadow is None or (op is not None and not op.sized and op.name != "arange"):
            return None
        pairs = zip(self.core.shape(node, 4), self._shadow.shape(node, 4), strict=True)
        symbols = [self._symbol(*pair) for pair in pairs]
        offset = self.nodes[node].params.get("offset")
        a, b, c, d = in_file_order([n.expr if isinstance(n, Dim) else None for n in symbols])
        found = SizeExpressions((a, b, c, d), offset.expr if isinstance(offset, Dim) else None)
        return None if found == SizeExpressions() else found

    def save(
        self,
        path: str | Path,
        *,
        seed: int = 0,
        weights: export.Weights | None = None,
        tokenizer: bytes | None = None,
        corpus: str | None = None,
        dialect: str = "v2",
    ) -> None:
        """Write the graph with these weights, else with freshly initialised ones; see `ggmlgraph.export`."""
        export.save(self, Path(path), seed=seed, weights=weights, tokenizer=tokenizer, corpus=corpus, dialect=dialect)


def _is_packed(core: CoreGraph, node: int) -> bool:
    """Whether every stride is what the sizes make it, be a size 1 or not."""
    sizes, strides = core.shape(node, 4), core.strides(node)
    return all(strides[i] == strides[i + 1] * sizes[i + 1] for i in range(3))


def _product(sizes: Any) -> int:
    total = 1
    for n in sizes:
        total *= int(n)
    return total


def _numbers(shape: tuple[int, ...]) -> str:
    return str(tuple(int(n) for n in shape))


def _sizes(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(n.expr if isinstance(n, Dim) else str(n) for n in shape) + "]"
