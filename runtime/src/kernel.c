/* kernel.c - what kernels call of the executor: the barrier, and the note of a bad value. See kernel.h. */
#include "kernel.h"

#include "pool.h"

void gg_barrier(const gg_task *task) { gg_pool_barrier(task->pool); }

void gg_fault(const gg_task *task, int64_t value, int64_t limit)
{
    int none = GG_NO_FAULT;
    if (!atomic_compare_exchange_strong(&task->fault->node, &none, task->id)) return;
    atomic_store(&task->fault->value, value);
    atomic_store(&task->fault->limit, limit);
}
