/* exec.c - running a graph: a plan, an arena, and the threads of a pool that walk the nodes together.
 *
 * Every thread calls the kernel of each node with its own share and waits for the others after it. Views have no
 * kernel. A kernel that meets a bad value reports it with gg_fault; the run then ends after that node. A profiled run
 * reads the clock after each barrier, on thread 0 only: a node's time is that of its slowest thread.
 */
#include <stdlib.h>

#include "gg_ops.h"
#include "clock.h"
#include "hugepages.h"
#include "isa.h"
#include "kernel.h"
#include "plan.h"
#include "pool.h"

struct gg_program {
    gg_graph         *g;
    gg_plan           plan;
    const gg_kernels *kernels;
    gg_pool          *pool; /* the caller's */
    int32_t           matmul_precision;
    int               n_threads;
    char             *arena; /* allocated by the first run; the scratch memory lies behind the tensors */
    int32_t           begin, end;
    int32_t           done; /* nodes before it are computed */
    double           *seconds; /* the caller's, per tensor; NULL unless profiled */
    gg_fault_note     fault;
};

/* ---------------------------------------------------------------- life */

/* The graph passes put copies where they are needed; one that comes from a file has none. */
static int32_t check_sources_fit(const gg_graph *g, gg_error *err)
{
    for (int32_t id = 0; id < g->n_tensors; id++)
        for (int k = 0; k < GG_MAX_SRC; k++) {
            const gg_tensor *t = gg_at(g, id);
            if (t->src[k] < 0 || gg_fits(gg_at(g, t->src[k]), t->op, k)) continue;
            return gg_fail(err, GG_ERR_ARGUMENT, id, "source %d of %s %s has gaps; gg_fuse puts a copy between", k,
                           gg_ops[t->op].name, t->name);
        }
    return 0;
}

gg_program *gg_program_new(gg_graph *g, gg_pool *pool, const char *isa, int32_t matmul_precision, gg_error *err)
{
    const gg_kernels *kernels = gg_isa_find(isa, err);
    if (!kernels) return NULL;
    if (matmul_precision != GG_MATMUL_FLOAT32 && matmul_precision != GG_MATMUL_BF16) {
        gg_fail(err, GG_ERR_ARGUMENT, -1, "matmul precision %d is not one of GG_MATMUL_*", matmul_precision);
        return NULL;
    }
    if (check_sources_fit(g, err) < 0) return NULL;
    gg_program *p = calloc(1, sizeof *p);
    if (!p) {
        gg_fail(err, GG_ERR_MEMORY, -1, "no memory for a program");
        return NULL;
    }
    p->g = g;
    p->pool = pool;
    p->kernels = kernels;
    p->matmul_precision = matmul_precision;
    p->n_threads = gg_pool_n_threads(pool);
    if (gg_plan_make(&p->plan, g, p->n_threads, err) < 0) {
        gg_program_free(p);
        return NULL;
    }
    return p;
}

void gg_program_free(gg_program *p)
{
    if (!p) return;
    gg_plan_free(&p->plan);
    free(p->arena);
    free(p);
}

/* Memory is taken by the first run, so that a plan can be inspected without it. */
static int32_t prepare(gg_program *p, gg_error *err)
{
    for (int32_t id = 0; id < p->g->n_tensors; id++)
        if (gg_is_leaf(gg_at(p->g, id)) && !gg_leaf_data(p->g, id, err)) return -1;
    if (!p->arena) {
        int64_t nbytes = gg_max_i64(p->plan.arena_nbytes + p->plan.work_nbytes, GG_ALIGN);
        void *arena = NULL;
        if (posix_memalign(&arena, 4096, (size_t)nbytes) != 0)
            return gg_fail(err, GG_ERR_MEMORY, -1, "no memory for the %lld bytes of the plan", (long long)nbytes);
        gg_want_huge_pages(arena, nbytes);
        p->arena = arena;
    }
    return 0;
}

/* ---------------------------------------------------------------- running */

static char *data_of(const gg_program *p, int32_t id)
{
    const gg_tensor *t = gg_at(p->g, id);
    if (p->plan.offsets[id] >= 0) return p->arena + p->plan.offsets[id];
    return p->g->buffers[t->root]->bytes + t->root_offset;
}

static void run_node(gg_program *p, int32_t id, int ith, gg_kernel *kernel)
{
    const gg_tensor *y = gg_at(p->g, id);
    gg_task t = {.y = y, .y_data = data_of(p, id), .work = p->arena + p->plan.arena_nbytes,
                 .matmul_precision = p->matmul_precision, .ith = ith, .nth = p->n_threads, .id = id,
                 .fault = &p->fault, .pool = p->pool};
    for (int k = 0; k < GG_MAX_SRC; k++) {
        if (y->src[k] < 0) continue;
        t.src[k] = gg_at(p->g, y->src[k]);
        t.src_data[k] = data_of(p, y->src[k]);
    }
    kernel(&t);
}

/* Adds the time since `before`; returns the time now. */
static double add_elapsed(double *seconds, double before)
{
    double now = gg_now();
    *seconds += now - before;
    return now;
}

static void walk(void *arg, int ith)
{
    gg_program *p = arg;
    double  *seconds = ith == 0 ? p->seconds : NULL, before = seconds ? gg_now() : 0;
    for (int32_t id = p->begin; id < p->end; id++) {
        gg_kernel *kernel = p->kernels->kernel[gg_at(p->g, id)->op];
        if (!kernel) continue;
        run_node(p, id, ith, kernel);
        gg_pool_barrier(p->pool);
        if (seconds) before = add_elapsed(&seconds[id], before);
        /* <= : a faster thread may already have met a fault in the next node */
        if (atomic_load(&p->fault.node) <= id) return;
    }
}

void gg_program_profile(gg_program *p, double *seconds) { p->seconds = seconds; }

/* By whoever has the pool. */
static int32_t run(gg_program *p, int32_t begin, int32_t end, gg_error *err)
{
    if (begin > p->done) return gg_fail(err, GG_ERR_ARGUMENT, -1, "nodes before %d are not computed", begin);
    if (prepare(p, err) < 0) return -1;
    p->begin = begin;
    p->end = end;
    atomic_store(&p->fault.node, GG_NO_FAULT);
    gg_pool_run(p->pool, walk, p);
    int32_t fault = atomic_load(&p->fault.node);
    p->done = fault == GG_NO_FAULT ? end : fault;
    if (fault == GG_NO_FAULT) return 0;
    return gg_fail(err, GG_ERR_DATA, fault, "%s: id %lld is not in 0..%lld", gg_ops[gg_at(p->g, fault)->op].name,
                   (long long)atomic_load(&p->fault.value), (long long)atomic_load(&p->fault.limit) - 1);
}

int32_t gg_program_run(gg_program *p, int32_t begin, int32_t end, gg_error *err)
{
    if (begin < 0 || begin > end || end > p->g->n_tensors)
        return gg_fail(err, GG_ERR_ARGUMENT, -1, "nodes %d to %d of a graph of %d", begin, end, p->g->n_tensors);
    if (gg_pool_enter(p->pool, err) < 0) return -1;
    int32_t status = run(p, begin, end, err);
    gg_pool_leave(p->pool);
    return status;
}

/* ---------------------------------------------------------------- questions */

/* Whether a tensor's memory holds its values: it is computed, and is still to be read, kept, or the last one. */
static bool is_there(const gg_program *p, int32_t id)
{
    if (gg_is_leaf(gg_at(p->g, id))) return p->g->buffers[id] != NULL;
    return id < p->done && (p->plan.offsets[id] < 0 || id == p->done - 1 || p->plan.lasts[id] >= p->done);
}

void *gg_program_data(gg_program *p, int32_t id)
{
    return gg_graph_tensor(p->g, id) && is_there(p, id) ? data_of(p, id) : NULL;
}

int64_t gg_program_arena_nbytes(const gg_program *p) { return p->plan.arena_nbytes; }

int64_t gg_program_live_nbytes(const gg_program *p) { return p->plan.live_nbytes; }

int64_t gg_program_work_nbytes(const gg_program *p) { return p->plan.work_nbytes; }

int64_t gg_program_offset(const gg_program *p, int32_t id)
{
    return gg_graph_tensor(p->g, id) ? p->plan.offsets[id] : -1;
}

double gg_program_flops(const gg_program *p, int32_t begin, int32_t end)
{
    double flops = 0;
    for (int32_t id = begin < 0 ? 0 : begin; id < end && id < p->g->n_tensors; id++) flops += gg_node_flops(p->g, gg_at(p->g, id));
    return flops;
}
