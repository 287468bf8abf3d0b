/* work.h - what a node costs: the type of the functions that say how much scratch memory its kernel needs, by the names
 * `work=` gives in the op table, and its floating-point operations.
 *
 * Sizes do not depend on the ISA level; kernels use the same constants to carve the memory up.
 */
#ifndef GG_WORK_H
#define GG_WORK_H

#include "tensor.h"

/* Bytes for node y with sources src (NULL where absent) on n_threads threads. */
typedef int64_t gg_work(const gg_tensor *y, const gg_tensor *const *src, int n_threads);

/* Floating-point operations of a matrix product, 0 for other nodes. */
double gg_node_flops(const gg_graph *g, const gg_tensor *y);

#endif
