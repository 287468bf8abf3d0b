"""Conversations: messages become one text by the model's own chat template, and the model continues it.

A template is Jinja2 written by the model's authors, so it may come from anyone: it runs in jinja2's immutable sandbox,
without a loader, in a process with limits of time and memory (templateprocess.py), and with an upper bound on what it
may write. Used by `ggmlgraph chat`.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ggmlgraph.errors import DataError
from ggmlgraph.generation.generate import Generator as TextGenerator
from ggmlgraph.generation.generate import Written
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.tokenizers.base import Ids, Tokenizer

MAX_PROMPT = 1 << 22  # characters
MAX_SECONDS = 2  # of a processor, its start included
MAX_NBYTES = 512 << 20  # of its process
PROCESS = Path(__file__).with_name("templateprocess.py")
MAX_REASON = 300  # characters of what a template says is wrong
Message = dict[Literal["role", "content"], str]
Answer = Generator[str, None, None]


class Template:
    """A chat template. Raises DataError, in one line, if it is none."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        tokens = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
        self._names = {f"{name}_token": tokenizer.name_of(token) for name, token in tokens.items() if token is not None}
        self._source = source
        self._run(None)

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to where the model answers. Raises DataError with what the template says."""
        return self._run(self.variables(messages))

    def variables(self, messages: Sequence[Message]) -> dict[str, Any]:
        """What the template may read, as transformers gives it."""
        given = {"messages": list(messages), "add_generation_prompt": True, "tools": None, "documents": None}
        return given | self._names

    def _run(self, variables: dict[str, Any] | None) -> str:
        request = {
            "source": self._source, "variables": variables,
            "seconds": MAX_SECONDS, "nbytes": MAX_NBYTES, "characters": MAX_PROMPT,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-P", str(PROCESS)], input=json.dumps(request).encode(), capture_output=True
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:  # it was ended in the middle
            if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
                reason = f"takes more than {MAX_SECONDS} s"
            else:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                reason = f"ends its process with {done.returncode}{f': {said[-1]}' if said else ''}"
            answer = {"error": reason}
        if "error" in answer:
            raise DataError(f"chat template: {' '.join(answer['error'].split())[:MAX_REASON]}")
        text: str = answer["text"]
        return text


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
        tokenizer, ctx = self.generator.tokenizer, self.generator.reader.ctx
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
    if tokenizer.reads_names or not specials:
        return tokenizer.encode(text)
    names = re.compile("|".join(re.escape(name) for name in sorted(specials, key=len, reverse=True)))
    ids, at = [], 0
    for found in names.finditer(text):
        ids += [tokenizer.encode(text[at : found.start()]), np.array([specials[found[0]]], np.int32)]
        at = found.end()
    return np.concatenate([*ids, tokenizer.encode(text[at:])])
