/* work.h - scratch memory a node's kernel needs, by the names `work=` gives in the op table.
 *
 * Sizes do not depend on the ISA level; kernels use the same constants to carve the memory up.
 */
#ifndef GG_WORK_H
#define GG_WORK_H

#include "tensor.h"

/* Bytes for node y with sources src (NULL where absent) on n_threads threads. */
typedef int64_t gg_work(const gg_tensor *y, const gg_tensor *const *src, int n_threads);

gg_work gg_work_attention;
gg_work gg_work_attention_back;
gg_work gg_work_cached_attention;
gg_work gg_work_gemm;
gg_work gg_work_sum;
gg_work gg_work_cross_entropy;
gg_work gg_work_linear_cross_entropy;

#endif
