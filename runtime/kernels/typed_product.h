/* typed_product.h - products with a matrix W of any type that has a decoder, float32 included. Called by products.c and
 * cross_entropy.c.
 *
 * W is never float32 as a whole: a slab of its rows at a time is decoded into scratch memory and multiplied. Slabs have
 * the same size for any number of threads, and so have sums.
 */
#ifndef GG_TYPED_PRODUCT_H
#define GG_TYPED_PRODUCT_H

#include "gemm.h"

/* W's matrix at `data`; g's b is filled in here. C = A W^T, or with `along_rows` C = A W. By all threads of the task
 * together, in gg_gemm_nbytes + gg_slab_nbytes(w) of scratch at work, both free after the caller's next barrier. */
void GG_ISA_NAME(gg_typed_product)(const gg_gemm *g, const gg_tensor *w, const char *data, bool along_rows,
                                   const gg_task *task, char *work);

#endif
