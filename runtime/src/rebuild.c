/* rebuild.c - see rebuild.h. */
#include "rebuild.h"

#include <stdlib.h>

#include "gg_ops.h"

bool gg_rebuild_begin(gg_rebuild *r, const gg_graph *in, gg_error *err)
{
    *r = (gg_rebuild){.in = in, .out = gg_graph_new(), .err = err};
    r->map = malloc(sizeof(int32_t) * (size_t)(in->n_tensors + 1));
    if (!r->out || !r->map) {
        gg_fail(err, GG_ERR_MEMORY, -1, "no memory for a graph of %d tensors", in->n_tensors);
        gg_rebuild_end(r, false);
        return false;
    }
    for (int32_t id = 0; id < in->n_tensors; id++) r->map[id] = -1;
    return true;
}

gg_graph *gg_rebuild_end(gg_rebuild *r, bool ok)
{
    for (int32_t id = 0; ok && id < r->in->n_tensors; id++)
        if (r->in->grads[id] >= 0 && r->map[id] >= 0) r->out->grads[r->map[id]] = r->map[r->in->grads[id]];
    free(r->map);
    if (ok) return r->out;
    gg_graph_free(r->out);
    return NULL;
}

int32_t gg_copy_leaf(gg_rebuild *r, int32_t id, const int64_t *ne)
{
    const gg_tensor *t = gg_at(r->in, id);
    int32_t copy = gg_leaf(r->out, t->type, ne ? ne : t->ne, t->flags, t->name, r->err);
    gg_buffer *buffer = r->in->buffers[id];
    if (copy >= 0 && buffer && gg_same_shape(t, gg_at(r->out, copy))) {
        buffer->n_refs++;
        r->out->buffers[copy] = buffer;
    }
    if (id == r->in->seed) r->out->seed = copy;
    return r->map[id] = copy;
}

int32_t gg_copy_node(gg_rebuild *r, const gg_tensor *t, const int32_t *src)
{
    gg_builder to = {.g = r->out, .err = r->err};
    return gg_build(&to, t->op, t->n_src, src, t->op_params, gg_ops[t->op].sized ? t->ne : NULL,
                    t->op == GG_OP_VIEW ? t->nb : NULL);
}

int32_t gg_copied(gg_rebuild *r, int32_t id, int32_t copy)
{
    const gg_tensor *t = gg_at(r->in, id);
    r->map[id] = copy;
    return copy < 0 ? -1 : gg_set_name(r->out, copy, t->name, t->flags, r->err);
}
