"""Optimisers: which op of the table updates a parameter, with what numbers at each step (docs/optimizers.md).

    gg.Runtime("graph.bin", optimizer=gg.Lion(beta2=0.95), lr_of={"token_embd.*": 3.0})

The ops do the work, as nodes of the training graph; what they keep from step to step are leafs of it. Used by
`Runtime`, and by a run's options, which hold an optimiser by name and fields.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import msgspec

from ggmlgraph.errors import UsageError

if TYPE_CHECKING:
    from ggmlgraph.execution.namedgraph import NamedGraph


MATRIX = 2  # axes
EPS32 = 2.0**-23  # of float32, as numpy and torch name it


class Update(NamedTuple):
    """How a parameter is updated: by which op of the table, with factors of its step and of what decay takes."""

    op: str
    rate: float = 1.0
    decay: float = 1.0
    cautious: bool = False  # decay only where the step goes the same way
    averaged: bool = False  # keep an exponential average of it too


class Optimizer(msgspec.Struct, frozen=True, kw_only=True, tag_field="name", forbid_unknown_fields=True):
    """What all have in common; an optimiser is one of the classes below.

    cautious: weights decay only where the step goes the same way (Chen et al. 2025). Raises UsageError for a field that
    is out of its range.
    """

    usual_lr: ClassVar[float] = 1e-3
    usual_decay: ClassVar[float] = 0.1

    cautious: bool = False

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float):
                below_one = name.startswith("beta") or name == "momentum"
                if not (math.isfinite(value) and value >= 0 and (value < 1 or not below_one)):
                    raise UsageError(f"{name} {value} is not from 0 {'to below 1' if below_one else 'on'}")

    @property
    def name(self) -> str:
        return str(self.__struct_config__.tag)

    def update(self, shape: tuple[int, ...], *, hidden: bool) -> Update:
        """How a parameter is updated where neither its rate nor its decay is a special one. hidden: it is neither a
        table that ids choose from nor what makes logits."""
        raise NotImplementedError

    def hyper(self, t: int) -> dict[str, tuple[float, ...]]:
        """The numbers of each op at step t = 1, 2, ..., behind those that all have."""
        raise NotImplementedError


class AdamW(Optimizer, frozen=True, kw_only=True, tag="adamw"):
    """Loshchilov & Hutter 2019, as torch.optim.AdamW computes it. 8 bytes of state a parameter."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def update(self, shape: tuple[int, ...], *, hidden: bool) -> Update:
        return Update("adamw", cautious=self.cautious)

    def hyper(self, t: int) -> dict[str, tuple[float, ...]]:
        return {"adamw": (self.beta1, self.beta2, self.eps, 1.0 - self.beta1**t, 1.0 - self.beta2**t)}


class SGD(Optimizer, frozen=True, kw_only=True, tag="sgd"):
    """Gradient descent as torch.optim.SGD computes it, whose weight decay is part of the gradient; with nesterov, along
    the momentum as it will be (Sutskever et al. 2013). 4 bytes of state a parameter, none without momentum."""

    usual_lr: ClassVar[float] = 0.1
    usual_decay: ClassVar[float] = 0.0

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cautious:
            raise UsageError("sgd decays through the gradient, which cannot be cautious")
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs a momentum above 0")

    def update(self, shape: tuple[int, ...], *, hidden: bool) -> Update:
        return Update("sgd_momentum" if self.momentum else "sgd")

    def hyper(self, t: int) -> dict[str, tuple[float, ...]]:
        return {"sgd_momentum": (self.momentum, self.nesterov)} if self.momentum else {"sgd": ()}


class Lion(Optimizer, frozen=True, kw_only=True, tag="lion"):
    """Chen et al. 2023: along the sign of the momentum. Rates are 3 to 10 times lower than AdamW's, decays as much
    higher. 4 bytes of state a parameter."""

    usual_lr: ClassVar[float] = 1e-4
    usual_decay: ClassVar[float] = 1.0

    beta1: float = 0.9
    beta2: float = 0.99

    def update(self, shape: tuple[int, ...], *, hidden: bool) -> Update:
        return Update("lion", cautious=self.cautious)

    def hyper(self, t: int) -> dict[str, tuple[float, ...]]:
        return {"lion": (self.beta1, self.beta2)}


class Adafactor(Optimizer, frozen=True, kw_only=True, tag="adafactor"):
    """Shazeer & Stern 2018, in one of two forms of that name. "torch": torch.optim.Adafactor, whose rate is at most
    1 / sqrt(t), with every matrix factored. "optax": optax.adafactor, with matrices factored of which both axes have
    `least_factored` or more; its decay too is multiplied by the rate here. A number a row and a column of state, 4
    bytes a parameter of what is not factored."""

    usual_lr: ClassVar[float] = 1e-2
    usual_decay: ClassVar[float] = 0.0

    form: Literal["torch", "optax"] = "torch"
    decay_rate: float = 0.8  # beta2 of step t is 1 - t^-decay_rate
    least_scale: float = 1e-3
    threshold: float = 1.0
    least_factored: int = 128  # of optax

    def update(self, shape: tuple[int, ...], *, hidden: bool) -> Update:
        if self.form == "torch":
            factored = len(shape) >= MATRIX
        else:
            factored = len(shape) == MATRIX and min(shape) >= self.least_factored
        return Update("adafactor" if factored else "adafactor_whole", cautious=self.cautious)

    def hyper(self, t: int) -> dict[str, tuple[float, ...]]:
        added, floor, most_rate = (0.0, EPS32, t**-0.5) if self.form == "torch" else (1e-30, 0.0, 0.0)
        row = (1.0 - t**-self.decay_rate, added, floor, self.least_scale, self.threshold, most_rate)
        return {"adafactor": row, "adafactor_whole": row}


class ScheduleFree(Optimizer, frozen=True, kw_only=True, tag="schedule_free"):
    """Defazio et al. 2024, their AdamWScheduleFree: a constant rate after the warm-up. It is evaluated at, and saved
    as, the average of the weights, which the runtime sees to. 12 bytes of state a parameter."""

    usual_lr: ClassVar[float] = 2.5e-3

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cautious:
            raise UsageError("schedule_free decays within the step, which cannot be cautious")

    def update(self, shape: tuple[int, ...], *, hidden: bool) -> Update:
        return Update("schedule_free")

    def hyper(self, t: int) -> dict[str, tuple[float, ...]]:
        return {"schedule_free": (self.beta1, self.beta2, self.eps, 1.0 - self.beta2**t, t == 1)}


class _ForMatrices(Optimizer, frozen=True, kw_only=True):
    """Hidden matrices along their orthogonalised momentum, all else by AdamW, whose rate is `adamw_lr` times the rate.
    4 bytes of state a parameter of such a matrix, 8 of the others."""

    momentum: float = 0.95
    nesterov: bool = True
    adamw_lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def update(self, shape: tuple[int, ...], *, hidden: bool) -> Update:
        if hidden and len(shape) == MATRIX:
            return Update(self.name, self._scale(*shape), cautious=self.cautious)
        return Update("adamw", self.adamw_lr, self.adamw_lr, self.cautious)

    def _scale(self, n_rows: int, n_columns: int) -> float:
        """Factor of the step of a matrix."""
        raise NotImplementedError

    def _adamw(self, t: int) -> dict[str, tuple[float, ...]]:
        return AdamW(beta1=self.beta1, beta2=self.beta2, eps=self.eps).hyper(t)


class Muon(_ForMatrices, frozen=True, kw_only=True, tag="muon"):
    """Jordan 2024. scale: how long the step of a matrix is, by torch's name or its author's. "match_rms_adamw", or
    "moonlight" (Liu et al. 2025): 0.2 * sqrt(max(rows, columns)), for AdamW's rates and decays. "original", or
    "keller_jordan": sqrt(max(1, rows / columns)), for rates of about 0.02 and an `adamw_lr` of about 0.02."""

    scale: Literal["match_rms_adamw", "moonlight", "original", "keller_jordan"] = "match_rms_adamw"

    def _scale(self, n_rows: int, n_columns: int) -> float:
        if self.scale in ("original", "keller_jordan"):
            return math.sqrt(max(1, n_rows / n_columns))
        return 0.2 * math.sqrt(max(n_rows, n_columns))

    def hyper(self, t: int) -> dict[str, tuple[float, ...]]:
        return {"muon": (self.momentum, self.nesterov), **self._adamw(t)}


class NorMuon(_ForMatrices, frozen=True, kw_only=True, tag="normuon"):
    """Li et al. 2025: Muon, with each row of the step divided by the root of the mean of its squares over steps, at
    AdamW's rates and decays."""

    row_beta: float = 0.95  # of that mean

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row_beta >= 1:
            raise UsageError(f"row_beta {self.row_beta} is not below 1")

    def _scale(self, n_rows: int, n_columns: int) -> float:
        return 0.2 * math.sqrt(n_rows * n_columns)  # of a step of norm 1

    def hyper(self, t: int) -> dict[str, tuple[float, ...]]:
        return {"normuon": (self.momentum, self.nesterov, self.row_beta, self.eps), **self._adamw(t)}


AnyOptimizer = AdamW | SGD | Lion | Muon | NorMuon | Adafactor | ScheduleFree
CLASSES: dict[str, type[Any]] = {str(c.__struct_config__.tag): c for c in AnyOptimizer.__args__}


def updates(
    optimizer: Optimizer, model: NamedGraph, lr_of: Mapping[str, float], decay_of: Mapping[str, float], *, ema: float
) -> dict[str, Update]:
    """How each parameter of a graph is updated.

    lr_of: factors of the learning rate by pattern (* ? []) of names; decay_of: of the weight decay, also of vectors,
    which without it do not decay. The first pattern that matches counts; without one, the groups of the file. ema: how
    much of an average of each is kept in a step, 0 for no average. Raises UsageError for a factor below 0 and for a
    pattern that matches no parameter.
    """
    if not 0 <= ema < 1:
        raise UsageError(f"ema {ema} is not from 0 to below 1")
    if ema and isinstance(optimizer, ScheduleFree):
        raise UsageError("schedule_free averages the weights already: no ema beside it")
    for option, factors in (("lr_of", lr_of), ("decay_of", decay_of)):
        _check_factors(option, factors, model)
    found, ends = {}, model.ends()
    for i, name in zip(model.trained, model.params, strict=True):  # names may be those of several
        group, shape = model.metadata.group_of(name), model.graph.shape(i, model.rank(name))
        lr = _first(lr_of, name, group.lr)
        decay = _first(decay_of, name, group.decay if len(shape) >= MATRIX else 0.0)
        update = optimizer.update(shape, hidden=name not in ends)
        decoupled = 1.0 if isinstance(optimizer, SGD | ScheduleFree) else lr
        found[name] = update._replace(rate=update.rate * lr, decay=update.decay * decay * decoupled, averaged=bool(ema))
    return found


def _first(factors: Mapping[str, float], name: str, otherwise: float) -> float:
    return next((factor for pattern, factor in factors.items() if fnmatchcase(name, pattern)), otherwise)


def _check_factors(option: str, factors: Mapping[str, float], model: NamedGraph) -> None:
    for pattern, factor in factors.items():
        if not (math.isfinite(factor) and factor >= 0):
            raise UsageError(f"{option}: the factor {factor} of {pattern!r} is not a number from 0 on")
        if not any(fnmatchcase(name, pattern) for name in model.params):
            raise UsageError(f"{option}: no parameter is called {pattern!r}; there are {', '.join(model.params[:12])}")


def parse(text: str) -> AnyOptimizer:
    """ "lion" or "lion:beta1=0.95,cautious=true". Raises UsageError, with the nearest name."""
    name, _, fields = text.partition(":")
    if name not in CLASSES:
        raise UsageError(f"{name!r} is no optimiser{_meant(name, CLASSES)}; there are {', '.join(CLASSES)}")
    known, given = CLASSES[name].__struct_fields__, {}
    for word in fields.split(",") if fields else ():
        key, equals, value = word.partition("=")
        if key not in known:
            raise UsageError(f"{name} has no {key!r}{_meant(key, known)}; it takes {', '.join(known)}")
        if not equals or key in given:
            raise UsageError(f"{text!r}: expected {name}:KEY=VALUE,..., each KEY once")
        given[key] = value
    try:
        return msgspec.convert({"name": name, **given}, AnyOptimizer, strict=False)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise UsageError(f"{text!r}: {error}") from None


def spelled(optimizer: Optimizer) -> str:
    """What `parse` reads: the name, and the fields that are not as usual."""
    usual, fields = CLASSES[optimizer.name](), []
    for key in optimizer.__struct_fields__:
        value = getattr(optimizer, key)
        if value != getattr(usual, key):
            fields.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return optimizer.name + (":" + ",".join(fields) if fields else "")


def _meant(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
