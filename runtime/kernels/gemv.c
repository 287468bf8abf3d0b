/* gemv.c - see gemv.h. A tile is a few rows of x by a few of w: an element of each is loaded once for all their products.
 */
#include "gemv.h"

enum { MOST_ROWS = 8, TILE_PRODUCTS = 8, GRAIN = GG_ALIGN / 4 }; /* floats of a cache line */

bool GG_ISA_NAME(gg_gemv_fits)(const gg_gemm *g)
{
    return g->n_rows <= MOST_ROWS && g->a.col == 1 && g->b.row == 1 && !g->accumulate;
}

GG_INLINE gg_vec operand(gg_vec v, bool bf16) { return bf16 ? gg_round_bf16(v) : v; }

/* Rows [i, i + height) of x with rows [j, j + width) of w. */
GG_INLINE void tile(const gg_gemm *g, int64_t i, int64_t j, int height, int width, bool bf16)
{
    const float *x = g->a.data + i * g->a.row, *w = g->b.data + j * g->b.col;
    gg_vec sum[TILE_PRODUCTS] = {0};
    int64_t k = 0, rest = g->n_inner % GG_LANES;
    for (; k < g->n_inner - rest; k += GG_LANES) {
        gg_vec x_part[TILE_PRODUCTS];
        for (int r = 0; r < height; r++) x_part[r] = operand(gg_load(x + r * g->a.row + k), bf16);
        for (int c = 0; c < width; c++) {
            gg_vec w_part = operand(gg_load(w + c * g->b.col + k), bf16);
            for (int r = 0; r < height; r++)
                sum[c * height + r] = gg_fma(x_part[r], w_part, sum[c * height + r]);
        }
    }
    for (int c = 0; c < width && rest > 0; c++)
        for (int r = 0; r < height; r++)
            sum[c * height + r] = gg_fma(operand(gg_load_n(x + r * g->a.row + k, rest), bf16),
                                         operand(gg_load_n(w + c * g->b.col + k, rest), bf16), sum[c * height + r]);
    for (int c = 0; c < width; c++)
        for (int r = 0; r < height; r++) g->c[(i + r) * g->c_row + j + c] = gg_hsum(sum[c * height + r]);
}

/* All rows of x with rows [j, j + width) of w. */
GG_INLINE void columns(const gg_gemm *g, int64_t j, int width, bool bf16)
{
    int64_t i = 0;
    for (; i + 2 <= g->n_rows; i += 2) tile(g, i, j, 2, width, bf16);
    if (i < g->n_rows) tile(g, i, j, 1, width, bf16);
}

/* Columns [j, end) of C. */
GG_INLINE void all_columns(const gg_gemm *g, int64_t j, int64_t end, bool bf16)
{
    for (; j + 8 <= end && g->n_rows == 1; j += 8) tile(g, 0, j, 1, 8, bf16);
    for (; j + 4 <= end; j += 4) columns(g, j, 4, bf16);
    for (; j < end; j++) columns(g, j, 1, bf16);
}

void GG_ISA_NAME(gg_gemv)(const gg_gemm *g, const gg_task *task)
{
    int64_t j, end;
    gg_share(task, g->n_cols, GRAIN, &j, &end);
    if (task->matmul_precision == GG_MATMUL_BF16) all_columns(g, j, end, true);
    else all_columns(g, j, end, false);
}
