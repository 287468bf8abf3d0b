"""Activations computed again instead of kept: the same results in less memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import ggmlgraph as gg
from ggmlgraph.cli.amounts import Memory
from ggmlgraph.cli.commands import TRAIN
from ggmlgraph.core.passes import FUSIONS
from ggmlgraph.errors import MemoryLimitError
from ggmlgraph.execution.program import TrainProgram
from ggmlgraph.models import gpt_neox, llama

LLAMA = llama.Config(n_vocab=61, n_embd=24, n_head=4, n_head_kv=2, n_layer=4, n_ff=40, tied=True)
NEOX = gpt_neox.Config(n_vocab=61, n_embd=32, n_head=2, n_layer=4)
MODELS = [pytest.param(llama.loss, LLAMA, id="llama"), pytest.param(gpt_neox.loss, NEOX, id="gpt-neox")]
BOTH = pytest.mark.parametrize(("loss", "config"), MODELS)
ANY_MEMORY = 1 << 50


def export(path: Path, loss: Any, config: Any) -> Path:
    gg.trace(loss, config, batch=4, ctx=32).save(path, seed=5)
    return path


def batch(seed: int, n: int = 4) -> tuple[Any, Any]:
    windows = np.random.default_rng(seed).integers(0, 61, (n, 33), np.int32)
    return windows[:, :-1], windows[:, 1:]


def weights_after_steps(path: Path, limit: int, **options: Any) -> dict[str, Any]:
    with gg.Runtime(path, memory_limit=limit, **options) as rt:
        for seed in range(3):
            rt.step(batch(seed, 4 * rt.accumulate), lr=1e-2)
        return {name: w.copy() for name, w in rt.weights().items()}


def levels(path: Path) -> list[TrainProgram]:
    with gg.Runtime(path, memory_limit=ANY_MEMORY) as rt:
        return [rt.programs.train_at(level) for level in range(rt.programs.train.max_recompute + 1)]


@BOTH
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fusions", [FUSIONS, ()], ids=["fused", "unfused"])
def test_weights_are_the_same_bytes_at_every_level(
    tmp_path: Path, loss: Any, config: Any, accumulate: int, fusions: Any
) -> None:
    path = export(tmp_path / "graph.bin", loss, config)
    options: dict[str, Any] = {"accumulate": accumulate, "fusions": fusions}
    with gg.Runtime(path, memory_limit=ANY_MEMORY, **options) as rt:
        needs = {rt.programs.train_at(level).cost().nbytes for level in range(rt.programs.train.max_recompute + 1)}
    kept = weights_after_steps(path, ANY_MEMORY, **options)
    assert len(needs) > 2
    for limit in needs:
        again = weights_after_steps(path, limit, **options)
        assert all(np.array_equal(kept[name], again[name]) for name in kept)


@BOTH
def test_the_first_levels_save_memory_without_a_matrix_product(tmp_path: Path, loss: Any, config: Any) -> None:
    all_kept, *others = levels(export(tmp_path / "graph.bin", loss, config))
    cheap = others[all_kept.max_recompute // 2 - 1].cost()
    assert cheap.flops == all_kept.cost().flops
    assert cheap.arena_nbytes < 0.9 * all_kept.cost().arena_nbytes


@BOTH
def test_computing_everything_again_halves_the_memory(tmp_path: Path, loss: Any, config: Any) -> None:
    all_kept, *_, least = levels(export(tmp_path / "graph.bin", loss, config))
    assert least.cost().arena_nbytes < 0.5 * all_kept.cost().arena_nbytes


@BOTH
def test_plans_are_within_a_tenth_of_what_lives_at_once(tmp_path: Path, loss: Any, config: Any) -> None:
    for program in levels(export(tmp_path / "graph.bin", loss, config)):
        assert program.cost().arena_nbytes <= 1.1 * program.cost().live_nbytes


@BOTH
def test_no_forward_node_moves_when_activations_are_computed_again(tmp_path: Path, loss: Any, config: Any) -> None:
    all_kept, *_, least = levels(export(tmp_path / "graph.bin", loss, config))
    assert [all_kept.graph.op(i) for i in range(all_kept.loss + 1)] == [
        least.graph.op(i) for i in range(least.loss + 1)
    ]


def test_the_least_recomputation_that_fits_is_chosen(tmp_path: Path) -> None:
    path = export(tmp_path / "graph.bin", llama.loss, LLAMA)
    needs = [program.cost().nbytes for program in levels(path)]
    limit = needs[len(needs) // 2]
    with gg.Runtime(path, memory_limit=limit) as rt:
        assert rt.programs.train.recompute == next(i for i, n in enumerate(needs) if n <= limit)


def test_a_limit_below_full_recomputation_is_refused_with_what_it_would_need(tmp_path: Path) -> None:
    path = export(tmp_path / "graph.bin", llama.loss, LLAMA)
    least = min(program.cost().nbytes for program in levels(path))
    with gg.Runtime(path, memory_limit=least - 1) as rt, pytest.raises(MemoryLimitError, match=r"needs \d+ MiB"):
        _ = rt.programs.train


WITHIN = """
import re, sys
from pathlib import Path
import numpy as np
import ggmlgraph as gg
from ggmlgraph.execution.runtime import Runtime

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

windows = np.random.default_rng(0).integers(0, 256, (16, 129), np.int32)
Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
before = status("VmRSS")
with Runtime(sys.argv[1], threads=2, memory_limit=int(sys.argv[2])) as rt:
    losses = [rt.step((windows[:, :-1], windows[:, 1:]), lr=1e-2).loss.hex() for _ in range(3)]
    print(status("VmHWM") - before, rt.programs.train.recompute, *losses)
"""
PYTHON = 3 << 20  # bytes of Python's own objects


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not measure peaks anew")
def test_at_60_and_40_percent_of_the_peak_losses_are_the_same_bits_and_the_process_stays_within(tmp_path: Path) -> None:
    config = llama.Config(n_vocab=256, n_embd=64, n_head=4, n_layer=8, n_ff=192)
    gg.trace(llama.loss, config, batch=16, ctx=128).save(tmp_path / "graph.bin")
    with gg.Runtime(tmp_path / "graph.bin", threads=2, memory_limit=ANY_MEMORY) as rt:
        peak = rt.programs.train.cost().nbytes
    losses = set()
    for share in (1.0, 0.6, 0.4):
        command = [sys.executable, "-P", "-c", WITHIN, str(tmp_path / "graph.bin"), str(int(share * peak))]
        measured, level, *found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(measured) <= share * peak + PYTHON
        assert (int(level) > 0) == (share < 1)
        losses.add(tuple(found))
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("text", "n"), [("2G", 2 << 30), ("1.5 GiB", 3 << 29), ("800m", 800 << 20), ("4KB", 4096), ("77", 77)]
)
def test_sizes_are_read_as_people_write_them(text: str, n: int) -> None:
    assert Memory().convert(text, None, None) == n


@pytest.mark.parametrize("text", ["", "2T", "-1", "1e9", "G", "1.5.2M", "nan"])
def test_other_sizes_are_refused(tmp_path: Path, text: str) -> None:
    result = CliRunner().invoke(TRAIN, [str(tmp_path / "graph.bin"), "--memory-limit", text])
    assert result.exit_code == 2
    assert "is no size such as 800M or 2G" in result.output
