"""Checkpoints of other programs: `find` recognises one by what it is and says what is in it, values unread.

One module for each kind. Used by `ggmlgraph convert`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ggmlgraph.errors import UsageError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.files.strangers import refuse_stranger
from ggmlgraph.interchange.formats import gguf as ggufformat
from ggmlgraph.interchange.formats import safetensors, torch
from ggmlgraph.interchange.formats.stored import Stored
from ggmlgraph.interchange.sources import foreign, ggml, gguf, huggingface, litgpt, llama2c, llmc, meta, plain, training
from ggmlgraph.interchange.sources.base import Given, ModelSource

__all__ = ["ModelSource", "find", "of_model"]

NOTHING: Mapping[str, Any] = MappingProxyType({})
FOLDERS: dict[str, Callable[[Path, Given], ModelSource]] = {  # by a file that tells them
    litgpt.WEIGHTS: litgpt.folder,
    huggingface.CONFIG: huggingface.folder,
    meta.CONFIG: meta.folder,
}


def find(path: Path, given: Given = NOTHING, order: str | None = None) -> ModelSource:
    """The checkpoint at a path, file or folder. given: fields of the model's config that count instead of its own.

    order: of the moments in a GGUF file of llama.cpp's trainer, which does not say it (`ggml.ORDERS`).
    Raises UsageError for what is none, FormatError, UnsupportedError.
    """
    if path.is_dir():
        for name, folder in FOLDERS.items():
            if (path / name).exists():
                return folder(path, given)
        foreign.refuse_folder(path)
        raise UsageError(f"{path} is no checkpoint: it has none of {', '.join(FOLDERS)}")
    kind_of = kind(path)
    if kind_of == "gguf":
        return gguf.file(path, given, order)
    if kind_of == "llama2.c":
        return llama2c.file(path, given)
    if kind_of == "llm.c":
        return llmc.file(path, given)
    if kind_of == "ggml":
        return ggml.file(path, given)
    if kind_of == "safetensors":
        return huggingface.file(path, safetensors.read(path), given)
    content = torch.load(path)
    if content.at(training.ARGUMENTS):
        return training.file(content, given)
    tensors = content.model()
    if litgpt.is_lit(tensors):
        return litgpt.file(content, given)
    return meta.file(path, tensors, given) if meta.TOKENS in tensors else huggingface.file(path, content.state(), given)


def of_model(path: Path, architecture: str, config: Mapping[str, Any]) -> ModelSource:
    """A file of tensors that says nothing else: they are of this model, with this config."""
    read: dict[str, Any] = {"safetensors": safetensors.read, "torch": torch.read, "gguf": _gguf_tensors}
    kind_of = kind(path)
    if kind_of not in read:
        raise UsageError(f"{path}: --model is for safetensors, PyTorch and GGUF files")
    return plain.file(path, read[kind_of](path), architecture, dict(config))


def _gguf_tensors(path: Path) -> dict[str, Stored]:
    return ggufformat.read(path).tensors


def kind(path: Path) -> str:
    """What a file is, by how it begins. Raises UsageError for none that is known, FormatError for something else."""
    refuse_stranger(path)
    file, size = open_regular(path)
    with file:
        start = file.read(llama2c.LATER_NBYTES)
    if start.startswith(ggufformat.MAGIC):
        return "gguf"
    if start.startswith(llmc.MAGIC):
        return "llm.c"
    if start.startswith((ggml.CHECKPOINT, ggml.MODEL)):
        return "ggml"
    if start.startswith((torch.ZIP_MAGIC, torch.LEGACY_MAGIC)):
        return "torch"
    if llama2c.is_llama2c(start, size):
        return "llama2.c"
    if safetensors.is_safetensors(start[:9], size):
        return "safetensors"
    raise UsageError(f"{path} is no checkpoint that is known: safetensors, PyTorch, GGUF, llama2.c or llm.c")
