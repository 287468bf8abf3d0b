"""Tokens that files beside a tokenizer.json add to it: they become part of it, with their ids, or it is an error.

Follows `TokenizersBackend` of transformers: a token that is in the vocabulary keeps its id there, any other gets the
next free one; a token that was added before stays as it is, but for flags that tokenizer_config.json says. Where a file
says another id than that, one of the two would be wrong. Used by `interchange.tokenizer`; `settings` finds the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggmlgraph.errors import FormatError

FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True)
class NewToken:
    """A token to be added. Without an id it gets the one it has, or the next; `needed`: it is asked for by ids."""

    content: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    origin: str = ""  # the file, or what names it
    needed: bool = True
    has_flags: bool = False  # said, so that they count also for a token that was added before

    @classmethod
    def of(cls, key: str, said: Any, path: Path) -> NewToken:
        """As a file lists it: an id and an object. Raises FormatError."""
        content = said.get("content") if isinstance(said, dict) else None
        if not key.isdecimal() or len(key) > 9 or not isinstance(content, str) or not content:
            raise FormatError(f"{path}: {str(key)[:40]!r} is no id with a token")
        flags = {flag: said[flag] for flag in FLAGS if isinstance(said.get(flag), bool)}
        flags.setdefault("special", False)
        flags.setdefault("normalized", not flags["special"])
        return cls(content, int(key), origin=path.name, **flags)


def with_added(data: bytes, new: Iterable[NewToken], most: int | None = None) -> bytes:
    """A tokenizer.json with more tokens. most: how many ids the model has.

    Raises FormatError, which names token and file, if one cannot have the id that is said, or one beyond the model's.
    """
    file: dict[str, Any] = json.loads(data)
    vocabulary = file["model"].get("vocab") or {}
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {token: i for i, (token, _) in enumerate(vocabulary)}
    n_own = len(ids)
    added = {token["content"]: token["id"] for token in file.get("added_tokens") or []}
    listed = list(file.get("added_tokens") or [])
    for token in new:
        known = added.get(token.content, ids.get(token.content))
        free = max(n_own, max(added.values(), default=-1) + 1)
        token_id = free if known is None else known
        if token.id is not None and token.id != token_id:
            where = f"the next free id is {free}" if known is None else f"the vocabulary has it as {known}"
            raise FormatError(f"{token.origin}: the added token {token.content!r} is {token.id}; {where}")
        flags = {flag: getattr(token, flag) for flag in FLAGS}
        if token.content in added:
            if token.has_flags:
                listed = [{**each, **flags} if each["content"] == token.content else each for each in listed]
            continue
        if most is not None and token_id >= most:
            if not token.needed:
                continue
            raise FormatError(
                f"{token.origin}: the added token {token.content!r} is {token_id}, the model has ids 0 to {most - 1}"
            )
        added[token.content] = token_id
        listed.append({"id": token_id, "content": token.content, **flags})
    file["added_tokens"] = sorted(listed, key=lambda token: token["id"])
    return json.dumps(file, ensure_ascii=False).encode()
