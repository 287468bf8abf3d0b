/* soft_max.h - the steps of a softmax over one dense row. Used by rows.c and flash_attention.c. */
#ifndef GG_SOFT_MAX_H
#define GG_SOFT_MAX_H

#include "simd_math.h"

/* The first n < GG_LANES elements, and `fill` in the other lanes: one that leaves a reduction as it is. */
static inline gg_vec gg_load_or(const float *p, int64_t n, gg_vec fill)
{
    memcpy(&fill, p, (size_t)n * sizeof(float));
    return fill;
}

static inline float gg_row_max(const float *a, int64_t n)
{
    gg_vec  lowest = gg_splat(-INFINITY), max = lowest;
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) max = gg_max(max, gg_load(a + i));
    if (i < n) max = gg_max(max, gg_load_or(a + i, n - i, lowest));
    return gg_hmax(max);
}

/* y = exp(y - max); returns the sum. A row that is all -inf becomes NaN, as -inf - -inf is. */
static inline float gg_exp_row(float *y, float max, int64_t n)
{
    gg_vec  sum = {0};
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) {
        gg_vec e = gg_exp(gg_load(y + i) - max);
        gg_store(y + i, e);
        sum += e;
    }
    if (i < n) {
        gg_vec e = gg_exp(gg_load_or(y + i, n - i, gg_splat(-INFINITY)) - max);
        gg_store_n(y + i, e, n - i);
        sum += e;
    }
    return gg_hsum(sum);
}

#endif
