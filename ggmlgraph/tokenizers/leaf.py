"""The leaf `ggmlgraph.tokenizer`, in which a tokenizer travels inside graph.bin.

It is a one-line JSON header `{"kind", "nbytes"}`, with `"settings"` if there are any, a line feed and nbytes of
payload. A kind is one class and one row of `KINDS`; `Tokenizer.to_bytes` writes what is read here. Used by whoever
opens a run or a graph.
"""

from __future__ import annotations

import msgspec

from ggmlgraph.errors import FormatError
from ggmlgraph.tokenizers import settings
from ggmlgraph.tokenizers.base import Header, Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.settings import Settings

KINDS: dict[str, type[Tokenizer]] = {
    t.kind: t for t in (BytesTokenizer, CharsTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer)
}

_MAX_HEADER = 8 * settings.MAX_TEMPLATE  # bytes


def tokenizer_from_bytes(data: bytes) -> Tokenizer:
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
