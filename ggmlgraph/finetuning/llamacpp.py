"""Adapters as llama.cpp reads them: a GGUF file with a pair of tensors for each matrix, and one alpha for all.

llama.cpp multiplies by alpha / rank, the rank being the tensor's. So whatever a scale is here (rsLoRA, alphas and ranks
by pattern), the file has the alpha of most, and the factor B of the others is multiplied by what is left. Used by
`attaching` and `export-gguf --lora`.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.durable import replacing
from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.finetuning import factors
from ggmlgraph.finetuning.basis import Opened
from ggmlgraph.finetuning.factors import Adapters, Factors
from ggmlgraph.finetuning.theirs import names_of
from ggmlgraph.graphfile import lowrank
from ggmlgraph.interchange.exportgguf import writing
from ggmlgraph.interchange.formats import gguf
from ggmlgraph.interchange.formats.stored import Stored

KIND = "gguf"


def write(opened: Opened, path: Path) -> int:
    """Write the adapters of a graph as a file; how many there are. Raises UsageError, UnsupportedError."""
    adapters, names = factors.adapters_of(opened), names_of(opened, KIND)
    factors.check_alone(opened)
    alphas = Counter(own.scale * own.rank for own in adapters.of.values())
    alpha = alphas.most_common(1)[0][0]
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, own in adapters.of.items():
        times = own.scale * own.rank / alpha
        b = names.rows_out(name, own.b) if own.kind == "matrix" else own.b
        stem = names.path(name) + ".weight"
        tensors[f"{stem}.lora_a"] = own.a
        tensors[f"{stem}.lora_b"] = b if times == 1 else b * np.float32(times)
    with replacing(path) as temporary, writing(temporary, names.format.id) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for name, values in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(values))
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return len(adapters.of)


def read(path: Path, opened: Opened) -> Adapters:
    """The adapters in a file, of the graph that is opened. Raises FormatError, UnsupportedError."""
    file, names = gguf.read(path), names_of(opened, KIND)
    said, tensors = file.pairs, dict(file.tensors)
    if said.get("general.type") != "adapter" or said.get("adapter.type") != "lora":
        raise FormatError(f"{path} is no LoRA adapter")
    if said.get("general.architecture") != names.format.id:
        raise FormatError(f"{path}: an adapter of a {said.get('general.architecture')}, not of a {names.format.id}")
    if "adapter.alora.invocation_tokens" in said:
        raise UnsupportedError(
            f"{path}: it is switched on by tokens (adapter.alora.invocation_tokens), which is not read"
        )
    alpha = said.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise FormatError(f"{path}: adapter.lora.alpha is {alpha!r}")
    found: dict[str, Factors] = {}
    for weight in opened.matrices().values():
        theirs = names.format.theirs(weight.name)
        pair = [tensors.pop(f"{theirs}.{end}", None) for end in ("lora_a", "lora_b")]
        if pair == [None, None]:
            continue
        a, b = (_values(path, weight.name, each) for each in pair)
        rank = b.shape[1]
        if (a.shape, b.shape) != lowrank.shapes(weight, rank):
            what = f"{list(a.shape)} and {list(b.shape)}, which do not fit {list(weight.shape)}"
            raise FormatError(f"{path}: the adapter of {theirs} is {what}")
        if weight.kind == "matrix":
            b = names.rows_in(weight.name, b)
        own = alpha or float(rank)  # without one, llama.cpp multiplies by nothing
        found[weight.name] = Factors(weight.kind, a, b, own, own / rank)
    if tensors:
        raise FormatError(f"{path}: {next(iter(tensors))!r} is beside no matrix of {opened.path}")
    if not found:
        raise FormatError(f"{path}: it has no adapters")
    first = next(iter(found.values()))
    return Adapters(found, first.rank, first.alpha)


def _values(path: Path, name: str, stored: Stored | None) -> NDArray[np.float32]:
    if stored is None or len(stored.shape) != 2:
        raise FormatError(f"{path}: no pair of matrices for {name}")
    return np.concatenate([np.empty(0, np.float32), *stored.chunks()]).reshape(stored.shape)
