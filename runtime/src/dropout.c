/* dropout.c - gg_dropout: in a graph to be trained, the reshapes that a file says are dropouts become dropouts.
 *
 * A file holds them as what stock ggml computes and what evaluation is: nothing. Called before gg_fuse.
 */
#include "rebuild.h"

#include "gg_ops.h"

/* The dropout number i of source 0 of node id, which has to be a reshape to the same shape. */
static int32_t drop(gg_rebuild *r, int32_t id, int32_t i, float rate, int32_t key)
{
    const gg_tensor *t = gg_at(r->in, id);
    gg_builder to = {.g = r->out, .err = r->err};
    if (t->op != GG_OP_RESHAPE || !gg_same_shape(t, gg_at(r->in, t->src[0])))
        return gg_fail(r->err, GG_ERR_ARGUMENT, id, "%s is no reshape to the same shape", t->name);
    return gg_copied(r, id, gg_make_dropout(&to, r->map[t->src[0]], key, rate, i));
}

static int32_t copy_plain(gg_rebuild *r, int32_t id)
{
    const gg_tensor *t = gg_at(r->in, id);
    int32_t src[GG_MAX_SRC];
    for (int k = 0; k < t->n_src; k++) src[k] = t->src[k] < 0 ? -1 : r->map[t->src[k]];
    return gg_copied(r, id, gg_copy_node(r, t, src));
}

gg_graph *gg_dropout(const gg_graph *g, int32_t n, const int32_t *ids, const float *rates, gg_error *err)
{
    gg_rebuild r;
    const int64_t four[GG_MAX_DIMS] = {4, 1, 1, 1};
    if (!gg_rebuild_begin(&r, g, err)) return NULL;
    int32_t next = 0, key = gg_leaf(r.out, GG_TYPE_I32, four, GG_FLAG_INPUT, "dropout.key", err);
    bool ok = key >= 0;
    for (int32_t id = 0; id < g->n_tensors && ok; id++) {
        if (gg_is_leaf(gg_at(g, id))) {
            ok = gg_copy_leaf(&r, id, NULL) >= 0;
        } else if (next < n && ids[next] == id) {
            ok = drop(&r, id, next, rates[next], key) >= 0;
            next++;
        } else {
            ok = copy_plain(&r, id) >= 0;
        }
    }
    if (ok && next < n) ok = gg_fail(err, GG_ERR_ARGUMENT, -1, "ids of dropouts are not those of nodes, rising") >= 0;
    return gg_rebuild_end(&r, ok);
}
