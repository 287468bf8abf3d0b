/* optimizer.c - gg_accumulate and gg_optimize: what happens to gradients, as nodes of the same graph.
 *
 * So a training step is one run, a learning-rate schedule is "set an input", and the planner sees the optimiser too.
 */
#include "graph.h"

#include <stdio.h>

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

/* What op keeps of parameter p as its source k. */
static int32_t state_of(gg_builder *to, int32_t op, int k, int32_t p)
{
    enum { NORMUON_V = 2, ADAFACTOR_R = 2, ADAFACTOR_C = 3, SCHEDULE_FREE_SUMS = 5 };
    const gg_tensor *t = gg_at(to->g, p);
    int64_t n = 0;
    if ((op == GG_OP_ADAFACTOR && k == ADAFACTOR_R) || (op == GG_OP_NORMUON && k == NORMUON_V)) n = gg_nrows(t);
    if (op == GG_OP_ADAFACTOR && k == ADAFACTOR_C) n = t->ne[0] * t->ne[2] * t->ne[3];
    if (op == GG_OP_SCHEDULE_FREE && k == SCHEDULE_FREE_SUMS) n = 2;
    const int64_t ne[GG_MAX_DIMS] = {n, 1, 1, 1};
    return n ? gg_made(to, gg_leaf(to->g, GG_TYPE_F32, ne, 0, "", to->err)) : state_leaf(to, p);
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

/* Leafs that hold what an update is told anew each step, one for each op. */
static int32_t hyper_of(gg_builder *to, int32_t *hypers, int32_t op)
{
    char name[GG_MAX_NAME];
    snprintf(name, sizeof name, "%s.hyper", gg_ops[op].name);
    if (hypers[op] == 0) hypers[op] = input_leaf(to, GG_N_HYPER, name);
    return hypers[op];
}

static int32_t check_update(const gg_graph *g, const gg_update *u, gg_error *err)
{
    if (!gg_graph_tensor(g, u->param) || !has_gradient(g, u->param))
        return gg_fail(err, GG_ERR_ARGUMENT, u->param, "tensor %d is no parameter with a gradient", u->param);
    switch (u->op) {
    case GG_OP_ADAMW:
    case GG_OP_SGD:
    case GG_OP_SGD_MOMENTUM:
    case GG_OP_LION:
    case GG_OP_ADAFACTOR:
    case GG_OP_ADAFACTOR_WHOLE:
    case GG_OP_SCHEDULE_FREE: return 0;
    case GG_OP_MUON:
    case GG_OP_NORMUON:
        if (gg_nelements(gg_at(g, u->param)) == gg_at(g, u->param)->ne[0] * gg_at(g, u->param)->ne[1]) return 0;
        return gg_fail(err, GG_ERR_ARGUMENT, u->param, "%s updates matrices", gg_ops[u->op].name);
    default: return gg_fail(err, GG_ERR_ARGUMENT, u->param, "op %d updates no parameter", u->op);
    }
}

/* The matrix nearest to u, scaled, whose singular values are all 1, roughly: five steps of Newton-Schulz (Jordan 2024),
 * on the shorter side of u. */
static int32_t orthogonal(gg_builder *to, int32_t u)
{
    bool    tall = gg_at(to->g, u)->ne[1] > gg_at(to->g, u)->ne[0];
    int32_t x = gg_make_unit(to, u, gg_make_sum_sqr(to, u, -1), 1e-7f);
    for (int step = 0; step < 5; step++) {
        int32_t s = tall ? gg_make_out_prod(to, x, x) : gg_make_mul_mat(to, x, x, 0);
        int32_t by = gg_make_newton_schulz(to, s, gg_make_mul_mat(to, s, s, 0), 3.4445f, -4.7750f, 2.0315f);
        x = tall ? gg_make_out_prod(to, by, gg_make_transpose(to, x)) : gg_make_out_prod(to, x, by);
    }
    return x;
}

static int32_t direction_of(gg_builder *to, const gg_update *u, int32_t hyper, int32_t sum_sqr)
{
    int32_t g = to->g->grads[u->param];
    if (u->op != GG_OP_MUON && u->op != GG_OP_NORMUON) return g;
    return orthogonal(to, gg_make_momentum(to, g, state_leaf(to, u->param), hyper, sum_sqr));
}

/* The op on p, its gradient or what is made of it, what it keeps from step to step, hyper and sum_sqr. */
static int32_t append(gg_builder *to, const gg_update *u, int32_t direction, int32_t hyper, int32_t sum_sqr)
{
    int32_t src[GG_MAX_SRC] = {u->param, direction}, n = 2, op_params[GG_N_PARAMS] = {0, 0, u->cautious};
    for (int k = 2; k < gg_ops[u->op].n_src; k++)
        if (gg_ops[u->op].writes >> k & 1) src[n++] = state_of(to, u->op, k, u->param);
    src[n++] = hyper;
    src[n++] = sum_sqr;
    memcpy(&op_params[0], &u->rate, sizeof u->rate);
    memcpy(&op_params[1], &u->decay, sizeof u->decay);
    return gg_build(to, u->op, n, src, op_params, NULL, NULL);
}

int32_t gg_optimize(gg_graph *g, int32_t n, const gg_update *updates, gg_error *err)
{
    gg_builder to = {.g = g, .err = err};
    int32_t sum_sqr = -1, last = -1, hypers[GG_OP_COUNT] = {0};
    if (n < 1) return gg_fail(err, GG_ERR_ARGUMENT, -1, "no parameter has a gradient");
    for (int32_t k = 0; k < n; k++)
        if (check_update(g, &updates[k], err) < 0) return -1;
    for (int32_t k = 0; k < n; k++) {
        sum_sqr = gg_make_sum_sqr(&to, g->grads[updates[k].param], sum_sqr);
        if (sum_sqr < 0) return -1;
    }
    for (int32_t k = 0; k < n; k++) {
        int32_t hyper = hyper_of(&to, hypers, updates[k].op);
        if (hyper < 0) return -1;
        int32_t direction = direction_of(&to, &updates[k], hyper, sum_sqr);
        if (direction < 0) return -1;
        last = append(&to, &updates[k], direction, hyper, sum_sqr);
        if (updates[k].averaged && last >= 0)
            last = gg_make_ema(&to, state_leaf(&to, updates[k].param), last, hyper_of(&to, hypers, GG_OP_EMA), sum_sqr);
        if (last < 0) return -1;
    }
    return last;
}
