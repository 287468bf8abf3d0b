"""Print docs/support.md: which of ggml's ops run and train here, and which in ggml. Run by `make docs`.

What is said of us comes from the op table and from asking the runtime. What is said of ggml is read in its source of
dialect v2a (`ggml_compute_backward`, and the types that `ggml_compute_forward_*` switch on);
tests/peers/test_support.py compares it with that source.
"""

from __future__ import annotations

from collections.abc import Iterator

import ggmlgraph.table.ops  # noqa: F401  (fills the table)
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.errors import GGError
from ggmlgraph.table.dialect import V2, V2A
from ggmlgraph.table.op import TABLE, Op

HEAD = """# Supported ops

Made by `make docs` from the op table. One line for every op that a file of dialect v2 can name; ops with pointers
(MAP_*) are never run. *ggml* is what its own source (dialect v2a) has; where it has a derivative, that may be one for
equal shapes only. *Operand*: types of the first operand besides F32. Masks, and keys and values of FLASH_ATTN_EXT, may
be of any of these types too; IM2COL makes F32 or F16; CPY and casts convert F32, F16, BF16 and quantised numbers to
F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0. Gradients pass a rounding as if it were none.

An op that does not run is refused when a file is read, with its name and that of its node (`UnsupportedOp`).
FLASH_ATTN_BACK is among them because no file has it: ggml's own function that makes it aborts.

| op | here | derivative here | operand here | derivative in ggml | operand in ggml |
|---|---|---|---|---|---|
"""

# Cases of ggml_compute_backward that compute something.
_GGML_BACKWARD = """
ABS ACC ADD ADD1 CONT COS CPY CROSS_ENTROPY_LOSS DIAG_MASK_INF DIAG_MASK_ZERO DIV DUP EXP GET_ROWS IM2COL LOG MUL
MUL_MAT NEG PERMUTE POOL_2D RELU REPEAT REPEAT_BACK RESHAPE RMS_NORM ROPE SCALE SET SGN SILU SIN SOFT_MAX SQR
SQRT STEP SUB SUM SUM_ROWS TRANSPOSE VIEW
"""
GGML_BACKWARD = frozenset(_GGML_BACKWARD.split())

ALL, HALVES = ("F16", "BF16", "quantised"), ("F16", "BF16")
F16 = ("F16",)
GGML_TYPES = {
    "MUL_MAT": ALL, "MUL_MAT_ID": ALL, "GET_ROWS": ALL, "ADD": ALL, "ADD1": ALL, "OUT_PROD": ("quantised",),
    "DUP": HALVES, "CPY": HALVES, "CONT": HALVES, "SUM": HALVES, "REPEAT": HALVES, "ROPE": F16, "ROPE_BACK": F16,
    "GET_ROWS_BACK": F16, "CONV_TRANSPOSE_1D": F16, "CONV_TRANSPOSE_2D": F16, "POOL_1D": F16, "POOL_2D": F16,
    "RESHAPE": ALL, "VIEW": ALL, "PERMUTE": ALL, "TRANSPOSE": ALL, "GET_REL_POS": HALVES,
}  # fmt: skip
PROBES = {"F16": "f16", "BF16": "bf16", "quantised": "q8_0"}
AXES = {f"axis{k}": k for k in range(4)}


def rows() -> Iterator[tuple[str, Op | None]]:
    """Every op of the newest dialect by ggml's name, unary ones by their own, and its row of the table."""
    table = {(op.ggml, op.unary): op for op in TABLE.values() if op.ggml and not op.exact}
    for name in V2.ops:
        if name == "UNARY":
            yield from ((unary, table.get((name, unary))) for unary in V2.unary)
        elif name != "NONE" and not name.startswith("MAP_"):
            yield name, table.get((name, None))


def takes(op: Op, type_name: str) -> bool:
    """Whether the op may have a first operand of that type."""
    if op.sources[0] in op.decoded:
        return True
    graph = CoreGraph()
    sizes = {"MUL_MAT_ID": [(4, 4, 256), (1, 4, 256), (1, 4)], "GET_ROWS": [(4, 256), (4,)]}
    shapes = sizes.get(str(op.ggml), [(256, 256)] * len(op.sources))
    types = [type_name if k == 0 else "i32" if name == "ids" else "f32" for k, name in enumerate(op.sources)]
    src = [graph.leaf(t, shape, 0, f"operand{k}") for k, (t, shape) in enumerate(zip(types, shapes, strict=True))]
    params = dict.fromkeys((p.name for p in op.params), 0) | (AXES if op.name == "permute" else {})
    try:
        graph.node(
            op, src, params, shapes[0] if op.sized else None, graph.strides(src[0]) if op.name == "view" else None
        )
    except GGError:
        return False
    return True


def here(op: Op | None) -> str:
    """Whether an op runs and has a derivative."""
    if op is None:
        return "no | no"
    return "yes | yes" if op.vjp else "yes | zero" if op.no_gradient else "yes | no"


def page() -> Iterator[str]:
    """The lines of the page."""
    yield HEAD.rstrip("\n")
    for name, op in rows():
        ours = ", ".join(t for t, probe in PROBES.items() if op and op.sources and takes(op, probe))
        theirs = ", ".join(GGML_TYPES.get(name, ()))
        known = name in V2A.ops or name in V2A.unary
        backward = "yes" if name in GGML_BACKWARD else "no" if known else "not in v2a"
        yield f"| {name} | {here(op)} | {ours} | {backward} | {theirs} |"


if __name__ == "__main__":
    print("\n".join(page()))
