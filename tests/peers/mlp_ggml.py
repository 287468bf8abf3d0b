"""An MLP written by hand with ggml-python's own API and exported by ggml, as its users do; nothing of ours is imported.

    python mlp_ggml.py TARGET        wants ggml-python 0.0.37; tests/data/mlp_v1.ggml is what it wrote

probs = soft_max(w2 . relu(w1 . x + b1) + b2) for a batch of 20 points of the plane in 3 classes.
"""

from __future__ import annotations

import ctypes
import sys

import ggml
import numpy as np

BATCH, N_IN, N_HIDDEN, N_CLASSES = 20, 2, 32, 3


def main(target: str) -> None:
    ctx = ggml.ggml_init(ggml.ggml_init_params(mem_size=16 << 20, mem_buffer=None))
    rng = np.random.default_rng(7)

    def tensor(name: bytes, *ne: int, scale: float = 0.0) -> ctypes.c_void_p:
        t = (ggml.ggml_new_tensor_1d if len(ne) == 1 else ggml.ggml_new_tensor_2d)(ctx, ggml.GGML_TYPE_F32, *ne)
        ggml.ggml_set_name(t, name)
        values = (scale * rng.standard_normal(int(np.prod(ne)))).astype(np.float32)
        ctypes.memmove(ggml.ggml_get_data(t), values.ctypes.data, values.nbytes)
        return t

    def named(t: ctypes.c_void_p, name: bytes) -> ctypes.c_void_p:
        ggml.ggml_set_name(t, name)
        return t

    x = tensor(b"x", N_IN, BATCH)
    w1, b1 = tensor(b"w1", N_IN, N_HIDDEN, scale=1.0), tensor(b"b1", N_HIDDEN)
    w2, b2 = tensor(b"w2", N_HIDDEN, N_CLASSES, scale=0.2), tensor(b"b2", N_CLASSES)
    hidden = ggml.ggml_relu(ctx, ggml.ggml_add(ctx, ggml.ggml_mul_mat(ctx, w1, x), b1))
    logits = named(ggml.ggml_add(ctx, ggml.ggml_mul_mat(ctx, w2, hidden), b2), b"logits")
    probs = named(ggml.ggml_soft_max(ctx, logits), b"probs")
    graph = ggml.ggml_new_graph(ctx)
    ggml.ggml_build_forward_expand(graph, probs)
    ggml.ggml_graph_export(graph, target.encode())
    ggml.ggml_free(ctx)


if __name__ == "__main__":
    main(sys.argv[1])
