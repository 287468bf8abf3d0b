"""The content of the leaf `ggmlgraph.metadata`: what a graph file says beyond ops and weights.

Stock ggml sees an unused I8 tensor; we see UTF-8 JSON padded with spaces. The exporter fills it, `inspect`, training
and generation read it. Fields may be added without a new version: older readers ignore what they do not know.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.graphfile.records import LEAF_ALIGNMENT
from ggmlgraph.table.dialect import ALL_FLAGS

LEAF_NAME = "ggmlgraph.metadata"
TOKENIZER_LEAF = "ggmlgraph.tokenizer"  # tokenizers/ says what is in it
VERSION = 1
MAX_NBYTES = 16 << 20

Feed = Literal["tokens", "targets", "loss_weights", "positions"]
Scalar = str | int | float | bool | None
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Expression = str | None
Flags = Annotated[int, msgspec.Meta(ge=1, le=ALL_FLAGS)]


class SizeExpressions(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the size of a leaf or sized op follows from the named sizes; None where it does not."""

    ne: tuple[Expression, Expression, Expression, Expression] = (None, None, None, None)  # in ggml's order
    offset: Expression = None  # bytes, of a view


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """One file's metadata. Keys of `inputs`, `flags`, `exprs`, `exact`, `where`, `initializers` are tensors' names."""

    version: Annotated[int, msgspec.Meta(ge=1)] = VERSION
    model: str
    config: dict[str, Scalar] = {}
    sizes: dict[str, Size] = {}  # named sizes and their values at export; empty if the graph is fixed
    fixed: str | None = None  # why the graph cannot be re-sized
    limits: dict[str, Size] = {}  # the largest value of a named size, where the model has one
    inputs: dict[str, Feed] = {}
    exprs: dict[str, SizeExpressions] = {}
    exact: dict[str, str] = {}  # op of ours that the file approximates by an op of ggml
    where: dict[str, str] = {}  # "file.py:41", the call that made the node
    corpus: str | None = None  # what to train on when no data is given, e.g. "builtin:sine"
    initializers: dict[str, str] = {}
    flags: dict[str, Flags] = {}  # what is input, output, trained, the loss: in a dialect whose records do not say it

    def encode(self) -> bytes:
        """JSON, padded so that tensors behind it stay aligned."""
        return _pad(msgspec.json.encode(self))


def _pad(text: bytes) -> bytes:
    return text + b" " * (-len(text) % LEAF_ALIGNMENT)


def with_flags(data: bytes, flags: dict[str, int]) -> bytes:
    """The leaf's bytes with these flags and all else as it is, fields of later versions too."""
    decode(data)
    return _pad(msgspec.json.encode(msgspec.json.decode(data) | {"flags": flags}))


def decode(data: bytes) -> Metadata:
    """Read the leaf's bytes, which come from anyone."""
    if len(data) > MAX_NBYTES:
        raise FormatError(f"metadata of {len(data)} bytes, at most {MAX_NBYTES} allowed")
    try:
        metadata = msgspec.json.decode(data.decode(), type=Metadata)  # which checks what is skipped too
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"metadata: {error}") from None
    if metadata.version > VERSION:
        raise UnsupportedError(f"metadata has version {metadata.version}; this ggmlgraph reads version {VERSION}")
    return metadata
