/* resize.c - gg_resize: the same graph at other sizes. Ids stay; every size is derived again by the shape rules. */
#include "rebuild.h"

#include <stdlib.h>

#include "gg_ops.h"

/* New sizes and first words of op_params of one tensor; NULL where it has none. */
typedef struct {
    const int64_t *ne;
    int64_t        words;
} resized;

/* For each tensor of g, 1 + its place among the n ids; 0: it has none. NULL on failure. */
static int32_t *places_of(const gg_graph *g, int32_t n, const int32_t *ids, gg_error *err)
{
    int32_t *places = calloc((size_t)g->n_tensors + 1, sizeof *places);
    if (!places) gg_fail(err, GG_ERR_MEMORY, -1, "no memory to resize %d tensors", g->n_tensors);
    for (int32_t i = 0; i < n && places; i++) {
        if (gg_graph_tensor(g, ids[i])) {
            places[ids[i]] = i + 1;
            continue;
        }
        gg_fail(err, GG_ERR_ARGUMENT, -1, "no tensor %d", ids[i]);
        free(places);
        places = NULL;
    }
    return places;
}

/* A stride of a view is a stride of its source, or a multiple of the same dimension's; of the resized source the same one
 * is the new stride. */
static bool follow_strides(const gg_tensor *old, const gg_tensor *old_src, const gg_tensor *src, int64_t *nb)
{
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        int j = i;
        if (old->nb[i] != old_src->nb[i])
            for (j = 0; j < GG_MAX_DIMS && old->nb[i] != old_src->nb[j]; j++) {}
        if (j < GG_MAX_DIMS) nb[i] = src->nb[j];
        else if (old->nb[i] % old_src->nb[i] == 0) nb[i] = old->nb[i] / old_src->nb[i] * src->nb[i];
        else if (memcmp(old_src->ne, src->ne, sizeof src->ne) == 0) nb[i] = old->nb[i];
        else return false;
    }
    return true;
}

static int32_t copy_node(gg_rebuild *r, int32_t id, resized to)
{
    gg_tensor t = *gg_at(r->in, id);
    int64_t nb[GG_MAX_DIMS];
    int32_t src[GG_MAX_SRC];
    for (int k = 0; k < GG_MAX_SRC; k++) src[k] = t.src[k] < 0 ? -1 : r->map[t.src[k]];
    if (t.op == GG_OP_VIEW && !follow_strides(&t, gg_at(r->in, t.src[0]), gg_at(r->out, src[0]), nb))
        return gg_fail(r->err, GG_ERR_UNSUPPORTED, id, "view %s cannot follow its resized source", t.name);
    if (to.ne && (t.op == GG_OP_VIEW || t.op == GG_OP_SCALE || t.op == GG_OP_ARANGE))
        memcpy(t.op_params, &to.words, sizeof to.words);
    const int64_t *ne = !gg_ops[t.op].sized ? NULL : to.ne ? to.ne : t.ne;
    if (t.op == GG_OP_RESHAPE && !to.ne && gg_same_shape(&t, gg_at(r->in, t.src[0]))) ne = gg_at(r->out, src[0])->ne;
    int32_t copy = gg_node(r->out, t.op, t.n_src, src, t.op_params, ne, t.op == GG_OP_VIEW ? nb : NULL, r->err);
    if (copy < 0 && r->err) r->err->node = id;
    return gg_copied(r, id, copy);
}

gg_graph *gg_resize(const gg_graph *g, int32_t n, const int32_t *ids, const int64_t *ne, const int64_t *words,
                    gg_error *err)
{
    gg_rebuild r;
    int32_t *places = places_of(g, n, ids, err);
    bool ok = places && gg_rebuild_begin(&r, g, err);
    if (!ok) {
        free(places);
        return NULL;
    }
    for (int32_t id = 0; id < g->n_tensors && ok; id++) {
        int32_t i = places[id] - 1;
        resized to = i < 0 ? (resized){NULL, -1} : (resized){ne + GG_MAX_DIMS * i, words[i]};
        ok = (gg_is_leaf(gg_at(g, id)) ? gg_copy_leaf(&r, id, to.ne) : copy_node(&r, id, to)) >= 0;
    }
    free(places);
    return gg_rebuild_end(&r, ok);
}
