"""tokenizer.json of Hugging Face: a bounded reader for files that nobody vouches for, and a door to the package.

The file describes a pipeline that the `tokenizers` package (extra `hf`) runs. Here it is checked first: sizes,
ids, tables the package would follow blindly, and that it brings no regular expression that is not a known one,
since the package's engine backtracks and a text could then take for ever. Where the package panics all the same,
`Encoder` makes an error of it. Used by `huggingface`; `togguf` and `vocabularies` share the tables.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.tokenizers import splitting, spm

MAX_NBYTES = 64 << 20
MAX_TOKENS = 1 << 20
MAX_DEPTH = 32
BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>")
EOS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
PROBE = " a\n\u00e9 \u65e5\U0001f600  1"  # a text that makes a pipeline show what it cannot do


class Added(msgspec.Struct):
    """A token that is found in a text before all else."""

    id: int
    content: str
    special: bool = False
    lstrip: bool = False  # takes the spaces before it along, `rstrip` those behind it
    rstrip: bool = False
    single_word: bool = False  # is not found inside a word
    normalized: bool = False  # is looked for in the normalised text


class Model(msgspec.Struct):
    """What makes ids of words."""

    vocab: dict[str, int] | list[tuple[str, float]] = {}  # the list: of a unigram model, with scores
    merges: list[str | tuple[str, str]] = []
    type: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool | None = None
    unk_id: int | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    dropout: float | None = None


class File(msgspec.Struct):
    """What of the file we look at."""

    model: Model
    added_tokens: list[Added] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """Type of the model; files of old have none and are BPE."""
        return self.model.type or ("BPE" if self.model.merges else "Unigram")

    def tokens(self) -> dict[str, int]:
        """Every token and its id."""
        vocab = self.model.vocab
        listed = vocab if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}
        return {**listed, **{token.content: token.id for token in self.added_tokens}}

    @property
    def is_byte_level(self) -> bool:
        """Whether tokens are spelt in GPT-2's alphabet of bytes."""
        return any(step.get("type") == "ByteLevel" for step in steps(self.decoder))


@dataclass(frozen=True)
class TokenizerJson:
    """A file that passed."""

    file: File
    names: list[str]  # of each id; "" for ids that no token has
    specials: dict[str, int]  # control tokens by name
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    has_template: bool  # of what is put around a text
    first_added: str  # the token that it puts before one; "" for none


def read(data: bytes) -> TokenizerJson:
    """Parse and check the file. Raises FormatError, or UnsupportedError for a regular expression that is not known."""
    if len(data) > MAX_NBYTES:
        raise FormatError(f"{len(data)} bytes; a tokenizer.json has at most {MAX_NBYTES}", offset=MAX_NBYTES)
    try:
        file = msgspec.json.decode(data, type=File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a tokenizer.json: {error}") from None
    for part in (file.normalizer, file.pre_tokenizer, file.decoder, file.post_processor):
        for item in _objects(part):
            _check(item)
    _check_model(file.model)
    special = {token.content: token.id for token in file.added_tokens if token.special}
    templates = [step for step in steps(file.post_processor) if step["type"] == "TemplateProcessing"]
    first = _first_added(templates)
    bos_id = next((special[name] for name in (first, *BOS) if name in special), None)
    return TokenizerJson(
        file=file,
        names=_names(file),
        specials=special,
        bos_id=bos_id,
        eos_id=next((special[name] for name in EOS if name in special), None),
        adds_bos=first in special,
        has_template=bool(templates),
        first_added=first,
    )


def steps(root: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a part of the pipeline in order, those inside sequences too."""
    return (item for item in _objects(root) if isinstance(item.get("type"), str))


def _objects(root: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in a part of the file, in order. Raises FormatError if it is nested too deep."""
    stack = [(root, 0)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise FormatError(f"a tokenizer.json nested more than {MAX_DEPTH} deep")
        if isinstance(item, dict):
            yield item
        inner = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        stack += [(value, depth + 1) for value in reversed(inner)]


def _check(item: dict[str, Any]) -> None:
    pattern = item.get("Regex")
    if pattern is not None and pattern not in splitting.PATTERNS:
        raise UnsupportedError(
            f"a tokenizer.json with the regular expression {str(pattern)[:60]!r}, which is not a known one: how "
            "long it takes is not known either"
        )
    if item.get("type") == "Precompiled":
        charsmap(item)


def _check_model(model: Model) -> None:
    if model.dropout:
        raise UnsupportedError("a tokenizer.json that merges by chance (dropout): a text must always have the same ids")
    prefix = model.continuing_subword_prefix or ""
    for merge in model.merges if prefix else ():
        second = merge.partition(" ")[2] if isinstance(merge, str) else merge[1]
        if not second.startswith(prefix):  # the package cuts that many bytes off, wherever they end
            raise FormatError(f"a tokenizer.json with a merge whose second part does not begin with {prefix!r}")


def charsmap(step: dict[str, Any]) -> bytes:
    """The table of a Precompiled normalizer, checked. Raises FormatError."""
    try:
        table = base64.b64decode(str(step.get("precompiled_charsmap")), validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("a tokenizer.json whose normalization table is not base64") from None
    spm.check_charsmap(table, 0)
    return table


def _first_added(templates: list[dict[str, Any]]) -> str:
    """The token that is put before a text; "" if none is. Raises UnsupportedError if several are."""
    names: list[str] = []
    for template in templates:
        parts = template.get("single")
        for part in parts if isinstance(parts, list) else ():
            token = part.get("SpecialToken") if isinstance(part, dict) else None
            if not isinstance(token, dict):
                break
            names.append(str(token.get("id")))
    if len(names) > 1:
        raise UnsupportedError(f"a tokenizer.json that puts {len(names)} tokens before a text: {', '.join(names)}")
    return names[0] if names else ""


def _names(file: File) -> list[str]:
    ids = file.tokens()
    n = max(ids.values(), default=-1) + 1
    if not ids or min(ids.values()) < 0 or n > MAX_TOKENS or len(set(ids.values())) != len(ids):
        raise FormatError(f"a tokenizer.json of {len(ids)} tokens with ids that repeat or go up to {n - 1}")
    names = [""] * n
    for name, token in ids.items():
        names[token] = name
    return names


# ---------------------------------------------------------------- GPT-2's alphabet of bytes


def byte_level(text: str) -> bytes:
    """The bytes that a token's characters stand for; a text of other characters stands for itself."""
    known = [_BYTE_OF.get(c) for c in text]
    return text.encode() if None in known else bytes(known)  # type: ignore[arg-type]


def spelt(raw: bytes) -> str:
    """Bytes in the alphabet."""
    return "".join(_CHARACTER_OF[byte] for byte in raw)


def _byte_of() -> dict[str, int]:
    """Printable Latin-1 bytes are themselves, the others the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_of()
_CHARACTER_OF = {byte: c for c, byte in _BYTE_OF.items()}


# ---------------------------------------------------------------- the package


class Encoder:
    """The package's tokenizer for one file. What it raises, panics included, becomes a FormatError."""

    def __init__(self, data: bytes) -> None:
        """Raises FormatError, UnsupportedError if the package is not installed."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UnsupportedError("tokenizer.json needs the package tokenizers: pip install 'ggmlgraph[hf]'") from None

        def start() -> Any:
            tokenizer = Tokenizer.from_buffer(data)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False).ids)
            return tokenizer

        with _silenced():
            self._tokenizer = _guarded(start)

    def id_of(self, name: str) -> int | None:
        """The id of a token."""
        return _guarded(lambda: self._tokenizer.token_to_id(name))  # type: ignore[no-any-return]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without those the pipeline puts around it."""
        return _guarded(lambda: self._tokenizer.encode(text, add_special_tokens=False).ids)  # type: ignore[no-any-return]

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return _guarded(lambda: self._tokenizer.decode(ids, skip_special_tokens=False))  # type: ignore[no-any-return]


def _guarded(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except BaseException as error:  # a panic is no Exception, and the package has no type of its own for the rest
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise FormatError(f"tokenizers refuses the file: {str(error)[:200]}") from None
        raise


@contextmanager
def _silenced() -> Iterator[None]:
    """Without what Rust prints of a panic, which goes to the descriptor itself."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
