"""Which weights of a graph a word means: `all-linear`, part of a name, or a pattern. Used by `lora` and `peft`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from ggmlgraph.errors import UsageError
from ggmlgraph.graphfile.lowrank import Weight, stem

ALL_LINEAR = "all-linear"
SHOWN = 12  # names in a message


def matches(name: str, word: str) -> bool:
    """Whether a word means a tensor: its name or the end of it behind a dot, with or without .weight; or a pattern
    with * ? [ ] for the whole name."""
    if any(c in word for c in "*?["):
        return fnmatchcase(name, word) or fnmatchcase(stem(name), word)
    return any(each == word or each.endswith(f".{word}") for each in (name, stem(name)))


def choose(
    weights: Mapping[str, Weight], words: Iterable[str], head: str | None, exclude: Collection[str] = ()
) -> list[str]:
    """The weights that any of the words means, in the graph's order, without those that a word of `exclude` means.

    all-linear: all matrices of products but the head, as PEFT has it. Raises UsageError for a word that means none.
    """
    chosen: set[str] = set()
    for word in words:
        if word.lower() == ALL_LINEAR:
            found = [name for name, weight in weights.items() if weight.kind == "matrix" and name != head]
        else:
            found = [name for name in weights if matches(name, word)]
        if not found:
            raise UsageError(f"targets: no matrix is called {word!r}; there are {listed(weights)}")
        chosen.update(found)
    for word in exclude:
        if not any(matches(name, word) for name in weights):
            raise UsageError(f"exclude: no matrix is called {word!r}; there are {listed(weights)}")
    return [name for name in weights if name in chosen and not any(matches(name, word) for word in exclude)]


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor is in: the first part of its name that is a number."""
    part = next((part for part in name.split(".") if part.isdecimal()), None)
    return None if part is None else int(part)


def listed(names: Iterable[str]) -> str:
    """Names without their layers' numbers, a few of them."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", stem(name)) for name in names))
    return ", ".join(kinds[:SHOWN]) + (f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else "") or "none"
