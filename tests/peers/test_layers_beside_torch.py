"""What the page of spellings calls the same as torch's function gives the same values."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spellings
from spellings import LAYERS, Layer

import ggmlgraph as gg

torch = pytest.importorskip("torch")


def test_layers_are_torchs_in_value_and_shape(tmp_path: Path, check_each: Callable[..., None]) -> None:
    def check(layer: Layer) -> None:
        rng = np.random.default_rng(zlib.crc32(layer.ours.encode()))
        arrays: dict[str, Any] = {name: spellings._values(rng, name, shape) for name, shape in layer.shapes.items()}

        def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor) -> Any:
            given = {name: gg.constant(array) for name, array in arrays.items()}
            y = eval(layer.ours, {"gg": gg, "np": np}, given)
            return p("none", 1) * 1.0, {"y": y if y.dtype == "i64" else y.reshape(*y.shape)}

        gg.trace(loss, batch=1, ctx=1).save(tmp_path / "g.bin")
        with gg.Runtime(tmp_path / "g.bin", threads=1, dialect="v2") as rt:
            (ours,) = rt.forward("y")
        names = {"F": torch.nn.functional, "torch": torch}
        theirs = eval(layer.torchs, names, {name: torch.from_numpy(array) for name, array in arrays.items()}).numpy()
        assert ours.shape == (theirs.shape or (1,))
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-5, atol=1e-5)

    check_each([layer for layer in LAYERS if layer.torchs], check)
