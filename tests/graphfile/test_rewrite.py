"""The same graph in every dialect: the importer finds out which, nothing is lost on the way, training is the same."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from places import REAL

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.core.importer import identify, import_file
from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.graphfile import metadata, reader, writer
from ggmlgraph.graphfile.records import Order, Record, dense_strides
from ggmlgraph.graphfile.rewrite import rewrite
from ggmlgraph.models import gpt_neox, llama
from ggmlgraph.table.dialect import INPUT, LOSS, OUTPUT, PARAM, TYPES, V1, V2, WRITTEN

GRAPHS = REAL / "graphs"
LLAMA = llama.Config(n_vocab=11, n_embd=8, n_head=2, n_head_kv=1, n_layer=1, n_ff=12)
NEOX = gpt_neox.Config(n_vocab=11, n_embd=8, n_head=2, n_layer=1, rotary_pct=0.5)
PAIRS = [(a, b) for a in WRITTEN for b in WRITTEN]


def export(path: Path, dialect: str, model: str = "llama") -> Path:
    loss, config = (llama.loss, LLAMA) if model == "llama" else (gpt_neox.loss, NEOX)
    gg.trace(loss, config, batch=2, ctx=6).save(path, seed=1, dialect=dialect)
    return path


def small(op: str, dialect: str, *nodes: Record) -> bytes:
    """y = op(x) in a file."""
    ne, nb = (4, 3, 1, 1), dense_strides(TYPES["F32"], (4, 3, 1, 1))
    records = [Record("x", "F32", ne, nb, flags=INPUT), Record("y", "F32", ne, nb, op, src=(0,), flags=OUTPUT)]
    stream = io.BytesIO()
    writer.dump(stream, [*records, *nodes], [1], dialect)
    return stream.getvalue()


# ---------------------------------------------------------------- which dialect


@pytest.mark.parametrize("dialect", WRITTEN)
@pytest.mark.parametrize("model", ["llama", "gpt_neox"])
def test_the_dialect_of_a_model_is_found_out(model: str, dialect: str, tmp_path: Path) -> None:
    assert identify(export(tmp_path / "graph.bin", dialect, model)) == dialect


def test_a_file_that_two_dialects_read_differently_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.bin"
    path.write_bytes(small("NORM", "v2"))  # v2a's RMS_NORM
    with pytest.raises(FormatError, match="valid as v2 or v2a, which read it as different graphs"):
        import_file(path)
    assert import_file(path, "v2").op(1) == "norm"
    assert import_file(path, "v2a").op(1) == "rms_norm"


def test_a_file_that_two_dialects_read_as_the_same_graph_is_read(tmp_path: Path) -> None:
    (tmp_path / "graph.bin").write_bytes(small("SQR", "v2a"))
    assert import_file(tmp_path / "graph.bin").op(1) == "sqr"


def test_a_file_of_no_dialect_is_refused_with_the_reason_of_the_closest(tmp_path: Path) -> None:
    path = export(tmp_path / "graph.bin", "v1")
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(FormatError, match=r"none of the 63 tensors before \(as dialect v1\)"):
        import_file(path)
    path.write_bytes(small("SQR", "v2")[:-1])
    with pytest.raises(FormatError, match=r"do not fit in the|ends inside") as caught:
        import_file(path)
    assert caught.value.offset is not None


def test_a_version_that_no_dialect_has_is_refused(tmp_path: Path) -> None:
    data = small("SQR", "v2")
    (tmp_path / "graph.bin").write_bytes(data[:4] + struct.pack("<I", 3) + data[8:])
    with pytest.raises(FormatError, match="version is 3"):
        import_file(tmp_path / "graph.bin")


def test_an_unknown_dialect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GGError, match="no dialect v9"):
        import_file(export(tmp_path / "graph.bin", "v2"), "v9")


# ---------------------------------------------------------------- the importer in C on v1


def v1_rope(word: int, value: int) -> bytes:
    """A rope in v1 with one op_params word changed."""
    ne, nb = (4, 1, 3, 1), dense_strides(TYPES["F32"], (4, 1, 3, 1))
    params = struct.pack("<5i6f", 0, 4, 0, 0, 0, 1e4, 1, 0, 1, 0, 0)
    records = [Record("x", "F32", ne, nb), Record("p", "I32", (3, 1, 1, 1), (4, 12, 12, 12)),
               Record("y", "F32", ne, nb, "ROPE", src=(0, 1), op_params=params)]  # fmt: skip
    stream = io.BytesIO()
    writer.dump(stream, records, [2], "v1")
    data = bytearray(stream.getvalue())
    struct.pack_into("<I", data, len(data) - V1.node.nbytes + V1.node.offset("op_params") + 4 * word, value)
    return bytes(data)


def test_the_context_size_that_v1_stores_with_a_rope_has_no_effect(tmp_path: Path) -> None:
    (tmp_path / "graph.bin").write_bytes(v1_rope(3, 2048))
    graph = import_file(tmp_path / "graph.bin")
    assert graph.tensor(2).op_params[3] == 0


def test_xpos_is_not_supported(tmp_path: Path) -> None:
    (tmp_path / "graph.bin").write_bytes(v1_rope(11, 1))
    with pytest.raises(UnsupportedError, match=r"\(ROPE\): op_params word 11 is set, in dialect v1"):
        import_file(tmp_path / "graph.bin")


def test_a_parameter_node_of_v1_has_no_data_and_is_refused(tmp_path: Path) -> None:
    data = bytearray(small("SQR", "v1"))
    struct.pack_into("<I", data, len(data) - V1.node.nbytes + V1.node.offset("op"), 0)
    (tmp_path / "graph.bin").write_bytes(bytes(data))
    with pytest.raises(UnsupportedError, match="of which dialect v1 stores no data"):
        import_file(tmp_path / "graph.bin")
    with pytest.raises(UnsupportedError, match="stores no data"):
        reader.read(tmp_path / "graph.bin", "v1")


def test_any_changed_byte_of_a_v1_file_gives_a_typed_error_or_a_valid_load(tmp_path: Path) -> None:
    valid = export(tmp_path / "graph.bin", "v1").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(valid), 500):
        changed = bytearray(valid)
        changed[at] ^= int(rng.integers(1, 256))
        (tmp_path / "graph.bin").write_bytes(bytes(changed))
        try:
            import_file(tmp_path / "graph.bin")
        except GGError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


# ---------------------------------------------------------------- rewriting


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("model", ["llama", "gpt_neox"])
def test_a_file_is_rewritten_to_the_bytes_of_an_export(model: str, source: str, target: str, tmp_path: Path) -> None:
    rewrite(export(tmp_path / "in.bin", source, model), tmp_path / "out.bin", target, source)
    assert (tmp_path / "out.bin").read_bytes()[24:] == export(tmp_path / "x", target, model).read_bytes()[24:]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_graph_of_real_ggml_comes_back_from_any_dialect(source: str, target: str, tmp_path: Path) -> None:
    path = GRAPHS / f"block_{source}_rope2.ggml"
    if not path.exists():
        pytest.skip("for want of ggml's sample files, ../shared/data/graphs")
    rewrite(path, tmp_path / "there.bin", target, source)
    rewrite(tmp_path / "there.bin", tmp_path / "back.bin", source, target)
    assert (tmp_path / "back.bin").read_bytes() == path.read_bytes()


def test_flags_of_a_graph_without_metadata_get_a_leaf_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "in.bin").write_bytes(small("SQR", "v2"))
    rewrite(tmp_path / "in.bin", tmp_path / "out.bin", "v1", "v2")
    with gg.Runtime(tmp_path / "out.bin", dialect="v1") as rt:
        assert rt.metadata.flags == {"x": INPUT, "y": OUTPUT}
        assert rt.inputs == ["x"]


def test_fields_of_metadata_that_a_later_version_wrote_survive(tmp_path: Path) -> None:
    text = msgspec.json.encode({"model": "m", "later": [1, 2]}).ljust(32)
    n = len(text)
    note = Record(metadata.LEAF_NAME, "I8", (n, 1, 1, 1), (1, n, n, n), data=lambda: [text])
    (tmp_path / "in.bin").write_bytes(small("SQR", "v2", note))
    rewrite(tmp_path / "in.bin", tmp_path / "out.bin", "v1", "v2")
    assert b'"later":[1,2]' in (tmp_path / "out.bin").read_bytes()


def test_two_tensors_of_one_name_cannot_have_flags_in_metadata(tmp_path: Path) -> None:
    data = small("SQR", "v2")
    at = len(data) - V2.node.nbytes + V2.node.offset("name")
    (tmp_path / "in.bin").write_bytes(data[:at] + b"x" + data[at + 1 :])
    with pytest.raises(UnsupportedError, match="two tensors are named 'x'"):
        rewrite(tmp_path / "in.bin", tmp_path / "out.bin", "v1", "v2")
    assert not (tmp_path / "out.bin").exists()


# ---------------------------------------------------------------- flags from the metadata


@pytest.mark.parametrize("dialect", ["v2a", "v1"])
def test_a_graph_trains_the_same_from_any_dialect(dialect: str, tmp_path: Path) -> None:
    batch = np.random.default_rng(2).integers(0, 11, (2, 2, 6), dtype=np.int32)
    results = []
    for name in ("v2", dialect):
        with gg.Runtime(export(tmp_path / name, name), threads=1) as rt:
            steps = [rt.step((batch[0], batch[1]), lr=1e-2) for _ in range(3)]
            results.append((steps, sorted(rt.params), rt.inputs))
    (steps, params, inputs), (other_steps, other_params, other_inputs) = results
    assert [s.loss for s in steps] == [s.loss for s in other_steps]
    assert params == other_params
    assert sorted(inputs) == sorted(other_inputs)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"nothing": PARAM}, "no tensor 'nothing'"),
        ({"loss": PARAM | LOSS}, "no float32 leaf"),
        ({"tokens": PARAM}, "no float32 leaf"),
        ({"loss": 16}, "metadata"),
        ({"loss": 0}, "metadata"),
    ],
)
def test_flags_that_no_tensor_can_have_are_refused(flags: dict[str, int], message: str, tmp_path: Path) -> None:
    graph = reader.read(export(tmp_path / "graph.bin", "v1"), "v1")
    at = graph.find(metadata.LEAF_NAME)
    assert at is not None
    text = msgspec.json.encode({"model": "llama", "flags": flags})
    text += b" " * (-len(text) % 16)
    n = len(text)
    leafs = list(graph.leafs)
    leafs[at] = replace(leafs[at], ne=(n, 1, 1, 1), nb=(1, n, n, n), data=lambda: [text])
    with (tmp_path / "bad.bin").open("wb") as stream:
        writer.emit(stream, Order(tuple(leafs), graph.nodes), V1, 0)
    with pytest.raises(FormatError, match=message):
        gg.Runtime(tmp_path / "bad.bin")


# ---------------------------------------------------------------- the command


def test_the_command_finds_the_dialect_and_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(tmp_path / "in.bin", "v2a")
    assert run(["rewrite", str(tmp_path / "in.bin"), str(tmp_path / "out.bin"), "--dialect", "v1"]) == 0
    assert "out.bin: v1, " in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "out.bin")]) == 0
    assert "dialect v1" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "out.bin"), "--dialect", "v2"]) == 1
    assert "version is 1, dialect v2 has 2" in capsys.readouterr().err
