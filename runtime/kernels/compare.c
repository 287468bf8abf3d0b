/* compare.c - kernels that compare elements: argsort, argmax and count_equal. Called by the executor. */
#include "../src/blocks.h"
#include "rows.h"
#include "simd.h"

/* Row r of the operand, as it counts rows itself. */
static const float *row_of(const gg_task *task, int64_t r)
{
    return gg_source_row_at(task, 0, gg_place_of(task->src[0]->ne, r));
}

/* ---- argsort ---- */

enum { SORT_RUN = 16 }; /* elements that are sorted by insertion, then merged */

/* Whether y comes before x; equal elements keep their order, NaN comes last. */
static inline bool comes_before(float y, float x, bool falling)
{
    return (falling ? y > x : y < x) || (x != x && y == y);
}

static void insertion_sort(int32_t *index, int64_t n, const float *a, bool falling)
{
    for (int64_t i = 1; i < n; i++) {
        int32_t moved = index[i];
        int64_t k = i;
        for (; k > 0 && comes_before(a[moved], a[index[k - 1]], falling); k--) index[k] = index[k - 1];
        index[k] = moved;
    }
}

static void merge(int32_t *to, const int32_t *from, int64_t middle, int64_t n, const float *a, bool falling)
{
    for (int64_t i = 0, left = 0, right = middle; i < n; i++) {
        bool take_right = left == middle || (right < n && comes_before(a[from[right]], a[from[left]], falling));
        to[i] = from[take_right ? right++ : left++];
    }
}

/* Bottom-up merge sort; `other` is scratch memory for n. */
static void sort_row(int32_t *index, int32_t *other, const float *a, int64_t n, bool falling)
{
    int32_t *from = index, *to = other;
    for (int64_t i = 0; i < n; i++) index[i] = (int32_t)i;
    for (int64_t i = 0; i < n; i += SORT_RUN) insertion_sort(index + i, gg_min_i64(SORT_RUN, n - i), a, falling);
    for (int64_t run = SORT_RUN; run < n; run *= 2) {
        for (int64_t i = 0; i < n; i += 2 * run)
            merge(to + i, from + i, gg_min_i64(run, n - i), gg_min_i64(2 * run, n - i), a, falling);
        int32_t *sorted = to;
        to = from;
        from = sorted;
    }
    if (from != index) memcpy(index, from, (size_t)n * sizeof *index);
}

GG_KERNEL(argsort)
{
    int64_t  begin, end, n = task->y->ne[0];
    int32_t *scratch = (int32_t *)task->work + task->ith * n;
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        sort_row((int32_t *)task->y_data + r * n, scratch, row_of(task, r), n, gg_param_i32(task->y, 0) == 1);
}

/* ---- argmax ---- */

static int32_t argmax(const float *a, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (!(a[i] < a[best])) best = i;
    return (int32_t)best;
}

GG_KERNEL(argmax)
{
    int64_t begin, end;
    gg_share(task, task->y->ne[0], 1, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        ((int32_t *)task->y_data)[r] = argmax(row_of(task, r), task->src[0]->ne[0]);
}

/* ---- count_equal ---- */

/* Counts of chunks by all threads, added up by one. */
GG_KERNEL(count_equal)
{
    const int32_t *a = (const int32_t *)task->src_data[0], *b = (const int32_t *)task->src_data[1];
    int64_t       *partial = (int64_t *)task->work, total = 0, begin, end, n = gg_nelements(task->src[0]);
    int64_t        n_chunks = gg_ceil_div(n, GG_SUM_CHUNK);
    gg_share(task, n_chunks, 1, &begin, &end);
    for (int64_t k = begin; k < end; k++) {
        partial[k] = 0;
        for (int64_t i = k * GG_SUM_CHUNK; i < gg_min_i64(n, (k + 1) * GG_SUM_CHUNK); i++) partial[k] += a[i] == b[i];
    }
    gg_barrier(task);
    if (task->ith != 0) return;
    for (int64_t k = 0; k < n_chunks; k++) total += partial[k];
    *(int64_t *)task->y_data = total;
}
