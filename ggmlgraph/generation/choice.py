"""Which token comes next: choosing among a model's logits.

Used by `generate`. The order of the filters is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p;
top-p and min-p see the probabilities at that temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import GGError
from ggmlgraph.generation.sampling import PENALISED, Sampling


def choose(logits: NDArray[np.float32], how: Sampling, uniform: float, text: Sequence[int] = ()) -> int:
    """The token that `uniform`, a number in [0, 1), draws. logits: float32 (n_vocab,); text: the tokens so far.

    Raises GGError where a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise GGError("the model's logits are not finite")
    if how.repeat_penalty != 1:
        logits = _penalised(logits, text, how.repeat_penalty)
    if how.temperature == 0:
        return int(np.argmax(logits))
    order = _likeliest(logits, how.top_k)
    z = logits[order].astype(np.float64) / how.temperature
    weights = np.exp(z - z[0])
    cumulative = np.cumsum(weights)
    n = int(np.searchsorted(cumulative, how.top_p * cumulative[-1])) + 1
    n = min(n, int(np.searchsorted(-weights, -how.min_p, side="right")))
    cumulative = cumulative[:n]
    return int(order[min(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), len(cumulative) - 1)])


def _penalised(logits: NDArray[np.float32], text: Sequence[int], penalty: float) -> NDArray[np.float32]:
    """The logits with those of recent tokens divided by the penalty, or multiplied where they are negative."""
    recent = np.unique(np.asarray(text[-PENALISED:], np.int64))
    changed = logits.copy()
    values = changed[recent]
    changed[recent] = np.where(values > 0, values / penalty, values * penalty)
    return changed


def _likeliest(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """The k likeliest tokens, all for k 0, likeliest first; among equals the lower id first."""
    if not 0 < k < len(logits):
        return np.argsort(-logits, kind="stable")
    candidates = np.flatnonzero(logits >= np.partition(logits, -k)[-k])
    return candidates[np.argsort(-logits[candidates], kind="stable")[:k]]
