"""What every kind of checkpoint is opened as, and what the modules that open them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph.errors import FormatError, GGError
from ggmlgraph.interchange.formats.stored import Stored, Weight, same_values
from ggmlgraph.interchange.naming import Format
from ggmlgraph.interchange.tokenizer import Found
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.settings import NOTHING_SAID, Settings

MAX_YAML_NBYTES = 1 << 20
YAML_INDENT = 2
BEGINS_WITH_BOS = Settings(adds_bos=True)  # of formats whose models are all trained on texts that do


@dataclass(frozen=True)
class Moments:
    """Adam's state in a checkpoint of a training run, by the checkpoint's names of the parameters."""

    n_steps: int
    first: Mapping[str, Stored]
    second: Mapping[str, Stored]
    settings: Mapping[str, float] = field(default_factory=dict)  # the run's lr, beta1, beta2, weight_decay, eps


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A checkpoint, opened."""

    kind: str  # for people: "GGUF file"
    path: Path
    architecture: str  # a model of ggmlgraph.models
    format: Format
    config: dict[str, Any]  # fields of the model's Config
    tensors: Mapping[str, Weight]
    n_ctx: int | None  # how many tokens the model was trained to look back on
    find_tokenizer: Callable[[], Found | None] = lambda: None  # reads it, None if there is none
    no_tokenizer: str = "it has none"  # then
    said: Settings = NOTHING_SAID  # of special tokens, apart from any tokenizer
    as_in_file: Callable[[str], str] = str  # a tensor's name there
    notes: tuple[str, ...] = ()  # what a person should know
    moments: Callable[[], Moments] | None = None  # reads them: most who convert do not want them

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, read. Raises as `find_tokenizer`."""
        found = self.find_tokenizer()
        return None if found is None else completed(found.tokenizer, self.said)


Given = Mapping[str, Any]  # fields of the Config that the user gave


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a YAML mapping, as programs write it: KEY: VALUE lines, and indented ones of a mapping in it.

    What is nested deeper, and lists, are left out. Raises FormatError.
    """
    if path.stat().st_size > MAX_YAML_NBYTES:
        raise FormatError(f"{path}: {path.stat().st_size} bytes of YAML, at most {MAX_YAML_NBYTES} are read")
    values: dict[str, Any] = {}
    inner: dict[str, Any] | None = None  # of the last key, if it has no value on its line
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        key, colon, text = line.strip().partition(":")
        indent = len(line) - len(line.lstrip())
        if not line.strip() or line.lstrip()[0] in "-#" or indent > YAML_INDENT:
            continue
        into = inner if indent else values
        if not colon or not key.isidentifier() or into is None or key in into:
            raise FormatError(f"{path}:{number}: not a new KEY: VALUE")
        into[key] = scalar(text.strip()) if text.strip() else {}
        if not indent:
            inner = values[key] if not text.strip() else None
    return values


def scalar(text: str) -> Any:
    """A value that JSON and YAML write alike, or else the text."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        try:
            return float(text)
        except ValueError:
            return text
    return value if isinstance(value, bool | int | float | str | None) else text


def completed(tokenizer: Tokenizer, said: Settings) -> Tokenizer:
    """A tokenizer, where it says nothing itself with what a checkpoint says of special tokens."""
    own, known = tokenizer.settings, set(tokenizer.specials.values())
    adds_bos = said.adds_bos if own.adds_bos is None and isinstance(tokenizer, SentencePieceTokenizer) else own.adds_bos
    ids = {"bos": (tokenizer.bos_id, own.bos, said.bos), "eos": (tokenizer.eos_id, own.eos, said.eos)}
    names = {name: other if ours is None and it is None and other in known else it
             for name, (ours, it, other) in ids.items()}  # fmt: skip
    template = own.chat_template or said.chat_template
    ends = own.ends or tuple(token for token in said.ends if token in known and token != tokenizer.eos_id)
    return tokenizer.apply(msgspec.structs.replace(own, chat_template=template, adds_bos=adds_bos, ends=ends, **names))


def with_its_head(
    known: Format, fields: dict[str, Any], tensors: Mapping[str, Weight]
) -> tuple[dict[str, Any], dict[str, Weight], list[str]]:
    """Fields and tensors of a model that says its head is its embedding, as they are in its file; what to know.

    A head that is another matrix stays one, as in transformers; one that is there instead of the embedding is both.
    """
    output, embedding = known.theirs("output.weight"), known.theirs("token_embd.weight")
    head, table = tensors.get(output), tensors.get(embedding)
    if fields.get("tied") is not True or head is None or not output:
        return fields, dict(tensors), []
    if table is None:
        return fields, {embedding if name == output else name: stored for name, stored in tensors.items()}, []
    if same_values(head, table):
        return fields, {name: stored for name, stored in tensors.items() if name != output}, []
    note = f"the configuration ties the head to the embedding, but {output} is another matrix: both are kept"
    return fields | {"tied": False}, dict(tensors), [note]


def first_file(*candidates: Path) -> Path | None:
    """The first of some files that is there."""
    return next((path for path in candidates if path.is_file()), None)


def named(path: Path, work: Callable[[], Any]) -> Any:
    """Do some work; errors begin with the file's name."""
    try:
        return work()
    except GGError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}", offset=error.offset) from None


def count(value: Any) -> int | None:
    """A value from a configuration as a positive number; None if it is none."""
    return value if type(value) is int and value > 0 else None
