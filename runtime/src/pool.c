/* pool.c - the thread pool: workers that wait at a gate, and a barrier. Used by exec.c and isa.c.
 *
 * Both waits spin for some microseconds, the length of a small kernel, before they sleep: a wake-up through the
 * kernel costs more than most nodes of a small model. Where threads outnumber CPUs they sleep at once, because a
 * spinning thread would hold the CPU that the one it waits for needs. Where there is exactly one thread for every CPU
 * the process may use, each keeps to one of them during a run; with fewer, another process may be on any CPU, and the
 * system knows better.
 */
#define _GNU_SOURCE
#include "pool.h"

#include "affinity.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

enum { N_SPINS = 2000, CACHE_LINE = 64 };

/* A phase that threads wait to see change. */
typedef struct gate {
    _Alignas(CACHE_LINE) atomic_uint phase;
    atomic_int      n_sleeping;
    pthread_mutex_t mutex;
    pthread_cond_t  opened;
} gate;

struct gg_pool {
    gate start;   /* opens once per run */
    gate barrier; /* opens once all threads have arrived */
    _Alignas(CACHE_LINE) atomic_int n_arrived;
    atomic_flag busy;      /* somebody has entered */
    pid_t      process;   /* whose threads the workers are */
    int        n_threads;
    int        n_workers; /* threads started: none, or n_threads - 1 */
    int        n_spins;
    bool       pinned;    /* thread i runs on the i-th CPU of `cpus` and nowhere else */
    gg_cpus    cpus;      /* those the program may run on */
    gg_cpus    first_cpu; /* the caller's during a run */
    void     (*body)(void *arg, int ith); /* NULL: workers return */
    void      *arg;
    struct worker {
        pthread_t thread;
        gg_pool  *pool;
        int       ith;
    } workers[];
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool gate_init(gate *g)
{
    atomic_init(&g->phase, 0);
    atomic_init(&g->n_sleeping, 0);
    if (pthread_mutex_init(&g->mutex, NULL) != 0) return false;
    if (pthread_cond_init(&g->opened, NULL) == 0) return true;
    pthread_mutex_destroy(&g->mutex);
    return false;
}

static void gate_destroy(gate *g)
{
    pthread_cond_destroy(&g->opened);
    pthread_mutex_destroy(&g->mutex);
}

/* The phase is changed before the sleepers are counted and a sleeper counts itself before it reads the phase, all
 * sequentially consistent: so either the opener sees the sleeper or the sleeper sees the new phase. */
static void gate_open(gate *g)
{
    atomic_fetch_add(&g->phase, 1);
    if (atomic_load(&g->n_sleeping) == 0) return;
    pthread_mutex_lock(&g->mutex);
    pthread_cond_broadcast(&g->opened);
    pthread_mutex_unlock(&g->mutex);
}

static void gate_wait(gate *g, unsigned phase, int n_spins)
{
    for (int i = 0; i < n_spins; i++) {
        if (atomic_load_explicit(&g->phase, memory_order_acquire) != phase) return;
        relax();
    }
    pthread_mutex_lock(&g->mutex);
    atomic_fetch_add(&g->n_sleeping, 1);
    while (atomic_load(&g->phase) == phase) pthread_cond_wait(&g->opened, &g->mutex);
    atomic_fetch_sub(&g->n_sleeping, 1);
    pthread_mutex_unlock(&g->mutex);
}

void gg_pool_barrier(gg_pool *pool)
{
    if (pool->n_threads == 1) return;
    unsigned phase = atomic_load_explicit(&pool->barrier.phase, memory_order_relaxed);
    if (atomic_fetch_add(&pool->n_arrived, 1) < pool->n_threads - 1) {
        gate_wait(&pool->barrier, phase, pool->n_spins);
    } else {
        atomic_store_explicit(&pool->n_arrived, 0, memory_order_relaxed);
        gate_open(&pool->barrier);
    }
}

static void *work(void *arg)
{
    struct worker *self = arg;
    gg_pool *pool = self->pool;
    if (pool->pinned) {
        gg_cpus own = gg_ith_cpu(&pool->cpus, self->ith);
        gg_set_cpus(&own);
    }
    for (unsigned phase = 0;; phase++) {
        gate_wait(&pool->start, phase, pool->n_spins);
        if (!pool->body) return NULL;
        pool->body(pool->arg, self->ith);
        gg_pool_barrier(pool);
    }
}

/* Workers block every signal, so that the program's own threads handle them. */
static bool start_workers(gg_pool *pool)
{
    sigset_t all, old;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &old) != 0) return false;
    for (; pool->n_workers < pool->n_threads - 1; pool->n_workers++) {
        struct worker *w = &pool->workers[pool->n_workers];
        w->pool = pool;
        w->ith = pool->n_workers + 1;
        if (pthread_create(&w->thread, NULL, work, w) != 0) break;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return pool->n_workers == pool->n_threads - 1;
}

static void stop_workers(gg_pool *pool)
{
    pool->body = NULL;
    gate_open(&pool->start);
    for (int i = 0; i < pool->n_workers; i++) pthread_join(pool->workers[i].thread, NULL);
    pool->n_workers = 0;
}

/* Gates nobody waits at. */
static bool reset(gg_pool *pool)
{
    atomic_init(&pool->n_arrived, 0);
    pool->n_workers = 0;
    pool->process = getpid();
    if (!gate_init(&pool->start)) return false;
    if (gate_init(&pool->barrier)) return true;
    gate_destroy(&pool->start);
    return false;
}

/* All threads, or none. */
static bool is_staffed(gg_pool *pool)
{
    if (pool->n_workers == pool->n_threads - 1) return true;
    if (start_workers(pool)) return true;
    stop_workers(pool);
    gate_destroy(&pool->barrier);
    gate_destroy(&pool->start);
    reset(pool);
    return false;
}

int32_t gg_pool_enter(gg_pool *pool, gg_error *err)
{
    if (pool->process != getpid()) { /* forked: the threads, and whoever had the pool, stayed behind */
        reset(pool);
        atomic_flag_clear(&pool->busy);
    }
    if (atomic_flag_test_and_set(&pool->busy))
        return gg_fail(err, GG_ERR_ARGUMENT, -1, "a run is under way in another thread");
    if (is_staffed(pool)) return 0;
    atomic_flag_clear(&pool->busy);
    return gg_fail(err, GG_ERR_MEMORY, -1, "cannot start %d threads", pool->n_threads);
}

void gg_pool_leave(gg_pool *pool) { atomic_flag_clear(&pool->busy); }

void gg_pool_run(gg_pool *pool, void (*body)(void *arg, int ith), void *arg)
{
    pool->body = body;
    pool->arg = arg;
    if (pool->n_threads > 1) gate_open(&pool->start);
    gg_cpus before;
    bool pinned = pool->pinned && gg_get_cpus(&before);
    if (pinned) gg_set_cpus(&pool->first_cpu);
    body(arg, 0);
    gg_pool_barrier(pool);
    if (pinned) gg_set_cpus(&before);
}

int gg_pool_n_threads(const gg_pool *pool) { return pool->n_threads; }

gg_pool *gg_pool_new(int32_t n_threads, gg_error *err)
{
    if (n_threads < 1 || n_threads > GG_MAX_THREADS) {
        gg_fail(err, GG_ERR_ARGUMENT, -1, "%d threads are not in 1..%d", n_threads, GG_MAX_THREADS);
        return NULL;
    }
    size_t nbytes = sizeof(gg_pool) + (size_t)n_threads * sizeof(struct worker);
    gg_pool *pool = aligned_alloc(CACHE_LINE, (nbytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    if (!pool || !reset(pool)) {
        gg_fail(err, GG_ERR_MEMORY, -1, "no memory for a pool of %d threads", n_threads);
        free(pool);
        return NULL;
    }
    atomic_flag_clear(&pool->busy);
    pool->n_threads = n_threads;
    bool known = gg_get_cpus(&pool->cpus);
    int  n_cpus = known ? gg_count_cpus(&pool->cpus) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    pool->n_spins = n_threads <= n_cpus ? N_SPINS : 0;
    pool->pinned = known && n_threads > 1 && n_threads == n_cpus;
    if (pool->pinned) pool->first_cpu = gg_ith_cpu(&pool->cpus, 0);
    return pool;
}

void gg_pool_free(gg_pool *pool)
{
    if (!pool) return;
    if (pool->process == getpid()) { /* else nobody is there to be joined, and the gates may seem to be waited at */
        stop_workers(pool);
        gate_destroy(&pool->barrier);
        gate_destroy(&pool->start);
    }
    free(pool);
}
