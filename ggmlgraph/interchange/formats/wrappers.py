"""Names of tensors without what was put before them when their model was wrapped. Used by torch.py and the sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # torch.compile's, FSDP's
BEFORE_ALL = ("module.", "base_model.model.", "model.")  # DistributedDataParallel's, PEFT's, Lightning's


def unwrapped(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, str]]:
    """The tensors by shorter names, and by these the names they had. Wrappers may lie in any order, several deep."""
    short = {name: _without(name) for name in tensors}
    while wrapper := next((w for w in BEFORE_ALL if short and all(n.startswith(w) for n in short.values())), None):
        short = {name: other.removeprefix(wrapper) for name, other in short.items()}
    if len(set(short.values())) < len(short) or not all(short.values()):
        short = {name: name for name in tensors}
    return {short[name]: value for name, value in tensors.items()}, {other: name for name, other in short.items()}


def _without(name: str) -> str:
    for wrapper in ANYWHERE:
        name = name.replace(wrapper, "")
    return name
