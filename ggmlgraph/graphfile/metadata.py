"""The content of the leaf `ggmlgraph.metadata`: what a graph file says beyond ops and weights.

Stock ggml sees an unused I8 tensor; we see UTF-8 JSON padded with spaces. The exporter fills it, `inspect`, training
and generation read it. Fields may be added without a new version: older readers ignore what they do not know.

The leaf comes from anyone. `decode` checks all that can be checked without the graph; what names tensors is checked
where the graph is (core/importer.py). Nobody checks again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec

from ggmlgraph.errors import UNPRINTABLE, FormatError, UnsupportedError
from ggmlgraph.graphfile.records import LEAF_ALIGNMENT
from ggmlgraph.table import ops as _ops  # noqa: F401  (fills the table)
from ggmlgraph.table.dialect import ALL_FLAGS
from ggmlgraph.table.op import TABLE

LEAF_NAME = "ggmlgraph.metadata"
TOKENIZER_LEAF = "ggmlgraph.tokenizer"  # tokenizers/ says what is in it
VERSION = 1
MAX_NBYTES = 16 << 20
MAX_TEXT = 4096  # characters of a name or any other text in it
MAX_SIZES = 16  # named sizes
MAX_GROUPS = 256  # of parameters
MAX_FACTOR = 1e6  # of a learning rate or weight decay
MAX_WHOLE = 1 << 63  # a whole number in `config`, either way

Feed = Literal["tokens", "targets", "loss_weights", "positions", "positions_f32"]
Scalar = str | int | float | bool | None
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Rank = Annotated[int, msgspec.Meta(ge=1, le=4)]
Factor = Annotated[float, msgspec.Meta(ge=0, le=MAX_FACTOR)]
Expression = str | None
LEAST_RATE, MOST_RATE = 2.0**-24, 1 - 2.0**-24  # of dropout: as float32 above 0 and below 1
Rate = Annotated[float, msgspec.Meta(ge=LEAST_RATE, le=MOST_RATE)]
LowRank = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Alpha = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Flags = Annotated[int, msgspec.Meta(ge=1, le=ALL_FLAGS)]


class Number(msgspec.Struct, frozen=True):
    """A number that follows from the named sizes: `factor` times powers of them."""

    factor: float
    powers: dict[str, Annotated[float, msgspec.Meta(ge=-2, le=2)]]

    def at(self, sizes: Mapping[str, int]) -> float:
        """Its value. Raises KeyError for a size that is not there."""
        value = self.factor
        for name, power in self.powers.items():
            value *= math.pow(sizes[name], power)
        return value


class SizeExpressions(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the size of a leaf or sized op follows from the named sizes; None where it does not."""

    ne: tuple[Expression, Expression, Expression, Expression] = (None, None, None, None)  # in ggml's order
    offset: Expression = None  # bytes, of a view
    s: Number | None = None  # what a SCALE multiplies by


class ParamGroup(msgspec.Struct, frozen=True):
    """Parameters whose names match `pattern` (* ? []), and what multiplies their learning rate and weight decay."""

    pattern: str
    lr: Factor = 1.0
    decay: Factor = 1.0


class Adapter(msgspec.Struct, frozen=True):
    """Of one weight: rank and alpha of it, which together say by what its product is multiplied."""

    rank: LowRank
    alpha: Alpha


class Finetuned(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a graph differs from its base, of which it has all weights: what `ggmlgraph finetune` wrote.

    Its checkpoints hold only what is trained.
    """

    base: str  # hash of the base's values
    rank: LowRank | None = None  # as asked for; `adapters` has that of each weight. None: there are none
    alpha: Alpha = 0.0
    rslora: bool = False  # products are multiplied by alpha / sqrt(rank), else by alpha / rank
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0  # of what adapters are given
    initializer: str = ""
    adapters: dict[str, Adapter] = {}  # by name of the weight
    frozen: tuple[str, ...] = ()  # what the base trains, and this graph does not

    def scale(self, weight: str) -> float:
        """What the product of a weight's adapter is multiplied by."""
        adapter = self.adapters[weight]
        return adapter.alpha / (math.sqrt(adapter.rank) if self.rslora else adapter.rank)


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """One file's metadata.

    Keys of `inputs`, `ranks`, `flags`, `exprs`, `exact`, `dropout`, `where` and `initializers` are tensors' names.
    """

    version: Annotated[int, msgspec.Meta(ge=1)] = VERSION
    model: str
    config: dict[str, Scalar] = {}
    sizes: dict[str, Size] = {}  # named sizes and their values in the file; empty if the graph is fixed
    fixed: str | None = None  # why the graph cannot be re-sized
    limits: dict[str, Size] = {}  # the largest value of a named size, where the model has one
    inputs: dict[str, Feed] = {}  # of each kind at most one
    ranks: dict[str, Rank] = {}  # axes of named tensors, which a file of ggml's does not count
    exprs: dict[str, SizeExpressions] = {}
    exact: dict[str, str] = {}  # op of ours that an op of ggml's in the file approximates or stands for
    dropout: dict[str, Rate] = {}  # a reshape that changes nothing: at what rate training drops elements there
    where: dict[str, str] = {}  # "file.py:41", the call that made the node
    corpus: str | None = None  # what to train on when no data is given, e.g. "builtin:sine"
    groups: Annotated[tuple[ParamGroup, ...], msgspec.Meta(max_length=MAX_GROUPS)] = ()  # the first that matches counts
    initializers: dict[str, str] = {}
    finetuned: Finetuned | None = None  # None: it is no fine-tune of another graph
    flags: dict[str, Flags] = {}  # what is input, output, trained, the loss: in a dialect whose records do not say it

    def group_of(self, name: str) -> ParamGroup:
        """The group of a parameter; one that changes nothing if there is none."""
        found = (group for group in self.groups if fnmatchcase(name, group.pattern))
        return next(found, ParamGroup("*"))

    def axes_of(self, name: str) -> tuple[Expression, ...]:
        """How the axes of a tensor follow from the named sizes, in numpy's order; none where that is not known."""
        said, rank = self.exprs.get(name), self.ranks.get(name, 0)
        return () if said is None else said.ne[:rank][::-1]

    def encode(self) -> bytes:
        """JSON, padded so that tensors behind it stay aligned."""
        return _pad(msgspec.json.encode(self))


def _pad(text: bytes) -> bytes:
    return text + b" " * (-len(text) % LEAF_ALIGNMENT)


def with_flags(data: bytes, flags: dict[str, int]) -> bytes:
    """The leaf's bytes with these flags and all else as it is, fields of later versions too."""
    return updated(data, {"flags": flags})


def updated(data: bytes, fields: dict[str, Any]) -> bytes:
    """The leaf's bytes with other values of some fields."""
    decode(data)
    return _pad(msgspec.json.encode(msgspec.json.decode(data) | fields))


def fault(reason: str) -> FormatError:
    """The error of metadata that break a rule."""
    return FormatError(f"metadata: {reason} [BadMetadata]", code="BadMetadata")


def decode(data: bytes) -> Metadata:
    """Read the leaf's bytes. Raises FormatError with the code BadMetadata, UnsupportedError for a newer version."""
    if len(data) > MAX_NBYTES:
        raise fault(f"{len(data)} bytes, at most {MAX_NBYTES} are read")
    try:
        metadata = msgspec.json.decode(data.decode(), type=Metadata)  # which checks what is skipped too
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise fault(str(error)) from None
    if metadata.version > VERSION:
        reason = f"metadata has version {metadata.version}; this ggmlgraph reads version {VERSION} [BadMetadata]"
        raise UnsupportedError(reason, code="BadMetadata")
    for field, text in _texts(metadata):
        if len(text) > MAX_TEXT:
            raise fault(f"{field} has a text of {len(text)} characters, at most {MAX_TEXT} are allowed")
        if found := UNPRINTABLE.search(text):
            raise fault(f"{field} has the control character {found[0]!r} in {text[:80]!r}")
    _check_values(metadata)
    return metadata


def _texts(metadata: Metadata) -> Iterator[tuple[str, str]]:
    """Every text, with the name of its field."""
    for field, value in msgspec.structs.asdict(metadata).items():
        if isinstance(value, str):
            yield field, value
        elif isinstance(value, Finetuned):
            yield from ((field, text) for text in (value.base, value.initializer, *value.adapters, *value.frozen))
        elif isinstance(value, tuple):
            yield from ((field, group.pattern) for group in value)
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield field, name
                if isinstance(inner, str):
                    yield field, inner
                elif isinstance(inner, SizeExpressions):
                    texts = (*inner.ne, inner.offset, *(inner.s.powers if inner.s else ()))
                    yield from ((field, text) for text in texts if text is not None)


def _check_values(metadata: Metadata) -> None:
    for name, value in metadata.config.items():
        if isinstance(value, int) and abs(value) > MAX_WHOLE:
            raise fault(f"config: {name} has more than 64 bits")
    if len(metadata.sizes) > MAX_SIZES or not all(name.isascii() and name.isidentifier() for name in metadata.sizes):
        raise fault(f"sizes: not at most {MAX_SIZES} names that an expression can have")
    for name, most in metadata.limits.items():
        if metadata.sizes.get(name, 0) > most:
            raise fault(f"limits: {name} is {metadata.sizes[name]}, at most {most} is said to be allowed")
    feeds = list(metadata.inputs.values())
    if twice := next((feed for feed in feeds if feeds.count(feed) > 1), None):
        raise fault(f"inputs: two are filled with {twice}")
    for name, op in metadata.exact.items():
        if op not in TABLE or not TABLE[op].exact:
            raise fault(f"exact: {name!r} is said to be {op!r}, which is no exact form of an op")
