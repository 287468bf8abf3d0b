"""What Python says of a slip in a model's function, said with the place and the way out. Used by `trace`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from types import TracebackType
from typing import Any

from ggmlgraph.errors import GGError, is_ours, short

MADE_OF_TEXT = (
    AttributeError, TypeError, ValueError, NameError, IndexError, LookupError, ZeroDivisionError, ArithmeticError,
)  # fmt: skip
PLACED = re.compile(r"\S.*\.py:\d+: ")  # how a message that says its place begins


def told(error: Exception, config: Any) -> Exception | None:
    """The error that a person is to see instead of one that a model's function raised; None where it says its place."""
    where = _place(error.__traceback__)
    text = str(error)
    if isinstance(error, GGError) or not isinstance(error, MADE_OF_TEXT) or not where or PLACED.match(text):
        return None
    if isinstance(error, AttributeError) and error.name:
        if error.obj is None:
            return AttributeError(f"{where}: None has no {error.name!r}; is a return missing in what gave it?")
        if error.obj is config:
            return AttributeError(f"{where}: {_no_field(config, error.name)}")
    return _like(error, f"{where}: {f'there is no key {text}' if isinstance(error, KeyError) else text}")


def _no_field(config: Any, name: str) -> str:
    fields = [field for field in (getattr(config, "__dataclass_fields__", None) or vars(config)) if field[:1] != "_"]
    known = ", ".join(fields) or "none"
    return f"{type(config).__name__} has no field {name!r}; its fields are: {known}{meant(name, fields)}"


def meant(name: str, known: Iterable[str]) -> str:
    """What a misspelt name may have been meant for."""
    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _like(error: Exception, text: str) -> Exception | None:
    """An error of the same kind with another text, of the kinds that are made of one."""
    return next((kind(text) for kind in type(error).__mro__ if kind in MADE_OF_TEXT), None)


def _place(trace: TracebackType | None) -> str:
    """ "file.py:41", the innermost line of the user's own."""
    found = ""
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not is_ours(filename):
            found = f"{short(filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
