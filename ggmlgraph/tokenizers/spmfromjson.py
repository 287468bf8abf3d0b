"""A tokenizer.json that is a sentencepiece model in other words, as that model. Used by `togguf`.

Hugging Face spells sentencepiece's BPE as merges instead of scores, and its unigram as a list; the normaliser becomes
steps. Turned back, so that a program which runs sentencepiece's algorithms gets what it needs, or refused if the
pipeline is not such a model: a merge that is missing would be done all the same.
"""

from __future__ import annotations

from typing import Any

from ggmlgraph.errors import UnsupportedError
from ggmlgraph.tokenizers import pipeline, spm
from ggmlgraph.tokenizers.pipeline import File
from ggmlgraph.tokenizers.spm import SpmModel


def model(file: File) -> SpmModel:
    """Raises UnsupportedError if the pipeline is none of sentencepiece's."""
    result = SpmModel(remove_extra_whitespaces=False, add_dummy_prefix=False)
    result.pieces = list(file.tokens())
    if list(file.tokens().values()) != list(range(len(result.pieces))):
        result.pieces = sorted(file.tokens(), key=file.tokens().__getitem__)
    _read_steps(file, result)
    _read_types(file, result)
    if file.kind == "Unigram" and isinstance(file.model.vocab, list):
        scores = dict(file.model.vocab)
        result.model_type = spm.UNIGRAM
        result.scores = [scores.get(piece, 0.0) for piece in result.pieces]
    elif file.kind == "BPE":
        result.model_type = spm.BPE
        result.scores = _scores(file, result)
    else:
        raise UnsupportedError(f"a tokenizer.json of model {file.kind} has no form in GGUF")
    return result


def _read_steps(file: File, result: SpmModel) -> None:
    """The normalizer, and Metaspace where it stands for a normalizer's steps."""
    escapes = False
    for step in [*pipeline.steps(file.normalizer), *pipeline.steps(file.pre_tokenizer)]:
        kind, pattern = step["type"], step.get("pattern")
        if kind == "Sequence":
            continue
        if kind == "Precompiled":
            result.charsmap = pipeline.charsmap(step)
        elif kind == "Prepend" and step.get("prepend") == spm.SPACE:
            result.add_dummy_prefix = True
        elif kind == "Replace" and pattern == {"String": " "} and step.get("content") == spm.SPACE:
            escapes = True
        elif (kind == "Replace" and pattern == {"Regex": " {2,}"}) or kind == "Strip":
            result.remove_extra_whitespaces = True
        elif kind == "Metaspace":
            escapes = True
            result.add_dummy_prefix = _prepends(step)
        elif kind not in ("WhitespaceSplit",) or file.kind != "Unigram":
            raise UnsupportedError(f"a tokenizer.json with the step {kind} has no form in GGUF")
    if not escapes:
        raise UnsupportedError("a tokenizer.json that is neither byte-level nor sentencepiece has no form in GGUF")


def _prepends(metaspace: dict[str, Any]) -> bool:
    scheme = metaspace.get("prepend_scheme")
    return bool(metaspace.get("add_prefix_space", True)) if scheme is None else scheme != "never"


def _read_types(file: File, result: SpmModel) -> None:
    unknown = file.model.unk_token
    if (
        file.model.unk_id is not None
        and isinstance(file.model.vocab, list)
        and file.model.unk_id < len(file.model.vocab)
    ):
        unknown = file.model.vocab[file.model.unk_id][0]
    added = {token.content: spm.CONTROL if token.special else spm.USER_DEFINED for token in file.added_tokens}
    for piece in result.pieces:
        kind = added.get(piece, spm.NORMAL)
        if piece == unknown:
            kind = spm.UNKNOWN
        elif file.model.byte_fallback and spm.BYTE_PIECE.fullmatch(piece):
            kind = spm.BYTE
        result.types.append(kind)
    if spm.UNKNOWN not in result.types:
        raise UnsupportedError("a tokenizer.json without an unknown token has no form in GGUF")
    result.byte_fallback = result.types.count(spm.BYTE) == 256


def _scores(file: File, result: SpmModel) -> list[float]:
    """Minus the rank of the first merge that makes a piece.

    Raises UnsupportedError if sentencepiece would merge more than the file does.
    """
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else merge for merge in file.model.merges]
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    normal = {piece for piece, kind in zip(result.pieces, result.types, strict=True) if kind == spm.NORMAL}
    known = set(merges)
    for piece in normal:
        for i in range(1, len(piece)):
            if piece[:i] in normal and piece[i:] in normal and (piece[:i], piece[i:]) not in known:
                raise UnsupportedError(
                    f"this BPE never joins {piece[:i]!r} and {piece[i:]!r}, llama.cpp's would: ids would differ"
                )
    lowest = -float(len(merges))
    return [-float(rank[p]) if p in rank else (lowest if p in normal else 0.0) for p in result.pieces]
