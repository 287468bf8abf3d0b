"""Mixtures: each text's share, at any place, and every window of each once an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggmlgraph.data.mixture import PERIOD, PROPORTIONS, MixtureData, pattern
from ggmlgraph.data.prepare import prepared
from ggmlgraph.data.text import TextData
from ggmlgraph.errors import UsageError
from ggmlgraph.tokenizers.plain import CharsTokenizer

WEIGHTS = [*[list(each.values()) for each in PROPORTIONS.values()], [1.0], [0.3, 0.7], [1, 1, 1], [1e-3, 1, 5, 0.2]]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_each_text_has_its_share_at_every_place(weights: list[float]) -> None:
    shares = np.array(weights) / sum(weights)
    chosen, before = pattern(np.array(weights))
    used = np.cumsum(chosen[:, None] == np.arange(len(weights)), 0)
    assert (np.abs(used - shares * np.arange(1, PERIOD + 1)[:, None]) < 2).all()
    assert (before == used[np.arange(PERIOD), chosen] - 1).all()


def test_the_pattern_begins_as_megatrons_rule_has_it() -> None:
    weights, used = np.array([0.3, 0.7]), np.zeros(2)
    for part in pattern(weights)[0][:1000]:
        wanted = int((np.round(weights * PERIOD) / PERIOD * max(used.sum(), 1) - used).argmax())
        assert part == wanted
        used[part] += 1


def parts(folder: Path) -> dict[str, TextData]:
    found = {}
    for name, first in (("a", 0x4E00), ("b", 0x6000)):
        alphabet = "".join(map(chr, range(0x4E00, 0x7000)))
        (folder / name).write_text("".join(map(chr, range(first, first + 1000))))
        store = prepared([folder / name], CharsTokenizer(alphabet), folder / "tokens")
        found[name] = TextData(store, 8, 0, n_vocab=len(alphabet), stream=f"data {name}")
    return found


def test_a_mixture_draws_of_each_text_every_window_once_an_epoch(tmp_path: Path) -> None:
    given = parts(tmp_path)
    mixed = MixtureData(given, {"a": 1, "b": 3})
    n = 4 * given["a"].windows_per_epoch
    starts = np.concatenate([mixed.samples(i, 1)[0][:, 0] for i in range(n)])
    of_a = starts[starts < 0x6000 - 0x4E00]
    assert len(of_a) == n // 4
    assert len(set(of_a.tolist())) == len(of_a)


def test_the_batch_does_not_change_the_order_of_a_mixture(tmp_path: Path) -> None:
    mixed = MixtureData(parts(tmp_path), {"a": 0.3, "b": 0.7})
    singles = np.concatenate([mixed.samples(i, 1)[0] for i in range(60)])
    for n in (1, 2, 3, 4, 5, 6, 7, 8, 9):
        together = np.concatenate([mixed.samples(i, n)[0] for i in range(0, 60, n)])
        assert np.array_equal(together[:60], singles)


def test_a_weight_that_is_never_seen_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the weight 1e-09 of a is less than one window in"):
        MixtureData(parts(tmp_path), {"a": 1e-9, "b": 1})
