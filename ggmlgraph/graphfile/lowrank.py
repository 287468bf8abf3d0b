"""Low-rank adapters in the records of a graph: y = W x becomes y = W x + B (s (A x)), Hu et al. 2021 (LoRA).

All of it is ops of ggml, so stock ggml computes the adapted graph. What y was called, the sum is called afterwards,
and its users read the sum. `insert` and `remove` undo each other. A is (rank, columns) where W is the matrix of a
product; where it is a table that rows are taken from, A is (rows, rank), so that rows are taken from it too. B is
(rows, rank), of a table (columns, rank). Used by `finetuning`, which says what is adapted and how.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.graphfile.records import N_OP_PARAMS, Order, Record, dense_strides
from ggmlgraph.table.dialect import INPUT, LOSS, OUTPUT, PARAM, TYPES, Dialect

Kind = Literal["matrix", "table"]
Data = Callable[[], Iterable[bytes | memoryview]]
F32 = TYPES["F32"]
DROPPED = ".lora_dropout"
ALL_KINDS: tuple[Kind, ...] = ("matrix", "table")
KINDS: dict[str, Kind] = {"MUL_MAT": "matrix", "GET_ROWS": "table"}


@dataclass(frozen=True)
class Weight:
    """A matrix that adapters can go beside."""

    name: str
    kind: Kind
    shape: tuple[int, int]  # (rows, columns)
    dtype: str


@dataclass(frozen=True)
class LowRank:
    """An adapter of one weight. `a` and `b` stream float32 values, row-major."""

    rank: int
    scale: float
    a: Data
    b: Data
    dropout: float = 0.0  # of what A is multiplied with


def stem(weight: str) -> str:
    """ "blk.0.attn_q.weight" -> "blk.0.attn_q"."""
    return weight.removesuffix(".weight")


def names(weight: str) -> tuple[str, str]:
    """What the factors of a weight's adapter are called."""
    return f"{stem(weight)}.lora_a", f"{stem(weight)}.lora_b"


def drops(name: str) -> bool:
    """Whether a new node is one that drops elements in training."""
    return DROPPED in name


def shapes(weight: Weight, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of A and of B."""
    rows, columns = weight.shape
    return ((rank, columns), (rows, rank)) if weight.kind == "matrix" else ((rows, rank), (columns, rank))


def weights(records: Sequence[Record]) -> dict[str, Weight]:
    """The matrices by name, that nothing but products, or nothing but look-ups, take as their first operand."""
    uses: dict[int, set[Kind | None]] = {}
    for record in records:
        for k, s in enumerate(record.src):
            if s >= 0:
                uses.setdefault(s, set()).add(KINDS.get(record.op) if k == 0 else None)
    found = {}
    for i, used in uses.items():
        record, kind = records[i], next(iter(used))
        is_value = record.op == "NONE" and not record.flags & INPUT and record.data is not None
        if (
            is_value
            and kind
            and len(used) == 1
            and record.ne[2:] == (1, 1)
            and (record.type == "F32" or TYPES[record.type].decodes)
        ):
            found[record.name] = Weight(record.name, kind, (record.ne[1], record.ne[0]), record.type.lower())
    return found


def head_of(records: Sequence[Record], output: str) -> str | None:
    """The weight of the last product before the tensor `output`, which makes logits of it; None if there is none."""
    at = next((i for i, record in enumerate(records) if record.name == output), -1)
    while at >= 0 and records[at].op not in ("MUL_MAT", "NONE"):
        at = records[at].src[0] if records[at].src else -1
    product = records[at] if at >= 0 else None
    return records[product.src[0]].name if product is not None and product.op == "MUL_MAT" else None


def insert(
    records: Sequence[Record], adapters: Mapping[str, LowRank], trains: Callable[[str], bool], to: Dialect
) -> tuple[Order, dict[str, str]]:
    """The records with adapters beside weights, of which only those whose name `trains` are trained further.

    Returns too the names of new nodes, each with that of the node in whose place it computes. Raises UnsupportedError.
    """
    writing = _Writing(records)
    for i, record in enumerate(records):
        is_frozen = record.is_param and not trains(record.name)
        at = writing.copy(i, replace(record, flags=record.flags & ~PARAM) if is_frozen else record)
        adapter = adapters.get(records[record.src[0]].name) if record.op in KINDS else None
        if adapter is not None:
            writing.adapt(i, at, adapter)
    return as_listed(writing.out, to), writing.new


class _Writing:
    """Records on their way into a new list: `map` numbers there what the old list numbers."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.out: list[Record] = []
        self.map: dict[int, int] = {-1: -1}
        self.new: dict[str, str] = {}
        self.taken = {record.name for record in records}
        self.factors: dict[str, tuple[int, int]] = {}

    def copy(self, i: int, record: Record) -> int:
        self.map[i] = len(self.out)
        self.out.append(replace(record, src=tuple(self.map[s] for s in record.src)))
        return self.map[i]

    def adapt(self, i: int, product: int, adapter: LowRank) -> None:
        """The adapter beside node `product`, which is the old node i."""
        weight, y, x = self.records[self.records[i].src[0]], self.out[product], self.out[product].src[1]
        if y.type != "F32" or y.flags & LOSS:
            raise UnsupportedError(f"{y.name!r} is no float32 product that an adapter could be added to")
        a, b = self._factors(weight, adapter, y.op)
        base = stem(weight.name)
        x = self._dropped(x, base, adapter.dropout if y.op == "MUL_MAT" else 0, y.name)
        inner = (adapter.rank, *y.ne[1:])
        h = self._node(f"{base}.lora_ax", y.op, inner, (a, x), y.name)
        s = struct.pack("<f", adapter.scale).ljust(N_OP_PARAMS, b"\0")
        h = self._node(f"{base}.lora_scaled", "SCALE", inner, (h,), y.name, s)
        h = self._node(f"{base}.lora_bax", "MUL_MAT", y.ne, (b, h), y.name)
        self.out[product] = replace(y, name=self._free(f"{base}.lora_base"), flags=y.flags & ~OUTPUT)
        self.new[self.out[product].name] = y.name
        self.map[i] = len(self.out)
        self.out.append(replace(y, op="ADD", op_params=bytes(N_OP_PARAMS), src=(product, h)))

    def _factors(self, weight: Record, adapter: LowRank, op: str) -> tuple[int, int]:
        """A and B, which all users of a weight share."""
        if weight.name not in self.factors:
            kind = Weight(weight.name, KINDS[op], (weight.ne[1], weight.ne[0]), weight.type)
            pairs = zip(names(weight.name), shapes(kind, adapter.rank), (adapter.a, adapter.b), strict=True)
            a, b = (self._param(name, shape, data) for name, shape, data in pairs)
            self.factors[weight.name] = (a, b)
        return self.factors[weight.name]

    def _param(self, name: str, shape: tuple[int, int], data: Data) -> int:
        if name in self.taken:
            raise UnsupportedError(f"the graph has a tensor {name!r} already: it is adapted; merge it first")
        ne = (shape[1], shape[0], 1, 1)
        return self._append(Record(name, "F32", ne, dense_strides(F32, ne), flags=PARAM, data=data))

    def _dropped(self, x: int, base: str, rate: float, of: str) -> int:
        """x where elements of it are dropped in training: a reshape that changes nothing."""
        if not rate:
            return x
        if self.out[x].type != "F32":
            raise UnsupportedError(f"{self.out[x].name!r} is {self.out[x].type}: dropout is for float32 alone")
        ne = self.out[x].ne
        if self.out[x].nb != dense_strides(F32, ne):
            x = self._node(f"{base}.lora_x", "CONT", ne, (x,), of)
        return self._node(f"{base}{DROPPED}", "RESHAPE", ne, (x,), of)

    def _node(
        self,
        name: str,
        op: str,
        ne: tuple[int, ...],
        src: tuple[int, ...],
        of: str,
        op_params: bytes = bytes(N_OP_PARAMS),
    ) -> int:
        sizes = (ne[0], ne[1], ne[2], ne[3])
        name = self._free(name)
        self.new[name] = of
        return self._append(Record(name, "F32", sizes, dense_strides(F32, sizes), op, op_params=op_params, src=src))

    def _append(self, record: Record) -> int:
        self.taken.add(record.name)
        self.out.append(record)
        return len(self.out) - 1

    def _free(self, name: str) -> str:
        """The name, or with a number where several products have the same weight."""
        return next(
            each
            for k in range(len(self.taken) + 1)
            if (each := name if k == 0 else f"{name}.{k + 1}") not in self.taken
        )


def as_listed(records: Sequence[Record], to: Dialect) -> Order:
    """The records as a file holds them, leafs first, and otherwise in the order in which they are given."""
    is_leaf = [r.op == "NONE" and not (r.is_param and to.param_nodes) for r in records]
    placed = [i for i, leaf in enumerate(is_leaf) if leaf] + [i for i, leaf in enumerate(is_leaf) if not leaf]
    number = {-1: -1, **{old: new for new, old in enumerate(placed)}}
    numbered = [replace(records[i], src=tuple(number[s] for s in records[i].src)) for i in placed]
    n_leafs = sum(is_leaf)
    return Order(tuple(numbered[:n_leafs]), tuple(numbered[n_leafs:]))


# ---------------------------------------------------------------- the way back


def remove(
    records: Sequence[Record], adapted: Iterable[str], data: Mapping[str, Data], trained: Iterable[str], to: Dialect
) -> Order:
    """The records without the adapters of the weights `adapted`. data: the weights' new values, float32, by name.

    trained: names of float32 weights that are parameters again. Raises FormatError if an adapter is not as `insert`
    makes it.
    """
    users: dict[int, list[int]] = {}
    for i, record in enumerate(records):
        for s in record.src:
            users.setdefault(s, []).append(i)
    gone: set[int] = set()
    instead: dict[int, int] = {}  # a sum: the product in it
    for weight in adapted:
        _find(records, users, weight, gone, instead)
    flagged, renamed = set(trained), {product: total for total, product in instead.items()}
    out: list[Record] = []
    number = {-1: -1}
    for i, record in enumerate(records):
        if i in gone:
            continue
        if i in instead:
            number[i] = number[instead[i]]
            continue
        number[i] = len(out)
        if i in renamed:
            total = records[renamed[i]]
            record = replace(record, name=total.name, flags=total.flags)
        if record.name in data and record.op == "NONE":
            record = replace(record, type="F32", nb=dense_strides(F32, record.ne), data=data[record.name])
        if record.name in flagged and record.op == "NONE" and record.type == "F32":
            record = replace(record, flags=record.flags | PARAM)
        out.append(replace(record, src=tuple(number[s] for s in record.src)))
    return as_listed(out, to)


def _find(
    records: Sequence[Record], users: Mapping[int, Sequence[int]], weight: str, gone: set[int], instead: dict[int, int]
) -> None:
    """Add the nodes of a weight's adapter to `gone`, and its sums to `instead`."""
    factors = [next((i for i, r in enumerate(records) if r.name == name), -1) for name in names(weight)]
    if min(factors) < 0:
        raise FormatError(f"the graph has no {names(weight)[factors.index(min(factors))]!r}")
    a, b = factors
    gone.update(factors)
    for first in users.get(a, ()):
        chain = [first]
        while len(chain) < 4 and len(users.get(chain[-1], ())) == 1:
            chain.append(users[chain[-1]][0])
        ops = tuple(records[i].op for i in chain)
        if len(chain) != 4 or ops[1:] != ("SCALE", "MUL_MAT", "ADD") or records[chain[2]].src[0] != b:
            raise FormatError(f"what {records[first].name!r} computes is not the adapter of {weight!r}")
        total = chain[3]
        product = records[total].src[0]
        if records[product].op not in KINDS or records[records[product].src[0]].name != weight:
            raise FormatError(f"{records[total].name!r} is not {weight!r} with its adapter")
        gone.update(chain[:3])
        gone.update(_dropout_before(records, users, records[first].src[1]))
        instead[total] = product


def _dropout_before(records: Sequence[Record], users: Mapping[int, Sequence[int]], x: int) -> Iterable[int]:
    """The reshape, and the copy before it, of `insert`'s dropout."""
    for op in ("RESHAPE", "CONT"):
        if records[x].op == op and ".lora_" in records[x].name and len(users[x]) == 1:
            yield x
            x = records[x].src[0]
