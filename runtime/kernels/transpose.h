/* transpose.h - a few rows of floats into as many adjacent columns, 4 x 4 at a time in registers. Used by gemm.c to
 * pack panels and by attention.c.
 */
#ifndef GG_TRANSPOSE_H
#define GG_TRANSPOSE_H

#include <stdint.h>
#include <string.h>

typedef float gg_vec4 __attribute__((vector_size(16)));

static inline gg_vec4 gg_load4(const float *p)
{
    gg_vec4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* dst[k * width + i] = src[i * across + k] for i < n_keep (2 or 4) and k < n. */
static inline __attribute__((always_inline)) void gg_transpose(float *dst, int64_t width, const float *src,
                                                               int64_t across, int64_t n, int n_keep)
{
    const float *row0 = src, *row1 = src + across;
    const float *row2 = n_keep == 4 ? row1 + across : row0, *row3 = n_keep == 4 ? row2 + across : row0;
    int64_t k = 0;
    for (; k + 4 <= n; k += 4) {
        gg_vec4 r0 = gg_load4(row0 + k), r1 = gg_load4(row1 + k), r2 = gg_load4(row2 + k), r3 = gg_load4(row3 + k);
        gg_vec4 lo01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), hi01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
        gg_vec4 lo23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5), hi23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
        gg_vec4 out[4] = {
            __builtin_shufflevector(lo01, lo23, 0, 1, 4, 5), __builtin_shufflevector(lo01, lo23, 2, 3, 6, 7),
            __builtin_shufflevector(hi01, hi23, 0, 1, 4, 5), __builtin_shufflevector(hi01, hi23, 2, 3, 6, 7)};
        for (int i = 0; i < 4; i++) memcpy(dst + (k + i) * width, &out[i], (size_t)n_keep * sizeof(float));
    }
    for (; k < n; k++)
        for (int i = 0; i < n_keep; i++) dst[k * width + i] = src[i * across + k];
}

#endif
