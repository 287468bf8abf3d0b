"""Conversations: messages become one text by the model's own chat template, and the model continues it.

A template is Jinja2 written by the model's authors, so it may come from anyone: it runs in jinja2's immutable sandbox,
without a loader, and with an upper bound on what it may write. Used by `ggmlgraph chat`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from datetime import datetime
from typing import Any, Literal, NoReturn

import numpy as np

from ggmlgraph.errors import DataError
from ggmlgraph.generate import Generator as TextGenerator
from ggmlgraph.generate import Written
from ggmlgraph.sampling import Sampling
from ggmlgraph.tokenizers import Ids, Tokenizer

MAX_PROMPT = 1 << 22  # characters
Message = dict[Literal["role", "content"], str]
Answer = Generator[str, None, None]


class Template:
    """A chat template. Raises DataError, in one line, if it is none."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        self._names = {name: tokenizer.name_of(token) for name, token in ends.items()}
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise DataError(f"chat template: {_line(error)}") from None

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to where the model answers. Raises DataError with what the template says."""
        parts, length = [], 0
        try:
            for part in self._template.generate(messages=list(messages), add_generation_prompt=True, **self._names):
                parts.append(part)
                length += len(part)
                if length > MAX_PROMPT:
                    raise DataError(f"chat template: writes more than {MAX_PROMPT} characters")
        except DataError:
            raise
        except Exception as error:  # a template is a program: it can fail in any way
            raise DataError(f"chat template: {_line(error)}") from None
        return "".join(parts)


def _refuse(message: Any) -> NoReturn:
    raise DataError(f"chat template: {message}")


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())


class Conversation:
    """Messages so far. What the model has read of them stays in its cache; a turn reads only what is new.

    A conversation that outgrows the window loses its oldest exchanges, never what the system says: `n_forgotten` counts
    their messages. An answer ends where the window does: `full` says so of the last one.
    """

    def __init__(self, generator: TextGenerator, template: Template, system: str | None = None) -> None:
        self.generator, self.template = generator, template
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.n_forgotten, self.full = 0, False
        self._first = len(self.messages)  # of what may be forgotten

    def answer(self, said: str, n: int, how: Sampling, stop: Sequence[str] = ()) -> Answer:
        """The model's answer, in pieces as they come, up to a control token. Where the caller stops, it ends too."""
        tokenizer, ctx = self.generator.tokenizer, self.generator.decoder.ctx
        ends = frozenset(tokenizer.specials.values())
        self.messages.append({"role": "user", "content": said})
        try:
            prompt = self._prompt(ctx)
        except DataError:
            self.messages.pop()
            raise
        room, drawn = ctx - len(prompt), 0
        written, answer, self.full = Written(tokenizer, prompt, stop), "", False
        try:
            for token in self.generator.tokens(prompt, min(n, room), how, f"turn {len(self.messages)}", reuse=True):
                drawn += 1
                if token in ends:
                    break
                piece = written.push(token)
                answer += piece
                yield piece
                if written.stopped:
                    return
            self.full = drawn == room < n
            rest = written.finish()
            answer += rest
            yield rest
        finally:
            self.messages.append({"role": "assistant", "content": answer})

    def _prompt(self, ctx: int) -> Ids:
        """The conversation as the model sees it, which leaves a quarter of the window to the answer where it can."""
        while True:
            seen = self.messages[: self._first] + self.messages[self._first + self.n_forgotten :]
            prompt = encode(self.template.render(seen), self.generator.tokenizer)
            is_last = len(seen) == self._first + 1
            if len(prompt) <= ctx - ctx // 4 or (is_last and len(prompt) < ctx):
                return prompt
            if is_last:
                raise DataError(f"a message of {len(prompt)} tokens, with what is around it; the window is {ctx}")
            self.n_forgotten += 2  # a message and its answer


def encode(text: str, tokenizer: Tokenizer) -> Ids:
    """Ids of a rendered conversation: names of control tokens become these tokens, as the template means them."""
    specials = tokenizer.specials
    if not specials:
        return tokenizer.encode(text)
    names = re.compile("|".join(re.escape(name) for name in sorted(specials, key=len, reverse=True)))
    ids, at = [], 0
    for found in names.finditer(text):
        ids += [tokenizer.encode(text[at : found.start()]), np.array([specials[found[0]]], np.int32)]
        at = found.end()
    return np.concatenate([*ids, tokenizer.encode(text[at:])])
