"""What a model's function takes: `Float` and `Ids` in annotations, read off its parameters.

    Image = Annotated[gg.Tensor, gg.Float("batch", 28, 28)]

    def loss(p: gg.Params, image: Image, label: Annotated[gg.Tensor, gg.Ids("batch")], c: Config) -> gg.Tensor: ...

Between `p` and the config, each parameter is an input of the graph, of its name. Used by `trace`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ggmlgraph.errors import UsageError

NAMED = ("batch", "ctx")  # sizes that a file keeps by name and that can be changed when it is run


class Input:
    """An input's element type and sizes: whole numbers, "batch", "ctx", or names of whole numbers of the config."""

    dtype: ClassVar[str]

    def __init__(self, *sizes: int | str) -> None:
        self.sizes = sizes

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.sizes == self.sizes

    def __hash__(self) -> int:
        return hash((type(self), self.sizes))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.sizes))})"


class Float(Input):
    """Float32 numbers, to stand in an annotation: `Annotated[gg.Tensor, gg.Float("batch", 28, 28)]`.

    Sizes as of `Input`, one to four of them; inputs whose first is "batch" can be trained on in micro-batches.
    """

    dtype = "f32"


class Ids(Input):
    """Whole numbers, int32, such as classes or tokens; sizes as of `Float`."""

    dtype = "i32"


TOKENS = Ids("batch", "ctx")  # also the targets


@dataclass(frozen=True)
class Signature:
    """What a model's function is called with, in order."""

    inputs: Mapping[str, Input]
    takes_config: bool

    def names(self) -> Iterator[str]:
        """The named sizes in the inputs."""
        used = {size for each in self.inputs.values() for size in each.sizes}
        return (name for name in NAMED if name in used)


def signature(function: Callable[..., Any], where: str) -> Signature:
    """Read `function(p, input, ..., config)`; the config may be missing. where: of the function, for messages.

    A parameter that is annotated as a plain tensor and called tokens or targets is int32 (batch, ctx); two plain
    parameters are these two whatever they are called. Raises UsageError for any other.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if bad := next((p for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)), None):
        raise UsageError(f"{where}: {function.__name__} takes {bad}, which is no input; name each")
    found = {p.name: _annotated(function, p, where, is_last=p is parameters[-1]) for p in parameters[1:]}
    names = list(found)
    takes_config = bool(names) and found[names[-1]] is None and names[-1] not in ("tokens", "targets")
    if takes_config:
        names.pop()
    plain = [name for name in names if found[name] is None]
    if not names:
        raise UsageError(f"{where}: {function.__name__} takes no input; it is called as (p, input, ..., config)")
    for name in plain:
        if name not in ("tokens", "targets") and not len(plain) == len(names) == 2:
            what = 'annotate it: Annotated[gg.Tensor, gg.Float("batch", ...)] or gg.Ids'
            raise UsageError(f"{where}: {function.__name__} does not say what {name!r} is; {what}")
    if len(plain) == len(names) == 2:
        return Signature({"tokens": TOKENS, "targets": TOKENS}, takes_config)
    return Signature({name: found[name] or TOKENS for name in names}, takes_config)


def _annotated(
    function: Callable[..., Any], parameter: inspect.Parameter, where: str, *, is_last: bool
) -> Input | None:
    """The `Input` of an annotation, None if there is none in it."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        written = _written(function)
        enclosed = inspect.getclosurevars(written).nonlocals if inspect.isfunction(written) else {}
        try:
            annotation = eval(annotation, getattr(written, "__globals__", {}), dict(enclosed))
        except Exception as error:  # it may be any expression, for other tools than this
            if is_last or parameter.name in ("tokens", "targets"):
                return None
            what = f"the annotation of {parameter.name!r}, {annotation:.80}, cannot be read"
            raise UsageError(f"{where}: {what}: {error}; define what it names in the module") from None
    found = [each for each in typing.get_args(annotation)[1:] if _is_input(each)]
    if found and typing.get_origin(annotation) is typing.Annotated:
        return _instance(found[0], parameter.name, where)
    if _is_input(annotation):
        raise UsageError(f"{where}: {parameter.name!r} is annotated as {annotation}; write Annotated[gg.Tensor, ...]")
    return None


def _written(function: Any) -> Any:
    """The function that stands in a module, of one that a decorator or functools.partial made of it."""
    while isinstance(function, partial):
        function = function.func
    return inspect.unwrap(function)


def _is_input(value: Any) -> bool:
    return isinstance(value, Input) or (isinstance(value, type) and issubclass(value, Input))


def _instance(value: Any, name: str, where: str) -> Input:
    if not isinstance(value, Input) or not 1 <= len(value.sizes) <= 4:
        raise UsageError(f'{where}: {name!r} has one to four sizes: {value}; such as gg.Float("batch", 28)')
    for size in value.sizes:
        if isinstance(size, bool) or not isinstance(size, int | str) or (isinstance(size, int) and size < 1):
            raise UsageError(f"{where}: {name!r} has the size {size!r}; sizes are whole numbers from 1 on, or names")
    return value


def sizes_of(each: Input, name: str, sizes: Mapping[str, int], config: Any, where: str) -> tuple[int, ...]:
    """The sizes of an input. Raises UsageError for a name that neither `sizes` nor the config has."""
    return tuple(n if isinstance(n, int) else _named(n, name, sizes, config, where) for n in each.sizes)


def _named(size: str, name: str, sizes: Mapping[str, int], config: Any, where: str) -> int:
    value = sizes.get(size, getattr(config, size, None))
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    known = ", ".join(NAMED)
    raise UsageError(f"{where}: {name!r} has the size {size!r}, which is neither {known} nor a number of the config")
