"""What every kind of checkpoint is opened as, and what the modules that open them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph.errors import DataError, FormatError, GGError, UnsupportedError, UsageError
from ggmlgraph.interchange.formats.stored import Stored, Weight
from ggmlgraph.interchange.naming import Format
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.base import Tokenizer

MAX_JSON_NBYTES = 64 << 20
MAX_YAML_NBYTES = 1 << 20
YAML_INDENT = 2
TOKENIZERS = ("tokenizer.model", "tokenizer.json")


@dataclass(frozen=True)
class Moments:
    """Adam's state in a checkpoint of a training run, by the checkpoint's names of the parameters."""

    n_steps: int
    first: Mapping[str, Stored]
    second: Mapping[str, Stored]
    settings: Mapping[str, float] = field(default_factory=dict)  # the run's lr, beta1, beta2, weight_decay, eps


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A checkpoint, opened."""

    kind: str  # for people: "GGUF file"
    path: Path
    architecture: str  # a model of ggmlgraph.models
    format: Format
    config: dict[str, Any]  # fields of the model's Config
    tensors: Mapping[str, Weight]
    n_ctx: int | None  # how many tokens the model was trained to look back on
    tokenizer: Tokenizer | None
    no_tokenizer: str = "it has none"  # why there is none
    moments: Callable[[], Moments] | None = None  # reads them: most who convert do not want them


Given = Mapping[str, Any]  # fields of the Config that the user gave


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


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a YAML mapping, as programs write it: KEY: VALUE lines, and indented ones of a mapping in it.

    What is nested deeper, and lists, are left out. Raises FormatError.
    """
    if path.stat().st_size > MAX_YAML_NBYTES:
        raise FormatError(f"{path}: {path.stat().st_size} bytes of YAML, at most {MAX_YAML_NBYTES} are read")
    values: dict[str, Any] = {}
    inner: dict[str, Any] | None = None  # of the last key, if it has no value on its line
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        key, colon, text = line.strip().partition(":")
        indent = len(line) - len(line.lstrip())
        if not line.strip() or line.lstrip()[0] in "-#" or indent > YAML_INDENT:
            continue
        into = inner if indent else values
        if not colon or not key.isidentifier() or into is None or key in into:
            raise FormatError(f"{path}:{number}: not a new KEY: VALUE")
        into[key] = scalar(text.strip()) if text.strip() else {}
        if not indent:
            inner = values[key] if not text.strip() else None
    return values


def scalar(text: str) -> Any:
    """A value that JSON and YAML write alike, or else the text."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        try:
            return float(text)
        except ValueError:
            return text
    return value if isinstance(value, bool | int | float | str | None) else text


def try_tokenizer(load: Callable[[], Tokenizer]) -> tuple[Tokenizer | None, str]:
    """A tokenizer, or why there is none: weights can be used without."""
    try:
        return load(), ""
    except (DataError, FormatError, UnsupportedError) as error:
        return None, str(error)


def begins_with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of a format whose models are all trained on texts that begin with bos."""
    return tokenizer.apply(msgspec.structs.replace(tokenizer.settings, adds_bos=True))


def find_tokenizer(folder: Path) -> tuple[Tokenizer | None, str]:
    """The tokenizer among the files of a checkpoint, or why there is none."""
    for name in TOKENIZERS:
        if (path := folder / name).is_file():
            return try_tokenizer(partial(load_tokenizer, path))
    return None, "it has none"


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
