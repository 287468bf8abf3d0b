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
import itertools
import math
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ggmlgraph import models
from ggmlgraph.errors import GGError, ShapeError, UsageError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.tracing.slips import PLACED, meant
from ggmlgraph.tracing.tracer import trace

Result = TypeVar("Result")
FILES = "ggmlgraph_file_"  # modules of FILE.py begin with this
MAX_FIELD = 1 << 24  # of a built-in model's config
AT_LEAST_1 = ("n_vocab", "n_embd", "n_head", "n_layer", "n_ctx", "n_expert", "n_expert_used")
_numbers = itertools.count()
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
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
    presets = _value(module, file, "PRESETS", Mapping, {})
    loss = getattr(module, function or "loss", None)
    if not inspect.isfunction(loss):
        raise UsageError(f"{file} has no function {function or 'loss'}")
    return Architecture(
        name=name,
        loss=loss,
        config=_config_class(module, loss),
        tokenizer=_value(module, file, "TOKENIZER", str, None),
        corpus=_value(module, file, "CORPUS", str, None),
        path=Path(file) if file.endswith(".py") else Path(str(module.__file__)),
        built_in=not file.endswith(".py"),
        presets=presets,
        preset=presets.get(name),
    )


def _value(module: ModuleType, file: str, name: str, kind: type[Any], otherwise: Any) -> Any:
    """What a module says under a name, if it does."""
    value = getattr(module, name, otherwise)
    if not isinstance(value, kind) and value is not otherwise:
        raise UsageError(f"{file}: {name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


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
    """The module in a file, under a name that no other has: a file may be called like a module that somebody needs.

    Modules beside it can be imported, unless Python or a package has one of the name.
    """
    open_regular(path)[0].close()
    name = f"{FILES}{next(_numbers)}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    _siblings.make_importable(str(path.resolve().parent))
    try:
        _blame(path, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except GGError:
        del sys.modules[name]
        raise
    return module


def _config_class(module: ModuleType, loss: Callable[..., Any]) -> type | None:
    parameters = list(inspect.signature(loss).parameters)
    try:
        annotated = typing.get_type_hints(loss).get(parameters[-1]) if parameters else None
    except Exception:  # an annotation may be any expression, for other tools than this
        annotated = None
    for candidate in (annotated, getattr(module, "Config", None)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def run(model: Architecture, work: Callable[[], Result]) -> Result:
    """Run code of the model's. What it raises becomes a GGError that names its file and line."""
    if not model.built_in:
        _siblings.make_importable(str(model.path.resolve().parent))
    return _blame(model.path, work)


class _Siblings:
    """The modules beside a model's file, which are that model's alone: another may have others of the same names."""

    def __init__(self) -> None:
        self._folder = ""  # whose modules can be imported now
        self._before: set[str] = set()  # modules that were there before
        self._kept: dict[str, dict[str, ModuleType]] = {}  # by folder: its modules, while they cannot be imported

    def make_importable(self, folder: str) -> None:
        """The modules of a folder, unless Python or a package has one of the name; those of another no more."""
        if folder == self._folder:
            return
        if self._folder:
            new = [name for name in sys.modules if name not in self._before]
            own = [name for name in new if _lies_in(sys.modules[name], self._folder)]
            self._kept[self._folder] = {name: sys.modules.pop(name) for name in own}
            with suppress(ValueError):
                sys.path.remove(self._folder)
        self._folder, self._before = folder, set(sys.modules)
        sys.path.append(folder)
        sys.modules.update(self._kept.pop(folder, {}))


def _lies_in(module: ModuleType, folder: str) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.startswith(f"{folder}/") and not module.__name__.startswith(FILES)


_siblings = _Siblings()


def _blame(path: Path, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except GGError:
        raise
    except SyntaxError as error:
        raise GGError(f"{error.filename or path}:{error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        where = f"{path}:{inside[-1].lineno}" if inside else str(path)
        raise GGError(
            str(error) if PLACED.match(str(error)) else f"{where}: {type(error).__name__}: {error}"
        ) from error


# ---------------------------------------------------------------- config


def field_types(model: Architecture) -> dict[str, Any]:
    """Names and types of the config's fields, those that are seldom set (by name only) behind the others."""
    if model.config is None:
        return {}
    config_class = model.config
    hints = run(model, lambda: typing.get_type_hints(config_class))
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
            raise _no_field(model, name, types)
        values[name] = _parse(name, text, types[name])
    return values


def _no_field(model: Architecture, name: str, types: Mapping[str, Any]) -> UsageError:
    known = ", ".join(types) or "none"
    return UsageError(f"{model.name} has no field {name!r}; its fields are: {known}{meant(name, types)}")


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


def config(model: Architecture, values: Mapping[str, Any]) -> Any:
    """The config with these fields, which may come from a file; None for a model without one.

    Raises UsageError for a field there is not or a value of another type, ShapeError for sizes that do not fit.
    """
    if model.config is None:
        return None
    types, config_class = field_types(model), model.config
    for name, value in values.items():
        if name not in types:
            raise _no_field(model, name, types)
        _check_type(name, value, types[name])
    missing = [f.name for f in dataclasses.fields(config_class) if f.init and f.name not in values and _is_required(f)]
    if missing:
        raise UsageError(f"{model.name} needs {missing[0]}: give {missing[0]}=VALUE")
    made = run(model, lambda: config_class(**values))
    if model.built_in:
        _check_sizes(made, model.path.name)
    return made


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _check_type(name: str, value: Any, kind: Any) -> None:
    if kind not in _KINDS:
        return  # a class of the model's own
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind is float and not math.isfinite(value)):
        raise UsageError(f"{name} is {value!r:.80}, not {_KINDS[kind]}")


def _check_sizes(made: Any, file: str) -> None:
    """Of a built-in model: numbers that a model can have, and heads that its width can be divided among."""
    for name, value in dataclasses.asdict(made).items():
        least = 1 if name in AT_LEAST_1 else 0
        if type(value) is int and not least <= value <= MAX_FIELD:
            raise UsageError(f"{name} is {value}, not in {least}..{MAX_FIELD}")
    heads, groups = made.n_head, getattr(made, "n_head_kv", 0) or made.n_head
    if not getattr(made, "head_dim", 0) and made.n_embd % heads:
        raise ShapeError(f"{file}: n_embd {made.n_embd} is not a multiple of n_head {heads}")
    if heads % groups:
        raise ShapeError(f"{file}: n_head {heads} is not a multiple of n_head_kv {groups}")
    if getattr(made, "n_expert_used", 0) > getattr(made, "n_expert", 0):
        raise ShapeError(f"{file}: n_expert_used is {made.n_expert_used}, of {made.n_expert} experts")
