"""How tokens are drawn: the settings that `generate` and `chat` offer as options, and by which choice.py chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ggmlgraph.errors import UsageError

PENALISED = 64  # tokens back in which a repetition counts, llama.cpp's default


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature 0: the likeliest one. top_k 0, top_p 1 and min_p 0 leave every token in."""

    temperature: float = 0.8
    top_k: int = 40  # the k likeliest (Fan et al. 2018)
    top_p: float = 0.95  # the fewest with this much of what is left of the probability (Holtzman et al. 2020)
    seed: int = 0
    min_p: float = 0.0  # those at least this likely, measured by the likeliest (Nguyen et al. 2024)
    repeat_penalty: float = 1.0  # of tokens among the last 64 (Keskar et al. 2019, section 4.1); 1: none

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature {self.temperature} must be 0 or more")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p} must be in 0..1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p {self.min_p} must be in 0..1")
        if not (math.isfinite(self.repeat_penalty) and self.repeat_penalty > 0):
            raise UsageError(f"repeat-penalty {self.repeat_penalty} must be more than 0")
