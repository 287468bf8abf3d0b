/* gemm.c - the matrix product, after Goto & van de Geijn 2008 and BLIS: blocks of A and B are packed into panels that
 * a register-blocked tile reads in order. Called by products.c and cross_entropy.c.
 *
 * A panel is a tile's height of A (or width of B) by the block's inner size, inner index slowest; panels at the
 * matrix's edge are filled up with zeros. Strides matter to packing alone, so one tile serves every transposition, and
 * so does precision: a product in bf16 differs in what panels hold. Where C is narrow and A's rows lie without gaps, a
 * product of floats reads A where it is.
 * Threads pack shared blocks together and then take tiles, each first of the rows it packed, which its own cache holds,
 * then of what others have left: the tiles are independent, so it does not matter which thread computes one, and a slow
 * core takes fewer.
 */
#include "gemm.h"

#include <stdatomic.h>

#include "transpose.h"

/* As many sums as registers hold beside a row of B and one element of A. */
#if defined(__AVX512F__)
enum { TILE_ROWS = 14, TILE_VECS = 2 };
#elif defined(__AVX2__)
enum { TILE_ROWS = 6, TILE_VECS = 2 };
#elif defined(__aarch64__)
enum { TILE_ROWS = 8, TILE_VECS = 2 };
#else
enum { TILE_ROWS = 4, TILE_VECS = 2 };
#endif
enum { TILE_COLS = TILE_VECS * GG_LANES };
enum { DIRECT_COLS = 256 }; /* of C; with fewer, an element of A is read too few times to be worth packing */

_Static_assert(GG_GEMM_BAND % TILE_ROWS == 0 && GG_GEMM_ROWS % TILE_ROWS == 0 && GG_GEMM_ALONE_ROWS % TILE_ROWS == 0,
               "blocks hold whole tiles");
_Static_assert(GG_GEMM_COLS % TILE_COLS == 0 && GG_GEMM_ALONE_COLS % TILE_COLS == 0, "blocks hold whole tiles");

_Static_assert((int)TILE_ROWS <= (int)TILE_COLS, "a chunk holds panels of A and of B");

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Blocks of about equal size, at most `most`, in multiples of `unit`. */
static int64_t block_size(int64_t n, int64_t most, int64_t unit)
{
    return ceil_div(ceil_div(n, ceil_div(n, most)), unit) * unit;
}

/* ---------------------------------------------------------------- packing */

/* What a panel holds: floats; floats rounded to bfloat16; or, where the level multiplies these, words of two of them,
 * of inner indices 2 k and 2 k + 1. */
typedef enum format { FLOATS, ROUNDED, PAIRS } format;

#if defined(__AVX512BF16__)
static const format bf16_format = PAIRS;
#else
static const format bf16_format = ROUNDED;
#endif

/* Words that n_inner elements take. */
static int64_t depth_of(format f, int64_t n_inner) { return f == PAIRS ? ceil_div(n_inner, 2) : n_inner; }

/* An operand's block on its way into panels: its strides over a panel's width and over the inner index. */
typedef struct source {
    const float *data;
    int64_t      across, along, n_across, n_inner;
} source;

/* One panel of floats. */
ALWAYS_INLINE void pack_floats(float *restrict dst, int width, const source *s)
{
    const float *src = s->data;
    if (s->n_across == width && s->across == 1) {
        for (int64_t k = 0; k < s->n_inner; k++)
            memcpy(dst + k * width, src + k * s->along, (size_t)width * sizeof(float));
    } else if (s->n_across == width && s->along == 1) {
        int i = 0;
        for (; i + GG_LANES <= width; i += GG_LANES)
            gg_transpose(dst + i, width, src + i * s->across, s->across, s->n_inner, GG_LANES);
        if (i < width) gg_transpose(dst + i, width, src + i * s->across, s->across, s->n_inner, width - i);
    } else {
        if (s->n_across < width) memset(dst, 0, (size_t)(width * s->n_inner) * sizeof(float));
        for (int64_t k = 0; k < s->n_inner; k++)
            for (int64_t i = 0; i < s->n_across; i++) dst[k * width + i] = src[i * s->across + k * s->along];
    }
}

static void round_floats(float *restrict dst, const float *restrict src, int64_t n)
{
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(dst + i, gg_round_bf16(gg_load(src + i)));
    if (i < n) gg_store_n(dst + i, gg_round_bf16(gg_load_n(src + i, n - i)), n - i);
}

/* Two vectors, rounded: the first in the lower halves, the second in the upper. */
ALWAYS_INLINE gg_vec pair_up(gg_vec first, gg_vec second)
{
    return (gg_vec)((gg_uvec)gg_round_bf16(first) >> 16 | (gg_uvec)gg_round_bf16(second));
}

/* n_pairs pairs of rows of `width` floats. */
ALWAYS_INLINE void pair_rows(float *restrict dst, const float *restrict src, int width, int64_t n_pairs)
{
    for (int64_t k = 0; k < n_pairs; k++, dst += width, src += 2 * width) {
        int i = 0;
        for (; i + GG_LANES <= width; i += GG_LANES)
            gg_store(dst + i, pair_up(gg_load(src + i), gg_load(src + width + i)));
        if (i < width)
            gg_store_n(dst + i, pair_up(gg_load_n(src + i, width - i), gg_load_n(src + width + i, width - i)),
                       width - i);
    }
}

/* One panel of bfloat16, by way of floats that stay in L1. */
ALWAYS_INLINE void pack_bf16(float *restrict dst, int width, const source *s)
{
    enum { CHUNK = 16 };
    _Alignas(GG_ALIGN) float floats[CHUNK * TILE_COLS];
    for (int64_t k = 0; k < s->n_inner; k += CHUNK) {
        source chunk = *s;
        chunk.data += k * s->along;
        chunk.n_inner = gg_min_i64(CHUNK, s->n_inner - k);
        pack_floats(floats, width, &chunk);
        if (bf16_format == PAIRS) {
            if (chunk.n_inner % 2) memset(floats + chunk.n_inner * width, 0, (size_t)width * sizeof(float));
            pair_rows(dst + k / 2 * width, floats, width, ceil_div(chunk.n_inner, 2));
        } else {
            round_floats(dst + k * width, floats, chunk.n_inner * width);
        }
    }
}

/* Columns [k, k + n) of panel `panel` of the block, to their place in dst. */
ALWAYS_INLINE void pack_piece(float *restrict dst, int width, const source *s, int64_t panel, int64_t k, int64_t n,
                              format f)
{
    int64_t first = panel * width;
    source piece = {s->data + first * s->across + k * s->along, s->across, s->along,
                    gg_min_i64(width, s->n_across - first), n};
    dst += first * depth_of(f, s->n_inner) + depth_of(f, k) * width;
    if (f == FLOATS) pack_floats(dst, width, &piece);
    else pack_bf16(dst, width, &piece);
}

/* ---------------------------------------------------------------- tiles */

/* One product of blocks. */
typedef struct block {
    const float *a, *b; /* packed; a as it lies in memory where a_row is not 0, its rows then that far apart */
    int64_t      a_row;
    float       *c;
    int64_t      c_row, n_rows, n_cols;
    int64_t      depth; /* words that a sum takes from a panel */
    format       format;
    bool         accumulate;
} block;

ALWAYS_INLINE gg_vec add_product(const float *a, gg_vec b, gg_vec sum, format f)
{
#if defined(__AVX512BF16__)
    if (f == PAIRS) return gg_dot_bf16(a, b, sum);
#endif
    (void)f;
    return gg_fma(gg_splat(*a), b, sum);
}

/* C's tile from A's word (i, k) at a[row[i] + k * step]. */
ALWAYS_INLINE void multiply_tile(const float *restrict a, const int64_t *row, int64_t step, const float *restrict b,
                                 int64_t depth, format f, float *restrict c, int64_t c_row, bool accumulate)
{
    gg_vec sum[TILE_ROWS][TILE_VECS] = {0};
    for (int i = 0; i < TILE_ROWS; i++) { /* C is far away by now, and needed all at once at the end */
        __builtin_prefetch(c + i * c_row, 1);
        __builtin_prefetch(c + i * c_row + TILE_COLS - 1, 1);
    }
    for (int64_t k = 0; k < depth; k++) {
        gg_vec b_row[TILE_VECS];
        for (int v = 0; v < TILE_VECS; v++) b_row[v] = gg_load(b + v * GG_LANES);
#pragma GCC unroll 16
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < TILE_VECS; v++) sum[i][v] = add_product(a + row[i], b_row[v], sum[i][v], f);
        a += step;
        b += TILE_COLS;
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; i++)
        for (int v = 0; v < TILE_VECS; v++) {
            float *at = c + i * c_row + v * GG_LANES;
            gg_store(at, accumulate ? gg_load(at) + sum[i][v] : sum[i][v]);
        }
}

static void tile_packed(const block *s, const float *a, const float *b, float *c, int64_t c_row, bool accumulate)
{
    int64_t row[TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; i++) row[i] = i;
    if (s->format == PAIRS && bf16_format == PAIRS)
        multiply_tile(a, row, TILE_ROWS, b, s->depth, PAIRS, c, c_row, accumulate);
    else
        multiply_tile(a, row, TILE_ROWS, b, s->depth, FLOATS, c, c_row, accumulate);
}

/* Rows past the n_rows that A has repeat its last. */
static void tile_direct(const block *s, const float *a, int64_t n_rows, const float *b, float *c, int64_t c_row,
                        bool accumulate)
{
    int64_t row[TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; i++) row[i] = gg_min_i64(i, n_rows - 1) * s->a_row;
    multiply_tile(a, row, 1, b, s->depth, FLOATS, c, c_row, accumulate);
}

static void tile(const block *s, const float *a, const float *b, float *c, int64_t c_row, bool accumulate,
                 int64_t n_rows)
{
    if (s->a_row) tile_direct(s, a, n_rows, b, c, c_row, accumulate);
    else tile_packed(s, a, b, c, c_row, accumulate);
}

/* A tile of which only n_rows x n_cols lie in C. */
static void edge_tile(const block *s, const float *a, const float *b, float *c, int64_t n_rows, int64_t n_cols)
{
    _Alignas(GG_ALIGN) float sum[TILE_ROWS * TILE_COLS];
    tile(s, a, b, sum, TILE_COLS, false, n_rows);
    for (int64_t i = 0; i < n_rows; i++)
        for (int64_t j = 0; j < n_cols; j++) {
            float *at = &c[i * s->c_row + j], value = sum[i * TILE_COLS + j];
            *at = s->accumulate ? *at + value : value;
        }
}

/* Tiles [i, i_end) of tile column j. */
static void run_column(const block *s, int64_t i, int64_t i_end, int64_t j)
{
    const float *b = s->b + j * TILE_COLS * s->depth;
    int64_t n_cols = gg_min_i64(TILE_COLS, s->n_cols - j * TILE_COLS);
    for (; i < i_end; i++) {
        const float *a = s->a + i * TILE_ROWS * (s->a_row ? s->a_row : s->depth);
        float *c = s->c + i * TILE_ROWS * s->c_row + j * TILE_COLS;
        int64_t n_rows = gg_min_i64(TILE_ROWS, s->n_rows - i * TILE_ROWS);
        if (n_rows == TILE_ROWS && n_cols == TILE_COLS) {
            tile(s, a, b, c, s->c_row, s->accumulate, TILE_ROWS);
        } else {
            edge_tile(s, a, b, c, n_rows, n_cols);
        }
    }
}

/* Tiles [t, end) of the block, counted band by band, in a band column by column: a column's panel of B stays in L1
 * while the band's panels of A, which stay in L2, pass by. */
static void run_tiles(const block *s, int64_t t, int64_t end)
{
    enum { BAND = GG_GEMM_BAND / TILE_ROWS };
    int64_t n_tile_rows = ceil_div(s->n_rows, TILE_ROWS), n_tile_cols = ceil_div(s->n_cols, TILE_COLS);
    while (t < end) {
        int64_t band = t / (BAND * n_tile_cols), in_band = t % (BAND * n_tile_cols);
        int64_t height = gg_min_i64(BAND, n_tile_rows - band * BAND);
        int64_t j = in_band / height, i = in_band % height;
        int64_t n = gg_min_i64(height - i, end - t);
        run_column(s, band * BAND + i, band * BAND + i + n, j);
        t += n;
    }
}

/* ---------------------------------------------------------------- the product */

/* Who computes, and in what memory. Consecutive steps alternate between two blocks and two sets of counters; a step's
 * barrier tells that nobody uses those of the step before last. */
typedef struct team {
    const gg_task   *task; /* whose barrier to meet in; NULL for one thread */
    int              ith, nth;
    format           format;
    int64_t          max_rows, max_cols;
    float           *a[2], *b[2];
    char            *counters;
} team;

/* This thread's share of a block's panels, a few rows of memory at a time: either a panel has whole rows, or rows go
 * through all panels, and then what is left of a cache line after one panel is still there for the next. */
ALWAYS_INLINE void pack_panels(const team *t, float *dst, int width, const source *s)
{
    enum { FEW = 8 };
    int64_t n_panels = ceil_div(s->n_across, width);
    int64_t begin = n_panels * t->ith / t->nth, end = n_panels * (t->ith + 1) / t->nth;
    int64_t step = s->across == 1 ? FEW : s->n_inner;
    for (int64_t k = 0; k < s->n_inner; k += step)
        for (int64_t p = begin; p < end; p++)
            pack_piece(dst, width, s, p, k, gg_min_i64(step, s->n_inner - k), t->format);
}

/* Where the stripe's counter of tiles taken in this step lies. */
static _Atomic int64_t *taken(const team *t, int64_t step, int64_t stripe)
{
    return (_Atomic int64_t *)(t->counters + (step % 2 * GG_GEMM_STRIPES + stripe) * GG_ALIGN);
}

static void reset_taken(const team *t, int64_t step)
{
    if (t->ith != 0) return;
    for (int64_t stripe = 0; stripe < GG_GEMM_STRIPES; stripe++)
        atomic_store_explicit(taken(t, step, stripe), 0, memory_order_relaxed);
}

/* The stripe's tiles, a few at a time and fewer towards the end, so that nobody waits long for the last. */
static void share_stripe(const team *t, const block *s, _Atomic int64_t *next_tile)
{
    enum { FEWEST = 4, MOST = 32, TURNS = 4 };
    int64_t n_tiles = ceil_div(s->n_rows, TILE_ROWS) * ceil_div(s->n_cols, TILE_COLS);
    for (int64_t first = atomic_load_explicit(next_tile, memory_order_relaxed);;) {
        int64_t n_taken = gg_max_i64(FEWEST, gg_min_i64(MOST, (n_tiles - first) / (TURNS * t->nth)));
        first = atomic_fetch_add_explicit(next_tile, n_taken, memory_order_relaxed);
        if (first >= n_tiles) return;
        run_tiles(s, first, gg_min_i64(n_tiles, first + n_taken));
    }
}

/* The packed block's tiles. A thread begins with the stripe of rows whose panels of A it packed, and then helps others. */
static void share_tiles(const team *t, const block *s, int64_t step)
{
    int64_t n_tile_rows = ceil_div(s->n_rows, TILE_ROWS);
    if (t->nth == 1) {
        run_tiles(s, 0, n_tile_rows * ceil_div(s->n_cols, TILE_COLS));
        return;
    }
    gg_barrier(t->task);
    reset_taken(t, step + 1);
    int64_t n_stripes = gg_min_i64(t->nth, GG_GEMM_STRIPES), own = t->ith * n_stripes / t->nth;
    for (int64_t i = own; i < own + n_stripes; i++) {
        int64_t stripe = i % n_stripes;
        int64_t first = n_tile_rows * stripe / n_stripes * TILE_ROWS;
        block part = *s;
        part.a += first * (s->a_row ? s->a_row : s->depth);
        part.c += first * s->c_row;
        part.n_rows = gg_min_i64(s->n_rows, n_tile_rows * (stripe + 1) / n_stripes * TILE_ROWS) - first;
        share_stripe(t, &part, taken(t, step, stripe));
    }
}

static void multiply(const gg_gemm *g, const team *t)
{
    int64_t rows = block_size(g->n_rows, t->max_rows, TILE_ROWS);
    int64_t cols = block_size(g->n_cols, t->max_cols, TILE_COLS);
    int64_t inner = block_size(g->n_inner, t->format == PAIRS ? 2 * GG_GEMM_INNER : GG_GEMM_INNER, 4);
    int64_t step = 0, n_b = 0;
    bool direct = t->format == FLOATS && g->a.col == 1 && g->n_cols <= DIRECT_COLS;
    if (t->nth > 1) reset_taken(t, 0);
    for (int64_t j = 0; j < g->n_cols; j += cols)
        for (int64_t k = 0; k < g->n_inner; k += inner, n_b++) {
            int64_t n_cols = gg_min_i64(cols, g->n_cols - j), n_inner = gg_min_i64(inner, g->n_inner - k);
            source b = {g->b.data + k * g->b.row + j * g->b.col, g->b.col, g->b.row, n_cols, n_inner};
            pack_panels(t, t->b[n_b % 2], TILE_COLS, &b);
            for (int64_t i = 0; i < g->n_rows; i += rows, step++) {
                int64_t n_rows = gg_min_i64(rows, g->n_rows - i);
                source a = {g->a.data + i * g->a.row + k * g->a.col, g->a.row, g->a.col, n_rows, n_inner};
                if (!direct) pack_panels(t, t->a[step % 2], TILE_ROWS, &a);
                block s = {.a = direct ? a.data : t->a[step % 2], .a_row = direct ? g->a.row : 0, .b = t->b[n_b % 2],
                           .c = g->c + i * g->c_row + j, .c_row = g->c_row, .n_rows = n_rows, .n_cols = n_cols,
                           .depth = depth_of(t->format, n_inner), .format = t->format,
                           .accumulate = g->accumulate || k > 0};
                share_tiles(t, &s, step);
            }
        }
}

static format format_of(const gg_task *task) { return task->matmul_precision == GG_MATMUL_BF16 ? bf16_format : FLOATS; }

void GG_ISA_NAME(gg_gemm_together)(const gg_gemm *g, const gg_task *task, char *work)
{
    float *a = (float *)(work + GG_GEMM_COUNTERS), *b = a + 2 * GG_GEMM_ROWS * GG_GEMM_INNER;
    team t = {.task = task, .ith = task->ith, .nth = task->nth, .format = format_of(task),
              .max_rows = GG_GEMM_ROWS, .max_cols = GG_GEMM_COLS,
              .a = {a, a + GG_GEMM_ROWS * GG_GEMM_INNER}, .b = {b, b + GG_GEMM_COLS * GG_GEMM_INNER},
              .counters = work};
    multiply(g, &t);
}

void GG_ISA_NAME(gg_gemm_alone)(const gg_gemm *g, const gg_task *task, char *work)
{
    float *a = (float *)work, *b = a + GG_GEMM_ALONE_ROWS * GG_GEMM_INNER;
    team t = {.ith = 0, .nth = 1, .format = format_of(task),
              .max_rows = GG_GEMM_ALONE_ROWS, .max_cols = GG_GEMM_ALONE_COLS, .a = {a, a}, .b = {b, b}};
    multiply(g, &t);
}
