"""Files of the ggml of 2023: what its releases exported is read and computed as they computed it, or refused.

tests/data/ggml2023 was written by them (peers/old_ggml.py).
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from places import DATA
from readers import disagreement, read_in_c, read_in_python

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import identify
from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.graphfile import reader, records, writer
from ggmlgraph.graphfile.records import CGraph, Record, dense_strides
from ggmlgraph.graphfile.rewrite import rewrite
from ggmlgraph.table.dialect import DIALECTS, TYPES

GGML2023 = DATA / "ggml2023"
OLD = [d for d in DIALECTS.values() if not d.is_written]
FILES = sorted(GGML2023.glob("*.ggml"))
REFUSED = GGML2023 / "transformer_v1i.ggml"
READ = [path for path in FILES if path != REFUSED]
HALF_TABLES = 1e-3  # of the largest value: SiLU and exp came from tables of half-precision numbers


def result(path: Path) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.fromfile(path.with_suffix(".f32"), "<f4")


def test_there_are_two_files_of_every_dialect() -> None:
    assert {path.stem for path in FILES} == {f"{graph}_{d.name}" for graph in ("mlp", "transformer") for d in OLD}


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_a_file_is_computed_as_the_ggml_that_wrote_it_did(path: Path) -> None:
    with gg.Runtime(path, threads=1) as rt:
        (y,) = rt.forward("y")
    expected = result(path)
    assert np.abs(y.ravel() - expected).max() < HALF_TABLES * np.abs(expected).max()


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_its_dialect_is_found(path: Path) -> None:
    assert identify(path) == path.stem.partition("_")[2]


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_both_readers_read_the_same(path: Path) -> None:
    assert disagreement(path.read_bytes(), identify(path)) == (None, "accepted")


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_rewritten_in_the_newest_dialect_it_computes_the_same(path: Path, tmp_path: Path) -> None:
    rewrite(path, tmp_path / "new.bin", "v2", identify(path))
    with gg.Runtime(path, threads=1) as old, gg.Runtime(tmp_path / "new.bin", threads=1, dialect="v2") as new:
        np.testing.assert_array_equal(old.forward("y")[0], new.forward("y")[0])


def test_a_permutation_whose_axes_were_not_stored_is_refused() -> None:
    with pytest.raises(FormatError, match=r"\(PERMUTE\): src\[2\] is missing, which holds the op's words"):
        gg.Runtime(REFUSED)


def test_the_commands_do_not_write_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rewrite", str(FILES[0]), str(tmp_path / "out.bin"), "--dialect", "v1a"]) == 2
    assert "'v1a' is not one of 'v2', 'v2a', 'v1'" in capsys.readouterr().err


# ---------------------------------------------------------------- ops that were another


def changed(path: Path, dialect: str, name: str, field: str, value: bytes, at: int = 0) -> bytes:
    """A file with other bytes in a field of the first record that has this op."""
    content, graph = path.read_bytes(), reader.read(path, dialect)
    begin = DIALECTS[dialect].header.nbytes
    for k, record in enumerate(graph.records):
        layout = DIALECTS[dialect].leaf if k < len(graph.leafs) else DIALECTS[dialect].node
        if record.op == name or record.name == name:
            start = begin + layout.offset(field) + at
            return content[:start] + value + content[start + len(value) :]
        begin += layout.nbytes + (DIALECTS[dialect].data_nbytes(record.nbytes) if graph.offsets[k] >= 0 else 0)
    raise KeyError(name)


def refusal(content: bytes, dialect: str) -> GGError:
    """What both readers say."""
    c, python = read_in_c(content, dialect), read_in_python(content, dialect)
    assert isinstance(c, GGError)
    assert isinstance(python, GGError)
    assert (c.code, c.offset) == (python.code, python.offset)
    return c


@pytest.mark.parametrize(("dialect", "op"), [(d.name, op) for d in OLD for op in d.ops if op in d.refused])
def test_an_op_that_meant_something_else_is_refused_by_name_and_node(dialect: str, op: str) -> None:
    number = struct.pack("<I", DIALECTS[dialect].op_number[op])
    error = refusal(changed(GGML2023 / f"mlp_{dialect}.ggml", dialect, "MUL_MAT", "op", number), dialect)
    assert isinstance(error, UnsupportedError)
    assert error.code == "UnsupportedOp"
    assert f"node 0 'node_0' ({op})" in str(error)


@pytest.mark.parametrize("dialect", ["v1a", "v1b", "v1c", "v1d", "v1e"])
def test_a_rotation_of_part_of_a_row_was_another_one(dialect: str) -> None:
    content = changed(GGML2023 / f"transformer_{dialect}.ggml", dialect, "ROPE", "op_params", struct.pack("<I", 2), 4)
    error = refusal(content, dialect)
    assert error.code == "UnsupportedOpParams"
    assert "with 0x2 for word 1" in str(error)


def test_a_norm_without_eps_is_of_a_version_that_did_not_store_it() -> None:
    error = refusal(changed(GGML2023 / "mlp_v1f.ggml", "v1f", "NORM", "op_params", bytes(4)), "v1f")
    assert (error.code, "for word 0 dialect v1f" in str(error)) == ("UnsupportedOpParams", True)


def test_a_factor_has_one_element() -> None:
    graph = reader.read(GGML2023 / "mlp_v1a.ggml", "v1a")
    other = struct.pack("<i", graph.find("gain") or 0)
    content = bytearray((GGML2023 / "mlp_v1a.ggml").read_bytes())
    scale = content.rindex(struct.pack("<3I", 0, DIALECTS["v1a"].op_number["SCALE"], 2))
    at = scale + DIALECTS["v1a"].node.offset("src")
    content[at + 4 : at + 8] = other
    error = refusal(bytes(content), "v1a")
    assert (error.code, error.offset) == ("BadShape", at + 4)


# ---------------------------------------------------------------- records of 2023


@pytest.mark.parametrize("n_dims", [0, 5, 1 << 31])
def test_the_number_of_dimensions_is_1_to_4(n_dims: int) -> None:
    error = refusal(changed(GGML2023 / "mlp_v1a.ggml", "v1a", "MUL_MAT", "n_dims", struct.pack("<I", n_dims)), "v1a")
    assert error.code == "BadSize"


def test_a_leaf_has_no_more_dimensions_than_it_says() -> None:
    error = refusal(changed(GGML2023 / "mlp_v1a.ggml", "v1a", "w1", "n_dims", struct.pack("<I", 1)), "v1a")
    assert (error.code, "1 dimensions, but the size of dimension 1 is 6" in str(error)) == ("BadSize", True)


def words_in_a_leaf(words: list[int], op: str = "VIEW", type: str = "I32") -> bytes:
    """A file of v1i with an op whose words lie in its source 2, of a leaf x of 6 numbers."""

    def leaf(name: str, n: int, data: bytes, type: str = "F32") -> Record:
        ne = (n, 1, 1, 1)
        return Record(name, type, ne, dense_strides(TYPES[type], ne), data=lambda: [data])

    x = leaf("x", 6, np.arange(6, dtype=np.float32).tobytes())
    offset = leaf("offset", len(words), struct.pack(f"<{len(words)}i", *words), type)
    y = Record("y", "F32", (2, 1, 1, 1), (4, 8, 8, 8), "ADD", src=(0, -1, 1))
    z = Record("z", "F32", (2, 1, 1, 1), (4, 8, 8, 8), "DUP", src=(2,))
    stream = io.BytesIO()
    writer.emit(stream, records.Order((x, offset), (y, z)), DIALECTS["v1i"], 64)
    content = bytearray(stream.getvalue())
    at = len(content) - 2 * DIALECTS["v1i"].node.nbytes + 4
    content[at : at + 4] = struct.pack("<I", DIALECTS["v1i"].op_number[op])
    return bytes(content)


def test_words_of_an_op_may_lie_in_a_leaf(tmp_path: Path) -> None:
    (tmp_path / "g.bin").write_bytes(words_in_a_leaf([12, 0]))
    with gg.Runtime(tmp_path / "g.bin", threads=1, dialect="v1i") as rt:
        assert rt.forward("z")[0].tolist() == [3, 4]
    graph = reader.read(tmp_path / "g.bin", "v1i")
    assert isinstance(graph, CGraph)
    assert graph.nodes[0].src == (0,)
    assert isinstance(read_in_c(words_in_a_leaf([12, 0]), "v1i"), CoreGraph)


@pytest.mark.parametrize("words", [[12], [12, 0, 0], [12, 0, 0, 0]])
def test_a_leaf_holds_exactly_the_words_of_the_op(words: list[int]) -> None:
    error = refusal(words_in_a_leaf(words), "v1i")
    assert (error.code, "is no leaf of the op's 2 words" in str(error)) == ("BadOpParams", True)


def test_the_record_of_an_op_is_the_newest_dialects() -> None:
    graph = reader.read(GGML2023 / "mlp_v1i.ggml", "v1i")
    ops = [(r.op, r.unary) for r in graph.nodes]
    assert ("UNARY", "SILU") in ops
    assert ("MUL", None) in ops
    assert ("SCALE", None) not in ops
    norm = next(r for r in graph.nodes if r.op == "NORM")
    assert struct.unpack_from("<f", norm.op_params)[0] == np.float32(1e-5)
