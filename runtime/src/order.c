/* order.c - gg_order_writes: a graph says what reads memory before a CPY writes it and what after.
 *
 * In a file the order of nodes says it: a view made before a CPY sees, when it is read after it, what the CPY wrote.
 * Passes drop, move and differentiate nodes by their sources alone, so here such a reader gets them:
 *
 *     v = view(cache)                       v = view(cache)
 *     w = cpy(k, v)               ->        w = cpy(k, v);  cache' = updated(cache, w)
 *     y = add(v, x)                         y = add(view_as(cache', v), x)
 *
 * Nothing is copied by that: all of them lie in the memory of `cache`. Called by the importer.
 */
#include "rebuild.h"

#include <stdlib.h>

#include "gg_ops.h"

typedef struct ordering {
    gg_rebuild r;     /* r.map: of a tensor, its newest place in the new graph */
    int32_t   *write; /* per root of the old graph: the last CPY into it, in the new graph; 0: none */
} ordering;

/* Tensor `id` of the old graph as it is now. */
static int32_t current(ordering *o, int32_t id)
{
    int32_t root = gg_at(o->r.in, id)->root;
    if (o->r.map[id] >= o->write[root]) return o->r.map[id];
    const int32_t src[] = {o->r.map[root], o->r.map[id]};
    return o->r.map[id] = gg_node(o->r.out, GG_OP_VIEW_AS, 2, src, NULL, NULL, NULL, o->r.err);
}

/* The root of CPY node `id` has a new version. */
static int32_t note_write(ordering *o, int32_t id)
{
    int32_t root = gg_at(o->r.in, id)->root;
    const int32_t src[] = {o->r.map[root], o->r.map[id]};
    o->write[root] = o->r.map[id];
    return o->r.map[root] = gg_node(o->r.out, GG_OP_UPDATED, 2, src, NULL, NULL, NULL, o->r.err);
}

static int32_t copy_node(ordering *o, int32_t id)
{
    const gg_tensor t = *gg_at(o->r.in, id);
    int32_t src[GG_MAX_SRC];
    for (int k = 0; k < t.n_src; k++) {
        src[k] = t.src[k] < 0 ? -1 : current(o, t.src[k]);
        if (t.src[k] >= 0 && src[k] < 0) return -1;
    }
    int32_t copy = gg_copied(&o->r, id, gg_copy_node(&o->r, &t, src));
    if (copy < 0) return -1;
    return t.op == GG_OP_CPY ? note_write(o, id) : copy;
}

gg_graph *gg_order_writes(const gg_graph *g, gg_error *err)
{
    ordering o = {.write = calloc((size_t)g->n_tensors + 1, sizeof *o.write)};
    if (!gg_rebuild_begin(&o.r, g, err)) {
        free(o.write);
        return NULL;
    }
    bool ok = o.write != NULL;
    if (!ok) gg_fail(err, GG_ERR_MEMORY, -1, "no memory to order %d tensors", g->n_tensors);
    for (int32_t id = 0; id < g->n_tensors && ok; id++)
        ok = (gg_is_leaf(gg_at(g, id)) ? gg_copy_leaf(&o.r, id, NULL) : copy_node(&o, id)) >= 0;
    free(o.write);
    return gg_rebuild_end(&o.r, ok);
}
