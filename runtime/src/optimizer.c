/* optimizer.c - gg_accumulate and gg_adamw: what happens to gradients, as nodes of the same graph.
 *
 * So a training step is one run, a learning-rate schedule is "set an input", and the planner sees the optimiser too.
 */
#include "graph.h"

#include "gg_ops.h"

static bool has_gradient(const gg_graph *g, int32_t id)
{
    return gg_is_leaf(gg_at(g, id)) && (gg_at(g, id)->flags & GG_FLAG_PARAM) && g->grads[id] >= 0;
}

/* A leaf of the size of `like`, zero, that lives as long as the graph. */
static int32_t state_leaf(gg_builder *to, int32_t like)
{
    const gg_tensor t = *gg_at(to->g, like);
    return gg_made(to, gg_leaf(to->g, GG_TYPE_F32, t.ne, 0, "", to->err));
}

static int32_t input_leaf(gg_builder *to, int64_t n, const char *name)
{
    const int64_t ne[GG_MAX_DIMS] = {n, 1, 1, 1};
    return gg_made(to, gg_leaf(to->g, GG_TYPE_F32, ne, GG_FLAG_INPUT, name, to->err));
}

int32_t gg_accumulate(gg_graph *g, gg_error *err)
{
    gg_builder to = {.g = g, .err = err};
    int32_t n = g->n_tensors, keep = input_leaf(&to, 1, "accumulate.keep");
    if (keep < 0) return -1;
    for (int32_t id = 0; id < n; id++) {
        if (!has_gradient(g, id)) continue;
        int32_t sum = gg_make_accumulate(&to, state_leaf(&to, id), g->grads[id], keep);
        if (sum < 0) return -1;
        g->grads[id] = sum;
    }
    return keep;
}

int32_t gg_adamw(gg_graph *g, gg_error *err)
{
    gg_builder to = {.g = g, .err = err};
    int32_t n = g->n_tensors, hyper = input_leaf(&to, 8, "adamw.hyper"), sum_sqr = -1, last = -1;
    for (int32_t id = 0; id < n; id++) {
        if (!has_gradient(g, id)) continue;
        sum_sqr = gg_make_sum_sqr(&to, g->grads[id], sum_sqr);
        if (sum_sqr < 0) return -1;
    }
    for (int32_t id = 0; id < n && hyper >= 0; id++) {
        if (!has_gradient(g, id)) continue;
        int32_t is_matrix = gg_nrows(gg_at(g, id)) > 1, m = state_leaf(&to, id), v = state_leaf(&to, id);
        last = gg_make_adamw(&to, id, g->grads[id], m, v, hyper, sum_sqr, is_matrix);
        if (last < 0) return -1;
    }
    if (last < 0 && hyper >= 0) return gg_fail(err, GG_ERR_ARGUMENT, -1, "no parameter has a gradient");
    return last;
}
