/* grad.c - gg_grad: append the nodes that compute d loss / d parameter to the graph itself.
 *
 * Mark what depends on a parameter (upward) and what the loss depends on (downward); seed the loss with 1; sweep the
 * ids downward, asking each op's rule for the cotangents of its sources. The sweep, not the rule, sums a cotangent
 * down to its source's shape where the op repeated it, and adds up the cotangents of a tensor used more than once.
 */
#include "graph.h"

#include <stdio.h>
#include <stdlib.h>

#include "gg_ops.h"

typedef struct sweep {
    gg_builder to;
    int32_t    n_forward; /* tensors before the gradient's */
    bool      *wants;     /* depends on a parameter and influences the loss */
    int32_t   *cotangent; /* id or -1 */
} sweep;

static bool is_param(const gg_tensor *t) { return gg_is_leaf(t) && (t->flags & GG_FLAG_PARAM); }

static void mark(sweep *s, const gg_graph *g, int32_t loss, bool *influences)
{
    influences[loss] = true;
    for (int32_t id = loss; id >= 0; id--)
        for (int k = 0; influences[id] && k < GG_MAX_SRC; k++)
            if (gg_at(g, id)->src[k] >= 0) influences[gg_at(g, id)->src[k]] = true;
    gg_find_trained(g, loss + 1, s->wants);
    for (int32_t id = 0; id <= loss; id++) s->wants[id] &= influences[id];
}

/* All ops that would need a rule and have none, in one message. */
static int32_t check_rules(const sweep *s, const gg_graph *g)
{
    bool missing[GG_OP_COUNT] = {false};
    char names[160] = "";
    int32_t first = -1;
    for (int32_t id = 0; id < s->n_forward; id++) {
        int32_t op = gg_at(g, id)->op;
        if (!s->wants[id] || op == GG_OP_NONE || gg_vjps[op] || missing[op]) continue;
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", gg_ops[op].name);
        missing[op] = true;
        first = first < 0 ? id : first;
    }
    if (first < 0) return 0;
    return gg_fail(s->to.err, GG_ERR_UNSUPPORTED, first, "no derivative for %s", names);
}

static int32_t seed(sweep *s, int32_t loss)
{
    const int64_t one[GG_MAX_DIMS] = {1, 1, 1, 1};
    if (gg_nelements(gg_at(s->to.g, loss)) != 1)
        return gg_fail(s->to.err, GG_ERR_ARGUMENT, loss, "the loss has %lld elements, not 1",
                       (long long)gg_nelements(gg_at(s->to.g, loss)));
    int32_t id = gg_leaf(s->to.g, GG_TYPE_F32, one, 0, "", s->to.err);
    float *data = id < 0 ? NULL : gg_leaf_data(s->to.g, id, s->to.err);
    if (!data) return -1;
    *data = 1.0f;
    s->cotangent[loss] = s->to.g->seed = id;
    return 0;
}

/* Undo the repetition of source `src` that gave cotangent `g` a larger shape, and add it to what src has. */
static int32_t collect(sweep *s, int32_t src, int32_t g)
{
    if (g < 0) return gg_missing(&s->to, GG_OP_ADD);
    if (!gg_same_shape(gg_at(s->to.g, g), gg_at(s->to.g, src))) g = gg_make_repeat_back(&s->to, g, src);
    if (s->cotangent[src] >= 0) g = gg_make_add(&s->to, s->cotangent[src], g);
    return s->cotangent[src] = g;
}

/* The gradient's nodes from `first` on run after all others, so what they read must not have been overwritten. */
static int32_t check_still_there(const sweep *s, int32_t id, int32_t first)
{
    const gg_graph *g = s->to.g;
    for (int32_t n = first; n < g->n_tensors; n++)
        for (int k = 0; k < GG_MAX_SRC; k++) {
            const gg_tensor *t = gg_at(g, n);
            int32_t src = t->src[k], since = t->op == GG_OP_WRITTEN ? t->src[1] : src;
            if (src < 0 || src >= s->n_forward || gg_ops[t->op].layouts >> k & 1) continue;
            int32_t writer = gg_overwriter(g, src, since, s->n_forward);
            if (writer >= 0)
                return gg_fail(s->to.err, GG_ERR_UNSUPPORTED, id, "the gradient of %s needs %s, which %s overwrites",
                               gg_ops[gg_at(g, id)->op].name, gg_at(g, src)->name, gg_ops[gg_at(g, writer)->op].name);
        }
    return 0;
}

static int32_t differentiate(sweep *s, int32_t id)
{
    const gg_tensor t = *gg_at(s->to.g, id);
    int32_t first = s->to.g->n_tensors;
    bool want[GG_MAX_SRC];
    int32_t grad[GG_MAX_SRC];
    for (int k = 0; k < GG_MAX_SRC; k++) {
        want[k] = t.src[k] >= 0 && s->wants[t.src[k]] && gg_has_influence(t.op, k);
        grad[k] = -2; /* a rule that leaves it so has no derivative with respect to this source */
    }
    gg_vjps[t.op](&s->to, id, s->cotangent[id], want, grad);
    for (int k = 0; k < GG_MAX_SRC; k++) {
        if (!want[k]) continue;
        if (grad[k] == -2)
            return gg_fail(s->to.err, GG_ERR_UNSUPPORTED, id, "%s has no derivative with respect to source %d",
                           gg_ops[t.op].name, k);
        if (collect(s, t.src[k], grad[k]) < 0) return -1;
    }
    return check_still_there(s, id, first);
}

static int32_t finish(sweep *s)
{
    gg_graph *g = s->to.g;
    int32_t n_params = 0;
    for (int32_t id = 0; id < s->n_forward; id++) {
        bool param = is_param(gg_at(g, id));
        if (param && s->cotangent[id] < 0)
            return gg_fail(s->to.err, GG_ERR_ARGUMENT, id, "parameter %s does not influence the loss",
                           gg_at(g, id)->name);
        g->grads[id] = param ? gg_contiguous(&s->to, s->cotangent[id]) : s->cotangent[id];
        if (param && g->grads[id] < 0) return -1;
        n_params += param;
    }
    return n_params;
}

static int32_t run(sweep *s, int32_t loss, bool *influences)
{
    mark(s, s->to.g, loss, influences);
    if (check_rules(s, s->to.g) < 0 || seed(s, loss) < 0) return -1;
    for (int32_t id = loss; id >= 0; id--)
        if (s->wants[id] && s->cotangent[id] >= 0 && !gg_is_leaf(gg_at(s->to.g, id)) && differentiate(s, id) < 0)
            return -1;
    return finish(s);
}

int32_t gg_grad(gg_graph *g, int32_t loss, gg_error *err)
{
    if (!gg_graph_tensor(g, loss)) return gg_fail(err, GG_ERR_ARGUMENT, loss, "no tensor %d", loss);
    size_t n = (size_t)g->n_tensors;
    sweep s = {.to = {.g = g, .err = err}, .n_forward = g->n_tensors};
    bool *influences = calloc(n, sizeof *influences);
    s.wants = calloc(n, sizeof *s.wants);
    s.cotangent = malloc(n * sizeof *s.cotangent);
    int32_t result = -1;
    if (influences && s.wants && s.cotangent) {
        for (size_t id = 0; id < n; id++) s.cotangent[id] = -1;
        result = run(&s, loss, influences);
    } else {
        gg_fail(err, GG_ERR_MEMORY, -1, "no memory to differentiate %d tensors", g->n_tensors);
    }
    free(influences);
    free(s.wants);
    free(s.cotangent);
    return result;
}
