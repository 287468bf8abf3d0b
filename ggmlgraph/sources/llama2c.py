"""Checkpoints of llama2.c (github.com/karpathy/llama2.c), version 0: seven int32, then float32 tensors in fixed order.

A negative vocabulary size says that the output matrix is not the embedding. The tokenizer is tok512.bin (512: the
size of the vocabulary) or tokenizer.bin beside the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from ggmlgraph import naming
from ggmlgraph import tokenizer as tokenizers
from ggmlgraph.errors import FormatError
from ggmlgraph.sources.source import Source, try_tokenizer
from ggmlgraph.stored import Stored, open_regular

HEADER = struct.Struct("<7i")
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAX_LAYERS = 1 << 12


def is_llama2c(start: bytes, size: int) -> bool:
    """Whether a file with this header has just the bytes the header asks for."""
    if len(start) < HEADER.size:
        return False
    header = HEADER.unpack(start)
    if min(map(abs, header)) < 1 or min(header[:5]) < 1 or header[2] > MAX_LAYERS or header[0] % header[3]:
        return False
    return size == HEADER.size + 4 * sum(math.prod(shape) for _, shape in _layout(header))


def file(path: Path) -> Source:
    """The checkpoint in a file."""
    stream, size = open_regular(path)
    with stream:
        start = stream.read(HEADER.size)
    if not is_llama2c(start, size):
        raise FormatError(f"{path}: not a llama2.c checkpoint")
    header = HEADER.unpack(start)
    tensors, at = {}, HEADER.size
    for name, shape in _layout(header):
        if name:
            tensors[name] = Stored(path, at, "f32", shape)
        at += 4 * math.prod(shape)
    keys = dict(zip(FIELDS, map(abs, header), strict=True))
    architecture, known, fields = naming.find("llama2.c", "llama2.c", naming.Checkpoint(keys, tensors))
    beside = [path.with_name(name) for name in (f"tok{keys['vocab_size']}.bin", "tokenizer.bin")]
    found = next((candidate for candidate in beside if candidate.is_file()), None)
    tokenizer, reason = try_tokenizer(lambda: tokenizers.load(found)) if found else (None, "it has none")
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


def _layout(header: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Our name and the shape of each tensor, in the file's order; "" for the tables of angles, which we compute."""
    n_embd, n_ff, n_layer, n_head, n_head_kv, n_vocab, n_ctx = header
    head_dim = n_embd // n_head
    yield "token_embd.weight", (abs(n_vocab), n_embd)
    for name, shape in (
        ("attn_norm", (n_embd,)),
        ("attn_q", (n_head * head_dim, n_embd)),
        ("attn_k", (n_head_kv * head_dim, n_embd)),
        ("attn_v", (n_head_kv * head_dim, n_embd)),
        ("attn_output", (n_embd, n_head * head_dim)),
        ("ffn_norm", (n_embd,)),
        ("ffn_gate", (n_ff, n_embd)),
        ("ffn_down", (n_embd, n_ff)),
        ("ffn_up", (n_ff, n_embd)),
    ):
        for layer in range(n_layer):
            yield f"blk.{layer}.{name}.weight", shape
    yield "output_norm.weight", (n_embd,)
    yield "", (2, abs(n_ctx), head_dim // 2)
    if n_vocab < 0:
        yield "output.weight", (-n_vocab, n_embd)
