"""Sizes that remember where they come from: `Dim` at trace time, `evaluate` when a file is re-sized.

A `Dim` is an int with an expression over named sizes ("batch", "ctx"). The tracer makes them, the metadata leaf
stores their text, and `evaluate` gives that text, which then is untrusted, its value at other sizes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from ggmlgraph.errors import FormatError

MAX_TEXT = 256
MAX_DEPTH = 32
MAX_VALUE = 1 << 40

_TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|//|[-+*()]")


class Dim(int):
    """An int with the expression it came from. Everything but + - * // is int's own."""

    expr: str
    polynomial: _Polynomial

    def __new__(cls, value: int, expr: str) -> Dim:
        return _dim(int(value), _Parser(expr, _Polynomial.number, _Polynomial.name).parse())

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]  # so that a config can be copied
        return int(self), self.expr

    def __add__(self, other: int) -> int:
        return _apply(int.__add__, _Polynomial.__add__, self, other)

    def __radd__(self, other: int) -> int:
        return _apply(int.__add__, _Polynomial.__add__, other, self)

    def __sub__(self, other: int) -> int:
        return _apply(int.__sub__, _Polynomial.__sub__, self, other)

    def __rsub__(self, other: int) -> int:
        return _apply(int.__sub__, _Polynomial.__sub__, other, self)

    def __mul__(self, other: int) -> int:
        return _apply(int.__mul__, _Polynomial.__mul__, self, other)

    def __rmul__(self, other: int) -> int:
        return _apply(int.__mul__, _Polynomial.__mul__, other, self)

    def __floordiv__(self, other: int) -> int:
        return _apply(int.__floordiv__, _Polynomial.__floordiv__, self, other)

    def __rfloordiv__(self, other: int) -> int:
        return _apply(int.__floordiv__, _Polynomial.__floordiv__, other, self)


def evaluate(expr: str, sizes: Mapping[str, int], minimum: int = 1) -> int:
    """The value of an expression of a file. `minimum` is 0 where the expression is an offset."""

    def size(name: str) -> int:
        if name not in sizes:
            raise FormatError(f"expression {expr!r} uses the unknown size {name!r}")
        return int(sizes[name])

    try:
        value = _Parser(expr, int, size).parse()
    except ZeroDivisionError:
        raise FormatError(f"expression {expr!r} divides by zero") from None
    if not minimum <= value <= MAX_VALUE:
        raise FormatError(f"expression {expr!r} is {value}, not in {minimum}..2^40")
    return value


# ---------------------------------------------------------------- polynomials

# A product of atoms, sorted. An atom is a name, or the text of a division that leaves a remainder, in parentheses.
_Monomial: TypeAlias = tuple[str, ...]


class _Polynomial:
    """A sum of integer multiples of monomials: the form in which equal expressions are equal."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[_Monomial, int]) -> None:
        self.terms = {monomial: factor for monomial, factor in terms.items() if factor}

    @classmethod
    def number(cls, value: int) -> _Polynomial:
        return cls({(): value})

    @classmethod
    def name(cls, name: str) -> _Polynomial:
        return cls({(name,): 1})

    @classmethod
    def of(cls, value: int) -> _Polynomial:
        return value.polynomial if isinstance(value, Dim) else cls.number(value)

    def is_number(self) -> bool:
        return all(monomial == () for monomial in self.terms)

    def __add__(self, other: _Polynomial) -> _Polynomial:
        terms = dict(self.terms)
        for monomial, factor in other.terms.items():
            terms[monomial] = terms.get(monomial, 0) + factor
        return _Polynomial(terms)

    def __sub__(self, other: _Polynomial) -> _Polynomial:
        return self + _Polynomial({monomial: -factor for monomial, factor in other.terms.items()})

    def __mul__(self, other: _Polynomial) -> _Polynomial:
        terms: dict[_Monomial, int] = {}
        for m, x in self.terms.items():
            for n, y in other.terms.items():
                product = tuple(sorted(m + n))
                terms[product] = terms.get(product, 0) + x * y
        return _Polynomial(terms)

    def __floordiv__(self, other: _Polynomial) -> _Polynomial:
        if self.is_number() and other.is_number():
            return self.number(self.terms.get((), 0) // other.terms.get((), 0))
        if self.terms == other.terms:
            return self.number(1)
        exact = self._divided(*next(iter(other.terms.items()))) if len(other.terms) == 1 else None
        return exact or self.name(f"({self._factor_text()}//{other._divisor_text()})")

    def _divided(self, divisor: _Monomial, factor: int) -> _Polynomial | None:
        """The quotient by one term if there is no remainder whatever the sizes are."""
        terms = {}
        for monomial, x in self.terms.items():
            rest, missing = Counter(monomial), Counter(divisor)
            if x % factor or missing - rest:
                return None
            terms[tuple(sorted((rest - missing).elements()))] = x // factor
        return _Polynomial(terms)

    def _factor_text(self) -> str:
        return str(self) if len(self.terms) == 1 and min(self.terms.values()) > 0 else f"({self})"

    def _divisor_text(self) -> str:
        text = self._factor_text()
        return f"({text})" if "*" in text and not text.startswith("(") else text

    def __str__(self) -> str:
        order = sorted(self.terms.items(), key=lambda term: (term[1] < 0, -len(term[0]), term[0]))
        text = "0" if not order or order[0][1] < 0 else ""
        for monomial, factor in order:
            size = [] if abs(factor) == 1 and monomial else [str(abs(factor))]
            text += ("-" if factor < 0 else "+" if text else "") + "*".join([*size, *monomial])
        return text


def _dim(value: int, polynomial: _Polynomial) -> Dim:
    text = str(polynomial)
    if len(text) > MAX_TEXT:
        raise ValueError(f"the expression of a size has more than {MAX_TEXT} characters: {text[:60]}...")
    dim = int.__new__(Dim, value)
    dim.expr = text
    dim.polynomial = polynomial
    return dim


def _apply(
    of_values: Callable[[int, int], int],
    of_polynomials: Callable[[_Polynomial, _Polynomial], _Polynomial],
    a: int,
    b: int,
) -> int:
    """The result of an operator, a plain int where the expression has become a number."""
    if not isinstance(a, int) or not isinstance(b, int):
        return NotImplemented
    value = of_values(int(a), int(b))
    polynomial = of_polynomials(_Polynomial.of(a), _Polynomial.of(b))
    return value if polynomial.is_number() else _dim(value, polynomial)


# ---------------------------------------------------------------- text


class _Value(Protocol):
    """What an expression can be computed in: ints, polynomials."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __floordiv__(self, other: Any, /) -> Any: ...


_V = TypeVar("_V", bound=_Value)


class _Parser(Generic[_V]):
    """Recursive descent over names, non-negative numbers, + - * // and parentheses."""

    def __init__(self, text: str, number: Callable[[int], _V], name: Callable[[str], _V]) -> None:
        if len(text) > MAX_TEXT:
            raise FormatError(f"expression of {len(text)} characters, at most {MAX_TEXT} allowed")
        self.text = text
        self.number = number
        self.name = name
        self.tokens = [*self._split(), ""]
        self.at = 0
        self.depth = 0

    def _split(self) -> list[str]:
        tokens, at = [], 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise self._error(f"unexpected {self.text[at]!r}")
            tokens.append(match.group())
            at = match.end()
        return tokens

    def _error(self, what: str) -> FormatError:
        return FormatError(f"expression {self.text!r}: {what}")

    def _take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def parse(self) -> _V:
        value = self._sum()
        if self.tokens[self.at]:
            raise self._error(f"unexpected {self.tokens[self.at]!r}")
        return value

    def _sum(self) -> _V:
        value = self._product()
        while self.tokens[self.at] in ("+", "-"):
            value = value + self._product() if self._take() == "+" else value - self._product()
        return value

    def _product(self) -> _V:
        value = self._atom()
        while self.tokens[self.at] in ("*", "//"):
            value = value * self._atom() if self._take() == "*" else value // self._atom()
        return value

    def _atom(self) -> _V:
        token = self._take()
        if token == "(":
            return self._parentheses()
        if token.isdigit():
            return self.number(int(token))
        if token.isidentifier():
            return self.name(token)
        raise self._error(f"unexpected {token!r}" if token else "unexpected end")

    def _parentheses(self) -> _V:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} parentheses inside one another")
        value = self._sum()
        if self._take() != ")":
            raise self._error("missing )")
        self.depth -= 1
        return value
