"""How well a model continues the quantised sine of `builtin:sine`, as two lines of a bar chart.

Used by `generate` and at the end of training where that is the model's corpus (baby_llama).
"""

from __future__ import annotations

import numpy as np

from ggmlgraph.data.corpus import SINE_ALPHABET, SINE_PERIOD, sine_levels
from ggmlgraph.tokenizers.base import Ids, Tokenizer
from ggmlgraph.tokenizers.plain import CharsTokenizer

CORPUS = "builtin:sine"
PROMPT = "".join(SINE_ALPHABET[level] for level in sine_levels(0, SINE_PERIOD))


def is_wave(corpus: str | None, tokenizer: Tokenizer) -> bool:
    """Whether a model's tokens are the levels of the sine."""
    return corpus == CORPUS and isinstance(tokenizer, CharsTokenizer) and tokenizer.alphabet == SINE_ALPHABET


def continuation(prompt: Ids, n: int) -> Ids | None:
    """The n levels that follow `prompt` on the true wave; None if the prompt is no piece of it."""
    for phase in range(SINE_PERIOD):
        if np.array_equal(sine_levels(phase, len(prompt)), prompt):
            return sine_levels(phase + len(prompt), n)
    return None


def report(text: str, prompt: str, tokenizer: Tokenizer) -> list[str]:
    """Lines that compare a generated text (prompt included) with the true wave; none if there is nothing to compare."""
    levels = tokenizer.encode(text.removeprefix(prompt))
    true = continuation(tokenizer.encode(prompt), len(levels))
    if true is None or not len(levels):
        return []
    share = float((levels == true).mean())
    return [
        f"generated  {tokenizer.decode(levels)}",
        f"sine       {tokenizer.decode(true)}",
        f"{share:.1%} of {len(levels)} levels match the sine",
    ]
