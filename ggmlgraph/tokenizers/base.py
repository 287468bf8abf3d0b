"""What every kind of tokenizer is, and the leaf it travels in. See the package."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import DataError, FormatError
from ggmlgraph.tokenizers.settings import Settings

Ids = NDArray[np.int32]
Segment = tuple[str, str]  # the character before it, "" at the begin of a text; text that is encoded by itself


class Header(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The first line of the leaf; `nbytes` of payload follow."""

    kind: str
    nbytes: int
    settings: Settings | None = None


class Tokenizer(ABC):
    """Ids are 0 .. n_vocab - 1. Encoding adds no begin- or end-of-text token."""

    kind: ClassVar[str]
    bos_id: int | None = None
    eos_id: int | None = None
    adds_bos: bool = False  # the model was trained on texts that begin with bos_id
    unk_id: int | None = None  # stands for what has no ids, pad_id for nothing at all
    pad_id: int | None = None
    settings: Settings = Settings()  # what is known beyond the vocabulary; `apply` it
    prefixes_space: bool = False  # encoding puts a space before the text and decoding takes it away
    reads_names: ClassVar[bool] = False  # encoding takes the names of control tokens in a text for these tokens

    @property
    @abstractmethod
    def n_vocab(self) -> int:
        """Number of ids."""

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[Ids]:
        """Ids of a text that comes in chunks, in bounded memory; where the chunks are cut does not change the ids.

        Raises DataError for text that has no ids, with the character's position in the whole text.
        """
        for segments in self.segments(chunks):
            yield from self.encode_segments(segments)

    @abstractmethod
    def segments(self, chunks: Iterable[str]) -> Iterator[list[Segment]]:
        """A text cut into segments whose ids, one after the other, are the text's, so that others can encode them.

        Raises as `encode_stream`.
        """

    @abstractmethod
    def encode_segments(self, segments: Sequence[Segment]) -> list[Ids]:
        """The ids of each segment."""

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """The UTF-8 bytes that an id stands for, perhaps only part of a character; none for a control token.

        Raises DataError if the id is not in the vocabulary.
        """

    @abstractmethod
    def payload(self) -> bytes:
        """Everything the tokenizer is, for `from_payload`."""

    @classmethod
    @abstractmethod
    def from_payload(cls, payload: bytes) -> Tokenizer:
        """The tokenizer that `payload` describes. Raises FormatError."""

    def encode(self, text: str) -> Ids:
        """Ids of a text: int32 (n_tokens,)."""
        return np.concatenate([np.empty(0, np.int32), *self.encode_stream([text])])

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        decoder = TextDecoder(self)
        return "".join([*map(decoder.push, tokens), decoder.finish()])

    @property
    def beginning(self) -> list[int]:
        """What the model's texts begin with: bos_id, or nothing."""
        return [self.bos_id] if self.adds_bos and self.bos_id is not None else []

    @property
    def end_ids(self) -> frozenset[int]:
        """What texts end at: eos_id, if there is one, and others."""
        return frozenset({*self.settings.ends, *(() if self.eos_id is None else (self.eos_id,))})

    @property
    def specials(self) -> Mapping[str, int]:
        """Control tokens by name, which no text is encoded as unless the tokenizer itself does so."""
        return {}

    @property
    def chat_template(self) -> str | None:
        """Jinja2 that makes one text of a conversation; it may come from anyone."""
        return self.settings.chat_template

    def name_of(self, token: int | None) -> str:
        """Name of a control token, as chat templates want it; "" if it has none."""
        return next((name for name, i in self.specials.items() if i == token), "")

    def token_named(self, name: str) -> int | None:
        """The id of a token that settings name; None if there is none."""
        return self.specials.get(name)

    def apply(self, settings: Settings) -> Self:
        """Take settings over; returns the tokenizer. Raises FormatError if they name a token that it does not have."""
        self.settings = settings
        self.bos_id = self._token("begin-of-text", settings.bos, self.bos_id)
        self.eos_id = self._token("end-of-text", settings.eos, self.eos_id)
        self.unk_id = self._token("unknown", settings.unk, self.unk_id)
        self.pad_id = self._token("padding", settings.pad, self.pad_id)
        if beyond := [token for token in settings.ends if not 0 <= token < self.n_vocab]:
            raise FormatError(f"its texts are said to end at {beyond[0]}, which is none of its tokens")
        self.adds_bos = (self.adds_bos if settings.adds_bos is None else settings.adds_bos) and self.bos_id is not None
        return self

    def _token(self, what: str, said: str | int | None, otherwise: int | None) -> int | None:
        if said is None or said == "":
            return otherwise if said is None else None
        token = self.token_named(said) if isinstance(said, str) else said
        if token is None or not 0 <= token < self.n_vocab:
            raise FormatError(f"its {what} token is said to be {said!r}, which is none of its tokens")
        return token

    def to_bytes(self) -> bytes:
        """The leaf `ggmlgraph.tokenizer`."""
        payload = self.payload()
        return (
            msgspec.json.encode(Header(self.kind, len(payload), self.settings if self.settings != Settings() else None))
            + b"\n"
            + payload
        )


class TextDecoder:
    """Text of ids that come one by one. A character whose bytes are not all there yet waits for the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.prefixes_space

    def push(self, token: int) -> str:
        """The characters that this id completes. Push the prompt's ids too: text starts differently than it goes on."""
        piece = self._tokenizer.piece(int(token))
        if self._drop_space and piece:
            piece = piece.removeprefix(b" ")
            self._drop_space = False
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """What an unfinished character at the end becomes: U+FFFD, or nothing if there is none."""
        return self._utf8.decode(b"", final=True)


def checked(token: int, tokenizer: Tokenizer) -> int:
    """The id, if the tokenizer has it. Raises DataError."""
    if not 0 <= token < tokenizer.n_vocab:
        raise DataError(f"token id {token} is not in the tokenizer's 0 .. {tokenizer.n_vocab - 1}")
    return token


def encodable(text: str) -> str:
    """`text`, unless it has a surrogate without its partner, which no encoding can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text has a lone surrogate {named(text[error.start])} at {error.start}") from None
    return text


def named(character: str) -> str:
    """A character as errors show it."""
    return f"{ascii(character) if not character.isprintable() else repr(character)} (U+{ord(character):04X})"


def code_points(text: str) -> NDArray[np.uint32]:
    """The code points of a text: uint32 (n,)."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint32)
