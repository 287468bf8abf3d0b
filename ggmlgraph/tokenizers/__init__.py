"""Tokenizers: text to ids and back, one interface for every kind.

    base.py           the interface, and text of ids that come one by one
    plain.py          bytes; the characters of an alphabet
    sentencepiece.py  models of sentencepiece, whose files spm.py reads and writes; training.py trains them
    huggingface.py    tokenizer.json, which tokenizerjson.py reads
    vocabularies.py   files of llama2.c, GGUF and tiktoken as one of the two above
    settings.py       chat template and special tokens, as other files say them
    togguf.py, tohf.py, spmfromjson.py  the way out, for `export-gguf` and `export-hf`

A tokenizer travels inside graph.bin as the leaf `ggmlgraph.tokenizer`: a one-line JSON header `{"kind", "nbytes"}`,
with `"settings"` if there are any, a line feed and nbytes of payload (`to_bytes`, `from_bytes`). A kind is one class
and one row of `KINDS`. Used by the trainer, by `data`, by generation and by the commands that take `--tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph import gguffile
from ggmlgraph.corpus import open_source
from ggmlgraph.errors import FormatError
from ggmlgraph.tokenizers import settings, spm, vocabularies
from ggmlgraph.tokenizers.base import Decoder, Header, Ids, Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.settings import Settings
from ggmlgraph.tokenizers.training import train

__all__ = [
    "KINDS", "BytesTokenizer", "CharsTokenizer", "Decoder", "HuggingFaceTokenizer", "Ids", "SentencePieceTokenizer",
    "Settings", "Tokenizer", "from_bytes", "from_gguf", "load", "train",
]  # fmt: skip

KINDS: dict[str, type[Tokenizer]] = {
    t.kind: t for t in (BytesTokenizer, CharsTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer)
}

_MAX_HEADER = 8 * settings.MAX_TEMPLATE  # bytes


def from_bytes(data: bytes) -> Tokenizer:
    """The tokenizer of a leaf `ggmlgraph.tokenizer`; zero bytes after the payload are padding.

    Raises FormatError or UnsupportedError.
    """
    end = data.find(b"\n", 0, _MAX_HEADER)
    if end < 0:
        raise FormatError("tokenizer: no header line", offset=0)
    try:
        header = msgspec.json.decode(data[:end], type=Header)
    except msgspec.DecodeError as error:
        raise FormatError(f"tokenizer: bad header: {error}", offset=0) from None
    if header.kind not in KINDS:
        raise FormatError(f"tokenizer: unknown kind {header.kind!r}; known: " + ", ".join(KINDS), offset=0)
    payload = data[end + 1 :]
    if not 0 <= header.nbytes <= len(payload) or payload[header.nbytes :].strip(b"\0"):
        raise FormatError(
            f"tokenizer: nbytes {header.nbytes} does not fit the {len(payload)} bytes there are", offset=0
        )
    return KINDS[header.kind].from_payload(payload[: header.nbytes]).apply(header.settings or Settings())


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, known by its content: sentencepiece's .model, tokenizer.json, tiktoken's ranks,
    llama2.c's tokenizer.bin, or the vocabulary of a GGUF file.

    What tokenizer_config.json beside it says is applied.
    Raises FormatError with the byte offset of the first fault, UnsupportedError, or DataError if it cannot be read.
    """
    path = Path(path)
    source = open_source(path)
    with source.open() as stream:
        data = stream.read(spm.MAX_NBYTES + 1)
    if data.startswith(gguffile.MAGIC):
        return from_gguf(gguffile.read(path).pairs)
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


def from_gguf(pairs: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in the keys of a GGUF file. Raises FormatError or UnsupportedError."""
    known = settings.from_gguf(pairs)
    if pairs.get("tokenizer.ggml.model") == "gpt2":
        return HuggingFaceTokenizer(vocabularies.json_from_gguf(pairs)).apply(known)
    return SentencePieceTokenizer(vocabularies.from_gguf(pairs)).apply(known)
