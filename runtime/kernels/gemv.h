/* gemv.h - the product of a few rows with the rows of a matrix, y = x w^T. Called by products.c where a batch is too
 * small to pack anything for: then the time goes into reading w, once.
 */
#ifndef GG_GEMV_H
#define GG_GEMV_H

#include "gemm.h"

/* Whether gg_gemv computes this product: few rows, and the inner dimension adjacent in both operands. */
bool GG_ISA_NAME(gg_gemv_fits)(const gg_gemm *g);

/* This thread's share of the columns of C. Each element is summed in one order, whatever else is computed with it. */
void GG_ISA_NAME(gg_gemv)(const gg_gemm *g, const gg_task *task);

#endif
