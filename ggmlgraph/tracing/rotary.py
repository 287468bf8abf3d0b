"""Rotary positions of models whose contexts were made longer than they were first trained on.

`RotaryScaling` has the fields that a Config needs for it, `rotate` is what a model does with its queries and keys. How
other formats say it is in rotarynames.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import UsageError
from ggmlgraph.table import ops
from ggmlgraph.tracing.params import Params
from ggmlgraph.tracing.tensor import Tensor

FREQ_FACTORS = "rope_freqs.weight"  # GGUF's name
KINDS = ("linear", "yarn", "llama3")


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Fields of a Config: how frequencies are scaled to contexts rope_factor times longer than rope_n_ctx_orig.

    rope_scaling "": not at all. "linear" (Chen et al. 2023): all are divided by rope_factor. "llama3" (Grattafiori et
    al. 2024): those of pairs that turn less than rope_beta_slow times in rope_n_ctx_orig positions are divided, those
    of more than rope_beta_fast turns are kept; in between the share that is kept rises with the turns. "yarn" (Peng et
    al. 2023): the same, but it rises with the number of the pair; and what is rotated is multiplied by
    rope_attn_factor (1 + 0.1 ln rope_factor).
    """

    rope_scaling: str = ""
    rope_factor: float = 1.0
    rope_n_ctx_orig: int = 0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_attn_factor: float = 1.0


FIELDS = tuple(field.name for field in fields(RotaryScaling))  # of which only the first counts while it is ""


def rotate(p: Params, x: Tensor, c: Any, *, n_dims: int, mode: int) -> Tensor:
    """Rotary position embedding of the first n_dims of each head, scaled as the config says.

    x: (batch, ctx, n_head, head_dim) -> same. c has rope_freq_base and the fields of `RotaryScaling`. mode: `rope`'s.
    Raises UsageError for a scaling that there is not.
    """
    _check(c)
    factors, words = None, {}
    if c.rope_scaling == "llama3":
        factors = p.graph.constant(FREQ_FACTORS, freq_factors(c, n_dims))
    elif c.rope_scaling:
        words = {"freq_scale": 1 / c.rope_factor}
    if c.rope_scaling == "yarn":
        words |= {"n_ctx_orig": c.rope_n_ctx_orig, "ext_factor": 1.0, "attn_factor": c.rope_attn_factor}
        words |= {"beta_fast": c.rope_beta_fast, "beta_slow": c.rope_beta_slow}
    positions = p.positions(x.shape[1])
    return ops.rope(x, positions, factors, n_dims=n_dims, mode=mode, freq_base=c.rope_freq_base, **words)


def _check(c: Any) -> None:
    """Raise UsageError if the fields of `RotaryScaling` do not fit together."""
    if c.rope_scaling not in ("", *KINDS):
        raise UsageError(f"rope_scaling is {c.rope_scaling!r}; known are {', '.join(KINDS)}")
    if c.rope_scaling and not 1 <= c.rope_factor < math.inf:
        raise UsageError(f"rope_factor is {c.rope_factor}, must be at least 1")
    ramps = 0 < c.rope_beta_slow < c.rope_beta_fast and c.rope_n_ctx_orig > 0 and c.rope_freq_base > 1
    if c.rope_scaling in ("yarn", "llama3") and not ramps:
        raise UsageError(
            f"rope_scaling {c.rope_scaling} needs rope_n_ctx_orig > 0 and 0 < rope_beta_slow < rope_beta_fast, got "
            f"{c.rope_n_ctx_orig}, {c.rope_beta_slow} and {c.rope_beta_fast}"
        )


def freq_factors(c: Any, n_dims: int) -> NDArray[np.float32]:
    """What "llama3" divides the frequency of each pair by: float32 (n_dims / 2,)."""
    frequencies = float(c.rope_freq_base) ** (-2 * np.arange(n_dims // 2) / n_dims)
    turns = c.rope_n_ctx_orig * frequencies / (2 * math.pi)
    kept = np.clip((turns - c.rope_beta_slow) / (c.rope_beta_fast - c.rope_beta_slow), 0, 1)
    factors: NDArray[np.float32] = (1 / ((1 - kept) / c.rope_factor + kept)).astype(np.float32)
    return factors
