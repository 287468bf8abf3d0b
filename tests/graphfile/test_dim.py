"""Dim and evaluate: sizes that remember their expression, and untrusted text of such expressions."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggmlgraph.errors import FormatError
from ggmlgraph.graphfile.dim import MAX_DEPTH, MAX_TEXT, Dim, evaluate

BATCH, CTX = Dim(16, "batch"), Dim(64, "ctx")


def test_a_dim_is_the_int() -> None:
    assert CTX == 64
    assert hash(CTX) == hash(64)
    assert {64: "x"}[CTX] == "x"
    assert CTX < 65
    assert f"{CTX} {(BATCH, CTX)}" == "64 (16, 64)"
    assert json.dumps([CTX]) == "[64]"


@pytest.mark.parametrize(
    ("value", "number", "expr"),
    [
        (BATCH * CTX, 1024, "batch*ctx"),
        (CTX * BATCH, 1024, "batch*ctx"),
        (BATCH * CTX * 4 + 1, 4097, "4*batch*ctx+1"),
        (4 * (CTX * BATCH), 4096, "4*batch*ctx"),
        (CTX + BATCH, 80, "batch+ctx"),
        (CTX + CTX, 128, "2*ctx"),
        (CTX - 1, 63, "ctx-1"),
        (1 - CTX, -63, "1-ctx"),
        ((CTX + 1) * (BATCH - 1), 975, "batch*ctx+batch-ctx-1"),
        ((CTX + 1) * (BATCH - 1) + 1 - BATCH + CTX, 1024, "batch*ctx"),
        (BATCH * CTX // CTX, 16, "batch"),
        (CTX * 8 // 4, 128, "2*ctx"),
        (CTX // 2, 32, "(ctx//2)"),
        (CTX // 2 * BATCH, 512, "(ctx//2)*batch"),
        ((CTX + 1) // (2 * BATCH), 2, "((ctx+1)//(2*batch))"),
        (1000 // CTX, 15, "(1000//ctx)"),
    ],
)
def test_arithmetic_keeps_a_canonical_expression(value: Dim, number: int, expr: str) -> None:
    assert int(value) == number
    assert value.expr == expr
    assert Dim(number, expr).expr == expr


@pytest.mark.parametrize("value", [CTX - CTX, CTX // CTX, 0 * CTX, (CTX + 1) // (1 + CTX)])
def test_an_expression_that_no_size_changes_is_a_plain_int(value: int) -> None:
    assert type(value) is int


@pytest.mark.parametrize("value", [CTX * 2.0, CTX % 7, -CTX, CTX / 2])
def test_other_operators_are_those_of_int(value: float) -> None:
    assert not isinstance(value, Dim)


def test_a_division_by_zero_raises_as_for_ints() -> None:
    with pytest.raises(ZeroDivisionError):
        CTX // 0


def test_a_copy_keeps_the_expression() -> None:
    assert copy.deepcopy([BATCH * CTX])[0].expr == "batch*ctx"


def test_an_expression_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 256"):
        sum((Dim(1, f"a_rather_long_name_{i}") for i in range(20)), start=0)


Build = Callable[[dict[str, int]], int]


def _leaf(name: str) -> Build:
    return lambda sizes: sizes[name]


def _constant(number: int) -> Build:
    return lambda sizes: number


def _join(operator: str, a: Build, b: Build) -> Build:
    operators: dict[str, Callable[[int, int], int]] = {
        "+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y, "//": lambda x, y: x // y,
    }  # fmt: skip
    return lambda sizes: operators[operator](a(sizes), b(sizes))


BUILDS = st.recursive(
    st.sampled_from(["batch", "ctx"]).map(_leaf) | st.integers(0, 9).map(_constant),
    lambda builds: st.builds(_join, st.sampled_from(["+", "-", "*", "//"]), builds, builds),
    max_leaves=6,
)
SIZES = st.fixed_dictionaries({"batch": st.integers(1, 40), "ctx": st.integers(1, 200)})


@given(BUILDS, SIZES, SIZES)
def test_an_expression_has_the_value_that_the_program_would_compute_at_any_sizes(
    build: Build, first: dict[str, int], second: dict[str, int]
) -> None:
    try:
        traced = build({name: Dim(size, name) for name, size in first.items()})
        expected = build(second)
    except ZeroDivisionError:
        return
    assert traced == build(first)
    if isinstance(traced, Dim):
        try:
            assert evaluate(traced.expr, second, minimum=-(10**12)) == expected
        except FormatError as error:
            assert "divides by zero" in str(error)  # the order of a sum may differ from the program's


@pytest.mark.parametrize(
    ("text", "value"),
    [("ctx", 64), ("7", 7), ("batch*ctx//3", 341), ("2*(ctx-1)+batch", 142), ("((ctx))", 64), ("ctx-60-3", 1)],
)
def test_evaluate_follows_the_rules_of_arithmetic(text: str, value: int) -> None:
    assert evaluate(text, {"batch": 16, "ctx": 64}) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "ctx+", "+ctx", "-1", "ctx ctx", "ctx ", "(ctx", "ctx)", "ctx/2", "ctx**2", "ctx.real", "ctx(1)", "ctx[0]",
        "n_vocab", "0", "ctx-64", "ctx//0", "ctx//(ctx-64)", "1099511627777", "9" * 200, "1.5", "0x10", "1e3", "٣",
        "c\N{LATIN SMALL LETTER T}x;", "lambda:0", "__import__", "()", "ctx\n", "1_0",
        "(" * (MAX_DEPTH + 1) + "ctx" + ")" * (MAX_DEPTH + 1), "ctx" + "+0" * MAX_TEXT,
    ],
)  # fmt: skip
def test_evaluate_refuses(text: str) -> None:
    with pytest.raises(FormatError):
        evaluate(text, {"batch": 16, "ctx": 64})


def test_an_offset_may_be_zero_but_not_less() -> None:
    assert evaluate("ctx-64", {"ctx": 64}, minimum=0) == 0
    with pytest.raises(FormatError, match=r"-1, not in 0\.\.2\^40"):
        evaluate("ctx-65", {"ctx": 64}, minimum=0)


@given(st.text(st.sampled_from("()+-*/ctxb019_ "), max_size=300) | st.text())
def test_evaluate_gives_any_text_a_size_or_a_format_error(text: str) -> None:
    with contextlib.suppress(FormatError):
        assert 1 <= evaluate(text, {"c": 3, "ctx": 64, "b": 1 << 30}) <= 1 << 40
