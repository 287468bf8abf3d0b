"""A model becomes a GGUF file for llama.cpp. Used by `ggmlgraph export-gguf`; the `gguf` package writes the header.

Keys and names are those `convert` reads (models/names), turned round; the tokenizer section is made by
gguftokenizer.py. Values stream from file to file, quantised a megabyte at a time, so memory stays under the
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

from ggmlgraph import gguftokenizer, trained
from ggmlgraph.durable import replacing
from ggmlgraph.errors import UnsupportedError
from ggmlgraph.trained import Outgoing, Trained

TYPES = {  # as people write them: file_type, llama.cpp's number for a file mostly of this type
    "f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2,
}  # fmt: skip
KEPT = ("position_embd", "ffn_gate_inp")  # matrices that llama.cpp wants as F32, as it does all vectors
ALIGNMENT = 32


def export(model: Trained, path: Path, kind: str) -> list[str]:
    """Write the file, whole or not at all; returns what the user should know.

    kind: a key of TYPES, of all matrices; rows that are no whole blocks of it become F16.
    Raises UnsupportedError for a model or tokenizer that llama.cpp would get wrong.
    """
    known = model.format("gguf")
    said = trained.keys(model, known)
    outgoing = trained.outgoing(model, known)
    n_vocab = model.config["n_vocab"]
    vocabulary, notes = gguftokenizer.section(model.tokenizer, n_vocab)
    outgoing |= {name: Outgoing(name, c.shape, c.chunks) for name, c in model.constants.items()}
    chosen = {name: _type(tensor, kind) for name, tensor in outgoing.items()}
    smaller = [name for name, t in chosen.items() if t == "f16" != kind]
    if smaller:
        notes.append(f"{len(smaller)} matrices are F16, their rows being no whole blocks of {kind}: {smaller[0]}")
    pairs = {
        "general.name": f"ggmlgraph {model.architecture}",
        "general.file_type": TYPES[kind],
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


def _type(tensor: Outgoing, kind: str) -> str:
    if len(tensor.shape) == 1 or any(name in tensor.ours for name in KEPT):
        return "f32"
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
    with _writer(path, arch) as writer:
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
            for values in tensor.chunks():
                file.write(_encoded(values, types[name]).data)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))


@contextmanager
def _writer(path: Path, arch: str) -> Iterator[Any]:
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
