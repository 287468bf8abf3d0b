/* place.c - kernels that put the elements of one tensor into places of another: diag, pad, set, acc, upscale and what
 * belongs to them. Called by the executor; shared out by rows of the result, or of what is put into it.
 */
#include "gg_ops.h"
#include "rows.h"
#include "simd.h"

GG_KERNEL(diag)
{
    int64_t begin, end, n = task->y->ne[0];
    gg_share(task, gg_nrows(task->y), 16, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        gg_place p = gg_place_of(task->y->ne, r);
        memset(gg_y_row(task, r), 0, (size_t)n * sizeof(float));
        gg_y_row(task, r)[p.i1] = gg_source_row_at(task, 0, (gg_place){0, p.i2, p.i3})[p.i1];
    }
}

GG_KERNEL(pad)
{
    const int64_t *ne = task->src[0]->ne;
    int64_t        begin, end, n = task->y->ne[0];
    gg_share(task, gg_nrows(task->y), 16, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        gg_place p = gg_place_of(task->y->ne, r);
        int64_t  n_copied = p.i1 < ne[1] && p.i2 < ne[2] && p.i3 < ne[3] ? ne[0] : 0;
        if (n_copied) memcpy(gg_y_row(task, r), gg_source_row_at(task, 0, p), (size_t)n_copied * sizeof(float));
        memset(gg_y_row(task, r) + n_copied, 0, (size_t)(n - n_copied) * sizeof(float));
    }
}

/* ---- set, acc, clear: a, and b in a window of it ---- */

static void set_row(float *y, const float *b, int64_t n, int32_t op)
{
    for (int64_t i = 0; i < n; i++) y[i] = op == GG_OP_ACC ? y[i] + b[i] : op == GG_OP_SET ? b[i] : 0;
}

/* y, a, b; op_params: nb1, nb2, nb3, offset */
GG_KERNEL(set)
{
    const gg_tensor *y = task->y, *b = task->src[1];
    int64_t          begin, end, nbytes = gg_span(y);
    gg_share(task, nbytes, 4096, &begin, &end);
    if (task->y_data != task->src_data[0])
        memcpy(task->y_data + begin, task->src_data[0] + begin, (size_t)(end - begin));
    gg_barrier(task);
    gg_share(task, gg_nrows(b), 16, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        gg_place p = gg_place_of(b->ne, r);
        char *at = task->y_data + gg_param_i32(y, 3) + p.i1 * gg_param_i32(y, 0) + p.i2 * gg_param_i32(y, 1) +
                   p.i3 * gg_param_i32(y, 2);
        set_row((float *)at, gg_source_row_at(task, 1, p), b->ne[0], y->op);
    }
}

/* ---- upscale ---- */

/* The element of a that element i is a copy of, along a dimension that grows from n to m; ggml divides in float32. */
static int64_t copied(int64_t i, int64_t n, int64_t m)
{
    return gg_min_i64(n - 1, (int64_t)((float)i / ((float)m / (float)n)));
}

GG_KERNEL(upscale)
{
    const int64_t *from = task->src[0]->ne, *to = task->y->ne;
    int64_t        begin, end;
    gg_share(task, gg_nrows(task->y), 16, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        gg_place     p = gg_place_of(to, r);
        gg_place     q = {copied(p.i1, from[1], to[1]), copied(p.i2, from[2], to[2]), copied(p.i3, from[3], to[3])};
        const float *a = gg_source_row_at(task, 0, q);
        for (int64_t i = 0; i < to[0]; i++) gg_y_row(task, r)[i] = a[copied(i, from[0], to[0])];
    }
}

/* The first of m elements that is a copy of element i of n, or of a later one. */
static int64_t first_copy(int64_t i, int64_t n, int64_t m)
{
    int64_t k = gg_min_i64(m, i * (m / n));
    while (k > 0 && copied(k - 1, n, m) >= i) k--;
    while (k < m && copied(k, n, m) < i) k++;
    return k;
}

/* Elements [begin, end) along each dimension. */
typedef struct box {
    int64_t begin[GG_MAX_DIMS], end[GG_MAX_DIMS];
} box;

static float sum_box(const gg_task *task, const box *b)
{
    double total = 0;
    for (int64_t i3 = b->begin[3]; i3 < b->end[3]; i3++)
        for (int64_t i2 = b->begin[2]; i2 < b->end[2]; i2++)
            for (int64_t i1 = b->begin[1]; i1 < b->end[1]; i1++)
                for (int64_t i = b->begin[0]; i < b->end[0]; i++)
                    total += gg_source_row_at(task, 0, (gg_place){i1, i2, i3})[i];
    return (float)total;
}

/* y, g: each element of y is the sum of a box of g. */
GG_KERNEL(upscale_back)
{
    const int64_t *from = task->y->ne, *to = task->src[0]->ne;
    int64_t        begin, end;
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        gg_place p = gg_place_of(from, r);
        int64_t  i[GG_MAX_DIMS] = {0, p.i1, p.i2, p.i3};
        box      b;
        for (; i[0] < from[0]; i[0]++) {
            for (int d = i[0] ? 0 : GG_MAX_DIMS - 1; d >= 0; d--) {
                b.begin[d] = first_copy(i[d], from[d], to[d]);
                b.end[d] = first_copy(i[d] + 1, from[d], to[d]);
            }
            gg_y_row(task, r)[i[0]] = sum_box(task, &b);
        }
    }
}
