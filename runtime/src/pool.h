/* pool.h - a fixed team of threads that run one function together. The executor owns one; kernels meet in its barrier.
 *
 * The calling thread is member 0; the others sleep between runs. One run at a time.
 */
#ifndef GG_POOL_H
#define GG_POOL_H

typedef struct gg_pool gg_pool;

gg_pool *gg_pool_new(int n_threads); /* NULL when threads or memory run out */
void gg_pool_free(gg_pool *pool);    /* pool may be NULL */

/* Call body(arg, ith) once on every thread, ith in [0, n_threads); return when all calls have. */
void gg_pool_run(gg_pool *pool, void (*body)(void *arg, int ith), void *arg);

/* Inside a run, called by every thread: none goes on before all have come. */
void gg_pool_barrier(gg_pool *pool);

#endif
