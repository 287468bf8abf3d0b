"""Calls of what a model is written with: arguments that do not fit are told in one line, with the place of the call.

`checked` stands over every public function that takes tensors, `checked_methods` over the classes whose methods do.
What an annotation says plainly is checked: a tensor, a number, a text. The rest a function checks itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from ggmlgraph.errors import here
from ggmlgraph.table.op import Operand

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound=type)
KINDS: dict[str, tuple[type, str]] = {  # by annotation
    "Tensor": (Operand, "a tensor"), "int": (Integral, "a whole number"), "float": (Real, "a number"),
    "bool": (bool, "True or False"), "str": (str, "a text"),
}  # fmt: skip
OPERATORS = {"__call__": "p", "__truediv__": "p /"}  # of Params, which are checked as methods are


def shown(value: Any) -> str:
    """What was given instead of something, and the way out where there is one."""
    if value is None:
        return "None; is a return missing in what gave it?"
    if hasattr(value, "__array__") and not isinstance(value, Operand):
        return f"an array {tuple(value.shape)} of numpy's; gg.constant(array) makes a tensor of it"
    return f"{value!r:.80}"


def checked(function: F, name: str = "") -> F:
    """The function; a call of other arguments than it has, or of other kinds, raises TypeError with place and call."""
    signature = inspect.signature(function)
    name = name or function.__name__
    parameters = signature.parameters.values()
    kinds = {p.name: found for p in parameters if (found := _kind(p))}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{here()}: {name}: {_bare(error)}; it is called as {name}{_plain(signature)}") from None
        for parameter, (kind, what, optional, several) in kinds.items():
            for value in given.get(parameter, ()) if several else (given[parameter],) if parameter in given else ():
                if not (isinstance(value, kind) or (optional and value is None)) or (
                    kind is Integral and value is True
                ):
                    raise TypeError(f"{here()}: {name}: {parameter} is {_not(value, what)}")
        return function(*args, **kwargs)

    return cast(F, call)


def _bare(error: TypeError) -> str:
    """What `bind` says, in fewer words."""
    return str(error).replace("positional ", "").replace("a required argument: ", "argument ").replace("got an ", "")


def _kind(parameter: inspect.Parameter) -> tuple[type, str, bool, bool] | None:
    """Of what type its values are, in words; whether None may stand for one; whether there are several."""
    plain, bar, rest = str(parameter.annotation).partition(" | ")
    if plain not in KINDS or rest not in ("", "None"):
        return None
    return *KINDS[plain], bool(bar), parameter.kind is parameter.VAR_POSITIONAL


def _not(value: Any, what: str) -> str:
    text = shown(value)
    return text if ";" in text and what == "a tensor" else f"{value!r:.80}, not {what}"


def _plain(signature: inspect.Signature) -> str:
    """The signature without annotations, and without self."""
    kept = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    return str(signature.replace(parameters=kept, return_annotation=signature.empty))


def checked_methods(owner: T) -> T:
    """A class whose public methods, and calls of whose objects, are `checked`."""
    for name, member in list(vars(owner).items()):
        if inspect.isfunction(member) and (name in OPERATORS or not name.startswith("_")):
            setattr(owner, name, checked(member, OPERATORS.get(name, name)))
    return owner
