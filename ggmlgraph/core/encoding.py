"""Numbers in the element types of ggml, by the runtime's own decoders. Used by the runtime and to read checkpoints.

A type is named as everywhere in Python, in lower case: "f16", "q4_0". table/dialect.py has the table of all types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core.boundary import TYPES, call, ffi, lib
from ggmlgraph.errors import UnsupportedError, UsageError
from ggmlgraph.table.dialect import TYPES as ELEMENTS
from ggmlgraph.table.dialect import Type

NUMPY = {t.name.lower(): np.dtype(t.numpy) for t in ELEMENTS.values() if t.numpy}  # types that numpy has as well
ENCODED = ("f16", "bf16")  # what weights are stored in on demand


def numpy(name: str) -> np.dtype[Any]:
    """The type as numpy has it. Raises UnsupportedError if it has not."""
    if name not in NUMPY:
        raise UnsupportedError(f"numpy has no {name}")
    return NUMPY[name]


def element(name: str) -> Type:
    """The table's row of a type."""
    return ELEMENTS[name.upper()]


def nbytes(name: str, n: int) -> int:
    """Bytes of n elements, whole blocks of them."""
    return n // element(name).block * element(name).nbytes


def decode(name: str, stored: Any) -> NDArray[np.float32]:
    """Bytes of whole blocks as float32, flat.

    stored: anything with a buffer. Raises UsageError for a type without decoder or a part of a block.
    """
    view, row = memoryview(stored).cast("B"), element(name)
    if not row.decodes or len(view) % row.nbytes:
        raise UsageError(f"{len(view)} bytes of {name} cannot be decoded")
    values = np.empty(len(view) // row.nbytes * row.block, np.float32)
    call(lib.gg_decode, TYPES[name], values.size, ffi.from_buffer(view), ffi.from_buffer("float[]", values))
    return values


def encode(name: str, values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 as bytes of whole blocks, two to an element. "f16" and "bf16" are rounded to nearest, ties to even;
    beyond the largest, infinite. Raises UsageError for a type without encoder or a part of a block.
    """
    flat, row = np.ascontiguousarray(values, np.float32).reshape(-1), element(name)
    if not row.encodes or flat.size % row.block:
        raise UsageError(f"{flat.size} numbers cannot be encoded as {name}")
    stored = np.empty(nbytes(name, flat.size) // 2, np.uint16)
    call(lib.gg_encode, TYPES[name], flat.size, ffi.from_buffer("float[]", flat), ffi.from_buffer("uint16_t[]", stored))
    return stored
