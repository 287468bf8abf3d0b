"""Checkpoints of llama2.c (github.com/karpathy/llama2.c), versions 0 and 1: sizes, then float32 tensors in fixed order.

Version 0 begins with seven int32, of which a negative vocabulary size says that the output matrix is not the embedding;
version 1 with "24ka", its number, the seven, a byte that says whether the matrices are one, and zeros up to byte 256.
The tokenizer is tok512.bin (512: the size of the vocabulary) or tokenizer.bin beside the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from ggmlgraph import naming
from ggmlgraph import tokenizer as tokenizers
from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.sources.source import Given, Source, begins_with_bos, try_tokenizer
from ggmlgraph.stored import Stored, open_regular

HEADER = struct.Struct("<7i")
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAGIC, VERSION_1 = b"24ka", struct.Struct("<4si7iB")
VERSION_1_NBYTES = 256
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


def _nbytes(layout: Layout) -> int:
    return 4 * sum(math.prod(shape) for _, shape in layout)


def _open(path: Path) -> tuple[tuple[int, ...], Layout, int]:
    """The seven numbers, the tensors, and where these begin. Raises FormatError, UnsupportedError."""
    stream, size = open_regular(path)
    with stream:
        start = stream.read(VERSION_1_NBYTES)
    if not start.startswith(MAGIC):
        if (header := _version_0(start, size)) is None:
            raise FormatError(f"{path}: not a llama2.c checkpoint")
        return header, _layout_0(header), HEADER.size
    if len(start) < VERSION_1_NBYTES:
        raise FormatError(f"{path}: the file ends inside its header", offset=len(start))
    _, version, *numbers, shared = VERSION_1.unpack(start[: VERSION_1.size])
    header = tuple(numbers)
    if version != 1:
        raise UnsupportedError(
            f"{path}: llama2.c version {version}; export it with --version 0 or 1, which are float32"
        )
    if not _makes_sense(header) or shared > 1 or any(start[VERSION_1.size :]):
        raise FormatError(f"{path}: a llama2.c header that makes no sense", offset=8)
    if (wanted := VERSION_1_NBYTES + _nbytes(_layout_1(header, shared == 1))) != size:
        raise FormatError(f"{path}: {size} bytes, its header asks for {wanted}", offset=8)
    return header, _layout_1(header, shared == 1), VERSION_1_NBYTES


def file(path: Path, given: Given) -> Source:
    """The checkpoint in a file."""
    header, layout, at = _open(path)
    tensors = {}
    for name, shape in layout:
        if name:
            tensors[name] = Stored(path, at, "f32", shape)
        at += 4 * math.prod(shape)
    keys = dict(zip(FIELDS, map(abs, header), strict=True))
    architecture, known, fields = naming.find("llama2.c", "llama2.c", naming.Checkpoint(keys, tensors), given)
    beside = [path.with_name(name) for name in (f"tok{keys['vocab_size']}.bin", "tokenizer.bin")]
    found = next((candidate for candidate in beside if candidate.is_file()), None)
    tokenizer, reason = (
        try_tokenizer(lambda: begins_with_bos(tokenizers.load(found))) if found else (None, "it has none")
    )
    return Source(
        kind="llama2.c checkpoint",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=tensors,
        n_ctx=keys["seq_len"],
        tokenizer=tokenizer,
        no_tokenizer=reason,
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


def _layout_1(header: tuple[int, ...], shared: bool) -> Layout:
    n_embd, n_vocab = header[0], header[5]
    norms = ("attn_norm", "ffn_norm")
    yield from _layers(header, norms)
    yield "output_norm.weight", (n_embd,)
    yield "token_embd.weight", (n_vocab, n_embd)
    yield from _layers(header, (name for name in _shapes(header) if name not in norms))
    if not shared:
        yield "output.weight", (n_vocab, n_embd)
