"""Files of llama.cpp's trainer of 2023 (train-text-from-scratch): 'ggcp' checkpoints with Adam's state, 'ggjt' models.

Also how the moments lie in the GGUF checkpoints that followed, which gguf.py reads.

A tensor is: number of axes, length of the name, type, sizes, the name, zeros up to a multiple of 32 of the file, data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.interchange import naming
from ggmlgraph.interchange.formats.stored import Stored, Weight, itemsize
from ggmlgraph.interchange.sources.base import Given, ModelSource, Moments, named

CHECKPOINT, MODEL = b"pcgg", b"tjgg"  # 'ggcp', 'ggjt', little-endian
SIZES = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot")
MAX_SIZE, MAX_NAME_NBYTES, MAX_PIECE_NBYTES = 1 << 24, 64, 1 << 10
TYPES = {0: "f32", 1: "f16"}
OPTIONS_NBYTES = 96  # the optimiser's options: the first word is 0 for Adam, the third how many losses it keeps
LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up")
NAMES = {  # theirs, in a model file
    "tok_embeddings": "token_embd", "attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v",
    "attention.wo": "attn_output", "attention_norm": "attn_norm", "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up", "ffn_norm": "ffn_norm", "norm": "output_norm",
    "output": "output",
}  # fmt: skip

# How the moments, which are one run of numbers, follow each other: as the trainer's graph was built. The file does not
# say; the trainer printed it as "evaluation order". Layers fall from left to right, rise from right to left.
ORDERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...], bool]] = {
    # before the layers, each layer, between, each layer rising again, whether the first pass falls
    "left-to-right": (
        ("output", "output_norm"),
        ("ffn_down", "ffn_gate", "ffn_norm", "attn_output", "attn_norm"),
        ("token_embd",),
        ("attn_v", "attn_k", "attn_q", "ffn_up"),
        True,
    ),
    "right-to-left": (
        ("token_embd",),
        ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down"),
        ("output_norm", "output"),
        (),
        False,
    ),
    "flash-left-to-right": (
        ("output", "output_norm"),
        ("ffn_down", "ffn_gate", "ffn_norm", "attn_output", "attn_q", "attn_norm"),
        ("token_embd",),
        ("attn_k", "attn_v", "ffn_up"),
        True,
    ),
    "flash-right-to-left": (
        ("token_embd",),
        ("attn_v", "attn_norm", "attn_k", "attn_q", "attn_output", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down"),
        ("output_norm", "output"),
        (),
        False,
    ),
}


def ordered(order: str, n_layer: int) -> list[str]:
    """Names of the parameters as their moments follow each other."""
    before, layer, between, again, falls = ORDERS[order]
    layers = range(n_layer)
    names = list(before)
    names += [f"blk.{i}.{name}" for i in (reversed(layers) if falls else layers) for name in layer]
    names += [*between, *(f"blk.{i}.{name}" for i in layers for name in again)]
    return [f"{name}.weight" for name in names]


def moments(
    path: Path, n_steps: int, flat: tuple[Stored, Stored], tensors: Mapping[str, Weight], names: Sequence[str]
) -> Moments:
    """Two runs of numbers as the moments of these parameters. Raises FormatError if they are not as long."""
    parts: tuple[dict[str, Stored], dict[str, Stored]] = ({}, {})
    for run, found in zip(flat, parts, strict=True):
        at = 0
        for name in names:
            if name not in tensors:
                raise FormatError(f"{path}: {name} is missing")
            shape = tensors[name].shape
            found[name] = Stored(run.path, run.offset + at * itemsize(run.dtype), run.dtype, shape)
            at += math.prod(shape)
        if run.shape != (at,):
            raise FormatError(f"{path}: moments of {list(run.shape)} numbers, the parameters have {at}")
    return Moments(n_steps, *parts)


def file(path: Path, given: Given) -> ModelSource:
    """The model of a 'ggjt' file, or the training run of a 'ggcp' file."""
    stream, size = open_regular(path)
    with stream:
        reader = _Reader(path, stream, size)
        magic = reader.take(4)
        reads = {CHECKPOINT: _checkpoint, MODEL: _model}
        if magic not in reads:
            raise FormatError(f"{path}: neither a ggjt nor a ggcp file", offset=0)
        sizes, tensors, state = reads[magic](reader)
    checkpoint = naming.Checkpoint(sizes, tensors)
    architecture, known, fields = named(path, lambda: naming.find("ggml", "ggml", checkpoint, given))
    return ModelSource(
        kind="checkpoint of llama.cpp's trainer" if magic == CHECKPOINT else "ggjt model",
        path=path,
        architecture=architecture,
        format=known,
        config=fields,
        tensors=tensors,
        n_ctx=None,
        no_tokenizer="give the sentencepiece model it was made with",
        moments=None if state is None else lambda: state,
    )


_Read = tuple[dict[str, int], dict[str, Stored], Moments | None]


def _checkpoint(reader: _Reader) -> _Read:
    version, _, _, _ = reader.words(4)
    if version != 0:
        raise UnsupportedError(f"{reader.path}: a ggcp file of version {version}; 0 is read")
    sizes = reader.sizes()
    n_vocab, n_embd, n_ff = sizes["n_vocab"], sizes["n_embd"], sizes["n_ff"]
    tensors = {
        "token_embd.weight": reader.tensor((n_vocab, n_embd)),
        "output_norm.weight": reader.tensor((n_embd,)),
        "output.weight": reader.tensor((n_vocab, n_embd)),
    }
    shapes = {"attn_norm": (n_embd,), "ffn_norm": (n_embd,), "ffn_down": (n_embd, n_ff)}
    shapes |= dict.fromkeys(("ffn_gate", "ffn_up"), (n_ff, n_embd))
    for i in range(sizes["n_layer"]):
        for name in LAYER:
            tensors[f"blk.{i}.{name}.weight"] = reader.tensor(shapes.get(name, (n_embd, n_embd)))
    return sizes, tensors, _state(reader, sizes["n_layer"], tensors)


def _state(reader: _Reader, n_layer: int, tensors: Mapping[str, Stored]) -> Moments:
    """Adam's state at the file's end."""
    (version,) = reader.words(1)
    kind, _, n_losses = struct.unpack("<3i", reader.take(OPTIONS_NBYTES)[:12])
    n, step, _ = struct.unpack("<qiI", reader.take(16))
    if version != 0 or kind != 0:
        raise UnsupportedError(f"{reader.path}: the optimiser's state is not Adam's, or of a later version")
    if not 0 < n < 1 << 40 or step < 1 or not 0 <= n_losses < MAX_SIZE:
        raise reader.fault("an optimiser's state that makes no sense")
    runs = [reader.tensor((n,)) for _ in range(7)]  # x, two of gradients, m, v, two of their corrected values
    reader.tensor((n_losses,) if n_losses else ())
    reader.take(12)
    if reader.at != reader.size:
        raise reader.fault(f"{reader.size - reader.at} bytes behind the optimiser's state")
    layer = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down")
    names = ["token_embd", *(f"blk.{i}.{name}" for i in range(n_layer) for name in layer), "output_norm", "output"]
    return moments(reader.path, step, (runs[3], runs[4]), tensors, [f"{name}.weight" for name in names])


def _model(reader: _Reader) -> _Read:
    (version,) = reader.words(1)
    if not 1 <= version <= 3:
        raise UnsupportedError(f"{reader.path}: a ggjt file of version {version}; 1 to 3 are read")
    sizes = reader.sizes()
    reader.words(1)  # type of most tensors; each says its own
    for _ in range(sizes["n_vocab"]):
        (n,) = reader.words(1)
        if n > MAX_PIECE_NBYTES:
            raise reader.fault(f"a piece of {n} bytes")
        reader.take(n + 4)
    tensors: dict[str, Stored] = {}
    while reader.at < reader.size:
        name, stored = reader.named_tensor()
        ours = _ours(name)
        if ours in tensors:
            raise reader.fault(f"two tensors named {name!r}")
        tensors[ours] = stored
    return sizes, tensors, None


def _ours(name: str) -> str:
    """Our name of a model's tensor; theirs if it is none."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    layers, _, rest = stem.partition(".")
    number, _, inner = rest.partition(".")
    return f"blk.{number}.{NAMES[inner]}.{kind}" if layers == "layers" and inner in NAMES else name


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size, self.at = path, file, size, 0

    def fault(self, reason: str) -> FormatError:
        return FormatError(f"{self.path}: byte {self.at}: {reason}", offset=self.at)

    def take(self, n: int) -> bytes:
        if n > self.size - self.at:
            raise self.fault("the file ends here, in the middle of a value")
        self.at += n
        return self.file.read(n)

    def words(self, n: int) -> tuple[int, ...]:
        return struct.unpack(f"<{n}I", self.take(4 * n))

    def sizes(self) -> dict[str, int]:
        """The model's sizes, and n_ff as the trainer computed it."""
        sizes = dict(zip(SIZES, self.words(len(SIZES)), strict=True))
        if not all(0 < n < MAX_SIZE for n in sizes.values()) or sizes["n_embd"] % sizes["n_head"]:
            raise self.fault(f"sizes that no model has: {sizes}")
        if sizes["n_rot"] != sizes["n_embd"] // sizes["n_head"]:
            raise UnsupportedError(f"{self.path}: heads of which {sizes['n_rot']} elements are rotated, not all")
        n_mult = sizes["n_mult"]
        sizes["n_ff"] = (2 * 4 * sizes["n_embd"] // 3 + n_mult - 1) // n_mult * n_mult
        return sizes

    def named_tensor(self) -> tuple[str, Stored]:
        n_axes, n_name, kind = self.words(3)
        if n_axes > 2 or n_name > MAX_NAME_NBYTES or kind not in TYPES:
            raise self.fault(f"a tensor of {n_axes} axes and type {kind}; read are two, F32 and F16")
        shape = tuple(reversed(self.words(n_axes)))
        name = self.take(n_name).decode(errors="replace")
        self.take(-self.at % 32)
        stored = Stored(self.path, self.at, TYPES[kind], shape)
        nbytes = math.prod(shape) * itemsize(stored.dtype) if shape else 0
        if nbytes > self.size - self.at:
            raise self.fault(f"{name!r} reaches beyond the end of the file")
        self.at += nbytes
        self.file.seek(self.at)
        return name, stored

    def tensor(self, shape: tuple[int, ...]) -> Stored:
        """The next tensor, whatever its name, which must have this shape."""
        name, stored = self.named_tensor()
        if stored.shape != shape:
            raise self.fault(f"{name!r} is {list(stored.shape)} instead of {list(shape)}")
        return stored
