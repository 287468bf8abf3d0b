"""The process in which real ggml runs: `real_ggml` starts one for each dialect and asks it line by line.

Every answer is made in a fork, because ggml aborts on what it does not like. Its functions are called as its own header
declares them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixed_graphs
import numpy as np
from cffi import FFI

from ggmlgraph.graphfile import reader
from ggmlgraph.graphfile.records import Record
from ggmlgraph.table.dialect import DIALECTS, PARAM

TIMEOUT = 120  # seconds
PRINTED = 4000  # characters
MEMORY = 256 << 20
MAX_NODES = 4096
N_THREADS = 2

# Of the tensor the front, which both dialects have alike.
STRUCTURES = """
struct ggml_init_params { size_t mem_size; void * mem_buffer; bool no_alloc; };
struct ggml_tensor {
    int type, backend; void * buffer; int64_t ne[4]; size_t nb[4]; int op; int32_t op_params[16]; int32_t flags;
    struct ggml_tensor * grad, * src[10];
};
"""
KNOWN = {
    "void", "int", "int32_t", "int64_t", "size_t", "float", "bool", "char", "const", "struct",
    "ggml_tensor", "ggml_context", "ggml_cgraph", "ggml_init_params",
}  # fmt: skip


def declarations(header: str) -> str:
    """The functions of ggml.h that take and return numbers, texts, tensors and graphs; enums are int."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|\bGGML_CALL\b", "", header, flags=re.DOTALL)
    text = re.sub(r"\benum\s+\w+", "int", text)
    functions = re.findall(r"GGML_API\s+([\w\s*]+?\bggml_\w+)\s*\(([^()]*)\)\s*;", text)
    known = [
        f"{function}({parameters});"
        for function, parameters in functions
        if _types(function) | {t for p in parameters.split(",") for t in _types(p)} <= KNOWN
    ]
    return STRUCTURES + "\n".join(known)


def _types(declaration: str) -> set[str]:
    """The words of a declaration but for the name it declares, if it has one."""
    return set(re.findall(r"[A-Za-z_]\w*", re.sub(r"(?<=[\w*\s])\b\w+\s*(\[\w*\])?\s*$", "", declaration.strip())))


class Ggml:
    """ggml's functions by name, without the prefix: `g.add(a, b)` adds to the context. None stands for NULL.

    Below is what they lack for the graphs of mixed_graphs.py: leafs with values, and one form of what differs between
    the dialects. Sizes are ggml's, the fastest axis first.
    """

    def __init__(self, dialect: str, library: str, header: str) -> None:
        self.dialect = dialect
        self.ffi = FFI()
        self.ffi.cdef(declarations(Path(header).read_text()))
        self.lib: Any = self.ffi.dlopen(library)

    def start(self) -> None:
        """What a process needs for itself."""
        self.ctx = self.lib.ggml_init((MEMORY, self.ffi.NULL, False))
        self.rng = np.random.default_rng(0)
        self.leafs: list[Any] = []
        self.params: dict[str, Any] = {}
        self.trains = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.lib, f"ggml_{name}")
        takes_context = self.ffi.typeof(function).args[:1] == (self.ffi.typeof("struct ggml_context *"),)
        first = [self.ctx] if takes_context else []
        return lambda *arguments: function(*first, *(self.ffi.NULL if a is None else a for a in arguments))

    # ---------------------------------------------------------------- memory

    def data(self, tensor: Any) -> Any:
        """The tensor's bytes, writable."""
        return self.ffi.buffer(self.get_data(tensor), self.nbytes(tensor))

    def set_name(self, tensor: Any, name: str) -> None:
        """v2's ggml_set_name leaves the end of a longer older name behind the new one's NUL."""
        self.ffi.memmove(self.get_name(tensor), bytes(64), 64)
        self.lib.ggml_set_name(tensor, name.encode())

    def new(self, type_name: str, *ne: int) -> Any:
        return self.new_tensor_4d(DIALECTS[self.dialect].types[type_name], *ne, *[1] * (4 - len(ne)))

    def leaf(self, values: Any, type_name: str = "F32") -> Any:
        """A leaf x0, x1, ... of these values, whose axes are numpy's."""
        tensor = self.new(type_name, *reversed(values.shape))
        self.set_name(tensor, f"x{len(self.leafs)}")
        self.leafs.append(tensor)
        if type_name in ("F32", "I32"):
            self.data(tensor)[:] = np.ascontiguousarray(values, "<f4" if type_name == "F32" else "<i4").tobytes()
        else:
            flat = self.ffi.from_buffer("float[]", np.ascontiguousarray(values, "<f4"))
            n_rows = values.size // values.shape[-1]
            self.quantize_chunk(tensor.type, flat, self.get_data(tensor), 0, n_rows, values.shape[-1], None)
        return tensor

    def normal(self, *ne: int, type_name: str = "F32") -> Any:
        return self.leaf(self.rng.normal(size=ne[::-1]), type_name)

    def uniform(self, low: float, high: float, *ne: int) -> Any:
        return self.leaf(self.rng.uniform(low, high, ne[::-1]))

    def ids(self, limit: int, *ne: int) -> Any:
        return self.leaf(self.rng.integers(0, limit, ne[::-1]), "I32")

    def param(self, *ne: int, low: float = -1.0, high: float = 1.0) -> Any:
        """A leaf with respect to which the test differentiates."""
        tensor = self.uniform(low, high, *ne)
        if self.trains:
            self.set_param(tensor)
            self.params[f"x{len(self.leafs) - 1}"] = tensor
        return tensor

    # ---------------------------------------------------------------- what differs between the dialects

    def concat(self, a: Any, b: Any, dim: int) -> Any:
        """v1 only knows dimension 2."""
        return self.lib.ggml_concat(self.ctx, a, b, *([] if self.dialect == "v1" else [dim]))

    def group_norm(self, a: Any, n_groups: int, eps: float = 1e-6) -> Any:
        """v1 always takes 1e-6."""
        return self.lib.ggml_group_norm(self.ctx, a, n_groups, *([] if self.dialect == "v1" else [eps]))

    def rope(self, a: Any, positions: Any, n_dims: int, mode: int, n_ctx_orig: int = 0, freq_base: float = 1e4,
             freq_scale: float = 1.0, ext_factor: float = 0.0, attn_factor: float = 1.0, beta_fast: float = 0.0,
             beta_slow: float = 0.0, freq_factors: Any = None) -> Any:  # fmt: skip
        scales = freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
        if self.dialect == "v1":
            return self.rope_custom(a, positions, n_dims, mode, 0, n_ctx_orig, *scales)
        return self.rope_ext(a, positions, freq_factors, n_dims, mode, n_ctx_orig, *scales)

    # ---------------------------------------------------------------- graphs

    def graph(self, roots: list[Any], grads: bool = False) -> Any:
        graph = self.new_graph_custom(MAX_NODES, grads)
        for root in roots:
            self.build_forward_expand(graph, root)
        return graph

    def backward(self, loss: Any) -> Any:
        """The graph that also computes the gradients of a loss."""
        forward = self.graph([loss], grads=True)
        backward = self.graph_dup(forward)
        keeps = [False] if self.dialect == "v1" else [False, False]
        self.build_backward_expand(forward, backward, *keeps)
        self.set_f32(loss.grad, 1.0)
        return backward

    def run(self, graph: Any, context: Any = None) -> None:
        """The work buffer comes out of the context."""
        if self.lib.ggml_graph_compute_with_ctx(context or self.ctx, graph, N_THREADS) != 0:
            sys.exit("ggml_graph_compute_with_ctx failed")

    def load(self, file: str) -> tuple[Any, Any]:
        """ggml_graph_import: the graph, and the context of its nodes."""
        data, nodes = self.ffi.new("struct ggml_context **"), self.ffi.new("struct ggml_context **")
        graph = self.graph_import(file.encode(), data, nodes)
        return (graph, nodes[0]) if graph else sys.exit("ggml_graph_import returned NULL")

    def find(self, graph: Any, name: str) -> Any:
        tensor = self.graph_get_tensor(graph, name.encode())
        return tensor if tensor else sys.exit(f"ggml finds no tensor {name}")

    def save(self, values: dict[str, Any], target: str) -> None:
        """Tensors as flat arrays of 32-bit words."""
        np.savez(target, **{name: np.frombuffer(self.data(t), np.float32) for name, t in values.items()})


# ---------------------------------------------------------------- what it is asked


def compute(g: Ggml, file: str, given: str, taken: str, *outputs: str) -> None:
    """size_eval must have room for the work buffer."""
    graph, nodes = g.load(file)
    with np.load(given) as inputs:
        for name, values in inputs.items():
            g.data(g.find(graph, name))[:] = values.tobytes()
    g.run(graph, nodes)
    g.save({name: g.find(graph, name) for name in outputs}, taken)


def reexport(g: Ggml, file: str, target: str) -> None:
    g.graph_export(g.load(file)[0], target.encode())


def rebuild(g: Ggml, file: str, target: str) -> None:
    records = reader.read(file, g.dialect).records
    tensors: list[Any] = []
    for record in records:
        tensors.append(_tensor(g, record, [tensors[s] if s >= 0 else None for s in record.src]))
    if DIALECTS[g.dialect].has_flags:
        for record, tensor in zip(records, tensors, strict=True):
            _set_flags(g, tensor, record.flags)
    used = {s for record in records for s in record.src}
    roots = [k for k, r in enumerate(records) if r.op != "NONE" and (r.name == "logits" or k not in used)]
    leafs = [k for k, r in enumerate(records) if r.op == "NONE" and k not in used]
    g.graph_export(g.graph([tensors[k] for k in roots + leafs]), target.encode())


def make(g: Ggml, name: str, file: str, taken: str) -> None:
    """Build one of mixed_graphs.py, export it, compute it, and keep what it returns as out0, out1, ..."""
    outputs = _built(g, name)
    for k, tensor in enumerate(outputs):
        g.set_name(tensor, f"out{k}")
    graph = g.graph(outputs)
    g.graph_export(graph, file.encode())
    g.run(graph)
    g.save({f"out{k}": tensor for k, tensor in enumerate(outputs)}, taken)


def differentiate(g: Ggml, name: str, taken: str) -> None:
    """The gradients that ggml finds of a loss of mixed_graphs.py, by the parameters' names."""
    g.trains = True
    (loss,) = _built(g, name)
    g.run(g.backward(loss))
    g.save({name: tensor.grad for name, tensor in g.params.items()}, taken)


def _built(g: Ggml, name: str) -> list[Any]:
    g.rng = np.random.default_rng(zlib.crc32(name.encode()))
    made = mixed_graphs.GRAPHS[name].build(g)
    return list(made) if isinstance(made, tuple) else [made]


COMMANDS: dict[str, Callable[..., None]] = {
    "compute": compute, "reexport": reexport, "rebuild": rebuild, "make": make, "differentiate": differentiate,
}  # fmt: skip


# ---------------------------------------------------------------- ggml's constructors

Word = Callable[[int], Any]


def _rope_back(g: Ggml, r: Record, f: Word, i: Word, a: Any, positions: Any, freq_factors: Any = None) -> Any:
    scales = [f(w) for w in range(5, 11)]
    if g.dialect == "v1":
        return g.rope_back(a, positions, i(1), i(2), 0, i(4), *scales, 0.0, False)
    return g.rope_back(a, positions, freq_factors, i(1), i(2), i(4), *scales)


def _view(g: Ggml, r: Record, f: Word, i: Word, a: Any) -> Any:
    return g.view_4d(a, *r.ne, *r.nb[1:], *struct.unpack_from("<Q", r.op_params))


def _like(g: Ggml, r: Record) -> Any:
    """A tensor that gives its shape only."""
    return g.new_tensor_4d(0, *r.ne)


def _flash_attn_ext(g: Ggml, r: Record, f: Word, i: Word, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    y = g.flash_attn_ext(q, k, v, mask, f(0), f(1), *([] if g.dialect == "v1" else [f(2)]))
    g.flash_attn_ext_set_prec(y, i(3))
    return y


def _mul_mat(g: Ggml, r: Record, f: Word, i: Word, a: Any, b: Any) -> Any:
    y = g.mul_mat(a, b)
    if i(0):
        g.mul_mat_set_prec(y, i(0))
    return y


def _opt_step_adamw(g: Ggml, r: Record, f: Word, i: Word, p: Any, *moments: Any) -> Any:
    """It makes gradient and moments itself, of which the file has its own."""
    g.set_param(p)
    y = g.opt_step_adamw(p, *(f(w) for w in range(2, 7)))
    y.op_params[0] = i(0)
    y.src[1 : 1 + len(moments)] = moments
    p.flags, p.grad = 0, g.ffi.NULL
    return y


# op -> how ggml's own function makes it, from the record, its op_params as f(word) and i(word), and its sources.
# Those that are not here take tensors alone.
CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "ACC": lambda g, r, f, i, a, b: g.acc(a, b, i(0), i(1), i(2), i(3)),
    "ARANGE": lambda g, r, f, i: g.arange(f(0), f(1), f(2)),
    "ARGSORT": lambda g, r, f, i, a: g.argsort(a, i(0)),
    "CLAMP": lambda g, r, f, i, a: g.clamp(a, f(0), f(1)),
    "CONCAT": lambda g, r, f, i, a, b: g.concat(a, b, i(0)),
    "CONT": lambda g, r, f, i, a: g.cont_4d(a, *r.ne),
    "CONV_TRANSPOSE_1D": lambda g, r, f, i, a, b: g.conv_transpose_1d(a, b, i(0), i(1), i(2)),
    "CONV_TRANSPOSE_2D": lambda g, r, f, i, a, b: g.conv_transpose_2d_p0(a, b, i(0)),
    "DIAG_MASK_INF": lambda g, r, f, i, a: g.diag_mask_inf(a, i(0)),
    "DIAG_MASK_ZERO": lambda g, r, f, i, a: g.diag_mask_zero(a, i(0)),
    "FLASH_ATTN_EXT": _flash_attn_ext,
    "GET_ROWS_BACK": lambda g, r, f, i, a, b: g.get_rows_back(a, b, _like(g, r)),
    "GROUP_NORM": lambda g, r, f, i, a: g.group_norm(a, i(0), f(1)),
    "IM2COL": lambda g, r, f, i, a, b: g.im2col(
        a, b, *(i(w) for w in range(6)), bool(i(6)), DIALECTS[g.dialect].types[r.type]
    ),
    "IM2COL_BACK": lambda g, r, f, i, a, b: g.im2col_back(a, b, list(r.ne), *(i(w) for w in range(6)), bool(i(6))),
    "LEAKY_RELU": lambda g, r, f, i, a: g.leaky_relu(a, f(0), False),
    "MUL_MAT": _mul_mat,
    "NORM": lambda g, r, f, i, a: g.norm(a, f(0)),
    "OPT_STEP_ADAMW": _opt_step_adamw,
    "PAD": lambda g, r, f, i, a: g.pad(a, *(n - a.ne[k] for k, n in enumerate(r.ne))),
    "PERMUTE": lambda g, r, f, i, a: g.permute(a, *(i(w) for w in range(4))),
    "POOL_1D": lambda g, r, f, i, a: g.pool_1d(a, *(i(w) for w in range(4))),
    "POOL_2D": lambda g, r, f, i, a: g.pool_2d(a, *(i(w) for w in range(7))),
    "POOL_2D_BACK": lambda g, r, f, i, a, b: g.pool_2d_back(a, b, *(i(w) for w in range(7))),
    "REPEAT": lambda g, r, f, i, a: g.repeat(a, _like(g, r)),
    "REPEAT_BACK": lambda g, r, f, i, a: g.repeat_back(a, _like(g, r)),
    "RESHAPE": lambda g, r, f, i, a: g.reshape_4d(a, *r.ne),
    "RMS_NORM": lambda g, r, f, i, a: g.rms_norm(a, f(0)),
    "RMS_NORM_BACK": lambda g, r, f, i, a, b: g.rms_norm_back(a, b, f(0)),
    "ROPE": lambda g, r, f, i, a, positions, factors=None: g.rope(
        a, positions, i(1), i(2), i(4), *(f(w) for w in range(5, 11)), factors
    ),
    "ROPE_BACK": _rope_back,
    "SCALE": lambda g, r, f, i, a: g.scale(a, f(0)),
    "SET": lambda g, r, f, i, a, b: g.set(a, b, i(0), i(1), i(2), i(3)),
    "SOFT_MAX": lambda g, r, f, i, a, mask=None: g.soft_max_ext(a, mask, f(0), f(1)),
    "TIMESTEP_EMBEDDING": lambda g, r, f, i, a: g.timestep_embedding(a, i(0), i(1)),
    "UNARY": lambda g, r, f, i, a: getattr(g, r.unary.lower())(a),
    "UPSCALE": lambda g, r, f, i, a: g.upscale_ext(a, *r.ne),
    "VIEW": _view,
}


def _tensor(g: Ggml, r: Record, src: list[Any]) -> Any:
    def f(word: int) -> Any:
        return struct.unpack_from("<f", r.op_params, 4 * word)[0]

    def i(word: int) -> Any:
        return struct.unpack_from("<i", r.op_params, 4 * word)[0]

    if r.op == "NONE":
        tensor = g.new(r.type, *r.ne)
        g.data(tensor)[:] = b"".join(r.data()) if r.data else b""
    elif r.op in CONSTRUCTORS:
        tensor = CONSTRUCTORS[r.op](g, r, f, i, *src)
    else:
        tensor = getattr(g, r.op.lower())(*src)
    g.set_name(tensor, r.name)
    return tensor


def _set_flags(g: Ggml, tensor: Any, flags: int) -> None:
    """Once the graph is built: with gradients, ggml's constructors refuse products that broadcast.

    ggml_set_loss wants a gradient, so flags other than PARAM are set in the struct.
    """
    tensor.flags |= flags & ~PARAM
    if flags & PARAM:
        g.set_param(tensor)


# ---------------------------------------------------------------- the process


def serve(g: Ggml) -> None:
    """A line of JSON comes in, [command, *arguments]; one goes out, [status, the end of what was printed]."""
    for line in sys.stdin:
        with tempfile.TemporaryFile() as log:
            status = _in_a_fork(g, json.loads(line), log.fileno())
            log.seek(0)
            print(json.dumps([status, log.read().decode(errors="replace")[-PRINTED:]]), flush=True)


def _in_a_fork(g: Ggml, asked: list[str], log: int) -> int:
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["PATH"] = ""  # ggml would look for a debugger
        signal.alarm(TIMEOUT)
        g.start()
        COMMANDS[asked[0]](g, *asked[1:])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(Ggml(*sys.argv[1:]))
