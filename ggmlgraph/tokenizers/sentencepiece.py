"""Tokenizers that sentencepiece runs, after spm.py has checked their file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import FormatError
from ggmlgraph.tokenizers import spm
from ggmlgraph.tokenizers.base import Ids, Segment, Tokenizer, checked, code_points, encodable

_MIN_SEGMENT, _MAX_SEGMENT, _WINDOW = 4096, 65536, 256  # characters
_STAND_INS = [chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))]  # noncharacters, private use
SILENT = 3  # sentencepiece's log level that leaves only messages before an abort


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece `.model`, BPE or unigram; sentencepiece itself does the encoding.

    A text longer than some 4000 characters is encoded in segments, cut only between two characters that no piece of the
    vocabulary holds side by side: no piece can cross such a cut, so the ids are those of the whole text. (If
    65536 characters offer no such cut, one is made anyway.) This bounds memory, and it keeps unigram models
    exact, whose float32 score of a whole book has no digits left for the next word.

    Where the model keeps every character (`spm.SpmModel.lossless`), decode(encode(text)) == text for every text.
    Sentencepiece alone turns U+2581, its own sign for a space, into a space; here it becomes byte tokens.
    """

    kind = "sentencepiece"

    def __init__(self, serialized: bytes) -> None:
        """Raises FormatError, with a byte offset where one is known, or UnsupportedError."""
        self.model = spm.read(serialized)
        self._serialized = serialized
        self._processor = _load_processor(serialized)
        self.prefixes_space = self.model.add_dummy_prefix
        self.bos_id = _id_or_none(self._processor.bos_id())
        self.eos_id = _id_or_none(self._processor.eos_id())
        self.unk_id = self.model.types.index(spm.UNKNOWN)
        self._pieces = [_piece_bytes(self.model, i) for i in range(self.n_vocab)]
        self._lossless = self.model.lossless

    @property
    def n_vocab(self) -> int:
        return len(self.model.pieces)

    def segments(self, chunks: Iterable[str]) -> Iterator[list[Segment]]:
        rest, before = "", ""  # text not encoded yet, and the character before it
        for chunk in chunks:
            rest += encodable(chunk)
            segments, start = [], 0
            while (cut := self._cut(rest, start)) is not None:
                segments.append((before, rest[start:cut]))
                before, start = rest[cut - 1], cut
            rest = rest[start:]
            if segments:
                yield segments
        if rest:
            yield [(before, rest)]

    @cached_property
    def specials(self) -> Mapping[str, int]:
        typed = enumerate(zip(self.model.pieces, self.model.types, strict=True))
        return {piece: i for i, (piece, kind) in typed if kind == spm.CONTROL}

    def name_of(self, token: int | None) -> str:
        return "" if token is None else self.model.pieces[token]

    def token_named(self, name: str) -> int | None:
        return self.model.pieces.index(name) if name in self.model.pieces else None

    def piece(self, token: int) -> bytes:
        return self._pieces[checked(token, self)]

    def payload(self) -> bytes:
        return self._serialized

    @classmethod
    def from_payload(cls, payload: bytes) -> SentencePieceTokenizer:
        return cls(payload)

    def _cut(self, text: str, start: int) -> int | None:
        """Where the segment that begins at `start` ends; None while the text known so far does not tell."""
        latest = start + _MAX_SEGMENT
        for at in range(start + _MIN_SEGMENT, min(latest, len(text) - 1), _WINDOW):
            pairs = _pairs(text[at - 1 : min(at + _WINDOW, latest)])
            place = np.searchsorted(self._inner_pairs, pairs).clip(max=self._inner_pairs.size - 1)
            safe = self._inner_pairs[place] != pairs
            if not self._lossless:
                # The pairs of pieces are of normalised text, and spaces at a segment's start would be dropped: cut
                # only before a space, after something else.
                space = _is_space(text[at - 1 : min(at + _WINDOW, latest)])
                safe &= space[1:] & ~space[:-1]
            if safe.any():
                return at + int(np.argmax(safe))
        return latest if len(text) > latest else None

    @cached_property
    def _inner_pairs(self) -> NDArray[np.uint64]:
        """Every two characters that stand side by side inside a piece, sorted, as `_pairs` gives them."""
        pieces = [p for p, t in zip(self.model.pieces, self.model.types, strict=True) if t != spm.BYTE]
        pairs = np.unique(_pairs("\0".join(pieces).replace(spm.SPACE, " ")))
        return pairs if pairs.size else np.zeros(1, np.uint64)

    def encode_segments(self, segments: Sequence[Segment]) -> list[Ids]:
        """The ids of each segment.

        Alone, a segment would be taken for a whole text and get the space that some models put in front of one; so
        it is encoded after the character before it, whose ids are then dropped.
        """
        escaped = [self._escape(before + text) for before, text in segments]
        rows = self._processor.encode([text for text, _ in escaped])
        parts = []
        for (before, _), (text, stand_in), row in zip(segments, escaped, rows, strict=True):
            n_before = len(self._processor.encode(text[: len(before)])) if before else 0
            parts.append(self._unescape(np.array(row, np.int32), stand_in)[n_before:])
        return parts

    def _escape(self, text: str) -> tuple[str, str]:
        """`text` with U+2581 replaced by a stand-in, a character neither in the text nor in any piece; the stand-in.

        Byte fallback encodes the stand-in as three bytes, which `_unescape` changes into those of U+2581.
        """
        if not self._lossless or spm.SPACE not in text:
            return text, ""
        stand_in = next((c for c in _STAND_INS if c not in text and c not in self._vocabulary), "")
        return (text.replace(spm.SPACE, stand_in), stand_in) if stand_in else (text, "")

    def _unescape(self, ids: Ids, stand_in: str) -> Ids:
        if stand_in:
            found, wanted = (self._byte_ids[list(c.encode())] for c in (stand_in, spm.SPACE))
            windows = np.lib.stride_tricks.sliding_window_view(ids, 3)
            for at in np.flatnonzero((windows == found).all(axis=1)):
                ids[at : at + 3] = wanted
        return ids

    @cached_property
    def _vocabulary(self) -> str:
        return "".join(self.model.pieces)

    @cached_property
    def _byte_ids(self) -> Ids:
        """Id of each of the 256 byte pieces."""
        types = np.array(self.model.types)
        ids = np.flatnonzero(types == spm.BYTE).astype(np.int32)
        return ids[np.argsort([self._pieces[i][0] for i in ids])]


def import_sentencepiece() -> Any:
    """The sentencepiece module, silenced; imported only when a text needs it, since it takes a while."""
    import sentencepiece

    sentencepiece.set_min_log_level(SILENT)
    return sentencepiece


def _load_processor(serialized: bytes) -> Any:
    processor = import_sentencepiece().SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(serialized)
    except RuntimeError as error:
        raise FormatError(f"sentencepiece refuses the model: {error}") from None
    return processor


def _piece_bytes(model: spm.SpmModel, token: int) -> bytes:
    """What an id adds to the text, as sentencepiece decodes it."""
    piece, kind = model.pieces[token], model.types[token]
    if kind == spm.CONTROL:
        return b""
    if kind == spm.UNKNOWN:
        return model.unk_surface.encode()
    if kind == spm.BYTE:
        return bytes([int(piece[3:5], 16)])
    return piece.replace(spm.SPACE, " ").encode()


def _id_or_none(token: int) -> int | None:
    return None if token < 0 else token


def _pairs(text: str) -> NDArray[np.uint64]:
    """Each two neighbouring code points of a text as one number: uint64 (n - 1,)."""
    codes = code_points(text).astype(np.uint64)
    return codes[:-1] << np.uint64(32) | codes[1:]


def _is_space(text: str) -> NDArray[np.bool_]:
    return np.array([c.isspace() for c in text], np.bool_)
