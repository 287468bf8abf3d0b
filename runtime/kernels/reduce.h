/* reduce.h - sums of a dense row in double precision, in an order that depends on its length alone.
 *
 * Used by layout.c and rows.c where a sum may have millions of terms. GG_SUM_CHAINS vectors of partial sums run side
 * by side, for an addition takes as long as several loads.
 */
#ifndef GG_REDUCE_H
#define GG_REDUCE_H

#include "../src/base.h"
#include "simd.h"

enum { GG_HALF_LANES = GG_LANES / 2, GG_SUM_CHAINS = 4, GG_SUM_STRIDE = GG_HALF_LANES * GG_SUM_CHAINS };

typedef float  gg_half_vec __attribute__((vector_size(GG_HALF_LANES * 4)));
typedef double gg_double_vec __attribute__((vector_size(GG_HALF_LANES * 8)));

/* Sum of x, or of x^2, over n floats. */
GG_INLINE double gg_sum_terms(const float *x, int64_t n, bool square)
{
    gg_double_vec sums[GG_SUM_CHAINS] = {0};
    int64_t       i = 0;
    for (; i + GG_SUM_STRIDE <= n; i += GG_SUM_STRIDE) {
        for (int k = 0; k < GG_SUM_CHAINS; k++) {
            gg_half_vec half;
            memcpy(&half, x + i + k * GG_HALF_LANES, sizeof half);
            gg_double_vec term = __builtin_convertvector(half, gg_double_vec);
            sums[k] += square ? term * term : term;
        }
    }
    gg_double_vec lanes = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double        total = 0;
    for (int k = 0; k < GG_HALF_LANES; k++) total += lanes[k];
    for (; i < n; i++) total += square ? (double)x[i] * x[i] : x[i];
    return total;
}

static inline double gg_sum(const float *x, int64_t n) { return gg_sum_terms(x, n, false); }
static inline double gg_sum_sqr(const float *x, int64_t n) { return gg_sum_terms(x, n, true); }

#endif
