"""Tokenizers that Hugging Face's package `tokenizers` runs, after pipeline.py has checked their file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.tokenizers import pipeline, spm
from ggmlgraph.tokenizers.base import Ids, Segment, Tokenizer, checked, encodable

_MIN_SEGMENT, _MAX_SEGMENT = 4096, 65536  # characters
_LETTER_THEN_SPACE = re.compile(f"[^\\W\\d_][ {spm.SPACE}]")


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json of Hugging Face; the package `tokenizers` (extra `hf`) does the encoding.

    Names of special tokens in a text become these tokens, as they do there. A text longer than some 4000 characters is
    encoded in segments, cut only between a letter and a space: every pattern that splits text into words cuts
    there too, and elsewhere no token of the vocabulary spans such a place. (If 65536 characters offer no such cut,
    one is made anyway.) If a token does span one, the text is not cut at all.
    """

    kind = "tokenizer.json"
    reads_names = True

    def __init__(self, data: bytes) -> None:
        """Raises FormatError, or UnsupportedError if the file needs what is not supported or installed."""
        self.json = pipeline.read(data)
        self._data = data
        self._encoder = pipeline.Encoder(data)
        for token in self.json.file.added_tokens:
            if (found := self._encoder.id_of(token.content)) != token.id:
                raise FormatError(f"the added token {token.content!r} is {token.id}, the next free id is {found}")
        self.bos_id, self.eos_id, self.adds_bos = self.json.bos_id, self.json.eos_id, self.json.adds_bos
        self._byte_level = self.json.file.is_byte_level
        added = self.json.file.added_tokens
        self._added = {token.id: b"" if token.special else token.content.encode() for token in added}
        self._pieces: dict[int, bytes] = {}
        self.prefixes_space = self._prefixes_space()

    @property
    def n_vocab(self) -> int:
        return len(self.json.names)

    @property
    def specials(self) -> Mapping[str, int]:
        return self.json.specials

    def name_of(self, token: int | None) -> str:
        return "" if token is None else self.json.names[token]

    def token_named(self, name: str) -> int | None:
        return self.json.file.tokens().get(name)

    def segments(self, chunks: Iterable[str]) -> Iterator[list[Segment]]:
        before, rest = "", ""  # the character before the rest, and text not encoded yet
        for chunk in chunks:
            rest += encodable(chunk)
            while self._may_cut and (cut := self._cut(rest)) is not None:
                yield [(before, rest[:cut])]
                before, rest = rest[cut - 1], rest[cut:]
        if rest:
            yield [(before, rest)]

    def encode_segments(self, segments: Sequence[Segment]) -> list[Ids]:
        return [self._ids(before, text) for before, text in segments]

    @cached_property
    def _may_cut(self) -> bool:
        added = self.json.file.added_tokens
        names = [token.content for token in added] if self._byte_level else self.json.names
        return not any(_LETTER_THEN_SPACE.search(name) for name in names) and not any(t.single_word for t in added)

    @staticmethod
    def _cut(text: str) -> int | None:
        """Where the first segment ends; None while the text known so far does not tell."""
        at = text.find(" ", _MIN_SEGMENT, _MAX_SEGMENT)
        while at >= 0 and not text[at - 1].isalpha():
            at = text.find(" ", at + 1, _MAX_SEGMENT)
        if at >= 0:
            return at
        return _MAX_SEGMENT if len(text) >= _MAX_SEGMENT else None

    def _ids(self, before: str, text: str) -> Ids:
        """Ids of a segment, which is not taken for the start of a text if there is a character before it."""
        if self._byte_level or not before:
            return np.array(self._encoder.encode(text), np.int32)
        n_before = len(self._encoder.encode(before))
        return np.array(self._encoder.encode(before + text)[n_before:], np.int32)

    def piece(self, token: int) -> bytes:
        token = checked(token, self)
        if token not in self._pieces:
            self._pieces[token] = self._added[token] if token in self._added else self._spelt(token)
        return self._pieces[token]

    def _spelt(self, token: int) -> bytes:
        """What an id that is no added token adds in the middle of a text."""
        name = self.json.names[token]
        if self._byte_level:
            return pipeline.byte_level(name)
        if self._falls_back and spm.BYTE_PIECE.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        start = self._encoder.decode([self._anchor])
        return self._encoder.decode([self._anchor, token]).removeprefix(start).encode()

    @cached_property
    def _falls_back(self) -> bool:
        return any(step["type"] == "ByteFallback" for step in pipeline.steps(self.json.file.decoder))

    @cached_property
    def _anchor(self) -> int:
        """A token that is decoded the same with another behind it."""
        for token, name in enumerate(self.json.names):
            if name and token not in self._added and not spm.BYTE_PIECE.fullmatch(name):
                text = self._encoder.decode([token])
                if text.isalnum() and self._encoder.decode([token, token]).startswith(text):
                    return token
        raise UnsupportedError("a tokenizer.json without a token of letters or digits")

    def _prefixes_space(self) -> bool:
        """Whether a text gets a space in front that decoding takes away."""
        if self._byte_level:
            steps = pipeline.steps(self.json.file.pre_tokenizer)
            return any(step.get("add_prefix_space") is True for step in steps)
        tokens = (token for token, name in enumerate(self.json.names) if name and token not in self._added)
        token = next((token for token in tokens if self.piece(token).startswith(b" ")), None)
        return token is not None and self._encoder.decode([token]).encode() == self.piece(token)[1:]

    def payload(self) -> bytes:
        return self._data

    @classmethod
    def from_payload(cls, payload: bytes) -> HuggingFaceTokenizer:
        return cls(payload)
