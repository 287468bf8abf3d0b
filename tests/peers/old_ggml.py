"""The ggml of 2023, made from source distributions on the package index: old_ggml.c and their C sources in one program.

    python tests/peers/old_ggml.py        writes tests/data/ggml2023 again

`make` has a version build, compute and export a graph, `compute` has it import one. Used by test_old_ggml.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import real_ggml
from real_ggml import CACHE, TIMEOUT

OURS = Path(__file__).with_name("old_ggml.c")
KEPT = Path(__file__).resolve().parents[1] / "data" / "ggml2023"
GRAPHS = ("mlp", "transformer")
# dialect -> package and version; whether rope takes positions, which norms take eps, whether graphs are pointers
PACKAGES = {
    "v1a": ("ggml-python==0.0.24", 1, 2, 1),
    "v1b": ("ggml-python==0.0.23", 1, 2, 1),
    "v1c": ("llama-cpp-python==0.2.14", 1, 2, 0),
    "v1d": ("ggml-python==0.0.21", 1, 2, 0),
    "v1e": ("ggml-python==0.0.20", 1, 2, 0),
    "v1f": ("ggml-python==0.0.17", 0, 2, 0),
    "v1g": ("ggml-python==0.0.13", 0, 1, 0),
    "v1h": ("ggml-python==0.0.11", 0, 1, 0),
    "v1i": ("llama-cpp-python==0.1.74", 0, 0, 0),
}
SOURCES = ("ggml.c", "ggml-alloc.c", "ggml-backend.c", "ggml-quants.c", "k_quants.c")


def program(dialect: str) -> Path:
    """The program of a dialect, compiled at most once. Raises Unavailable."""
    return real_ggml.made(CACHE / dialect / "old_ggml", partial(_compile, dialect), OURS)


def _compile(dialect: str, directory: Path) -> Path:
    compiler = real_ggml.need_compiler()
    package, positions, eps, pointers = PACKAGES[dialect]
    root = _unpack(package, directory)
    source = next(path for path in (root / "src", root) if (path / "ggml.c").exists())
    files = [str(source / name) for name in SOURCES if (source / name).exists()]
    includes = [f"-I{path}" for path in (source, root / "include", root / "include" / "ggml") if path.exists()]
    defines = [f"-DPOSITIONS={positions}", f"-DEPS={eps}", f"-DGRAPH_POINTERS={pointers}"]
    defines += ["-DGGML_USE_K_QUANTS"] if (source / "k_quants.c").exists() else []
    flags = ["-O1", "-w", "-std=gnu11", "-D_GNU_SOURCE", *defines, *includes]
    made = directory / "old_ggml"
    real_ggml.run([compiler, *flags, "-o", str(made), str(OURS), *files, "-lm", "-lpthread"])
    return made


def _unpack(package: str, directory: Path) -> Path:
    """The root of the C sources in a source distribution. To fetch one, pip asks its build backend, an old one."""
    constraint = directory / "constraint.txt"
    constraint.write_text("scikit-build-core<0.10\n")
    real_ggml.unpack(package, directory, "/vendor/", constraint)
    return next(path for path in directory.glob("*/vendor/*") if path.name in ("ggml", "llama.cpp"))


def make(dialect: str, graph: str, directory: Path) -> tuple[Path, Path]:
    """A graph as this version exports it, and its result as raw floats."""
    file, result = directory / f"{graph}_{dialect}.ggml", directory / f"{graph}_{dialect}.f32"
    _run(dialect, "make", graph, file, result)
    return file, result


def compute(dialect: str, file: Path, names: Sequence[str], directory: Path) -> dict[str, Any]:
    """Import a file and compute it; tensors of it, flat float32."""
    results = {name: directory / f"{k}.out" for k, name in enumerate(names)}
    _run(dialect, "compute", file, *(part for pair in results.items() for part in pair))
    return {name: np.fromfile(path, np.float32) for name, path in results.items()}


def _run(dialect: str, *arguments: Any) -> None:
    command = [str(program(dialect)), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    if result.returncode:
        raise RuntimeError(f"ggml of {dialect} ended with {result.returncode}: {result.stderr[-1000:]}")


if __name__ == "__main__":
    KEPT.mkdir(parents=True, exist_ok=True)
    for dialect in PACKAGES:
        for graph in GRAPHS:
            make(dialect, graph, KEPT)
