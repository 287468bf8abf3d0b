/* recompute.c - gg_recompute: a training graph that keeps fewer activations and computes them again when the backward
 * pass asks for them (Griewank & Walther 2000; Chen et al. 2016). The results stay the same bytes.
 *
 * The forward nodes are cut into segments where little is alive: between the halves of a transformer's block that is
 * the residual stream alone. What is alive at a cut is kept. Of a segment the first tier drops what costs no matrix
 * product and can be made from what is kept anyway (norms, activations); the second drops everything. Early segments
 * come first, because their activations wait longest. A dropped tensor is computed again right before its first
 * reader in the backward pass. Called by the Python runtime when a plan does not fit its memory limit.
 */
#include "rebuild.h"

#include <stdlib.h>

#include "gg_ops.h"

typedef struct recompute {
    gg_rebuild r;
    int32_t    loss;      /* the last forward node */
    int32_t   *last;      /* per root: its last forward reader */
    int64_t   *live;      /* per forward node: bytes that a later forward node will read */
    int32_t   *segment;   /* per forward node; n_segments from the last cut on, where nothing is dropped */
    int32_t    n_segments;
    bool      *kept;      /* per root: alive at a cut, an output, or not safe to compute twice */
    bool      *saved;     /* per root: a cut keeps it or the backward pass reads it */
    bool      *dropped;   /* per root */
    int32_t   *writer;    /* per root: the last node that writes it as a source, or -1 */
    bool      *wanted;    /* scratch of compute_again */
    int32_t   *again;     /* per forward tensor: its second copy in the new graph, or -1 */
} recompute;

static const gg_tensor *tensor(const recompute *c, int32_t id) { return gg_at(c->r.in, id); }

static bool is_activation(const recompute *c, int32_t root)
{
    return root <= c->loss && !gg_is_leaf(tensor(c, root));
}

/* ---------------------------------------------------------------- what may be dropped */

/* A source that a node writes and that is not scratch made for it (`empty`) changes under its readers. */
static void find_writers(recompute *c)
{
    for (int32_t id = 0; id < c->r.in->n_tensors; id++) {
        const gg_tensor *t = tensor(c, id);
        for (int k = 0; k < GG_MAX_SRC; k++)
            if (t->src[k] >= 0 && gg_ops[t->op].writes >> k & 1) c->writer[tensor(c, t->src[k])->root] = id;
    }
}

static bool is_stable(const recompute *c, int32_t root)
{
    return c->writer[root] < 0 || tensor(c, root)->op == GG_OP_EMPTY;
}

static void keep_unstable(recompute *c)
{
    for (int32_t id = 0; id <= c->loss; id++) {
        const gg_tensor *t = tensor(c, id);
        bool stable = is_stable(c, t->root) && !(t->flags & GG_FLAG_OUTPUT);
        for (int k = 0; k < GG_MAX_SRC; k++)
            if (t->src[k] >= 0) stable = stable && is_stable(c, tensor(c, t->src[k])->root);
        if (!stable) c->kept[t->root] = true;
    }
}

static void measure_live(recompute *c)
{
    for (int32_t id = 0; id <= c->loss; id++) {
        c->last[id] = id;
        for (int k = 0; k < GG_MAX_SRC; k++)
            if (tensor(c, id)->src[k] >= 0) c->last[tensor(c, tensor(c, id)->src[k])->root] = id;
    }
    for (int32_t id = 0; id <= c->loss; id++) {
        if (tensor(c, id)->root != id || !is_activation(c, id)) continue;
        for (int32_t at = id; at < c->last[id]; at++) c->live[at] += gg_align(gg_span(tensor(c, id)));
    }
}

/* Whether less is alive after node id than before and than later: the beginning of a valley. */
static bool is_valley(const recompute *c, int32_t id)
{
    int32_t next = id + 1;
    if (id == 0 || c->live[id] >= c->live[id - 1]) return false;
    while (next < c->loss && c->live[next] == c->live[id]) next++;
    return next < c->loss && c->live[next] > c->live[id];
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Cut in the valleys no deeper than half of them are. */
static void cut(recompute *c, int64_t *depths)
{
    size_t n = 0;
    for (int32_t id = 0; id < c->loss; id++)
        if (is_valley(c, id)) depths[n++] = c->live[id];
    if (n > 0) qsort(depths, n, sizeof *depths, ascending);
    for (int32_t id = 0; id <= c->loss; id++) {
        c->segment[id] = c->n_segments;
        if (n == 0 || !is_valley(c, id) || c->live[id] > depths[(n - 1) / 2]) continue;
        c->n_segments++;
        for (int32_t root = 0; root <= id; root++)
            if (tensor(c, root)->root == root && c->last[root] > id) c->kept[root] = true;
    }
}

/* Source k of node id if the node reads it, and not just where it lies; else -1. */
static int32_t read_source(const recompute *c, int32_t id, int k)
{
    const gg_tensor *t = tensor(c, id);
    return gg_ops[t->op].layouts >> k & 1 ? -1 : t->src[k];
}

static void find_saved(recompute *c)
{
    for (int32_t id = 0; id <= c->loss; id++) c->saved[id] = c->kept[id];
    for (int32_t id = c->loss + 1; id < c->r.in->n_tensors; id++)
        for (int k = 0; k < GG_MAX_SRC; k++) {
            int32_t src = read_source(c, id, k);
            if (src >= 0 && src <= c->loss) c->saved[tensor(c, src)->root] = true;
        }
}

/* Dropping it saves memory: it is read again, and its sources are there anyway. */
static bool is_cheap(const recompute *c, int32_t root)
{
    const gg_tensor *t = tensor(c, root);
    if (!c->saved[root] || t->op == GG_OP_EMPTY || gg_node_flops(c->r.in, t) > 0) return false;
    for (int k = 0; k < GG_MAX_SRC; k++) {
        if (t->src[k] < 0) continue;
        int32_t src = tensor(c, t->src[k])->root;
        if (is_activation(c, src) && !c->saved[src]) return false;
    }
    return true;
}

static void choose(recompute *c, int32_t level)
{
    for (int32_t id = 0; id <= c->loss; id++) {
        if (tensor(c, id)->root != id || !is_activation(c, id) || c->kept[id]) continue;
        int32_t segment = c->segment[id];
        if (segment == c->n_segments) continue;
        c->dropped[id] = segment + c->n_segments < level || (segment < level && is_cheap(c, id));
    }
}

/* ---------------------------------------------------------------- the new graph */

static bool is_dropped(const recompute *c, int32_t id) { return id <= c->loss && c->dropped[tensor(c, id)->root]; }

/* A node like id on what its sources are by now: computed again where they were, else the first copy. */
static int32_t copy_node(recompute *c, int32_t id)
{
    const gg_tensor *t = tensor(c, id);
    int32_t src[GG_MAX_SRC];
    for (int k = 0; k < t->n_src; k++)
        src[k] = t->src[k] < 0 ? -1 : c->again[t->src[k]] >= 0 ? c->again[t->src[k]] : c->r.map[t->src[k]];
    return gg_copy_node(&c->r, t, src);
}

/* Compute a dropped tensor again, and first what it is made from where that was dropped too. */
static bool compute_again(recompute *c, int32_t id)
{
    int32_t root = tensor(c, id)->root, top = c->writer[root] > id ? c->writer[root] : id, low = top;
    c->wanted[top] = true;
    for (int32_t at = top; at >= 0; at--) {
        if (!c->wanted[at]) continue;
        c->wanted[at] = is_dropped(c, at) && c->again[at] < 0;
        if (!c->wanted[at]) continue;
        low = at;
        for (int k = 0; k < GG_MAX_SRC; k++)
            if (tensor(c, at)->src[k] >= 0) c->wanted[tensor(c, at)->src[k]] = true;
    }
    for (int32_t at = low; at <= top; at++) {
        if (c->wanted[at] && (c->again[at] = copy_node(c, at)) < 0) return false;
        c->wanted[at] = false;
    }
    return true;
}

/* Compute again what a node of the backward pass reads and was dropped. */
static bool restore_sources(recompute *c, int32_t id)
{
    for (int k = 0; k < tensor(c, id)->n_src; k++) {
        int32_t src = read_source(c, id, k);
        if (src >= 0 && is_dropped(c, src) && c->again[src] < 0 && !compute_again(c, src)) return false;
    }
    return true;
}

static bool copy_all(recompute *c)
{
    const gg_graph *g = c->r.in;
    for (int32_t id = 0; id < g->n_tensors; id++) {
        if (id > c->loss && !restore_sources(c, id)) return false;
        int32_t copy = gg_is_leaf(gg_at(g, id)) ? gg_copy_leaf(&c->r, id, NULL)
                                                : gg_copied(&c->r, id, copy_node(c, id));
        if (copy < 0) return false;
    }
    return true;
}

/* ---------------------------------------------------------------- both entries */

static void analyse(recompute *c, int64_t *depths)
{
    for (int32_t id = 0; id < c->r.in->n_tensors; id++) c->writer[id] = c->again[id] = -1;
    find_writers(c);
    keep_unstable(c);
    measure_live(c);
    cut(c, depths);
    find_saved(c);
}

/* level < 0: only count the levels. */
static int32_t run(recompute *c, int32_t level)
{
    size_t n = (size_t)c->r.in->n_tensors;
    int64_t *depths = calloc(n, sizeof *depths);
    c->last = calloc(n, sizeof *c->last);
    c->live = calloc(n, sizeof *c->live);
    c->segment = calloc(n, sizeof *c->segment);
    c->kept = calloc(n, sizeof *c->kept);
    c->saved = calloc(n, sizeof *c->saved);
    c->dropped = calloc(n, sizeof *c->dropped);
    c->writer = calloc(n, sizeof *c->writer);
    c->wanted = calloc(n, sizeof *c->wanted);
    c->again = calloc(n, sizeof *c->again);
    bool ok = depths && c->last && c->live && c->segment && c->kept && c->saved && c->dropped && c->writer &&
              c->wanted && c->again;
    if (ok) {
        analyse(c, depths);
        if (level >= 0) choose(c, level);
        ok = level < 0 || copy_all(c);
    } else {
        gg_fail(c->r.err, GG_ERR_MEMORY, -1, "no memory for a graph of %zu tensors", n);
    }
    free(depths);
    free(c->last);
    free(c->live);
    free(c->segment);
    free(c->kept);
    free(c->saved);
    free(c->dropped);
    free(c->writer);
    free(c->wanted);
    free(c->again);
    return ok ? 2 * c->n_segments : -1;
}

int32_t gg_recompute_levels(const gg_graph *g, int32_t loss, gg_error *err)
{
    if (!gg_graph_tensor(g, loss)) return gg_fail(err, GG_ERR_ARGUMENT, loss, "no tensor %d", loss);
    recompute c = {.r = {.in = g, .err = err}, .loss = loss};
    return run(&c, -1);
}

gg_graph *gg_recompute(const gg_graph *g, int32_t loss, int32_t level, gg_error *err)
{
    recompute c = {.loss = loss};
    if (!gg_graph_tensor(g, loss) || level < 0) {
        gg_fail(err, GG_ERR_ARGUMENT, loss, "no tensor %d or no level %d", loss, level);
        return NULL;
    }
    if (!gg_rebuild_begin(&c.r, g, err)) return NULL;
    return gg_rebuild_end(&c.r, run(&c, level) >= 0);
}
