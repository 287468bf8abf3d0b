"""Finding a model: a built-in name, a preset's or FILE.py:FUNCTION, its config class, its fields from the command line.

A model is a function `loss(p, tokens, targets, config)`. Its config class is what the last parameter is annotated
with, else the module's `Config`. The module may have configs of published sizes (PRESETS = {"NAME": Config(...)}), and
name a tokenizer (TOKENIZER = "chars:...") and a text (CORPUS = "builtin:sine"). Used by `export`, `convert`, `models`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ggmlgraph import models
from ggmlgraph.errors import GGError, UsageError
from ggmlgraph.tracing.tracer import trace

Result = TypeVar("Result")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Architecture:
    """A model's function and what its module says about it."""

    name: str
    loss: Callable[..., Any]
    config: type | None
    tokenizer: str | None
    corpus: str | None
    path: Path  # of the file that defines it
    built_in: bool
    presets: Mapping[str, Any]  # configs by name
    preset: Any = None  # the config of the preset that was asked for


def load(name: str) -> Architecture:
    """The model of a name. Raises UsageError if there is none, GGError if its file cannot be run."""
    file, _, function = name.partition(":")
    module = _from_file(Path(file)) if file.endswith(".py") else _built_in(name)
    presets = getattr(module, "PRESETS", {})
    loss = getattr(module, function or "loss", None)
    if not callable(loss):
        raise UsageError(f"{file} has no function {function or 'loss'}")
    return Architecture(
        name=name,
        loss=loss,
        config=_config_class(module, loss),
        tokenizer=getattr(module, "TOKENIZER", None),
        corpus=getattr(module, "CORPUS", None),
        path=Path(file) if file.endswith(".py") else Path(str(module.__file__)),
        built_in=not file.endswith(".py"),
        presets=presets,
        preset=presets.get(name),
    )


def built_in() -> list[str]:
    """Names of the models that come with the package."""
    names = [entry.name for entry in resources.files(models).iterdir()]
    return sorted(name.removesuffix(".py") for name in names if name.endswith(".py") and name != "__init__.py")


def _built_in(name: str) -> ModuleType:
    """The module of a model, or the one that has the preset."""
    for model in [name] if name in built_in() else built_in():
        module = importlib.import_module(f"ggmlgraph.models.{model}")
        if name == model or name in getattr(module, "PRESETS", {}):
            return module
    names = ", ".join(built_in())
    raise UsageError(f"no model {name!r}: there are {names}, presets (`ggmlgraph models`), or give FILE.py:FUNCTION")


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


def run(model: Architecture, work: Callable[[], Result]) -> Result:
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


def field_types(model: Architecture) -> dict[str, Any]:
    """Names and types of the config's fields, those that are seldom set (by name only) behind the others."""
    if model.config is None:
        return {}
    hints = typing.get_type_hints(model.config)
    fields = sorted(dataclasses.fields(model.config), key=lambda field: field.kw_only is True)
    return {field.name: hints[field.name] for field in fields if field.init}


def parse_fields(model: Architecture, assignments: Sequence[str]) -> dict[str, Any]:
    """The preset's fields, and FIELD=VALUE words instead of them.

    Raises UsageError for an unknown field or a value of another type.
    """
    types = field_types(model)
    values = {} if model.preset is None else {name: getattr(model.preset, name) for name in types}
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


def n_params(model: Architecture, config: Any) -> int:
    """Number of trained values of a model with this config.

    Of a built-in model one layer and two are traced, for its layers are all the same.
    """
    n_layer = getattr(config, "n_layer", 0)
    if n_layer < 3 or not model.built_in:
        graph = run(model, lambda: trace(model.loss, config))
        return sum(math.prod(map(int, node.shape)) for node in graph.nodes if node.initializer)
    one, two = (n_params(model, dataclasses.replace(config, n_layer=n)) for n in (1, 2))
    return one + (n_layer - 1) * (two - one)


def defaults(model: Architecture) -> dict[str, Any]:
    """The config's fields as they are when nothing is given."""
    plain = config(model, {})
    return {name: getattr(plain, name) for name in field_types(model)}


def config(model: Architecture, values: dict[str, Any]) -> Any:
    """The config with these fields; None for a model without one."""
    return None if model.config is None else model.config(**values)
