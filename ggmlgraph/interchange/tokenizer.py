"""The tokenizer in somebody's file or folder: every kind becomes one of ours, whole, or it is an error.

A folder of Hugging Face keeps it in several files, which are taken together as transformers does (`tokenizers.settings`
reads those beside the vocabulary, `tokenizers.added` adds tokens to it). Used by the sources of checkpoints and by the
commands that take `--tokenizer`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.files.regular import read_regular
from ggmlgraph.files.strangers import stranger
from ggmlgraph.interchange.formats import gguf
from ggmlgraph.tokenizers import jsonfromspm, pipeline, settings, spm, vocabularies
from ggmlgraph.tokenizers.added import NewToken, with_added
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.jsonfile import parse_json
from ggmlgraph.tokenizers.pipeline import TokenizerJson
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.settings import Beside, Settings

JSON, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
VOCABULARIES = (JSON, "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", VOCAB, "tiktoken.model")
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")  # which make steps of their own, whatever a file says
NOT_READ = ("tekken.json", "vocab.txt", "vocab.bpe", "sentencepiece.model")  # vocabularies of others


@dataclass(frozen=True)
class Found:
    """A tokenizer, where it comes from, and what a person should know of it."""

    tokenizer: Tokenizer
    files: tuple[str, ...] = ()  # names of the files that say something
    n_added: int = 0  # tokens that these add to the vocabulary's own
    notes: tuple[str, ...] = ()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of `find_tokenizer`. Raises as it does, and UsageError if a folder has none."""
    found = find_tokenizer(Path(path))
    if found is None:
        raise GGError(f"{path}: no tokenizer: it has none of {', '.join(VOCABULARIES)}")
    return found.tokenizer


def find_tokenizer(path: Path, n_vocab: int | None = None) -> Found | None:
    """The tokenizer in a folder, None if it has none, or in a file, known by its content: sentencepiece's .model,
    tokenizer.json, vocab.json with merges.txt, tiktoken's ranks, llama2.c's tokenizer.bin, or the vocabulary of a GGUF
    file. What the files beside it say counts too.

    n_vocab: how many ids the model has.
    Raises FormatError or UnsupportedError, which name the file, or GGError if one cannot be read.
    """
    if os.path.isdir(path):  # noqa: PTH112 (which takes any path)
        file = next((path / name for name in VOCABULARIES if (path / name).is_file()), None)
        if file is None:
            unread = next((path / name for name in NOT_READ if (path / name).is_file()), None)
            if unread is not None:
                raise UnsupportedError(f"{unread}: a vocabulary of a kind that is not read")
            return None
        return find_tokenizer(file, n_vocab)
    data = read_regular(path, spm.MAX_NBYTES)
    if data.startswith(gguf.MAGIC):
        return in_gguf(gguf.read(path).pairs, path)
    try:
        return _resolved(path, data, n_vocab)
    except GGError as error:
        raise _naming(path, error) from None


def _naming(path: Path, error: GGError) -> GGError:
    """The error, its message with the file's name in front unless it begins with that of one beside it."""
    if str(error).startswith(str(path.parent / "")) and path.parent != Path():
        return error
    return type(error)(f"{path}: {error}", offset=error.offset)


def _resolved(path: Path, data: bytes, n_vocab: int | None) -> Found:
    if reason := stranger(data):
        raise FormatError(reason)
    beside = settings.beside(path.parent)
    is_spm = not (is_json := data.lstrip()[:1] == b"{") and not vocabularies.is_tiktoken(data)
    if is_spm:
        data = vocabularies.from_llama2c(data) if vocabularies.is_llama2c(data) else data
        if not beside.files and beside.model is None:
            return Found(SentencePieceTokenizer(data), (path.name,))
    files = [path.name]
    if is_spm:
        data = _spelt(data, beside)
    elif not is_json:
        data = vocabularies.json_from_tiktoken(data)
    elif path.name == VOCAB:
        data = _joined(path, data, beside)
        files.append(MERGES)
    file = pipeline.read(data)
    if path.name == JSON and beside.kind in LLAMA_CLASSES and file.file.kind == "BPE" and not file.file.is_byte_level:
        data = jsonfromspm.as_llama(data, _scheme(beside))
    by_default = _by_default(file, beside)
    new = [NewToken(name, origin="a special token", needed=False) for name in by_default.values()]
    tokenizer = HuggingFaceTokenizer(with_added(data, [*beside.new, *new], n_vocab))
    tokenizer.apply(_settings(path.parent, tokenizer, beside, by_default, is_spm=is_spm))
    return Found(tokenizer, (*files, *beside.files), len(tokenizer.json.file.added_tokens))


def _by_default(file: TokenizerJson, beside: Beside) -> dict[str, str]:
    """The special tokens that transformers' class has where the files name none."""
    known = vocabularies.SPECIAL_OF_CLASS.get(vocabularies.class_of(beside.kind, beside.model), {})
    is_other = file.file.is_byte_level and "<unk>" in known.values()  # whatever is said, transformers sees that too
    if is_other or (beside.kind or "").removesuffix("Fast") in vocabularies.NO_CLASSES:
        return {}
    return {name: token for name, token in known.items() if getattr(beside.settings, name) is None}


def _scheme(beside: Beside) -> Literal["first", "always", "never"]:
    """Which stretches of a text get a space put before them, in transformers' LlamaTokenizer."""
    return "never" if beside.prefixes_space is False else "always" if beside.legacy else "first"


def _spelt(data: bytes, beside: Beside) -> bytes:
    """The tokenizer.json that transformers makes of a sentencepiece model."""
    model = spm.read(data)
    kind = beside.kind or ("LlamaTokenizer" if beside.model in settings.BOS_MODELS else "")
    if kind in LLAMA_CLASSES and model.model_type == spm.UNIGRAM:
        raise UnsupportedError(f"a unigram model, which transformers' {kind} splits otherwise than sentencepiece does")
    if beside.kind is None and settings.CONFIG in beside.files and beside.model and model.add_dummy_prefix:
        raise UnsupportedError(
            f"{settings.CONFIG} names no tokenizer_class, so transformers puts no space before a text, as the model's "
            "own tokenizer does: name LlamaTokenizer there, or which it is"
        )
    if beside.prefixes_space is not None:
        model.add_dummy_prefix = beside.prefixes_space
    return msgspec.json.encode(jsonfromspm.spelt(model, "always" if beside.legacy else "first"))


def _joined(path: Path, data: bytes, beside: Beside) -> bytes:
    """The tokenizer.json of a vocab.json and the merges.txt beside it."""
    merges = read_regular(path.with_name(MERGES), spm.MAX_NBYTES)
    vocabulary = parse_json(data, path)
    try:
        return vocabularies.json_from_merges(vocabulary, merges.decode(), beside.kind, beside.model)
    except UnicodeDecodeError:
        raise FormatError(f"{path.with_name(MERGES)}: not UTF-8") from None


def _settings(
    folder: Path, tokenizer: HuggingFaceTokenizer, beside: Beside, by_default: Mapping[str, str], *, is_spm: bool
) -> Settings:
    """What the files beside a vocabulary say, then what its class does, then the ids of the model's configuration.

    Where files name tokens, texts begin with none that they do not name.
    """
    said, control = beside.settings, set(tokenizer.specials.values())
    ids, ends = settings.ids_beside(folder)
    names: dict[str, str | int | None] = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = getattr(said, name)
        if token is not None and name == "pad" and tokenizer.token_named(token) is None:
            token = None  # it was left out, for it is beyond the model's ids
        if token is None and ids.get(name) in control:
            token = ids[name]
        if token is None and tokenizer.token_named(by_default.get(name, "")) is not None:
            token = by_default[name]
        names[name] = token
    if names["bos"] is None or (beside.names_tokens and not isinstance(names["bos"], str)):
        names["bos"] = "" if beside.names_tokens else names["bos"]
    adds_bos = said.adds_bos
    if tokenizer.json.has_template:  # of what is put around a text: it alone counts, as in transformers
        adds_bos = None
        names["bos"] = names["bos"] or tokenizer.json.first_added
    elif adds_bos is None:
        kind = (beside.kind or "").removesuffix("Fast")
        adds_bos = kind in settings.ADD_BOS or (is_spm and not kind and beside.model in settings.BOS_MODELS)
    eos = tokenizer.token_named(names["eos"]) if isinstance(names["eos"], str) else names["eos"]
    others = tuple(token for token in ends if token in control and token != eos)
    return msgspec.structs.replace(said, adds_bos=adds_bos, ends=others, **names)


def in_gguf(pairs: Mapping[str, Any], path: Path) -> Found | None:
    """The tokenizer in the keys of a GGUF file, None if it has none. Raises FormatError or UnsupportedError."""
    kind = pairs.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    try:
        tokenizer, notes = _of_gguf(pairs, kind)
        n_added = sum(int(t) in (spm.CONTROL, spm.USER_DEFINED) for t in pairs.get("tokenizer.ggml.token_type", ()))
        return Found(tokenizer.apply(settings.from_gguf(pairs)), (path.name,), n_added, tuple(notes))
    except GGError as error:
        raise type(error)(f"{path}: {error}") from None


def _of_gguf(pairs: Mapping[str, Any], kind: Any) -> tuple[Tokenizer, list[str]]:
    if kind == "gpt2":
        data, notes = vocabularies.json_from_gguf(pairs)
        return HuggingFaceTokenizer(data), notes
    data, notes = vocabularies.spm_from_gguf(pairs)
    return SentencePieceTokenizer(data), notes
