"""Token stores of other programs: the same tokens, and no hostile one opened."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ggmlgraph.data.others import open_tokens
from ggmlgraph.data.store import TokenStore
from ggmlgraph.data.text import TextData
from ggmlgraph.errors import DataError, GGError

IDS = np.random.default_rng(0).integers(0, 60000, 5000)
LENGTHS = np.array([1000, 0, 1500, 2500], np.int32)


def megatron(path: Path, dtype: str = "<u2", code: int = 8, ids: np.ndarray = IDS) -> Path:
    item = np.dtype(dtype).itemsize
    path.with_suffix(".bin").write_bytes(ids.astype(dtype).tobytes())
    places = np.concatenate([[0], np.cumsum(LENGTHS)[:-1].astype(np.int64)]) * item
    header = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + bytes([code])
    counts = np.array([len(LENGTHS), 3], "<u8").tobytes()
    path.with_suffix(".idx").write_bytes(
        header + counts + LENGTHS.astype("<i4").tobytes() + places.astype("<i8").tobytes()
        + np.array([0, 2, 4], "<i8").tobytes()
    )  # fmt: skip
    return path.with_suffix(".idx")


def llmc(path: Path, magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(IDS)
    path.write_bytes(header.tobytes() + IDS.astype(dtype).tobytes())
    return path


def datatrove(path: Path, dtype: str = "<u2") -> Path:
    path.write_bytes(IDS.astype(dtype).tobytes())
    Path(f"{path}.index").write_bytes(np.cumsum(LENGTHS).astype("<u8").tobytes())
    return path


def nanogpt(path: Path) -> Path:
    path.write_bytes(IDS.astype("<u2").tobytes())
    return path


STORES: dict[str, Callable[[Path], Path]] = {
    "megatron, 16 bits": lambda folder: megatron(folder / "m.idx"),
    "megatron, 32 bits": lambda folder: megatron(folder / "m.idx", "<i4", 4),
    "megatron, 64 bits": lambda folder: megatron(folder / "m.idx", "<i8", 5),
    "megatron, named by its ids": lambda folder: megatron(folder / "m.idx").with_suffix(".bin"),
    "llm.c, GPT-2": lambda folder: llmc(folder / "l.bin"),
    "llm.c, Llama 3": lambda folder: llmc(folder / "l.bin", 20240801, 7, "<u4"),
    "datatrove, 16 bits": lambda folder: datatrove(folder / "d.ds"),
    "datatrove, 32 bits": lambda folder: datatrove(folder / "d.ds", "<u4"),
    "nanoGPT": lambda folder: nanogpt(folder / "train.bin"),
}


def opened(path: Path) -> TokenStore:
    store = open_tokens([str(path)])
    assert store is not None
    return store


@pytest.mark.parametrize("kind", STORES)
def test_the_tokens_of_another_programs_store_are_read(kind: str, tmp_path: Path) -> None:
    store = opened(STORES[kind](tmp_path))
    assert store.ids.tolist() == IDS.tolist()
    data = TextData(store, 16, 0, n_vocab=60000)
    inputs, targets = data.batch(0, 4)
    assert (inputs[:, 1:] == targets[:, :-1]).all()


def test_a_pattern_of_stores_is_one_after_the_other(tmp_path: Path) -> None:
    for i in range(3):
        llmc(tmp_path / f"shard_{i}.bin")
    assert opened(tmp_path / "shard_*.bin").ids.tolist() == IDS.tolist() * 3


def test_ids_that_the_model_has_not_are_told_when_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has token id .* the model's n_vocab is 100"):
        TextData(opened(nanogpt(tmp_path / "x.bin")), 16, 0, n_vocab=100).batch(0, 4)
    negative = megatron(tmp_path / "m.idx", "<i4", 4, -IDS - 1)
    with pytest.raises(DataError, match="has token id -"):
        TextData(opened(negative), 16, 0, n_vocab=60000).batch(0, 4)


@pytest.mark.parametrize("kind", STORES)
def test_a_hostile_store_is_one_line_or_tokens(kind: str, tmp_path: Path, check_each: Callable[..., None]) -> None:
    path, rng = STORES[kind](tmp_path), random.Random(kind)
    files = {each: each.read_bytes() for each in tmp_path.iterdir()}
    large = [0, 1, 0x7F, 0x80, 0xFF]

    def check(_: int) -> None:
        chosen = rng.choice(sorted(files))
        data = bytearray(files[chosen])
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(min(len(data), 80))
            data[at : at + 4] = bytes([rng.choice(large)] * rng.randrange(1, 5))
        chosen.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            store = opened(path)
            assert len(store.ids) == store.n_tokens
        except GGError as error:
            assert "\n" not in str(error)
        finally:
            chosen.write_bytes(files[chosen])

    check_each(range(150), check)
