"""What is known of a tokenizer beyond its vocabulary, as other programs' files say it: the chat template, the tokens
that texts begin and end with, and tokens that were added.

Hugging Face keeps it in several files beside the vocabulary, of which later versions of transformers write fewer; GGUF
in keys of its own. With us `Settings` are part of the header of the leaf `ggmlgraph.tokenizer`, and added tokens part
of the tokenizer itself (`added.py`). Used by the package, `interchange.tokenizer` and the sources of checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph.errors import FormatError
from ggmlgraph.files.regular import read_regular
from ggmlgraph.tokenizers import splitting
from ggmlgraph.tokenizers.added import NewToken
from ggmlgraph.tokenizers.jsonfile import read_json

CONFIG, TEMPLATE, TEMPLATES = "tokenizer_config.json", "chat_template.jinja", "chat_template.json"
SPECIAL_MAP, ADDED, GENERATION, MODEL = (
    "special_tokens_map.json", "added_tokens.json", "generation_config.json", "config.json",
)  # fmt: skip
ADD_BOS = ("LlamaTokenizer", "GemmaTokenizer", "CodeLlamaTokenizer")  # unless told otherwise
BOS_MODELS = ("llama", "mistral", "mixtral", "gemma")  # models whose sentencepiece tokenizers begin texts so
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # in transformers' order
GGUF_ENDS = ("eot", "eom")  # what GGUF calls tokens at which a text ends besides eos
MAX_TEMPLATE = 1 << 20  # characters


class Settings(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """None: not said, so the vocabulary's own."""

    chat_template: str | None = None  # Jinja2, by the model's authors, run in a sandbox only
    bos: str | int | None = None  # begin-of-text token, its name or id; "": there is none
    eos: str | int | None = None
    adds_bos: bool | None = None  # whether the model was trained on texts that begin with bos
    unk: str | int | None = None  # stands for what has no ids
    pad: str | int | None = None  # fills up
    ends: tuple[int, ...] = ()  # ids at which a text ends besides


NOTHING_SAID = Settings()


@dataclass
class Beside:
    """What the files beside a vocabulary's say, one after the other."""

    settings: Settings = NOTHING_SAID
    new: list[NewToken] = field(default_factory=list)  # tokens to be added, in transformers' order
    files: list[str] = field(default_factory=list)  # names of those that say something
    names_tokens: bool = False  # whether some file names special tokens at all
    kind: str | None = None  # the class of transformers
    model: str | None = None  # what config.json calls the model
    legacy: bool = False  # a space is put before each stretch of text between special tokens
    prefixes_space: bool | None = None


def beside(folder: Path) -> Beside:
    """What the files in a folder say of the tokenizer there. Raises FormatError, which names the file."""
    found = Beside()
    config = _object(folder, CONFIG, found)
    special = _object(folder, SPECIAL_MAP, found) if "added_tokens_decoder" not in config else {}
    names = {f"{name}_token": _named(special, config, f"{name}_token") for name in NAMED}
    more = [*_more(config), *_more(special)]
    if config.get("split_special_tokens") is True:
        raise FormatError(f"{folder / CONFIG}: split_special_tokens is true: names of tokens in a text would be text")
    found.new = [*_listed(folder, config, found, {*filter(None, names.values()), *more}), *_from_names(names, more)]
    adds_bos, prefix = config.get("add_bos_token"), config.get("add_prefix_space")
    found.settings = Settings(
        chat_template=_template_of(folder, config, found),
        bos=names["bos_token"],
        eos=names["eos_token"],
        unk=names["unk_token"],
        pad=names["pad_token"],
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
    )
    kind = config.get("tokenizer_class")
    found.names_tokens = any(names.values())
    found.kind = kind if isinstance(kind, str) else None
    found.legacy, found.prefixes_space = config.get("legacy") is True, prefix if isinstance(prefix, bool) else None
    model = read_json(folder / MODEL) if (folder / MODEL).is_file() else {}
    found.model = model.get("model_type") if isinstance(model.get("model_type"), str) else None
    return found


def ids_beside(folder: Path) -> tuple[dict[str, int], tuple[int, ...]]:
    """The ids of bos, eos and pad that generation_config.json or config.json say, of several the first; and all ids of
    eos."""
    found: dict[str, int] = {}
    ends: tuple[int, ...] = ()
    for file in (GENERATION, MODEL):
        said = read_json(folder / file) if (folder / file).is_file() else {}
        for name in ("bos", "eos", "pad"):
            value = said.get(f"{name}_token_id")
            tokens = tuple(token for token in (value if isinstance(value, list) else [value]) if type(token) is int)
            if tokens:
                found.setdefault(name, tokens[0])
            if name == "eos":
                ends = ends or tokens
    return found, ends


def _object(folder: Path, name: str, found: Beside) -> dict[str, Any]:
    if not (folder / name).is_file():
        return {}
    found.files.append(name)
    return read_json(folder / name)


def _named(special: Mapping[str, Any], config: Mapping[str, Any], key: str) -> str | None:
    """The name of a special token. special_tokens_map.json counts, where it is read at all."""
    return _name(special.get(key)) or _name(config.get(key))


def _name(value: Any) -> str | None:
    """A token's name, plain or as an object that has it as content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _more(said: Mapping[str, Any]) -> Iterator[str]:
    """Names of further special tokens."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        value = said.get(key)
        values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        yield from filter(None, map(_name, values))


def _listed(folder: Path, config: Mapping[str, Any], found: Beside, special: set[str]) -> list[NewToken]:
    """The tokens that a file lists with their ids, in the order of these."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        path = folder / CONFIG
        if not isinstance(decoder, dict):
            raise FormatError(f"{path}: added_tokens_decoder is no object")
        tokens = [replace(NewToken.of(key, value, path), has_flags=True) for key, value in decoder.items()]
        return sorted(tokens, key=lambda token: token.id or 0)
    listed = _object(folder, ADDED, found)
    path = folder / ADDED
    return [
        NewToken.of(str(token), {"content": name, "special": name in special, "normalized": name not in special}, path)
        for name, token in sorted(listed.items(), key=lambda item: item[1] if type(item[1]) is int else -1)
    ]


def _from_names(names: Mapping[str, str | None], more: list[str]) -> Iterator[NewToken]:
    for key, name in names.items():
        if name:
            yield NewToken(name, origin=key, needed=key in ("bos_token", "eos_token", "unk_token"))
    for name in more:
        yield NewToken(name, origin="a special token")


# ---------------------------------------------------------------- chat templates


def _template_of(folder: Path, config: Mapping[str, Any], found: Beside) -> str | None:
    if (folder / TEMPLATE).is_file():
        found.files.append(TEMPLATE)
        return _template(read_regular(folder / TEMPLATE, 4 * MAX_TEMPLATE).decode(errors="replace"))
    if config.get("chat_template") is not None:
        return _template(config["chat_template"])
    return _template(_object(folder, TEMPLATES, found).get("chat_template"))


def _template(value: Any) -> str | None:
    """The template itself, or the default one of a list of named ones."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    elif isinstance(value, dict):
        value = value.get("default")
    if not isinstance(value, str):
        return None
    if len(value) > MAX_TEMPLATE:
        raise FormatError(f"a chat template of {len(value)} characters; at most {MAX_TEMPLATE} are read")
    return value


# ---------------------------------------------------------------- GGUF


def from_gguf(pairs: Mapping[str, Any]) -> Settings:
    """What the keys tokenizer.* of a GGUF file say."""
    adds_bos = pairs.get("tokenizer.ggml.add_bos_token")
    if adds_bos is None:  # llama.cpp's own defaults
        label = splitting.canonical(str(pairs.get("tokenizer.ggml.pre")))
        adds_bos = pairs.get("tokenizer.ggml.model") == "llama" or label in ("llama-bpe", "tekken")
    keys = ("bos", "eos", "unknown", "padding")
    ids = (pairs.get(f"tokenizer.ggml.{name}_token_id") for name in keys)
    bos, eos, unk, pad = (token if type(token) is int else None for token in ids)
    n = len(pairs.get("tokenizer.ggml.tokens", ()))
    pad = pad if pad is None or pad < n else None  # it is never needed
    more = (pairs.get(f"tokenizer.ggml.{name}_token_id") for name in GGUF_ENDS)
    ends = tuple(dict.fromkeys(token for token in more if type(token) is int and token != eos))
    return Settings(_template(pairs.get("tokenizer.chat_template")), bos, eos, bool(adds_bos), unk, pad, ends)
