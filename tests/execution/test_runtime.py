"""The runtime from Python: names and arrays, re-sizing, steps, accumulation, errors."""

from __future__ import annotations

import gc
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.levels import isa_levels
from ggmlgraph.core.passes import FUSIONS
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.errors import DataError, GGError, MemoryLimitError, ShapeError, UnsupportedError, UsageError
from ggmlgraph.models import gpt2, gpt_neox, llama
from ggmlgraph.table.dialect import OUTPUT
from ggmlgraph.table.op import TABLE

LLAMA = llama.Config(n_vocab=61, n_embd=24, n_head=4, n_head_kv=2, n_layer=2, n_ff=40)
NEOX = gpt_neox.Config(n_vocab=61, n_embd=32, n_head=2, n_layer=2)
GPT2 = gpt2.Config(n_vocab=61, n_embd=32, n_head=2, n_layer=2)
MODELS = [pytest.param(llama.loss, LLAMA, id="llama"), pytest.param(gpt_neox.loss, NEOX, id="gpt-neox")]


def export(path: Path, loss: Any = llama.loss, config: Any = LLAMA, batch: int = 4, ctx: int = 16) -> Path:
    gg.trace(loss, config, batch=batch, ctx=ctx).save(path, seed=5)
    return path


def batch_of(n: int, ctx: int, seed: int = 0) -> tuple[Any, Any]:
    windows = np.random.default_rng(seed).integers(0, 61, (n, ctx + 1), np.int32)
    return windows[:, :-1], windows[:, 1:]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return export(tmp_path / "graph.bin")


def test_loss_of_fresh_weights_is_that_of_a_uniform_guess(graph: Path) -> None:
    with gg.Runtime(graph) as rt:
        assert rt.loss(*batch_of(4, 16)) == pytest.approx(np.log(61), rel=0.02)


def test_steps_on_one_batch_learn_it(graph: Path) -> None:
    with gg.Runtime(graph) as rt:
        losses = [rt.step(batch_of(4, 16), lr=1e-2).loss for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(("loss", "config"), MODELS)
@pytest.mark.parametrize(("batch", "ctx"), [(4, 32), (2, 64), (1, 1)])
def test_resized_graph_equals_one_exported_at_that_size(
    tmp_path: Path, loss: Any, config: Any, batch: int, ctx: int
) -> None:
    export(tmp_path / "any.bin", loss, config, batch=3, ctx=5)
    export(tmp_path / "exact.bin", loss, config, batch, ctx)
    losses = []
    for rt in (gg.Runtime(tmp_path / "any.bin", batch=batch, ctx=ctx), gg.Runtime(tmp_path / "exact.bin")):
        with rt:
            losses.append([rt.step(batch_of(batch, ctx, seed), lr=1e-2).loss for seed in range(5)])
    assert losses[0] == losses[1]


def test_fused_loss_equals_the_loss_in_ggmls_own_ops(graph: Path) -> None:
    with gg.Runtime(graph) as rt:
        fused = rt.loss(*batch_of(4, 16))
        _, plain = rt.forward("logits", "loss")  # the logits are asked for, so the loss cannot swallow them
    assert fused == pytest.approx(plain.item(), rel=1e-6)


def assert_same_gradients(fused: gg.Runtime, plain: gg.Runtime, windows: Any) -> None:
    assert fused.backward(windows) == pytest.approx(plain.backward(windows), rel=1e-6)
    expected = {name: plain.gradient(name) for name in plain.params}
    noise = 1e-6 * max(np.abs(g).max() for g in expected.values())
    for name, gradient in expected.items():
        np.testing.assert_allclose(fused.gradient(name), gradient, rtol=1e-4, atol=noise, err_msg=name)


def ops_of(rt: gg.Runtime) -> Counter[str]:
    graph = rt.programs.train.graph
    return Counter(graph.op(i) for i in range(len(graph)))


@pytest.mark.parametrize(("loss", "config"), [*MODELS, pytest.param(gpt2.loss, GPT2, id="gpt2")])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_fusion_can_be_left_out_and_changes_rounding_only(
    tmp_path: Path, fusion: str, loss: Any, config: Any
) -> None:
    path = export(tmp_path / "graph.bin", loss, config)
    with gg.Runtime(path) as fused, gg.Runtime(path, fusions=FUSIONS.keys() - {fusion}) as plain:
        repeats_nothing = fusion == "repeat"  # see test_repeats.py
        assert (ops_of(fused) != ops_of(plain)) == (not repeats_nothing and (fusion != "swiglu" or loss is llama.loss))
        assert_same_gradients(fused, plain, batch_of(4, 16))


@pytest.mark.parametrize(("loss", "config"), MODELS)
@pytest.mark.parametrize(("batch", "ctx"), [(2, 1), (1, 65), (1, 150)])
def test_fused_attention_equals_ggmls_own_ops(tmp_path: Path, loss: Any, config: Any, batch: int, ctx: int) -> None:
    path = export(tmp_path / "graph.bin", loss, config, batch, ctx)
    with gg.Runtime(path) as fused, gg.Runtime(path, fusions=FUSIONS.keys() - {"attention"}) as plain:
        assert_same_gradients(fused, plain, batch_of(batch, ctx))


@pytest.mark.parametrize(("loss", "config"), MODELS)
def test_fused_attention_stores_neither_scores_nor_copies(tmp_path: Path, loss: Any, config: Any) -> None:
    with gg.Runtime(export(tmp_path / "graph.bin", loss, config)) as rt:
        graph = rt.programs.forward("loss").graph
        ops = Counter(graph.op(i) for i in range(len(graph)))
    assert ops["attention"] == config.n_layer
    assert not ops.keys() & {"soft_max", "diag_mask_inf", "cont"}
    assert not ops["scale"]  # nor is the loss negated by a node of its own


WEIGHTS = {  # from scores: (how a model may write attention weights, whether that fuses)
    "scaled first": (lambda s: gg.soft_max(gg.diag_mask_inf(s * 0.4)), True),
    "scaled by the softmax": (lambda s: gg.soft_max(gg.diag_mask_inf(s), scale=0.4), True),
    "scaled after the mask": (lambda s: gg.soft_max(gg.diag_mask_inf(s) * 0.4), True),
    "not scaled": (lambda s: gg.soft_max(gg.diag_mask_inf(s)), True),
    "not masked": (lambda s: gg.soft_max(s * 0.4), True),
    "shifted mask": (lambda s: gg.soft_max(gg.diag_mask_inf(s, n_past=3)), True),
    "negative scale": (lambda s: gg.soft_max(gg.diag_mask_inf(s * -0.4)), False),
    "read by its name": (lambda s: gg.soft_max(gg.diag_mask_inf(s)).named("weights"), False),
    "not a softmax": (lambda s: gg.relu(gg.tril(s)), False),
}


PRODUCTS = {  # from weights and values: how a model may multiply them
    "mul_mat": lambda weights, v: gg.mul_mat(v.permute(0, 2, 3, 1).cont(), weights),
    "@": lambda weights, v: weights @ v.permute(0, 2, 1, 3),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize(("weights", "fuses"), WEIGHTS.values(), ids=WEIGHTS)
def test_attention_is_found_however_it_is_written(tmp_path: Path, weights: Any, fuses: bool, product: Any) -> None:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        x = p.embedding("token_embd", tokens, 61, 24)
        q, k, v = (p.linear(name, x, 24).reshape(*x.shape[:2], 4, 6) for name in "qkv")
        scores = gg.mul_mat(k.permute(0, 2, 1, 3), q.permute(0, 2, 1, 3))
        y = product(weights(scores), v).permute(0, 2, 1, 3).reshape(*x.shape)
        return p.cross_entropy(p.linear("output", y, 61), targets)

    export(tmp_path / "graph.bin", loss, None)
    tokens, targets = batch_of(4, 16)
    with gg.Runtime(tmp_path / "graph.bin") as fused, gg.Runtime(tmp_path / "graph.bin", fusions=()) as plain:
        read = [name for name in ("loss", "weights") if fused.graph.find(name) >= 0]
        found, expected = (rt.forward(*read, tokens=tokens, targets=targets) for rt in (fused, plain))
        graph = fused.programs.forward(*read).graph
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert any(graph.op(i) == "attention" for i in range(len(graph))) == fuses


@pytest.mark.parametrize(("loss", "config"), MODELS)
def test_three_cotangents_of_attention_are_made_by_one_node(tmp_path: Path, loss: Any, config: Any) -> None:
    with gg.Runtime(export(tmp_path / "graph.bin", loss, config)) as rt:
        graph = rt.programs.train.graph
        ops = Counter(graph.op(i) for i in range(len(graph)))
    assert ops["attention_back"] == ops["attention"] == config.n_layer


def test_memory_of_attention_grows_with_the_context_not_its_square(graph: Path) -> None:
    nbytes = []
    for ctx in (1024, 2048):
        with gg.Runtime(graph, batch=1, ctx=ctx) as rt:
            nbytes.append(rt.programs.train.cost().arena_nbytes)
    assert nbytes[1] < 2.1 * nbytes[0]


@pytest.mark.parametrize(("loss", "config"), MODELS)
def test_weights_are_the_same_bytes_for_any_number_of_threads(tmp_path: Path, loss: Any, config: Any) -> None:
    export(tmp_path / "graph.bin", loss, config)
    states = []
    for threads in (1, 2, 3, 4, 8):
        with gg.Runtime(tmp_path / "graph.bin", threads=threads) as rt:
            for seed in range(4):
                rt.step(batch_of(4, 16, seed), lr=1e-2)
            states.append(b"".join(rt.get(name).tobytes() for name in rt.params))
    assert len(set(states)) == 1


def test_runtimes_in_different_threads_do_not_disturb_one_another(graph: Path) -> None:
    def losses(seed: int) -> list[float]:
        with gg.Runtime(graph, threads=1 + seed % 2) as rt:
            return [rt.step(batch_of(4, 16, seed + step), lr=1e-2).loss for step in range(5)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(losses, range(8))) == [losses(seed) for seed in range(8)]


def test_accumulated_gradients_are_those_of_the_whole_batch(graph: Path) -> None:
    batch = batch_of(8, 16)
    with gg.Runtime(graph, batch=8) as whole, gg.Runtime(graph, batch=2, accumulate=4) as parts:
        assert parts.backward(batch) == pytest.approx(whole.backward(batch), rel=1e-6)
        for name in whole.params:
            np.testing.assert_allclose(parts.gradient(name), whole.gradient(name), rtol=1e-4, atol=1e-7)


def test_second_accumulation_starts_from_zero(graph: Path) -> None:
    batch = batch_of(4, 16)
    with gg.Runtime(graph, batch=2, accumulate=2) as rt:
        rt.backward(batch)
        first = rt.gradient("output.weight")
        rt.backward(batch)
        np.testing.assert_array_equal(rt.gradient("output.weight"), first)


def test_gradient_norm_is_that_of_all_gradients(graph: Path) -> None:
    with gg.Runtime(graph) as rt:
        norm = rt.step(batch_of(4, 16), lr=0.0).grad_norm
        total = sum(float((rt.gradient(name).astype(np.float64) ** 2).sum()) for name in rt.params)
    assert norm == pytest.approx(np.sqrt(total), rel=1e-5)


def test_matrices_decay_and_vectors_do_not(graph: Path) -> None:
    with gg.Runtime(graph) as rt:
        before = {name: rt.get(name) for name in rt.params}
        rt.set("output_norm.weight", np.zeros(24))  # cuts every gradient but its own and the head's
        before["output_norm.weight"] = rt.get("output_norm.weight")
        rt.step(batch_of(4, 16), lr=0.5, weight_decay=0.1)
        np.testing.assert_allclose(rt.get("blk.0.attn_q.weight"), 0.95 * before["blk.0.attn_q.weight"], rtol=1e-6)
        np.testing.assert_array_equal(rt.get("blk.0.attn_norm.weight"), before["blk.0.attn_norm.weight"])


def test_gradient_that_is_not_finite_changes_nothing(graph: Path) -> None:
    with gg.Runtime(graph) as rt:
        rt.step(batch_of(4, 16), lr=1e-2)
        rt.set("blk.0.ffn_up.weight", np.full((40, 24), np.nan, np.float32))
        before = {name: rt.get(name).tobytes() for name in rt.params}
        assert not np.isfinite(rt.step(batch_of(4, 16), lr=1e-2).grad_norm)
        assert {name: rt.get(name).tobytes() for name in rt.params} == before


def test_masked_positions_do_not_count(graph: Path) -> None:
    tokens, targets = batch_of(4, 16)
    with gg.Runtime(graph) as rt:
        rt.feed(tokens, targets)
        weights = np.zeros((4, 16), np.float32)
        weights[0, 3] = 1.0
        rt.set("loss_weights", weights)
        loss, logits = rt.forward("loss", "logits")
    row = logits.reshape(4, 16, 61)[0, 3].astype(np.float64)
    assert loss.item() == pytest.approx(np.log(np.exp(row).sum()) - row[targets[0, 3]], rel=1e-5)


def test_at_shares_the_weights(graph: Path) -> None:
    with gg.Runtime(graph) as rt:
        small = rt.at(batch=1, ctx=7)
        before = small.loss(*batch_of(1, 7))
        for _ in range(5):
            rt.step(batch_of(4, 16), lr=1e-2)
        assert small.loss(*batch_of(1, 7)) != before
        np.testing.assert_array_equal(small.get("output.weight"), rt.get("output.weight"))


@pytest.mark.parametrize("isa", isa_levels())
def test_every_isa_level_agrees(graph: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with gg.Runtime(graph) as rt:
        expected = [rt.step(batch_of(4, 16, k), lr=1e-2).loss for k in range(10)]
    monkeypatch.setenv("GGMLGRAPH_ISA", isa)
    with gg.Runtime(graph) as rt:
        np.testing.assert_allclose([rt.step(batch_of(4, 16, k), lr=1e-2).loss for k in range(10)], expected, rtol=1e-4)


def test_unknown_isa_level_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGMLGRAPH_ISA", "avx1024")
    with gg.Runtime(graph) as rt, pytest.raises(GGError, match="avx1024"):
        rt.loss(*batch_of(4, 16))


def test_unknown_fusion_is_refused(graph: Path) -> None:
    with pytest.raises(UsageError, match="fusion 'magic' is not one of norm_gain"):
        gg.Runtime(graph, fusions={"magic"})


def test_token_out_of_range_is_an_error_that_names_it(graph: Path) -> None:
    tokens, targets = batch_of(4, 16)
    tokens = tokens.copy()
    tokens[2, 5] = 61
    with gg.Runtime(graph) as rt:
        with pytest.raises(DataError, match=r"get_rows: id 61 is not in 0\.\.60"):
            rt.step((tokens, targets), lr=1e-2)
        assert np.isfinite(rt.step(batch_of(4, 16), lr=1e-2).loss)  # and the runtime goes on


def test_target_out_of_range_is_an_error(graph: Path) -> None:
    tokens, targets = batch_of(4, 16)
    with gg.Runtime(graph) as rt, pytest.raises(DataError, match="id -3 is not in"):
        rt.step((tokens, np.where(targets == targets[0, 0], -3, targets)), lr=1e-2)


def test_wrong_shape_is_an_error_with_both(graph: Path) -> None:
    with gg.Runtime(graph) as rt, pytest.raises(ShapeError, match=r"tokens is int32\[4, 16\], got int32\[4, 15\]"):
        rt.loss(*batch_of(4, 15))


def test_floats_are_not_taken_for_tokens(graph: Path) -> None:
    with gg.Runtime(graph) as rt, pytest.raises(ShapeError, match="got float64"):
        rt.set("tokens", np.zeros((4, 16)))


def test_unknown_name_is_an_error(graph: Path) -> None:
    with gg.Runtime(graph) as rt, pytest.raises(GGError, match="no tensor 'nothing'"):
        rt.get("nothing")


def test_memory_limit_is_checked_before_anything_is_allocated(graph: Path) -> None:
    rt = gg.Runtime(graph, batch=512, ctx=512, memory_limit=1 << 20)
    with rt, pytest.raises(MemoryLimitError, match=r"needs \d+ MiB at batch 512 and ctx 512"):
        rt.step(batch_of(512, 512), lr=1e-2)


@pytest.mark.parametrize(("batch", "ctx"), [(0, 8), (-1, 8), (4, 0), (1 << 21, 8)])
def test_sizes_out_of_range_are_refused(graph: Path, batch: int, ctx: int) -> None:
    with pytest.raises(UsageError, match="is not in 1"):
        gg.Runtime(graph, batch=batch, ctx=ctx)


def test_fixed_graph_says_why_it_cannot_be_resized(tmp_path: Path) -> None:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        x = p.embedding("token_embd", tokens, 61, 8).reshape(64, 8)
        return p.cross_entropy(p.linear("output", x, 61).reshape(4, 16, 61), targets)

    export(tmp_path / "fixed.bin", loss, None)
    with gg.Runtime(tmp_path / "fixed.bin") as rt:
        assert np.isfinite(rt.step(batch_of(4, 16), lr=1e-2).loss)
    with pytest.raises(UnsupportedError, match=r"ctx is fixed in this graph: .*test_runtime\.py:\d+: reshape"):
        gg.Runtime(tmp_path / "fixed.bin", ctx=8)


def test_plan_of_a_step_is_told_before_it_runs(graph: Path) -> None:
    with gg.Runtime(graph) as rt:
        cost = rt.programs.train.cost()
    assert cost.flops > 6 * 4 * 16 * 61 * 24
    assert cost.nbytes > 12 * rt.n_params


def cpus_of_threads() -> list[str]:
    """Which CPUs each thread of this process may run on, as the kernel writes it."""
    statuses = [path.read_text() for path in Path("/proc/self/task").glob("*/status")]
    return [line.split()[1] for text in statuses for line in text.splitlines() if line.startswith("Cpus_allowed_list")]


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="for want of a second CPU"
)
def test_with_a_thread_for_every_cpu_each_worker_keeps_to_one_and_the_caller_is_set_free(graph: Path) -> None:
    before, cpus = Counter(cpus_of_threads()), sorted(os.sched_getaffinity(0))
    with gg.Runtime(graph, threads=len(cpus)) as rt:
        rt.loss(*batch_of(4, 16))
        assert Counter(cpus_of_threads()) - before == Counter(str(cpu) for cpu in cpus[1:])
        assert sorted(os.sched_getaffinity(0)) == cpus


def test_an_output_that_a_later_node_reads_is_there_after_the_run() -> None:
    graph = CoreGraph()
    a = graph.leaf("f32", (5,), 0, "a")
    graph.leaf_bytes(a)[:] = np.arange(5, dtype=np.float32).tobytes()
    y = graph.node(TABLE["neg"], [a], {})
    graph.set_name(y, "y", OUTPUT)
    graph.set_name(graph.node(TABLE["sqr"], [y], {}), "z", OUTPUT)
    program = Program(graph, Pool(1), None)
    program.run()
    assert program.array(y).tolist() == [0, -1, -2, -3, -4]


def test_ids_of_get_rows_back_have_no_fourth_dimension() -> None:
    """As those of get_rows: the cotangent has no rows for them."""
    graph = CoreGraph()
    cotangent, ids = graph.leaf("f32", (1, 1, 2, 5), 0, "g"), graph.leaf("i32", (3, 1, 1, 2), 0, "ids")
    with pytest.raises(ShapeError, match="not that of rows of this table"):
        graph.node(TABLE["get_rows_back"], [cotangent, ids], {}, (4, 5))


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="for want of a second CPU"
)
def test_a_run_leaves_the_caller_on_the_cpus_it_was_given_since_the_last(graph: Path) -> None:
    cpus = os.sched_getaffinity(0)
    with gg.Runtime(graph, threads=len(cpus)) as rt:
        rt.loss(*batch_of(4, 16))
        try:
            os.sched_setaffinity(0, {min(cpus)})
            rt.loss(*batch_of(4, 16))
            assert os.sched_getaffinity(0) == {min(cpus)}
        finally:
            os.sched_setaffinity(0, cpus)


# ---------------------------------------------------------------- weights that lie in the file


def test_a_mapped_graph_trains_like_a_copied_one_and_leaves_its_file_alone(graph: Path) -> None:
    content, batch = graph.read_bytes(), batch_of(4, 16)
    with gg.Runtime(graph) as copied, gg.Runtime(graph, mapped=True) as mapped:
        for _ in range(3):
            assert copied.step(batch, lr=1e-2) == mapped.step(batch, lr=1e-2)
    assert graph.read_bytes() == content


def test_a_program_of_a_mapped_graph_outlives_the_runtime_it_came_from(graph: Path) -> None:
    program = gg.Runtime(graph, mapped=True).programs.forward("logits")
    gc.collect()
    program.run()
    assert np.isfinite(program.array(program.graph.find("logits"))).all()


def test_released_weights_are_read_from_the_file_again(tmp_path: Path) -> None:
    export(tmp_path / "graph.bin", config=replace(LLAMA, n_vocab=2048))
    base = gg.Runtime(tmp_path / "graph.bin", mapped=True).graph
    weight = base.find("token_embd.weight")
    values = np.frombuffer(base.leaf_bytes(weight), np.float32)
    before, others = values.copy(), [i for i in range(len(base)) if base.op(i) == "none" and i != weight]
    kept = [bytes(base.leaf_bytes(i)) for i in others]
    values += 1
    base.release(weight)
    assert (values == before).sum() > 0.9 * values.size  # whole pages
    assert [bytes(base.leaf_bytes(i)) for i in others] == kept
