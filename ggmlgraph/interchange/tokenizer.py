"""The tokenizer in somebody's file: every kind becomes one of ours.

Used by the sources of checkpoints and by the commands that take `--tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggmlgraph.errors import FormatError
from ggmlgraph.interchange.formats import gguf
from ggmlgraph.regular import open_regular
from ggmlgraph.tokenizers import settings, spm, vocabularies
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, known by its content: sentencepiece's .model, tokenizer.json, tiktoken's ranks,
    llama2.c's tokenizer.bin, or the vocabulary of a GGUF file.

    What tokenizer_config.json beside it says is applied.
    Raises FormatError with the byte offset of the first fault, UnsupportedError, or DataError if it cannot be read.
    """
    path = Path(path)
    with open_regular(path)[0] as stream:
        data = stream.read(spm.MAX_NBYTES + 1)
    if data.startswith(gguf.MAGIC):
        return tokenizer_from_gguf(gguf.read(path).pairs)
    try:
        return _recognise(data).apply(settings.beside(path))
    except FormatError as error:
        raise FormatError(f"{path}: {error}", offset=error.offset) from None


def _recognise(data: bytes) -> Tokenizer:
    if data.lstrip().startswith(b"{"):
        return HuggingFaceTokenizer(data)
    if vocabularies.is_tiktoken(data):
        return HuggingFaceTokenizer(vocabularies.json_from_tiktoken(data))
    return SentencePieceTokenizer(vocabularies.from_llama2c(data) if vocabularies.is_llama2c(data) else data)


def tokenizer_from_gguf(pairs: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in the keys of a GGUF file. Raises FormatError or UnsupportedError."""
    known = settings.from_gguf(pairs)
    if pairs.get("tokenizer.ggml.model") == "gpt2":
        return HuggingFaceTokenizer(vocabularies.json_from_gguf(pairs)).apply(known)
    return SentencePieceTokenizer(vocabularies.from_gguf(pairs)).apply(known)
