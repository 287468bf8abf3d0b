"""Finding a model: a built-in name or FILE.py:FUNCTION, its config class, its fields from the command line.

A model is a function `loss(p, tokens, targets, config)`. Its config class is what the last parameter is annotated
with, else the module's `Config`. The module may name a tokenizer (TOKENIZER = "chars:...") and a text
(CORPUS = "builtin:sine"). Used by `ggmlgraph export`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ggmlgraph import models
from ggmlgraph.errors import GGError, UsageError

Result = TypeVar("Result")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Model:
    """A model's function and what its module says about it."""

    name: str
    loss: Callable[..., Any]
    config: type | None
    tokenizer: str | None
    corpus: str | None
    path: Path  # of the file that defines it


def load(name: str) -> Model:
    """The model of a name. Raises UsageError if there is none, GGError if its file cannot be run."""
    file, _, function = name.partition(":")
    module = _from_file(Path(file)) if file.endswith(".py") else _built_in(name)
    loss = getattr(module, function or "loss", None)
    if not callable(loss):
        raise UsageError(f"{file} has no function {function or 'loss'}")
    return Model(
        name=name,
        loss=loss,
        config=_config_class(module, loss),
        tokenizer=getattr(module, "TOKENIZER", None),
        corpus=getattr(module, "CORPUS", None),
        path=Path(file) if file.endswith(".py") else Path(str(module.__file__)),
    )


def built_in() -> list[str]:
    """Names of the models that come with the package."""
    names = [entry.name for entry in resources.files(models).iterdir()]
    return sorted(name.removesuffix(".py") for name in names if name.endswith(".py") and name != "__init__.py")


def _built_in(name: str) -> ModuleType:
    if name not in built_in():
        raise UsageError(f"no model {name!r}: there are {', '.join(built_in())}, or give FILE.py:FUNCTION")
    return importlib.import_module(f"ggmlgraph.models.{name}")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise GGError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        _blame(path, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except GGError:
        if before is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = before
        raise
    return module


def _config_class(module: ModuleType, loss: Callable[..., Any]) -> type | None:
    parameters = list(inspect.signature(loss).parameters)
    try:
        annotated = typing.get_type_hints(loss).get(parameters[-1]) if parameters else None
    except (NameError, TypeError):
        annotated = None
    for candidate in (annotated, getattr(module, "Config", None)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def run(model: Model, work: Callable[[], Result]) -> Result:
    """Run code of the model's. What it raises becomes a GGError that names its file and line."""
    return _blame(model.path, work)


def _blame(path: Path, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except GGError:
        raise
    except SyntaxError as error:
        raise GGError(f"{error.filename or path}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        where = f"{path}:{inside[-1].lineno}" if inside else str(path)
        raise GGError(f"{where}: {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------- config


def field_types(model: Model) -> dict[str, Any]:
    """Names and types of the config's fields."""
    if model.config is None:
        return {}
    hints = typing.get_type_hints(model.config)
    return {field.name: hints[field.name] for field in dataclasses.fields(model.config) if field.init}


def parse_fields(model: Model, assignments: Sequence[str]) -> dict[str, Any]:
    """FIELD=VALUE words as the config's fields. Raises UsageError for an unknown field or a value of another type."""
    types, values = field_types(model), {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"{assignment!r} is not FIELD=VALUE")
        if name not in types:
            known = ", ".join(types) or "none"
            raise UsageError(f"{model.name} has no field {name!r}; its fields are: {known}")
        values[name] = _parse(name, text, types[name])
    return values


def _parse(name: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if kind in (int, float, str):
            return kind(text)
    except (ValueError, KeyError):
        raise UsageError(f"{name}={text}: {text!r} is no {kind.__name__}") from None
    raise UsageError(f"{name} cannot be given on the command line: it is {kind}")


def config(model: Model, values: dict[str, Any]) -> Any:
    """The config with these fields; None for a model without one."""
    return None if model.config is None else model.config(**values)
