/* transpose.h - a few rows of floats into as many adjacent columns, four at a time in registers. Used by gemm.c to
 * pack panels and by attention.c.
 */
#ifndef GG_TRANSPOSE_H
#define GG_TRANSPOSE_H

#include "../src/base.h"
#include "simd.h"

/* column[k] = lanes i of src[at[i] + k] for k < 4; at[i] counts the floats from src to row i. */
GG_INLINE void gg_four_columns(gg_vec column[4], const float *src, const int64_t *at)
{
    gg_vec row[4]; /* 4 x 4 blocks side by side, each to be transposed */
    for (int i = 0; i < 4; i++) row[i] = gg_load_blocks(src, at + i);
    gg_vec low01 = gg_low_floats(row[0], row[1]), high01 = gg_high_floats(row[0], row[1]);
    gg_vec low23 = gg_low_floats(row[2], row[3]), high23 = gg_high_floats(row[2], row[3]);
    column[0] = gg_low_pairs(low01, low23);
    column[1] = gg_high_pairs(low01, low23);
    column[2] = gg_low_pairs(high01, high23);
    column[3] = gg_high_pairs(high01, high23);
}

/* dst[k * width + i] = src[i * across + k] for i < n_rows <= GG_LANES and k < n. Where width is less than GG_LANES, a
 * column is stored as a whole vector and the next one corrects its end; the last one is stored exactly. */
GG_INLINE void gg_transpose(float *dst, int64_t width, const float *src,
                                                               int64_t across, int64_t n, int n_rows)
{
    gg_vec  column[4];
    int64_t at[GG_LANES], k = 0;
    for (int i = 0; i < GG_LANES; i++) at[i] = (i < n_rows ? i : n_rows - 1) * across;
    for (; k + 4 < n; k += 4) {
        gg_four_columns(column, src + k, at);
        for (int i = 0; i < 4; i++) gg_store(dst + (k + i) * width, column[i]);
    }
    if (k + 4 == n) {
        gg_four_columns(column, src + k, at);
        for (int i = 0; i < 4; i++) gg_store_n(dst + (k + i) * width, column[i], n_rows);
    } else {
        for (; k < n; k++)
            for (int i = 0; i < n_rows; i++) dst[k * width + i] = src[i * across + k];
    }
}

#endif
