"""Generate the C that follows from the op table: run by the build, never by a user.

    python gen.py OUTPUT_DIR

`Rule` operands turn a vjp into calls that append nodes; `Formula` operands turn a scalar formula into vector C.
The templates beside this file hold the rest. Output: gg_ops.h, types.c, ops.c, rules.c,
elementwise.c, kernels.c.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.dont_write_bytecode = True  # beside the sources, from where it would be installed

from ggmlgraph.table import dialect, ops  # noqa: E402, F401
from ggmlgraph.table.op import TABLE, Op, Operand  # noqa: E402


class Formula(Operand):
    """A float vector in C; an op applied to it is inlined."""

    def __init__(self, text: str) -> None:
        self.text = text

    def bind(self, op: Op, operands: list[Any], params: dict[str, Any]) -> Formula:
        if isinstance(op.scalar, str):
            return Formula(f"{op.scalar}({', '.join(x.text for x in operands)})")
        if op.scalar is None or params:
            raise TypeError(f"{op.name} has no place in a formula")
        return op.scalar(*operands)  # type: ignore[no-any-return]

    def _infix(self, sign: str, other: Formula | float, *, swap: bool = False) -> Formula:
        right = other.text if isinstance(other, Formula) else f"{float(other)!r}f"
        left, right = (right, self.text) if swap else (self.text, right)
        return Formula(f"({left} {sign} {right})")

    def __add__(self, other: Formula | float) -> Formula:
        return self._infix("+", other)

    def __sub__(self, other: Formula | float) -> Formula:
        return self._infix("-", other)

    def __mul__(self, other: Formula | float) -> Formula:
        return self._infix("*", other)

    def __truediv__(self, other: Formula | float) -> Formula:
        return self._infix("/", other)

    def __radd__(self, other: float) -> Formula:
        return self._infix("+", other, swap=True)

    def __rsub__(self, other: float) -> Formula:
        return self._infix("-", other, swap=True)

    def __rmul__(self, other: float) -> Formula:
        return self._infix("*", other, swap=True)

    def __rtruediv__(self, other: float) -> Formula:
        return self._infix("/", other, swap=True)

    def __neg__(self) -> Formula:
        return Formula(f"(-{self.text})")


class Rule(Operand):
    """A tensor id in C: a name, or the call that appends a node. An op applied to it is such a call."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments

    def bind(self, op: Op, operands: list[Any], params: dict[str, Any]) -> Rule:
        values = [*operands, *(params[p.name] for p in op.params), *([params["shape"]] if op.sized else [])]
        return Rule(f"gg_make_{op.name}", tuple(values))

    @property
    def row_share(self) -> str:
        """1 / n of a source with rows of n."""
        return f"1.0f / (float)gg_at(to->g, {self.name})->ne[0]"

    def calls(self) -> dict[Rule, None]:
        """The calls this consists of, each after those among its arguments."""
        found: dict[Rule, None] = {}
        for argument in self.arguments:
            if isinstance(argument, Rule):
                found |= argument.calls()
        return found | {self: None} if self.arguments else found

    def text(self, local: dict[Rule, str]) -> str:
        """The C expression, given the calls whose results lie in local variables."""
        if self in local or not self.arguments:
            return local.get(self, self.name)
        return f"{self.name}({', '.join(['to', *(c_value(a, local) for a in self.arguments)])})"


class Output(Rule):
    """The node being differentiated: `y.eps` reads its parameter."""

    def __init__(self, op: Op) -> None:
        super().__init__("y")
        self.op = op

    def __getattr__(self, name: str) -> str:
        for p in self.op.params:
            if p.name == name:
                return f"gg_param_{p.kind}(&node, {p.word})"
        raise AttributeError(f"{self.op.name} has no parameter {name}")


def c_value(value: Rule | str | float | None, local: dict[Rule, str]) -> str:
    """An argument of a gg_make function; -1 is an absent source."""
    if value is None:
        return "-1"
    if isinstance(value, Rule):
        return value.text(local)
    return f"{value!r}f" if isinstance(value, float) else str(value)


def vjp_cotangents(op: Op) -> dict[int, Rule]:
    """The cotangent of each source that has one."""
    if op.vjp is None:
        return {}
    sources = [Rule(f"node.src[{k}]") for k in range(len(op.sources))]
    cotangents = op.vjp(Rule("g"), Output(op), *sources)
    if len(cotangents) != len(op.sources):
        raise TypeError(f"vjp of {op.name} gives {len(cotangents)} cotangents for {len(op.sources)} sources")
    return {k: c for k, c in enumerate(cotangents) if c is not None}


def vjp_statements(op: Op) -> list[str]:
    """A rule in C. What it uses twice is a local, made only if a wanted cotangent needs it."""
    cotangents = vjp_cotangents(op)
    needs = {k: cotangent.calls() for k, cotangent in cotangents.items()}
    calls = {call: None for needed in needs.values() for call in needed}
    n_uses = Counter([*cotangents.values(), *(a for call in calls for a in call.arguments if isinstance(a, Rule))])
    local: dict[Rule, str] = {}
    statements = []
    for call in calls:
        if n_uses[call] > 1:
            wanted = " || ".join(f"want[{k}]" for k, needed in needs.items() if call in needed)
            statements.append(f"int32_t t{len(local)} = {wanted} ? {call.text(local)} : -1;")
            local[call] = f"t{len(local)}"
    return statements + [f"if (want[{k}]) grad[{k}] = {c.text(local)};" for k, c in cotangents.items()]


def formula(op: Op) -> str:
    """The C expression of an elementwise op."""
    operands = [Formula(name) for name in (*op.sources, *(p.name for p in op.params))]
    result = (
        op.scalar(*operands) if callable(op.scalar) else Formula(f"{op.scalar}({', '.join(x.text for x in operands)})")
    )
    return result.text


def bits(op: Op, names: tuple[str, ...]) -> str:
    """Mask of these sources."""
    return hex(sum(1 << op.sources.index(name) for name in names))


def result(op: Op) -> str:
    """Where the type of an op's result in a file comes from: see gg_op_info."""
    return "GG_RESULT_F16" if op.result == "f16" else str(op.sources.index(op.result) if op.result else -1)


def words(op: Op) -> str:
    """Mask of the op_params words that hold parameters."""
    return hex(sum((3 if p.kind == "i64" else 1) << p.word for p in op.params))


def finite_words(op: Op) -> str:
    """Mask of the op_params words that hold finite floats."""
    return hex(sum(1 << p.word for p in op.params if p.kind == "f32" and p.name not in op.infinite))


C_TYPE = {"f32": "float", "i32": "int32_t", "i64": "int64_t"}


def make_signature(op: Op) -> str:
    """C declaration of the function that appends this op."""
    arguments = ["gg_builder *to", *(f"int32_t {name}" for name in op.sources)]
    arguments += [f"{C_TYPE[p.kind]} {p.name}" for p in op.params]
    arguments += ["int32_t shape_of"] if op.sized else []
    return f"int32_t gg_make_{op.name}({', '.join(arguments)})"


def file_op(op: Op) -> str:
    """The row a file names: the op itself, or for an exact form the row it refines."""
    if not op.exact:
        return op.name
    return next(o.name for o in TABLE.values() if (o.ggml, o.unary, o.exact) == (op.ggml, op.unary, False))


def file_ops(d: dialect.Dialect, names: tuple[str, ...], *, unary: bool) -> list[tuple[str, str | None]]:
    """For each op of a dialect, in number order: ggml's name, and the table row that is it. In a dialect without UNARY
    the unary ops are among the others."""
    rows = {
        o.unary or o.ggml: o.name for o in TABLE.values() if not o.exact and (bool(o.unary) == unary or not d.unary)
    }
    named = {name: v.op for name, v in d.variations.items() if v.op}
    return [(name, None if name in d.refused else rows.get(named.get(name, name))) for name in names]


def unread(name: str) -> str:
    """Mask of the op_params words of a ggml op that files may fill and no kernel reads."""
    return hex(sum(1 << word for word in dialect.UNREAD.get(name, ())))


def layout(record: dialect.Layout) -> str:
    """Initialisers of a gg_layout: byte offsets, -1 where the record has no such field."""
    fields = {"type": "type", "op": "op", "n_dims": "n_dims", "flags": "flags", "ne": "ne0", "name": "name",
              "op_params": "op_params", "src": "src"}  # fmt: skip
    offsets = {member: record.offset(name) if record.n(name) else -1 for member, name in fields.items()}
    return ", ".join(f".{member} = {value}" for member, value in {"nbytes": record.nbytes, **offsets}.items())


def type_numbers(d: dialect.Dialect) -> list[int]:
    """For each type number of a dialect the runtime's, which are the newest dialect's; -1 where there is no type."""
    numbers = {number: dialect.V2.types[name] for name, number in d.types.items()}
    return [numbers.get(number, -1) for number in range(max(numbers) + 1)]


def types() -> list[tuple[int, dialect.Type]]:
    """The element types by number, which are the newest dialect's."""
    return [(number, dialect.TYPES[name]) for name, number in dialect.V2.types.items()]


def main(out: Path) -> None:
    """Render every template into `out`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        ops=list(TABLE.values()), dialects=dialect.DIALECTS.values(), magic=dialect.MAGIC,
        vjp_statements=vjp_statements, formula=formula, bits=bits, result=result, words=words,
        finite_words=finite_words, make_signature=make_signature, file_op=file_op, file_ops=file_ops,
        layout=layout, types=types(), type_numbers=type_numbers, unread=unread,
    )  # fmt: skip
    for name in ("gg_ops.h", "types.c", "ops.c", "rules.c", "elementwise.c", "kernels.c"):
        (out / name).write_text(environment.get_template(name + ".j2").render(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
