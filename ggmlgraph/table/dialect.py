"""The dialects of the exported-cgraph format, as data.

A dialect is (layout, op numbers, type numbers); the version word of a file does not identify one. One table here
drives reader and writer (graphfile/reader.py, writer.py) and, through the tables that runtime/gen.py makes of it, the
importer in C (runtime/src/import.c), so it imports nothing but the standard library. Ops and types go by name
everywhere else, and op_params and sources are those of the newest dialect: where an older one differs, its `variations`
say how.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

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
    """An element type: blocks of `block` elements in `nbytes` bytes. `decodes`: kernels read it as float32. `encodes`:
    float32 is copied into it. `numpy`: the dtype that is the same in memory, if numpy has one."""

    name: str
    block: int
    nbytes: int
    decodes: bool = False
    encodes: bool = False
    numpy: str | None = None


SIZE_0, SET = -1, -2  # in place of a word's value: the size of dimension 0; anything but zero
NOTHING = -1  # in place of a source or word of the newest dialect: what it does not need


@dataclass(frozen=True)
class Only:
    """What a word must be for this dialect's ggml and the newest to compute the same: bits, SIZE_0 or SET."""

    word: int
    value: int
    mode: int | None = None  # says so only of an op whose word 2 is this


@dataclass(frozen=True)
class Variation:
    """How a dialect stores an op that the newest dialect stores otherwise."""

    src: tuple[int, ...]  # src[k]: which source of the newest dialect the file's source k is
    words: tuple[int, ...] = ()  # words[i]: which op_params word of the newest dialect the file's word i is
    implied: Mapping[int, int] = field(default_factory=dict)  # words that the file has no place for: what they are
    op: str | None = None  # what the newest dialect calls it, if not the same
    scalar: int | None = None  # which source has one element only
    words_in: int | None = None  # which source holds the words, a leaf with as many numbers of 4 bytes
    only: tuple[Only, ...] = ()


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
    data_unit: int = 1  # bytes of data are a multiple of this
    same_shape: frozenset[str] = frozenset()  # ops that this ggml computes only of sources of one shape
    refused: frozenset[str] = frozenset()  # ops that mean here what the newest dialect has no op for
    is_written: bool = True  # by our commands; the others are only read

    def data_nbytes(self, nbytes: int) -> int:
        """What a file has behind the record of a tensor of `nbytes`."""
        return (nbytes + self.data_unit - 1) // self.data_unit * self.data_unit

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

# Those with an encoder in runtime/kernels/encode.c.
ENCODED = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

TYPES = {
    name: Type(name, block, nbytes, name in DECODED, name in ENCODED, NUMPY.get(name))
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

ONE, EPS_5, EPS_6 = 0x3F800000, 0x3727C5AC, 0x358637BD  # 1, 1e-5 and 1e-6 as float32

# Mode 0 of its rope turned whole rows, whatever n_dims was; mode 2 multiplied by freq_scale twice and counted YaRN's
# dimensions otherwise. Words 11 and 12 are the base and direction of xPos, which later versions dropped; 0 is without.
_PLAIN_MODE_2 = (Only(6, ONE, mode=2), Only(7, 0, mode=2))
_V1_ROPE = Variation(src=(0, 1), words=tuple(range(11)), only=(Only(1, SIZE_0, mode=0), *_PLAIN_MODE_2))

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
        "CONCAT": Variation(src=(0, 1), implied={0: 2}),  # of dimension 2 only
        "GROUP_NORM": Variation(src=(0,), words=(0,), implied={1: EPS_6}),
        "FLASH_ATTN_EXT": Variation(src=(0, 1, 2, 3), words=(0, 1, 3)),  # no logit_softcap before prec
    },
    same_shape=frozenset({"SUB"}),
)

# ---------------------------------------------------------------- dialects that are only read


def _records(name: int, op_params: int, n_src: int) -> dict[str, Layout]:
    """Leaf and node of 2023, when a record had its number of dimensions where v2 has the flags."""
    sizes = tuple(Field(f"{axis}{i}", "u64") for i in range(4) for axis in ("ne", "nb"))
    leaf = (*_NUMBERS, Field("n_dims", "u32"), *sizes, Field("name", "char", name))
    if op_params:
        leaf = (*leaf, Field("op_params", "char", op_params))
    return {"leaf": Layout(leaf), "node": Layout((*leaf, Field("src", "i32", n_src)))}


def _ops(windows: str, without: str = "") -> tuple[str, ...]:
    """The ops of 2023, between which those on windows changed most."""
    ops = f"""
    NONE DUP ADD ADD1 ACC SUB MUL DIV SQR SQRT LOG SUM SUM_ROWS MEAN ARGMAX REPEAT REPEAT_BACK CONCAT SILU_BACK NORM
    RMS_NORM RMS_NORM_BACK GROUP_NORM MUL_MAT MUL_MAT_ID OUT_PROD SCALE SET CPY CONT RESHAPE VIEW PERMUTE TRANSPOSE
    GET_ROWS GET_ROWS_BACK DIAG DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX SOFT_MAX_BACK ROPE ROPE_BACK ALIBI CLAMP {windows}
    FLASH_ATTN FLASH_FF FLASH_ATTN_BACK WIN_PART WIN_UNPART GET_REL_POS ADD_REL_POS UNARY MAP_UNARY MAP_BINARY
    MAP_CUSTOM1_F32 MAP_CUSTOM2_F32 MAP_CUSTOM3_F32 MAP_CUSTOM1 MAP_CUSTOM2 MAP_CUSTOM3 CROSS_ENTROPY_LOSS
    CROSS_ENTROPY_LOSS_BACK
    """
    return tuple(op for op in ops.split() if op not in without.split())


def _before(newer: Dialect, name: str, **changes: Any) -> Dialect:
    """A dialect by what differs from a newer one; variations and refused ops add to those of the newer one."""
    changes["variations"] = {**newer.variations, **changes.get("variations", {})}
    changes["refused"] = newer.refused | frozenset(changes.get("refused", "").split())
    return replace(newer, name=name, is_written=False, **changes)


_WHOLE_ROPE = replace(_V1_ROPE, only=(Only(1, SIZE_0), *_PLAIN_MODE_2))

# ggml-python 0.0.24. The factor of SCALE is a tensor of one element.
V1A = _before(
    V1,
    "v1a",
    **_records(name=64, op_params=64, n_src=10),
    ops=_ops("CONV_TRANSPOSE_1D IM2COL CONV_TRANSPOSE_2D POOL_1D POOL_2D UPSCALE PAD ARGSORT LEAKY_RELU"),
    unary=tuple(name for name in V1.unary if name not in ("SIGMOID", "HARDSWISH", "HARDSIGMOID")),
    types={name: n for name, n in _TYPE_NUMBERS.items() if n <= 15} | {"I8": 16, "I16": 17, "I32": 18},
    variations={
        "SCALE": Variation(src=(0, 1), op="MUL", scalar=1),
        "SOFT_MAX": Variation(src=(0, 1), words=(0,)),
        "ROPE": _WHOLE_ROPE,
        "ROPE_BACK": _WHOLE_ROPE,
    },
    refused="MUL_MAT_ID UPSCALE",
)

# Words 6 and 7 are xPos.
_ROPE_OF_8_WORDS = Variation(src=(0, 1), words=(0, 1, 2, 3, 5, 6), implied={8: ONE}, only=(Only(1, SIZE_0),))

# ggml-python 0.0.23 and llama-cpp-python 0.2.20.
V1B = _before(
    V1A,
    "v1b",
    **_records(name=64, op_params=64, n_src=6),
    ops=_ops("CONV_TRANSPOSE_1D IM2COL CONV_TRANSPOSE_2D POOL_1D POOL_2D UPSCALE", without="MUL_MAT_ID"),
    unary=(*V1A.unary, "LEAKY"),
    variations={"SOFT_MAX": Variation(src=(0,), implied={0: ONE}), "ROPE_BACK": _ROPE_OF_8_WORDS},
    same_shape=frozenset({"SUB", "DIV"}),
)

# llama-cpp-python 0.2.14.
V1C = _before(
    V1B,
    "v1c",
    node_base=16384,
    ops=_ops(
        """CONV_1D CONV_1D_STAGE_0 CONV_1D_STAGE_1 CONV_TRANSPOSE_1D CONV_2D CONV_2D_STAGE_0 CONV_2D_STAGE_1
        CONV_TRANSPOSE_2D POOL_1D POOL_2D UPSCALE""",
        without="MUL_MAT_ID",
    ),
    unary=V1A.unary,
)

# ggml-python 0.0.21.
V1D = _before(
    V1C,
    "v1d",
    **_records(name=64, op_params=32, n_src=6),
    variations={"ROPE": _ROPE_OF_8_WORDS},
)

# ggml-python 0.0.20.
V1E = _before(
    V1D,
    "v1e",
    ops=_ops(
        """CONV_1D CONV_2D CONV_TRANSPOSE_1D CONV_TRANSPOSE_2D POOL_1D POOL_2D CONV_1D_STAGE_0 CONV_1D_STAGE_1
        UPSCALE""",
        without="MUL_MAT_ID",
    ),
)

# ggml-python 0.0.17; in 0.0.16 NORM had no eps yet. Rope has a first position in place of positions, and the
# cross-entropy is summed. size_eval counts ne[3] * nb[3] of a node, which may be less than what it spans.
_MASK = Variation(src=(0,), words=(0, NOTHING))  # word 1: in place
V1F = _before(
    V1E,
    "v1f",
    node_base=4096,
    ops=_ops("CONV_1D CONV_2D CONV_TRANSPOSE_2D POOL_1D POOL_2D UPSCALE", without="MUL_MAT_ID"),
    eval_padded=False,
    variations={
        "NORM": Variation(src=(0,), words=(0,), only=(Only(0, SET),)),
        "RMS_NORM_BACK": Variation(src=(0, 1), implied={0: EPS_6}),
        "REPEAT": Variation(src=(0, NOTHING)),
        "REPEAT_BACK": Variation(src=(0, NOTHING)),
        "GET_ROWS_BACK": Variation(src=(0, 1, NOTHING)),
        "DIAG_MASK_INF": _MASK,
        "DIAG_MASK_ZERO": _MASK,
    },
    refused="ROPE ROPE_BACK CROSS_ENTROPY_LOSS CROSS_ENTROPY_LOSS_BACK",
)

# ggml-python 0.0.13.
V1G = _before(
    V1F,
    "v1g",
    **_records(name=48, op_params=32, n_src=6),
    ops=_ops("CONV_1D CONV_2D POOL_1D POOL_2D", without="MUL_MAT_ID CONCAT GROUP_NORM GET_REL_POS ADD_REL_POS"),
    data_unit=16,
    variations={"NORM": Variation(src=(0,), implied={0: EPS_5})},
)

# ggml-python 0.0.11.
V1H = _before(V1G, "v1h", data_unit=1, ops=tuple(op for op in V1G.ops if not op.endswith("_F32")))

_V1I_OPS = """
NONE DUP ADD ADD1 ACC SUB MUL DIV SQR SQRT LOG SUM SUM_ROWS MEAN ARGMAX REPEAT REPEAT_BACK ABS SGN NEG STEP TANH
ELU RELU GELU GELU_QUICK SILU SILU_BACK NORM RMS_NORM RMS_NORM_BACK MUL_MAT OUT_PROD SCALE SET CPY CONT RESHAPE
VIEW PERMUTE TRANSPOSE GET_ROWS GET_ROWS_BACK DIAG DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX SOFT_MAX_BACK ROPE
ROPE_BACK ALIBI CLAMP CONV_1D CONV_2D POOL_1D POOL_2D FLASH_ATTN FLASH_FF FLASH_ATTN_BACK WIN_PART WIN_UNPART
MAP_UNARY MAP_BINARY MAP_CUSTOM1 MAP_CUSTOM2 MAP_CUSTOM3 CROSS_ENTROPY_LOSS CROSS_ENTROPY_LOSS_BACK
"""

# llama-cpp-python 0.1.74. Records have no op_params: words are numbers in a leaf. Unary ops are ops.
V1I = _before(
    V1H,
    "v1i",
    **_records(name=48, op_params=0, n_src=6),
    ops=tuple(_V1I_OPS.split()),
    unary=(),
    variations={
        "RMS_NORM": Variation(src=(0,), implied={0: EPS_6}),
        "VIEW": Variation(src=(0, NOTHING, NOTHING), words=(0, 1), words_in=2),
        "PERMUTE": Variation(src=(0, NOTHING, NOTHING), words=(0, 1, 2, 3), words_in=2),
        "SET": Variation(src=(0, 1, NOTHING), words=(0, 1, 2, 3, 4), words_in=2),
        "ACC": Variation(src=(0, 1, NOTHING), words=(0, 1, 2, 3, 4), words_in=2),
        "CLAMP": Variation(src=(0, NOTHING), words=(0, 1), words_in=1),
        "DIAG_MASK_INF": Variation(src=(0, NOTHING), words=(0, NOTHING), words_in=1),
        "DIAG_MASK_ZERO": Variation(src=(0, NOTHING), words=(0, NOTHING), words_in=1),
    },
    refused="POOL_1D POOL_2D",
)

DIALECTS = {d.name: d for d in (V2, V2A, V1, V1A, V1B, V1C, V1D, V1E, V1F, V1G, V1H, V1I)}
WRITTEN = tuple(name for name, d in DIALECTS.items() if d.is_written)
