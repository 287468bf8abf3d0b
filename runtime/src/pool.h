/* pool.h - a fixed team of threads that run one function together. Programs run on one; kernels meet in its barrier.
 *
 * The calling thread is member 0; the others sleep between runs. One caller at a time: a second one is turned away. A
 * process that was forked has none of the threads and starts its own.
 */
#ifndef GG_POOL_H
#define GG_POOL_H

#include "graph.h"

int gg_pool_n_threads(const gg_pool *pool);

/* Have the pool to oneself until gg_pool_leave; its threads are there then. -1: another thread has it, or threads cannot
 * be started. */
int32_t gg_pool_enter(gg_pool *pool, gg_error *err);
void gg_pool_leave(gg_pool *pool);

/* For whoever has entered: call body(arg, ith) once on every thread, ith in [0, n_threads); return when all calls have. */
void gg_pool_run(gg_pool *pool, void (*body)(void *arg, int ith), void *arg);

/* Inside a run, called by every thread: none goes on before all have come. */
void gg_pool_barrier(gg_pool *pool);

#endif
