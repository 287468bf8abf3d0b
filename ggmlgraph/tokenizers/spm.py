"""The sentencepiece `.model` file: a bounded reader for files that nobody vouches for.

A `.model` is one protobuf message, ModelProto of google/sentencepiece's `sentencepiece_model.proto`. Its own Python
binding of that message needs the protobuf package, and its C++ reader trusts the file in places (it follows
the normaliser's trie without bounds), so every byte is walked here first, without recursion, and only a
file that passes is given to sentencepiece. `write` makes such a file. Used by `sentencepiece` and `vocabularies`.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ggmlgraph.errors import FormatError, UnsupportedError

MAX_NBYTES = 64 << 20
MAX_PIECES = 1 << 20
MAX_PIECE_NBYTES = 1 << 10
SPACE = "\u2581"  # how a piece spells a space

# SentencePiece.type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# TrainerSpec.model_type
UNIGRAM, BPE = 1, 2

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # protobuf wire types; 3 and 4, groups, are refused
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")  # how a piece spells a byte


@dataclass
class SpmModel:
    """What a `.model` says; absent fields have the .proto's defaults. Piece i has scores[i] and types[i]."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    unk_surface: str = " \u2047 "
    charsmap: bytes = b""  # sentencepiece's table of character replacements (NFKC and the like)
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    @property
    def lossless(self) -> bool:
        """Whether every text comes back from its pieces."""
        changes = bool(self.charsmap) or self.remove_extra_whitespaces or not self.escape_whitespaces
        return self.byte_fallback and SPACE in self.pieces and not changes


class _Field(NamedTuple):
    number: int
    wire: int
    offset: int  # of the field's tag
    start: int  # of its value
    end: int
    value: int  # of a varint; 0 otherwise


def read(data: bytes) -> SpmModel:
    """Parse and check a serialized ModelProto.

    Raises FormatError with the byte offset of the first fault; UnsupportedError for the two rare features
    that decoding piece by piece cannot follow (a denormaliser, space as suffix).
    """
    if len(data) > MAX_NBYTES:
        raise FormatError(f"{len(data)} bytes; a sentencepiece model has at most {MAX_NBYTES}", offset=MAX_NBYTES)
    model = SpmModel()
    seen: set[int] = set()
    for item in _fields(data, 0, len(data)):
        if item.number in (2, 3, 5):
            if item.number in seen:
                raise _fault("a second trainer or normalizer specification", item.offset)
            seen.add(item.number)
        if item.number in (1, 2, 3, 5) and item.wire != _LENGTH:
            raise _fault(f"field {item.number} is not a message", item.offset)
        if item.number == 1:
            _read_piece(data, item, model)
        elif item.number == 2:
            _read_trainer_spec(data, item, model)
        elif item.number == 3:
            _read_normalizer_spec(data, item, model)
        elif item.number == 5 and any(f.number == 2 and f.end > f.start for f in _fields(data, item.start, item.end)):
            raise UnsupportedError("sentencepiece models with a denormalizer are not supported")
    _check_vocabulary(data, model)
    return model


def _fault(reason: str, offset: int) -> FormatError:
    return FormatError(f"not a sentencepiece model: {reason} at byte {offset}", offset=offset)


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Value of the varint at `at` and the offset after it."""
    if at < end and data[at] < 0x80:
        return data[at], at + 1
    value = 0
    for i in range(min(10, end - at)):
        value |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise _fault("a number that does not end", at)


def _fields(data: bytes, at: int, end: int) -> Iterator[_Field]:
    """The fields of the message in data[at:end], in file order."""
    while at < end:
        offset = at
        tag, at = _varint(data, at, end)
        wire, value = tag & 7, 0
        if wire == _VARINT:
            start = at
            value, at = _varint(data, at, end)
        elif wire == _LENGTH:
            nbytes, start = _varint(data, at, end)
            at = start + nbytes
        elif wire in (_FIXED64, _FIXED32):
            start = at
            at += 8 if wire == _FIXED64 else 4
        else:
            raise _fault(f"wire type {wire}", offset)
        if at > end:
            raise _fault(f"a field that ends {at - end} bytes after its message", offset)
        yield _Field(tag >> 3, wire, offset, start, at, value)


def _text(data: bytes, item: _Field) -> str:
    try:
        return data[item.start : item.end].decode()
    except UnicodeDecodeError as error:
        raise _fault("text that is not UTF-8", item.start + error.start) from None


def _read_piece(data: bytes, message: _Field, model: SpmModel) -> None:
    """message SentencePiece { string piece = 1; float score = 2; Type type = 3; }"""
    if len(model.pieces) == MAX_PIECES:
        raise _fault(f"more than {MAX_PIECES} pieces", message.offset)
    piece, score, kind = "", 0.0, NORMAL
    for item in _fields(data, message.start, message.end):
        if item.number == 1 and item.wire == _LENGTH:
            if item.end - item.start > MAX_PIECE_NBYTES:
                raise _fault(f"a piece of {item.end - item.start} bytes", item.offset)
            piece = _text(data, item)
        elif item.number == 2 and item.wire == _FIXED32:
            (score,) = struct.unpack_from("<f", data, item.start)
        elif item.number == 3 and item.wire == _VARINT:
            kind = item.value
        elif item.number in (1, 2, 3):
            raise _fault(f"field {item.number} of a piece has wire type {item.wire}", item.offset)
    if not piece:
        raise _fault("an empty piece", message.offset)
    if not math.isfinite(score):
        raise _fault("a piece whose score is not finite", message.offset)
    if not NORMAL <= kind <= BYTE:
        raise _fault(f"a piece of type {kind}", message.offset)
    if kind == BYTE and not BYTE_PIECE.fullmatch(piece):
        raise _fault("a byte piece that is not spelt <0xNN>", message.offset)
    model.pieces.append(piece)
    model.scores.append(score)
    model.types.append(kind)


def _read_trainer_spec(data: bytes, message: _Field, model: SpmModel) -> None:
    """Of TrainerSpec: model_type = 3, treat_whitespace_as_suffix = 24, byte_fallback = 35, unk_surface = 44."""
    for item in _fields(data, message.start, message.end):
        if item.number == 3:
            model.model_type = item.value
        elif item.number == 24 and item.value:
            raise UnsupportedError("sentencepiece models with spaces as suffix are not supported")
        elif item.number == 35:
            model.byte_fallback = bool(item.value)
        elif item.number == 44 and item.wire == _LENGTH:
            model.unk_surface = _text(data, item)


def _read_normalizer_spec(data: bytes, message: _Field, model: SpmModel) -> None:
    """Of NormalizerSpec: precompiled_charsmap = 2 and the booleans 3, 4, 5."""
    for item in _fields(data, message.start, message.end):
        if item.number == 2 and item.wire == _LENGTH and item.end > item.start:
            model.charsmap = data[item.start : item.end]
            check_charsmap(model.charsmap, item.start)
        elif item.number == 3:
            model.add_dummy_prefix = bool(item.value)
        elif item.number == 4:
            model.remove_extra_whitespaces = bool(item.value)
        elif item.number == 5:
            model.escape_whitespaces = bool(item.value)


def check_charsmap(charsmap: bytes, offset: int) -> None:
    """Check that no walk through the normaliser's trie can leave it; `offset` is where the table is, for the error.

    The blob is: uint32 size of the trie, the trie, replacements each ended by a NUL. The trie is darts-clone's
    array of uint32 units: bit 31 marks a value; otherwise bits 10-30 (scaled by 256 if bit 9 is set) xor the unit's
    own index are its children's block, the byte looked up picks the child, and bit 8 says child 0 is a value.
    """
    (trie_nbytes,) = struct.unpack_from("<I", charsmap.ljust(4, b"\0"))
    replacements = charsmap[4 + trie_nbytes :]
    if trie_nbytes == 0 or trie_nbytes % 4 or not replacements.endswith(b"\0"):
        raise _fault("a damaged normalization table", offset)
    trie = np.frombuffer(charsmap, "<u4", trie_nbytes // 4, 4).astype(np.int64)
    index = np.flatnonzero(trie < 1 << 31)
    units = trie[index]
    block = index ^ (units >> 10 << ((units & 0x200) >> 6))
    if (block | 0xFF).max(initial=0) >= trie.size:
        raise _fault("a normalization table that points outside itself", offset)
    values = trie[block[units & 0x100 != 0]] & 0x7FFF_FFFF
    if values.max(initial=0) >= len(replacements):
        raise _fault("a normalization table that points outside its replacements", offset)


def _check_vocabulary(data: bytes, model: SpmModel) -> None:
    end = len(data)
    if not model.pieces:
        raise _fault("no pieces", end)
    if model.types.count(UNKNOWN) != 1:
        raise _fault("not exactly one unknown piece", end)
    if len(set(model.pieces)) != len(model.pieces):
        raise _fault("the same piece twice", end)
    n_bytes = model.types.count(BYTE)
    if model.byte_fallback and n_bytes != 256:
        raise _fault(f"byte fallback with {n_bytes} byte pieces instead of 256", end)


# ---------------------------------------------------------------- writing


def write(model: SpmModel, unk_id: int = 0, bos_id: int = 1, eos_id: int = 2) -> bytes:
    """A serialized ModelProto; `read` and sentencepiece take it."""
    message = bytearray()
    for piece, score, kind in zip(model.pieces, model.scores, model.types, strict=True):
        fields = _bytes_field(1, piece.encode()) + struct.pack("<Bf", 2 << 3 | _FIXED32, score) + _varint_field(3, kind)
        message += _bytes_field(1, fields)
    trainer = _varint_field(3, model.model_type) + _varint_field(4, len(model.pieces))
    trainer += _varint_field(35, int(model.byte_fallback)) + _bytes_field(44, model.unk_surface.encode())
    for k, token in enumerate((unk_id, bos_id, eos_id)):
        trainer += _varint_field(40 + k, token) + _bytes_field(45 + k, model.pieces[token].encode())
    normalizer = _bytes_field(1, b"user_defined" if model.charsmap else b"identity")
    normalizer += _bytes_field(2, model.charsmap) + _varint_field(3, int(model.add_dummy_prefix))
    normalizer += _varint_field(4, int(model.remove_extra_whitespaces)) + _varint_field(
        5, int(model.escape_whitespaces)
    )
    return bytes(message) + _bytes_field(2, trainer) + _bytes_field(3, normalizer)


def _varint_field(number: int, value: int) -> bytes:
    return _encoded(number << 3 | _VARINT) + _encoded(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | _LENGTH) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    """A varint: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
