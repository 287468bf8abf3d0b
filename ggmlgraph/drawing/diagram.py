"""A folded graph as boxes and arrows, one diagram for the whole and one for the inside of each repeated block.

Weights are written into the box of what uses them; inputs are boxes. Inside a block, what comes from outside of it is
a box of its own, and what it leaves for later is one too. Used by `layout` and by the writers of pictures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ggmlgraph.drawing.fold import Item, Part, Repeat, operations_of
from ggmlgraph.drawing.operations import Leaf, Operation, Operations

ROLES = {  # what a box is, by op: its colour; others are "other"
    "product": ("mul_mat", "mul_mat_id", "out_prod", "mul_mat_back", "mul_mat_id_back", "mul_mat_id_rows_back"),
    "attention": ("attention", "attention_back", "flash_attn_ext", "flash_attn_ext_back", "cached_attention"),
    "norm": ("norm", "rms_norm", "norm_gain", "rms_norm_gain", "group_norm", "norm_back", "rms_norm_back",
             "norm_gain_back", "rms_norm_gain_back", "group_norm_back"),
    "loss": ("cross_entropy", "linear_cross_entropy", "soft_cross_entropy", "cross_entropy_back"),
    "rows": ("get_rows", "get_rows_back", "add_rows"),
    "softmax": ("soft_max", "soft_max_back", "soft_max_scaled_back"),
    "update": (
        "accumulate", "opt_step_adamw", "adamw", "sgd", "sgd_momentum", "lion", "adafactor", "adafactor_whole",
        "schedule_free", "momentum", "unit", "newton_schulz", "muon", "normuon", "ema",
    ),
}  # fmt: skip
SHOWN_OPS = 3  # of a part
UNNAMED = "node_"  # begins the names that nobody gave
_ROLE = {op: role for role, ops in ROLES.items() for op in ops}


@dataclass(frozen=True)
class Amounts:
    """What is in a box, all copies together."""

    n_operations: int = 0
    n_params: int = 0
    flops: float = 0.0  # of matrix products, once through
    nbytes: int = 0  # of results

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.n_operations + other.n_operations,
            self.n_params + other.n_params,
            self.flops + other.flops,
            self.nbytes + other.nbytes,
        )


@dataclass(frozen=True)
class Box:
    """One thing of a diagram."""

    title: str
    lines: tuple[str, ...]
    role: str
    amounts: Amounts = field(default=Amounts())
    inside: Diagram | None = None
    n_copies: int = 1

    @property
    def heading(self) -> str:
        return f"× {self.n_copies}  {self.title}".strip() if self.is_block else self.title

    @property
    def is_block(self) -> bool:
        """Whether it is a repeated block, drawn with what is inside or without."""
        return self.n_copies > 1

    @property
    def is_part(self) -> bool:
        """Whether what is inside has a picture of its own."""
        return self.inside is not None and not self.is_block


@dataclass(frozen=True)
class Arrow:
    """From one box to another, by their numbers."""

    source: int
    target: int
    label: str  # shape of what is passed on


@dataclass(frozen=True)
class Diagram:
    """Boxes and what they pass on."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]

    @property
    def n_boxes(self) -> int:
        """With those inside others."""
        return sum(1 + (box.inside.n_boxes if box.inside else 0) for box in self.boxes)

    @property
    def amounts(self) -> Amounts:
        return sum((box.amounts for box in self.boxes), Amounts())


def role_of(op: str) -> str:
    """What kind of thing an op is, for its colour."""
    return _ROLE.get(op, "other")


def diagram(items: Sequence[Item], operations: Operations, depth: int = 0) -> Diagram:
    """Of the whole graph. depth: how many parts within parts have diagrams of their own."""
    return _Builder(operations).level(items, None, depth)


class _Builder:
    """Makes boxes of items; knows what is read where."""

    def __init__(self, operations: Operations) -> None:
        self.leafs = operations.leafs
        self.of = {operation.id: operation for operation in operations.listed}
        self.place = {operation.id: i for i, operation in enumerate(operations.listed)}
        self.readers: dict[int, set[int]] = {}
        for operation in operations.listed:
            for way in operation.ways:
                self.readers.setdefault(way.source, set()).add(operation.id)

    def level(self, items: Sequence[Item], block: Repeat | None, depth: int) -> Diagram:
        """The whole graph, a part of it, or the inside of a block."""
        boxes: list[Box] = []
        arrows: dict[tuple[int, int], Arrow] = {}
        made: dict[int, int] = {}  # by id of a result or input: its box
        counted: set[int] = set()  # parameters that a box has already: tied ones count once
        for item in items:
            taken = [s for s in _taken(item) if s in self.of or self.leafs[s].is_input]
            for source in taken:
                if source not in made:
                    made[source] = len(boxes)
                    boxes.append(self._entry(source, block))
            target = len(boxes)
            boxes.append(self._box(item, block, counted, depth))
            for source in taken:
                arrows[made[source], target] = Arrow(made[source], target, self._sizes(source))
            made |= {operation.id: target for operation in operations_of(item)}
        for result, title in self._left(block):
            if result not in made:  # another part of the block leaves it
                continue
            arrows[made[result], len(boxes)] = Arrow(made[result], len(boxes), self._sizes(result))
            boxes.append(Box(title, (), "port"))
        return Diagram(tuple(boxes), tuple(arrows.values()))

    def _entry(self, source: int, block: Repeat | None) -> Box:
        """What a level takes from outside: an input, or something that another level made."""
        if source in self.leafs:
            leaf = self.leafs[source]
            return Box(leaf.name or f"leaf {leaf.id}", (f"{leaf.dtype}{_listed(leaf.shape)}",), "input")
        carried = block is not None and _is_carried(source, block)
        title = "from the block before" if carried else self.of[source].name or self.of[source].op
        return Box(title, (self._sizes(source),), "port")

    def _left(self, block: Repeat | None) -> Iterator[tuple[int, str]]:
        """The results of a block that others read, as ids of the first copy, and who reads them.

        What the last operation leaves for the next block needs no telling.
        """
        if block is None:
            return
        own = [{operation.id for operation in copy} for copy in block.copies]
        for copies in zip(*block.copies, strict=True):
            readers = [self.readers.get(operation.id, set()) for operation in copies]
            if any(read & following for read, following in zip(readers, own[1:], strict=False)):
                if copies[0] is block.copies[0][-1]:
                    continue
                yield copies[0].id, "to the next block"
            elif any(read - inside for read, inside in zip(readers, own, strict=True)):
                yield copies[0].id, "to what follows"

    # ------------------------------------------------------------ boxes

    def _box(self, item: Item, block: Repeat | None, counted: set[int], depth: int) -> Box:
        amounts = sum((self._amounts(operation, counted) for operation in operations_of(item)), Amounts())
        if isinstance(item, Repeat):
            names = [self._names(copy) for copy in item.copies]
            return Box(scope(names), (), "repeat", amounts, self.level(item.body, item, depth), len(item.copies))
        if isinstance(item, Part):
            inside = self.level(item.items, block, depth - 1) if depth else None
            return Box(self._title(item), (_most(item),), "part", amounts, inside)
        name = "" if item.name.startswith(UNNAMED) else item.name
        lines = (*self._weights(item, block), *([name] if name else []), _listed(item.shape))
        role = "output" if item.is_output else role_of(item.op)
        return Box(item.op, lines, role, amounts)

    def _title(self, part: Part) -> str:
        places = [self.place[operation.id] for operation in operations_of(part)]
        names = _prefix(self._names([*operations_of(part)]))
        return names or f"operations {places[0] + 1:,} to {places[-1] + 1:,}"

    def _weights(self, operation: Operation, block: Repeat | None) -> list[str]:
        """Names and sizes of the weights an operation takes, with * for what differs between copies of the block."""
        found = []
        for k, way in enumerate(operation.ways):
            leaf = self.leafs.get(way.source)
            if leaf is not None and not leaf.is_input:
                twin = self._twin(operation, k, block)
                found.append(f"{_common(leaf.name, twin.name)} {_type(leaf)}".strip())
        return found

    def _twin(self, operation: Operation, k: int, block: Repeat | None) -> Leaf:
        """What the second copy of a block has for source k of an operation of the first."""
        if block is not None:
            for one, other in zip(*block.copies[:2], strict=True):
                if one is operation:
                    return self.leafs[other.ways[k].source]
        return self.leafs[operation.ways[k].source]

    def _names(self, copy: Sequence[Operation]) -> list[str]:
        leafs = [self.leafs[way.source] for operation in copy for way in operation.ways if way.source in self.leafs]
        return [leaf.name for leaf in leafs if leaf.is_param]

    def _amounts(self, operation: Operation, counted: set[int]) -> Amounts:
        leafs = {way.source: self.leafs[way.source] for way in operation.ways if way.source in self.leafs}
        new = {i: leaf.n_elements for i, leaf in leafs.items() if leaf.is_param and i not in counted}
        counted.update(new)
        return Amounts(1, sum(new.values()), operation.flops, operation.nbytes)

    def _sizes(self, source: int) -> str:
        return _listed(self.leafs[source].shape if source in self.leafs else self.of[source].shape)


# ---------------------------------------------------------------- items


def _taken(item: Item) -> list[int]:
    """What an item takes from outside of itself, each once."""
    own = {operation.id for operation in operations_of(item)}
    sources = (way.source for operation in operations_of(item) for way in operation.ways)
    return list(dict.fromkeys(source for source in sources if source not in own))


def _is_carried(source: int, repeat: Repeat) -> bool:
    """Whether the second copy takes something of the first where that takes this."""
    first, second = repeat.copies[:2]
    made = {operation.id for operation in first}
    return any(
        a.source == source and b.source in made
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one.ways, other.ways, strict=True)
    )


# ---------------------------------------------------------------- words


def _most(part: Part) -> str:
    """What a part is made of: "120 mul_mat, 60 add, 12 others"."""
    counts = Counter(operation.op for operation in operations_of(part))
    told = counts.most_common(SHOWN_OPS)
    others = counts.total() - sum(n for _, n in told)
    return ", ".join([*(f"{n:,} {op}" for op, n in told), *([f"{others:,} others"] if others else [])])


def scope(names: Sequence[Sequence[str]]) -> str:
    """What the weights of all copies are called together: "blk.0 … blk.31"; "" if that says nothing."""
    first, last = (_prefix(each) for each in (names[0], names[-1]))
    return f"{first} … {last}" if first and last and first != last else first


def _prefix(names: Sequence[str]) -> str:
    """The scopes that all names begin with."""
    scopes: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        scopes.append(parts[0])
    return ".".join(scopes)


def _common(one: str, other: str) -> str:
    """Both names in one, with * for numbers in which they differ; the first if they differ otherwise."""
    ours, theirs = re.split(r"(\d+)", one), re.split(r"(\d+)", other)
    if len(ours) != len(theirs) or ours[::2] != theirs[::2]:
        return one
    return "".join(a if a == b else "*" for a, b in zip(ours, theirs, strict=True))


def _type(leaf: Leaf) -> str:
    return ("" if leaf.dtype == "f32" else leaf.dtype) + _listed(leaf.shape)


def _listed(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
