"""Tokenizers: text to ids and back, one interface for every kind.

A tokenizer travels inside graph.bin as the leaf `ggmlgraph.tokenizer`: a one-line JSON header `{"kind", "nbytes"}`,
with `"settings"` (tokenizersettings.py) if there are any, a line feed and nbytes of payload (`to_bytes`, `from_bytes`).
A kind is one class and one row of `KINDS`.
Used by the trainer, by `data`, by generation and by the commands `tokenizer train` and `export --tokenizer`.
"""

from __future__ import annotations

import codecs
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph import gguffile, spm, tokenizerjson, tokenizersettings, vocabularies
from ggmlgraph.corpus import open_source
from ggmlgraph.durable import replacing
from ggmlgraph.errors import DataError, FormatError, UnsupportedError, UsageError
from ggmlgraph.tokenizersettings import Settings

Ids = NDArray[np.int32]


class _Header(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    kind: str
    nbytes: int
    settings: Settings | None = None


class Tokenizer(ABC):
    """Ids are 0 .. n_vocab - 1. Encoding adds no begin- or end-of-text token."""

    kind: ClassVar[str]
    bos_id: int | None = None
    eos_id: int | None = None
    adds_bos: bool = False  # the model was trained on texts that begin with bos_id
    settings: Settings = Settings()  # what is known beyond the vocabulary; `apply` it
    prefixes_space: bool = False  # encoding puts a space before the text and decoding takes it away

    @property
    @abstractmethod
    def n_vocab(self) -> int:
        """Number of ids."""

    @abstractmethod
    def encode_stream(self, chunks: Iterable[str]) -> Iterator[Ids]:
        """Ids of a text that comes in chunks, in bounded memory; where the chunks are cut does not change the ids.

        Raises DataError for text that has no ids, with the character's position in the whole text.
        """

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
        decoder = Decoder(self)
        return "".join([*map(decoder.push, tokens), decoder.finish()])

    @property
    def beginning(self) -> list[int]:
        """What the model's texts begin with: bos_id, or nothing."""
        return [self.bos_id] if self.adds_bos and self.bos_id is not None else []

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

    def apply(self, settings: Settings) -> Self:
        """Take settings over; returns the tokenizer. Tokens that the vocabulary does not have are not taken."""
        self.settings = settings
        self.bos_id, self.eos_id = self._token(settings.bos, self.bos_id), self._token(settings.eos, self.eos_id)
        self.adds_bos = (self.adds_bos if settings.adds_bos is None else settings.adds_bos) and self.bos_id is not None
        return self

    def _token(self, said: str | int | None, otherwise: int | None) -> int | None:
        token = self.specials.get(said) if isinstance(said, str) else said
        return token if token is not None and 0 <= token < self.n_vocab else otherwise

    def to_bytes(self) -> bytes:
        """The leaf `ggmlgraph.tokenizer`."""
        payload = self.payload()
        return (
            msgspec.json.encode(
                _Header(self.kind, len(payload), self.settings if self.settings != Settings() else None)
            )
            + b"\n"
            + payload
        )


class Decoder:
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


class BytesTokenizer(Tokenizer):
    """One id per byte of UTF-8: the default, needs no file, knows every text."""

    kind = "bytes"
    n_vocab = 256

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[Ids]:
        for text in chunks:
            yield np.frombuffer(_encodable(text).encode(), np.uint8).astype(np.int32)

    def piece(self, token: int) -> bytes:
        return bytes([_checked(token, self)])

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
        self.alphabet = _encodable(alphabet)
        codes = _codes(alphabet)
        self._order = np.argsort(codes, kind="stable").astype(np.int32)
        self._sorted = codes[self._order]
        if not alphabet:
            raise UsageError("the tokenizer's alphabet is empty")
        twice = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
        if twice.size:
            raise UsageError(f"the tokenizer's alphabet has {_named(chr(twice[0]))} twice")

    @property
    def n_vocab(self) -> int:
        return len(self.alphabet)

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[Ids]:
        start = 0
        for text in chunks:
            codes = _codes(_encodable(text))
            place = np.searchsorted(self._sorted, codes).clip(max=self.n_vocab - 1)
            unknown = np.flatnonzero(self._sorted[place] != codes)
            if unknown.size:
                at = int(unknown[0])
                raise DataError(
                    f"character {_named(text[at])} at position {start + at} is not in the tokenizer's alphabet",
                    offset=start + at,
                )
            yield self._order[place]
            start += len(text)

    def piece(self, token: int) -> bytes:
        return self.alphabet[_checked(token, self)].encode()

    def payload(self) -> bytes:
        return self.alphabet.encode()

    @classmethod
    def from_payload(cls, payload: bytes) -> CharsTokenizer:
        try:
            return cls(payload.decode())
        except (UnicodeDecodeError, UsageError) as error:
            raise FormatError(f"tokenizer: bad alphabet: {error}") from None


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
        self._pieces = [_piece_bytes(self.model, i) for i in range(self.n_vocab)]
        self._lossless = self.model.lossless

    @property
    def n_vocab(self) -> int:
        return len(self.model.pieces)

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[Ids]:
        rest, before = "", ""  # text not encoded yet, and the character before it
        for chunk in chunks:
            rest += _encodable(chunk)
            segments, start = [], 0
            while (cut := self._cut(rest, start)) is not None:
                segments.append((before, rest[start:cut]))
                before, start = rest[cut - 1], cut
            rest = rest[start:]
            if segments:
                yield self._encode_segments(segments)
        if rest:
            yield self._encode_segments([(before, rest)])

    @cached_property
    def specials(self) -> Mapping[str, int]:
        typed = enumerate(zip(self.model.pieces, self.model.types, strict=True))
        return {piece: i for i, (piece, kind) in typed if kind == spm.CONTROL}

    def piece(self, token: int) -> bytes:
        return self._pieces[_checked(token, self)]

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

    def _encode_segments(self, segments: Sequence[tuple[str, str]]) -> Ids:
        """Ids of (character before, text) segments, one after the other.

        Alone, a segment would be taken for a whole text and get the space that some models put in front of one; so
        it is encoded after the character before it, whose ids are then dropped.
        """
        escaped = [self._escape(before + text) for before, text in segments]
        rows = self._processor.encode([text for text, _ in escaped])
        parts = []
        for (before, _), (text, stand_in), row in zip(segments, escaped, rows, strict=True):
            n_before = len(self._processor.encode(text[: len(before)]))
            parts.append(self._unescape(np.array(row, np.int32), stand_in)[n_before:])
        return np.concatenate(parts)

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


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json of Hugging Face; the package `tokenizers` (extra `hf`) does the encoding.

    Names of special tokens in a text become these tokens, as they do there. A text longer than some 4000 characters is
    encoded in segments, cut only between a letter and a space: every pattern that splits text into words cuts
    there too, and elsewhere no token of the vocabulary spans such a place. (If 65536 characters offer no such cut,
    one is made anyway.) If a token does span one, the text is not cut at all.
    """

    kind = "tokenizer.json"

    def __init__(self, data: bytes) -> None:
        """Raises FormatError, or UnsupportedError if the file needs what is not supported or installed."""
        self.json = tokenizerjson.read(data)
        self._data = data
        self._encoder = tokenizerjson.Encoder(data)
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

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[Ids]:
        before, rest = "", ""  # the character before the rest, and text not encoded yet
        for chunk in chunks:
            rest += _encodable(chunk)
            while self._may_cut and (cut := self._cut(rest)) is not None:
                yield self._ids(before, rest[:cut])
                before, rest = rest[cut - 1], rest[cut:]
        if rest:
            yield self._ids(before, rest)

    @cached_property
    def _may_cut(self) -> bool:
        names = [token.content for token in self.json.file.added_tokens] if self._byte_level else self.json.names
        return not any(_LETTER_THEN_SPACE.search(name) for name in names)

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
        token = _checked(token, self)
        if token not in self._pieces:
            self._pieces[token] = self._added[token] if token in self._added else self._spelt(token)
        return self._pieces[token]

    def _spelt(self, token: int) -> bytes:
        """What an id that is no added token adds in the middle of a text."""
        name = self.json.names[token]
        if self._byte_level:
            return tokenizerjson.byte_level(name)
        if self._falls_back and _BYTE_PIECE.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        start = self._encoder.decode([self._anchor])
        return self._encoder.decode([self._anchor, token]).removeprefix(start).encode()

    @cached_property
    def _falls_back(self) -> bool:
        return any(step["type"] == "ByteFallback" for step in tokenizerjson.steps(self.json.file.decoder))

    @cached_property
    def _anchor(self) -> int:
        """A token that is decoded the same with another behind it."""
        for token, name in enumerate(self.json.names):
            if name and token not in self._added and not _BYTE_PIECE.fullmatch(name):
                text = self._encoder.decode([token])
                if text.isalnum() and self._encoder.decode([token, token]).startswith(text):
                    return token
        raise UnsupportedError("a tokenizer.json without a token of letters or digits")

    def _prefixes_space(self) -> bool:
        """Whether a text gets a space in front that decoding takes away."""
        if self._byte_level:
            steps = tokenizerjson.steps(self.json.file.pre_tokenizer)
            return any(step.get("add_prefix_space") is True for step in steps)
        tokens = (token for token, name in enumerate(self.json.names) if name and token not in self._added)
        token = next((token for token in tokens if self.piece(token).startswith(b" ")), None)
        return token is not None and self._encoder.decode([token]).encode() == self.piece(token)[1:]

    def payload(self) -> bytes:
        return self._data

    @classmethod
    def from_payload(cls, payload: bytes) -> HuggingFaceTokenizer:
        return cls(payload)


KINDS: dict[str, type[Tokenizer]] = {
    t.kind: t for t in (BytesTokenizer, CharsTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer)
}

_MAX_HEADER = 8 * tokenizersettings.MAX_TEMPLATE  # bytes
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
_LETTER_THEN_SPACE = re.compile(f"[^\\W\\d_][ {spm.SPACE}]")
_MIN_SEGMENT, _MAX_SEGMENT, _WINDOW = 4096, 65536, 256  # characters
_STAND_INS = [chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))]  # noncharacters, private use


def from_bytes(data: bytes) -> Tokenizer:
    """The tokenizer of a leaf `ggmlgraph.tokenizer`; zero bytes after the payload are padding.

    Raises FormatError or UnsupportedError.
    """
    end = data.find(b"\n", 0, _MAX_HEADER)
    if end < 0:
        raise FormatError("tokenizer: no header line", offset=0)
    try:
        header = msgspec.json.decode(data[:end], type=_Header)
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
        return _recognise(data).apply(tokenizersettings.beside(path))
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
    settings = tokenizersettings.from_gguf(pairs)
    if pairs.get("tokenizer.ggml.model") == "gpt2":
        return HuggingFaceTokenizer(vocabularies.json_from_gguf(pairs)).apply(settings)
    return SentencePieceTokenizer(vocabularies.from_gguf(pairs)).apply(settings)


def train(
    sources: Sequence[str | Path], out: str | Path, model: Literal["bpe", "unigram"] = "bpe", n_vocab: int = 4096
) -> SentencePieceTokenizer:
    """Train a sentencepiece model on text sources, write it to `out` (complete or not at all) and return it.

    Every text round-trips through the result:
    - byte_fallback: characters outside the vocabulary become bytes, never <unk>;
    - identity normalisation and remove_extra_whitespaces=False: NFKC and the merging of spaces lose text;
    - add_dummy_prefix=False: encode(a) and encode(b) joined decode to a + b, so a prompt can be continued and a corpus
      cut anywhere, and a word after a line feed is spelt like one at the start of a text. llama.cpp's SPM
      follows it through `tokenizer.ggml.add_space_prefix`;
    - the space is required in the vocabulary, which a text without spaces (Japanese) would leave out.
    Beyond 2 million lines an even, repeatable sample is used. The same text gives the same file.

    Raises UsageError if n_vocab does not fit the text, saying what would; DataError for text that cannot be read.
    """
    sentencepiece = _import_sentencepiece()
    if model not in ("bpe", "unigram"):
        raise UsageError(f"tokenizer model {model!r}: choose bpe or unigram")
    if not 1 <= n_vocab <= spm.MAX_PIECES:
        raise UsageError(f"vocabulary size {n_vocab} is not in 1 .. {spm.MAX_PIECES}")
    opened = [open_source(source) for source in sources]
    serialized = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for source in opened for line in source.lines() for part in _sentences(line)),
            model_writer=serialized,
            model_type=model,
            vocab_size=n_vocab,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            required_chars=spm.SPACE,
            split_digits=True,
            max_sentence_length=_MAX_SENTENCE_NBYTES,
            input_sentence_size=_MAX_SENTENCES,
            num_threads=16,  # part of the result: unigram sums per thread
            minloglevel=_SILENT,
        )
    except RuntimeError as error:
        raise _training_error(str(error), n_vocab) from None
    tokenizer = SentencePieceTokenizer(serialized.getvalue())
    _write(Path(out), serialized.getvalue())
    return tokenizer


_SILENT = 3  # sentencepiece's log level that leaves only messages before an abort
_MAX_SENTENCES = 2_000_000
_MAX_SENTENCE_NBYTES = 1 << 18  # sentencepiece drops longer lines, so they are cut
_HIGHEST = re.compile(r"too high .* value <= (\d+)")
_LOWEST = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def _sentences(line: str) -> Iterator[str]:
    """Parts of a line short enough for the trainer; U+2585 and NUL, which it reserves, are left out."""
    line = line.replace("\u2585", "").replace("\0", "")
    n = _MAX_SENTENCE_NBYTES // 4
    return (line[i : i + n] for i in range(0, len(line), n))


def _training_error(message: str, n_vocab: int) -> UsageError | DataError:
    if found := _HIGHEST.search(message):
        return UsageError(f"vocabulary size {n_vocab} is too high for this text; the highest possible is {found[1]}")
    if found := _LOWEST.search(message):
        return UsageError(f"vocabulary size {n_vocab} is too low for this text's characters; it needs {found[1]}")
    if "sentences_.empty()" in message:
        return DataError("the text has nothing to train a tokenizer on")
    return DataError(f"sentencepiece cannot train on this text: {message}")


def _write(path: Path, data: bytes) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def _import_sentencepiece() -> Any:
    """The sentencepiece module, silenced; imported only when a text needs it, since it takes a while."""
    import sentencepiece

    sentencepiece.set_min_log_level(_SILENT)
    return sentencepiece


def _load_processor(serialized: bytes) -> Any:
    processor = _import_sentencepiece().SentencePieceProcessor()
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


def _checked(token: int, tokenizer: Tokenizer) -> int:
    if not 0 <= token < tokenizer.n_vocab:
        raise DataError(f"token id {token} is not in the tokenizer's 0 .. {tokenizer.n_vocab - 1}")
    return token


def _encodable(text: str) -> str:
    """`text`, unless it has a surrogate without its partner, which no encoding can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text has a lone surrogate {_named(text[error.start])} at {error.start}") from None
    return text


def _named(character: str) -> str:
    return f"{ascii(character) if not character.isprintable() else repr(character)} (U+{ord(character):04X})"


def _codes(text: str) -> NDArray[np.uint32]:
    """The code points of a text: uint32 (n,)."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint32)


def _pairs(text: str) -> NDArray[np.uint64]:
    """Each two neighbouring code points of a text as one number: uint64 (n - 1,)."""
    codes = _codes(text).astype(np.uint64)
    return codes[:-1] << np.uint64(32) | codes[1:]


def _is_space(text: str) -> NDArray[np.bool_]:
    return np.array([c.isspace() for c in text], np.bool_)
