/* gemm.c - the matrix product, after Goto & van de Geijn 2008 and BLIS: blocks of A and B are packed into panels that
 * a register-blocked tile reads in order. Called by products.c and cross_entropy.c.
 *
 * A panel is a tile's height of A (or width of B) by the block's inner size, inner index slowest; panels at the
 * matrix's edge are filled up with zeros. Strides matter to packing alone, so one tile serves every transposition, and
 * so does precision: a product in bf16 differs in what panels hold.
 * Threads pack a block of B together. Then each takes bands of rows of A, which it packs for itself into its own cache;
 * the last rows all pack together before, and share tile by tile, so that nobody waits long for a slow core. Tiles are
 * independent: it does not matter which thread computes one.
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
enum { LINE = GG_ALIGN / sizeof(float) }; /* floats of a cache line */

_Static_assert(GG_GEMM_BAND % TILE_ROWS == 0 && GG_GEMM_ROWS % TILE_ROWS == 0, "blocks hold whole tiles");
_Static_assert(GG_GEMM_ROWS <= GG_GEMM_STRIPES * GG_GEMM_BAND, "a stripe is at most a band");
_Static_assert(GG_GEMM_COLS % TILE_COLS == 0 && GG_GEMM_ALONE_COLS % TILE_COLS == 0, "blocks hold whole tiles");

_Static_assert((int)TILE_ROWS <= (int)TILE_COLS, "a chunk holds panels of A and of B");

/* Blocks of about equal size, at most `most`, in multiples of `unit`. */
static int64_t block_size(int64_t n, int64_t most, int64_t unit)
{
    return gg_ceil_div(gg_ceil_div(n, gg_ceil_div(n, most)), unit) * unit;
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
static int64_t depth_of(format f, int64_t n_inner) { return f == PAIRS ? gg_ceil_div(n_inner, 2) : n_inner; }

/* An operand's block on its way into panels: its strides over a panel's width and over the inner index. */
typedef struct source {
    const float *data;
    int64_t      across, along, n_across, n_inner;
} source;

/* Rows of memory that go through all panels together, see pack_panels. */
enum { FEW_ROWS = 8 };

/* One panel of floats. What is packed next is fetched meanwhile: its pieces are too short for the processor to notice
 * that they lie in order. */
GG_INLINE void pack_floats(float *restrict dst, int width, const source *s)
{
    const float *src = s->data;
    if (s->n_across == width && s->across == 1) {
        for (int64_t k = 0; k < s->n_inner; k++) {
            __builtin_prefetch(src + (k + FEW_ROWS) * s->along);
            memcpy(dst + k * width, src + k * s->along, (size_t)width * sizeof(float));
        }
    } else if (s->n_across == width && s->along == 1) {
        for (int i = 0; i < width; i++)
            for (int64_t k = 0; k < s->n_inner; k += LINE) __builtin_prefetch(src + (width + i) * s->across + k);
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
GG_INLINE gg_vec pair_up(gg_vec first, gg_vec second)
{
    return (gg_vec)((gg_uvec)gg_round_bf16(first) >> 16 | (gg_uvec)gg_round_bf16(second));
}

/* n_pairs pairs of rows of `width` floats. */
GG_INLINE void pair_rows(float *restrict dst, const float *restrict src, int width, int64_t n_pairs)
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
GG_INLINE void pack_bf16(float *restrict dst, int width, const source *s)
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
            pair_rows(dst + k / 2 * width, floats, width, gg_ceil_div(chunk.n_inner, 2));
        } else {
            round_floats(dst + k * width, floats, chunk.n_inner * width);
        }
    }
}

/* Columns [k, k + n) of panel `panel` of the block, to their place in dst. */
GG_INLINE void pack_piece(float *restrict dst, int width, const source *s, int64_t panel, int64_t k, int64_t n,
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
    const float *a, *b; /* packed */
    float       *c;
    int64_t      c_row, n_rows, n_cols;
    int64_t      depth; /* words that a sum takes from a panel */
    format       format;
    bool         accumulate;
} block;

GG_INLINE gg_vec add_product(const float *a, gg_vec b, gg_vec sum, format f)
{
#if defined(__AVX512BF16__)
    if (f == PAIRS) return gg_dot_bf16(a, b, sum);
#endif
    (void)f;
    return gg_fma(gg_splat(*a), b, sum);
}

/* What a tile fetches while it computes, a cache line at most every few steps: B's next panel comes from L3, too late
 * for the tile that needs it first. */
typedef struct ahead {
    const float *at;
    int64_t      step;
} ahead;

enum { FEW_STEPS = 8 };

#if defined(__FMA__) || defined(__aarch64__)
enum { UNROLL = 8 };
#else
enum { UNROLL = 1 }; /* GCC mixes the steps' products and sums, and spills them */
#endif

/* The sums after n more steps of the inner index. */
GG_INLINE void add_steps(gg_vec sum[TILE_ROWS][TILE_VECS], const float *a, const float *b, format f, int n)
{
#pragma GCC unroll UNROLL
    for (int k = 0; k < n; k++, a += TILE_ROWS, b += TILE_COLS) {
        gg_vec b_row[TILE_VECS];
        for (int v = 0; v < TILE_VECS; v++) b_row[v] = gg_load(b + v * GG_LANES);
#pragma GCC unroll 16
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < TILE_VECS; v++) sum[i][v] = add_product(a + i, b_row[v], sum[i][v], f);
        __asm__ volatile("" ::: "memory"); /* steps mixed by the compiler would need more registers than there are */
    }
}

GG_INLINE void multiply_tile(const float *a, const float *b, int64_t depth, format f, float *c, int64_t c_row,
                                 bool accumulate, ahead next)
{
    gg_vec sum[TILE_ROWS][TILE_VECS] = {0};
    int64_t k = 0;
    for (int i = 0; i < TILE_ROWS && k + FEW_STEPS <= depth; i++, k += FEW_STEPS) {
        __builtin_prefetch(c + i * c_row, 1); /* far away by now, and needed all at once at the end */
        __builtin_prefetch(c + i * c_row + TILE_COLS - 1, 1);
        add_steps(sum, a + k * TILE_ROWS, b + k * TILE_COLS, f, FEW_STEPS);
    }
    for (; k + FEW_STEPS <= depth; k += FEW_STEPS, next.at += next.step) {
        __builtin_prefetch(next.at);
        add_steps(sum, a + k * TILE_ROWS, b + k * TILE_COLS, f, FEW_STEPS);
    }
    for (; k < depth; k++) add_steps(sum, a + k * TILE_ROWS, b + k * TILE_COLS, f, 1);
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; i++)
        for (int v = 0; v < TILE_VECS; v++) {
            float *at = c + i * c_row + v * GG_LANES;
            gg_store(at, accumulate ? gg_load(at) + sum[i][v] : sum[i][v]);
        }
}

static void tile(const block *s, const float *a, const float *b, float *c, int64_t c_row, bool accumulate, ahead next)
{
    if (s->format == PAIRS && bf16_format == PAIRS) multiply_tile(a, b, s->depth, PAIRS, c, c_row, accumulate, next);
    else multiply_tile(a, b, s->depth, FLOATS, c, c_row, accumulate, next);
}

/* A tile of which only n_rows x n_cols lie in C. */
static void edge_tile(const block *s, const float *a, const float *b, float *c, int64_t n_rows, int64_t n_cols,
                      ahead next)
{
    _Alignas(GG_ALIGN) float sum[TILE_ROWS * TILE_COLS];
    tile(s, a, b, sum, TILE_COLS, false, next);
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
    int64_t panel = TILE_COLS * s->depth, n_cols = gg_min_i64(TILE_COLS, s->n_cols - j * TILE_COLS);
    int64_t n_fetches = gg_max_i64(1, s->depth / FEW_STEPS - TILE_ROWS); /* of one tile */
    ahead next = {b + panel, gg_min_i64(LINE, panel / (n_fetches * (i_end - i)))};
    for (; i < i_end; i++, next.at += n_fetches * next.step) {
        const float *a = s->a + i * TILE_ROWS * s->depth;
        float *c = s->c + i * TILE_ROWS * s->c_row + j * TILE_COLS;
        int64_t n_rows = gg_min_i64(TILE_ROWS, s->n_rows - i * TILE_ROWS);
        if (n_rows == TILE_ROWS && n_cols == TILE_COLS) tile(s, a, b, c, s->c_row, s->accumulate, next);
        else edge_tile(s, a, b, c, n_rows, n_cols, next);
    }
}

/* Tiles [t, end) of the block, counted column by column: a column's panel of B stays in L1 while the block's panels of
 * A, at most a band, pass by from L2. */
static void run_tiles(const block *s, int64_t t, int64_t end)
{
    int64_t height = gg_ceil_div(s->n_rows, TILE_ROWS);
    while (t < end) {
        int64_t j = t / height, i = t % height, n = gg_min_i64(height - i, end - t);
        run_column(s, i, i + n, j);
        t += n;
    }
}

/* ---------------------------------------------------------------- the product */

/* Who computes, and in what memory. Consecutive steps alternate between two blocks and two sets of counters; a step's
 * barrier tells that nobody uses those of the step before last. */
typedef struct team {
    const gg_task *task; /* whose barrier to meet in; NULL for one thread */
    int            ith, nth;
    format         format;
    int64_t        max_cols;
    float         *band; /* this thread's */
    float         *a[2], *b[2];
    char          *counters;
} team;

/* Panels [begin, end) of a block, a few rows of memory at a time: either a panel has whole rows, or rows go through all
 * panels, and then what is left of a cache line after one panel is still there for the next. */
GG_INLINE void pack_panels(float *dst, int width, const source *s, int64_t begin, int64_t end, format f)
{
    int64_t step = s->across == 1 ? FEW_ROWS : s->n_inner;
    for (int64_t k = 0; k < s->n_inner; k += step)
        for (int64_t p = begin; p < end; p++) pack_piece(dst, width, s, p, k, gg_min_i64(step, s->n_inner - k), f);
}

/* This thread's share of a block's panels. */
GG_INLINE void pack_share(const team *t, float *dst, int width, const source *s)
{
    int64_t n_panels = gg_ceil_div(s->n_across, width);
    pack_panels(dst, width, s, n_panels * t->ith / t->nth, n_panels * (t->ith + 1) / t->nth, t->format);
}

/* Rows [first, first + n_rows) of A's and C's blocks. */
static block rows_of(const block *s, int64_t first, int64_t n_rows)
{
    block part = *s;
    part.a += first * s->depth;
    part.c += first * s->c_row;
    part.n_rows = n_rows;
    return part;
}

static int64_t count_tiles(const block *s) { return gg_ceil_div(s->n_rows, TILE_ROWS) * gg_ceil_div(s->n_cols, TILE_COLS); }

/* How many bands, or tiles of a stripe, were taken in this step. */
enum { BANDS = GG_GEMM_STRIPES };

static _Atomic int64_t *taken(const team *t, int64_t step, int64_t of)
{
    return (_Atomic int64_t *)(t->counters + (step % 2 * (GG_GEMM_STRIPES + 1) + of) * GG_ALIGN);
}

static void reset_taken(const team *t, int64_t step)
{
    if (t->ith != 0) return;
    for (int64_t of = 0; of <= BANDS; of++) atomic_store_explicit(taken(t, step, of), 0, memory_order_relaxed);
}

/* Bands of `height` rows as long as there are any. */
static void take_bands(const team *t, const block *s, const source *a, int64_t height, int64_t step)
{
    for (;;) {
        int64_t first = height * atomic_fetch_add_explicit(taken(t, step, BANDS), 1, memory_order_relaxed);
        if (first >= s->n_rows) return;
        block band = rows_of(s, first, gg_min_i64(height, s->n_rows - first));
        source rows = {a->data + first * a->across, a->across, a->along, band.n_rows, a->n_inner};
        pack_panels(t->band, TILE_ROWS, &rows, 0, gg_ceil_div(band.n_rows, TILE_ROWS), t->format);
        band.a = t->band;
        run_tiles(&band, 0, count_tiles(&band));
    }
}

/* The stripe's tiles, a few at a time and fewer towards the end, so that nobody waits long for the last. */
static void share_stripe(const team *t, const block *s, _Atomic int64_t *next_tile)
{
    enum { FEWEST = 4, MOST = 32, TURNS = 4 };
    int64_t n_tiles = count_tiles(s);
    for (int64_t first = atomic_load_explicit(next_tile, memory_order_relaxed);;) {
        int64_t n_taken = gg_max_i64(FEWEST, gg_min_i64(MOST, (n_tiles - first) / (TURNS * t->nth)));
        first = atomic_fetch_add_explicit(next_tile, n_taken, memory_order_relaxed);
        if (first >= n_tiles) return;
        run_tiles(s, first, gg_min_i64(n_tiles, first + n_taken));
    }
}

/* The tiles of a block that all threads packed. A thread begins with the stripe of rows it packed, which its own cache
 * holds, and then helps others. */
static void share_tiles(const team *t, const block *s, int64_t step)
{
    int64_t n_tile_rows = gg_ceil_div(s->n_rows, TILE_ROWS);
    int64_t n_stripes = gg_min_i64(t->nth, GG_GEMM_STRIPES), own = t->ith * n_stripes / t->nth;
    for (int64_t i = own; i < own + n_stripes; i++) {
        int64_t stripe = i % n_stripes, first = n_tile_rows * stripe / n_stripes * TILE_ROWS;
        int64_t end = gg_min_i64(s->n_rows, n_tile_rows * (stripe + 1) / n_stripes * TILE_ROWS);
        block part = rows_of(s, first, end - first);
        share_stripe(t, &part, taken(t, step, stripe));
    }
}

/* Columns [j, j + n_cols) of C from, or plus if k > 0, columns [k, k + n_inner) of A by these rows of B. */
static void multiply_block(const gg_gemm *g, const team *t, int64_t step, int64_t j, int64_t n_cols, int64_t k,
                           int64_t n_inner)
{
    int64_t n_shared = t->nth == 1 ? 0 : gg_min_i64(g->n_rows, gg_min_i64(GG_GEMM_ROWS, t->nth * GG_GEMM_BAND));
    int64_t n_banded = g->n_rows - n_shared;
    source b = {g->b.data + k * g->b.row + j * g->b.col, g->b.col, g->b.row, n_cols, n_inner};
    source banded = {g->a.data + k * g->a.col, g->a.row, g->a.col, n_banded, n_inner};
    source shared = {banded.data + n_banded * g->a.row, g->a.row, g->a.col, n_shared, n_inner};
    pack_share(t, t->b[step % 2], TILE_COLS, &b);
    pack_share(t, t->a[step % 2], TILE_ROWS, &shared);
    if (t->nth > 1) gg_barrier(t->task);
    reset_taken(t, step + 1);
    block s = {.a = t->a[step % 2], .b = t->b[step % 2], .c = g->c + j, .c_row = g->c_row, .n_rows = n_banded,
               .n_cols = n_cols, .depth = depth_of(t->format, n_inner), .format = t->format,
               .accumulate = g->accumulate || k > 0};
    if (n_banded > 0) {
        /* No more rows than a thread's part of the shared ones, which can then make up for a band more or less. */
        int64_t most = t->nth == 1 ? GG_GEMM_BAND : gg_max_i64(TILE_ROWS, n_shared / t->nth);
        take_bands(t, &s, &banded, block_size(n_banded, most, TILE_ROWS), step);
    }
    s.c += n_banded * s.c_row;
    s.n_rows = n_shared;
    share_tiles(t, &s, step);
}

static void multiply(const gg_gemm *g, const team *t)
{
    int64_t cols = block_size(g->n_cols, t->max_cols, TILE_COLS);
    int64_t inner = block_size(g->n_inner, t->format == PAIRS ? 2 * GG_GEMM_INNER : GG_GEMM_INNER, 4);
    int64_t step = 0;
    reset_taken(t, 0);
    for (int64_t j = 0; j < g->n_cols; j += cols)
        for (int64_t k = 0; k < g->n_inner; k += inner)
            multiply_block(g, t, step++, j, gg_min_i64(cols, g->n_cols - j), k, gg_min_i64(inner, g->n_inner - k));
}

static format format_of(const gg_task *task) { return task->matmul_precision == GG_MATMUL_BF16 ? bf16_format : FLOATS; }

void GG_ISA_NAME(gg_gemm_together)(const gg_gemm *g, const gg_task *task, char *work)
{
    float *a = (float *)(work + GG_GEMM_COUNTERS), *b = a + 2 * GG_GEMM_ROWS * GG_GEMM_INNER;
    float *bands = b + 2 * GG_GEMM_COLS * GG_GEMM_INNER;
    team t = {.task = task, .ith = task->ith, .nth = task->nth, .format = format_of(task), .max_cols = GG_GEMM_COLS,
              .band = bands + (int64_t)task->ith * GG_GEMM_BAND * GG_GEMM_INNER,
              .a = {a, a + GG_GEMM_ROWS * GG_GEMM_INNER}, .b = {b, b + GG_GEMM_COLS * GG_GEMM_INNER},
              .counters = work};
    multiply(g, &t);
}

void GG_ISA_NAME(gg_gemm_alone)(const gg_gemm *g, const gg_task *task, char *work)
{
    float *band = (float *)(work + GG_GEMM_COUNTERS), *b = band + GG_GEMM_BAND * GG_GEMM_INNER;
    team t = {.ith = 0, .nth = 1, .format = format_of(task), .max_cols = GG_GEMM_ALONE_COLS, .band = band,
              .a = {band, band}, .b = {b, b}, .counters = work};
    multiply(g, &t);
}
