"""Weights that are not float32: products, look-ups and their gradients, files, conversion and training.

The reference is float64 numpy on the decoded weights; test_encoding.py compares the decoders themselves.
"""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
from places import SHARED

from ggmlgraph.core import encoding, passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import identify, import_file
from ggmlgraph.core.levels import isa_levels
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.errors import FormatError, GGError, ShapeError, UnsupportedError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.graphfile import reader, writer
from ggmlgraph.graphfile.records import Record, dense_strides
from ggmlgraph.graphfile.rewrite import rewrite
from ggmlgraph.interchange import checkpoints, convert, exportgguf, exporthf, trained
from ggmlgraph.interchange.formats import gguf
from ggmlgraph.interchange.formats.stored import QUANTISED
from ggmlgraph.models import llama
from ggmlgraph.table.dialect import OUTPUT, PARAM, V2
from ggmlgraph.table.dialect import TYPES as ELEMENTS
from ggmlgraph.table.op import TABLE
from ggmlgraph.tracing.tracer import trace

DECODED = [name.lower() for name, element in ELEMENTS.items() if element.decodes]
SCALES = {"q4_1": (0, 2), "q5_1": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2),
          "q6_k": (208,)}  # bytes where a block has its scales  # fmt: skip


def stored(name: str, shape: tuple[int, ...], seed: int = 0) -> bytes:
    """Random weights of moderate size as a type stores them."""
    rng, element = np.random.default_rng(seed), encoding.element(name)
    n = int(np.prod(shape))
    if element.block == 1:
        return encoding.encode(name, rng.standard_normal(n).astype(np.float32)).tobytes()
    blocks = rng.integers(0, 256, (n // element.block, element.nbytes), np.uint8)
    for at in SCALES.get(name, (0,)):
        blocks[:, at : at + 2] = rng.uniform(0.01, 0.1, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.tobytes()


class Graph:
    """A graph under construction, and its float64 leafs."""

    def __init__(self) -> None:
        self.core = CoreGraph()

    def weights(self, name: str, shape: tuple[int, ...]) -> tuple[int, Any]:
        """A leaf of random weights of a type, and its values."""
        raw = stored(name, shape)
        leaf = self.core.leaf(name, shape, 0, "w")
        self.core.leaf_bytes(leaf)[:] = raw
        return leaf, encoding.decode(name, raw).reshape(shape).astype(np.float64)

    def floats(self, shape: tuple[int, ...], flags: int = 0, seed: int = 1) -> tuple[int, Any]:
        values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        leaf = self.core.leaf("f32", shape, flags, f"x{len(self.core)}")
        self.core.leaf_bytes(leaf)[:] = values.tobytes()
        return leaf, values.astype(np.float64)

    def node(self, op: str, *src: int, **params: Any) -> int:
        row = TABLE[op]
        return self.core.node(row, list(src), {p.name: p.default for p in row.params} | params)

    def run(self, isa: str | None = None, threads: int = 1) -> Program:
        program = Program(self.core, Pool(threads), isa)
        program.run()
        return program

    def differentiate(self, y: int, cotangent: int) -> None:
        loss = self.node("sum", self.node("mul", y, cotangent))
        passes.differentiate(self.core, loss)


def assert_close(found: Any, wanted: Any, magnitudes: Any, n_terms: int) -> None:
    limit = 2.0 * np.sqrt(n_terms) * 2.0**-24 * magnitudes + 1e-7
    assert (np.abs(found.reshape(wanted.shape) - wanted) <= limit).all()


SHAPES = [((1, 1), 1), ((7, 1), 5), ((33, 2), 40), ((300, 1), 9), ((2, 33, 1), 12)]  # rows and blocks of w, rows of x


@pytest.mark.parametrize("isa", isa_levels())
@pytest.mark.parametrize("size", SHAPES, ids=str)
@pytest.mark.parametrize("name", DECODED)
def test_product_and_its_gradient_are_those_of_the_decoded_weights(
    name: str, size: tuple[tuple[int, ...], int], isa: str
) -> None:
    (*rows, n_blocks), n = size
    k = n_blocks * max(encoding.element(name).block, 32)
    graph = Graph()
    w, w_values = graph.weights(name, (*rows, k))
    batch = [2 * r for r in rows[:-1]]  # each matrix of w serves two of x
    x, x_values = graph.floats((*batch, n, k), PARAM)
    y = graph.node("mul_mat", w, x)
    repeated = np.repeat(w_values, 2, 0) if batch else w_values
    forward = graph.run(isa, threads=2)
    assert_close(
        forward.array(y), x_values @ repeated.swapaxes(-1, -2), abs(x_values) @ abs(repeated).swapaxes(-1, -2), k
    )
    c, c_values = graph.floats((*batch, n, rows[-1]), seed=2)
    graph.differentiate(y, c)
    backward = graph.run(isa, threads=2)
    gradient = backward.array(passes.gradient_of(graph.core, x))
    assert_close(gradient, c_values @ repeated, abs(c_values) @ abs(repeated), rows[-1])


@pytest.mark.parametrize("n_used", [1, 2])
@pytest.mark.parametrize("name", DECODED)
def test_products_with_chosen_matrices_and_their_gradient_are_those_of_the_decoded_ones(name: str, n_used: int) -> None:
    k, m, n = 2 * max(encoding.element(name).block, 32), 40, 21
    found = set()
    for threads in (1, 3):
        graph = Graph()
        w, w_values = graph.weights(name, (3, m, k))
        x, x_values = graph.floats((n, 1, k), PARAM)
        ids = graph.core.leaf("i32", (n, n_used), 0, "ids")
        chosen = np.random.default_rng(5).integers(0, 3, (n, n_used), np.int32)
        graph.core.leaf_bytes(ids)[:] = chosen.tobytes()
        y = graph.node("mul_mat_id", w, x, ids)
        forward = graph.run(threads=threads)
        wanted = np.einsum("tumk,tk->tum", w_values[chosen], x_values[:, 0])
        assert_close(forward.array(y), wanted, np.einsum("tumk,tk->tum", abs(w_values[chosen]), abs(x_values[:, 0])), k)
        c, c_values = graph.floats((n, n_used, m), seed=2)
        graph.differentiate(y, c)
        backward = graph.run(threads=threads)
        gradient = backward.array(passes.gradient_of(graph.core, x))
        magnitudes = np.einsum("tumk,tum->tk", abs(w_values[chosen]), abs(c_values))
        assert_close(gradient, np.einsum("tumk,tum->tk", w_values[chosen], c_values), magnitudes, 2 * m)
        found.add(gradient.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("name", DECODED)
def test_rows_are_looked_up_exactly(name: str) -> None:
    graph = Graph()
    w, values = graph.weights(name, (9, 2 * encoding.element(name).block))
    ids = graph.core.leaf("i32", (4,), 0, "ids")
    graph.core.leaf_bytes(ids)[:] = np.int32([8, 0, 3, 8]).tobytes()
    y = graph.node("get_rows", w, ids)
    program = graph.run()
    np.testing.assert_array_equal(program.array(y), values[[8, 0, 3, 8]].astype(np.float32))


@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_k"])
def test_products_of_typed_weights_are_the_same_for_any_number_of_threads(name: str) -> None:
    found = set()
    for threads in (1, 2, 3, 8):
        graph = Graph()
        w, _ = graph.weights(name, (300, 512))
        x, _ = graph.floats((40, 512), PARAM)
        y = graph.node("mul_mat", w, x)
        forward = graph.run(threads=threads)
        result = forward.array(y).tobytes()
        graph.differentiate(y, graph.floats((40, 300), seed=2)[0])
        backward = graph.run(threads=threads)
        found.add(result + backward.array(passes.gradient_of(graph.core, x)).tobytes())
    assert len(found) == 1


def test_views_of_typed_weights_count_whole_blocks() -> None:
    graph = Graph()
    w, values = graph.weights("q8_0", (6, 96))
    nb = graph.core.strides(w)
    view = graph.core.node(TABLE["view"], [w], {"offset": 2 * nb[-2] + 34}, (3, 64), nb)
    dense = graph.node("cont", view)
    x, x_values = graph.floats((5, 64))
    products = [graph.node("mul_mat", a, x) for a in (view, dense)]
    for y in products:
        graph.core.set_flags(y, OUTPUT)
    program = graph.run()
    wanted = x_values @ values[2:5, 32:].T
    for y in products:
        assert_close(program.array(y), wanted, abs(x_values) @ abs(values[2:5, 32:].T), 64)
    with pytest.raises(ShapeError, match="whole blocks of 32"):
        graph.core.node(TABLE["view"], [w], {"offset": 0}, (3, 48), nb)
    with pytest.raises(ShapeError, match="offset 35 is not a multiple of 34"):
        graph.core.node(TABLE["view"], [w], {"offset": 35}, (3, 32), nb)


def test_permuted_half_precision_is_copied() -> None:
    graph = Graph()
    w, values = graph.weights("f16", (5, 7))
    y = graph.node("cont", graph.node("transpose", w))
    program = graph.run()
    np.testing.assert_array_equal(program.array(y), values.T.astype(np.float16))


@pytest.mark.parametrize("name", ["f16", "bf16", "q4_0", "i64", "iq2_xxs"])
def test_an_op_that_does_not_take_a_type_says_so(name: str) -> None:
    graph = Graph()
    w = graph.core.leaf(name, (2, 256), 0, "w")
    with pytest.raises(UnsupportedError, match=f"must be float32, not {name}") as caught:
        graph.node("silu", w)
    assert caught.value.code == "UnsupportedType"


def test_blocks_cannot_be_transposed_and_typed_leafs_cannot_be_trained() -> None:
    graph = Graph()
    w, _ = graph.weights("q8_0", (4, 32))
    with pytest.raises(UnsupportedError, match="blocks of q8_0 cannot be taken apart"):
        graph.node("transpose", w)
    with pytest.raises(UnsupportedError, match="a parameter of f16"):
        graph.core.leaf("f16", (4,), PARAM, "p")


# ---------------------------------------------------------------- files


def product_file(name: str, n_rows: int = 4, k: int = 256) -> list[Record]:
    """w of a type times x."""
    element, ne = ELEMENTS[name.upper()], (k, n_rows, 1, 1)
    raw = stored(name, (n_rows, k)) if element.decodes else bytes(element.nbytes * (k // element.block) * n_rows)
    w = Record("w", name.upper(), ne, dense_strides(element, ne), data=lambda: [raw])
    x = Record("x", "F32", (k, 2, 1, 1), (4, 4 * k, 8 * k, 8 * k))
    y = Record("y", "F32", (n_rows, 2, 1, 1), (4, 4 * n_rows, 8 * n_rows, 8 * n_rows), "MUL_MAT", src=(0, 1))
    return [w, x, y]


def write(path: Path, records: list[Record]) -> Path:
    writer.write(path, records, [len(records) - 1])
    return path


@pytest.mark.parametrize("name", DECODED)
def test_a_file_with_typed_weights_loads_computes_and_is_rewritten_without_loss(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "g.bin", product_file(name))
    for file in (path, tmp_path / "v1.bin"):
        with Runtime(file, threads=1) as runtime:
            x = np.random.default_rng(3).standard_normal((2, 256)).astype(np.float32)
            runtime.set("x", x)
            values = encoding.decode(name, stored(name, (4, 256))).reshape(4, 256)
            np.testing.assert_array_equal(runtime.get("w").astype(np.float32), values)
            np.testing.assert_allclose(runtime.forward("y")[0], x @ values.T, rtol=1e-4, atol=1e-3)
        rewrite(path, tmp_path / "v1.bin", "v1", identify(path))
    rewrite(tmp_path / "v1.bin", tmp_path / "again.bin", "v2", identify(tmp_path / "v1.bin"))
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def test_a_weight_is_set_by_its_bytes_where_numpy_has_not_its_type(tmp_path: Path) -> None:
    with Runtime(write(tmp_path / "g.bin", product_file("q8_0")), threads=1) as runtime:
        raw = np.frombuffer(stored("q8_0", (4, 256), seed=9), np.uint8).reshape(4, -1)
        runtime.set("w", raw)
        np.testing.assert_array_equal(runtime.get("w").reshape(-1), encoding.decode("q8_0", raw))
        with pytest.raises(ShapeError, match=r"w is uint8\[4, 272\], got float32\[4, 256\]"):
            runtime.set("w", np.zeros((4, 256), np.float32))


@pytest.mark.parametrize("name", [n.lower() for n in V2.types if not ELEMENTS[n].decodes and n not in ("F32",)])
def test_a_type_without_decoder_loads_but_is_not_computed_with(name: str, tmp_path: Path) -> None:
    records = product_file(name)
    kind = ShapeError if name in ("i8", "i32") else UnsupportedError
    with pytest.raises(kind, match=rf"node 0 'y' \(MUL_MAT\): the weights must be float32, not {name}"):
        import_file(write(tmp_path / "g.bin", records))
    x = Record("x", "F32", (4, 1, 1, 1), (4, 16, 16, 16))
    y = Record("y", "F32", (4, 1, 1, 1), (4, 16, 16, 16), "SQR", src=(1,))
    import_file(write(tmp_path / "unused.bin", [records[0], x, y]))


BROKEN = [
    ("ne0", 48, "BadSize", "ne0", "rows of 48 are not whole blocks of 32 of q8_0"),
    ("nb0", 4, "BadStride", "nb0", "not a multiple of 34"),
    ("nb0", 68, "BadStride", "nb0", "expected 34"),
    ("nb1", 1088, "BadStride", "nb1", "expected 272"),
    ("nb1", 273, "BadStride", "nb1", "not a multiple of 34"),
    ("ne1", 1 << 39, "Truncated", None, "bytes of data"),
    ("type", 99, "BadType", "type", "type is 99"),
    ("type", 8 + (1 << 31), "BadType", "type", "does not have"),
]


@pytest.mark.parametrize(("field", "value", "code", "at", "message"), BROKEN)
def test_a_malformed_typed_tensor_is_refused_where_it_is_wrong(
    field: str, value: int, code: str, at: str | None, message: str, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    writer.dump(stream, product_file("q8_0"), [2])
    content = bytearray(stream.getvalue())
    begin = V2.header.nbytes  # w is the first leaf
    place = begin + V2.leaf.offset(field)
    content[place : place + (4 if field == "type" else 8)] = struct.pack("<I" if field == "type" else "<q", value)
    if field == "ne1":  # strides that fit
        for i in (2, 3):
            struct.pack_into("<q", content, begin + V2.leaf.offset(f"nb{i}"), 272 * value)
    (tmp_path / "g.bin").write_bytes(content)
    with pytest.raises(GGError, match=message) as caught:
        import_file(tmp_path / "g.bin", "v2")
    assert caught.value.code == code
    if at:
        assert caught.value.offset == begin + V2.leaf.offset(at)
    with pytest.raises(GGError) as second:
        reader.parse(bytes(content))
    assert second.value.code == code


@pytest.mark.parametrize("name", [f"block_{d}_rope{mode}" for d in ("v1", "v2", "v2a") for mode in (0, 2)])
def test_graph_of_real_ggml_with_a_half_precision_weight_computes_what_ggml_recorded(name: str) -> None:
    path = SHARED / "data" / "graphs" / f"{name}.ggml"
    if not path.exists():
        pytest.skip("for want of graphs exported by real ggml, ../shared/data/graphs")
    with Runtime(path, threads=1) as runtime:
        assert "f16" in {runtime.graph.dtype(i) for i in range(len(runtime.graph))}
        runtime.set("tokens", np.int32([3, 1, 4, 1, 22]))
        runtime.set("pos", np.arange(5, dtype=np.int32))
        found = runtime.forward("probs")[0]
    # ggml rounds the other operand of a half-precision weight to half precision too, and GELU's argument
    np.testing.assert_allclose(found.reshape(-1), np.load(path.with_suffix(".probs.npy")).reshape(-1), atol=2e-3)


# ---------------------------------------------------------------- conversion and training

CONFIG = llama.Config(n_vocab=64, n_embd=32, n_head=2, n_layer=2, n_ff=64)
PAIRS = {
    "general.architecture": "llama", "llama.embedding_length": 32, "llama.block_count": 2, "llama.context_length": 32,
    "llama.feed_forward_length": 64, "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 16,
}  # fmt: skip


WIDE = replace(CONFIG, n_embd=256, n_ff=256)  # whose rows are whole blocks of any type
WIDE_PAIRS = PAIRS | dict.fromkeys(("llama.embedding_length", "llama.feed_forward_length"), 256)
WIDE_PAIRS |= {"llama.rope.dimension_count": 128, "tokenizer.ggml.model": "none"}


def quantised(path: Path, name: str, config: llama.Config = CONFIG, pairs: dict[str, Any] = PAIRS) -> Path:
    """A LLaMA as a GGUF file with matrices of a type."""
    kinds, arrays = {}, {}
    for node in trace(llama.loss, config, ctx=4).nodes:
        if not node.initializer:
            continue
        shape = tuple(map(int, node.shape))
        matrix = len(shape) == 2
        kinds[node.name] = V2.types[name.upper()] if matrix else 0
        arrays[node.name] = (shape, stored(name, shape) if matrix else np.ones(shape, np.float32).tobytes())
    infos, data = b"", b""
    for key, (shape, raw) in arrays.items():
        infos += ck.gguf_info(key, shape, kinds[key], len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(pairs))
    head += b"".join(ck.gguf_string(k.encode()) + ck.gguf_value(v) for k, v in pairs.items()) + infos
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def converted(source: Path, target: Path, dtype: str | None) -> Path:
    convert.convert(checkpoints.find(source), target, batch=2, ctx=8, tokenizer=None, dtype=dtype)
    return target


def batch() -> tuple[Any, Any]:
    ids = np.random.default_rng(5).integers(0, 64, (2, 9)).astype(np.int32)
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("name", [n for n in DECODED if encoding.element(n).block == 32])
def test_a_quantised_gguf_file_becomes_float32_or_stays_as_it_is(name: str, tmp_path: Path) -> None:
    source = quantised(tmp_path / "m.gguf", name)
    with (
        Runtime(converted(source, tmp_path / "f.bin", "f32"), threads=1) as floats,
        Runtime(converted(source, tmp_path / "q.bin", None), threads=1) as frozen,
    ):
        assert all(".weight" in p and "norm" in p for p in frozen.params)
        for p in floats.params:
            np.testing.assert_array_equal(frozen.get(p), floats.get(p))
        assert frozen.loss(*batch()) == pytest.approx(floats.loss(*batch()), rel=1e-6)
    assert (tmp_path / "q.bin").stat().st_size < 0.7 * (tmp_path / "f.bin").stat().st_size


@pytest.mark.parametrize("name", DECODED)
def test_a_frozen_model_is_exported_with_the_same_blocks(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="for want of gguf")
    source = quantised(tmp_path / "m.gguf", name, WIDE, WIDE_PAIRS)
    model = trained.find(converted(source, tmp_path / "q.bin", None))
    exportgguf.export(model, tmp_path / "again.gguf")
    before, after = (gguf.read(path).tensors for path in (source, tmp_path / "again.gguf"))
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    for n, tensor in before.items():
        a, b = (raw.blocks() if raw.dtype in QUANTISED else raw.chunks() for raw in (tensor, after[n]))
        assert b"".join(part.tobytes() for part in a) == b"".join(part.tobytes() for part in b), n


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "f16"])
def test_a_frozen_model_is_exported_to_transformers_as_float32(name: str, tmp_path: Path) -> None:
    source = quantised(tmp_path / "m.gguf", name, WIDE, WIDE_PAIRS)
    exporthf.export(trained.find(converted(source, tmp_path / "q.bin", None)), tmp_path / "hf")
    with (
        Runtime(converted(source, tmp_path / "f.bin", "f32"), threads=1) as floats,
        Runtime(converted(tmp_path / "hf", tmp_path / "again.bin", "f32"), threads=1) as again,
    ):
        for p in floats.params:
            np.testing.assert_array_equal(again.get(p), floats.get(p))


def test_norms_of_a_quantised_llama_are_trained_as_those_of_its_decoded_weights(tmp_path: Path) -> None:
    source = quantised(tmp_path / "m.gguf", "q8_0")
    with (
        Runtime(converted(source, tmp_path / "f.bin", "f32"), threads=2) as floats,
        Runtime(converted(source, tmp_path / "q.bin", None), threads=2) as frozen,
    ):
        floats.backward(batch())
        before = {name: frozen.get(name) for name in ("token_embd.weight", "blk.0.attn_q.weight")}
        losses = [frozen.step(batch(), lr=0.05, weight_decay=0.0).loss for _ in range(20)]
        assert losses[-1] < losses[0] - 0.1
        for name, values in before.items():
            np.testing.assert_array_equal(frozen.get(name), values)
    with Runtime(tmp_path / "q.bin", threads=2) as again, Runtime(tmp_path / "f.bin", threads=2) as floats:
        floats.backward(batch())
        again.backward(batch())
        for name in again.params:
            wanted = floats.gradient(name)
            np.testing.assert_allclose(again.gradient(name), wanted, rtol=1e-4, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize("dtype", encoding.ENCODED)
def test_convert_stores_matrices_in_half_precision(dtype: str, tmp_path: Path) -> None:
    source = quantised(tmp_path / "m.gguf", "q8_0")
    path = converted(source, tmp_path / "h.bin", dtype)
    raw = gguf.read(source).tensors["blk.1.ffn_up.weight"]
    values = np.concatenate(list(raw.chunks()))
    with Runtime(path, threads=1) as runtime:
        assert runtime.graph.dtype(runtime.graph.find("blk.1.ffn_up.weight")) == dtype
        found = runtime.get("blk.1.ffn_up.weight").astype(np.float32).reshape(-1)
        np.testing.assert_array_equal(found, encoding.decode(dtype, encoding.encode(dtype, values)))
        assert np.isfinite(runtime.step(batch(), lr=1e-3).grad_norm)


def test_a_quantised_tensor_whose_rows_are_no_whole_blocks_is_refused(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + ck.gguf_info("a", (2, 33), V2.types["Q8_0"], 0)
    (tmp_path / "m.gguf").write_bytes(head + bytes(512))
    with pytest.raises(FormatError, match="'a' of q8_0 with rows of 33"):
        gguf.read(tmp_path / "m.gguf")


def test_a_traced_weight_of_a_type_is_a_leaf_that_is_not_trained() -> None:
    graph = trace(llama.loss, CONFIG, ctx=4, types={"output.weight": "q8_0"})
    node = next(n for n in graph.nodes if n.name == "output.weight")
    assert (node.dtype, node.flags & PARAM) == ("q8_0", 0)
    with pytest.raises(UnsupportedError, match=r"llama\.py:\d+: mul: .*must be float32, not f16"):
        trace(llama.loss, CONFIG, ctx=4, types={"output_norm.weight": "f16"})
