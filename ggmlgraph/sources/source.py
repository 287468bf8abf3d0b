"""What every kind of checkpoint is opened as, and what the modules that open them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph.errors import DataError, FormatError, GGError, UnsupportedError, UsageError
from ggmlgraph.naming import Format
from ggmlgraph.stored import Stored
from ggmlgraph.tokenizer import Tokenizer

MAX_JSON_NBYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint, opened."""

    kind: str  # for people: "GGUF file"
    path: Path
    architecture: str  # a model of ggmlgraph.models
    format: Format
    config: dict[str, Any]  # fields of the model's Config
    tensors: dict[str, Stored]
    n_ctx: int | None  # how many tokens the model was trained to look back on
    tokenizer: Tokenizer | None
    no_tokenizer: str = "it has none"  # why there is none


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from anyone. Raises FormatError."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.stat().st_size > MAX_JSON_NBYTES:
        raise FormatError(f"{path}: {path.stat().st_size} bytes of JSON, at most {MAX_JSON_NBYTES} are read")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path}: {error}") from None


def try_tokenizer(load: Callable[[], Tokenizer]) -> tuple[Tokenizer | None, str]:
    """A tokenizer, or why there is none: weights can be used without."""
    try:
        return load(), ""
    except (DataError, FormatError, UnsupportedError) as error:
        return None, str(error)


def named(path: Path, work: Callable[[], Any]) -> Any:
    """Do some work; errors begin with the file's name."""
    try:
        return work()
    except GGError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}", offset=error.offset) from None


def count(value: Any) -> int | None:
    """A value from a configuration as a positive number; None if it is none."""
    return value if type(value) is int and value > 0 else None
