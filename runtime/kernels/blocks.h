/* blocks.h - sizes of the blocks that kernels keep in scratch memory: gemm.c and cross_entropy.c carve it up by
 * them, src/work.c adds them up. The same for every ISA level.
 */
#ifndef GG_BLOCKS_H
#define GG_BLOCKS_H

#include "../src/base.h"

/* A product is computed from packed blocks of A (rows x inner) and B (inner x columns). Rows are multiples of every
 * level's tile height (4, 6, 8, 14), columns of every tile width (8, 16, 32). One inner size for all cases: it alone
 * fixes the order in which an element is summed. */
enum {
    GG_GEMM_INNER = 256,      /* a tile's slices of A and B stay in L1 */
    GG_GEMM_BAND = 168,       /* rows of A that stay in L2 while B passes */
    GG_GEMM_ROWS = 1344,      /* all threads together, in L3 */
    GG_GEMM_COLS = 2112,
    GG_GEMM_ALONE_ROWS = 168, /* one thread by itself, in L2 */
    GG_GEMM_ALONE_COLS = 384,
    GG_GEMM_COUNTERS = 2 * GG_ALIGN, /* bytes */
    /* Two blocks of each, so that the next may be packed while slower threads still read the last. */
    GG_GEMM_NBYTES = GG_GEMM_COUNTERS + 2 * (GG_GEMM_ROWS + GG_GEMM_COLS) * GG_GEMM_INNER * 4,
    GG_GEMM_ALONE_NBYTES = (GG_GEMM_ALONE_ROWS + GG_GEMM_ALONE_COLS) * GG_GEMM_INNER * 4
};

/* The logits that linear_cross_entropy holds at a time. More rows use each packed element of w more often. */
enum { GG_LOGITS_NBYTES = 32 << 20, GG_LOGITS_MIN_ROWS = 64 };

/* Rows per chunk of logits, about equal chunks. */
static inline int64_t gg_logits_rows(int64_t n_rows, int64_t n_vocab)
{
    int64_t most = gg_max_i64(GG_LOGITS_NBYTES / 4 / n_vocab, GG_LOGITS_MIN_ROWS);
    int64_t n_chunks = (n_rows + most - 1) / most;
    return (n_rows + n_chunks - 1) / n_chunks;
}

#endif
