/* blocks.h - sizes of the blocks that kernels keep in scratch memory: gemm.c, experts.c, cross_entropy.c, attention.c and
 * rows.c carve it up by them, work.c adds them up. The same for every ISA level.
 */
#ifndef GG_BLOCKS_H
#define GG_BLOCKS_H

#include "tensor.h"

/* A product is computed from packed blocks of A (rows x inner) and B (inner x columns). Rows are multiples of every
 * level's tile height (4, 6, 8, 14), columns of every tile width (8, 16, 32). One inner size for all cases: it alone
 * fixes the order in which an element is summed. */
enum {
    GG_GEMM_INNER = 256,      /* a tile's slices of A and B stay in L1 */
    GG_GEMM_BAND = 168,       /* rows of A that one thread packs and keeps in L2 while B passes */
    GG_GEMM_ROWS = 1344,      /* that all threads pack together, in L3 */
    GG_GEMM_COLS = 2112,
    GG_GEMM_ALONE_COLS = 384, /* of one thread by itself, in L2 */
    GG_GEMM_STRIPES = 8,      /* of rows, each with a counter of its tiles; one more counts bands */
    GG_GEMM_COUNTERS = 2 * (GG_GEMM_STRIPES + 1) * GG_ALIGN, /* bytes */
    GG_GEMM_ALONE_NBYTES = GG_GEMM_COUNTERS + (GG_GEMM_BAND + GG_GEMM_ALONE_COLS) * GG_GEMM_INNER * 4
};

/* A band for each thread; two of each shared block, so that the next may be packed while slower threads still read the
 * last. */
static inline int64_t gg_gemm_nbytes(int n_threads)
{
    return GG_GEMM_COUNTERS +
           (2 * (GG_GEMM_ROWS + GG_GEMM_COLS) + (int64_t)n_threads * GG_GEMM_BAND) * GG_GEMM_INNER * 4;
}

/* Rows of a matrix that is not float32 decoded at a time: as many as one block of a product takes, fewer of long rows. */
enum { GG_SLAB_ROWS = GG_GEMM_INNER, GG_SLAB_MIN_ROWS = 32, GG_SLAB_NBYTES = 4 << 20 };

static inline int64_t gg_slab_rows(const gg_tensor *w)
{
    int64_t fitting = gg_max_i64(GG_SLAB_NBYTES / 4 / w->ne[0], GG_SLAB_MIN_ROWS);
    return gg_min_i64(w->ne[1], gg_min_i64(fitting, GG_SLAB_ROWS));
}

static inline int64_t gg_slab_nbytes(const gg_tensor *w)
{
    return w->type == GG_TYPE_F32 ? 0 : gg_align(gg_slab_rows(w) * w->ne[0] * 4);
}

/* Attention works on a block of queries by a block of keys at a time, whose scores stay in L1. */
enum {
    GG_ATTENTION_QUERIES = 64,
    GG_ATTENTION_KEYS = 64,
    GG_ATTENTION_SCORES = GG_ATTENTION_QUERIES * GG_ATTENTION_KEYS
};

/* Floats between rows of a block: the head's size, filled up to whole vectors of every level. */
static inline int64_t gg_attention_row(int64_t head_dim) { return gg_align(head_dim * 4) / 4; }

/* Of one thread: scores, k and v; q transposed, y, and three numbers a query. */
static inline int64_t gg_attention_floats(int64_t head_dim)
{
    return GG_ATTENTION_SCORES + (2 * GG_ATTENTION_KEYS + 2 * GG_ATTENTION_QUERIES) * gg_attention_row(head_dim) +
           3 * GG_ATTENTION_QUERIES;
}

/* Scores, their derivative and that of their soft cap, k and v; q and g also transposed, dq, and two numbers a query. */
static inline int64_t gg_attention_back_floats(int64_t head_dim)
{
    return 3 * GG_ATTENTION_SCORES + (2 * GG_ATTENTION_KEYS + 5 * GG_ATTENTION_QUERIES) * gg_attention_row(head_dim) +
           2 * GG_ATTENTION_QUERIES;
}

/* Rows of queries that pass along cached keys and values together: they share what is loaded. */
enum { GG_CACHED_ROWS = 8 };

/* Of one thread, by the cache of values: queries, scores with all keys, sums. */
static inline int64_t gg_cached_attention_floats(const gg_tensor *cache)
{
    return GG_CACHED_ROWS * (2 * cache->ne[0] + cache->ne[1]);
}

/* The logits that linear_cross_entropy holds at a time. More rows use each packed element of w more often. */
enum { GG_LOGITS_NBYTES = 32 << 20, GG_LOGITS_MIN_ROWS = 64 };

/* Where things lie in the scratch memory of a product with chosen matrices, in bytes; see experts.c. A slab is needed
 * where the matrices are not float32. */
typedef struct gg_experts {
    int64_t begin, order, in, out, nbytes;
} gg_experts;

static inline gg_experts gg_experts_of(int n_threads, int64_t slab_nbytes, int64_t n_experts, int64_t n_rows,
                                       int64_t n_in, int64_t n_out)
{
    gg_experts e = {.begin = gg_align(gg_gemm_nbytes(n_threads)) + slab_nbytes};
    e.order = gg_align(e.begin + (n_experts + 1) * (int64_t)sizeof(int64_t));
    e.in = gg_align(e.order + n_rows * (int64_t)sizeof(int64_t));
    e.out = gg_align(e.in + n_rows * n_in * (int64_t)sizeof(float));
    e.nbytes = gg_align(e.out + n_rows * n_out * (int64_t)sizeof(float));
    return e;
}

/* Queries whose scores against all keys flash_attention.c holds at a time. */
enum { GG_FLASH_QUERIES = 64 };

/* One block of scores, and of one thread a product's scratch and three of them. */
static inline int64_t gg_flash_floats(int64_t n_keys) { return GG_FLASH_QUERIES * n_keys; }

static inline int64_t gg_flash_nbytes(int64_t n_keys)
{
    return gg_align(GG_GEMM_ALONE_NBYTES + 3 * gg_flash_floats(n_keys) * (int64_t)sizeof(float));
}

/* Rows per partial sum of a gain's cotangent. */
enum { GG_GAIN_ROWS = 32 };

static inline int64_t gg_gain_chunks(int64_t n_rows) { return gg_ceil_div(n_rows, GG_GAIN_ROWS); }

/* Terms per partial sum of a scalar result. */
enum { GG_SUM_CHUNK = 8192 };

/* Rows per chunk of logits, about equal chunks. */
static inline int64_t gg_logits_rows(int64_t n_rows, int64_t n_vocab)
{
    int64_t most = gg_max_i64(GG_LOGITS_NBYTES / 4 / n_vocab, GG_LOGITS_MIN_ROWS);
    int64_t n_chunks = gg_ceil_div(n_rows, most);
    return gg_ceil_div(n_rows, n_chunks);
}

#endif
