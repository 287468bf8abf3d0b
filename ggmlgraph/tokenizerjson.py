"""tokenizer.json of Hugging Face, byte-level BPE: a bounded reader for files that nobody vouches for.

The file describes a pipeline of any kind; the `tokenizers` package runs it. Here it is checked first that it is of the
kind we can decode piece by piece (GPT-2's, GPT-NeoX's, LLaMA 3's), and that it brings no regular expression of its own,
since the package's engine backtracks and a text could then take for ever. Used by `tokenizer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ggmlgraph.errors import FormatError, UnsupportedError

MAX_NBYTES = 64 << 20
MAX_TOKENS = 1 << 20
MAX_DEPTH = 32
NORMALIZERS = {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
PRE_TOKENIZERS = {"Sequence", "ByteLevel", "Split", "Digits"}
PATTERNS = {  # of LLaMA 3 and of Qwen 2; they differ in how many digits go together
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
}
BOS = ("<s>", "<|begin_of_text|>", "<|endoftext|>")
EOS = ("</s>", "<|end_of_text|>", "<|endoftext|>")


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False
    rstrip: bool = False


class _Model(msgspec.Struct):
    vocab: dict[str, int]
    type: str = "BPE"


class _File(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


@dataclass(frozen=True)
class TokenizerJson:
    """What decoding needs; encoding is the package's."""

    pieces: list[bytes]  # of each id; none for special tokens and for ids that no token has
    specials: dict[str, int]  # control tokens by name
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    prefixes_space: bool


def read(data: bytes) -> TokenizerJson:
    """Parse and check the file. Raises FormatError, or UnsupportedError for another kind of pipeline."""
    if len(data) > MAX_NBYTES:
        raise FormatError(f"{len(data)} bytes; a tokenizer.json has at most {MAX_NBYTES}", offset=MAX_NBYTES)
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a tokenizer.json: {error}") from None
    if file.model.type != "BPE" or (file.decoder or {}).get("type") != "ByteLevel":
        raise UnsupportedError(
            "a tokenizer.json that is not byte-level BPE; use the sentencepiece model if there is one"
        )
    if any(token.rstrip for token in file.added_tokens):
        raise UnsupportedError("a tokenizer.json with added tokens that take the spaces behind them")
    steps = list(_steps(file.pre_tokenizer, PRE_TOKENIZERS))
    list(_steps(file.normalizer, NORMALIZERS))
    special = {token.content: token.id for token in file.added_tokens if token.special}
    bos_id = next((special[name] for name in BOS if name in special), None)
    return TokenizerJson(
        pieces=_pieces(file),
        specials=special,
        bos_id=bos_id,
        eos_id=next((special[name] for name in EOS if name in special), None),
        adds_bos=bos_id is not None and special.get(_first_added(file.post_processor)) == bos_id,
        prefixes_space=any(step.get("add_prefix_space") is True for step in steps),
    )


def _first_added(processor: dict[str, Any] | None) -> str:
    """The token that the post-processor puts before a text; "" if it puts none there."""
    steps = [processor or {}]
    if isinstance(inner := steps[0].get("processors"), list):
        steps = inner
    for step in steps:
        template = step.get("single") if isinstance(step, dict) and step.get("type") == "TemplateProcessing" else None
        if isinstance(template, list) and template and isinstance(template[0], dict):
            token = template[0].get("SpecialToken")
            return str(token.get("id")) if isinstance(token, dict) else ""
    return ""


def _steps(root: dict[str, Any] | None, known: set[str]) -> Iterator[dict[str, Any]]:
    """The steps of a pipeline, which must be of known types, with no regular expression but those of PATTERNS."""
    stack = [] if root is None else [(root, 0)]
    while stack:
        step, depth = stack.pop()
        if not isinstance(step, dict) or step.get("type") not in known or depth > MAX_DEPTH:
            kind = step.get("type") if isinstance(step, dict) else step
            raise UnsupportedError(f"a tokenizer.json with the step {str(kind)[:40]!r}")
        pattern = step.get("pattern")
        if pattern is not None and (not isinstance(pattern, dict) or pattern.get("Regex") not in PATTERNS):
            raise UnsupportedError("a tokenizer.json with a regular expression that is not a known one")
        yield step
        inner = step.get("normalizers", step.get("pretokenizers", []))
        if not isinstance(inner, list):
            raise FormatError("a tokenizer.json whose sequence is no list")
        stack += [(item, depth + 1) for item in reversed(inner)]


def _pieces(file: _File) -> list[bytes]:
    ids = {**file.model.vocab, **{token.content: token.id for token in file.added_tokens}}
    n = max(ids.values(), default=-1) + 1
    if not ids or min(ids.values()) < 0 or n > MAX_TOKENS or len(set(ids.values())) != len(ids):
        raise FormatError(f"a tokenizer.json of {len(ids)} tokens with ids that repeat or go up to {n - 1}")
    pieces = [b""] * n
    for text, token in file.model.vocab.items():
        pieces[token] = _bytes(text)
    for added in file.added_tokens:
        pieces[added.id] = b"" if added.special else added.content.encode()
    return pieces


def _bytes(text: str) -> bytes:
    """The bytes that a token's characters stand for; a text of other characters stands for itself."""
    known = [_BYTE_OF.get(c) for c in text]
    return text.encode() if None in known else bytes(known)  # type: ignore[arg-type]


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes are themselves, the others the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_of()
