"""Real ggml: it reads our files, computes them, writes the same graphs itself, and builds graphs of its own.

`library` makes the shared library of a dialect from what the package index publishes, once, under build/:

    v1    ggml-python 0.0.37, as it is installed
    v2a   the C sources inside the source distribution of llama-cpp-python 0.3.1, compiled here

The functions below it ask ggml_process.py, which answers each in a process of its own. Used by test_real_ggml.py,
test_mixed_graphs.py and test_support.py.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CACHE = Path(__file__).resolve().parents[2] / "build" / "real-ggml"
SOURCES = ("ggml.c", "ggml-alloc.c", "ggml-backend.c", "ggml-quants.c", "ggml-aarch64.c")
DIALECTS = ("v1", "v2a")
TIMEOUT = 120


class Unavailable(Exception):
    """This machine cannot make the library; the message says why."""


_unavailable: dict[Path, Unavailable] = {}


@contextmanager
def or_skip(what: str) -> Iterator[None]:
    """Skip the test if what it needs inside the `with` is Unavailable."""
    try:
        yield
    except Unavailable as reason:
        pytest.skip(f"for want of {what}: {reason}")


# ---------------------------------------------------------------- making the libraries


def library(dialect: str) -> Path:
    """The shared library whose dialect this is; ggml.h lies beside it. Raises Unavailable."""
    return made(CACHE / dialect / "libggml.so", {"v1": _take_v1, "v2a": _compile_v2a}[dialect])


def source() -> Path:
    """ggml.c of dialect v2a. Raises Unavailable."""
    return library("v2a").with_name("ggml.c")


def made(path: Path, maker: Callable[[Path], Path], *sources: Path) -> Path:
    """`path`, as it is if it is younger than its sources, else what `maker` makes in a directory of its own.

    Raises Unavailable, from then on without trying: asking the package index takes long. Processes that want the same
    file wait for the first.
    """
    if path in _unavailable:
        raise _unavailable[path]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and all(path.stat().st_mtime > source.stat().st_mtime for source in sources):
            return path
        try:
            with tempfile.TemporaryDirectory(dir=path.parent) as directory:
                return maker(Path(directory)).replace(path)
        except Unavailable as reason:
            _unavailable[path] = reason
            raise


def _take_v1(directory: Path) -> Path:
    """From the installed package."""
    package = find_spec("ggml")
    if package is None or package.origin is None:
        raise Unavailable("ggml-python is not installed")
    folder = Path(package.origin).parent
    shutil.copy(folder.parent / "include" / "ggml" / "ggml.h", CACHE / "v1" / "ggml.h")
    return Path(shutil.copy(folder / "libggml.so", directory))


def _compile_v2a(directory: Path) -> Path:
    compiler = need_compiler()
    unpack("llama-cpp-python==0.3.1", directory, "/vendor/llama.cpp/ggml/")
    root = next(directory.glob("*/vendor/llama.cpp/ggml"))
    for file in (root / "src" / "ggml.c", root / "include" / "ggml.h"):
        shutil.copy(file, CACHE / "v2a" / file.name)
    made = directory / "libggml.so"
    flags = ["-O2", "-w", "-std=gnu11", "-D_GNU_SOURCE", "-fPIC", "-shared", "-Wl,--no-undefined"]
    sources = [str(root / "src" / name) for name in SOURCES]
    run([compiler, *flags, f"-I{root / 'include'}", "-o", str(made), *sources, "-lm", "-lpthread"])
    return made


def need_compiler() -> str:
    """The C compiler. Raises Unavailable."""
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        raise Unavailable("no C compiler")
    return found


def unpack(package: str, directory: Path, folder: str, constraint: Path | None = None) -> None:
    """Put the C sources under `folder` of a package's source distribution into a directory. Raises Unavailable."""
    name = package.split("==")[0]
    pip("download", "--no-deps", "--dest", str(directory), "--no-binary", name, package, constraint=constraint)
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
    with tarfile.open(next(directory.glob("*.tar.gz"))) as archive:
        members = [m for m in archive if m.isfile() and folder in m.name and m.name.endswith((".c", ".h"))]
        archive.extractall(directory, members, **safely)


def pip(*arguments: str, constraint: Path | None = None) -> None:
    """Run pip; `constraint` is a file that says which build backends it may use."""
    variables = {name: str(constraint) for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT") if constraint}
    run([sys.executable, "-m", "pip", "--quiet", "--retries", "1", "--timeout", "60", *arguments], variables)


def run(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    """Run a command, with these environment variables too. Raises Unavailable with the end of what it said."""
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(variables or {})})
    if result.returncode:
        raise Unavailable(f"{' '.join(command[:5])}: {' '.join(result.stderr.split())[-300:]}")


# ---------------------------------------------------------------- what a test asks for


def compute(dialect: str, file: Path, inputs: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
    """Import a file, set its inputs, compute it; values of the tensors `outputs`, flat float32."""
    given, taken = file.with_suffix(".in.npz"), file.with_suffix(".out.npz")
    np.savez(given, **inputs)
    _ask(dialect, "compute", file, given, taken, *outputs)
    return _arrays(taken)


def reexport(dialect: str, file: Path, target: Path) -> None:
    """Import a file and export the graph again."""
    _ask(dialect, "reexport", file, target)


def rebuild(dialect: str, file: Path, target: Path) -> None:
    """Build the graph of a file with ggml's own constructors and export that."""
    _ask(dialect, "rebuild", file, target)


def make(dialect: str, name: str, target: Path) -> dict[str, Any]:
    """Build a graph of mixed_graphs.py and export it; what ggml computes of it, flat float32 out0, out1, ..."""
    _ask(dialect, "make", name, target, taken := target.with_suffix(".out.npz"))
    return _arrays(taken)


def differentiate(dialect: str, name: str, directory: Path) -> dict[str, Any]:
    """ggml's own gradients of a loss of mixed_graphs.py, flat float32, by the parameters' names."""
    _ask(dialect, "differentiate", name, taken := directory / f"{name}.grad.npz")
    return _arrays(taken)


def run_script(name: str, target: Path) -> Path:
    """Run a script that uses ggml-python's own API; it writes the target. Raises Unavailable without ggml-python."""
    command = [sys.executable, str(Path(__file__).with_name(name)), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    if "No module named 'ggml'" in result.stderr:
        raise Unavailable("it is not installed")
    if result.returncode:
        raise RuntimeError(f"{name} ended with {result.returncode}: {result.stderr[-1000:]}")
    return target


def _arrays(file: Path) -> dict[str, Any]:
    with np.load(file) as values:
        return dict(values)


def _ask(dialect: str, *words: Any) -> None:
    """Raises RuntimeError with what ggml printed if it does not end well."""
    process = _process(dialect)
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
    process.stdin.flush()
    status, printed = json.loads(process.stdout.readline())
    if status:
        raise RuntimeError(f"real ggml ended with {status}: {printed}")


@cache
def _process(dialect: str) -> subprocess.Popen[str]:
    path = library(dialect)
    command = [sys.executable, Path(__file__).with_name("ggml_process.py"), dialect, path, path.with_name("ggml.h")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)
    return process
