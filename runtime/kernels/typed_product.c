/* typed_product.c - see typed_product.h. */
#include "typed_product.h"

#include "decode.h"
#include "gemv.h"

/* g with n rows of W from row `first` on, float32 and w_row apart, as its b. */
static gg_gemm slab_product(const gg_gemm *g, const float *rows, int64_t w_row, int64_t first, int64_t n,
                            bool along_rows)
{
    gg_gemm part = *g;
    if (along_rows) {
        part.b = (gg_matrix){rows, w_row, 1};
        part.a.data += first * g->a.col;
        part.n_inner = n;
        part.accumulate = g->accumulate || first > 0;
    } else {
        part.b = (gg_matrix){rows, 1, w_row};
        part.c += first;
        part.n_cols = n;
    }
    return part;
}

static void decode_rows(const gg_task *task, const gg_tensor *w, const char *data, int64_t n, float *slab)
{
    int64_t begin, end;
    gg_share(task, n, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        GG_ISA_NAME(gg_decode)(w->type, w->ne[0], data + r * w->nb[1], slab + r * w->ne[0]);
}

static void multiply(const gg_gemm *g, const gg_task *task, char *work)
{
    if (GG_ISA_NAME(gg_gemv_fits)(g)) GG_ISA_NAME(gg_gemv)(g, task);
    else GG_ISA_NAME(gg_gemm_together)(g, task, work);
}

void GG_ISA_NAME(gg_typed_product)(const gg_gemm *g, const gg_tensor *w, const char *data, bool along_rows,
                                   const gg_task *task, char *work)
{
    float *slab = (float *)(work + gg_gemm_nbytes(task->nth));
    if (w->type == GG_TYPE_F32) {
        gg_gemm whole = slab_product(g, (const float *)data, w->nb[1] / (int64_t)sizeof(float), 0, w->ne[1],
                                     along_rows);
        multiply(&whole, task, work);
        return;
    }
    for (int64_t first = 0; first < w->ne[1]; first += gg_slab_rows(w)) {
        int64_t n = gg_min_i64(gg_slab_rows(w), w->ne[1] - first);
        if (first > 0) gg_barrier(task); /* the last slab has been read */
        decode_rows(task, w, data + first * w->nb[1], n, slab);
        gg_barrier(task);
        gg_gemm part = slab_product(g, slab, w->ne[0], first, n, along_rows);
        multiply(&part, task, work);
    }
}
