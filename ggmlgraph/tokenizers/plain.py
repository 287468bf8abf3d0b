"""Tokenizers without a library: a byte or a character is a token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import DataError, FormatError, UsageError
from ggmlgraph.tokenizers.base import Ids, Segment, Tokenizer, checked, code_points, encodable, named


class BytesTokenizer(Tokenizer):
    """One id per byte of UTF-8: the default, needs no file, knows every text."""

    kind = "bytes"
    n_vocab = 256

    def segments(self, chunks: Iterable[str]) -> Iterator[list[Segment]]:
        return ([("", encodable(text))] for text in chunks)

    def encode_segments(self, segments: Sequence[Segment]) -> list[Ids]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for _, text in segments]

    def piece(self, token: int) -> bytes:
        return bytes([checked(token, self)])

    def payload(self) -> bytes:
        return b""

    @classmethod
    def from_payload(cls, payload: bytes) -> BytesTokenizer:
        if payload:
            raise FormatError(f"tokenizer: kind bytes has a payload of {len(payload)} bytes instead of none")
        return cls()


class CharsTokenizer(Tokenizer):
    """One id per character of an alphabet, in the alphabet's order."""

    kind = "chars"

    def __init__(self, alphabet: str) -> None:
        """Raises UsageError if the alphabet is empty or names a character twice."""
        self.alphabet = encodable(alphabet)
        codes = code_points(alphabet)
        self._order = np.argsort(codes, kind="stable").astype(np.int32)
        self._sorted = codes[self._order]
        if not alphabet:
            raise UsageError("the tokenizer's alphabet is empty")
        twice = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
        if twice.size:
            raise UsageError(f"the tokenizer's alphabet has {named(chr(twice[0]))} twice")

    @property
    def n_vocab(self) -> int:
        return len(self.alphabet)

    def segments(self, chunks: Iterable[str]) -> Iterator[list[Segment]]:
        start = 0
        for text in chunks:
            codes = code_points(encodable(text))
            unknown = np.flatnonzero(self._sorted[self._places(codes)] != codes)
            if unknown.size:
                at = int(unknown[0])
                raise DataError(
                    f"character {named(text[at])} at position {start + at} is not in the tokenizer's alphabet",
                    offset=start + at,
                )
            yield [("", text)]
            start += len(text)

    def encode_segments(self, segments: Sequence[Segment]) -> list[Ids]:
        return [self._order[self._places(code_points(text))] for _, text in segments]

    def _places(self, codes: NDArray[np.uint32]) -> NDArray[np.intp]:
        """Where each code point would be in the sorted alphabet."""
        return np.searchsorted(self._sorted, codes).clip(max=self.n_vocab - 1)

    def piece(self, token: int) -> bytes:
        return self.alphabet[checked(token, self)].encode()

    def payload(self) -> bytes:
        return self.alphabet.encode()

    @classmethod
    def from_payload(cls, payload: bytes) -> CharsTokenizer:
        try:
            return cls(payload.decode())
        except (UnicodeDecodeError, UsageError) as error:
            raise FormatError(f"tokenizer: bad alphabet: {error}") from None
