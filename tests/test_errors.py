"""What reaches a terminal does not steer it: every character that would is escaped, in every error."""

from __future__ import annotations

import os
import unicodedata

import pytest

from ggmlgraph.errors import UNPRINTABLE, DataError, FormatError, GGError, escaped

BIDI = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
STEERING = [
    c
    for c in map(chr, range(0x110000))
    if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in BIDI
]


def test_every_control_separator_direction_and_half_of_a_character_is_escaped() -> None:
    for character in (*STEERING, "\u200e", "\u200f", "\u061c", "\ufeff"):
        assert escaped(f"a{character}b").isascii()
        assert escaped(f"a{character}b").isprintable()


def test_names_in_files_may_have_none_of_them() -> None:
    assert all(UNPRINTABLE.search(character) for character in STEERING)


@pytest.mark.parametrize("text", ["", "plain", "ラマ", "naïve", "נייר", "👩‍🚀", "a b", "\\x1b"])
def test_other_text_stays(text: str) -> None:
    assert escaped(text) == text


def test_what_is_kept_stays() -> None:
    assert escaped("a\n\tb\x1b[2J\r", keep="\n\t") == "a\n\tb\\x1b[2J\\x0d"


def test_a_byte_of_a_name_that_is_not_utf8_is_shown_as_that_byte() -> None:
    assert escaped(os.fsdecode(b"na\xffme")) == "na\\xffme"


@pytest.mark.parametrize("kind", [GGError, DataError, FormatError])
def test_an_error_is_one_line_that_steers_nothing(kind: type[GGError]) -> None:
    text = str(kind("file \x1b]0;x\x07 \x9b31m \u202egpj.\u2028 a\nb\r\n c"))
    assert text.isprintable()
    assert text.startswith("file \\x1b]0;x\\x07 \\x9b31m \\u202egpj.\\u2028 a b")
    assert str(kind(text)) == text
