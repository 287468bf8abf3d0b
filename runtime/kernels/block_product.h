/* block_product.h - the product of two small row-major blocks that lie in cache, without packing. Used by attention.c
 * and cached_attention.c.
 */
#ifndef GG_BLOCK_PRODUCT_H
#define GG_BLOCK_PRODUCT_H

#include <stdbool.h>

#include "simd.h"

#define GG_PRODUCT_INLINE static inline __attribute__((always_inline))

/* More sums than a multiply-add takes cycles, in the registers of the level. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { GG_PRODUCT_ROWS = 8, GG_PRODUCT_VECS = 2 };
#elif defined(__AVX2__)
enum { GG_PRODUCT_ROWS = 6, GG_PRODUCT_VECS = 2 };
#else
enum { GG_PRODUCT_ROWS = 4, GG_PRODUCT_VECS = 2 };
#endif
enum { GG_PRODUCT_COLS = GG_PRODUCT_VECS * GG_LANES };

/* C = A B or C += A B. Rows of B and, unless C is written in part, of C are filled up to whole vectors. */
typedef struct gg_product {
    const float *a, *b;
    float       *c;
    int64_t      a_row, a_col, b_row, c_row;
    int64_t      n_rows, n_cols, n_inner;
    bool         accumulate;
} gg_product;

GG_PRODUCT_INLINE void gg_product_store(const gg_product *p, float *at, gg_vec sum, int64_t n)
{
    if (n >= GG_LANES) gg_store(at, p->accumulate ? gg_load(at) + sum : sum);
    else gg_store_n(at, p->accumulate ? gg_load_n(at, n) + sum : sum, n);
}

/* Rows [i, i + height) of `width` vectors of columns from j on. */
GG_PRODUCT_INLINE void gg_product_tile(const gg_product *p, int64_t i, int64_t j, int height, int width)
{
    const float *a = p->a + i * p->a_row, *b = p->b + j;
    float *c = p->c + i * p->c_row + j;
    gg_vec sum[GG_PRODUCT_ROWS][GG_PRODUCT_VECS] = {0};
    for (int64_t k = 0; k < p->n_inner; k++) {
        gg_vec b_row[GG_PRODUCT_VECS];
        for (int v = 0; v < width; v++) b_row[v] = gg_load(b + v * GG_LANES);
#pragma GCC unroll 8
        for (int r = 0; r < height; r++) {
            gg_vec element = gg_splat(a[r * p->a_row]);
            for (int v = 0; v < width; v++) sum[r][v] = gg_fma(element, b_row[v], sum[r][v]);
        }
        a += p->a_col;
        b += p->b_row;
    }
#pragma GCC unroll 8
    for (int r = 0; r < height; r++)
        for (int v = 0; v < width; v++)
            gg_product_store(p, c + r * p->c_row + v * GG_LANES, sum[r][v], p->n_cols - j - v * GG_LANES);
}

/* As many tiles of this height as fit from row i on; the row after them. */
GG_PRODUCT_INLINE int64_t gg_product_tiles(const gg_product *p, int64_t i, int64_t j, int height, int width)
{
    for (; i + height <= p->n_rows; i += height) gg_product_tile(p, i, j, height, width);
    return i;
}

GG_PRODUCT_INLINE void gg_product_column(const gg_product *p, int64_t j, int width)
{
    int64_t i = gg_product_tiles(p, 0, j, GG_PRODUCT_ROWS, width);
    i = gg_product_tiles(p, i, j, 4, width);
    i = gg_product_tiles(p, i, j, 2, width);
    gg_product_tiles(p, i, j, 1, width);
}

static inline void gg_multiply(const gg_product *p)
{
    for (int64_t j = 0; j < p->n_cols; j += GG_PRODUCT_COLS)
        if (p->n_cols - j > GG_LANES) gg_product_column(p, j, GG_PRODUCT_VECS);
        else gg_product_column(p, j, 1);
}

#endif
