"""A model that is there, whatever wrote it: `load` makes it ready to write text, `generate` lets it.

Used by programs, and by `ggmlgraph generate`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any

from ggmlgraph.core.limits import DEFAULT, Limits
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.finetuning.attaching import open_with
from ggmlgraph.generation.generate import Generator
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.interchange.ondemand import graph_of
from ggmlgraph.tokenizers.base import Tokenizer

MOST_TOGETHER = 16  # prompts; what is kept of each takes as much memory


class Model:
    """A language model with its tokenizer, ready to write; a context manager. `load` makes one.

    runtime: `gg.Runtime`, for everything but text. tokenizer: what `gg.tokenizer` gives.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer) -> None:
        self.runtime, self.tokenizer = runtime, tokenizer

    def generate(
        self, prompt: str | Sequence[str] = "", n: int = 128, *, stop: Sequence[str] = (), **how: Any
    ) -> str | list[str]:
        """The prompt and at most n tokens that follow it; of several prompts, which are continued together, a list.

        stop: texts before which to end. how: temperature, top_k, top_p, min_p, repeat_penalty, seed: as of `Sampling`.
        Raises UsageError for settings that make no sense, DataError for a text that has no ids.
        """
        sampling = Sampling(**how)
        if isinstance(prompt, str):
            return "".join(self.stream(prompt, n, sampling, stop=stop))
        generator = Generator(self.runtime, self.tokenizer, batch=max(1, min(len(prompt), MOST_TOGETHER)))
        return generator.texts(prompt, n, sampling, stop=stop)

    def stream(self, prompt: str, n: int, how: Sampling, *, stop: Sequence[str] = ()) -> Iterator[str]:
        """What `generate` gives, in pieces as they come, the prompt first."""
        return Generator(self.runtime, self.tokenizer).text(prompt, n, how, stop=stop)

    def notes(self, prompts: Sequence[str]) -> Iterator[str]:
        """What a person should know before these prompts are continued: a line each."""
        return Generator(self.runtime, self.tokenizer).notes(prompts)

    def close(self) -> None:
        """Free its memory; see `Runtime.close`."""
        self.runtime.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.runtime.summary()}; tokenizer {self.tokenizer.kind}, {self.tokenizer.n_vocab:,} ids>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


def load(
    path: str | os.PathLike[str],
    *,
    adapters: Sequence[str] = (),
    ctx: int | None = None,
    threads: int | None = None,
    limits: Limits = DEFAULT,
    tell: Callable[[str], None] = warnings.warn,
) -> Model:
    """The model in a run (its latest whole checkpoint), a checkpoint, a graph file, a GGUF file or a folder of
    Hugging Face's.

    adapters: of PEFT folders, GGUF files or runs, "X" or "X:SCALE" each, which add up.
    ctx: tokens looked back on, default as trained. threads: default all processors. A checkpoint of another program is
    converted once, and kept in the user's cache. tell: is told what a person should know, a line each.
    Raises GGError: nothing there, damaged, or without a tokenizer.
    """
    return Model(*open_with(graph_of(Path(path), tell), adapters, threads=threads, ctx=ctx, limits=limits))


def generate(
    model: Model | str | os.PathLike[str], prompt: str | Sequence[str] = "", n: int = 128, **how: Any
) -> str | list[str]:
    """`Model.generate` of a model, or of what `load` makes of a path.

    gg.generate("run", "Once upon a time", 200, temperature=0.5)
    """
    if isinstance(model, Model):
        return model.generate(prompt, n, **how)
    with load(model) as loaded:
        return loaded.generate(prompt, n, **how)
