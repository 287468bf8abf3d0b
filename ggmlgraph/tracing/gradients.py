"""`stop_gradient`: what the gradient passes by. Used by models."""

from __future__ import annotations

from ggmlgraph.table import ops
from ggmlgraph.tracing.tensor import Tensor


def stop_gradient(x: Tensor) -> Tensor:
    """x, taken as a constant by the gradient: torch's detach, jax.lax.stop_gradient.

    The file has a reshape to the same shape there, which stock ggml computes, and its metadata say what it stands for.
    """
    return ops.stop_gradient(x.contiguous(), shape=x.shape)
