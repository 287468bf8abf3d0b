"""The op table's mechanism: what one stanza of `ops.py` records, and how a call finds its interpreter.

An op is a function without a body. Its signature is the schema (operands are sources, scalars are
op_params words), its name is the C name, its docstring is the API page. Calling it asks the first operand
to `bind` it: a `Tensor` records a node, a `Rule` or `Formula` (runtime/gen.py) prints C. Used by `ops.py`, by the
tracer and, at build time, by `runtime/gen.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol, Self, TypeVar, cast

from ggmlgraph.errors import here

F = TypeVar("F", bound=Callable[..., Any])


class Operand:
    """What an op is called on: anything that can say how an op applies to it. Operators are calls of ops."""

    __slots__ = ()

    def bind(self, op: Op, operands: list[Any], params: dict[str, Any]) -> Any:
        """Apply `op`; `operands` follow `op.sources` (None where an optional one is absent)."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Self:
        return TABLE["add"](self, other)  # type: ignore[no-any-return]

    def __sub__(self, other: Any) -> Self:
        return TABLE["sub"](self, other)  # type: ignore[no-any-return]

    def __mul__(self, other: Any) -> Self:
        return TABLE["mul"](self, other)  # type: ignore[no-any-return]

    def __truediv__(self, other: Any) -> Self:
        return TABLE["div"](self, other)  # type: ignore[no-any-return]

    def __neg__(self) -> Self:
        return TABLE["neg"](self)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Param:
    """One scalar of an op: which 32-bit op_params word holds it, and as what."""

    name: str
    kind: str  # "f32", "i32", or "i64" (two words)
    word: int
    default: float | int | None


@dataclass(frozen=True)
class Op:
    """One row of the table."""

    name: str
    ggml: str | None  # name in enum ggml_op; None: internal, never written to a file
    unary: str | None  # name in enum ggml_unary_op when `ggml` is UNARY
    exact: bool  # the file shows `ggml`/`unary`; the metadata leaf names this exact form
    sources: tuple[str, ...]
    optional: tuple[str, ...]  # sources that may be absent
    params: tuple[Param, ...]
    sized: bool  # the result's size is given by the caller, not derived
    shape: str  # rule in runtime/src/shape.c
    view: str | None  # the source in whose memory the result lies
    kernel: str | None  # function in runtime/kernels; None: nothing to compute
    scalar: Callable[..., Any] | str | None  # elementwise formula, or the function of simd.h that is it
    vjp: Callable[..., tuple[Any, ...]] | None
    no_gradient: bool  # deliberately not differentiable: its sources are indices or masks
    by_row: bool  # a row of the result (last axis) follows from the same row of each source; elementwise ops: always
    inplace: str | None  # source whose memory the result may take when that dies here and no other source lies there
    infinite: tuple[str, ...]  # float params that need not be finite
    rows: tuple[str, ...]  # sources whose last axis must be contiguous
    dense: tuple[str, ...]  # sources that must be contiguous as a whole
    writes: tuple[str, ...]  # sources the kernel writes; passes learn of writes from here alone
    layouts: tuple[str, ...]  # sources of which only the place in memory matters
    decoded: tuple[str, ...]  # sources that files hold in any type with a decoder, and kernels read as float32
    result: str | None  # in a file the result's type may be that of this source, or "f16"; the kernel's is float32
    work: str | None  # function in runtime/src/work.c that sizes the scratch memory
    rank: Callable[..., int] | None  # rank of the result from ranks of the sources; None: the largest
    doc: str = field(repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        operands, params = self.arguments(args, kwargs)
        for operand in (*operands, params.get("shape")):
            if isinstance(operand, Operand):
                return operand.bind(self, operands, params)
        found = [f"{name} is {self._shown(value)}" for name, value in zip(self.sources, operands, strict=True)]
        raise TypeError(f"{here()}: {self.name} takes tensors, but {', '.join(found)}")

    def _shown(self, value: Any) -> str:
        return "None; is a return missing?" if value is None else f"{value!r:.80}"

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Sort call arguments into operands and params (with `shape` for a sized op)."""
        slots = [*self.sources, *(p.name for p in self.params), *(("shape",) if self.sized else ())]
        if len(args) > len(slots):
            raise TypeError(f"{here()}: {self.name} takes at most {len(slots)} arguments, got {len(args)}")
        given = dict(zip(slots, args, strict=False))
        for name, value in kwargs.items():
            if name not in slots or name in given:
                raise TypeError(f"{here()}: {self.name}: unexpected or repeated argument {name!r}")
            given[name] = value
        defaults: dict[str, Any] = dict.fromkeys(self.optional)
        defaults |= {p.name: p.default for p in self.params if p.default is not None}
        if self.sized:
            defaults["shape"] = None
        values = defaults | given
        missing = [name for name in slots if name not in values]
        if missing:
            raise TypeError(f"{here()}: {self.name}: missing argument {missing[0]!r}")
        operands = [values.pop(name) for name in self.sources]
        return operands, values


class Formula(Protocol):
    """A rule: straight-line code over operands."""

    def __call__(self, *operands: Any) -> Any: ...


TABLE: dict[str, Op] = {}


def op(
    ggml: str | None = None,
    *,
    unary: str | None = None,
    exact: bool = False,
    shape: str = "same",
    kernel: str | None = "",
    scalar: Formula | str | None = None,
    vjp: Formula | None = None,
    no_gradient: bool = False,
    by_row: bool = False,
    inplace: bool | str = False,
    infinite: tuple[str, ...] = (),
    view: bool | str = False,
    rows: tuple[str, ...] = (),
    dense: tuple[str, ...] = (),
    writes: tuple[str, ...] = (),
    layouts: tuple[str, ...] = (),
    decoded: tuple[str, ...] = (),
    result: str | None = None,
    words: dict[str, int] | None = None,
    work: str | None = None,
    rank: Callable[..., int] | None = None,
) -> Callable[[F], F]:
    """Enter an op into the table. The decorated stub's signature and docstring complete the row.

    A parameter annotated float, int or Offset is a scalar, one annotated Shape makes the op sized, all others are
    sources. What the decorator returns calls the row; to `help` and to type checkers it is the function of the stub.

    `words` places params in op_params where ggml leaves gaps; without it they follow one another
    (from word 1 for a unary op, whose word 0 is the ggml_unary_op number). `kernel` defaults to the name. `view` names
    the source whose memory the result is, `inplace` that whose memory it may take; True: the first.
    """

    def enter(stub: F) -> F:
        sources, optional, params, sized = [], [], [], False
        word = 1 if unary else 0
        for name, parameter in inspect.signature(stub).parameters.items():
            default = None if parameter.default is inspect.Parameter.empty else parameter.default
            if parameter.annotation.startswith("Shape"):
                sized = True
                continue
            kind = {"float": "f32", "int": "i32", "Offset": "i64"}.get(parameter.annotation)
            if kind is None:
                sources.append(name)
                if "None" in parameter.annotation:
                    optional.append(name)
                continue
            word = (words or {}).get(name, word)
            params.append(Param(name, kind, word, default))
            word += 2 if kind == "i64" else 1
        row = Op(
            name=stub.__name__, ggml=ggml, unary=unary, exact=exact, sources=tuple(sources), optional=tuple(optional),
            params=tuple(params), sized=sized, shape=shape, view=sources[0] if view is True else view or None,
            kernel=stub.__name__ if kernel == "" else kernel, scalar=scalar, vjp=vjp,
            no_gradient=no_gradient, by_row=by_row, inplace=sources[0] if inplace is True else inplace or None,
            infinite=infinite, rows=rows, dense=dense, writes=writes, layouts=layouts, decoded=decoded,
            result=result, work=work, rank=rank, doc=inspect.getdoc(stub) or "",
        )  # fmt: skip
        if row.name in TABLE:
            raise ValueError(f"op {row.name} is in the table twice")
        TABLE[row.name] = row

        @wraps(stub)
        def call(*args: Any, **kwargs: Any) -> Any:
            return row(*args, **kwargs)

        return cast(F, call)

    return enter
