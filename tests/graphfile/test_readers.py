"""The importer in C and the reader in Python, which share no code, say the same of the same files: see readers.py."""

from __future__ import annotations

import pytest
from readers import compare, disagreement
from samplefiles import files

FILES = list(files())


def test_both_readers_take_every_small_file_as_the_same_tensors() -> None:
    for name, dialect, content in FILES:
        assert disagreement(content, dialect) == (None, "accepted"), (dialect, name)


@pytest.mark.parametrize("seed", range(4))
def test_both_readers_agree_on_changed_files(seed: int) -> None:
    verdicts = compare(1500, 0, seed)
    assert verdicts["accepted"] > 100
    assert len(verdicts) > 15
