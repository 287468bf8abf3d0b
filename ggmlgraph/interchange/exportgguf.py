"""A model becomes a GGUF file for llama.cpp. Used by `ggmlgraph export-gguf`; the `gguf` package writes the header.

Keys and names are those `convert` reads (models/names), turned round; the tokenizer section is made by
tokenizers/togguf.py. Values stream from file to file, quantised a megabyte at a time, so memory stays under the
largest tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.durable import replacing
from ggmlgraph.errors import UnsupportedError
from ggmlgraph.interchange import trained
from ggmlgraph.interchange.formats.stored import QUANTISED
from ggmlgraph.interchange.trained import Outgoing, Trained
from ggmlgraph.tokenizers import togguf

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # that are written
KEPT = ("position_embd", "ffn_gate_inp")  # matrices that llama.cpp wants as F32, as it does all vectors
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ALIGNMENT = 32


def export(model: Trained, path: Path, kind: str | None = None) -> list[str]:
    """Write the file, whole or not at all; returns what the user should know.

    kind: one of TYPES, for all matrices; rows that are no whole blocks of it become F16. None: as each is, to the bit.
    Raises UnsupportedError for a model or tokenizer that llama.cpp would get wrong.
    """
    known = model.format("gguf")
    said = trained.keys(model, known)
    outgoing = trained.outgoing(model, known)
    n_vocab = model.config["n_vocab"]
    vocabulary, notes = togguf.section(model.tokenizer, n_vocab)
    outgoing |= {name: Outgoing(name, stored) for name, stored in model.constants.items()}
    if known.needs_head and HEAD not in outgoing:
        outgoing[HEAD] = outgoing[EMBEDDING]
    chosen = {name: _type(tensor, kind) for name, tensor in outgoing.items()}
    smaller = [name for name, t in chosen.items() if t == "f16" != kind]
    if smaller and kind is not None:
        notes.append(f"{len(smaller)} matrices are F16, their rows being no whole blocks of {kind}: {smaller[0]}")
    pairs = {
        "general.name": f"ggmlgraph {model.architecture}",
        "general.file_type": _file_type(kind or _mostly(outgoing, chosen)),
        "general.quantization_version": 2,
        f"{known.id}.context_length": model.n_ctx,
        f"{known.id}.vocab_size": n_vocab,
        **_heads(model, known.id),
        **{key: value for key, value in said.items() if value is not None},
        **vocabulary,
    }
    if (window := model.config.get("window")) and window <= model.n_ctx:
        notes.append(f"llama.cpp knows no window of {window} positions for {known.id}; context_length is {model.n_ctx}")
    with replacing(path) as temporary:
        _write(temporary, known.id, pairs, outgoing, chosen)
    return notes


def _heads(model: Trained, prefix: str) -> dict[str, Any]:
    """Sizes of heads that the tables of names do not have, since `convert` needs them not."""
    config = model.config
    head_dim = config.get("head_dim")
    pairs = {f"{prefix}.attention.value_length": head_dim} if head_dim else {}
    if "rope_freq_base" in config:  # the default is not the same in every architecture
        pairs[f"{prefix}.rope.dimension_count"] = head_dim or config["n_embd"] // config["n_head"]
    return pairs


def _mostly(tensors: dict[str, Outgoing], types: dict[str, str]) -> str:
    """The type of most numbers."""
    counts: dict[str, int] = {}
    for name, kind in types.items():
        counts[kind] = counts.get(kind, 0) + math.prod(tensors[name].shape)
    return max(counts, key=lambda kind: counts[kind])


def _file_type(kind: str) -> int:
    """llama.cpp's number for a file mostly of this type."""
    from gguf import LlamaFileType

    names = [f"ALL_{kind}", f"MOSTLY_{kind}", f"MOSTLY_{kind}_S"]
    return int(next(member for member in LlamaFileType if member.name.lower() in map(str.lower, names)))


def _type(tensor: Outgoing, kind: str | None) -> str:
    if len(tensor.shape) == 1 or any(name in tensor.ours for name in KEPT):
        return "f32"
    if kind is None:
        return tensor.stored.dtype
    block, _ = _block(kind)
    return "f16" if tensor.shape[-1] % block else kind


def _block(kind: str) -> tuple[int, int]:
    """Elements and bytes of a block of a type."""
    from gguf import GGML_QUANT_SIZES

    n, nbytes = GGML_QUANT_SIZES[_number(kind)]
    return int(n), int(nbytes)


def _number(kind: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind.upper()]


def _write(path: Path, arch: str, pairs: dict[str, Any], tensors: dict[str, Outgoing], types: dict[str, str]) -> None:
    with writing(path, arch) as writer:
        for key, value in pairs.items():
            _add(writer, key, value)
        for name, tensor in tensors.items():
            block, nbytes = _block(types[name])
            size = math.prod(tensor.shape) // block * nbytes
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, _number(types[name]))
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        for name, tensor in tensors.items():
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            for part in _parts(tensor, types[name]):
                file.write(part.data)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))


@contextmanager
def writing(path: Path, arch: str) -> Iterator[Any]:
    """A writer of a file, closed at the end."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, arch)
    try:
        yield writer
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _parts(tensor: Outgoing, kind: str) -> Iterator[NDArray[Any]]:
    """The tensor as a type, piece by piece; quantised as it is."""
    if kind in QUANTISED and kind == tensor.stored.dtype:
        return tensor.blocks()
    return (_encoded(values, kind) for values in tensor.chunks())


def _encoded(values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """Values, whole blocks of them, as bytes of a type. Raises UnsupportedError for values beyond F16."""
    from gguf import quants

    if kind == "f32":
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        encoded: NDArray[Any] = quants.quantize(values, _number(kind))
    if kind == "f16" and not np.isfinite(encoded).all():
        raise UnsupportedError("a weight is too large for F16; take bf16 or f32")
    return encoded
