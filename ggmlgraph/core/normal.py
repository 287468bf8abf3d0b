"""Normal numbers out of random bits, the same bytes everywhere: runtime/kernels/normal.c. Used by the initialisers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core.boundary import call, ffi, lib


def fill(values: NDArray[np.float32], bits: NDArray[Any], mean: float, std: float) -> None:
    """Set `values` to mean + std * normal, of as many random 64-bit words (an even number, one more at need)."""
    words, out = ffi.from_buffer("uint64_t[]", bits), ffi.from_buffer("float[]", values)
    call(lib.gg_normals, values.size, words, mean, std, out)
