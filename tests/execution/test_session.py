"""A runtime as a session: who may call when, what may be read when, and how long memory lasts."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph import machine
from ggmlgraph.errors import GGError, MemoryLimitError, ShapeError, UsageError
from ggmlgraph.models import llama

CONFIG = llama.Config(n_vocab=61, n_embd=24, n_head=4, n_layer=2, n_ff=40)


def windows(seed: int, n: int = 4, ctx: int = 16) -> tuple[Any, Any]:
    drawn = np.random.default_rng(seed).integers(0, 61, (n, ctx + 1), np.int32)
    return drawn[:, :-1], drawn[:, 1:]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    gg.trace(llama.loss, CONFIG, batch=4, ctx=16).save(tmp_path / "graph.bin", seed=5)
    return tmp_path / "graph.bin"


# ---------------------------------------------------------------- threads


def in_threads(*calls: Callable[[], None]) -> list[BaseException]:
    """What the calls raise, each made again and again in a thread of its own for half a second."""
    end, raised = time.monotonic() + 0.5, []

    def work(call: Callable[[], None]) -> None:
        try:
            while time.monotonic() < end:
                call()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("other", ["same", "at"])
def test_threads_that_share_memory_each_get_the_results_of_their_own_inputs(
    graph: Path, other: str, n_threads: int
) -> None:
    with gg.Runtime(graph, threads=n_threads) as rt:
        runtimes = [rt, rt if other == "same" else rt.at(batch=4)]
        inputs = [windows(seed)[0] for seed in range(2)]
        wanted = [rt.forward("logits", tokens=tokens)[0] for tokens in inputs]

        def check(i: int) -> None:
            np.testing.assert_array_equal(runtimes[i].forward("logits", tokens=inputs[i])[0], wanted[i])

        assert in_threads(lambda: check(0), lambda: check(1)) == []


def test_steps_losses_and_reads_from_many_threads_disturb_nothing(graph: Path) -> None:
    with gg.Runtime(graph, threads=2) as rt:
        calls = [
            lambda: rt.step(windows(0), lr=1e-4),
            lambda: rt.loss(*windows(1)),
            lambda: rt.get("output.weight"),
            lambda: rt.forward("logits", tokens=windows(2)[0]),
            lambda: rt.state(),
        ]
        assert in_threads(*calls) == []
        assert np.isfinite(rt.loss(*windows(3)))


def test_a_program_that_runs_turns_another_threads_run_away(graph: Path) -> None:
    with gg.Runtime(graph, threads=2) as rt:
        rt.feed(*windows(0))
        program = rt.programs.forward("logits")
        raised = in_threads(program.run, program.run, program.run)
    assert all("a run is under way in another thread" in str(error) for error in raised)


def test_closing_waits_for_the_call_that_goes_on_and_ends_those_that_follow(graph: Path) -> None:
    rt = gg.Runtime(graph, threads=2)

    def step() -> None:
        rt.step(windows(0), lr=1e-4)

    closer = threading.Timer(0.1, rt.close)
    closer.start()
    raised = in_threads(step, step)
    closer.join()
    assert [str(error) for error in raised] == ["the runtime is closed"] * 2


def test_a_closed_runtime_takes_no_call(graph: Path) -> None:
    rt = gg.Runtime(graph, threads=3)
    rt.step(windows(0), lr=1e-3)
    rt.close()
    calls: list[Callable[[], Any]] = [
        lambda: rt.step(windows(0), lr=1e-3), lambda: rt.forward("logits"), lambda: rt.get("logits"), rt.state,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UsageError, match="the runtime is closed"):
            call()


def test_threads_end_with_the_last_that_uses_them(graph: Path) -> None:
    before = threads_of_the_process()
    rt = gg.Runtime(graph, threads=3)
    rt.step(windows(0), lr=1e-3)
    assert threads_of_the_process() == before + 2
    rt.close()
    del rt
    gc.collect()
    assert threads_of_the_process() == before


def threads_of_the_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_all_outputs_one_by_one_share_one_pool(graph: Path) -> None:
    before = threads_of_the_process()
    with gg.Runtime(graph, threads=4) as rt:
        rt.feed(*windows(0))
        names = [rt.graph.name(i) for i in range(len(rt.graph)) if not rt.graph.is_leaf(i) and rt.graph.name(i)]
        for name in names:
            rt.forward(name)
        assert len(names) > 20
        assert threads_of_the_process() - before <= 3


# ---------------------------------------------------------------- processes

FORKED = """
import gc, os, signal, sys
import numpy as np
import ggmlgraph as gg
rt = gg.Runtime(sys.argv[1], threads=int(sys.argv[2]))
tokens = np.zeros((4, 16), np.int32)
wanted = rt.forward("logits", tokens=tokens)[0]
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends a child that hangs
    if sys.argv[3] == "run":
        os._exit(int(not np.array_equal(rt.forward("logits", tokens=tokens)[0], wanted)))
    if sys.argv[3] == "close":
        rt.close()
        del rt
        gc.collect()
        os._exit(0)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(rt.forward("logits", tokens=tokens)[0], wanted)
"""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("what", ["run", "close", "exit"])
def test_a_forked_process_runs_closes_and_ends(graph: Path, what: str, threads: int) -> None:
    command = [sys.executable, "-P", "-W", "ignore", "-c", FORKED, str(graph), str(threads), what]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_fork_while_a_run_goes_on_leaves_both_processes_working(graph: Path) -> None:
    code = (
        "import os, signal, sys, threading\nimport numpy as np\nimport ggmlgraph as gg\n"
        "rt = gg.Runtime(sys.argv[1], threads=2)\ntokens = np.zeros((4, 16), np.int32)\n"
        "done = threading.Event()\n"
        "def work():\n    while not done.is_set(): rt.forward('logits', tokens=tokens)\n"
        "thread = threading.Thread(target=work); thread.start()\n"
        "for _ in range(10):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        signal.alarm(20); rt.forward('logits', tokens=tokens); os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "done.set(); thread.join()\n"
    )
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, str(graph)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_process_that_leaves_its_runtimes_open_ends(graph: Path) -> None:
    code = (
        "import sys, ggmlgraph as gg, numpy as np\n"
        "rt = gg.Runtime(sys.argv[1], threads=3)\n"
        "rt.step((np.zeros((4, 16), np.int32),) * 2, lr=1e-3)\n"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code, str(graph)], timeout=60).returncode == 0


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("what", ["weights", "input", "state"])
def test_views_outlive_the_runtime_they_are_of(graph: Path, what: str) -> None:
    with gg.Runtime(graph, threads=1) as rt:
        rt.step(windows(0), lr=1e-3)
        if what == "weights":
            views = rt.weights()
        elif what == "input":
            views = {"tokens": rt.input("tokens")}
        else:
            views = rt.state()[1]
        wanted = {name: view.copy() for name, view in views.items()}
    del rt
    gc.collect()
    junk = [np.full(view.shape, -1, view.dtype) for view in wanted.values() for _ in range(3)]
    for name, view in views.items():
        np.testing.assert_array_equal(view, wanted[name])
    assert junk


def test_an_array_of_a_program_outlives_it(graph: Path) -> None:
    rt = gg.Runtime(graph, threads=1)
    rt.feed(*windows(0))
    program = rt.programs.forward("logits")
    program.run()
    view = program.array(program.graph.find("logits"))
    wanted = view.copy()
    del program, rt
    gc.collect()
    np.testing.assert_array_equal(view, wanted)


def test_weights_that_are_in_memory_are_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tmp_path / "large.bin"
    gg.trace(llama.loss, replace(CONFIG, n_vocab=60_000, n_embd=64), batch=1, ctx=16).save(graph)
    with gg.Runtime(graph, threads=1) as rt:
        cost = rt.programs.forward("logits").cost()
    assert cost.leaf_nbytes > 2 * cost.own_nbytes
    for free, fits in ((cost.own_nbytes + 8192, True), (cost.own_nbytes // 2, False)):
        monkeypatch.setattr(machine, "available_memory", lambda free=free: free)
        with gg.Runtime(graph, threads=1) as rt:
            if fits:
                rt.forward("logits", tokens=windows(0, 1)[0])
            else:
                with pytest.raises(MemoryLimitError, match="MiB are available"):
                    rt.forward("logits", tokens=windows(0, 1)[0])


def test_programs_make_room_for_one_another(graph: Path) -> None:
    names = ("logits", "blk.0.attn_norm", "loss")
    with gg.Runtime(graph, threads=1, memory_limit=1 << 40) as rt:
        names = tuple(name for name in names if rt.graph.find(name) >= 0)
        needs = max(rt.programs.forward(name).cost().nbytes for name in names)
    with gg.Runtime(graph, threads=1, memory_limit=needs) as rt:
        rt.feed(*windows(0))
        for _ in range(2):
            for name in names:
                rt.forward(name)


# ---------------------------------------------------------------- what may be read


def test_a_tensor_that_was_not_asked_for_is_right_or_refused(graph: Path) -> None:
    batch = windows(0)
    with gg.Runtime(graph, threads=1) as rt, gg.Runtime(graph, threads=1) as other:
        names = [rt.graph.name(i) for i in range(len(rt.graph)) if not rt.graph.is_leaf(i)]
        rt.loss(*batch)
        read, refused = {}, 0
        for name in names:
            try:
                read[name] = rt.get(name)
            except GGError as error:
                assert "ask for it with forward" in str(error)
                refused += 1
        other.feed(*batch)
        for name, values in read.items():
            np.testing.assert_allclose(values, other.forward(name)[0], rtol=1e-4, atol=1e-6)
    assert refused > 20


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_those_of_the_last_backward_or_refused(graph: Path, accumulate: int) -> None:
    batch = windows(0)
    with gg.Runtime(graph, threads=1, batch=4 // accumulate, accumulate=accumulate) as rt:
        with pytest.raises(GGError, match="no gradient"):
            rt.gradient("output.weight")
        rt.backward(batch)
        assert np.abs(rt.gradient("output.weight")).max() > 0
        rt.loss(*(part[: 4 // accumulate] for part in batch))
        with pytest.raises(GGError, match="no gradient of"):
            rt.gradient("output.weight")


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_results_have_the_axes_the_model_gave_them(graph: Path, batch: int) -> None:
    with gg.Runtime(graph, threads=1, batch=batch) as rt:
        assert rt.forward("logits", tokens=windows(0, batch)[0])[0].shape == (batch, 16, 61)
        assert rt.input("tokens").shape == (batch, 16)


# ---------------------------------------------------------------- what a call takes


def test_an_own_loss_is_the_same_before_and_after_a_backward_with_accumulation(tmp_path: Path) -> None:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
        x = p.embedding("token_embd", tokens, 61, 8)
        return (x * x).sum().named("own")

    gg.trace(loss, None, batch=2, ctx=4).save(tmp_path / "own.bin", seed=1)
    batch = windows(0, 6, 4)
    with gg.Runtime(tmp_path / "own.bin", threads=1, accumulate=3) as rt:
        parts = [rt.loss(*(a[2 * k : 2 * k + 2] for a in batch)) for k in range(3)]
        assert rt.backward(batch) == pytest.approx(np.mean(parts), rel=1e-6)
        assert [rt.loss(*(a[2 * k : 2 * k + 2] for a in batch)) for k in range(3)] == parts


def test_a_batch_without_an_input_does_not_take_the_last_ones(graph: Path) -> None:
    tokens, targets = windows(0)
    with gg.Runtime(graph, threads=1) as rt:
        rt.step({"tokens": tokens, "targets": targets}, lr=1e-3)
        for call in (lambda: rt.step({"tokens": tokens}, lr=1e-3), lambda: rt.loss_of({"tokens": tokens})):
            with pytest.raises(UsageError, match="nothing for the input 'targets'"):
                call()
        rt.set("targets", targets)
        assert np.isfinite(rt.loss_of({"tokens": tokens}))


@pytest.mark.parametrize(
    "rates",
    [{"lr": np.nan}, {"lr": -1.0}, {"lr": np.inf}, {"lr": 1e-3, "weight_decay": np.nan},
     {"lr": 1e-3, "clip_value": -1e-8}, {"lr": 1e-3, "clip": -1.0}],
    ids=str,
)  # fmt: skip
def test_rates_that_would_destroy_the_weights_are_refused(graph: Path, rates: dict[str, Any]) -> None:
    with gg.Runtime(graph, threads=1) as rt:
        before = rt.get("output.weight")
        with pytest.raises(UsageError):
            rt.step(windows(0), **rates)
        np.testing.assert_array_equal(rt.get("output.weight"), before)


@pytest.mark.parametrize(
    "sizes",
    [{"accumulate": 0}, {"accumulate": -1}, {"accumulate": 1.5}, {"batch": 0}, {"batch": 2.5}, {"ctx": 0}],
    ids=str,
)
def test_sizes_that_are_no_counts_are_refused(graph: Path, sizes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        gg.Runtime(graph, threads=1, **sizes)
    with gg.Runtime(graph, threads=1) as rt, pytest.raises(UsageError):
        rt.at(**sizes)


@pytest.mark.parametrize(
    ("name", "values", "error"),
    [
        ("tokens", np.full((4, 16), 2**32 + 5), UsageError),
        ("tokens", np.full((4, 16), 2**31), UsageError),
        ("tokens", np.full((4, 16), 2**32 - 1, np.uint32), UsageError),
        ("tokens", np.full((4, 16), 2**63, np.uint64), UsageError),
        ("tokens", [[1, 2], [3]], ShapeError),
        ("tokens", np.zeros((4, 16)), ShapeError),
        ("tokens", np.array([["a"] * 16] * 4), ShapeError),
        ("output.weight", np.full((61, 24), 1e300), UsageError),
        ("output.weight", np.full((61, 24), 3j), ShapeError),
    ],
)
def test_values_that_a_leaf_cannot_hold_are_refused(graph: Path, name: str, values: Any, error: type[GGError]) -> None:
    with gg.Runtime(graph, threads=1) as rt:
        before = rt.get(name)
        with pytest.raises(error, match=name):
            rt.set(name, values)
        np.testing.assert_array_equal(rt.get(name), before)
