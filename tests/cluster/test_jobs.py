"""`ggmlgraph train` as a job of several processes, started by the real mpiexec."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ggmlgraph as gg
from ggmlgraph.cluster.heartbeat import SILENCE_S
from ggmlgraph.models import gpt_neox, llama

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'ggmlgraph[mpi]'")
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
if MPIEXEC is None:
    pytest.skip("there is no mpiexec", allow_module_level=True)
COMMAND = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()", "train"]
OPTIONS = ["--threads", "1", "--accumulate", "4", "--predict", "0", "--save-every", "2", "--eval-every", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    for name, n_layer in (("graph", 1), ("other", 2)):
        config = llama.Config(n_vocab=256, n_embd=32, n_head=2, n_layer=n_layer, n_ff=48)
        gg.trace(llama.loss, config, batch=1, ctx=16).save(folder / f"{name}.bin")
    (folder / "text.txt").write_text("What was there yesterday is there today, and tomorrow too. " * 99)
    return folder


def train(folder: Path, run: str, *words: str, graph: str = "graph.bin") -> list[str]:
    return [*COMMAND, graph, "--data", "text.txt", "-o", run, *OPTIONS, *words]


def job(folder: Path, n_ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(MPIEXEC), "-n", str(n_ranks), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)


def weights(folder: Path, run: str) -> bytes:
    return (folder / run / "step_000006" / "weights.safetensors").read_bytes()


def test_run_has_the_same_weights_on_any_number_of_ranks_and_goes_on_on_another(folder: Path) -> None:
    assert job(folder, 1, *train(folder, "one", "--steps", "6", "--slots", "4")).returncode == 0
    result = job(folder, 3, *train(folder, "three", "--steps", "6"))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("step 6 of 6") == 1  # rank 0 alone tells it
    assert weights(folder, "three") == weights(folder, "one")
    shutil.copytree(folder / "three", folder / "four")
    shutil.rmtree(folder / "four" / "step_000006")
    assert job(folder, 4, *train(folder, "four", "--steps", "6", "--resume", "auto")).returncode == 0
    assert weights(folder, "four") == weights(folder, "one")


def test_gpt_neox_with_eight_slots_has_the_same_weights_on_every_number_of_ranks(folder: Path) -> None:
    config = gpt_neox.Config(n_vocab=256, n_embd=32, n_head=2, n_layer=1, n_ff=48)
    gg.trace(gpt_neox.loss, config, batch=1, ctx=16).save(folder / "neox.bin")
    for n_ranks in (1, 2, 5, 7, 8):
        words = ("--steps", "6", "--accumulate", "16", "--slots", "8")
        result = job(folder, n_ranks, *train(folder, f"neox{n_ranks}", *words, graph="neox.bin"))
        assert (result.returncode, result.stderr) == (0, "")
        assert weights(folder, f"neox{n_ranks}") == weights(folder, "neox1"), n_ranks


def test_rank_with_another_graph_ends_the_job(folder: Path) -> None:
    others = train(folder, "differs", "--steps", "6", graph="other.bin")
    result = job(folder, 1, *train(folder, "differs", "--steps", "6"), ":", "-n", "1", *others)
    assert result.returncode != 0
    assert "ggmlgraph: error: rank 1 on " in result.stderr
    assert ": the graph is " in result.stderr


def test_more_ranks_than_slots_end_in_one_line(folder: Path) -> None:
    result = job(folder, 3, *train(folder, "few", "--steps", "6", "--slots", "2"))
    assert result.returncode != 0
    assert result.stderr.count("ggmlgraph: error: 3 ranks for 2 slots") == 1


def test_rank_that_hangs_ends_the_job_with_its_name(folder: Path) -> None:
    command = [str(MPIEXEC), "-n", "2", *train(folder, "hangs", "--steps", "100000000")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        wait_for(folder / "hangs" / "step_000002")
        ranks = [pid for pid in descendants(process.pid) if environment(pid, "PMI_RANK") == "1"]
        os.kill(ranks[0], signal.SIGSTOP)
        stopped = time.monotonic()
        errors = process.communicate(timeout=60)[1]
    assert time.monotonic() - stopped < SILENCE_S + 20
    assert process.returncode != 0
    assert "error: rank 1 on " in errors and "has been silent for 10 s" in errors


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not come")


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def environment(pid: int, name: str) -> str | None:
    pairs = dict(each.partition("=")[::2] for each in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return pairs.get(name)
