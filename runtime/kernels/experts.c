/* experts.c - mul_mat_id and its cotangents: products with matrices that ids choose. Called by the executor.
 *
 * Rows are copied to scratch memory in the order of their matrix, so that each matrix is one product of gemm.c with
 * all the rows that chose it; what an element sums does not depend on the rows beside it.
 */
#include "rows.h"
#include "typed_product.h"

/* Scratch memory of a task, as gg_experts_of lays it out. */
typedef struct experts {
    int64_t *begin;     /* rows [begin[e], begin[e + 1]) of `order` chose matrix e */
    int64_t *order;     /* ids in the order of their matrix */
    float   *in, *out;  /* rows in that order */
} experts;

static experts experts_of(const gg_task *task, int64_t slab_nbytes, int64_t n_experts, const gg_tensor *ids,
                          int64_t n_in, int64_t n_out)
{
    gg_experts at = gg_experts_of(task->nth, slab_nbytes, n_experts, gg_nelements(ids), n_in, n_out);
    return (experts){(int64_t *)(task->work + at.begin), (int64_t *)(task->work + at.order),
                     (float *)(task->work + at.in), (float *)(task->work + at.out)};
}

/* Counting sort by matrix. Ids out of range are reported and left out. */
static void sort_ids(const gg_task *task, const experts *x, int64_t n_experts, const int32_t *ids, int64_t n_ids)
{
    memset(x->begin, 0, (size_t)(n_experts + 1) * sizeof *x->begin);
    for (int64_t i = 0; i < n_ids; i++) {
        if (ids[i] >= 0 && ids[i] < n_experts) x->begin[ids[i] + 1]++;
        else gg_fault(task, ids[i], n_experts);
    }
    for (int64_t e = 0; e < n_experts; e++) x->begin[e + 1] += x->begin[e];
    for (int64_t i = 0; i < n_ids; i++)
        if (ids[i] >= 0 && ids[i] < n_experts) x->order[x->begin[ids[i]]++] = i;
    for (int64_t e = n_experts; e > 0; e--) x->begin[e] = x->begin[e - 1];
    x->begin[0] = 0;
}

/* Row u of token t of a source; where the source has one row for several u, that one. */
static const float *row_of(const gg_task *task, int source, int64_t u, int64_t t)
{
    return gg_source_row_at(task, source, (gg_place){u % task->src[source]->ne[1], t, 0});
}

/* Copy this thread's share of a source's rows, in the order of their matrices. */
static void gather(const gg_task *task, const experts *x, int64_t n_experts, int source, int64_t n_used, float *to)
{
    int64_t begin, end, n = task->src[source]->ne[0];
    gg_share(task, x->begin[n_experts], 1, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memcpy(to + i * n, row_of(task, source, x->order[i] % n_used, x->order[i] / n_used), (size_t)n * sizeof(float));
}

/* y[u, t] = b[u, t] times the transpose of matrix ids[u, t] of a, or with `along_rows` times the matrix itself.
 * a [k, m, n_expert], b [k or m, n_used or a divisor, n], ids [n_used, n] */
static void multiply_chosen(const gg_task *task, bool along_rows)
{
    const gg_tensor *y = task->y, *a = task->src[0], *ids = task->src[2];
    int64_t          n_in = task->src[1]->ne[0], n_out = y->ne[0], begin, end;
    experts          x = experts_of(task, gg_slab_nbytes(a), a->ne[2], ids, n_in, n_out);
    if (task->ith == 0) sort_ids(task, &x, a->ne[2], (const int32_t *)task->src_data[2], gg_nelements(ids));
    gg_barrier(task);
    gather(task, &x, a->ne[2], 1, ids->ne[0], x.in);
    for (int64_t e = 0; e < a->ne[2]; e++) {
        int64_t first = x.begin[e], n_rows = x.begin[e + 1] - first;
        if (n_rows == 0) continue;
        gg_gemm g = {.n_rows = n_rows, .n_cols = n_out, .n_inner = n_in, .a = {x.in + first * n_in, n_in, 1},
                     .c = x.out + first * n_out, .c_row = n_out};
        gg_barrier(task); /* rows are there, or the last product's scratch is free */
        GG_ISA_NAME(gg_typed_product)(&g, a, task->src_data[0] + e * a->nb[2], along_rows, task, task->work);
    }
    gg_barrier(task);
    gg_share(task, x.begin[a->ne[2]], 1, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memcpy((float *)task->y_data + x.order[i] * n_out, x.out + i * n_out, (size_t)n_out * sizeof(float));
}

GG_KERNEL(mul_mat_id) { multiply_chosen(task, false); }
GG_KERNEL(mul_mat_id_rows_back) { multiply_chosen(task, true); }

/* y [k, m, n_expert], g [m, n_used, n], b, ids: y[e] = sum of g[u, t] b[u, t]^T where ids[u, t] is e */
GG_KERNEL(mul_mat_id_back)
{
    const gg_tensor *y = task->y, *ids = task->src[2];
    int64_t          n_in = y->ne[0], n_out = y->ne[1], begin, end;
    experts          x = experts_of(task, 0, y->ne[2], ids, n_in, n_out);
    if (task->ith == 0) sort_ids(task, &x, y->ne[2], (const int32_t *)task->src_data[2], gg_nelements(ids));
    gg_barrier(task);
    gather(task, &x, y->ne[2], 1, ids->ne[0], x.in);
    gather(task, &x, y->ne[2], 0, ids->ne[0], x.out);
    for (int64_t e = 0; e < y->ne[2]; e++) {
        int64_t first = x.begin[e], n_rows = x.begin[e + 1] - first;
        float  *c = (float *)task->y_data + e * n_in * n_out;
        if (n_rows == 0) {
            gg_share(task, n_in * n_out, 1024, &begin, &end);
            memset(c + begin, 0, (size_t)(end - begin) * sizeof(float));
            continue;
        }
        gg_gemm g = {.n_rows = n_out, .n_cols = n_in, .n_inner = n_rows,
                     .a = {x.out + first * n_out, 1, n_out}, .b = {x.in + first * n_in, n_in, 1},
                     .c = c, .c_row = n_in};
        gg_barrier(task);
        GG_ISA_NAME(gg_gemm_together)(&g, task, task->work);
    }
}
