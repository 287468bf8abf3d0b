"""The C importer on files: what it accepts runs, what it refuses it refuses in one line with a byte offset."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.core.importer import import_file
from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.graphfile import records, writer
from ggmlgraph.models import gpt_neox, llama
from ggmlgraph.table import dialect
from ggmlgraph.table.op import TABLE

LEAF, NODE = dialect.V2.leaf, dialect.V2.node
SMALL = llama.Config(n_vocab=5, n_embd=4, n_head=1, n_layer=1, n_ff=4)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("graph") / "graph.bin"
    gg.trace(llama.loss, SMALL, batch=1, ctx=2).save(path)
    return path.read_bytes()


def load(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.bin").write_bytes(content)
    import_file(tmp_path / "graph.bin")


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def find_node(content: bytes, op: str) -> int:
    """Offset of the first record of `op`, found by its op number and a plausible type."""
    number = dialect.V2.op_number[op]
    for at in range(24, len(content) - NODE.nbytes):
        if content[at : at + 8] == struct.pack("<II", 0, number) and content[at + 12 + 64 : at + 12 + 69] == b"node_":
            return at
    raise AssertionError(op)


def test_valid_file_loads(tmp_path: Path, valid: bytes) -> None:
    load(tmp_path, valid)


UNSUPPORTED = {
    "FLASH_ATTN_BACK", "SSM_CONV", "SSM_SCAN", "WIN_PART", "WIN_UNPART", "GET_REL_POS", "ADD_REL_POS", "RWKV_WKV",
    "FLASH_ATTN", "FLASH_FF", "ALIBI", "CONV_1D", "CONV_1D_STAGE_0", "CONV_1D_STAGE_1", "CONV_2D", "CONV_2D_STAGE_0",
    "CONV_2D_STAGE_1",
}  # fmt: skip


@pytest.mark.parametrize("d", dialect.DIALECTS.values(), ids=lambda d: d.name)
def test_every_op_is_done_or_refused_by_its_name_and_that_of_its_node(d: dialect.Dialect, tmp_path: Path) -> None:
    done = {op.ggml for op in TABLE.values()} | {op.unary for op in TABLE.values()} | {"NONE"}
    refused = [op for op in d.ops if op not in done]
    assert {op for op in refused if not op.startswith("MAP_")} == UNSUPPORTED & set(d.ops)
    for op in refused:
        x = records.Record("x", "F32", (4, 1, 1, 1), (4, 16, 16, 16))
        with (tmp_path / "graph.bin").open("wb") as stream:
            writer.dump(stream, [x, replace(x, name="mine", op=op, src=(0,))], [1], d.name)
        with pytest.raises(UnsupportedError, match=rf"node 0 'mine' \({op}\): the op is not supported") as error:
            import_file(tmp_path / "graph.bin", d.name)
        assert error.value.code == "UnsupportedOp"


def test_every_truncation_is_refused_with_an_offset(tmp_path: Path, valid: bytes) -> None:
    for n in range(0, len(valid), 7):
        with pytest.raises(FormatError) as error:
            load(tmp_path, valid[:n])
        assert error.value.offset is not None
        assert "\n" not in str(error.value)


def test_any_changed_byte_gives_a_typed_error_or_a_valid_load(tmp_path: Path, valid: bytes) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(valid), 3000):
        try:
            load(tmp_path, patched(valid, at, bytes([valid[at] ^ int(rng.integers(1, 256))])))
        except GGError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300


def test_trailing_bytes_are_refused(tmp_path: Path, valid: bytes) -> None:
    with pytest.raises(FormatError, match="3 bytes after the last tensor") as error:
        load(tmp_path, valid + b"abc")
    assert error.value.offset == len(valid)


def test_other_files_are_refused_by_their_magic(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a ggml graph"):
        load(tmp_path, b"GGUF" + bytes(100))


def test_huge_counts_are_refused_before_anything_is_allocated(tmp_path: Path, valid: bytes) -> None:
    for at in (8, 12):
        with pytest.raises(FormatError):
            load(tmp_path, patched(valid, at, b"\xff\xff\xff\xff"))


@pytest.mark.parametrize("value", [0, -5, 1 << 41, 1 << 62, -(1 << 63)])
def test_sizes_out_of_range_are_refused(tmp_path: Path, valid: bytes, value: int) -> None:
    at = find_node(valid, "RESHAPE") + LEAF.offset("ne0")
    with pytest.raises(GGError):
        load(tmp_path, patched(valid, at, struct.pack("<q", value)))


@pytest.mark.parametrize("source", [-2, 1 << 20, 2**31 - 1, -(2**31)])
def test_sources_out_of_range_are_refused(tmp_path: Path, valid: bytes, source: int) -> None:
    at = find_node(valid, "MUL_MAT") + NODE.offset("src")
    with pytest.raises(FormatError, match=rf"src\[0\] is {source}, which is none of"):
        load(tmp_path, patched(valid, at, struct.pack("<i", source)))


@pytest.mark.parametrize("op", ["MAP_CUSTOM1", "MAP_UNARY", "SSM_CONV", "FLASH_ATTN_BACK"])
def test_op_that_is_not_supported_is_named(tmp_path: Path, valid: bytes, op: str) -> None:
    at = find_node(valid, "MUL_MAT") + LEAF.offset("op")
    with pytest.raises(UnsupportedError, match=rf"\({op}\): the op is not supported"):
        load(tmp_path, patched(valid, at, struct.pack("<I", dialect.V2.op_number[op])))


def test_op_number_past_the_table_is_refused(tmp_path: Path, valid: bytes) -> None:
    at = find_node(valid, "MUL_MAT") + LEAF.offset("op")
    with pytest.raises(FormatError, match="op is 9999"):
        load(tmp_path, patched(valid, at, struct.pack("<I", 9999)))


def test_parameter_words_an_op_does_not_have_must_be_zero(tmp_path: Path, valid: bytes) -> None:
    at = find_node(valid, "SCALE") + LEAF.offset("op_params") + 4
    with pytest.raises(FormatError, match=r"\(SCALE\): op_params word 1 is 0x1, but the op has none there"):
        load(tmp_path, patched(valid, at, b"\1"))


def test_scale_that_is_not_finite_is_refused(tmp_path: Path, valid: bytes) -> None:
    at = find_node(valid, "SCALE") + LEAF.offset("op_params")
    with pytest.raises(FormatError, match="is not a finite number"):
        load(tmp_path, patched(valid, at, struct.pack("<f", float("nan"))))


def test_view_past_its_source_is_refused(tmp_path: Path) -> None:
    gg.trace(gpt_neox.loss, gpt_neox.Config(n_vocab=5, n_embd=8, n_head=1, n_layer=1), ctx=2).save(tmp_path / "v.bin")
    content = (tmp_path / "v.bin").read_bytes()
    at = find_node(content, "VIEW") + LEAF.offset("op_params")
    for offset in (4096, 1 << 40, 2**63 - 4, 2):
        with pytest.raises(GGError):
            load(tmp_path, patched(content, at, struct.pack("<q", offset)))
