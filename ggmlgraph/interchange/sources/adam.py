"""The state of torch.optim.Adam or AdamW, in which parameters have numbers for names. Used by the sources of runs that
PyTorch trained.

A state_dict has for each number exp_avg, exp_avg_sq and step, and groups of numbers that share their settings. Training
programs make one group of all parameters in the model's order, or two: what weight decay is for, the matrices, then
biases and gains (transformers' Trainer, nanoGPT, llama2.c). Which it is shows in the shapes, all of which are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.interchange.formats.stored import Stored, Weight
from ggmlgraph.interchange.formats.torch import TorchFile
from ggmlgraph.interchange.naming import Format
from ggmlgraph.interchange.sources.base import Moments

STATE = "optimizer"
FIRST, SECOND = "exp_avg", "exp_avg_sq"
MAX_STEP = 1 << 31


def beside(content: TorchFile, tensors: Mapping[str, Stored], known: Format) -> Callable[[], Moments] | None:
    """Reads the moments that are in a file beside the model, under "optimizer"; None if there are none.

    tensors: the model's, which lie in its order, tied ones twice.
    """
    first: dict[Stored, str] = {}
    for name, stored in tensors.items():
        if not known.skips(name):
            first.setdefault(stored, name)
    parameters = {name: stored for stored, name in first.items()}
    return partial(moments, content, (STATE,), parameters) if content.at(STATE, "state") else None


def moments(content: TorchFile, keys: tuple[str, ...], parameters: Mapping[str, Weight]) -> Moments:
    """The moments of these parameters, which are in the model's order. keys: where in the file the state_dict is.

    Raises FormatError if they are not those of the parameters, UnsupportedError for another optimiser's state.
    """
    groups = _groups(content, keys)
    numbers = [number for group in groups for number in _numbers(content, group)]
    ordered = list(parameters) if len(groups) == 1 else _matrices_first(parameters)
    states = {number: content.tensors(*keys, "state", number) for number in numbers}
    if len(states) != len(ordered) or len(numbers) != len(ordered):
        raise FormatError(f"{content.path}: the state of {len(states)} parameters, the model has {len(ordered)}")
    named = dict(zip(ordered, states.values(), strict=True))
    for name, state in named.items():
        if FIRST not in state or SECOND not in state:
            raise UnsupportedError(f"{content.path}: no {FIRST} and {SECOND} of {name}: not the state of Adam or AdamW")
        for key in (FIRST, SECOND):
            if state[key].shape != parameters[name].shape:
                wanted = list(parameters[name].shape)
                raise FormatError(
                    f"{content.path}: where {key} of {name} {wanted} should be, {state[key].describe()} is"
                )
    steps = {_step(content, keys, number, state) for number, state in states.items()}
    if len(steps) != 1:
        raise FormatError(f"{content.path}: parameters that were updated {min(steps)} to {max(steps)} times")
    first, second = ({name: state[key] for name, state in named.items()} for key in (FIRST, SECOND))
    return Moments(steps.pop(), first, second, _settings(groups))


def _groups(content: TorchFile, keys: tuple[str, ...]) -> list[dict[Any, Any]]:
    groups: list[dict[Any, Any]] = []
    while group := content.at(*keys, "param_groups", len(groups)):
        groups.append(group)
    if len(groups) not in (1, 2) or any(group.get("amsgrad") or group.get("maximize") for group in groups):
        raise UnsupportedError(
            f"{content.path}: {len(groups)} groups of parameters, or amsgrad or maximize; read are Adam's and AdamW's "
            "state with one group, or with one of matrices and one of vectors"
        )
    return groups


def _numbers(content: TorchFile, group: Mapping[Any, Any]) -> list[int]:
    numbers = group.get("params")
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise FormatError(f"{content.path}: a group of the optimiser without numbers of parameters")
    return numbers


def _matrices_first(parameters: Mapping[str, Weight]) -> list[str]:
    return sorted(parameters, key=lambda name: len(parameters[name].shape) < 2)


def _step(content: TorchFile, keys: tuple[str, ...], number: int, state: Mapping[str, Stored]) -> int:
    """How often a parameter was updated: a tensor of one number or, in older files, a number."""
    stored = state.get("step")
    if stored is None:
        step = content.at(*keys, "state", number).get("step")
    else:
        step = stored.read().item() if stored.shape == () else stored.describe()
    if isinstance(step, bool | str) or not isinstance(step, int | float) or not 1 <= step < MAX_STEP:
        raise FormatError(f"{content.path}: the optimiser's step is {step!r}")
    return int(step)


def _settings(groups: list[dict[Any, Any]]) -> dict[str, float]:
    """What `train` must be given to go on in the same way, where it is said and makes sense."""
    first, betas = groups[0], groups[0].get("betas")
    beta1, beta2 = betas if isinstance(betas, tuple) and len(betas) == 2 else (None, None)
    found = {"lr": first.get("initial_lr", first.get("lr")), "beta1": beta1, "beta2": beta2}
    found |= {"weight_decay": first.get("weight_decay"), "eps": first.get("eps")}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}
