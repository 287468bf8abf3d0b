"""Real ggml, driven through ctypes: it reads our files, computes them, and writes the same graphs itself.

`library` makes the shared library of a dialect from what the package index publishes, once, under build/:

    v1    ggml-python 0.0.37, installed beside everything else
    v2a   the C sources inside the source distribution of llama-cpp-python 0.3.1, compiled here

`compute`, `reexport` and `rebuild` each run this file as a process of its own, because ggml aborts on what it does not
like. Used by test_real_ggml.py.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ggmlgraph import cgraph
from ggmlgraph.dialect import DIALECTS, PARAM

CACHE = Path(__file__).resolve().parents[2] / "build" / "real-ggml"
SOURCES = ("ggml.c", "ggml-alloc.c", "ggml-backend.c", "ggml-quants.c", "ggml-aarch64.c")
TIMEOUT = 120


class Unavailable(Exception):
    """This machine cannot make the library; the message says why."""


# ---------------------------------------------------------------- making the libraries


def library(dialect: str) -> Path:
    """The shared library whose dialect this is. Raises Unavailable."""
    path, why_not = _made(dialect)
    if why_not:
        raise Unavailable(why_not)
    return path


def source() -> Path:
    """ggml.c of dialect v2a. Raises Unavailable."""
    path = CACHE / "v2a" / "ggml.c"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            _compile_v2a(Path(directory))
    return path


@cache
def _made(dialect: str) -> tuple[Path, str]:
    """Where the library is, and why it is not there: asked once, since asking the package index takes long."""
    path = CACHE / dialect / "libggml.so"
    if path.exists():
        return path, ""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            {"v1": _install_v1, "v2a": _compile_v2a}[dialect](Path(directory)).replace(path)
    except Unavailable as reason:
        return path, str(reason)
    return path, ""


def _install_v1(directory: Path) -> Path:
    _need_compiler()
    _pip(
        "install", "--no-deps", "--target", str(directory / "site"), "--no-binary", "ggml-python", "ggml-python==0.0.37"
    )
    return directory / "site" / "ggml" / "libggml.so"


def _compile_v2a(directory: Path) -> Path:
    compiler = _need_compiler()
    _pip(
        "download", "--no-deps", "--dest", str(directory), "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.1"
    )
    with tarfile.open(next(directory.glob("llama_cpp_python-*.tar.gz"))) as archive:
        members = [m for m in archive.getmembers() if "/vendor/llama.cpp/ggml/" in m.name]
        archive.extractall(directory, members, filter="data")
    root = next(directory.glob("*/vendor/llama.cpp/ggml"))
    shutil.copy(root / "src" / "ggml.c", CACHE / "v2a" / "ggml.c")
    made = directory / "libggml.so"
    flags = ["-O2", "-w", "-std=gnu11", "-D_GNU_SOURCE", "-fPIC", "-shared", "-Wl,--no-undefined"]
    sources = [str(root / "src" / name) for name in SOURCES]
    _run([compiler, *flags, f"-I{root / 'include'}", "-o", str(made), *sources, "-lm", "-lpthread"])
    return made


def _need_compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        raise Unavailable("no C compiler")
    return found


def _pip(*arguments: str) -> None:
    _run([sys.executable, "-m", "pip", "--quiet", "--retries", "1", "--timeout", "60", *arguments])


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Unavailable(f"{' '.join(command[:5])}: {' '.join(result.stderr.split())[-300:]}")


# ---------------------------------------------------------------- what a test asks for


def compute(dialect: str, file: Path, inputs: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
    """Import a file, set its inputs, compute it; values of the tensors `outputs`, flat float32."""
    given, taken = file.with_suffix(".in.npz"), file.with_suffix(".out.npz")
    np.savez(given, **inputs)
    _in_a_process("compute", dialect, file, given, taken, *outputs)
    with np.load(taken) as values:
        return dict(values)


def reexport(dialect: str, file: Path, target: Path) -> None:
    """Import a file and export the graph again."""
    _in_a_process("reexport", dialect, file, target)


def rebuild(dialect: str, file: Path, target: Path) -> None:
    """Build the graph of a file with ggml's own constructors and export that."""
    _in_a_process("rebuild", dialect, file, target)


def run_script(name: str, target: Path) -> Path:
    """Run a script that uses ggml-python's own API; it writes the target. Raises Unavailable without ggml-python."""
    command = [sys.executable, str(Path(__file__).with_name(name)), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    if "No module named 'ggml'" in result.stderr:
        raise Unavailable("ggml-python is not installed")
    if result.returncode:
        raise RuntimeError(f"{name} ended with {result.returncode}: {result.stderr[-1000:]}")
    return target


def _in_a_process(*arguments: Any) -> None:
    command = [sys.executable, __file__, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    if result.returncode:
        raise RuntimeError(f"real ggml ended with {result.returncode}: {result.stderr[-1000:]}")


# ---------------------------------------------------------------- the process

P, I32, I64, SIZE, F32, TEXT = (
    ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_float, ctypes.c_char_p,
)  # fmt: skip


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", SIZE), ("mem_buffer", P), ("no_alloc", ctypes.c_bool)]


FLAGS_OFFSET = 148  # of `flags` in v2a's struct ggml_tensor


class Ggml:
    """The library's functions by name, without the prefix: `g.add(a, b)` appends to the context."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self.lib = ctypes.CDLL(str(library(dialect)))
        self.lib.ggml_init.argtypes, self.lib.ggml_init.restype = [InitParams], P
        self.ctx = P(self.lib.ggml_init(InitParams(256 << 20, None, False)))

    def call(self, name: str, *arguments: Any) -> Any:
        """A function without a context; every argument a ctypes value."""
        function = self.lib["ggml_" + name]
        function.restype = SIZE if name == "nbytes" else I32 if name == "graph_compute_with_ctx" else P
        return function(*arguments)

    def make(self, name: str, *arguments: Any) -> Any:
        """A function that takes the context first and returns a tensor."""
        return P(self.call(name, self.ctx, *arguments))

    def data(self, tensor: Any) -> Any:
        """The tensor's bytes, writable."""
        n = self.call("nbytes", tensor)
        return (ctypes.c_char * n).from_address(self.call("get_data", tensor))

    def set_name(self, tensor: Any, name: str) -> None:
        """v2's ggml_set_name leaves the end of a longer older name behind the new one's NUL."""
        ctypes.memset(self.call("get_name", tensor), 0, 64)
        self.call("set_name", tensor, TEXT(name.encode()))

    def load(self, file: str) -> tuple[Any, Any]:
        """ggml_graph_import: the graph, and the context of its nodes."""
        data, nodes = P(None), P(None)
        graph = P(self.call("graph_import", TEXT(file.encode()), ctypes.byref(data), ctypes.byref(nodes)))
        if not graph:
            sys.exit("ggml_graph_import returned NULL")
        return graph, nodes

    def find(self, graph: Any, name: str) -> Any:
        tensor = P(self.call("graph_get_tensor", graph, TEXT(name.encode())))
        return tensor if tensor else sys.exit(f"ggml finds no tensor {name}")

    def export(self, graph: Any, file: str) -> None:
        self.call("graph_export", graph, TEXT(file.encode()))


def run_compute(g: Ggml, file: str, given: str, taken: str, *outputs: str) -> None:
    """The work buffer comes out of the nodes' own context, so size_eval must have room for it."""
    graph, nodes = g.load(file)
    with np.load(given) as inputs:
        for name, values in inputs.items():
            g.data(g.find(graph, name))[:] = values.tobytes()
    if g.call("graph_compute_with_ctx", nodes, graph, I32(2)) != 0:
        sys.exit("ggml_graph_compute_with_ctx failed")
    np.savez(taken, **{name: np.frombuffer(g.data(g.find(graph, name)), np.float32) for name in outputs})


def run_reexport(g: Ggml, file: str, target: str) -> None:
    g.export(g.load(file)[0], target)


# ---------------------------------------------------------------- ggml's constructors

Word = Callable[[int], Any]


def _sizes(record: cgraph.Record) -> list[Any]:
    return [I64(n) for n in record.ne]


def _rope(g: Ggml, r: cgraph.Record, f: Word, i: Word, a: Any, positions: Any) -> Any:
    scales = [f(w) for w in range(5, 11)]
    if g.dialect == "v1":
        return g.make("rope_custom", a, positions, i(1), i(2), I32(0), i(4), *scales)
    return g.make("rope_ext", a, positions, P(None), i(1), i(2), i(4), *scales)


def _rope_back(g: Ggml, r: cgraph.Record, f: Word, i: Word, a: Any, positions: Any) -> Any:
    words = [i(1), i(2), *([I32(0), i(4)] if g.dialect == "v1" else [i(4)]), *(f(w) for w in range(5, 11))]
    if g.dialect == "v1":
        return g.make("rope_back", a, positions, *words, F32(0), ctypes.c_bool(False))
    return g.make("rope_back", a, positions, P(None), *words)


def _view(g: Ggml, r: cgraph.Record, f: Word, i: Word, a: Any) -> Any:
    (offset,) = struct.unpack_from("<Q", r.op_params)
    return g.make("view_4d", a, *_sizes(r), *(SIZE(n) for n in r.nb[1:]), SIZE(offset))


def _repeat(g: Ggml, r: cgraph.Record, f: Word, i: Word, a: Any) -> Any:
    return g.make("repeat", a, g.make("new_tensor_4d", I32(0), *_sizes(r)))


# op -> how ggml's own function makes it, from the record, its op_params as f(word) and i(word), and its sources
CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "ROPE": _rope,
    "VIEW": _view,
    "REPEAT": _repeat,
    "SCALE": lambda g, r, f, i, a: g.make("scale", a, f(0)),
    "NORM": lambda g, r, f, i, a: g.make("norm", a, f(0)),
    "RMS_NORM": lambda g, r, f, i, a: g.make("rms_norm", a, f(0)),
    "DIAG_MASK_INF": lambda g, r, f, i, a: g.make("diag_mask_inf", a, i(0)),
    "SOFT_MAX": lambda g, r, f, i, a, mask=None: g.make("soft_max_ext", a, mask or P(None), f(0), f(1)),
    "PERMUTE": lambda g, r, f, i, a: g.make("permute", a, *(i(w) for w in range(4))),
    "RESHAPE": lambda g, r, f, i, a: g.make("reshape_4d", a, *_sizes(r)),
    "CONT": lambda g, r, f, i, a: g.make("cont_4d", a, *_sizes(r)),
    "DIAG_MASK_ZERO": lambda g, r, f, i, a: g.make("diag_mask_zero", a, i(0)),
    "ARGSORT": lambda g, r, f, i, a: g.make("argsort", a, i(0)),
    "CONCAT": lambda g, r, f, i, a, b: g.make("concat", a, b, *([] if g.dialect == "v1" else [i(0)])),
    "ROPE_BACK": _rope_back,
    "REPEAT_BACK": lambda g, r, f, i, a: g.make("repeat_back", a, g.make("new_tensor_4d", I32(0), *_sizes(r))),
    "UNARY": lambda g, r, f, i, a: g.make(r.unary.lower(), a),
}


def run_rebuild(g: Ggml, file: str, target: str) -> None:
    records = cgraph.read(file, g.dialect).records
    tensors: list[Any] = []
    for record in records:
        tensors.append(_tensor(g, record, [tensors[s] if s >= 0 else P(None) for s in record.src]))
    if DIALECTS[g.dialect].has_flags:
        for record, tensor in zip(records, tensors, strict=True):
            _set_flags(g, tensor, record.flags)
    graph = g.make("new_graph")
    used = {s for record in records for s in record.src}
    roots = [k for k, r in enumerate(records) if r.op != "NONE" and (r.name == "logits" or k not in used)]
    leafs = [k for k, r in enumerate(records) if r.op == "NONE" and k not in used]
    for k in roots + leafs:
        g.call("build_forward_expand", graph, tensors[k])
    g.export(graph, target)


def _tensor(g: Ggml, r: cgraph.Record, src: list[Any]) -> Any:
    def f(word: int) -> Any:
        return F32(struct.unpack_from("<f", r.op_params, 4 * word)[0])

    def i(word: int) -> Any:
        return I32(struct.unpack_from("<i", r.op_params, 4 * word)[0])

    if r.op == "NONE":
        tensor = g.make("new_tensor_4d", I32(DIALECTS[g.dialect].types[r.type]), *_sizes(r))
        g.data(tensor)[:] = b"".join(r.data()) if r.data else b""
    elif r.op in CONSTRUCTORS:
        tensor = CONSTRUCTORS[r.op](g, r, f, i, *src)
    else:
        tensor = g.make(r.op.lower(), *src)
    g.set_name(tensor, r.name)
    return tensor


def _set_flags(g: Ggml, tensor: Any, flags: int) -> None:
    """Once the graph is built: with gradients, ggml's constructors refuse products that broadcast.

    ggml_set_loss wants a gradient, so flags other than PARAM are set in the struct.
    """
    I32.from_address(tensor.value + FLAGS_OFFSET).value |= flags & ~PARAM
    if flags & PARAM:
        g.call("set_param", g.ctx, tensor)


if __name__ == "__main__":
    what, dialect, *arguments = sys.argv[1:]
    {"compute": run_compute, "reexport": run_reexport, "rebuild": run_rebuild}[what](Ggml(dialect), *arguments)
