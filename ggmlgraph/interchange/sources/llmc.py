"""Checkpoints of llm.c (github.com/karpathy/llm.c): GPT-2, its sizes and then its tensors in fixed order.

256 int32, of which the first eight say what it is: the number 20240326, the version, positions, vocabulary, layers,
heads, width, and rows of the embedding, which are filled up. Version 3 is float32, 5 bfloat16, 1 float32 without
filling. Of a kind of tensor all layers lie together; matrices are (out, in).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats.stored import Stored, Weight, itemsize
from ggmlgraph.interchange.sources.base import Given, ModelSource, named

NUMBER = 20240326
MAGIC = struct.pack("<i", NUMBER)
HEADER = struct.Struct("<8i")
HEADER_NBYTES = 1024
VERSIONS = {1: "f32", 3: "f32", 5: "bf16"}
MAX_LAYERS, MAX_SIZE = 1 << 12, 1 << 24


def file(path: Path, given: Given) -> ModelSource:
    """The checkpoint in a file."""
    stream, size = open_regular(path)
    with stream:
        start = stream.read(HEADER_NBYTES)
    if len(start) < HEADER_NBYTES:
        raise FormatError(f"{path}: the file ends inside its header", offset=len(start))
    number, version, n_ctx, n_vocab, n_layer, n_head, n_embd, n_rows = HEADER.unpack_from(start)
    if number != NUMBER or version not in VERSIONS:
        raise UnsupportedError(f"{path}: llm.c version {version}; read are {', '.join(map(str, VERSIONS))}")
    n_rows = n_vocab if version == 1 else n_rows
    sizes = (n_ctx, n_vocab, n_layer, n_head, n_embd, n_rows)
    if min(sizes) < 1 or max(sizes) > MAX_SIZE or n_layer > MAX_LAYERS or n_embd % n_head or n_rows < n_vocab:
        raise FormatError(f"{path}: an llm.c header that makes no sense", offset=8)
    dtype, at = VERSIONS[version], HEADER_NBYTES
    tensors: dict[str, Weight] = {}
    for names, shape in _layout(n_ctx, n_rows, n_layer, n_embd):
        for name in names:
            kept = (n_vocab, n_embd) if name == "token_embd.weight" else shape
            tensors[name] = Stored(path, at, dtype, kept)
            at += math.prod(shape) * itemsize(dtype)
    if at != size:
        raise FormatError(f"{path}: {size} bytes, its header asks for {at}", offset=8)
    keys = {"n_vocab": n_vocab, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer, "n_ctx": n_ctx}
    checkpoint = naming.Checkpoint(keys, tensors)
    architecture, known, fields = named(path, lambda: naming.find("llm.c", "llm.c", checkpoint, given))
    return ModelSource(
        kind="llm.c checkpoint",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=tensors,
        n_ctx=n_ctx,
        no_tokenizer="llm.c keeps what ids mean, not how text is split: it is GPT-2's",
    )


def _layout(n_ctx: int, n_rows: int, n_layer: int, n: int) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Our names of tensors of one shape that lie together."""
    yield ["token_embd.weight"], (n_rows, n)
    yield ["position_embd.weight"], (n_ctx, n)
    shapes = {"attn_norm": (n, 0), "attn_qkv": (3 * n, n), "attn_output": (n, n), "ffn_norm": (n, 0)}
    shapes |= {"ffn_up": (4 * n, n), "ffn_down": (n, 4 * n)}
    for name, (n_out, n_in) in shapes.items():
        for kind, shape in (("weight", (n_out, n_in) if n_in else (n_out,)), ("bias", (n_out,))):
            yield [f"blk.{i}.{name}.{kind}" for i in range(n_layer)], shape
    yield ["output_norm.weight"], (n,)
    yield ["output_norm.bias"], (n,)
