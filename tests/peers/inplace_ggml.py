"""A graph of results in place, built, computed and exported with ggml-python's own API; nothing of ours is imported.

python inplace_ggml.py TARGET        wants ggml-python 0.0.37; the values go beside the file, to TARGET.npz
"""

from __future__ import annotations

import ctypes
import sys

import ggml
import numpy as np


def main(target: str) -> None:
    ctx = ggml.ggml_init(ggml.ggml_init_params(mem_size=16 << 20, mem_buffer=None))
    rng = np.random.default_rng(3)

    def tensor(name: bytes, *ne: int) -> ctypes.c_void_p:
        t = (ggml.ggml_new_tensor_1d if len(ne) == 1 else ggml.ggml_new_tensor_2d)(ctx, ggml.GGML_TYPE_F32, *ne)
        values = rng.standard_normal(int(np.prod(ne))).astype(np.float32)
        ctypes.memmove(ggml.ggml_get_data(t), values.ctypes.data, values.nbytes)
        return ggml.ggml_set_name(t, name)

    def values(t: ctypes.c_void_p) -> np.ndarray:
        n = ggml.ggml_nelements(t)
        return np.ctypeslib.as_array(ctypes.cast(ggml.ggml_get_data(t), ctypes.POINTER(ctypes.c_float)), (n,)).copy()

    graph = ggml.ggml_new_graph(ctx)
    scores = ggml.ggml_mul_mat(ctx, tensor(b"k", 8, 6), tensor(b"q", 8, 6))
    ggml.ggml_set_name(scores, b"scores")
    early = ggml.ggml_set_name(ggml.ggml_sum(ctx, scores), b"early")
    ggml.ggml_build_forward_expand(graph, early)
    scaled = ggml.ggml_scale_inplace(ctx, scores, 0.35)
    masked = ggml.ggml_diag_mask_inf_inplace(ctx, scaled, 0)
    weights = ggml.ggml_soft_max_inplace(ctx, masked)
    ggml.ggml_build_forward_expand(graph, weights)
    added = ggml.ggml_add_inplace(ctx, scores, tensor(b"b", 6, 6))  # scores are the weights by now
    part = ggml.ggml_set_1d_inplace(ctx, added, tensor(b"c", 4), 40)
    late = ggml.ggml_set_name(ggml.ggml_cont(ctx, ggml.ggml_sqr_inplace(ctx, part)), b"late")
    ggml.ggml_build_forward_expand(graph, late)
    again = ggml.ggml_set_name(ggml.ggml_sum(ctx, scores), b"again")
    ggml.ggml_build_forward_expand(graph, again)
    ggml.ggml_graph_export(graph, target.encode())
    ggml.ggml_graph_compute_with_ctx(ctx, graph, 1)
    np.savez(target + ".npz", early=values(early), late=values(late), again=values(again))
    ggml.ggml_free(ctx)


if __name__ == "__main__":
    main(sys.argv[1])
