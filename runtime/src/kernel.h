/* kernel.h - the contract between the executor and a kernel.
 *
 * A kernel is called by every thread of the pool at once, each with its own `ith` of `nth`, and computes its share
 * of one node. Work is split by output element, never inside a reduction, so a result does not depend on `nth`.
 * A kernel that needs all threads to have finished a phase calls gg_barrier; every thread must then do so.
 * The executor itself puts a barrier after each node.
 */
#ifndef GG_KERNEL_H
#define GG_KERNEL_H

#include <limits.h>
#include <stdatomic.h>

#include "tensor.h"

typedef struct gg_pool gg_pool;
typedef struct gg_kernels gg_kernels;

/* The first bad value of a run: the node that met it, or GG_NO_FAULT. */
typedef struct gg_fault_note {
    atomic_int      node;
    _Atomic int64_t value, limit;
} gg_fault_note;

enum { GG_NO_FAULT = INT_MAX };

typedef struct gg_task {
    const gg_tensor *y;
    const gg_tensor *src[GG_MAX_SRC]; /* NULL where an optional source is absent */
    char            *y_data;
    char            *src_data[GG_MAX_SRC];
    char            *work; /* scratch shared by the threads, 64-byte aligned, of the size work.c gave for the node */
    int32_t          matmul_precision; /* GG_MATMUL_* */
    int              ith, nth;
    int32_t          id; /* of the node */
    gg_fault_note   *fault;
    gg_pool         *pool;
} gg_task;

typedef void gg_kernel(const gg_task *task);

/* All threads of the task's pool wait for each other here. */
void gg_barrier(const gg_task *task);

/* Note a run-time value that is not in 0..limit - 1 (a token id, say); the run then fails with GG_ERR_DATA for this node. */
void gg_fault(const gg_task *task, int64_t value, int64_t limit);

/* This thread's part [*begin, *end) of n units, in multiples of `grain` but for the last. */
static inline void gg_share(const gg_task *task, int64_t n, int64_t grain, int64_t *begin, int64_t *end)
{
    int64_t n_grains = gg_ceil_div(n, grain);
    *begin = gg_min_i64(n, n_grains * task->ith / task->nth * grain);
    *end = gg_min_i64(n, n_grains * (task->ith + 1) / task->nth * grain);
}

/* One ISA level: a kernel per op (NULL for views and leafs), a loop that measures the multiply-add peak, and what needs
 * no graph: gg_normals, gg_decode, gg_encode. */
struct gg_kernels {
    const char *isa;
    gg_kernel *const *kernel; /* indexed by op */
    double (*peak_loop)(int64_t n_iterations, int32_t matmul_precision); /* returns the FLOPs done */
    void (*normals)(int64_t n, const uint64_t *bits, double mean, double std, float *out);
    void (*decode)(int32_t type, int64_t n, const void *blocks, float *out);
    void (*encode)(int32_t type, int64_t n, const float *x, void *blocks);
};

#endif
