"""Rotary positions scaled to longer contexts: frequencies, what is refused, and reading with kept keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation.decoding import CachedReader, WindowReader
from ggmlgraph.models import llama
from ggmlgraph.tracing import rotary

SIZES = {"n_vocab": 31, "n_embd": 32, "n_head": 4, "n_head_kv": 2, "n_layer": 2, "n_ff": 48, "rope_freq_base": 500.0}
RAMP = {"rope_factor": 4.0, "rope_n_ctx_orig": 16, "rope_beta_fast": 4.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "yarn": {"rope_scaling": "yarn", **RAMP},
    "llama3": {"rope_scaling": "llama3", **RAMP},
}


def test_frequencies_of_llama_3_1_are_kept_mixed_or_divided_by_8() -> None:
    """Pair 32 turns 8192 / (2 pi 500000^0.5) = 1.844 times, of 1 to 4, so 0.281 of it is kept: 1 / 0.3711."""
    scaling = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_n_ctx_orig": 8192, "rope_beta_fast": 4.0}
    found = rotary.freq_factors(llama.Config(rope_freq_base=500000.0, **scaling), 128)
    assert found.shape == (64,)
    assert (found[:29] == 1).all()
    assert (found[35:] == 8).all()
    assert found[32] == pytest.approx(2.6945, abs=1e-4)


@pytest.mark.parametrize("kind", SCALINGS)
def test_what_is_read_bit_by_bit_has_the_logits_of_the_whole_text(kind: str, tmp_path: Path) -> None:
    gg.trace(llama.loss, llama.Config(**SIZES, **SCALINGS[kind]), batch=1, ctx=24).save(tmp_path / "graph.bin")
    ids = np.random.default_rng(0).integers(0, 31, (1, 24)).astype(np.int32)
    with Runtime(tmp_path / "graph.bin", threads=1) as runtime:
        cached, whole = CachedReader(runtime), WindowReader(runtime)
        for part in (ids[:, :13], ids[:, 13:14], ids[:, 14:]):
            np.testing.assert_allclose(cached.advance(part), whole.advance(part), atol=2e-5)


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaling_changes_what_a_model_says(kind: str, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 31, (1, 24)).astype(np.int32)
    logits = []
    for fields in ({}, SCALINGS[kind]):
        gg.trace(llama.loss, llama.Config(**SIZES, **fields), batch=1, ctx=24).save(tmp_path / "graph.bin")
        with Runtime(tmp_path / "graph.bin", threads=1) as runtime:
            for name in runtime.params:
                runtime.set(name, 10 * runtime.get(name))
            logits.append(runtime.forward("logits", tokens=ids)[0].copy())
    assert np.abs(logits[0] - logits[1]).max() > 0.1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rope_scaling": "dynamic"}, "known are linear, yarn, llama3"),
        ({"rope_scaling": "linear", "rope_factor": 0.5}, "rope_factor is 0.5"),
        ({"rope_scaling": "yarn", "rope_factor": 4.0}, "needs rope_n_ctx_orig"),
        ({"rope_scaling": "llama3", **RAMP, "rope_beta_slow": 4.0}, "rope_beta_slow < rope_beta_fast"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        gg.trace(llama.loss, llama.Config(**SIZES, **fields), ctx=8)
