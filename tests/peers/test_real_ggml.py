"""Our files under real ggml: it computes what we compute, and writes the bytes that we write."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_ggml
from handmade import cache_graph
from opcheck import Call, build
from reference import SAMPLES, Sample

import ggmlgraph as gg
from ggmlgraph.core.boundary import pack_params
from ggmlgraph.core.importer import identify
from ggmlgraph.core.levels import isa_levels
from ggmlgraph.errors import GGError
from ggmlgraph.graphfile import reader, writer
from ggmlgraph.graphfile.records import Order, Record, meant_otherwise
from ggmlgraph.graphfile.rewrite import rewrite
from ggmlgraph.models import gpt2, gpt_neox, llama, mixtral
from ggmlgraph.table.dialect import DIALECTS, OUTPUT, Dialect
from ggmlgraph.table.op import TABLE, Op

BATCH, CTX, N_VOCAB = 2, 12, 61
LLAMA = llama.Config(n_vocab=N_VOCAB, n_embd=32, n_head=4, n_head_kv=2, n_layer=2, n_ff=48)
GPT2 = gpt2.Config(n_vocab=N_VOCAB, n_embd=32, n_head=4, n_layer=2, n_ctx=16)
MOE = mixtral.Config(n_vocab=N_VOCAB, n_embd=32, n_head=4, n_head_kv=2, n_layer=2, n_ff=48, n_expert=4)
YARN = replace(LLAMA, rope_scaling="yarn", rope_factor=4.0, rope_n_ctx_orig=8, rope_beta_fast=4.0)
NEOX = gpt_neox.Config(n_vocab=N_VOCAB, n_embd=32, n_head=4, n_layer=2, rotary_pct=0.5)

# Relative to the largest value. Stock ggml reads GELU, in its tanh form, from a table of half-precision numbers; our
# runtime computes the exact form that the metadata names.
F32, GELU_TABLE = 1e-4, 1e-3
MODELS: dict[str, tuple[Any, Any, float]] = {
    "llama": (llama.loss, LLAMA, F32),
    "llama_tied": (llama.loss, replace(LLAMA, tied=True), F32),
    "llama_yarn": (llama.loss, YARN, F32),
    "llama_linear": (llama.loss, replace(LLAMA, rope_scaling="linear", rope_factor=4.0), F32),
    "llama_llama3": (llama.loss, replace(YARN, rope_scaling="llama3"), F32),
    "gpt_neox": (gpt_neox.loss, NEOX, GELU_TABLE),
    "gpt_neox_sequential": (gpt_neox.loss, replace(NEOX, parallel_residual=False), GELU_TABLE),
    "gpt2": (gpt2.loss, GPT2, GELU_TABLE),
    "mixtral": (mixtral.loss, MOE, F32),
}


@pytest.fixture(params=real_ggml.DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    with real_ggml.or_skip(f"real ggml of dialect {name}"):
        real_ggml.library(name)
    return name


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return request.param


def export(model: str, dialect: str, path: Path) -> Path:
    loss, config, _ = MODELS[model]
    if dialect == "v1" and getattr(config, "rope_scaling", "") == "llama3":
        pytest.skip("no such case: ROPE of v1 divides no frequencies")
    gg.trace(loss, config, batch=BATCH, ctx=CTX).save(path, seed=3, dialect=dialect)
    return path


def inputs() -> dict[str, Any]:
    tokens, targets = np.random.default_rng(1).integers(0, N_VOCAB, (2, BATCH, CTX), dtype=np.int32)
    weights = np.full((BATCH, CTX), 1 / (BATCH * CTX), np.float32)
    return {
        "tokens": tokens, "targets": targets, "positions": np.arange(CTX, dtype=np.int32), "loss_weights": weights,
    }  # fmt: skip


def test_real_ggml_computes_our_logits_and_loss(model: str, dialect: str, tmp_path: Path) -> None:
    path, given = export(model, dialect, tmp_path / "graph.bin"), inputs()
    theirs = real_ggml.compute(dialect, path, given, ["logits", "loss"])
    with gg.Runtime(path, threads=1) as rt:
        ours = rt.forward("logits", "loss", tokens=given["tokens"], targets=given["targets"])
    for name, values in zip(("logits", "loss"), ours, strict=True):
        error = np.abs(theirs[name] - values.ravel()).max() / np.abs(values).max()
        print(f"{model} {dialect} {name}: relative error {error:.1e}")
        assert error < MODELS[model][2]


def emitted(placed: Order, dialect: str) -> bytes:
    stream = io.BytesIO()
    writer.emit(stream, placed, DIALECTS[dialect], 0)
    return stream.getvalue()


def test_ggml_exports_the_graph_it_built_itself_as_our_bytes(model: str, dialect: str, tmp_path: Path) -> None:
    ours = reader.read(export(model, dialect, tmp_path / "graph.bin"), dialect)
    real_ggml.rebuild(dialect, tmp_path / "graph.bin", tmp_path / "theirs.bin")
    assert (tmp_path / "theirs.bin").read_bytes() == emitted(Order(ours.leafs, ours.nodes), dialect)


def test_ggml_exports_what_it_imported_but_for_its_known_losses(model: str, dialect: str, tmp_path: Path) -> None:
    """PERMUTE comes back as VIEW, and nodes without flags, parameters therefore without data."""
    ours = reader.read(export(model, dialect, tmp_path / "graph.bin"), dialect)
    real_ggml.reexport(dialect, tmp_path / "graph.bin", tmp_path / "theirs.bin")
    nodes = (replace(n, flags=0, op="VIEW" if n.op == "PERMUTE" else n.op) for n in ours.nodes)
    assert (tmp_path / "theirs.bin").read_bytes() == emitted(Order(ours.leafs, tuple(nodes)), dialect)


# ---------------------------------------------------------------- every op

N_SAMPLES = 6  # per op
TOLERANCES = {  # relative, of ops that ggml computes less exactly
    "gelu": GELU_TABLE, "gelu_quick": GELU_TABLE,
    "silu v1": 1e-3, "silu_back v1": 1e-3, "soft_max v1": 2e-4,  # half-precision tables, of exp for the second
    "rope": 5e-5, "rope_back": 5e-5,  # the angle is a product of ctx float32 factors
}  # fmt: skip
OPS = [op for op in TABLE.values() if op.ggml and not op.exact and op.name in SAMPLES]


def dialects_with(op: Op) -> list[str]:
    return [
        d for d in real_ggml.DIALECTS if op.ggml in DIALECTS[d].ops and (not op.unary or op.unary in DIALECTS[d].unary)
    ]


EACH_OP = pytest.mark.parametrize(
    ("op", "dialect"), [pytest.param(op, d, id=f"{op.name}-{d}") for op in OPS for d in dialects_with(op)],
    indirect=["dialect"],
)  # fmt: skip


ACCEPTED: dict[str, Callable[[Sample], bool]] = {  # what stock ggml builds and computes, where not every call
    "arange": lambda s: s.params["start"] < s.params["stop"],
    "flash_attn_ext": lambda s: s.operands[3] is None,  # masks are of halves, and have a multiple of 32 rows
    "pool_1d": lambda s: s.params["k0"] == s.params["s0"] and s.params["p0"] == 0,
    "timestep_embedding": lambda s: s.params["dim"] % 2 == 0,  # an odd row's end is never written
    # threads other than the first return at once, but the first still leaves them their rows
    "clamp v2a": lambda s: s.operands[0] is not None and len(s.operands[0].shape) == 1,
}
REFUSED = {  # why stock ggml cannot be compared
    "flash_attn_ext": "the mask must be F16",
    "conv_transpose_2d": "the kernel must be F16",
    "im2col v1": "the kernel must be F16",
    "opt_step_adamw": "its importer forgets that the result is the parameter",
}


def samples(op: Op, dialect: str) -> list[Sample]:
    """Some calls whose operands stock ggml takes: contiguous, finite."""
    takes_any_shape = op.ggml not in DIALECTS[dialect].same_shape
    return [
        s
        for s in SAMPLES[op.name]
        if all(o is None or (o.layout == "dense" and o.kind != "values") for o in s.operands)
        and (takes_any_shape or len({o.shape for o in s.operands if o}) == 1)
        and has_words(op, s, DIALECTS[dialect])
        and ACCEPTED.get(f"{op.name} {dialect}", ACCEPTED.get(op.name, lambda _: True))(s)
    ][:N_SAMPLES]


def has_words(op: Op, sample: Sample, dialect: Dialect) -> bool:
    """Whether the dialect can say these params."""
    variation = dialect.variations.get(str(op.ggml))
    given = struct.unpack("<16I", pack_params(op, {p.name: p.default for p in op.params} | sample.params))
    if variation is None:
        return True
    is_same = meant_otherwise(variation, given, sample.operands[0].shape[-1]) is None
    return is_same and all(w in variation.words or given[w] == variation.implied.get(w, 0) for w in range(len(given)))


def records(call: Call, first: int, prefix: str) -> list[Record]:
    """The tensors of a graph with one op; `first` records come before."""
    found = []
    for i in range(len(call.graph)):
        t, op = call.graph.tensor(i), TABLE.get(call.graph.op(i))
        src = tuple(s if s < 0 else s + first for s in t.src[0 : t.n_src])
        data = bytes(call.graph.leaf_bytes(i)) if op is None else b""
        found.append(Record(
            f"{prefix}{call.graph.name(i) or i}", call.graph.dtype(i).upper(), tuple(t.ne), tuple(t.nb),
            "NONE" if op is None else str(op.ggml), None if op is None else op.unary, t.flags,
            struct.pack("<16i", *t.op_params), src, None if op is not None else partial(iter, [data]),
        ))  # fmt: skip
    return found


def write_calls(op: Op, dialect: str, path: Path) -> tuple[list[Call], list[str]]:
    """One file of some calls of an op, and what its outputs are called."""
    calls = [build(sample, sample.arrays()) for sample in samples(op, dialect)]
    assert calls, f"dialect {dialect} can say none of the calls of {op.ggml}"
    everything: list[Record] = []
    for k, call in enumerate(calls):
        call.graph.set_name(call.graph.node(TABLE["cont"], [call.y], {}), "out", OUTPUT)
        everything += records(call, len(everything), f"{k}.")
    names = [f"{k}.out" for k in range(len(calls))]
    writer.write(path, everything, [[r.name for r in everything].index(n) for n in names], dialect)
    return calls, names


def tolerance(op: Op, dialect: str) -> float:
    return TOLERANCES.get(op.name, TOLERANCES.get(f"{op.name} {dialect}", 1e-5))


@EACH_OP
def test_what_ggml_builds_and_exports_loads_computes_and_is_written_again_here(
    op: Op, dialect: str, tmp_path: Path
) -> None:
    calls, names = write_calls(op, dialect, tmp_path / "ours.bin")
    real_ggml.rebuild(dialect, tmp_path / "ours.bin", tmp_path / "theirs.bin")
    with gg.Runtime(tmp_path / "theirs.bin", threads=1, dialect=dialect) as rt:
        values = rt.forward(*names)
    for call, found in zip(calls, values, strict=True):
        program = call.program(isa_levels()[0], 1)
        program.run()
        np.testing.assert_array_equal(found.ravel(), call.result(program).ravel())
    rewrite(tmp_path / "theirs.bin", tmp_path / "again.bin", dialect, dialect)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


@EACH_OP
def test_real_ggml_computes_each_op_as_we_do(op: Op, dialect: str, tmp_path: Path) -> None:
    if reason := REFUSED.get(op.name, REFUSED.get(f"{op.name} {dialect}")):
        pytest.skip(f"no such case: ggml of dialect {dialect}, {op.ggml}: {reason}")
    calls, names = write_calls(op, dialect, tmp_path / "graph.bin")
    theirs = real_ggml.compute(dialect, tmp_path / "graph.bin", {}, names)
    for k, call in enumerate(calls):
        program = call.program(isa_levels()[0], 1)
        program.run()
        values = call.result(program).ravel()
        others = theirs[names[k]].view(values.dtype)
        finite = np.isfinite(values)
        assert np.array_equal(values[~finite], others[~finite])
        error = np.abs(values[finite] - others[finite]).max() / max(1.0, np.abs(values[finite]).max())
        assert error < tolerance(op, dialect), samples(op, dialect)[k]


# ---------------------------------------------------------------- what its importer gets wrong


def views(*offsets: int) -> list[Record]:
    """x = 0, 1, 2, ... seen through one view after another, each starting at element `offset` of the one before."""
    x = np.arange(24, dtype=np.float32)
    chain = [Record("x", "F32", (24, 1, 1, 1), (4, 96, 96, 96), data=lambda: [x.tobytes()])]
    n = 24
    for i, offset in enumerate(offsets):
        n -= offset
        params = struct.pack("<Q", 4 * offset)
        chain.append(Record(f"v{i}", "F32", (n, 1, 1, 1), (4, 4 * n, 4 * n, 4 * n), "VIEW", src=(i,), op_params=params))
    params = struct.pack("<f", 1.0)
    chain.append(replace(chain[-1], name="y", op="SCALE", src=(len(offsets),), op_params=params))
    return chain


def ours(path: Path, name: str) -> Any:
    with gg.Runtime(path, threads=1) as rt:
        return rt.forward(name)[0]


def test_offsets_of_views_of_views_add_up_here_but_not_in_ggmls_importer(dialect: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.bin"
    for offsets, real, right in (((8,), 8, 8), ((8, 6), 6, 14)):
        chain = views(*offsets)
        writer.write(path, chain, [len(chain) - 1], dialect)
        assert real_ggml.compute(dialect, path, {}, ["y"])["y"][0] == real
        assert ours(path, "y")[0] == right


def test_a_copy_into_a_cache_is_seen_here_but_lost_in_ggmls_importer(dialect: str, tmp_path: Path) -> None:
    """Before its export the graph gives ggml 10 too; its importer gives CPY memory of its own."""
    path = cache_graph().save(tmp_path / "graph.bin", dialect)
    assert real_ggml.compute(dialect, path, {}, ["after"])["after"][0] == 0
    assert ours(path, "after")[0] == 10


def test_a_graph_written_with_ggml_pythons_own_api_loads_here(tmp_path: Path) -> None:
    """The file in tests/data, on which test_foreign.py trains, is what ggml writes today."""
    with real_ggml.or_skip("ggml-python"):
        made = real_ggml.run_script("mlp_ggml.py", tmp_path / "mlp.ggml")
    kept = Path(__file__).parents[1] / "data" / "mlp_v1.ggml"
    assert identify(made) == "v1"
    assert made.read_bytes() == kept.read_bytes()


def test_without_room_in_size_eval_ggml_cannot_compute(dialect: str, tmp_path: Path) -> None:
    x = Record("x", "F32", (64, 8, 1, 1), (4, 256, 2048, 2048))
    y = replace(x, name="y", op="SOFT_MAX", src=(0,), op_params=struct.pack("<f", 1.0))
    writer.write(tmp_path / "graph.bin", [x, y], [1], dialect, size_eval_slack=0)
    with pytest.raises(RuntimeError, match="real ggml ended with"):
        real_ggml.compute(dialect, tmp_path / "graph.bin", {}, ["y"])


def test_a_graph_of_ours_outlives_a_second_export_only_here(dialect: str, tmp_path: Path) -> None:
    """Through ggml and back PERMUTE is a VIEW whose offset is its axes; our importer refuses it."""
    real_ggml.reexport(dialect, export("llama", dialect, tmp_path / "graph.bin"), tmp_path / "theirs.bin")
    with pytest.raises(GGError):
        gg.Runtime(tmp_path / "theirs.bin", dialect=dialect)
    rewrite(tmp_path / "graph.bin", tmp_path / "ours.bin", dialect, dialect)
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "graph.bin").read_bytes()
