"""How other formats spell a model: the vocabulary of the tables in models/names, and how they are read.

Each architecture has a module `models/names/ARCHITECTURE.py` with FORMATS: for each kind of checkpoint a `Format`. It
says by what keys the checkpoint gives the sizes of our Config, what it calls each parameter, and in which order it
keeps the rows of some. The sources find the format of a checkpoint here; `convert` matches the tensors; the exports
read the same tables the other way round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module, resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.interchange.formats.stored import Stored, Weight, joined

ABSENT = None  # what a key that is not there reads as; a null is the same


@dataclass(frozen=True)
class Checkpoint:
    """What a source knows when it looks for sizes: the keys of its configuration and its tensors."""

    keys: Mapping[str, Any]
    tensors: Mapping[str, Weight]

    def get(self, key: str) -> Any:
        """The value of a key, whole ("llama.block_count") or through objects ("rope_parameters.rope_theta")."""
        if key in self.keys:
            return self.keys[key]
        head, dot, rest = key.partition(".")
        inner = self.keys.get(head)
        return Checkpoint(inner, {}).get(rest) if dot and isinstance(inner, dict) else ABSENT


class Value:
    """Where a size or setting comes from."""

    def of(self, checkpoint: Checkpoint) -> Any:
        """The value, ABSENT if the checkpoint does not say."""
        raise NotImplementedError

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        """The keys that say a value, the one to prefer first; none where tensors say it. config: ours, all fields."""
        return {}


@dataclass(frozen=True)
class Key(Value):
    """The first of these keys that is there, else the default."""

    names: tuple[str, ...]
    default: Any = ABSENT

    def of(self, checkpoint: Checkpoint) -> Any:
        found = (checkpoint.get(name) for name in self.names)
        return next((value for value in found if value is not ABSENT), self.default)

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        says_none = value == 0 and self.default == 0 and type(value) is not bool
        return dict.fromkeys(self.names, ABSENT if says_none else value)

    def __str__(self) -> str:
        return " or ".join(self.names)


@dataclass(frozen=True)
class Choice(Value):
    """A key whose words each stand for a value of ours; the first for a value is the one that is written."""

    key: Key
    words: Mapping[str, Any]

    def of(self, checkpoint: Checkpoint) -> Any:
        word = self.key.of(checkpoint)
        if not isinstance(word, str) or word not in self.words:
            raise UnsupportedError(f"{self.key} is {word!r}; known are {', '.join(self.words)}")
        return self.words[word]

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        return self.key.keys(next(word for word, ours in self.words.items() if ours == value), config)

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True)
class Where(Value):
    """A value that counts only where a flag is true; 0 else."""

    flag: Key
    value: Value

    def of(self, checkpoint: Checkpoint) -> Any:
        return self.value.of(checkpoint) if self.flag.of(checkpoint) else 0

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        used = bool(config.get("window"))
        return {**self.flag.keys(used, config), **(self.value.keys(value, config) if used else {})}

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class FullLayers(Value):
    """How many layers, from the first on, see all positions; what is said of every layer must say the same."""

    number: Key
    kinds: Key  # a list, "full_attention" or "sliding_attention" for each layer

    def of(self, checkpoint: Checkpoint) -> Any:
        kinds = self.kinds.of(checkpoint)
        if kinds is ABSENT:
            return self.number.of(checkpoint)
        n = kinds.count("full_attention") if isinstance(kinds, list) else 0
        if kinds != ["full_attention"] * n + ["sliding_attention"] * (len(kinds) - n):
            raise UnsupportedError(f"{self.kinds}: layers with windows follow those without, in the models we have")
        return n

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        return self.number.keys(value, config)

    def __str__(self) -> str:
        return str(self.number)


@dataclass(frozen=True)
class With(Value):
    """Whether the checkpoint has a tensor of this name."""

    tensor: str

    def of(self, checkpoint: Checkpoint) -> Any:
        return self.tensor in checkpoint.tensors


@dataclass(frozen=True)
class Rows(Value):
    """The number of rows of a tensor."""

    tensor: str

    def of(self, checkpoint: Checkpoint) -> Any:
        stored = checkpoint.tensors.get(self.tensor)
        return stored.shape[0] if stored is not None and stored.shape else ABSENT

    def __str__(self) -> str:
        return f"the rows of {self.tensor}"


@dataclass(frozen=True)
class Without(Value):
    """Whether the checkpoint has no tensor of this name."""

    tensor: str

    def of(self, checkpoint: Checkpoint) -> Any:
        return self.tensor not in checkpoint.tensors


@dataclass(frozen=True)
class Columns(Value):
    """The number of columns of a tensor, or what is known of models with so many."""

    tensor: str
    known: Mapping[int, Any] | None = None

    def of(self, checkpoint: Checkpoint) -> Any:
        stored = checkpoint.tensors.get(self.tensor)
        if stored is None or not stored.shape:
            return ABSENT
        return stored.shape[-1] if self.known is None else self.known.get(stored.shape[-1], ABSENT)

    def __str__(self) -> str:
        return f"the columns of {self.tensor}"


@dataclass(frozen=True)
class Layers(Value):
    """The number of layers that have a tensor: its name, with {i} for the layer."""

    tensor: str

    def of(self, checkpoint: Checkpoint) -> Any:
        layers = (i for i in range(len(checkpoint.tensors)) if self.tensor.format(i=i) not in checkpoint.tensors)
        return next(layers, ABSENT)

    def __str__(self) -> str:
        return f"layers with {self.tensor}"


@dataclass(frozen=True)
class Tied(Value):
    """Whether the checkpoint has no output matrix of this name, or its embedding's once more, in the same place."""

    output: str
    embedding: str

    def of(self, checkpoint: Checkpoint) -> Any:
        stored = checkpoint.tensors.get(self.output)
        return stored is None or stored == checkpoint.tensors.get(self.embedding)


@dataclass(frozen=True)
class RotaryShare(Value):
    """The part of a head that is rotated, where a checkpoint gives it in elements: n_rot / head_dim, which is
    n_embd / n_head if not given."""

    n_rot: str
    n_embd: str
    n_head: str
    head_dim: str = ""
    default: Any = ABSENT

    def of(self, checkpoint: Checkpoint) -> Any:
        n_rot, n_embd, n_head = (checkpoint.get(name) for name in (self.n_rot, self.n_embd, self.n_head))
        if n_rot is ABSENT:
            return self.default
        if (head_dim := checkpoint.get(self.head_dim)) is not ABSENT:
            n_embd, n_head = head_dim, 1
        if not all(type(n) is int and n > 0 for n in (n_rot, n_embd, n_head)) or n_embd % n_head:
            return n_rot  # which is no share: refused where it is used
        share = n_rot / (n_embd // n_head)
        return share if int(n_embd // n_head * share) == n_rot else math.nextafter(share, math.inf)

    def keys(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        return {self.n_rot: int((config.get("head_dim") or config["n_embd"] // config["n_head"]) * value)}

    def __str__(self) -> str:
        return self.n_rot


@dataclass(frozen=True)
class RowOrder:
    """Rows lie there as `axes`, here in the order `order` of these axes. Names are fields of the Config, -1 the rest.

    RowOrder(("n_head", 3, -1), (1, 0, 2)): there [head][q, k, v][dim], here [q, k, v][head][dim].
    """

    axes: tuple[str | int, ...]
    order: tuple[int, ...]

    def index(self, n_rows: int, config: Mapping[str, Any]) -> NDArray[np.int64]:
        """For each row here its number there: int64 (n_rows,)."""
        sizes = [config[axis] if isinstance(axis, str) else axis for axis in self.axes]
        if n_rows % math.prod(n for n in sizes if n > 0):
            raise FormatError(f"{n_rows} rows cannot be divided into {' x '.join(map(str, self.axes))}")
        return np.arange(n_rows).reshape(sizes).transpose(self.order).reshape(-1)


@dataclass(frozen=True)
class Fused:
    """Rows are a part of a tensor of q, k and v: 0, 1 or 2.

    All rows of q lie before those of k and of v or, `grouped`, those of each key head's group of query heads before
    those of its key and value. `halves`: rotary pairs are (i, i + head_dim/2) there, (2i, 2i+1) here.
    """

    part: int
    grouped: bool = False
    halves: bool = False

    def index(self, n_rows: int, config: Mapping[str, Any]) -> NDArray[np.int64]:
        """For each row of our parameter its number there."""
        n_head, n_kv = config["n_head"], config["n_head_kv"]
        if n_head % n_kv or n_rows % (n_head + 2 * n_kv):
            raise FormatError(f"{n_rows} rows cannot be divided into {n_head} query and twice {n_kv} other heads")
        head_dim = n_rows // (n_head + 2 * n_kv)
        n_groups = n_kv if self.grouped else 1
        sizes = [n_head // n_groups, n_kv // n_groups, n_kv // n_groups]
        begin = sum(sizes[: self.part])
        heads = np.arange(n_rows).reshape(n_groups, -1, head_dim)[:, begin : begin + sizes[self.part]]
        if self.halves and self.part < 2:
            heads = heads.reshape(-1, 2, head_dim // 2).transpose(0, 2, 1)
        return heads.reshape(-1)


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint of one architecture. {i} in a tensor's name is a layer; .weight and .bias are left out
    where they are the same."""

    id: str  # what the checkpoint calls the architecture
    sizes: Mapping[str, Value]  # a field of the Config: where it comes from
    tensors: Mapping[str, str] | None = None  # ours: theirs; None: the names are the same
    prefix: str = ""  # what the names begin with, but not in checkpoints of the model without its head
    rows: Mapping[str, RowOrder | Fused] = field(default_factory=dict)  # ours: how its rows lie there
    transposed: tuple[str, ...] = ()  # ours: matrices that lie there as (in, out)
    gains_less_one: bool = False  # norms' weights there are what is added to 1
    only: tuple[tuple[Value, tuple[Any, ...]], ...] = ()  # settings and the values that are our model; none is fine
    skip: tuple[str, ...] = ()  # tensors that are no weights, whole names: regular expressions
    aliases: tuple[tuple[str, str], ...] = ()  # other names of theirs, regular expressions, and these
    needs_head: bool = False  # the output matrix is written also where it is the embedding's
    halves: tuple[tuple[str, tuple[str, str]], ...] = ()  # matrices of experts that are two, one above the other
    order: tuple[tuple[str, ...], ...] = ()  # of the parameters in their model: before, in and after the layers

    def config(self, checkpoint: Checkpoint, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the Config; `given` ones are not looked for.

        Raises FormatError if one is not there, UnsupportedError for another model.
        """
        for setting, values in self.only:
            value = setting.of(checkpoint)
            if value is not ABSENT and value not in values:
                raise UnsupportedError(f"{setting} is {value!r}, our {self.id} has {values[0] if values else None!r}")
        fields = {name: given[name] if name in given else value.of(checkpoint) for name, value in self.sizes.items()}
        for name, value in fields.items():
            if value is ABSENT:
                raise FormatError(f"it does not say {name} ({self.sizes[name]}): give {name}=...")
        return fields

    def keys(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint of this kind says of a model: `config` turned round. config: all fields, none left open.

        Where several keys may give a size, each that gives no other size does. A null is for a size of 0 that says
        the model has no such thing.
        """
        said: dict[str, Any] = {}
        for value, choices in self.only:
            said.update(list(value.keys(choices[0] if choices else ABSENT, config).items())[:1])
        spellings = [value.keys(config[name], config) for name, value in self.sizes.items()]
        for spelling in spellings:
            said.update(list(spelling.items())[:1])
        for spelling in spellings:
            said = {**spelling, **said}
        return said

    def theirs(self, name: str) -> str:
        """What the checkpoint calls our parameter; "" if it has no such parameter."""
        if self.tensors is None:
            return name
        pattern, layer = _pattern(name)
        if pattern in self.tensors:
            return self.tensors[pattern].replace("{i}", layer)
        stem, _, kind = name.rpartition(".")
        pattern, layer = _pattern(stem)
        known = self.tensors.get(pattern)
        return "" if known is None else f"{known.replace('{i}', layer)}.{kind}"

    def row_order(self, name: str) -> RowOrder | Fused | None:
        """How the rows of our parameter lie in the checkpoint, if not as here."""
        return self.rows.get(_pattern(name.rpartition(".")[0])[0])

    def is_transposed(self, name: str) -> bool:
        """Whether our parameter is a matrix that lies in the checkpoint as (in, out)."""
        stem, _, kind = name.rpartition(".")
        return kind == "weight" and _pattern(stem)[0] in self.transposed

    def added(self, name: str) -> float:
        """What the checkpoint's values lack: our gains are 1 where those of some are 0."""
        return 1.0 if self.gains_less_one and name.endswith("_norm.weight") else 0.0

    def in_order(self, tensors: Mapping[str, Weight], n_layer: int) -> dict[str, Weight]:
        """The tensors of the parameters in the order of their model, of each weight before bias.

        Raises UnsupportedError if that is not known.
        """
        if not self.order:
            raise UnsupportedError(f"in which order {self.id} has its parameters is not known here")
        before, layer, after = self.order
        stems = [*before, *(f"blk.{i}.{stem}" for i in range(n_layer) for stem in layer), *after]
        names = [self.theirs(f"{stem}.{kind}") for stem in stems for kind in ("weight", "bias")]
        return {name: tensors[name] for name in names if name in tensors}

    def arranged(self, tensors: Mapping[str, Stored]) -> dict[str, Weight]:
        """The tensors of a checkpoint, named as if they were of the model with its head, and experts in one.

        Raises FormatError if an expert is missing, or is of another shape than the others.
        """
        prefix = self.prefix_of(tensors)
        stacks = any("{e}" in theirs for theirs in (self.tensors or {}).values())
        named: dict[str, Weight] = {}
        experts: dict[str, dict[int, Stored]] = {}
        for name, stored in self._halved({self._renamed(prefix + name): stored for name, stored in tensors.items()}):
            expert = re.fullmatch(r"(.*\.experts\.)(\d+)(\..*)", name) if stacks else None
            if expert:
                experts.setdefault(f"{expert[1]}{{e}}{expert[3]}", {})[int(expert[2])] = stored.stacked()
            else:
                named[name] = stored
        for name, parts in experts.items():
            missing = next((e for e in range(len(parts)) if e not in parts), None)
            if missing is not None:
                raise FormatError(f"{name.replace('{e}', str(missing))} is missing")
            named[name] = joined(name, [parts[e] for e in range(len(parts))], 0)
        return named

    def prefix_of(self, tensors: Mapping[str, Stored]) -> str:
        """What the names of these tensors lack: those of a model without its head have no prefix."""
        return "" if any(name.startswith(self.prefix) for name in tensors) else self.prefix

    def _renamed(self, name: str) -> str:
        for pattern, other in self.aliases:
            if found := re.fullmatch(pattern, name):
                return found.expand(other)
        return name

    def _halved(self, tensors: Mapping[str, Stored]) -> Iterator[tuple[str, Stored]]:
        for name, stored in tensors.items():
            for pattern, others in self.halves:
                if found := re.fullmatch(pattern, name):
                    for half, other in enumerate(others):
                        yield found.expand(other), stored.half(half)
                    break
            else:
                yield name, stored

    def skips(self, name: str) -> bool:
        """Whether a tensor of the checkpoint is known to be no weight."""
        return any(re.fullmatch(pattern, name) for pattern in self.skip)


def _pattern(stem: str) -> tuple[str, str]:
    """ "blk.3.attn_q" -> ("blk.{i}.attn_q", "3")."""
    found = re.fullmatch(r"(blk\.)(\d+)(\..*)", stem)
    return (f"{found[1]}{{i}}{found[3]}", found[2]) if found else (stem, "")


def architectures() -> Iterable[str]:
    """Names of the architectures that have tables of names."""
    files = [entry.name for entry in resources.files("ggmlgraph.models.names").iterdir()]
    return sorted(name.removesuffix(".py") for name in files if name.endswith(".py") and name != "__init__.py")


def formats(architecture: str) -> Mapping[str, Format]:
    """All formats of an architecture, by the kind of checkpoint."""
    known: Mapping[str, Format] = import_module(f"ggmlgraph.models.names.{architecture}").FORMATS
    return known


def find(
    kind: str, identifier: Any, checkpoint: Checkpoint, given: Mapping[str, Any]
) -> tuple[str, Format, dict[str, Any]]:
    """Our architecture of a checkpoint of a kind that calls it `identifier`, its format, and the Config's fields.

    Where several have the identifier, the first whose settings are the checkpoint's. given: fields the user gave.
    Raises UnsupportedError for a model that is none of ours, FormatError if a size is not given.
    """
    known: list[str] = []
    reasons: dict[str, GGError] = {}
    for name in architectures():
        candidate = formats(name).get(kind)
        if candidate is None:
            continue
        known.append(candidate.id)
        if candidate.id == identifier:
            try:
                return name, candidate, candidate.config(checkpoint, given)
            except (FormatError, UnsupportedError) as error:
                reasons[name] = error
    if len(reasons) > 1:
        raise UnsupportedError("; ".join(f"no {name}: {reason}" for name, reason in reasons.items()))
    if reasons:
        raise next(iter(reasons.values()))
    raise UnsupportedError(f"its architecture is {identifier!r}; known are {', '.join(sorted(set(known)))}")
