"""Training data from text: which windows make up a batch, and what validation sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggmlgraph.data.prepare import prepared
from ggmlgraph.data.store import TokenStore
from ggmlgraph.data.text import TextData
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer

CTX = 8


@pytest.fixture
def tokens(tmp_path: Path) -> TokenStore:
    """1000 tokens, id i at place i."""
    return counting(tmp_path, 1000)


def text_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def counting(folder: Path, n: int) -> TokenStore:
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    return prepared([text_file(folder / "count", alphabet[:n].encode())], CharsTokenizer(alphabet), folder)


def text_data(tokens: TokenStore, seed: int = 0, ctx: int = CTX, val_fraction: float = 0.1) -> TextData:
    return TextData(tokens, ctx, seed, n_vocab=2000, val_fraction=val_fraction)


def epoch_starts(data: TextData, epoch: int) -> list[int]:
    """First tokens of an epoch's windows in their order."""
    n = data.windows_per_epoch
    return [int(data.batch(step, 1)[0][0, 0]) for step in range(epoch * n, (epoch + 1) * n)]


def test_batch_is_int32_rows_of_ctx(tokens: TokenStore) -> None:
    inputs, targets = text_data(tokens).batch(3, 5)
    assert {(a.shape, a.dtype) for a in (inputs, targets)} == {((5, CTX), np.dtype(np.int32))}


def test_inputs_are_consecutive_tokens(tokens: TokenStore) -> None:
    inputs, _ = text_data(tokens).batch(0, 5)
    assert (np.diff(inputs, axis=1) == 1).all()


def test_targets_are_the_next_tokens(tokens: TokenStore) -> None:
    inputs, targets = text_data(tokens).batch(0, 5)
    assert (targets == inputs + 1).all()


def test_batch_does_not_depend_on_what_was_read_before(tokens: TokenStore) -> None:
    used = text_data(tokens)
    for step in range(50):
        used.batch(step, 7)
    assert np.array_equal(used.batch(20, 7), text_data(tokens).batch(20, 7))


def test_batch_size_does_not_change_the_order(tokens: TokenStore) -> None:
    data = text_data(tokens)
    singles = [data.batch(step, 1)[0][0] for step in range(300)]
    assert np.array_equal(np.concatenate([data.batch(step, 10)[0] for step in range(30)]), singles)


def test_batches_never_change(tokens: TokenStore) -> None:
    golden = [[330, 162, 738, 394], [514, 18, 298, 810], [658, 674, 130, 722]]
    first = [[722, 850, 290, 522], [586, 154, 746, 770], [266, 82, 202, 842]]
    data = text_data(tokens, seed=7)
    for data.order, wanted in ((2, golden), (1, first)):
        assert [data.batch(step, 4)[0][:, 0].tolist() for step in (0, 1, 1000)] == wanted


def test_epoch_shows_each_window_once(tokens: TokenStore) -> None:
    data = text_data(tokens)
    starts = np.sort(epoch_starts(data, 2))
    assert (np.diff(starts) == CTX).all()


def test_epochs_differ_in_order(tokens: TokenStore) -> None:
    orders = {tuple(np.array(epoch_starts(text_data(tokens), epoch)) // CTX) for epoch in range(5)}
    assert len(orders) == 5


def test_epochs_start_anywhere(tokens: TokenStore) -> None:
    assert {min(epoch_starts(text_data(tokens), epoch)) for epoch in range(60)} >= set(range(CTX))


def test_seeds_differ_in_order(tokens: TokenStore) -> None:
    assert epoch_starts(text_data(tokens, seed=0), 0) != epoch_starts(text_data(tokens, seed=1), 0)


def validation(data: TextData, batch_size: int = 4, max_tokens: int = 10**6) -> Iterator[int]:
    for inputs, _, n_rows in data.validation_batches(batch_size, max_tokens):
        yield from inputs[:n_rows, 0].tolist()


def test_validation_is_the_last_part(tokens: TokenStore) -> None:
    assert list(validation(text_data(tokens))) == list(range(900, 900 + 99 // CTX * CTX, CTX))


def test_training_never_sees_validation(tokens: TokenStore) -> None:
    data = text_data(tokens)
    assert max(int(data.batch(step, 50)[1].max()) for step in range(50)) == 899


def test_validation_stops_at_max_tokens(tokens: TokenStore) -> None:
    assert len(list(validation(text_data(tokens), max_tokens=5 * CTX + 1))) == 5


def test_validation_has_one_window_at_least(tokens: TokenStore) -> None:
    assert len(list(validation(text_data(tokens), max_tokens=0))) == 1


def test_last_validation_batch_is_filled_up(tokens: TokenStore) -> None:
    shapes = [(inputs.shape, n_rows) for inputs, _, n_rows in text_data(tokens).validation_batches(5, 10**6)]
    assert shapes == [((5, CTX), 5), ((5, CTX), 5), ((5, CTX), 2)]


def test_validation_is_capped(tokens: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggmlgraph.data.text._MAX_VALIDATION", 50)
    assert text_data(tokens, val_fraction=0.5).n_val == 50


@pytest.mark.parametrize("n", [2 * CTX + 2, 2 * CTX + 3, 3 * CTX, 4 * CTX + 5])
@pytest.mark.parametrize("val_fraction", [0.01, 0.99])
def test_short_text_has_a_window_of_each(tmp_path: Path, n: int, val_fraction: float) -> None:
    data = text_data(counting(tmp_path, n), val_fraction=val_fraction)
    seen = {int(data.batch(step, 1)[1].max()) for step in range(200)}
    assert max(seen) < data.n_train <= min(validation(data))


def test_too_short_text_tells_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"count has 17 tokens; ctx 8 needs at least 18"):
        text_data(counting(tmp_path, 17))


def test_text_without_tokens_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bom: no text, and so no tokens"):
        prepared([text_file(tmp_path / "bom", b"\xef\xbb\xbf")], BytesTokenizer(), tmp_path)


def test_id_above_the_models_vocabulary_is_an_error(tokens: TokenStore) -> None:
    with pytest.raises(DataError, match="token id 999, the model's n_vocab is 999"):
        TextData(tokens, CTX, 0, n_vocab=999)


@pytest.mark.parametrize(("ctx", "val_fraction"), [(0, 0.1), (8, 0.0), (8, 1.0)])
def test_senseless_settings_are_usage_errors(tokens: TokenStore, ctx: int, val_fraction: float) -> None:
    with pytest.raises(UsageError):
        text_data(tokens, ctx=ctx, val_fraction=val_fraction)
