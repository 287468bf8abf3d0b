/* plan.c - the memory planner. See plan.h.
 *
 * A buffer is the memory of one root: it lives from the node that makes it to the last node that reads it or a view
 * of it. An in-place node takes over the buffer of one source that dies there. Buffers are placed largest first,
 * each at the lowest offset that is free during its whole life (Pisarchyk & Lee 2020, greedy by size).
 */
#include "plan.h"

#include <stdlib.h>

#include "gg_ops.h"

typedef struct buffer {
    int32_t first, last; /* nodes, inclusive */
    int64_t nbytes, offset;
} buffer;

typedef struct planner {
    const gg_graph *g;
    buffer         *buffers; /* per tensor id; nbytes 0 for what is not in the arena */
    int32_t        *owner;   /* root id -> id whose buffer it shares (itself, or what it overwrote) */
} planner;

static bool in_arena(const gg_graph *g, int32_t root) { return !gg_is_leaf(gg_at(g, root)); }

static void measure_lives(planner *p)
{
    const gg_graph *g = p->g;
    int32_t end = g->n_tensors;
    for (int32_t id = 0; id < end; id++) {
        const gg_tensor *t = gg_at(g, id);
        p->owner[id] = id;
        if (t->root == id && in_arena(g, id)) p->buffers[id] = (buffer){id, id, gg_align(gg_span(t)), -1};
        for (int k = 0; k < GG_MAX_SRC; k++)
            if (t->src[k] >= 0 && !(gg_ops[t->op].layouts >> k & 1)) p->buffers[gg_at(g, t->src[k])->root].last = id;
    }
    for (int32_t id = 0; id < end; id++) { /* what is read after the run: outputs and gradients of parameters */
        const gg_tensor *t = gg_at(g, id);
        if (t->flags & GG_FLAG_OUTPUT) p->buffers[t->root].last = end;
        if ((t->flags & GG_FLAG_PARAM) && g->grads[id] >= 0) p->buffers[gg_at(g, g->grads[id])->root].last = end;
    }
}

/* Whether the op lets node id write its result over source k: the one it names, or any other as large of an elementwise
 * op. */
static bool may_overwrite(const planner *p, int32_t id, int k)
{
    const gg_tensor *y = gg_at(p->g, id);
    int32_t inplace = gg_ops[y->op].inplace;
    if (inplace < 0 || y->root != id || y->src[k] < 0) return false;
    return k == inplace || (gg_ops[y->op].elementwise && gg_same_shape(gg_at(p->g, y->src[k]), y));
}

/* Whether each element lies where the same element of `a`, which is contiguous, does. */
static bool is_in_place_of(const gg_tensor *t, const gg_tensor *a)
{
    return gg_same_shape(t, a) && gg_is_contiguous(t) && t->root_offset == a->root_offset;
}

static bool can_overwrite(const planner *p, int32_t id, int taken)
{
    const gg_tensor *y = gg_at(p->g, id), *a = gg_at(p->g, y->src[taken]);
    const buffer *b = &p->buffers[p->owner[a->root]];
    if (!in_arena(p->g, a->root) || b->last != id || b->nbytes != gg_align(gg_span(y))) return false;
    if (!gg_is_contiguous(a) || a->root_offset != 0) return false;
    for (int k = 0; k < GG_MAX_SRC; k++) {
        if (y->src[k] < 0 || k == taken || gg_ops[y->op].layouts >> k & 1) continue;
        const gg_tensor *other = gg_at(p->g, y->src[k]);
        bool same_memory = p->owner[other->root] == p->owner[a->root];
        if (same_memory && !(gg_ops[y->op].elementwise && is_in_place_of(other, a))) return false;
    }
    return true;
}

static void share_inplace(planner *p)
{
    for (int32_t id = 0; id < p->g->n_tensors; id++) {
        for (int k = 0; k < GG_MAX_SRC; k++) {
            if (!may_overwrite(p, id, k) || !can_overwrite(p, id, k)) continue;
            int32_t owner = p->owner[gg_at(p->g, gg_at(p->g, id)->src[k])->root];
            p->owner[id] = owner;
            p->buffers[owner].last = p->buffers[id].last;
            p->buffers[id].nbytes = 0;
            break;
        }
    }
}

static int by_size(const void *a, const void *b)
{
    const buffer *x = *(const buffer *const *)a, *y = *(const buffer *const *)b;
    if (x->nbytes != y->nbytes) return x->nbytes < y->nbytes ? 1 : -1;
    return x->first < y->first ? -1 : x->first > y->first;
}

static bool overlaps(const buffer *a, const buffer *b) { return a->first <= b->last && b->first <= a->last; }

/* The lowest gap that fits among the n placed buffers, which are sorted by offset. */
static int64_t find_gap(const buffer *b, buffer *const *placed, int32_t n)
{
    int64_t offset = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!overlaps(b, placed[i])) continue;
        if (offset + b->nbytes <= placed[i]->offset) break;
        offset = gg_max_i64(offset, placed[i]->offset + placed[i]->nbytes);
    }
    return offset;
}

static int64_t place(buffer **order, buffer **placed, int32_t n)
{
    int64_t end = 0;
    for (int32_t i = 0; i < n; i++) {
        order[i]->offset = find_gap(order[i], placed, i);
        end = gg_max_i64(end, order[i]->offset + order[i]->nbytes);
        int32_t at = i;
        for (; at > 0 && placed[at - 1]->offset > order[i]->offset; at--) placed[at] = placed[at - 1];
        placed[at] = order[i];
    }
    return end;
}

/* `change` holds n + 1 zeros. */
static int64_t most_live(const planner *p, int64_t *change)
{
    int64_t live = 0, most = 0;
    for (int32_t id = 0; id < p->g->n_tensors; id++) {
        change[id] += p->buffers[id].nbytes;
        if (p->buffers[id].nbytes > 0 && p->buffers[id].last < p->g->n_tensors)
            change[p->buffers[id].last + 1] -= p->buffers[id].nbytes;
    }
    for (int32_t id = 0; id < p->g->n_tensors; id++) most = gg_max_i64(most, live += change[id]);
    return most;
}

static int64_t work_of(const gg_graph *g, const gg_tensor *y, int n_threads)
{
    const gg_tensor *src[GG_MAX_SRC];
    if (!gg_ops[y->op].work) return 0;
    for (int k = 0; k < GG_MAX_SRC; k++) src[k] = y->src[k] < 0 ? NULL : gg_at(g, y->src[k]);
    return gg_align(gg_ops[y->op].work(y, src, n_threads));
}

/* Whether all buffers together have so few bytes that no offset overflows. */
static bool is_addressable(const planner *p)
{
    const int64_t most = (int64_t)1 << 62;
    int64_t total = 0;
    for (int32_t id = 0; id < p->g->n_tensors; id++)
        if ((total += p->buffers[id].nbytes) > most) return false;
    return true;
}

static int32_t assign(gg_plan *plan, planner *p, buffer **order, buffer **placed, int64_t *change, int n_threads,
                      gg_error *err)
{
    const gg_graph *g = p->g;
    int32_t n = 0;
    measure_lives(p);
    for (int32_t id = 0; id < g->n_tensors; id++) plan->lasts[id] = p->buffers[gg_at(g, id)->root].last;
    share_inplace(p);
    if (!is_addressable(p)) return gg_fail(err, GG_ERR_MEMORY, -1, "the tensors have more than 2^62 bytes");
    for (int32_t id = 0; id < g->n_tensors; id++)
        if (p->buffers[id].nbytes > 0) order[n++] = &p->buffers[id];
    qsort(order, (size_t)n, sizeof *order, by_size);
    plan->arena_nbytes = place(order, placed, n);
    plan->live_nbytes = most_live(p, change);
    for (int32_t id = 0; id < g->n_tensors; id++) {
        const gg_tensor *t = gg_at(g, id);
        bool is_in = in_arena(g, t->root);
        plan->offsets[id] = is_in ? p->buffers[p->owner[t->root]].offset + t->root_offset : -1;
        plan->work_nbytes = gg_max_i64(plan->work_nbytes, work_of(g, t, n_threads));
    }
    return 0;
}

int32_t gg_plan_make(gg_plan *plan, const gg_graph *g, int n_threads, gg_error *err)
{
    size_t n = (size_t)g->n_tensors + 1;
    planner p = {.g = g, .buffers = calloc(n, sizeof *p.buffers), .owner = malloc(n * sizeof *p.owner)};
    buffer **order = malloc(n * sizeof *order), **placed = malloc(n * sizeof *placed);
    int64_t *change = calloc(n, sizeof *change);
    *plan = (gg_plan){.offsets = malloc(n * sizeof *plan->offsets), .lasts = malloc(n * sizeof *plan->lasts)};
    bool has_memory = p.buffers && p.owner && order && placed && change && plan->offsets && plan->lasts;
    int32_t status = has_memory ? assign(plan, &p, order, placed, change, n_threads, err)
                                : gg_fail(err, GG_ERR_MEMORY, -1, "no memory to plan %d tensors", g->n_tensors);
    free(p.buffers);
    free(p.owner);
    free(order);
    free(placed);
    free(change);
    return status;
}

void gg_plan_free(gg_plan *plan)
{
    free(plan->offsets);
    free(plan->lasts);
}
