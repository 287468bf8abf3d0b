/* rows.c - kernels that reduce along rows: normalisations, soft_max, sums and the causal mask.
 *
 * Rows are shared out whole, so no reduction is split between threads; the sum of a whole tensor is made of partial
 * sums over chunks of fixed size. A source's rows are contiguous and may lie anywhere; y is dense and may lie in the
 * memory of the first source: an element is read before it is written.
 */
#include "../src/blocks.h"
#include "alibi.h"
#include "gg_ops.h"
#include "reduce.h"
#include "rows.h"
#include "soft_max.h"

/* sum over i of term(a[i], b[i], c), in two chains; term is 0 where a is `a_fill` and b is 0. */
typedef gg_vec row_term(gg_vec a, gg_vec b, gg_vec c);

GG_INLINE float row_sum(row_term *term, const float *a, const float *b, gg_vec c,
                                                           gg_vec a_fill, int64_t n)
{
    gg_vec  even = {0}, odd = {0};
    int64_t i = 0;
    for (; i + 2 * GG_LANES <= n; i += 2 * GG_LANES) {
        even += term(gg_load(a + i), gg_load(b + i), c);
        odd += term(gg_load(a + i + GG_LANES), gg_load(b + i + GG_LANES), c);
    }
    for (; i + GG_LANES <= n; i += GG_LANES) even += term(gg_load(a + i), gg_load(b + i), c);
    if (i < n) odd += term(gg_load_or(a + i, n - i, a_fill), gg_load_n(b + i, n - i), c);
    return gg_hsum(even + odd);
}

static inline gg_vec square_term(gg_vec a, gg_vec b, gg_vec c)
{
    (void)b;
    return (a - c) * (a - c);
}

static inline gg_vec product_term(gg_vec a, gg_vec b, gg_vec c) { return (a - c) * b; }

/* sum of (a - mean)^2 */
static float sum_squares(const float *a, float mean, int64_t n)
{
    return row_sum(square_term, a, a, gg_splat(mean), gg_splat(mean), n);
}

/* sum of (a - mean) * b */
static float sum_products(const float *a, const float *b, float mean, int64_t n)
{
    return row_sum(product_term, a, b, gg_splat(mean), gg_splat(mean), n);
}

/* ---- norm, rms_norm: the second is the first with a mean of zero ---- */

/* A row a is normalised to (a - mean - rest) * inv_std. The mean is in two parts, or its rounding would be all that
 * is left of a row whose elements are nearly equal. */
typedef struct moments {
    float mean, rest, inv_std;
} moments;

static moments moments_of(const float *a, int64_t n, float eps, bool centred)
{
    double exact = centred ? gg_sum(a, n) / (double)n : 0.0;
    float  mean = (float)exact, variance = sum_squares(a, mean, n) / (float)n;
    return (moments){mean, (float)(exact - mean), 1.0f / sqrtf(variance + eps)};
}

/* GG_INDEPENDENT before the loops over a row: y may be the source itself, but never a shifted part of it. */
static void normalise(float *y, const float *a, const float *gain, const float *bias, moments m, int64_t n)
{
    if (gain == NULL) {
        GG_INDEPENDENT
        for (int64_t i = 0; i < n; i++) y[i] = (a[i] - m.mean - m.rest) * m.inv_std;
    } else if (bias == NULL) {
        GG_INDEPENDENT
        for (int64_t i = 0; i < n; i++) y[i] = (a[i] - m.mean - m.rest) * m.inv_std * gain[i];
    } else {
        GG_INDEPENDENT
        for (int64_t i = 0; i < n; i++) y[i] = (a[i] - m.mean - m.rest) * m.inv_std * gain[i] + bias[i];
    }
}

/* y, a, optional gain and bias */
static void norm_rows(const gg_task *task, bool centred)
{
    int64_t      begin, end, n = task->y->ne[0];
    float        eps = gg_param_f32(task->y, 0);
    const float *gain = (const float *)task->src_data[1], *bias = (const float *)task->src_data[2];
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float *a = gg_source_row(task, 0, r);
        normalise(gg_y_row(task, r), a, gain, bias, moments_of(a, n, eps, centred), n);
    }
}

/* With x the normalised row: inv_std * (g - mean(g) - x * mean(g * x)); rms_norm has no mean(g). */
static void norm_back_row(float *y, const float *g, const float *a, moments m, int64_t n, bool centred)
{
    float   g_mean = centred ? (float)(gg_sum(g, n) / (double)n) : 0.0f;
    float   along = (sum_products(a, g, m.mean, n) / (float)n - m.rest * g_mean) * m.inv_std * m.inv_std;
    GG_INDEPENDENT
    for (int64_t i = 0; i < n; i++) y[i] = m.inv_std * ((g[i] - g_mean) - (a[i] - m.mean - m.rest) * along);
}

/* y; sources g and a, whose numbers are given */
static void norm_back_rows(const gg_task *task, int g, int a, bool centred)
{
    int64_t begin, end;
    float   eps = gg_param_f32(task->y, 0);
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        moments m = moments_of(gg_source_row(task, a, r), task->y->ne[0], eps, centred);
        norm_back_row(gg_y_row(task, r), gg_source_row(task, g, r), gg_source_row(task, a, r), m, task->y->ne[0], centred);
    }
}

/* What rows [r, end) add to the cotangents of gain and bias, and in passing that of a. */
static void gain_back_rows(const gg_task *task, int64_t r, int64_t end, float *restrict dgain, float *restrict dbias,
                           float *restrict scaled, bool centred)
{
    int64_t      n = task->y->ne[0];
    const float *gain = (const float *)task->src_data[2];
    memset(dgain, 0, (size_t)n * sizeof(float));
    memset(dbias, 0, (size_t)n * sizeof(float));
    for (; r < end; r++) {
        const float *g = gg_source_row(task, 0, r), *a = gg_source_row(task, 1, r);
        moments      m = moments_of(a, n, gg_param_f32(task->y, 0), centred);
        for (int64_t i = 0; i < n; i++) {
            dgain[i] += g[i] * ((a[i] - m.mean - m.rest) * m.inv_std);
            dbias[i] += g[i];
            scaled[i] = g[i] * gain[i];
        }
        norm_back_row(gg_y_row(task, r), scaled, a, m, n, centred);
    }
}

/* The sum of n_chunks rows that lie two rows apart, columns shared out. */
static void add_chunks(const gg_task *task, float *y, const float *partial, int64_t n_chunks)
{
    int64_t begin, end, n = task->y->ne[0];
    gg_share(task, n, 16, &begin, &end);
    memcpy(y + begin, partial + begin, (size_t)(end - begin) * sizeof(float));
    for (int64_t c = 1; c < n_chunks; c++)
        for (int64_t i = begin; i < end; i++) y[i] += partial[2 * c * n + i];
}

/* y; sources g, a, gain, dgain and optional dbias. Chunks of rows are shared out. */
static void norm_gain_back(const gg_task *task, bool centred)
{
    int64_t begin, end, n = task->y->ne[0], n_rows = gg_nrows(task->y), n_chunks = gg_gain_chunks(n_rows);
    float  *partial = (float *)task->work, *scaled = partial + (2 * n_chunks + task->ith) * n;
    gg_share(task, n_chunks, 1, &begin, &end);
    for (int64_t c = begin; c < end; c++)
        gain_back_rows(task, c * GG_GAIN_ROWS, gg_min_i64(n_rows, (c + 1) * GG_GAIN_ROWS), partial + 2 * c * n,
                       partial + (2 * c + 1) * n, scaled, centred);
    gg_barrier(task);
    add_chunks(task, (float *)task->src_data[3], partial, n_chunks);
    if (task->src[4]) add_chunks(task, (float *)task->src_data[4], partial + n, n_chunks);
}

/* Channels are dimension 2, so a group of them is one dense run. Groups are counted through all of dimension 3. */
typedef struct group {
    int64_t first, n; /* elements */
} group;

static group group_of(const gg_tensor *a, int64_t i)
{
    int64_t n_groups = gg_param_i32(a, 0), n_pixels = a->ne[0] * a->ne[1];
    int64_t n_channels = gg_ceil_div(a->ne[2], n_groups), channel = i % n_groups * n_channels;
    int64_t n = gg_max_i64(0, gg_min_i64(n_channels, a->ne[2] - channel));
    return (group){(i / n_groups * a->ne[2] + channel) * n_pixels, n * n_pixels};
}

/* y, a */
GG_KERNEL(group_norm)
{
    int64_t begin, end;
    gg_share(task, gg_param_i32(task->y, 0) * task->y->ne[3], 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        group        m = group_of(task->y, i);
        const float *a = (const float *)task->src_data[0] + m.first;
        if (m.n) normalise((float *)task->y_data + m.first, a, NULL, NULL, moments_of(a, m.n, gg_param_f32(task->y, 1), true), m.n);
    }
}

/* y, g, a */
GG_KERNEL(group_norm_back)
{
    int64_t begin, end;
    gg_share(task, gg_param_i32(task->y, 0) * task->y->ne[3], 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        group        m = group_of(task->y, i);
        const float *g = (const float *)task->src_data[0] + m.first, *a = (const float *)task->src_data[1] + m.first;
        if (m.n)
            norm_back_row((float *)task->y_data + m.first, g, a, moments_of(a, m.n, gg_param_f32(task->y, 1), true), m.n, true);
    }
}

GG_KERNEL(norm) { norm_rows(task, true); }
GG_KERNEL(norm_back) { norm_back_rows(task, 0, 1, true); }
GG_KERNEL(norm_gain_back) { norm_gain_back(task, true); }
GG_KERNEL(rms_norm) { norm_rows(task, false); }
GG_KERNEL(rms_norm_back) { norm_back_rows(task, 1, 0, false); }
GG_KERNEL(rms_norm_gain_back) { norm_gain_back(task, false); }

/* ---- sums ---- */

/* Sum of a or of its squares, plus total[0]: partial sums by all threads, added up in order by one. */
static void sum_all(const gg_task *task, bool square)
{
    const float *a = (const float *)task->src_data[0];
    double      *partial = (double *)task->work, total = task->src[1] ? *(const float *)task->src_data[1] : 0.0;
    int64_t      begin, end, n = gg_nelements(task->src[0]), n_chunks = gg_ceil_div(n, GG_SUM_CHUNK);
    gg_share(task, n_chunks, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const float *chunk = a + i * GG_SUM_CHUNK;
        int64_t      n_terms = gg_min_i64(GG_SUM_CHUNK, n - i * GG_SUM_CHUNK);
        partial[i] = square ? gg_sum_sqr(chunk, n_terms) : gg_sum(chunk, n_terms);
    }
    gg_barrier(task);
    if (task->ith != 0) return;
    for (int64_t i = 0; i < n_chunks; i++) total += partial[i];
    *(float *)task->y_data = (float)total;
}

GG_KERNEL(sum) { sum_all(task, false); }
GG_KERNEL(sum_sqr) { sum_all(task, true); }

/* Of each row, or the mean of it. */
static void sum_rows(const gg_task *task, double factor)
{
    int64_t begin, end;
    gg_share(task, gg_nrows(task->y), 16, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        *gg_y_row(task, r) = (float)(gg_sum(gg_source_row(task, 0, r), task->src[0]->ne[0]) * factor);
}

GG_KERNEL(sum_rows) { sum_rows(task, 1); }
GG_KERNEL(mean) { sum_rows(task, 1.0 / (double)task->src[0]->ne[0]); }

/* ---- causal mask ---- */

/* DIAG_MASK_INF and DIAG_MASK_ZERO: in row i1 of a matrix, what follows column i1 + n_past is hidden. */
GG_KERNEL(diag_mask)
{
    int64_t begin, end, n = task->y->ne[0];
    float   hidden = task->y->op == GG_OP_DIAG_MASK_INF ? -INFINITY : 0.0f;
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float       *y = gg_y_row(task, r);
        const float *a = gg_source_row(task, 0, r);
        int64_t      n_seen = r % task->y->ne[1] + gg_param_i32(task->y, 0) + 1;
        n_seen = gg_max_i64(0, gg_min_i64(n_seen, n));
        if (y != a) memcpy(y, a, (size_t)n_seen * sizeof(float));
        for (int64_t i = n_seen; i < n; i++) y[i] = hidden;
    }
}

/* ---- soft_max ---- */

/* y = a * scale + mask * slope */
static void scale_row(float *y, const float *a, const float *mask, float scale, float slope, int64_t n)
{
    if (mask == NULL) {
        GG_INDEPENDENT
        for (int64_t i = 0; i < n; i++) y[i] = a[i] * scale;
    } else {
        GG_INDEPENDENT
        for (int64_t i = 0; i < n; i++) y[i] = a[i] * scale + mask[i] * slope;
    }
}

/* y, a, optional mask: its row i1 goes with row i1 of every matrix of a. */
GG_KERNEL(soft_max)
{
    int64_t begin, end, n = task->y->ne[0];
    float   scale = gg_param_f32(task->y, 0), max_bias = gg_param_f32(task->y, 1);
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float       *y = gg_y_row(task, r), slope = gg_alibi_slope(r / task->y->ne[1] % task->y->ne[2], task->y->ne[2], max_bias);
        const float *mask = task->src[1] ? gg_source_row(task, 1, r % task->y->ne[1]) : NULL;
        scale_row(y, gg_source_row(task, 0, r), mask, scale, slope, n);
        gg_soft_max_row(y, n);
    }
}

/* dst, g, y: scale * y * (g - sum(g * y)) */
GG_KERNEL(soft_max_back)
{
    int64_t begin, end, n = task->y->ne[0];
    float   scale = task->y->op == GG_OP_SOFT_MAX_BACK ? 1.0f : gg_param_f32(task->y, 0);
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float       *dst = gg_y_row(task, r);
        const float *g = gg_source_row(task, 0, r), *y = gg_source_row(task, 1, r);
        float        dot = sum_products(g, y, 0.0f, n);
        GG_INDEPENDENT
        for (int64_t i = 0; i < n; i++) dst[i] = scale * y[i] * (g[i] - dot);
    }
}
