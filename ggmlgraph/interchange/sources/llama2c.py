"""Checkpoints of llama2.c (github.com/karpathy/llama2.c), versions 0 to 2: sizes, then tensors in fixed order.

Version 0 begins with seven int32, of which a negative vocabulary size says that the output matrix is not the embedding;
version 1 with "24ka", its number, the seven, a byte that says whether the matrices are one, and zeros up to byte 256;
version 2 as 1, with the size of a group behind that byte. All is float32, but for the matrices of version 2: numbers of
8 bits, then a factor for each group.
The tokenizer is tok512.bin (512: the size of the vocabulary) or tokenizer.bin beside the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats.stored import Scaled, Stored, Weight
from ggmlgraph.interchange.sources.base import BEGINS_WITH_BOS, Given, ModelSource, first_file
from ggmlgraph.interchange.tokenizer import find_tokenizer

HEADER = struct.Struct("<7i")
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAGIC, LATER, GROUP = b"24ka", struct.Struct("<4si7iB"), struct.Struct("<i")
LATER_NBYTES = 256
MAX_LAYERS = 1 << 12

Layout = Iterator[tuple[str, tuple[int, ...]]]  # our name and the shape of each tensor; "" for what we compute


def is_llama2c(start: bytes, size: int) -> bool:
    """Whether a file that begins with `start` (256 bytes) has a header of these files."""
    return start.startswith(MAGIC) or _version_0(start, size) is not None


def _version_0(start: bytes, size: int) -> tuple[int, ...] | None:
    """The seven numbers, if the file has just the bytes that they ask for."""
    header = HEADER.unpack(start[: HEADER.size]) if len(start) >= HEADER.size else (0,) * 7
    if not _makes_sense((*header[:5], abs(header[5]), abs(header[6]))):
        return None
    return header if size == HEADER.size + _nbytes(_layout_0(header)) else None


def _makes_sense(header: tuple[int, ...]) -> bool:
    return min(header) > 0 and header[2] <= MAX_LAYERS and header[0] % header[3] == 0


def _nbytes(layout: Layout, n_group: int = 0) -> int:
    return sum(_size(shape, n_group) for _, shape in layout)


def _size(shape: tuple[int, ...], n_group: int) -> int:
    """Bytes of a tensor. n_group: numbers that share a factor, 0 for float32."""
    n = math.prod(shape)
    return n + n // n_group * 4 if n_group and len(shape) > 1 else 4 * n


def _open(path: Path) -> tuple[tuple[int, ...], Layout, int, int]:
    """The seven numbers, the tensors, where these begin, the size of a group. Raises FormatError, UnsupportedError."""
    stream, size = open_regular(path)
    with stream:
        start = stream.read(LATER_NBYTES)
    if not start.startswith(MAGIC):
        if (header := _version_0(start, size)) is None:
            raise FormatError(f"{path}: not a llama2.c checkpoint")
        return header, _layout_0(header), HEADER.size, 0
    if len(start) < LATER_NBYTES:
        raise FormatError(f"{path}: the file ends inside its header", offset=len(start))
    _, version, *numbers, shared = LATER.unpack(start[: LATER.size])
    header, end = tuple(numbers), LATER.size
    if version not in (1, 2):
        raise UnsupportedError(f"{path}: llama2.c version {version}; read are 0, 1 and 2")
    n_group = 0
    if version == 2:
        (n_group,), end = GROUP.unpack_from(start, end), end + GROUP.size
    if not _makes_sense(header) or shared > 1 or any(start[end:]) or (version == 2 and not _divides(n_group, header)):
        raise FormatError(f"{path}: a llama2.c header that makes no sense", offset=8)
    if (wanted := LATER_NBYTES + _nbytes(_later_layout(header, shared == 1), n_group)) != size:
        raise FormatError(f"{path}: {size} bytes, its header asks for {wanted}", offset=8)
    return header, _later_layout(header, shared == 1), LATER_NBYTES, n_group


def _divides(n_group: int, header: tuple[int, ...]) -> bool:
    """Whether all matrices are whole groups."""
    layout = _later_layout(header, shared=False)
    return n_group > 0 and all(len(shape) < 2 or math.prod(shape) % n_group == 0 for _, shape in layout)


def file(path: Path, given: Given) -> ModelSource:
    """The checkpoint in a file."""
    header, layout, at, n_group = _open(path)
    tensors: dict[str, Weight] = {}
    for name, shape in layout:
        n = math.prod(shape)
        if n_group and len(shape) > 1:
            factors = Stored(path, at + n, "f32", (n // n_group,))
            tensors[name] = Scaled(Stored(path, at, "i8", shape), factors)
        elif name:
            tensors[name] = Stored(path, at, "f32", shape)
        at += _size(shape, n_group)
    keys = dict(zip(FIELDS, map(abs, header), strict=True))
    architecture, known, fields = naming.find("llama2.c", "llama2.c", naming.Checkpoint(keys, tensors), given)
    beside = first_file(*(path.with_name(name) for name in (f"tok{keys['vocab_size']}.bin", "tokenizer.bin")))
    return ModelSource(
        kind="llama2.c checkpoint",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=tensors,
        n_ctx=keys["seq_len"],
        find_tokenizer=lambda: None if beside is None else find_tokenizer(beside),
        said=BEGINS_WITH_BOS,
    )


def _shapes(header: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a layer."""
    n_embd, n_ff, _, n_head, n_head_kv, *_ = header
    head_dim = n_embd // n_head
    return {
        "attn_norm": (n_embd,),
        "attn_q": (n_head * head_dim, n_embd),
        "attn_k": (n_head_kv * head_dim, n_embd),
        "attn_v": (n_head_kv * head_dim, n_embd),
        "attn_output": (n_embd, n_head * head_dim),
        "ffn_norm": (n_embd,),
        "ffn_gate": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
        "ffn_up": (n_ff, n_embd),
    }


def _layers(header: tuple[int, ...], names: Iterable[str]) -> Layout:
    """One kind of tensor after the other, of all layers."""
    shapes = _shapes(header)
    return ((f"blk.{layer}.{name}.weight", shapes[name]) for name in names for layer in range(header[2]))


def _layout_0(header: tuple[int, ...]) -> Layout:
    n_embd, _, _, n_head, _, n_vocab, n_ctx = header
    yield "token_embd.weight", (abs(n_vocab), n_embd)
    yield from _layers(header, _shapes(header))
    yield "output_norm.weight", (n_embd,)
    yield "", (2, abs(n_ctx), n_embd // n_head // 2)  # cosines and sines of the rotations
    if n_vocab < 0:
        yield "output.weight", (-n_vocab, n_embd)


def _later_layout(header: tuple[int, ...], shared: bool) -> Layout:
    n_embd, n_vocab = header[0], header[5]
    norms = ("attn_norm", "ffn_norm")
    yield from _layers(header, norms)
    yield "output_norm.weight", (n_embd,)
    yield "token_embd.weight", (n_vocab, n_embd)
    yield from _layers(header, (name for name in _shapes(header) if name not in norms))
    if not shared:
        yield "output.weight", (n_vocab, n_embd)
