"""`dropout`: in the file nothing happens, and the metadata leaf says where elements are to be dropped in training.

So stock ggml computes what evaluation and generation do. A training program drops (runtime/src/dropout.c). Used by
models.
"""

from __future__ import annotations

from ggmlgraph.errors import UsageError
from ggmlgraph.graphfile.metadata import LEAST_RATE, MOST_RATE
from ggmlgraph.table import ops
from ggmlgraph.tracing.tensor import Tensor


def dropout(x: Tensor, rate: float) -> Tensor:
    """In training x / (1 - rate), or 0 with probability rate; else x (Srivastava et al. 2014). float32, any shape.

    What is dropped follows from the run's seed, the step, the micro-batch, the call and the element's place alone, so
    it is the same for any number of threads, under recomputation and after a resumption. rate 0: x itself.

    Raises UsageError unless 0 <= rate < 1.
    """
    if not isinstance(rate, int | float) or (rate != 0 and not LEAST_RATE <= rate <= MOST_RATE):
        raise UsageError(f"{x.graph.here()}: dropout: rate is {rate!r}, not a number from 0 to below 1")
    if rate == 0:
        return x
    y = ops.reshape(x.contiguous(), shape=x.shape)
    x.graph.dropouts[y.id] = float(rate)
    return y
