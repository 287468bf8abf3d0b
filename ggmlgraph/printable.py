"""Text of others where people read it: what would steer a terminal, or change how a line is read, is escaped.

Used by every error (errors.py), by what commands show of a file, and by the rules for names in a file.
"""

from __future__ import annotations

import re

# C0 and C1 controls, line and paragraph separators, what changes the direction of writing, halves of characters.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BEYOND_NAMES = re.compile(UNPRINTABLE.pattern[:-1] + "\u061c\ufeff]")  # harmless in a name, yet not seen


def escaped(text: str, keep: str = "") -> str:
    r"""The text with each such character as Python writes it, "\x1b"; a byte of a name that is not UTF-8 as "\xff".

    keep: characters that stay, such as "\n\t" of a text.
    """
    return _BEYOND_NAMES.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's, for the byte code - 0xDC00
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
