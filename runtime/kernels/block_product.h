/* block_product.h - the product of two small row-major blocks that lie in cache, without packing. Used by attention.c
 * and cached_attention.c.
 */
#ifndef GG_BLOCK_PRODUCT_H
#define GG_BLOCK_PRODUCT_H

#include "../src/base.h"
#include "simd.h"

/* More sums than a multiply-add takes cycles, in the registers of the level. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { GG_PRODUCT_ROWS = 8, GG_PRODUCT_VECS = 2 };
#elif defined(__AVX2__)
enum { GG_PRODUCT_ROWS = 6, GG_PRODUCT_VECS = 2 };
#else
enum { GG_PRODUCT_ROWS = 4, GG_PRODUCT_VECS = 2 };
#endif
enum {
    GG_PRODUCT_COLS = GG_PRODUCT_VECS * GG_LANES,
    GG_PRODUCT_FEW = 8, /* sums of a tile of few rows */
    GG_PRODUCT_SUMS = GG_PRODUCT_ROWS * GG_PRODUCT_VECS
};

/* C = A B or C += A B. */
typedef struct gg_product {
    const float *a, *b;
    float       *c;
    int64_t      a_row, a_col, b_row, c_row;
    int64_t      n_rows, n_cols, n_inner;
    bool         accumulate;
} gg_product;

/* Rows [i, i + height) of `width` vectors of columns from j on. A sum is made in `chains` parts, every so many products
 * apart, where the tile by itself has too few sums. */
typedef struct gg_product_tile {
    int  height, width, chains;
    bool partial; /* the columns end within the one vector */
} gg_product_tile;

GG_INLINE void gg_product_step(gg_vec *sum, const gg_product *p, const float *a, const float *b, gg_product_tile t,
                                       int64_t n_cols)
{
    gg_vec b_row[GG_PRODUCT_FEW];
#pragma GCC unroll 8
    for (int v = 0; v < t.width; v++) b_row[v] = t.partial ? gg_load_n(b, n_cols) : gg_load(b + v * GG_LANES);
#pragma GCC unroll 8
    for (int r = 0; r < t.height; r++) {
        gg_vec element = gg_splat(a[r * p->a_row]);
#pragma GCC unroll 8
        for (int v = 0; v < t.width; v++) sum[r * t.width + v] = gg_fma(element, b_row[v], sum[r * t.width + v]);
    }
}

GG_INLINE void gg_product_compute(const gg_product *p, int64_t i, int64_t j, gg_product_tile t)
{
    const float *a = p->a + i * p->a_row, *b = p->b + j;
    const int n_sums = t.height * t.width;
    int64_t n_cols = p->n_cols - j, k = 0;
    gg_vec sum[GG_PRODUCT_SUMS] = {0};
    for (; k + t.chains <= p->n_inner; k += t.chains) {
#pragma GCC unroll 8
        for (int chain = 0; chain < t.chains; chain++) {
            gg_product_step(sum + chain * n_sums, p, a, b, t, n_cols);
            a += p->a_col;
            b += p->b_row;
        }
    }
    for (; k < p->n_inner && t.chains > 1; k++) {
        gg_product_step(sum, p, a, b, t, n_cols);
        a += p->a_col;
        b += p->b_row;
    }
#pragma GCC unroll 8
    for (int at = n_sums; at < n_sums * t.chains; at++) sum[at % n_sums] += sum[at];
#pragma GCC unroll 8
    for (int r = 0; r < t.height; r++)
#pragma GCC unroll 8
        for (int v = 0; v < t.width; v++) {
            float *c = p->c + (i + r) * p->c_row + j + v * GG_LANES;
            gg_vec y = sum[r * t.width + v];
            if (t.partial) gg_store_n(c, p->accumulate ? gg_load_n(c, n_cols) + y : y, n_cols);
            else gg_store(c, p->accumulate ? gg_load(c) + y : y);
        }
}

/* As many tiles of this height as fit from row i on; the row after them. */
GG_INLINE int64_t gg_product_tiles(const gg_product *p, int64_t i, int64_t j, gg_product_tile t)
{
    for (; i + t.height <= p->n_rows; i += t.height) gg_product_compute(p, i, j, t);
    return i;
}

GG_INLINE void gg_product_column(const gg_product *p, int64_t j, int width, bool partial)
{
    int64_t i = gg_product_tiles(p, 0, j, (gg_product_tile){GG_PRODUCT_ROWS, width, 1, partial});
    i = gg_product_tiles(p, i, j, (gg_product_tile){4, width, 1, partial});
    i = gg_product_tiles(p, i, j, (gg_product_tile){2, width, 1, partial});
    gg_product_tiles(p, i, j, (gg_product_tile){1, width, 1, partial});
}

/* As many tiles of this width as fit from column j on, of rows [i, i + height); the column after them. */
GG_INLINE int64_t gg_product_along(const gg_product *p, int64_t i, int64_t j, int height, int width)
{
    const gg_product_tile t = {height, width, GG_PRODUCT_FEW / height / width, false};
    for (; j + width * GG_LANES <= p->n_cols; j += width * GG_LANES) gg_product_compute(p, i, j, t);
    return j;
}

GG_INLINE void gg_product_rows(const gg_product *p, int64_t i, int height)
{
    int64_t j = height == 1 ? gg_product_along(p, i, 0, height, 8) : 0;
    j = gg_product_along(p, i, j, height, 4);
    j = gg_product_along(p, i, j, height, 2);
    j = gg_product_along(p, i, j, height, 1);
    if (j < p->n_cols) gg_product_compute(p, i, j, (gg_product_tile){height, 1, GG_PRODUCT_FEW / height, true});
}

static inline void gg_multiply(const gg_product *p)
{
    int64_t i = 0, j = 0;
    if (p->n_rows < 4) {
        for (; i + 2 <= p->n_rows; i += 2) gg_product_rows(p, i, 2);
        if (i < p->n_rows) gg_product_rows(p, i, 1);
        return;
    }
    for (; j + GG_PRODUCT_COLS <= p->n_cols; j += GG_PRODUCT_COLS) gg_product_column(p, j, GG_PRODUCT_VECS, false);
    for (; j + GG_LANES <= p->n_cols; j += GG_LANES) gg_product_column(p, j, 1, false);
    if (j < p->n_cols) gg_product_column(p, j, 1, true);
}

#endif
