/* soft_max.h - a softmax over one dense row, and its steps. Used by rows.c, flash_attention.c and cross_entropy.c. */
#ifndef GG_SOFT_MAX_H
#define GG_SOFT_MAX_H

#include "reduce.h"
#include "simd_math.h"

/* The first n < GG_LANES elements, and `fill` in the other lanes: one that leaves a reduction as it is. */
static inline gg_vec gg_load_or(const float *p, int64_t n, gg_vec fill)
{
    memcpy(&fill, p, (size_t)n * sizeof(float));
    return fill;
}

static inline float gg_row_max(const float *row, int64_t n)
{
    enum { N_CHAINS = 4, STRIDE = N_CHAINS * GG_LANES };
    const gg_vec lowest = gg_splat(-INFINITY);
    gg_vec  max[N_CHAINS] = {lowest, lowest, lowest, lowest};
    int64_t i = 0;
    for (; i + STRIDE <= n; i += STRIDE)
        for (int c = 0; c < N_CHAINS; c++) max[c] = gg_max(gg_load(row + i + c * GG_LANES), max[c]);
    for (; i + GG_LANES <= n; i += GG_LANES) max[0] = gg_max(gg_load(row + i), max[0]);
    if (i < n) max[0] = gg_max(gg_load_or(row + i, n - i, lowest), max[0]);
    return gg_hmax(gg_max(gg_max(max[0], max[1]), gg_max(max[2], max[3])));
}

/* What terms add up to, as floats or, `wide`, as doubles. */
typedef struct gg_exp_total {
    gg_vec        narrow;
    gg_double_vec wide[2];
} gg_exp_total;

GG_INLINE void gg_add_terms(gg_exp_total *total, gg_vec terms, bool wide)
{
    gg_half_vec half[2];
    memcpy(half, &terms, sizeof terms);
    if (!wide) total->narrow += terms;
    for (int h = 0; wide && h < 2; h++) total->wide[h] += __builtin_convertvector(half[h], gg_double_vec);
}

/* Sum of exp(row - max); the terms are left in out, which may be row itself or NULL. Of a row that is all -inf they are
 * NaN, as -inf - -inf is. */
GG_INLINE double gg_exp_row(const float *row, float max, int64_t n, float *out, bool wide)
{
    gg_exp_total total = {0};
    int64_t      i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) {
        gg_vec e = gg_exp(gg_load(row + i) - max);
        if (out) gg_store(out + i, e);
        gg_add_terms(&total, e, wide);
    }
    if (i < n) {
        gg_vec e = gg_exp(gg_load_or(row + i, n - i, gg_splat(-INFINITY)) - max);
        if (out) gg_store_n(out + i, e, n - i);
        gg_add_terms(&total, e, wide);
    }
    if (!wide) return gg_hsum(total.narrow);
    double sum = 0;
    for (int k = 0; k < GG_HALF_LANES; k++) sum += total.wide[0][k] + total.wide[1][k];
    return sum;
}

static inline void gg_scale_row(float *row, float s, int64_t n)
{
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(row + i, gg_load(row + i) * s);
    if (i < n) gg_store_n(row + i, gg_load_n(row + i, n - i) * s, n - i);
}

static inline void gg_soft_max_row(float *row, int64_t n)
{
    float sum = (float)gg_exp_row(row, gg_row_max(row, n), n, row, false);
    gg_scale_row(row, 1.0f / sum, n);
}

#endif
