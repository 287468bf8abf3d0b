"""Processes of the real MPI: the same bits for every number of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ggmlgraph as gg
from ggmlgraph.models import gpt_neox, llama

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'ggmlgraph[mpi]'")
STEPS = Path(__file__).with_name("steps.py")
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
if MPIEXEC is None:
    pytest.skip("there is no mpiexec", allow_module_level=True)


def on(n_ranks: int, graph: Path) -> str:
    command = [str(MPIEXEC), "-n", str(n_ranks), sys.executable, "-P", str(STEPS), str(graph)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.parametrize("model", [llama, gpt_neox], ids=["llama", "gpt_neox"])
def test_weights_are_the_same_for_every_number_of_ranks(model: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "graph.bin"
    config = model.Config(n_vocab=32, n_embd=32, n_head=2, n_layer=1, n_ff=48)
    gg.trace(model.loss, config, batch=1, ctx=16).save(path)
    alone = on(1, path)
    for n_ranks in (2, 3, 4, 5, 7, 8):
        assert on(n_ranks, path) == alone, n_ranks
