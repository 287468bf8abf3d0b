/* work.c - what a node costs: bytes of scratch memory, by the block sizes its kernel uses, which the planner asks for
 * through the op table, and operations of its matrix product.
 */
#include "gg_ops.h"

#include "blocks.h"

int64_t gg_work_gemm(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)y;
    return gg_max_i64(gg_gemm_nbytes(n_threads) + gg_slab_nbytes(src[0]), (int64_t)n_threads * GG_GEMM_ALONE_NBYTES);
}

int64_t gg_work_mul_mat_id(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)y;
    const gg_tensor *a = src[0];
    return gg_experts_of(n_threads, gg_slab_nbytes(a), a->ne[2], gg_nelements(src[2]), a->ne[0], a->ne[1]).nbytes;
}

int64_t gg_work_mul_mat_id_back(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    return gg_experts_of(n_threads, 0, y->ne[2], gg_nelements(src[2]), y->ne[0], y->ne[1]).nbytes;
}

int64_t gg_work_flash_attn_ext(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    int k = y->op == GG_OP_FLASH_ATTN_EXT ? 1 : 5;
    return n_threads * gg_flash_nbytes(src[k]->ne[1]);
}

/* A row of indices per thread. */
int64_t gg_work_argsort(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)src;
    return y->ne[0] * (int64_t)sizeof(int32_t) * n_threads;
}

/* A counter of work items, then for each thread its blocks. */
int64_t gg_work_attention(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)src;
    return GG_ALIGN + n_threads * gg_attention_floats(y->ne[0]) * (int64_t)sizeof(float);
}

int64_t gg_work_attention_back(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)src;
    return GG_ALIGN + n_threads * gg_attention_back_floats(y->ne[0]) * (int64_t)sizeof(float);
}

int64_t gg_work_cached_attention(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)y;
    return GG_ALIGN + n_threads * gg_cached_attention_floats(src[4]) * (int64_t)sizeof(float);
}

/* A partial sum per chunk. */
int64_t gg_work_sum(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)y, (void)n_threads;
    return gg_ceil_div(gg_nelements(src[0]), GG_SUM_CHUNK) * (int64_t)sizeof(double);
}

/* Partial sums of two rows, then for each thread a row. */
int64_t gg_work_gain_back(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)src;
    return (2 * gg_gain_chunks(gg_nrows(y)) + n_threads) * y->ne[0] * (int64_t)sizeof(float);
}

/* One loss per row of logits, in double. */
int64_t gg_work_cross_entropy(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)y, (void)n_threads;
    return gg_nrows(src[0]) * (int64_t)sizeof(double);
}

/* A product's scratch, then a chunk of logits, then the losses. */
int64_t gg_work_linear_cross_entropy(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)y;
    int64_t n_rows = gg_nrows(src[1]), n_vocab = src[0]->ne[1];
    int64_t logits = gg_align(gg_logits_rows(n_rows, n_vocab) * n_vocab * 4);
    return gg_gemm_nbytes(n_threads) + gg_slab_nbytes(src[0]) + logits + n_rows * (int64_t)sizeof(double);
}

/* Two numbers a row. */
int64_t gg_work_rows(const gg_tensor *y, const gg_tensor *const *src, int n_threads)
{
    (void)src, (void)n_threads;
    return 2 * gg_nrows(y) * (int64_t)sizeof(double);
}

/* ---------------------------------------------------------------- matrix products */

double gg_node_flops(const gg_graph *g, const gg_tensor *y)
{
    const gg_tensor *a = y->n_src > 0 ? gg_at(g, y->src[0]) : NULL, *b = y->n_src > 1 ? gg_at(g, y->src[1]) : NULL;
    switch (y->op) {
    case GG_OP_MUL_MAT: return 2.0 * (double)gg_nelements(y) * (double)a->ne[0];
    case GG_OP_MUL_MAT_BACK: return 2.0 * (double)gg_nelements(a) * (double)b->ne[0];
    case GG_OP_MUL_MAT_ID:
    case GG_OP_MUL_MAT_ID_ROWS_BACK: return 2.0 * (double)gg_nelements(y) * (double)b->ne[0];
    case GG_OP_MUL_MAT_ID_BACK: return 2.0 * (double)gg_nelements(a) * (double)b->ne[0];
    case GG_OP_OUT_PROD: return 2.0 * (double)gg_nelements(y) * (double)a->ne[1];
    /* a masked score counts like any other */
    case GG_OP_ATTENTION: return 4.0 * (double)gg_nelements(y) * (double)b->ne[2];
    case GG_OP_ATTENTION_BACK: return 8.0 * (double)gg_nelements(y) * (double)b->ne[2];
    case GG_OP_LINEAR_CROSS_ENTROPY:
        return 2.0 * (double)gg_nelements(a) * (double)gg_nrows(b) * (y->src[5] < 0 ? 1 : y->src[4] < 0 ? 2 : 3);
    default: return 0;
    }
}
