/* gemm.h - the one matrix product that every kernel uses: C = A B or C += A B in float32, any strides of A and B.
 *
 * The task's matmul_precision says whether elements of A and B are rounded to bfloat16 on the way.
 * Each element is summed over the inner dimension in one order, whatever the number of threads and whichever of
 * the two entries computes it.
 */
#ifndef GG_GEMM_H
#define GG_GEMM_H

#include "../src/kernel.h"
#include "../src/blocks.h"
#include "simd.h"

/* Element (i, j) is data[i * row + j * col]. */
typedef struct gg_matrix {
    const float *data;
    int64_t      row, col;
} gg_matrix;

typedef struct gg_gemm {
    int64_t   n_rows, n_cols, n_inner; /* C is n_rows x n_cols */
    gg_matrix a, b;                    /* n_rows x n_inner, n_inner x n_cols */
    float    *c;                       /* rows c_row apart, columns adjacent; shares no memory with a or b */
    int64_t   c_row;
    bool      accumulate;              /* add to C; otherwise C is only written */
} gg_gemm;

/* By all threads of the task together, in gg_gemm_nbytes of scratch at work. C is complete, and the scratch free,
 * after the caller's next barrier. */
void GG_ISA_NAME(gg_gemm_together)(const gg_gemm *g, const gg_task *task, char *work);

/* By the calling thread, in GG_GEMM_ALONE_NBYTES of its own. */
void GG_ISA_NAME(gg_gemm_alone)(const gg_gemm *g, const gg_task *task, char *work);

#endif
