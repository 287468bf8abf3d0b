"""safetensors files: which tensors are in the file, and where. Used by the sources; `write` by `exporthf`.

The `safetensors` package reads them too, but neither bfloat16 as numpy nor a tensor piece by piece. The header is JSON:
a few kilobytes that say everything, so its checks are short and complete (those of the package, and duplicate keys).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.interchange.formats.stored import Stored, check_shape, itemsize

MAX_HEADER_NBYTES = 16 << 20
MAX_TENSORS = 1 << 20
DTYPES = {
    "F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "BOOL": "bool",
    "I8": "i8", "U8": "u8", "I16": "i16", "U16": "u16", "I32": "i32", "U32": "u32", "I64": "i64", "U64": "u64",
}  # fmt: skip

Chunks = Callable[[], Iterable[NDArray[np.float32]]]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """What the header says about one tensor; offsets count from the header's end."""

    dtype: str
    shape: list[_Count]
    data_offsets: tuple[_Count, _Count]


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file that begins with `start` (9 bytes) looks like one."""
    return len(start) >= 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, in the order of their data. Raises FormatError."""
    file, size = open_regular(path)
    with file:
        start = file.read(8)
        nbytes = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= nbytes <= min(MAX_HEADER_NBYTES, size - 8):
            raise FormatError(f"{path}: a safetensors header of {nbytes} bytes in a file of {size}", offset=0)
        header = _parse(path, file.read(nbytes))
    tensors, at = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        tensors[name] = _place(path, name, entry, 8 + nbytes, at)
        at = entry.data_offsets[1]
    if 8 + nbytes + at != size:
        raise FormatError(f"{path}: the tensors have {at} bytes, the file {size - 8 - nbytes}", offset=8 + nbytes)
    return tensors


def _parse(path: Path, text: bytes) -> dict[str, _Entry]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(header, dict) or len(header) > MAX_TENSORS:
            raise ValueError("no dictionary of tensors")
        header.pop("__metadata__", None)
        return msgspec.convert(header, dict[str, _Entry])
    except (ValueError, RecursionError) as error:  # ValidationError is a ValueError
        raise FormatError(f"{path}: safetensors header: {error}", offset=8) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which every key may occur once."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _place(path: Path, name: str, entry: _Entry, base: int, at: int) -> Stored:
    """Check that a tensor begins at `at`, where the one before it ends, and has the bytes its shape needs."""
    shape, (begin, end) = tuple(entry.shape), entry.data_offsets
    check_shape(path, name, shape)
    if entry.dtype.startswith("F8_"):
        raise UnsupportedError(f"{path}: {name!r} is FP8 ({entry.dtype}), which is not read: take the original weights")
    if entry.dtype not in DTYPES:
        raise FormatError(f"{path}: {name!r} has the unknown type {entry.dtype!r}")
    dtype = DTYPES[entry.dtype]
    if begin != at or end - begin != math.prod(shape) * itemsize(dtype):
        raise FormatError(f"{path}: {name!r}, {entry.dtype} {entry.shape}, is said to be bytes {begin} to {end}")
    return Stored(path, base + begin, dtype, shape)


# ---------------------------------------------------------------- writing


def write(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], Chunks]]) -> None:
    """A file of float32 tensors: the shape of each, and what gives its values, flat, in pieces."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants this
    at = 0
    for name, (shape, _) in tensors.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (at, end)}
        at = end
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, chunks in tensors.values():
            for values in chunks():
                file.write(values.data)
