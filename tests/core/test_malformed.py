"""No file, however malformed, is more than a typed error: the rules of docs/cgraph.md, each broken in many ways.

`RULES` maps a rule to a generator of files that break it, made from six small valid files with knowledge of their
structure: it yields the content, the codes it may be refused with, and the byte that is wrong where that is certain.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from samplefiles import build, files, leaf, node, six

from ggmlgraph.cli.main import run
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import identify_bytes, import_bytes, import_file, named
from ggmlgraph.core.limits import Limits
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.errors import DataError, FormatError, GGError, LimitError, MemoryLimitError, ShapeError, UnsupportedError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.graphfile import reader, records
from ggmlgraph.table.dialect import DIALECTS, INPUT, LOSS, OUTPUT, PARAM, TYPES, Dialect

DEFAULT = Limits(1 << 16, 1 << 40, 1e15)


def verdict(content: bytes, dialect: str, limits: Any = DEFAULT) -> GGError | None:
    """What the importer in C says of a file; None if it takes it."""
    try:
        import_bytes(content, dialect, limits)
    except GGError as error:
        return error
    return None


def check_refusal(error: GGError | None, content: bytes) -> GGError:
    """A refusal is typed, of one line, and says where."""
    assert error is not None
    assert isinstance(error, (FormatError, ShapeError, UnsupportedError, LimitError))
    assert error.code is not None
    assert error.offset is not None
    assert 0 <= error.offset <= len(content)
    assert str(error).startswith(f"byte {error.offset:#x}: ")
    assert str(error).endswith(f" [{error.code}]")
    assert str(error).isprintable()
    return error


# ---------------------------------------------------------------- six small valid files


@dataclass(frozen=True)
class Sample:
    """A valid file with its structure."""

    name: str
    content: bytes
    dialect: Dialect

    @cached_property
    def graph(self) -> records.CGraph:
        return reader.parse(self.content, self.dialect.name)

    @cached_property
    def begins(self) -> list[int]:
        """Offset of each record."""
        at, begins = self.dialect.header.nbytes, []
        for k, record in enumerate(self.graph.records):
            begins.append(at)
            at += self.layout(k).nbytes + (record.nbytes if self.graph.offsets[k] >= 0 else 0)
        return begins

    def layout(self, k: int) -> Any:
        return self.dialect.leaf if k < len(self.graph.leafs) else self.dialect.node

    def at(self, k: int, field: str, index: int = 0) -> int:
        """Offset of a field of record k; `index` counts words of op_params and src."""
        return self.begins[k] + self.layout(k).offset(field) + 4 * index

    @cached_property
    def nodes(self) -> list[int]:
        """Indices of the records with an op."""
        return [k for k, record in enumerate(self.graph.records) if record.op != "NONE"]

    @cached_property
    def stored(self) -> list[int]:
        """Indices of the records with data."""
        return [k for k, record in enumerate(self.graph.records) if record.op == "NONE"]

    def put(self, at: int, value: bytes) -> bytes:
        return self.content[:at] + value + self.content[at + len(value) :]


def u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def f32(value: float) -> bytes:
    return struct.pack("<f", value)


SAMPLES = [Sample(name, content, DIALECTS[dialect]) for name, dialect, content in six()]
EACH_SAMPLE = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)

# ---------------------------------------------------------------- the rules

Broken = tuple[bytes, set[str], int | None]
RULES: dict[str, Callable[[Sample], Iterator[Broken]]] = {}


def rule(name: str) -> Callable[[Callable[[Sample], Iterator[Broken]]], Callable[[Sample], Iterator[Broken]]]:
    def enter(breaks: Callable[[Sample], Iterator[Broken]]) -> Callable[[Sample], Iterator[Broken]]:
        RULES[name] = breaks
        return breaks

    return enter


@rule("C2 bytes are there")
def _cut(s: Sample) -> Iterator[Broken]:
    for n in {0, 1, 8, 20, 23, 24, *s.begins, *(b + 100 for b in s.begins), len(s.content) - 1, len(s.content) - 100}:
        yield s.content[:n], {"Truncated", "BadCount"}, None


@rule("C3 magic")
def _magic(s: Sample) -> Iterator[Broken]:
    for magic in (b"GGUF", b"ggml", b"lmgf", b"\0\0\0\0", b"\xff\xff\xff\xff", b"tjgg", b"PK\x03\x04", b"fmgg"):
        yield s.put(0, magic), {"BadMagic"}, 0


@rule("C3 version")
def _version(s: Sample) -> Iterator[Broken]:
    for version in (0, 3, 4, 0x100, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 3 - s.dialect.version):
        yield s.put(4, u32(version)), {"BadVersion"}, 4


@rule("C4 counts")
def _counts(s: Sample) -> Iterator[Broken]:
    for at in (8, 12):
        for n in (len(s.graph.records) + 8, 1 << 16, 1 << 20, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, (1 << 32) - 4):
            yield s.put(at, u32(n)), {"BadCount"}, 8
    yield s.put(8, u32((1 << 32) - 1) * 2), {"BadCount"}, 8


@rule("C5 size_eval")
def _size_eval(s: Sample) -> Iterator[Broken]:
    needed = records.nodes_nbytes(s.graph.nodes)
    for value in (0, 1, needed // 2, needed - 16, needed - 1):
        yield s.put(16, u64(value)), {"BadEvalSize"}, 16


@rule("C6 end")
def _end(s: Sample) -> Iterator[Broken]:
    for extra in (b"\0", b"x", b"abc", bytes(4), bytes(244), s.content, b"\xff" * 1000):
        yield s.content + extra, {"TrailingBytes"}, len(s.content)
    last = s.begins[-1]
    yield s.put(12, u32(len(s.graph.nodes) - 1)), {"TrailingBytes"}, last


@rule("T1 type")
def _type(s: Sample) -> Iterator[Broken]:
    for k in range(len(s.graph.records)):
        for number in (4, 5, 36, 99, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            yield s.put(s.at(k, "type"), u32(number)), {"BadType"}, s.at(k, "type")


@rule("T2 sizes")
def _sizes(s: Sample) -> Iterator[Broken]:
    for k in range(len(s.graph.records)):
        for i in range(4):
            for value in (0, -1, -5, (1 << 40) + 1, 1 << 62, -(1 << 63), (1 << 63) - 1):
                yield s.put(s.at(k, f"ne{i}"), u64(value)), {"BadSize"}, s.at(k, f"ne{i}")
        many = b"".join(u64(1 << 24) + u64(4) for _ in range(4))  # the product wraps around to 0
        yield s.put(s.at(k, "ne0"), many), {"BadSize"}, s.at(k, "ne0")


@rule("T3 strides")
def _strides(s: Sample) -> Iterator[Broken]:
    for k in range(len(s.graph.records)):
        for i in range(4):
            size = TYPES[s.graph.records[k].type].nbytes
            for value in (-size, -(1 << 63), (1 << 50) + size, 1 << 62, (1 << 64) - 1):
                yield s.put(s.at(k, f"nb{i}"), u64(value)), {"BadStride"}, s.at(k, f"nb{i}")
    for k in s.stored:
        for i in range(4):
            other = s.graph.records[k].nb[i] + 4
            yield s.put(s.at(k, f"nb{i}"), u64(other)), {"BadStride"}, s.at(k, f"nb{i}")


def resized(s: Sample, k: int, ne: tuple[int, int, int, int]) -> bytes:
    """Record k with other sizes and the strides that follow from them."""
    nb = records.dense_strides(TYPES[s.graph.records[k].type], ne)
    return s.put(s.at(k, "ne0"), b"".join(u64(n) + u64(b) for n, b in zip(ne, nb, strict=True)))


@rule("T4 data are there")
def _extent(s: Sample) -> Iterator[Broken]:
    for k in s.stored:
        for n in (len(s.content), 1 << 20, 1 << 30, 1 << 40):
            yield resized(s, k, (n, 1, 1, 1)), {"Truncated"}, s.begins[k] + s.layout(k).nbytes
            yield resized(s, k, (1, 1, n, 1 << 8)), {"Truncated"}, s.begins[k] + s.layout(k).nbytes


@rule("T5 name")
def _name(s: Sample) -> Iterator[Broken]:
    n = s.dialect.node.n("name")
    for k in range(len(s.graph.records)):
        at = s.at(k, "name")
        for bad in (bytes(n), b"x" * n, b"\xff" * n, b"\0" + b"x" * (n - 1)):
            yield s.put(at, bad), {"BadName"}, None
        controls = (b"\x1b[2J", b"\n", b"\x7f", b"\xc2\x85", b"\xe2\x80\xae", b"\xe2\x80\xa8")
        not_utf8 = (b"\xff", b"\xc0\xaf", b"\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80", b"\xe0\x80\x80")
        for bad in (*controls, *not_utf8, b"\xf8\x88\x80\x80\x80"):
            yield s.put(at, b"x" + bad + b"\0"), {"BadName"}, at + 1


@rule("T6 flags")
def _flags(s: Sample) -> Iterator[Broken]:
    if not s.dialect.has_flags:
        return
    for k in range(len(s.graph.records)):
        for flags in (16, 32, 0x100, 1 << 30, 1 << 31, 0xFFFFFFFF, 0xFFFFFFF0):
            yield s.put(s.at(k, "flags"), u32(flags)), {"BadFlags"}, s.at(k, "flags")


@rule("T6 parameters")
def _params(s: Sample) -> Iterator[Broken]:
    for k in range(len(s.graph.records)):
        is_leaf, is_node = k < len(s.graph.leafs), k in s.nodes
        if s.dialect.has_flags and (is_leaf or is_node):
            for flags in (PARAM, PARAM | INPUT, PARAM | OUTPUT, PARAM | LOSS):
                yield s.put(s.at(k, "flags"), u32(flags)), {"BadParam"}, s.at(k, "flags")
        if not is_leaf and not is_node:
            yield s.put(s.at(k, "flags"), u32(0)), {"BadParam"}, s.at(k, "flags")
            yield s.put(s.at(k, "type"), u32(s.dialect.types["I32"])), {"BadParam"}, s.at(k, "type")
            for j in range(10):
                yield s.put(s.at(k, "src", j), u32(0)), {"BadParam"}, s.at(k, "src", j)
        if is_node:
            yield s.put(s.at(k, "op"), u32(0)), {"BadParam", "NoParamData", "BadStride"}, None


@rule("T6 leafs have no op")
def _leafs(s: Sample) -> Iterator[Broken]:
    for k in s.stored:
        for word in range(16):
            yield s.put(s.at(k, "op_params", word), u32(1 << word)), {"BadOpParams"}, s.at(k, "op_params", word)
    for k in range(len(s.graph.leafs)):
        for op in ("ADD", "MUL_MAT", "VIEW", "SUM", "UNARY"):
            yield s.put(s.at(k, "op"), u32(s.dialect.op_number[op])), {"BadLeaf"}, s.at(k, "op")


@rule("G1 ops")
def _ops(s: Sample) -> Iterator[Broken]:
    unsupported = [n for n in s.dialect.ops if n.startswith(("MAP_", "SSM_", "WIN_", "RWKV", "GET_REL", "ADD_REL"))]
    for k in s.nodes:
        for number in (len(s.dialect.ops), 9999, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            yield s.put(s.at(k, "op"), u32(number)), {"BadOp"}, s.at(k, "op")
        for name in unsupported:
            yield s.put(s.at(k, "op"), u32(s.dialect.op_number[name])), {"UnsupportedOp"}, s.at(k, "op")
        for unary in (len(s.dialect.unary), 99, 0xFFFFFFFF, 0x80000000):
            changed = s.put(s.at(k, "op"), u32(s.dialect.op_number["UNARY"]))
            at = s.at(k, "op_params")
            yield changed[:at] + u32(unary) + changed[at + 4 :], {"BadOp"}, at


@rule("G2 sources come before")
def _sources(s: Sample) -> Iterator[Broken]:
    for k in s.nodes:
        for src in (-2, -(1 << 31), k, k + 1, len(s.graph.records), 1 << 16, (1 << 31) - 1):
            for slot in (0, 1, 9):
                yield s.put(s.at(k, "src", slot), u32(src)), {"BadSource"}, s.at(k, "src", slot)


@rule("G3 arity")
def _arity(s: Sample) -> Iterator[Broken]:
    for k in s.nodes:
        yield s.put(s.at(k, "src"), u32(-1)), {"BadArity"}, s.at(k, "src")
        n = len(s.graph.records[k].src)
        for slot in range(max(n, 3), 10):  # past what any of these ops takes
            yield s.put(s.at(k, "src", slot), u32(0)), {"BadArity"}, s.at(k, "src", slot)


@rule("G4 unused op_params are zero")
def _unused(s: Sample) -> Iterator[Broken]:
    for k in s.nodes:
        record = s.graph.records[k]
        first = {"ROPE": 13, "VIEW": 2, "PERMUTE": 4, "SOFT_MAX": 2}.get(record.op, 1)
        for word in range(first, 16):
            yield (s.put(s.at(k, "op_params", word), u32(1)), {"BadOpParams", "UnsupportedOpParams"},
                   s.at(k, "op_params", word))  # fmt: skip


FLOATS = {"SCALE": (0,), "RMS_NORM": (0,), "NORM": (0,), "SOFT_MAX": (0, 1), "ROPE": (5, 6, 7, 8, 9, 10)}


@rule("G4 numbers are finite and in range")
def _values(s: Sample) -> Iterator[Broken]:
    for k in s.nodes:
        op = s.graph.records[k].op
        for word in FLOATS.get(op, ()):
            for value in (float("nan"), float("inf"), float("-inf")):
                yield s.put(s.at(k, "op_params", word), f32(value)), {"BadOpParams"}, None
        out_of_range = {
            "RMS_NORM": [(0, f32(-1))], "NORM": [(0, f32(-1e-30))], "DIAG_MASK_INF": [(0, u32(-1)), (0, u32(1 << 31))],
            "ROPE": [(1, u32(3)), (1, u32(0)), (1, u32(-2)), (1, u32(6)), (5, f32(0)), (5, f32(-1))],
            "PERMUTE": [(0, u32(4)), (0, u32(-1)), (1, u32(0)), (3, u32(1 << 31))],
            "MUL_MAT": [(0, u32(2)), (0, u32(-1))],
        }.get(op, [])  # fmt: skip
        for word, value in out_of_range:
            yield s.put(s.at(k, "op_params", word), value), {"BadOpParams"}, None


@rule("G5 sizes follow from the sources")
def _derived(s: Sample) -> Iterator[Broken]:
    for k in s.nodes:
        ne = s.graph.records[k].ne
        if s.graph.records[k].op == "VIEW":
            continue
        for i in range(2 if s.graph.records[k].op == "REPEAT" else 4):  # which may repeat into more dimensions
            grown = tuple(n + (j == i) for j, n in enumerate(ne))
            allowed = {"WrongSize", "BadShape", "BadStride"}
            yield resized(s, k, (grown[0], grown[1], grown[2], grown[3])), allowed, None
            yield s.put(s.at(k, f"nb{i}"), u64(s.graph.records[k].nb[i] + 4)), {"BadStride"}, s.at(k, f"nb{i}")
        if s.graph.records[k].type == "F32":
            yield s.put(s.at(k, "type"), u32(s.dialect.types["I32"])), {"WrongType"}, s.at(k, "type")


@rule("G5 sources fit the op")
def _fit(s: Sample) -> Iterator[Broken]:
    for k in s.nodes:
        for other in range(k):
            if (
                len(s.graph.records[k].src) > 1
                and s.graph.records[other].ne != s.graph.records[s.graph.records[k].src[0]].ne
            ):
                content = s.put(s.at(k, "src"), u32(other))
                yield content, {"BadShape", "WrongSize", "WrongType", "BadStride", "BadOpParams"}, None


@rule("V1 views lie inside")
def _views(s: Sample) -> Iterator[Broken]:
    for k in s.nodes:
        if s.graph.records[k].op != "VIEW":
            continue
        offset = s.at(k, "op_params")
        for value in (2, 3, 96, 4096, 1 << 40, (1 << 62), (1 << 63) - 4, -4, -(1 << 63)):
            yield s.put(offset, u64(value)), {"BadView"}, s.begins[k]
        for i in range(1, 4):
            for value in (1 << 40, 1 << 50):
                if s.graph.records[k].ne[i] > 1:
                    yield s.put(s.at(k, f"nb{i}"), u64(value)), {"BadView"}, s.begins[k]
            for value in (1 << 20, 1 << 40):
                yield s.put(s.at(k, f"ne{i}"), u64(value)), {"BadView"}, s.begins[k]
        yield s.put(s.at(k, "nb0"), u64(8)), {"BadView"}, s.begins[k]
        yield s.put(s.at(k, "nb0"), u64(0)), {"BadView"}, s.begins[k]


@rule("V2 reshape, permute, transpose")
def _layout(s: Sample) -> Iterator[Broken]:
    for k in s.nodes:
        op = s.graph.records[k].op
        if op == "RESHAPE":
            for ne in ((1, 1, 1, 1), (2, 2, 1, 1), (3, 1, 1, 1), (1, 4, 1, 1), (1 << 30, 1, 1, 1)):
                yield resized(s, k, ne), {"BadShape"}, s.begins[k]
        if op in ("PERMUTE", "TRANSPOSE"):
            for i in range(4):
                yield s.put(s.at(k, f"ne{i}"), u64(77)), {"WrongSize"}, s.at(k, f"ne{i}")
                yield s.put(s.at(k, f"nb{i}"), u64(400)), {"BadStride"}, s.at(k, f"nb{i}")


BROKEN = {name: [(s, *broken) for s in SAMPLES for broken in breaks(s)] for name, breaks in RULES.items()}


def test_there_are_at_least_500_malformed_files_and_10_of_each_rule() -> None:
    assert sum(len(files) for files in BROKEN.values()) >= 500
    assert {name: len(files) for name, files in BROKEN.items() if len(files) < 10} == {}


@EACH_SAMPLE
def test_the_files_they_are_made_from_are_valid(sample: Sample) -> None:
    assert verdict(sample.content, sample.dialect.name) is None
    assert len(sample.content) < 3000


@pytest.mark.parametrize("name", RULES)
def test_a_file_that_breaks_a_rule_is_refused_by_its_code_where_it_is_wrong(name: str) -> None:
    for sample, content, codes, offset in BROKEN[name]:
        error = check_refusal(verdict(content, sample.dialect.name), content)
        assert error.code in codes, (sample.name, str(error))
        assert offset in (None, error.offset), (sample.name, offset, str(error))


@EACH_SAMPLE
def test_every_truncation_is_refused(sample: Sample) -> None:
    for n in range(len(sample.content)):
        check_refusal(verdict(sample.content[:n], sample.dialect.name), sample.content)


@EACH_SAMPLE
def test_every_single_byte_change_is_refused_or_a_valid_file(sample: Sample) -> None:
    changed = bytearray(sample.content)
    for at, old in enumerate(sample.content):
        for new in {0, 255, *(old ^ 1 << bit for bit in range(8))} - {old}:
            changed[at] = new
            error = verdict(bytes(changed), sample.dialect.name)
            if error is not None:
                check_refusal(error, sample.content)
        changed[at] = old


# ---------------------------------------------------------------- near misses


def near_misses() -> Iterator[tuple[str, Sample, bytes]]:
    """Files that look wrong and are not."""
    for s in SAMPLES:
        k = len(s.graph.records) - 1
        at, n = s.at(k, "name"), s.dialect.node.n("name")
        yield "a name of all the bytes but one", s, s.put(at, b"n" * (n - 1) + b"\0")
        yield "a name that is not ASCII", s, s.put(at, "τ_0 ⊗ 名前 🎉".encode().ljust(n, b"\0"))
        yield "the tail of an older name", s, s.put(at, b"a\0" + b"\xff" * (n - 2))
        yield "two tensors of one name", s, s.put(at, s.content[s.at(0, "name") :][:n])
        yield "a size_eval without slack", s, s.put(16, u64(records.nodes_nbytes(s.graph.nodes)))
        yield "a size_eval past all memory", s, s.put(16, u64(-1))
        yield "an empty graph", s, s.put(8, u32(0) * 2)[: s.dialect.header.nbytes]
        if s.dialect.has_flags:
            yield "an inner node that is an output", s, s.put(s.at(s.nodes[0], "flags"), u32(INPUT | OUTPUT | LOSS))
        for k in s.stored:
            data = s.begins[k] + s.layout(k).nbytes
            if s.graph.records[k].type == "F32":
                yield "a weight that is not a number", s, s.put(data, f32(float("nan")))
            if s.graph.records[k].type == "I32":
                yield "an id out of range, found when used", s, s.put(data, u32(-1))
        for k in s.nodes:
            if s.graph.records[k].op == "ROPE":
                yield "the word of rope that nobody reads", s, s.put(s.at(k, "op_params", 3), u32(512))
                yield "the other mode of rope", s, s.put(s.at(k, "op_params", 2), u32(2))


NEAR_MISSES = list(near_misses())


@pytest.mark.parametrize("what", sorted({what for what, _, _ in NEAR_MISSES}))
def test_a_near_miss_is_accepted(what: str) -> None:
    for name, sample, content in NEAR_MISSES:
        if name == what:
            assert verdict(content, sample.dialect.name) is None


# ---------------------------------------------------------------- limits, dialects, values


@pytest.mark.parametrize(
    ("limits", "code"),
    [(Limits(n_tensors=3), "TooManyTensors"), (Limits(nbytes=100), "TooManyBytes"), (Limits(flops=20), "TooManyFlops")],
)
@EACH_SAMPLE
def test_a_graph_larger_than_allowed_is_refused(sample: Sample, limits: Limits, code: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.bin"
    path.write_bytes(sample.content)
    with pytest.raises(LimitError, match="allowed") as caught:
        import_file(path, sample.dialect.name, limits)
    assert caught.value.code == code
    assert caught.value.offset is not None


@pytest.mark.parametrize("command", ["inspect", "train", "bench", "generate"])
def test_limits_are_options_of_the_commands_that_open_files(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no run is yet
    (tmp_path / "graph.bin").write_bytes(SAMPLES[4].content)
    assert run([command, str(tmp_path / "graph.bin"), "--max-tensors", "2"]) == 1
    assert "byte 0x8: 6 tensors, at most 2 are allowed" in capsys.readouterr().err


def test_a_broadcast_view_is_charged_for_the_elements_it_shows() -> None:
    def make(g: CoreGraph) -> None:
        x = leaf(g, "x", (4,))
        node(g, "sum_rows", node(g, "view", x, offset=0, shape=(1 << 20, 1 << 26, 4), strides=(0, 0, 0, 4)))

    error = check_refusal(verdict(build("v2", make), "v2", Limits(99, 1 << 40, 1e15)), build("v2", make))
    assert error.code in ("TooManyBytes", "TooManyFlops")


def test_a_file_that_two_dialects_read_as_different_graphs_names_both() -> None:
    def make(g: CoreGraph) -> None:
        node(g, "norm", leaf(g, "x", (2, 4)), eps=1e-5)

    content = build("v2", make)  # v2a reads an RMS_NORM
    error = check_refusal(verdict(content, "auto"), content)
    assert (error.code, error.offset) == ("AmbiguousDialect", 4)
    assert "v2 or v2a" in str(error)


def found(content: bytes) -> str | None:
    try:
        return identify_bytes(content, DEFAULT)
    except GGError:
        return None


def fitting(content: bytes) -> list[str]:
    """The dialects in which a file is valid."""
    return [name for name in DIALECTS if verdict(content, name) is None]


def test_a_file_that_several_dialects_read_as_the_same_graph_is_the_newest_ones() -> None:
    def make(g: CoreGraph) -> None:
        node(g, "sqr", leaf(g, "x", (2, 4)))

    for dialect, several in (("v2a", ["v2", "v2a"]), ("v1f", ["v1d", "v1e", "v1f"]), ("v1h", ["v1g", "v1h"])):
        content = build(dialect, make)
        assert fitting(content) == several
        assert found(content) == several[0]


def test_an_empty_graph_is_the_same_in_every_dialect_of_its_version() -> None:
    for version in (1, 2):
        content = struct.pack("<4IQ", 0x67676D6C, version, 0, 0, 0)
        assert fitting(content) == [d.name for d in DIALECTS.values() if d.version == version]
        assert verdict(content, "auto") is None


@pytest.mark.parametrize("dialect", DIALECTS)
def test_auto_takes_what_one_dialect_takes_or_several_alike_and_else_lists_them(dialect: str) -> None:
    n_listed = 0
    for _name, of, content in files():
        if of != dialect:
            continue
        several, name = fitting(content), found(content)
        assert dialect in several
        if name is None:
            error = check_refusal(verdict(content, "auto"), content)
            assert (error.code, " or ".join(several) in str(error)) == ("AmbiguousDialect", True)
            n_listed += 1
        else:
            assert name == several[0]
    assert n_listed < 20, "of some 150: the numbers of two dialects seldom mean two ops of the same shape"


@pytest.mark.parametrize("bad", [-1, 5, 1 << 30, -(1 << 31)])
def test_an_id_out_of_range_is_found_when_it_is_used(bad: int) -> None:
    sample = SAMPLES[-1]
    ids = next(k for k in sample.stored if sample.graph.records[k].name == "ids")
    content = sample.put(sample.begins[ids] + sample.layout(ids).nbytes, u32(bad))
    graph = import_bytes(content, "v2", DEFAULT)
    with pytest.raises(DataError, match=f"id {bad} is not in 0..4") as caught:
        Program(graph, Pool(1), None).run()
    assert caught.value.code == "BadValue"


def test_a_graph_of_more_bytes_than_can_be_counted_is_not_planned() -> None:
    graph = CoreGraph()
    x = leaf(graph, "x", (1,))
    for k in range(4097):
        graph.set_name(node(graph, "repeat", x, shape=(1 << 24, 1 << 24)), f"y{k}", OUTPUT)  # 2^50 bytes each
    with pytest.raises(MemoryLimitError, match=r"more than 2\^62 bytes"):
        Program(graph, Pool(1), None)


def test_ids_that_choose_more_rows_than_can_be_counted_are_refused() -> None:
    graph = CoreGraph()
    experts, rows, ids = leaf(graph, "w", (1, 1, 1)), leaf(graph, "x", (1, 1, 1)), leaf(graph, "ids", (1, 1), "i32")
    wide = node(graph, "repeat", experts, shape=(1, 1, 1 << 40))
    column = node(graph, "view", ids, offset=0, shape=(1 << 20, 1), strides=(0, 0, 0, 4))
    with pytest.raises(ShapeError, match=r"more than 2\^48 elements in the rows of 1048576 ids"):
        node(
            graph,
            "mul_mat_id",
            wide,
            node(graph, "repeat", rows, shape=(1, 1, 1 << 40)),
            node(graph, "transpose", column),
        )


def test_a_name_that_two_tensors_have_finds_none(tmp_path: Path) -> None:
    _what, _, content = next(n for n in NEAR_MISSES if n[0] == "two tensors of one name")
    (tmp_path / "graph.bin").write_bytes(content)
    graph = import_file(tmp_path / "graph.bin")
    with pytest.raises(FormatError, match="more than one tensor is named") as caught:
        graph.find(graph.name(len(graph) - 1))
    assert caught.value.code == "AmbiguousName"
    with pytest.raises(FormatError, match="metadata: more than one tensor is named") as caught:
        named(graph, [graph.name(0), graph.name(len(graph) - 1)])
    assert caught.value.code == "AmbiguousName"


def test_a_name_in_the_metadata_that_no_tensor_has_is_refused() -> None:
    graph = CoreGraph()
    leaf(graph, "x", (1,))
    assert named(graph, ["x"]) == [0]
    with pytest.raises(FormatError, match="metadata: the graph has no tensor 'y'"):
        named(graph, ["x", "y"])


def test_an_error_names_file_byte_node_op_rule_found_and_expected(tmp_path: Path) -> None:
    sample = SAMPLES[0]
    at = sample.at(sample.nodes[0], "src")
    (tmp_path / "graph.bin").write_bytes(sample.put(at, u32(900)))
    with pytest.raises(FormatError) as caught:
        Runtime(tmp_path / "graph.bin", dialect="v2")
    where = rf"graph\.bin: byte {at:#x}: node 1 'node_2' \(MUL_MAT\)"
    assert re.search(
        where + r": src\[0\] is 900, which is none of the 2 tensors before \[BadSource\]$", str(caught.value)
    )
    assert (caught.value.code, caught.value.offset) == ("BadSource", at)


# ---------------------------------------------------------------- memory, symbols, the list of codes

READ = """
import resource, sys
from ggmlgraph.core.importer import import_bytes
from ggmlgraph.core.limits import Limits
content = open(sys.argv[1], "rb").read()
in_use = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
allowed = in_use + 2 * len(content) + (16 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
import_bytes(content, "auto", Limits(1 << 16, 1 << 40, 1e15))
"""


def a_large_file(dialect: str, n_nodes: int) -> bytes:
    """The most records that the default limits allow: of all files it takes the most memory beyond its size."""
    sample = build(dialect, lambda g: node(g, "sqr", leaf(g, "x", (4,))))
    last = sample[-DIALECTS[dialect].node.nbytes :]
    return sample[:12] + struct.pack("<IQ", n_nodes, 1 << 40) + sample[24:] + last * (n_nodes - 1)


@pytest.mark.skipif(
    "libasan" in Path("/proc/self/maps").read_text(), reason="no such case: AddressSanitizer has memory of its own"
)
@pytest.mark.parametrize("dialect", ["v2", "v1i"])  # the longest records and the shortest
def test_reading_takes_at_most_twice_the_file_and_16_mib(dialect: str, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(a_large_file(dialect, (1 << 16) - 1))
    subprocess.run([sys.executable, "-P", "-c", READ, str(tmp_path / "large.bin")], check=True)


ENDS = {"abort", "exit", "_exit", "_Exit", "quick_exit", "__assert_fail", "__assert", "raise", "kill", "pthread_kill",
        "pthread_exit", "longjmp", "siglongjmp", "__longjmp_chk", "err", "errx", "verr", "__chk_fail"}  # fmt: skip
OUTSIDE = {"system", "popen", "fork", "execve", "execvp", "posix_spawn", "dlopen", "dlsym", "socket", "printf", "puts",
           "fprintf", "vfprintf", "putchar", "fwrite", "write", "perror", "setlocale", "getenv"}  # fmt: skip


def test_the_library_imports_nothing_that_ends_the_process_prints_or_starts_programs() -> None:
    import ggmlgraph._runtime

    library = Path(ggmlgraph._runtime.__file__)
    try:
        listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("for want of nm, to read the library's symbols with")
    symbols = {line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()}
    if any(name.startswith(("__asan", "__tsan")) for name in symbols):
        pytest.skip("no such case: a build with sanitizers")
    assert {"malloc", "memcpy"} <= symbols
    assert symbols & (ENDS | OUTSIDE) == set()


def test_every_code_is_in_the_documentation_and_every_documented_code_in_the_source() -> None:
    sources = [*ROOT.glob("runtime/src/*.c"), ROOT / "ggmlgraph/graphfile/records.py",
               ROOT / "ggmlgraph/core/graph.py", ROOT / "ggmlgraph/graphfile/metadata.py"]  # fmt: skip
    used = {code for path in sources for code in re.findall(r'"([A-Z][a-z]+(?:[A-Z][a-z]+)+)"', path.read_text())}
    used |= {"Unsupported", "Truncated"}
    text = (ROOT / "docs" / "cgraph.md").read_text()
    table = text[text.index("### Codes") :]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.M)
    documented = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert documented == used - {"BadFormat", "OverLimit", "CGraph"}
