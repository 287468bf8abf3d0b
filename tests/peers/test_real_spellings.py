"""Whatever a model is written with, real ggml computes its file, and computes what we compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import real_ggml
import spellings
from spellings import SPELLINGS

import ggmlgraph as gg
from ggmlgraph.errors import UnsupportedError

NOT_IN_V1 = (  # the last: concat along the last axis
    "no unary op EXP", "no SIN of F32", "no COS of F32", "op_params word 0 of CONCAT is 0x0",
)  # fmt: skip
TOLERANCE = 1e-3  # of the largest value; v1 reads some functions from tables of half-precision numbers


@pytest.mark.parametrize("dialect", real_ggml.DIALECTS)
def test_real_ggml_computes_every_spelling(dialect: str, tmp_path: Path, check_each: Callable[..., None]) -> None:
    with real_ggml.or_skip(f"real ggml of dialect {dialect}"):
        real_ggml.library(dialect)

    def check(i: int) -> None:
        path = tmp_path / f"{i}.bin"
        try:
            inputs = spellings.save([SPELLINGS[i]], path, dialect)
        except UnsupportedError as error:
            assert dialect == "v1" and any(what in str(error) for what in NOT_IN_V1), (SPELLINGS[i], error)
            return
        theirs = real_ggml.compute(dialect, path, inputs, ["result0"])["result0"]
        with gg.Runtime(path, threads=1) as rt:
            for name, array in inputs.items():
                rt.set(name, array)
            (ours,) = rt.forward("result0")
        if ours.dtype == np.int32:
            theirs = theirs.view(np.int32)
        assert np.abs(theirs - ours.ravel()).max() <= TOLERANCE * (1 + np.abs(ours).max()), SPELLINGS[i]

    check_each(range(len(SPELLINGS)), check)
