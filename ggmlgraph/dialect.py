"""The dialects of the exported-cgraph format, as data.

A dialect is (layout, op numbers, type numbers); the version word of a file does not identify one. One table here
drives the reader and the writer (cgraph.py) and, through the tables that runtime/gen.py makes of it, the importer in C
(runtime/src/import.c), so it imports nothing but the standard library. Ops and types go by name everywhere else, and
op_params and sources are those of the newest dialect: where an older one differs, its `variations` say how.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

MAGIC = 0x67676D6C

INPUT, OUTPUT, PARAM, LOSS = 1, 2, 4, 8
ALL_FLAGS = INPUT | OUTPUT | PARAM | LOSS

KINDS = {"u32": "I", "i32": "i", "u64": "Q", "char": "s"}  # kind of a field -> struct code


@dataclass(frozen=True)
class Field:
    """One field of a record: `n` scalars of a kind, or `n` chars."""

    name: str
    kind: str
    n: int = 1

    @property
    def nbytes(self) -> int:
        return struct.calcsize(f"<{self.n}{KINDS[self.kind]}")


@dataclass(frozen=True)
class Layout:
    """The fields of a record, little-endian and without gaps."""

    fields: tuple[Field, ...]

    @cached_property
    def format(self) -> struct.Struct:
        return struct.Struct("<" + "".join(f"{f.n}{KINDS[f.kind]}" for f in self.fields))

    @property
    def nbytes(self) -> int:
        return self.format.size

    def n(self, name: str) -> int:
        """How many scalars or chars a field holds; 0 if there is no such field."""
        return sum(f.n for f in self.fields if f.name == name)

    def offset(self, name: str) -> int:
        """Bytes from the start of the record to a field."""
        at = 0
        for f in self.fields:
            if f.name == name:
                return at
            at += f.nbytes
        raise KeyError(name)


@dataclass(frozen=True)
class Type:
    """An element type: blocks of `block` elements in `nbytes` bytes. `decodes`: kernels read it as float32."""

    name: str
    block: int
    nbytes: int
    decodes: bool = False


@dataclass(frozen=True)
class Variation:
    """How a dialect stores an op that the newest dialect stores otherwise."""

    n_src: int  # sources the op takes at most
    words: tuple[int, ...]  # words[i]: which op_params word of the newest dialect the file's word i is
    implied: Mapping[int, int]  # words of the newest dialect that this file has no place for: the value they have


@dataclass(frozen=True)
class Dialect:
    """Everything that tells one kind of file from another."""

    name: str
    version: int  # word in the header
    header: Layout
    leaf: Layout  # followed by the data
    node: Layout
    node_base: int | None  # what src adds to a node's index; None: the number of leafs
    param_nodes: bool  # PARAM tensors are nodes and carry data; otherwise they are leafs
    ops: tuple[str, ...]  # enum ggml_op in order
    unary: tuple[str, ...]  # enum ggml_unary_op in order
    types: Mapping[str, int]  # enum ggml_type
    variations: Mapping[str, Variation]
    eval_padded: bool = True  # size_eval counts every node's bytes, each padded to 16
    same_shape: frozenset[str] = (
        frozenset()
    )  # ops that this ggml computes wrongly unless their sources are of one shape

    @property
    def has_flags(self) -> bool:
        """Whether records say what is trained; otherwise the metadata leaf does."""
        return bool(self.leaf.n("flags"))

    @cached_property
    def type_of(self) -> dict[int, Type]:
        return {number: TYPES[name] for name, number in self.types.items()}

    @cached_property
    def op_number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ops)}

    @cached_property
    def unary_number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.unary)}


# ---------------------------------------------------------------- types

# Those with a decoder in runtime/kernels/decode.c.
DECODED = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

TYPES = {
    name: Type(name, block, nbytes, name in DECODED)
    for name, block, nbytes in (
        ("F32", 1, 4), ("F16", 1, 2), ("BF16", 1, 2), ("F64", 1, 8),
        ("I8", 1, 1), ("I16", 1, 2), ("I32", 1, 4), ("I64", 1, 8),
        ("Q4_0", 32, 18), ("Q4_1", 32, 20), ("Q5_0", 32, 22), ("Q5_1", 32, 24), ("Q8_0", 32, 34), ("Q8_1", 32, 36),
        ("Q2_K", 256, 84), ("Q3_K", 256, 110), ("Q4_K", 256, 144), ("Q5_K", 256, 176), ("Q6_K", 256, 210),
        ("Q8_K", 256, 292), ("IQ2_XXS", 256, 66), ("IQ2_XS", 256, 74), ("IQ3_XXS", 256, 98), ("IQ1_S", 256, 50),
        ("IQ4_NL", 32, 18), ("IQ3_S", 256, 110), ("IQ2_S", 256, 82), ("IQ4_XS", 256, 136), ("IQ1_M", 256, 56),
        ("Q4_0_4_4", 32, 18), ("Q4_0_4_8", 32, 18), ("Q4_0_8_8", 32, 18), ("TQ1_0", 256, 54), ("TQ2_0", 256, 66),
    )
}  # fmt: skip

# Numbers frozen with GGUF; 4 and 5 were removed types.
_TYPE_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q8_1": 9, "Q2_K": 10, "Q3_K": 11,
    "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q8_K": 15, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19,
    "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28,
    "IQ1_M": 29, "BF16": 30, "Q4_0_4_4": 31, "Q4_0_4_8": 32, "Q4_0_8_8": 33, "TQ1_0": 34, "TQ2_0": 35,
}  # fmt: skip

# ---------------------------------------------------------------- layouts

_HEADER = Layout(
    (Field("magic", "u32"), Field("version", "u32"), Field("n_leafs", "u32"), Field("n_nodes", "u32"),
     Field("size_eval", "u64"))
)  # fmt: skip

_NUMBERS = (Field("type", "u32"), Field("op", "u32"))
_FLAGS = (Field("flags", "i32"),)
_SHAPE_AND_NAME = (
    *(Field(f"{axis}{i}", "u64") for i in range(4) for axis in ("ne", "nb")),
    Field("name", "char", 64), Field("op_params", "char", 64),
)  # fmt: skip
_SRC = (Field("src", "i32", 10),)

# ---------------------------------------------------------------- dialects

# op_params words that files may fill and no kernel reads.
UNREAD = {"ROPE": (3,), "ROPE_BACK": (3,)}  # n_ctx: only v1's mode 4 (GLM) reads it

_V2_OPS = """
NONE DUP ADD ADD1 ACC SUB MUL DIV SQR SQRT LOG SIN COS SUM SUM_ROWS MEAN ARGMAX COUNT_EQUAL REPEAT REPEAT_BACK CONCAT
SILU_BACK NORM RMS_NORM RMS_NORM_BACK GROUP_NORM MUL_MAT MUL_MAT_ID OUT_PROD SCALE SET CPY CONT RESHAPE VIEW PERMUTE
TRANSPOSE GET_ROWS GET_ROWS_BACK DIAG DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX SOFT_MAX_BACK ROPE ROPE_BACK CLAMP
CONV_TRANSPOSE_1D IM2COL IM2COL_BACK CONV_TRANSPOSE_2D POOL_1D POOL_2D POOL_2D_BACK UPSCALE PAD ARANGE
TIMESTEP_EMBEDDING ARGSORT LEAKY_RELU FLASH_ATTN_EXT FLASH_ATTN_BACK SSM_CONV SSM_SCAN WIN_PART WIN_UNPART GET_REL_POS
ADD_REL_POS RWKV_WKV UNARY MAP_UNARY MAP_BINARY MAP_CUSTOM1_F32 MAP_CUSTOM2_F32 MAP_CUSTOM3_F32 MAP_CUSTOM1
MAP_CUSTOM2 MAP_CUSTOM3 CROSS_ENTROPY_LOSS CROSS_ENTROPY_LOSS_BACK OPT_STEP_ADAMW
"""

_V2_UNARY = "ABS SGN NEG STEP TANH ELU RELU SIGMOID GELU GELU_QUICK SILU HARDSWISH HARDSIGMOID EXP"

# ggml 59bd3c43 (2024-11-04), the last ggml that exports and imports graphs.
V2 = Dialect(
    name="v2",
    version=2,
    header=_HEADER,
    leaf=Layout((*_NUMBERS, *_FLAGS, *_SHAPE_AND_NAME)),
    node=Layout((*_NUMBERS, *_FLAGS, *_SHAPE_AND_NAME, *_SRC)),
    node_base=None,
    param_nodes=True,
    ops=tuple(_V2_OPS.split()),
    unary=tuple(_V2_UNARY.split()),
    types=_TYPE_NUMBERS,
    variations={},
)

# The ggml inside the source distribution of llama-cpp-python 0.3.1 (2024-09-30): COUNT_EQUAL came between it and v2,
# so every op behind ARGMAX has another number under the same version word.
V2A = replace(V2, name="v2a", ops=tuple(op for op in V2.ops if op != "COUNT_EQUAL"))

_V1_OPS = """
NONE DUP ADD ADD1 ACC SUB MUL DIV SQR SQRT LOG SUM SUM_ROWS MEAN ARGMAX REPEAT REPEAT_BACK CONCAT SILU_BACK NORM
RMS_NORM RMS_NORM_BACK GROUP_NORM MUL_MAT MUL_MAT_ID OUT_PROD SCALE SET CPY CONT RESHAPE VIEW PERMUTE TRANSPOSE GET_ROWS
GET_ROWS_BACK DIAG DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX SOFT_MAX_BACK ROPE ROPE_BACK CLAMP CONV_TRANSPOSE_1D IM2COL
CONV_TRANSPOSE_2D POOL_1D POOL_2D UPSCALE PAD ARANGE TIMESTEP_EMBEDDING ARGSORT LEAKY_RELU FLASH_ATTN FLASH_ATTN_EXT
FLASH_FF FLASH_ATTN_BACK SSM_CONV SSM_SCAN WIN_PART WIN_UNPART GET_REL_POS ADD_REL_POS UNARY MAP_UNARY MAP_BINARY
MAP_CUSTOM1_F32 MAP_CUSTOM2_F32 MAP_CUSTOM3_F32 MAP_CUSTOM1 MAP_CUSTOM2 MAP_CUSTOM3 CROSS_ENTROPY_LOSS
CROSS_ENTROPY_LOSS_BACK
"""

# Words 11 and 12 of its rope are the base and direction of xPos, which later versions dropped; 0 turns it off.
_V1_ROPE = Variation(n_src=2, words=tuple(range(11)), implied={})

# ggml-python 0.0.37, that is ggml 7cf94a2b (2024-05-17): the newest package whose ggml imports graphs.
V1 = Dialect(
    name="v1",
    version=1,
    header=_HEADER,
    leaf=Layout((*_NUMBERS, *_SHAPE_AND_NAME)),
    node=Layout((*_NUMBERS, *_SHAPE_AND_NAME, *_SRC)),
    node_base=None,
    param_nodes=False,
    ops=tuple(_V1_OPS.split()),
    unary=tuple(name for name in V2.unary if name != "EXP"),
    types={name: number for name, number in _TYPE_NUMBERS.items() if number <= _TYPE_NUMBERS["BF16"]},
    variations={
        "ROPE": _V1_ROPE,
        "ROPE_BACK": _V1_ROPE,
        "CONCAT": Variation(n_src=2, words=(), implied={0: 2}),  # of dimension 2 only
        "GROUP_NORM": Variation(n_src=1, words=(0,), implied={1: 0x358637BD}),  # eps 1e-6f
        "FLASH_ATTN_EXT": Variation(n_src=4, words=(0, 1, 3), implied={2: 0}),  # no logit_softcap before prec
    },
    same_shape=frozenset({"SUB"}),
)

DIALECTS = {d.name: d for d in (V2, V2A, V1)}
