"""The C files of runtime/src have an order, printed in docs/internals.md: each uses only what stands above it there."""

from __future__ import annotations

import re
from pathlib import Path

from places import ROOT

SOURCES = {path.name: path for path in (ROOT / "runtime/src").glob("*.c")}
GENERATED = {
    "types.c": r"gg_types|gg_n_types|gg_dialects|gg_n_dialects",
    "ops.c": r"gg_ops",
    "rules.c": r"gg_make_\w+|gg_vjps",
}


def order() -> list[str]:
    """The files as the table lists them, from the bottom up."""
    text = (ROOT / "docs/internals.md").read_text()
    table = text[text.index("| file | concern |") :].partition("\n\n")[0]
    return re.findall(r"`(\w+\.c)`", table)


def code(path: Path) -> str:
    """Without comments, included names and what messages say."""
    return re.sub(r'/\*.*?\*/|^#include[^\n]*|"[^"\n]*"', "", path.read_text(), flags=re.S | re.M)


def defined(text: str) -> set[str]:
    """Functions that other files see: those whose first line is not static."""
    return set(re.findall(r"^(?!static|typedef|extern|#)\w[^\n;={]*?\b(gg_\w+)\(", text, re.M))


def used(text: str) -> set[str]:
    return set(re.findall(r"\bgg_\w+", text))


def upward(texts: dict[str, str]) -> set[tuple[str, str]]:
    """(file, name) where a file uses what one below it in the table defines."""
    places = {name: place for place, name in enumerate(order())}
    home = {symbol: name for name, text in texts.items() for symbol in defined(text)}
    for name, pattern in GENERATED.items():
        symbols = {s for text in texts.values() for s in used(text) if re.fullmatch(pattern, s)}
        home |= dict.fromkeys(symbols, name)
    return {
        (name, symbol)
        for name, text in texts.items()
        for symbol in used(text) & home.keys()
        if places[home[symbol]] > places[name]
    }


def test_the_table_has_every_file_once() -> None:
    assert sorted(order()) == sorted([*SOURCES, *GENERATED])


def test_every_file_uses_only_what_stands_above_it() -> None:
    texts = {name: code(path) for name, path in SOURCES.items()}
    assert {"gg_set_ne", "gg_node", "gg_program_run"} <= {s for text in texts.values() for s in defined(text)}
    assert upward(texts) == set()


def test_a_use_of_what_stands_below_is_found() -> None:
    texts = {name: code(path) for name, path in SOURCES.items()}
    texts["tensor.c"] += "int32_t gg_late(void) { return gg_node(0, 0, 0, 0, 0, 0, 0, 0); }"
    assert upward(texts) == {("tensor.c", "gg_node")}
