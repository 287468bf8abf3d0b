"""The graph file: bytes as ggml writes them, a round trip for every graph, a typed error for every wrong byte."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED

from ggmlgraph.errors import FormatError, GGError, UnsupportedError, UsageError
from ggmlgraph.graphfile.reader import parse, read
from ggmlgraph.graphfile.records import CGraph, Order, Record, dense_strides, order
from ggmlgraph.graphfile.writer import dump, emit, work_nbytes, write
from ggmlgraph.table.dialect import DIALECTS, INPUT, OUTPUT, PARAM, TYPES, V1, V2, V2A, WRITTEN

ORACLE = SHARED / "oracle" / "oracle_cgraph.py"
GRAPHS = SHARED / "data" / "graphs"


def sizes(*ne: int) -> tuple[int, int, int, int]:
    n = (*ne, 1, 1, 1, 1)
    return n[0], n[1], n[2], n[3]


def leaf(name: str, *ne: int, type: str = "F32", flags: int = 0, data: bytes | None = None) -> Record:
    record = Record(name, type, sizes(*ne), dense_strides(TYPES[type], sizes(*ne)), flags=flags)
    return replace(record, data=lambda: [bytes(i % 251 for i in range(record.nbytes)) if data is None else data])


def node(op: str, *src: int, ne: tuple[int, ...] = (4, 3), name: str = "", unary: str | None = None) -> Record:
    return Record(name, "F32", sizes(*ne), dense_strides(TYPES["F32"], sizes(*ne)), op, unary, src=src)


def to_bytes(records: Sequence[Record], roots: Sequence[int], slack: int | None = None, dialect: str = "v2") -> bytes:
    stream = io.BytesIO()
    dump(stream, records, roots, dialect, slack)
    return stream.getvalue()


# A parameter, an input, a mask that is used twice, a metadata leaf: 0..3; then the nodes.
SMALL = [
    leaf("w", 4, 3, flags=PARAM),
    leaf("x", 4, 3, flags=INPUT),
    leaf("ids", 3, type="I32"),
    leaf("note", 16, type="I8"),
    node("MUL", 0, 1),
    node("UNARY", 4, unary="SILU"),
    replace(node("VIEW", 5, ne=(2, 3)), nb=(4, 16, 48, 48), op_params=struct.pack("<Q", 8).ljust(64, b"\0")),
    node("CONT", 6, ne=(2, 3)),
    replace(node("ROPE", 7, 2, -1, ne=(2, 3), name="y"), flags=OUTPUT),
]
ROOTS = [8]


# ---------------------------------------------------------------- the dialect


def test_v2_has_the_sizes_and_numbers_of_ggml_59bd3c43() -> None:
    assert (V2.header.nbytes, V2.leaf.nbytes, V2.node.nbytes) == (24, 204, 244)
    assert (V2.leaf.offset("ne0"), V2.leaf.offset("nb3"), V2.leaf.offset("name")) == (12, 68, 76)
    assert (V2.leaf.offset("op_params"), V2.node.offset("src")) == (140, 204)
    assert len(V2.ops) == 81
    numbers = {"NONE": 0, "MUL_MAT": 26, "VIEW": 34, "ROPE": 44, "UNARY": 69, "OPT_STEP_ADAMW": 80}
    assert {name: V2.op_number[name] for name in numbers} == numbers
    assert {name: V2.unary_number[name] for name in ("NEG", "SILU", "EXP")} == {"NEG": 2, "SILU": 10, "EXP": 13}
    assert {name: V2.types[name] for name in ("F32", "I8", "I32", "BF16")} == {
        "F32": 0,
        "I8": 24,
        "I32": 26,
        "BF16": 30,
    }
    assert DIALECTS["v2"] is V2


def test_v2a_is_v2_without_count_equal() -> None:
    assert V2A.leaf == V2.leaf
    assert (len(V2A.ops), V2A.op_number["ARGMAX"], V2A.op_number["REPEAT"], V2A.op_number["UNARY"]) == (80, 16, 17, 68)


def test_v1_has_the_sizes_and_numbers_of_ggml_7cf94a2b() -> None:
    assert (V1.header.nbytes, V1.leaf.nbytes, V1.node.nbytes, V1.has_flags) == (24, 200, 240, False)
    assert len(V1.ops) == 76
    numbers = {"MUL_MAT": 23, "VIEW": 31, "ROPE": 41, "UNARY": 65, "CROSS_ENTROPY_LOSS_BACK": 75}
    assert {name: V1.op_number[name] for name in numbers} == numbers
    assert (len(V1.unary), V1.unary_number["HARDSIGMOID"], max(V1.types.values())) == (13, 12, V1.types["BF16"])


V1_CASES = [  # op, op_params of the newest dialect, of v1; None: v1 cannot say it
    ("ROPE", (0, 2, 2, 7, 5, 6, 0x3F800000), (0, 2, 2, 7, 5, 6, 0x3F800000)),
    ("ROPE", (0, 4, 0, 7, 5, 6, 8), (0, 4, 0, 7, 5, 6, 8)),
    ("ROPE", (0,) * 11 + (1,), None),
    ("ROPE", (0, 2, 0, 0, 0, 6, 0x3F800000), None),  # of a part of the row, in mode 0
    ("ROPE", (0, 4, 2, 0, 0, 6, 0x3F000000), None),  # with a freq_scale, in mode 2
    ("ROPE", (0, 4, 2, 0, 0, 6, 0x3F800000, 1), None),  # with YaRN, in mode 2
    ("CONCAT", (2,), (0,)),
    ("CONCAT", (0,), None),
    ("GROUP_NORM", (8, 0x358637BD), (8, 0)),
    ("GROUP_NORM", (8, 0x3727C5AC), None),
    ("FLASH_ATTN_EXT", (1, 2, 0, 3), (1, 2, 3)),
    ("FLASH_ATTN_EXT", (1, 2, 1, 3), None),
]


@pytest.mark.parametrize(("op", "newest", "stored"), V1_CASES)
def test_op_params_are_those_of_the_newest_dialect_in_memory(
    op: str, newest: tuple[int, ...], stored: tuple[int, ...] | None
) -> None:
    records = [leaf("x", 4, 3), replace(node(op, 0), op_params=struct.pack(f"<{len(newest)}I", *newest))]
    if stored is None:
        with pytest.raises(
            UnsupportedError, match=rf"{op} is .*, which dialect v1 cannot say|dialect v1 meant another {op}"
        ):
            to_bytes(records, [1], dialect="v1")
        return
    data = to_bytes(records, [1], dialect="v1")
    at = len(data) - V1.node.nbytes + V1.node.offset("op_params")
    assert data[at : at + 64] == struct.pack(f"<{len(stored)}I", *stored).ljust(64, b"\0")
    assert parse(data, "v1").nodes[0].op_params == records[1].op_params.ljust(64, b"\0")


def rope(*src: int) -> Record:
    return replace(node("ROPE", *src), op_params=struct.pack("<2I", 0, 4).ljust(64, b"\0"))


def test_what_v1_has_no_place_for_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no unary op EXP"):
        to_bytes([leaf("x", 4, 3), node("UNARY", 0, unary="EXP")], [1], dialect="v1")
    with pytest.raises(UnsupportedError, match="ROPE takes 2 sources in v1"):
        to_bytes([leaf("x", 4, 3), rope(0, 0, 0)], [1], dialect="v1")
    with pytest.raises(UnsupportedError, match="no SUB of two shapes"):
        to_bytes([leaf("x", 4, 3), leaf("b", 4), node("SUB", 0, 1)], [2], dialect="v1")
    with pytest.raises(UnsupportedError, match="no COUNT_EQUAL"):
        to_bytes([leaf("x", 4, 3), node("COUNT_EQUAL", 0, 0)], [1], dialect="v1")


def test_words_of_v1_that_later_versions_dropped_are_refused_where_they_stand() -> None:
    data = to_bytes([leaf("x", 4, 3), rope(0, 0)], [1], dialect="v1")
    at = len(data) - V1.node.nbytes + V1.node.offset("op_params") + 4 * 11
    with pytest.raises(UnsupportedError, match="op_params word 11 is set, in dialect v1") as caught:
        parse(data[:at] + b"\1" + data[at + 1 :], "v1")
    assert caught.value.offset == at


# ---------------------------------------------------------------- order


def names(records: Sequence[Record]) -> list[str]:
    return [record.name for record in records]


def test_nodes_come_depth_first_with_sources_left_to_right() -> None:
    records = [leaf("a", 4, 3), leaf("b", 4, 3), leaf("p", 4, 3, flags=PARAM)]
    records += [node("SQR", 1, name="of b"), node("SQR", 0, name="of a"), node("ADD", 4, 3, name="sum"),
                node("MUL", 5, 2, name="y")]  # fmt: skip
    placed = order(records, [6], V2)
    assert names(placed.leafs) == ["a", "b"]
    assert names(placed.nodes) == ["of a", "of b", "sum", "p", "y"]
    assert placed.nodes[-1].src == (4, 5)


def test_each_root_adds_what_the_ones_before_did_not_need() -> None:
    records = [leaf("a", 4, 3), node("SQR", 0, name="one"), node("SQRT", 0, name="two"), node("ADD", 2, 1, name="both")]
    assert names(order(records, [1, 3], V2).nodes) == ["one", "two", "both"]


def test_nodes_without_a_name_are_numbered_as_ggml_does() -> None:
    placed = order(SMALL, ROOTS, V2)
    assert names(placed.nodes) == ["w", "node_1", "node_2", "node_3", "node_4", "y"]


def test_leafs_that_nothing_uses_come_last_and_unused_nodes_are_dropped() -> None:
    records = [leaf("metadata", 16, type="I8"), leaf("a", 4, 3), node("SQR", 1), node("LOG", 1, name="dead")]
    placed = order(records, [2], V2)
    assert names(placed.leafs) == ["a", "metadata"]
    assert names(placed.nodes) == ["node_0"]


def test_a_chain_of_100000_nodes_needs_no_recursion() -> None:
    records = [leaf("a", 4, 3)] + [node("SQR", i) for i in range(100_000)]
    assert len(order(records, [100_000], V2).nodes) == 100_000


def test_a_source_that_does_not_come_before_its_node_is_refused() -> None:
    with pytest.raises(UsageError, match="does not come before"):
        order([leaf("a", 4, 3), node("ADD", 0, 1)], [1], V2)


def test_a_dialect_without_parameter_nodes_has_them_as_leafs() -> None:
    placed = order(SMALL, ROOTS, replace(V2, param_nodes=False))
    assert names(placed.leafs) == ["w", "x", "ids", "note"]


# ---------------------------------------------------------------- writing


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "g.bin", SMALL, ROOTS)
    graph = read(tmp_path / "g.bin")
    placed = order(SMALL, ROOTS, V2)
    assert graph.leafs == placed.leafs
    assert [replace(n, src=strip(n.src), op_params=n.op_params.ljust(64, b"\0")) for n in placed.nodes] == list(
        graph.nodes
    )


def strip(src: tuple[int, ...]) -> tuple[int, ...]:
    """Without absent sources at the end, as the reader gives them."""
    while src and src[-1] < 0:
        src = src[:-1]
    return src


def test_data_are_views_of_the_file_in_numpy_order(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(tmp_path / "g.bin", [leaf("w", 4, 3, flags=PARAM, data=values.tobytes()), node("SQR", 0)], [1])
    graph = read(tmp_path / "g.bin")
    index = graph.find("w")
    assert index is not None
    array = graph.array(index)
    assert array.tolist() == values.tolist()
    assert not array.flags.writeable
    assert graph.offsets == (24 + 244, -1)


def test_a_computed_tensor_has_no_data() -> None:
    graph = parse(to_bytes(SMALL, ROOTS))
    y = graph.find("y")
    assert y is not None
    with pytest.raises(UsageError, match="no data"):
        graph.array(y)


def test_the_unary_number_is_the_writers_business() -> None:
    data = to_bytes(SMALL, ROOTS)
    graph = parse(data)
    assert [(n.unary, n.op_params[:4]) for n in graph.nodes if n.op == "UNARY"] == [("SILU", bytes(4))]
    assert struct.pack("<II", 0, V2.op_number["UNARY"]) in data


def test_size_eval_is_the_padded_size_of_all_nodes_and_the_slack() -> None:
    placed = order(SMALL, ROOTS, V2)
    padded = 48 * 3 + 2 * 16 + 8 + 2 * 32 + 8  # w, node_1, node_2: 48; view spans 40 -> 48; cont and y: 24 -> 32
    assert parse(to_bytes(SMALL, ROOTS, slack=0)).size_eval == padded
    assert parse(to_bytes(SMALL, ROOTS)).size_eval == padded + work_nbytes(placed)


def test_the_slack_holds_a_row_per_thread_and_a_converted_operand() -> None:
    rows = order([leaf("a", 1000, 3), node("SOFT_MAX", 0, ne=(1000, 3))], [1], V2)
    assert work_nbytes(rows) >= 64 * 1000 * 4
    half = [leaf("w", 1000, 3, type="F16"), leaf("x", 1000, 5000), node("MUL_MAT", 0, 1, ne=(3, 5000))]
    assert work_nbytes(order(half, [2], V2)) >= 1000 * 5000 * 2


def test_an_input_without_data_is_zeros() -> None:
    graph = parse(to_bytes([replace(leaf("x", 4, 3), data=None), node("SQR", 0)], [1]))
    assert not graph.array(0).any()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([replace(leaf("w", 4, 3, flags=PARAM), data=None), node("SQR", 0)], "has no data"),
        ([leaf("x", 4, 3, data=b"short"), node("SQR", 0)], "5 bytes, not 48"),
        ([leaf("x", 4, 3, data=bytes(49)), node("SQR", 0)], "49 bytes, not 48"),
        ([leaf("x", 4, 3), node("SQR", 0, name="x")], "two tensors are named 'x'"),
        ([leaf("node_0", 4, 3), node("SQR", 0)], "two tensors are named 'node_0'"),
        ([leaf("x" * 64, 4, 3), node("SQR", 0)], "64 bytes or longer"),
        ([leaf("ラ" * 22, 4, 3), node("SQR", 0)], "64 bytes or longer"),
        ([leaf("a\nb", 4, 3), node("SQR", 0)], "control characters"),
        ([leaf("x", 15, type="I8"), node("SQR", 0)], "pad it to a multiple of 4"),
        ([replace(leaf("x", 4, 3), nb=(4, 32, 96, 96)), node("SQR", 0)], "contiguous"),
        ([leaf("x", 4, 3), node("SQR", *[0] * 11)], "11 sources"),
        ([leaf("x", 4, 3), replace(node("SQR", 0), op_params=bytes(64) + b"x")], "op_params"),
    ],
)
def test_a_graph_that_real_importers_would_misread_is_not_written(records: list[Record], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_bytes(records, [1])


@pytest.mark.parametrize("record", [node("SWIGLU", 0), node("UNARY", 0, unary="MISH")])
def test_what_a_dialect_has_no_number_for_is_unsupported(record: Record) -> None:
    with pytest.raises(UnsupportedError):
        to_bytes([leaf("x", 4, 3), record], [1])


def test_a_root_outside_the_records_is_refused() -> None:
    with pytest.raises(UsageError, match="root 7"):
        to_bytes([leaf("x", 4, 3)], [7])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "g.bin"
    write(path, SMALL, ROOTS)
    before = path.read_bytes()

    def torn() -> Iterator[bytes]:
        yield bytes(4)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(path, [replace(leaf("x", 4, 3), data=torn), node("SQR", 0)], [1])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Sink(io.RawIOBase):
    """Counts and forgets."""

    nbytes = 0

    def write(self, data: Any) -> int:
        self.nbytes += len(data)
        return len(data)


def test_weights_are_streamed() -> None:
    chunk = bytes(1 << 20)
    record = replace(
        node("NONE", ne=(1 << 20, 1 << 8), name="w"), flags=PARAM, data=lambda: itertools.repeat(chunk, 1024)
    )
    sink = Sink()
    tracemalloc.start()
    dump(sink, [record, node("SQR", 0, ne=(1 << 20, 1 << 8))], [1])  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sink.nbytes > 1 << 30
    assert peak < 1 << 20


# ---------------------------------------------------------------- against ggml's own files


def load_oracle() -> Any:
    if not ORACLE.exists():
        pytest.skip("for want of the oracle's writer, ../shared/oracle")
    spec = importlib.util.spec_from_file_location("oracle_cgraph", ORACLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_records(oracle: Any, root: Any) -> list[Record]:
    """The oracle's tensors as records, each after its sources but in another order than the file's."""
    type_names = {number: name for name, number in V2.types.items()}
    records: list[Record] = []
    number: dict[int, int] = {}

    def visit(t: Any) -> int:
        if id(t) in number:
            return number[id(t)]
        src = tuple(-1 if s is None else visit(s) for s in reversed(t.src))[::-1]
        params = t.params.ljust(64, b"\0")
        unary = V2.unary[params[0]] if t.op == "UNARY" else None
        data = None if t.data is None else lambda: [t.data.tobytes()]
        records.append(Record(t.name.decode(), type_names[t.type], tuple(t.ne), tuple(t.nb), t.op, unary, t.flags,
                              params, src, data))  # fmt: skip
        number[id(t)] = len(records) - 1
        return number[id(t)]

    visit(root)
    return records


def reordered(records: Sequence[Record], roots: Sequence[int], dialect: str) -> bytes:
    """A file whose names may repeat, as those that ggml gives to views do."""
    stream = io.BytesIO()
    emit(stream, order(records, roots, DIALECTS[dialect]), DIALECTS[dialect], 0)
    return stream.getvalue()


@pytest.mark.parametrize("rope_mode", [0, 2])
@pytest.mark.parametrize("dialect", WRITTEN)
def test_the_oracles_block_is_written_byte_for_byte(dialect: str, rope_mode: int, tmp_path: Path) -> None:
    oracle = load_oracle()
    records = to_records(oracle, oracle.model(oracle.Builder(dialect), oracle.weights(), rope_mode)[0])
    oracle.write([oracle.model(oracle.Builder(dialect), oracle.weights(), rope_mode)[0]], str(tmp_path / "o"), dialect)
    assert reordered(records, [len(records) - 1], dialect) == (tmp_path / "o").read_bytes()


@pytest.mark.parametrize("rope_mode", [0, 2])
@pytest.mark.parametrize("dialect", WRITTEN)
def test_a_file_of_real_ggml_is_rewritten_byte_for_byte(dialect: str, rope_mode: int) -> None:
    path = GRAPHS / f"block_{dialect}_rope{rope_mode}.ggml"
    if not path.exists():
        pytest.skip("for want of ggml's sample files, ../shared/data/graphs")
    graph = read(path, dialect)
    assert (len(graph.leafs), len(graph.nodes)) == (15, 42)
    assert reordered(graph.records, [len(graph.records) - 1], dialect) == path.read_bytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the oracle leaves the file to the garbage collector
def test_the_oracle_reads_our_file_as_we_wrote_it(tmp_path: Path) -> None:
    oracle = load_oracle()
    write(tmp_path / "g.bin", SMALL, ROOTS)
    leafs, nodes, _, rest = oracle.read(str(tmp_path / "g.bin"), "v2")
    assert rest == 0
    graph = read(tmp_path / "g.bin")
    for theirs, ours in zip([*leafs, *nodes], graph.records, strict=True):
        assert (theirs.name.decode(), theirs.op, tuple(theirs.ne), tuple(theirs.nb), theirs.flags) == (
            ours.name, ours.op, ours.ne, ours.nb, ours.flags,
        )  # fmt: skip
        if theirs.data is not None:
            assert ours.data is not None
            assert theirs.data.tobytes() == b"".join(ours.data())


# ---------------------------------------------------------------- any graph


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Record], list[int]]:
    """Leafs of all kinds and nodes over them, in any order that has sources first."""
    records: list[Record] = []
    letters = st.characters(exclude_categories=["C", "Z"])
    for i in range(draw(st.integers(1, 12))):
        ne = sizes(*draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
        name = f"{draw(st.text(letters, max_size=4))}{i}"
        flags = draw(st.sampled_from([0, INPUT, OUTPUT]))
        if not records or draw(st.booleans()):
            kind = draw(st.sampled_from(["F32", "I32", "I64", "F64", "PARAM"]))
            is_param = kind == "PARAM"
            record = leaf(name, *ne, type="F32" if is_param else kind, flags=flags | (PARAM if is_param else 0))
            payload = draw(st.binary(min_size=record.nbytes, max_size=record.nbytes))
            records.append(replace(record, data=lambda payload=payload: [payload[:5], payload[5:]]))
            continue
        src = draw(st.lists(st.integers(-1, len(records) - 1), min_size=1, max_size=10))
        op = draw(st.sampled_from(["ADD", "UNARY", "CONT", "RESHAPE", "ROPE"]))
        record = node(op, *src, ne=ne, name=name, unary=draw(st.sampled_from(V2.unary)) if op == "UNARY" else None)
        params = draw(st.binary(min_size=60, max_size=60))
        records.append(replace(record, flags=flags, op_params=bytes(4) + params))
    roots = draw(st.lists(st.integers(0, len(records) - 1), min_size=1, max_size=4))
    return records, roots


def contents(graph: CGraph | Order) -> list[tuple[Record, bytes]]:
    records = [replace(r, src=strip(r.src)) for r in (*graph.leafs, *graph.nodes)]
    return [(r, b"".join(r.data()) if r.data else b"") for r in records]


@settings(deadline=None)
@given(graphs())
def test_every_graph_is_read_as_it_was_written(graph: tuple[list[Record], list[int]]) -> None:
    records, roots = graph
    assert contents(parse(to_bytes(records, roots))) == contents(order(records, roots, V2))


@settings(deadline=None)
@given(graphs())
def test_a_file_is_rewritten_byte_for_byte(graph: tuple[list[Record], list[int]]) -> None:
    data = to_bytes(*graph, slack=0)
    again = parse(data)
    placed = Order(again.leafs, again.nodes)
    stream = io.BytesIO()
    emit(stream, placed, V2, 0)
    assert stream.getvalue() == data


# ---------------------------------------------------------------- malformed files

DATA = to_bytes(SMALL, ROOTS)
PARSED = parse(DATA)


def starts() -> dict[str, int]:
    """Where each record starts in DATA."""
    at, found = V2.header.nbytes, {}
    for k, record in enumerate(PARSED.records):
        found[record.name] = at
        at += (V2.leaf if k < len(PARSED.leafs) else V2.node).nbytes
        at += record.nbytes if PARSED.offsets[k] >= 0 else 0
    return found


AT = starts()


def patched(at: int, new: bytes) -> bytes:
    return DATA[:at] + new + DATA[at + len(new) :]


def u32(x: int) -> bytes:
    return struct.pack("<I", x & 0xFFFFFFFF)


def u64(x: int) -> bytes:
    return struct.pack("<Q", x & 0xFFFFFFFFFFFFFFFF)


def field(record: str, name: str, index: int = 0) -> int:
    """Offset of a field in DATA."""
    layout = V2.node if record in {n.name for n in PARSED.nodes} else V2.leaf
    return AT[record] + layout.offset(name) + 4 * index


WRONG: list[tuple[str, int, bytes, str, str]] = [
    ("magic", 0, b"GGUF", "BadMagic", "not a ggml graph"),
    ("big-endian", 0, b"ggml", "BadMagic", "big-endian"),
    ("version", 4, u32(1), "BadVersion", "version is 1"),
    ("leafs", 8, u32(0xFFFFFFFF), "BadCount", "do not fit"),
    ("nodes", 12, u32(0x80000000), "BadCount", "do not fit"),
    ("one node more", 12, u32(7), "BadCount", "do not fit"),
    ("one leaf less", 8, u32(2), "BadSource", "node 0"),
    ("one node less", 12, u32(5), "TrailingBytes", "bytes after the last tensor"),
    ("size_eval", 16, u64(100), "BadEvalSize", "size_eval is 100"),
    ("leaf type", field("x", "type"), u32(99), "BadType", "leaf 0 'x': type is 99"),
    ("removed type", field("x", "type"), u32(4), "BadType", "type is 4"),
    ("leaf op", field("x", "op"), u32(2), "BadLeaf", "op is ADD"),
    ("op", field("y", "op"), u32(9999), "BadOp", "node 5 'y': op is 9999"),
    ("count", field("y", "op"), u32(81), "BadOp", "op is 81"),
    ("leaf param", field("x", "flags"), u32(PARAM), "BadParam", "a parameter among the leafs"),
    ("flags", field("x", "flags"), u32(16), "BadFlags", "10 are unknown"),
    ("negative flags", field("y", "flags"), u32(-1), "BadFlags", "are unknown"),
    ("node param", field("y", "flags"), u32(PARAM), "BadParam", "computed, yet a parameter"),
    ("param type", field("w", "type"), u32(V2.types["I32"]), "BadParam", "not float32"),
    ("param flag", field("w", "flags"), u32(0), "BadParam", "neither an op nor a parameter"),
    ("param src", field("w", "src"), u32(0), "BadParam", "a parameter with a source"),
    ("no size", field("x", "ne0"), u64(0), "BadSize", "size 0 of dimension 0"),
    ("negative size", field("x", "ne1"), u64(-5), "BadSize", "size -5 of dimension 1"),
    ("huge size", field("x", "ne0"), u64(1 << 41), "BadSize", "of dimension 0"),
    ("elements", field("node_1", "ne2"), u64(1 << 40) + u64(48) + u64(1 << 40), "BadSize", "more than 2^48"),
    ("rows of blocks", field("x", "type"), u32(V2.types["Q4_0"]), "BadSize", "whole blocks of 32"),
    ("longer data", field("note", "ne0"), u64(1 << 39) + u64(1) + u64(1) + u64(1 << 39) + u64(1) + u64(1 << 39)
     + u64(1) + u64(1 << 39), "Truncated", "but the file ends after"),
    ("strides", field("x", "nb1"), u64(1 << 40), "BadStride", "stride of dimension 1 is 1099511627776"),
    ("odd view stride", field("node_3", "nb1"), u64(17), "BadStride", "is 17"),
    ("view stride", field("node_3", "nb1"), u64(-4), "BadStride", "stride of dimension 1 is -4"),
    ("name without end", field("x", "name"), b"x" * 64, "BadName", "does not end"),
    ("no name", field("x", "name"), bytes(64), "BadName", "empty"),
    ("name not UTF-8", field("x", "name"), b"\xff", "BadName", "not UTF-8"),
    ("escape in a name", field("x", "name"), b"\x1b[2J", "BadName", "the control character U+001B"),
    ("leaf op_params", field("x", "op_params"), b"\1", "BadOpParams", "word 0 is set, but there is no op"),
    ("unary", field("node_2", "op_params"), u32(14), "BadOp", "unary op is 14"),
    ("src before none", field("y", "src"), u32(-2), "BadSource", "src[0] is -2"),
    ("src itself", field("y", "src"), u32(8), "BadSource", "src[0] is 8, which is none of the 8 tensors before"),
    ("src far", field("y", "src", 1), u32(0x7FFFFFFF), "BadSource", "src[1] is"),
    ("src later", field("node_1", "src"), u32(5), "BadSource", "src[0] is 5"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("at", "new", "code", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_a_wrong_field_is_a_format_error_at_its_offset(at: int, new: bytes, code: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(patched(at, new))
    assert message in str(caught.value)
    assert caught.value.code == code
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(DATA)


def test_an_error_of_a_file_names_file_byte_and_node(tmp_path: Path) -> None:
    at = field("y", "src", 1)
    (tmp_path / "bad.bin").write_bytes(patched(at, u32(900)))
    with pytest.raises(
        FormatError, match=rf"bad\.bin: byte {at:#x}: node 5 'y' \(ROPE\): src\[1\] is 900.*\[BadSource\]"
    ) as caught:
        read(tmp_path / "bad.bin")
    assert caught.value.offset == at


@pytest.mark.parametrize("op", [op for op in V2.ops if op.startswith("MAP_")])
def test_an_op_that_calls_a_function_pointer_is_unsupported(op: str) -> None:
    with pytest.raises(UnsupportedError, match="outside the file"):
        parse(patched(field("y", "op"), u32(V2.op_number[op])))


def test_the_tail_of_an_older_name_is_ignored() -> None:
    graph = parse(patched(field("x", "name"), b"x\0older name"))
    assert graph.leafs[0].name == "x"


def test_an_empty_file_and_a_directory_are_typed_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="the file ends inside the header"):
        read(tmp_path / "empty")
    with pytest.raises(UsageError, match="not a regular file"):
        read(tmp_path)


def test_every_truncation_is_a_format_error() -> None:
    for length in range(len(DATA)):
        with pytest.raises(FormatError):
            parse(DATA[:length])


def test_bytes_after_the_last_node_are_a_format_error() -> None:
    with pytest.raises(FormatError, match="1 bytes after the last tensor") as caught:
        parse(DATA + b"\0")
    assert caught.value.offset == len(DATA)


def test_every_changed_byte_gives_a_graph_or_a_typed_error() -> None:
    for at in range(len(DATA)):
        for new in {0x00, 0xFF, DATA[at] ^ 0x01, DATA[at] ^ 0x80, (DATA[at] + 1) % 256}:
            with contextlib.suppress(FormatError, UnsupportedError):
                graph = parse(patched(at, bytes([new])))
                for index, offset in enumerate(graph.offsets):
                    if offset >= 0:
                        graph.array(index)


@settings(deadline=None)
@given(st.binary(max_size=400).map(lambda tail: DATA[:24] + tail) | st.binary(max_size=600))
def test_any_bytes_give_a_graph_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(GGError):
        parse(data)
