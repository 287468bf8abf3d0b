"""The two readers of graph files compared: the importer in C and `reader.parse` in Python, which share no code.

Files are changed with knowledge of their structure. What C takes, Python takes as the same tensors; what Python
refuses, C refuses; what breaks a rule that both know, both refuse by the same code at the same byte. Only C derives
shapes again and knows what the runtime computes. Used by test_readers.py and, as long as one likes, by `make fuzz`:

    python tests/readers.py SECONDS [SEED]
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections import Counter
from typing import Any

from samplefiles import files

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import import_bytes
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import GGError
from ggmlgraph.graphfile import reader, records
from ggmlgraph.table.dialect import DIALECTS, UNREAD, Dialect
from ggmlgraph.table.op import TABLE

LIMITS = Limits(1 << 16, 1 << 40, 1e15)
ONLY_C = {
    "BadShape", "BadView", "WrongSize", "WrongType", "BadArity", "UnsupportedType", "UnsupportedOp", "Unsupported",
    "TooManyBytes", "TooManyFlops",
}  # fmt: skip
ADDED_BY_C = {"cast", "cpy", "updated", "view_as"}  # where a type is not float32, or a result takes its source's place
WRITING = {"CPY", *(op.ggml for op in TABLE.values() if op.writes)}
BOUNDARIES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 26, 32, 64, 255, 256, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31,
              (1 << 32) - 1, 1 << 40, 1 << 48, 1 << 50, 1 << 62, 1 << 63, (1 << 64) - 1)  # fmt: skip


class Changer:
    """Changes files of one dialect at random: fields of records, bytes, the end."""

    def __init__(self, content: bytes, dialect: Dialect) -> None:
        self.content, self.dialect = content, dialect
        graph = reader.parse(content, dialect.name)
        at, self.records = dialect.header.nbytes, []
        for k, record in enumerate(graph.records):
            layout = dialect.leaf if k < len(graph.leafs) else dialect.node
            self.records.append((at, layout))
            at += layout.nbytes + (dialect.data_nbytes(record.nbytes) if graph.offsets[k] >= 0 else 0)

    def __call__(self, rng: random.Random) -> bytes:
        changed = bytearray(self.content)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            self._change(changed, rng)
        return bytes(changed)

    def _change(self, content: bytearray, rng: random.Random) -> None:
        kind = rng.randrange(20)
        if kind == 0:
            del content[rng.randrange(len(content) + 1) :]
        elif kind == 1:
            content += rng.randbytes(rng.randrange(1, 300))
        elif kind < 5 and content:
            content[rng.randrange(len(content))] = rng.randrange(256)
        elif kind < 7:
            _put(content, 4 * rng.randrange(6), rng.choice(BOUNDARIES), 4)
        else:
            self._change_field(content, rng)

    def _change_field(self, content: bytearray, rng: random.Random) -> None:
        begin, layout = rng.choice(self.records)
        field = rng.choice(layout.fields)
        at = begin + layout.offset(field.name)
        if field.kind == "char":
            at += (
                rng.randrange(field.n)
                // (4 if field.name == "op_params" else 1)
                * (4 if field.name == "op_params" else 1)
            )
        elif field.n > 1:
            at += 4 * rng.randrange(field.n)
        nbytes = {"u64": 8, "char": 4 if field.name == "op_params" else 1}.get(field.kind, 4)
        old = int.from_bytes(content[at : at + nbytes], "little")
        new = rng.choice(
            (rng.choice(BOUNDARIES), rng.randrange(-1, 12), old + 1, old - 1, old * 2, old ^ 1 << rng.randrange(32))
        )
        _put(content, at, new, nbytes)


def _put(content: bytearray, at: int, value: int, nbytes: int) -> None:
    if at + nbytes <= len(content):
        content[at : at + nbytes] = (value % (1 << 8 * nbytes)).to_bytes(nbytes, "little")


# ---------------------------------------------------------------- what the readers say


def read_in_c(content: bytes, dialect: str) -> CoreGraph | GGError:
    try:
        return import_bytes(content, dialect, LIMITS)
    except GGError as error:
        return error


def read_in_python(content: bytes, dialect: str) -> records.CGraph | GGError:
    try:
        return reader.parse(content, dialect)
    except GGError as error:
        return error


def tensors_of_c(graph: CoreGraph) -> list[tuple[Any, ...]]:
    found = []
    for i in range(len(graph)):
        t, op = graph.tensor(i), TABLE.get(graph.op(i))
        src = tuple(s for s in t.src)
        data = b"" if op else bytes(graph.leaf_bytes(i))
        name = (op.ggml, op.unary) if op else ("NONE", None)
        found.append((graph.name(i), graph.dtype(i).upper(), tuple(t.ne), tuple(t.nb), t.flags, name, src,
                      tuple(w & 0xFFFFFFFF for w in t.op_params), data))  # fmt: skip
    return found


def tensors_of_python(graph: records.CGraph) -> list[tuple[Any, ...]]:
    found = []
    for r in graph.records:
        words = list(struct.unpack("<16I", r.op_params))
        for w in UNREAD.get(r.op, ()):
            words[w] = 0
        src = (*r.src, *[-1] * (10 - len(r.src)))
        data = b"".join(r.data()) if r.data else b""
        found.append((r.name, r.type, r.ne, r.nb, r.flags, (r.op, r.unary), src, tuple(words), data))
    return found


def _computed(tensor: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes, op and op_params."""
    _, _, ne, _, _, op, _, words, _ = tensor
    return ne, op, words


def disagreement(content: bytes, dialect: str) -> tuple[str | None, str]:
    """What the readers disagree about, None if nothing; and the verdict of C: "accepted" or the code."""
    c, python = read_in_c(content, dialect), read_in_python(content, dialect)
    if isinstance(c, CoreGraph):
        if isinstance(python, GGError):
            return f"C takes it, Python says {python} [{python.code}]", "accepted"
        if any(r.op in WRITING for r in python.records):  # C numbers what reads a written tensor anew
            return None, "accepted"
        ours, theirs = tensors_of_c(c), tensors_of_python(python)
        added = [c.op(i) in ADDED_BY_C for i in range(len(c))]
        if any(added):  # then what follows has other numbers, types and names
            ours = [_computed(t) for t, is_added in zip(ours, added, strict=True) if not is_added]
            theirs = [_computed(t) for t in theirs]
        return ("both take it as different tensors" if ours != theirs else None), "accepted"
    code = str(c.code)
    in_a_node = code in ("BadOpParams", "BadStride", "BadSize")  # may follow from sources, which only C knows
    if code in ONLY_C:
        return None, code
    if not isinstance(python, GGError):
        return (None if in_a_node else f"C says {c}, Python takes it"), code
    same = (python.code, python.offset) == (c.code, c.offset)
    if not same and not in_a_node and python.code != "BadStride":  # of nodes, Python knows strides before sources
        return f"C says {c}, Python {python} [{python.code}] at {python.offset}", code
    return None, code


def compare(n: int | None, seconds: float, seed: int) -> Counter[str]:
    """Verdicts of C over `n` changed files, or as many as take `seconds`. Raises AssertionError for a disagreement."""
    rng = random.Random(seed)
    changers = [Changer(content, DIALECTS[dialect]) for _, dialect, content in files()]
    verdicts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while verdicts.total() < n if n is not None else time.monotonic() < end:
        changer = rng.choice(changers)
        content = changer(rng)
        found, verdict = disagreement(content, changer.dialect.name)
        assert found is None, f"{changer.dialect.name}: {found}\n{content!r}"
        verdicts[verdict] += 1
    return verdicts


if __name__ == "__main__":
    verdicts = compare(None, float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns())
    print(f"readers: {verdicts.total()} files, no disagreement; {dict(verdicts.most_common())}")
