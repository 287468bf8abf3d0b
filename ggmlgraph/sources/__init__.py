"""Checkpoints of other programs: `find` recognises one by what it is and says what is in it, values unread.

One module for each kind. Used by `ggmlgraph convert`.
"""

from __future__ import annotations

from pathlib import Path

from ggmlgraph import gguffile, safetensorsfile, torchfile
from ggmlgraph.errors import UsageError
from ggmlgraph.sources import gguf, huggingface, llama2c, meta
from ggmlgraph.sources.source import Source
from ggmlgraph.stored import open_regular

__all__ = ["Source", "find"]


def find(path: Path) -> Source:
    """The checkpoint at a path, file or folder. Raises UsageError for what is none, FormatError, UnsupportedError."""
    if path.is_dir():
        if (path / huggingface.CONFIG).exists():
            return huggingface.folder(path)
        if (path / meta.CONFIG).exists():
            return meta.folder(path)
        raise UsageError(f"{path} is no checkpoint: it has neither {huggingface.CONFIG} nor {meta.CONFIG}")
    file, size = open_regular(path)
    with file:
        start = file.read(llama2c.HEADER.size)
    if start.startswith(gguffile.MAGIC):
        return gguf.file(path)
    if start.startswith((torchfile.ZIP_MAGIC, torchfile.LEGACY_MAGIC)):
        tensors = torchfile.read(path)
        return meta.file(path, tensors) if meta.TOKENS in tensors else huggingface.file(path, tensors)
    if llama2c.is_llama2c(start, size):
        return llama2c.file(path)
    if safetensorsfile.is_safetensors(start[:9], size):
        return huggingface.file(path, safetensorsfile.read(path))
    raise UsageError(f"{path} is no checkpoint that is known: safetensors, PyTorch, GGUF or llama2.c")
