/* work.h - the type of the functions that say how much scratch memory a node's kernel needs; work.c has them, by the
 * names `work=` gives in the op table.
 *
 * Sizes do not depend on the ISA level; kernels use the same constants to carve the memory up.
 */
#ifndef GG_WORK_H
#define GG_WORK_H

#include "tensor.h"

/* Bytes for node y with sources src (NULL where absent) on n_threads threads. */
typedef int64_t gg_work(const gg_tensor *y, const gg_tensor *const *src, int n_threads);

#endif
