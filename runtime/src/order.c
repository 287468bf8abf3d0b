/* order.c - gg_order_writes: a graph says what reads memory before a node writes it and what after.
 *
 * In a file the order of nodes says it: a view made before a CPY sees, when it is read after it, what the CPY wrote. So
 * with all sources that the op table says an op writes.
 * Passes drop, move and differentiate nodes by their sources alone, so here such a reader gets them:
 *
 *     v = view(cache)                       v = view(cache)
 *     w = cpy(k, v)               ->        w = cpy(k, v);  cache' = updated(cache, w)
 *     y = add(v, x)                         v' = view_as(cache', v);  y = add(v', x)
 *
 * Nothing is copied by that: all of them lie in the memory of `cache`. A result that the importer copied over its source,
 * because ggml computes it in place, stays where it is if nobody reads the old memory again.
 *
 * cache' and v' are newer versions of cache and v. Whoever reads a tensor after the run reads what its memory holds by
 * then, so every computed tensor that is written to has a version after the last write; versions have the tensor's name,
 * and the last one its flags. Called by the importer.
 */
#include "order.h"

#include "rebuild.h"

#include <stdlib.h>

#include "gg_ops.h"

typedef struct ordering {
    gg_rebuild r;     /* r.map: of a tensor, its newest place in the new graph */
    int32_t   *write; /* per root of the old graph: the last node that writes it, in the new graph; 0: none */
    bool      *unseen; /* per node of the old graph: a write in place that nobody can tell from a new tensor */
} ordering;

/* A copy by the importer, which unlike those of a file has no name, of a result over all of its source's memory. */
static bool is_write_back(const gg_graph *g, int32_t id)
{
    const gg_tensor *t = gg_at(g, id), *root = gg_at(g, t->root);
    return t->op == GG_OP_CPY && t->src[0] == id - 1 && !gg_at(g, id - 1)->name[0] && !gg_is_leaf(root) &&
           gg_is_contiguous(t) && gg_span(t) == gg_span(root);
}

/* From the last node on: `oldest` is, per root, the oldest tensor there that a node read so far uses. */
static void find_unseen(ordering *o, int32_t *oldest)
{
    const gg_graph *g = o->r.in;
    for (int32_t id = 0; id < g->n_tensors; id++) oldest[id] = g->n_tensors;
    for (int32_t id = g->n_tensors - 1; id >= 0; id--) {
        const gg_tensor *t = gg_at(g, id);
        o->unseen[id] = is_write_back(g, id) && oldest[t->root] >= id;
        for (int k = 0; k < GG_MAX_SRC; k++)
            if (t->src[k] >= 0 && t->src[k] < oldest[gg_at(g, t->src[k])->root])
                oldest[gg_at(g, t->src[k])->root] = t->src[k];
    }
}

/* Tensor `id` of the old graph is from now on `version`, another tensor in its memory. */
static int32_t renew(ordering *o, int32_t id, int32_t version)
{
    if (version < 0) return -1;
    if (gg_is_leaf(gg_at(o->r.in, id))) return o->r.map[id] = version; /* a leaf's own memory outlives the run */
    gg_set_flags(o->r.out, o->r.map[id], 0, o->r.err);
    return gg_copied(&o->r, id, version);
}

/* Tensor `id` of the old graph as it is now. */
static int32_t current(ordering *o, int32_t id)
{
    int32_t root = gg_at(o->r.in, id)->root;
    if (o->r.map[id] >= o->write[root]) return o->r.map[id];
    const int32_t src[] = {o->r.map[root], o->r.map[id]};
    return renew(o, id, gg_node(o->r.out, GG_OP_VIEW_AS, 2, src, NULL, NULL, NULL, o->r.err));
}

/* The root of source k of node `id`, which writes it, has a new version. */
static int32_t note_write(ordering *o, int32_t id, int k)
{
    gg_builder to = {.g = o->r.out, .err = o->r.err};
    const gg_tensor *t = gg_at(o->r.in, id);
    int32_t root = gg_at(o->r.in, t->src[k])->root, write = o->r.map[id];
    int32_t by = gg_ops[t->op].view == k ? write : gg_make_written(&to, gg_at(o->r.out, write)->src[k], write);
    o->write[root] = write;
    return renew(o, root, gg_make_updated(&to, o->r.map[root], by));
}

static int32_t note_writes(ordering *o, int32_t id)
{
    for (int k = 0; k < GG_MAX_SRC; k++)
        if (gg_writes(gg_at(o->r.in, id), k) && note_write(o, id, k) < 0) return -1;
    return 0;
}

/* Without write back `id`, the memory of its result is that of the root. */
static int32_t leave_out(ordering *o, int32_t id)
{
    const gg_tensor *t = gg_at(o->r.in, id);
    int32_t result = gg_copied(&o->r, id, o->r.map[t->src[0]]);
    const int32_t src[] = {result, o->r.map[t->root]};
    o->write[t->root] = result;
    return renew(o, t->root, gg_node(o->r.out, GG_OP_VIEW_AS, 2, src, NULL, NULL, NULL, o->r.err));
}

static int32_t copy_node(ordering *o, int32_t id)
{
    const gg_tensor t = *gg_at(o->r.in, id);
    int32_t src[GG_MAX_SRC];
    if (o->unseen[id]) return leave_out(o, id);
    for (int k = 0; k < t.n_src; k++) {
        src[k] = t.src[k] < 0 ? -1 : current(o, t.src[k]);
        if (t.src[k] >= 0 && src[k] < 0) return -1;
    }
    int32_t copy = gg_copied(&o->r, id, gg_copy_node(&o->r, &t, src));
    return copy < 0 ? -1 : note_writes(o, id);
}

gg_graph *gg_order_writes(const gg_graph *g, gg_error *err)
{
    size_t n = (size_t)g->n_tensors + 1;
    ordering o = {.write = calloc(n, sizeof *o.write), .unseen = calloc(n, sizeof *o.unseen)};
    int32_t *oldest = malloc(n * sizeof *oldest);
    bool begun = gg_rebuild_begin(&o.r, g, err), ok = begun && o.write && o.unseen && oldest;
    if (ok) find_unseen(&o, oldest);
    else if (begun) gg_fail(err, GG_ERR_MEMORY, -1, "no memory to order %d tensors", g->n_tensors);
    free(oldest);
    for (int32_t id = 0; id < g->n_tensors && ok; id++)
        ok = (gg_is_leaf(gg_at(g, id)) ? gg_copy_leaf(&o.r, id, NULL) : copy_node(&o, id)) >= 0;
    for (int32_t id = 0; id < g->n_tensors && ok; id++)
        ok = gg_is_leaf(gg_at(g, gg_at(g, id)->root)) || current(&o, id) >= 0;
    free(o.write);
    free(o.unseen);
    return begun ? gg_rebuild_end(&o.r, ok) : NULL;
}
