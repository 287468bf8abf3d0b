"""Profiles and `ggmlgraph bench`: every node's time is counted once, and what a kind of node moves and multiplies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.execution import profiler
from ggmlgraph.models import llama

LLAMA = llama.Config(n_vocab=61, n_embd=24, n_head=4, n_layer=2, n_ff=40)


@pytest.fixture
def graph(tmp_path: Path) -> str:
    path = tmp_path / "graph.bin"
    gg.trace(llama.loss, LLAMA, batch=4, ctx=16).save(path)
    return str(path)


def step(runtime: gg.Runtime) -> None:
    tokens = np.zeros((4, 16), np.int32)
    runtime.step((tokens, tokens), lr=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_nodes_add_up_to_no_more_than_the_run(graph: str, threads: int) -> None:
    with gg.Runtime(graph, threads=threads) as runtime:
        step(runtime)
        program = runtime.programs.train
        with program.profile() as seconds:
            start = time.perf_counter()
            step(runtime)
            total = time.perf_counter() - start
        recorded = seconds.copy()
        step(runtime)
    assert (seconds == recorded).all()  # a run outside the `with` is not recorded
    assert 0 < recorded.sum() <= total
    computed = [program.graph.op(i) for i in range(program.end) if recorded[i] > 0]
    assert "mul_mat" in computed
    assert "none" not in computed
    assert "reshape" not in computed


def test_kinds_hold_all_the_arithmetic(graph: str) -> None:
    with gg.Runtime(graph, threads=1) as runtime:
        program = runtime.programs.train
        with program.profile() as seconds:
            step(runtime)
        profile = profiler.by_kind(program, seconds, total=1.0)
        kinds = {kind.op: kind for kind in profile.kinds}
        assert sum(kind.flops for kind in profile.kinds) == program.cost().flops
        assert kinds["adamw"].calls == len(runtime.params)
        scalars = kinds["adamw"].calls * 4 * (12 + 1)  # hyper and the norm, once a node
        assert kinds["adamw"].nbytes == 28 * runtime.n_params + scalars
        assert kinds["get_rows"].nbytes == 4 * 64 * (24 + 24 + 1)


def test_bench_prints_steps(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", graph, "--steps", "2", "--batch", "2", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "machine", "step", "speed", "memory"]


def test_bench_prints_a_profile(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", graph, "--steps", "2", "--profile"]) == 0
    out = capsys.readouterr().out
    assert "linear_cross_entropy" in out
    assert "in matrix products" in out


@pytest.mark.parametrize(
    ("options", "keys"), [([], {"step_seconds", "share_of_peak"}), (["--profile"], {"kinds", "accounted", "products"})]
)
def test_bench_prints_json(graph: str, options: list[str], keys: set[str], capsys: Any) -> None:
    assert main.run(["bench", graph, "--steps", "1", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= keys
