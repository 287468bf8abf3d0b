"""What is known of a tokenizer beyond its vocabulary: the chat template, begin- and end-of-text, as other files say it.

Hugging Face keeps it in tokenizer_config.json (and chat_template.jinja) beside the tokenizer, GGUF in keys of its own;
with us it is part of the header of the leaf `ggmlgraph.tokenizer`. Used by the package and by the source of GGUF files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph.errors import FormatError

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
ADD_BOS = ("LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast")  # unless told otherwise
MAX_TEMPLATE = 1 << 20  # characters
MAX_CONFIG_NBYTES = 64 << 20


class Settings(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """None: not said, so the vocabulary's own."""

    chat_template: str | None = None  # Jinja2, by the model's authors, run in a sandbox only
    bos: str | int | None = None  # begin-of-text token, its name or id
    eos: str | int | None = None
    adds_bos: bool | None = None  # whether the model was trained on texts that begin with bos


def beside(path: Path) -> Settings:
    """What the files beside a tokenizer's file say. Raises FormatError."""
    config: Any = {}
    if (file := path.with_name(CONFIG)).is_file():
        try:
            config = msgspec.json.decode(_bytes(file, MAX_CONFIG_NBYTES))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{file}: {error}") from None
        if not isinstance(config, dict):
            raise FormatError(f"{file}: no JSON object")
    template = config.get("chat_template")
    if (file := path.with_name(TEMPLATE)).is_file():
        template = _bytes(file, 4 * MAX_TEMPLATE).decode(errors="replace")
    adds_bos = config.get("add_bos_token", True if config.get("tokenizer_class") in ADD_BOS else None)
    return Settings(
        chat_template=_template(template),
        bos=_name(config.get("bos_token")),
        eos=_name(config.get("eos_token")),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
    )


def _bytes(file: Path, limit: int) -> bytes:
    with file.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"{file}: more than {limit} bytes")
    return data


def _template(value: Any) -> str | None:
    """The template itself, or the default one of a list of named ones."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    if not isinstance(value, str):
        return None
    if len(value) > MAX_TEMPLATE:
        raise FormatError(f"a chat template of {len(value)} characters; at most {MAX_TEMPLATE} are read")
    return value


def _name(value: Any) -> str | None:
    """A token's name, plain or as an object that has it as content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def from_gguf(pairs: Mapping[str, Any]) -> Settings:
    """What the keys tokenizer.* of a GGUF file say."""
    adds_bos = pairs.get("tokenizer.ggml.add_bos_token")
    if adds_bos is None:
        adds_bos = pairs.get("tokenizer.ggml.model") == "llama"  # llama.cpp's own default
    ids = (pairs.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    bos, eos = (token if type(token) is int else None for token in ids)
    return Settings(_template(pairs.get("tokenizer.chat_template")), bos, eos, bool(adds_bos))
