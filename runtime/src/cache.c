/* cache.c - gg_cache: the forward graph of new positions of a text whose earlier positions were computed before.
 *
 * Apart from attention every op of a language model treats each position by itself. This pass proves that of a graph,
 * and makes each attention a cached_attention, which keeps keys and values from run to run. A graph that mixes
 * positions in another way is refused.
 *
 * The proof follows the axis of positions through the graph. Of a tensor that has one, position = index / stride %
 * n_positions, where index counts the elements in order; so reshaping keeps the stride, and other ops act on the
 * dimension that it falls into. Called by the runtime, after gg_fuse.
 */
#include "rebuild.h"

#include <stdio.h>
#include <stdlib.h>

#include "blocks.h"
#include "gg_ops.h"

typedef struct follower {
    const gg_graph *g;
    int64_t         n; /* positions */
    int64_t         capacity; /* of the caches */
    int64_t        *stride; /* per tensor; 0: the same for all positions */
} follower;

/* Where positions run in a tensor: step index / inner % n of dimension dim. */
typedef struct axis {
    int     dim;
    int64_t inner;
} axis;

static int64_t elements_before(const gg_tensor *t, int dim)
{
    int64_t n = 1;
    for (int i = 0; i < dim; i++) n *= t->ne[i];
    return n;
}

/* False where positions spread over several dimensions. */
static bool find_axis(const follower *f, int32_t id, axis *a)
{
    const gg_tensor *t = gg_at(f->g, id);
    for (a->dim = 0; a->dim < GG_MAX_DIMS; a->dim++) {
        int64_t before = elements_before(t, a->dim), period = f->stride[id] * f->n;
        if (f->stride[id] < before || period > before * t->ne[a->dim]) continue;
        a->inner = f->stride[id] / before;
        return f->stride[id] % before == 0 && before * t->ne[a->dim] % period == 0;
    }
    return false;
}

static void set_axis(const follower *f, int32_t id, axis a)
{
    f->stride[id] = elements_before(gg_at(f->g, id), a.dim) * a.inner;
}

/* Source k of y, if it has positions, else -1. */
static int32_t positioned(const follower *f, const gg_tensor *y, int k)
{
    int32_t src = k < y->n_src ? y->src[k] : -1;
    return src >= 0 && f->stride[src] > 0 ? src : -1;
}

/* Each row of the result depends on the same row of every source, which may be tiled. */
static bool follow_rows(const follower *f, int32_t id)
{
    const gg_tensor *y = gg_at(f->g, id);
    axis of_y = {-1, 0}, of_source;
    for (int k = 0; k < y->n_src; k++) {
        if (positioned(f, y, k) < 0) continue;
        if (!find_axis(f, y->src[k], &of_source) || of_source.dim == 0) return false;
        if (of_y.dim >= 0 && (of_y.dim != of_source.dim || of_y.inner != of_source.inner)) return false;
        of_y = of_source;
    }
    for (int k = 0; k < y->n_src; k++) {
        if (y->src[k] < 0) continue;
        int64_t n = gg_at(f->g, y->src[k])->ne[of_y.dim];
        if (positioned(f, y, k) >= 0 ? n != y->ne[of_y.dim] : of_y.inner % n != 0) return false;
    }
    set_axis(f, id, of_y);
    return true;
}

/* Rows of b, each with all of a. */
static bool follow_product(const follower *f, int32_t id)
{
    const gg_tensor *y = gg_at(f->g, id);
    axis a;
    if (positioned(f, y, 0) >= 0 || !find_axis(f, y->src[1], &a) || a.dim == 0) return false;
    if (a.dim > 1 && gg_at(f->g, y->src[0])->ne[a.dim] != 1) return false;
    set_axis(f, id, a);
    return true;
}

/* Rows of one table, or each position's rows of its own matrix of the table. */
static bool follow_lookup(const follower *f, int32_t id)
{
    const gg_tensor *y = gg_at(f->g, id);
    axis of_table, of_ids;
    f->stride[id] = y->ne[0] * f->stride[y->src[1]];
    if (positioned(f, y, 0) < 0) return true;
    return positioned(f, y, 1) >= 0 && find_axis(f, y->src[0], &of_table) && find_axis(f, y->src[1], &of_ids) &&
           of_table.dim >= 2 && of_table.dim == of_ids.dim + 1 && of_table.inner == of_ids.inner;
}

/* Rows of b, each with the matrices of a that its position's ids choose. */
static bool follow_experts(const follower *f, int32_t id)
{
    const gg_tensor *y = gg_at(f->g, id);
    axis of_b, of_ids;
    if (positioned(f, y, 0) >= 0 || positioned(f, y, 1) < 0 || positioned(f, y, 2) < 0) return false;
    if (!find_axis(f, y->src[1], &of_b) || !find_axis(f, y->src[2], &of_ids)) return false;
    if (of_b.dim != 2 || of_ids.dim != 1 || of_b.inner != of_ids.inner) return false;
    set_axis(f, id, of_b);
    return true;
}

/* Two tensors joined along another dimension. */
static bool follow_concat(const follower *f, int32_t id)
{
    const gg_tensor *y = gg_at(f->g, id);
    axis a, b;
    if (positioned(f, y, 0) < 0 || positioned(f, y, 1) < 0) return false;
    if (!find_axis(f, y->src[0], &a) || !find_axis(f, y->src[1], &b)) return false;
    if (a.dim != b.dim || a.inner != b.inner || a.dim == gg_param_i32(y, 0)) return false;
    set_axis(f, id, a);
    return true;
}

static bool follow_axes(const follower *f, int32_t id, const int32_t to[GG_MAX_DIMS])
{
    axis a;
    if (!find_axis(f, gg_at(f->g, id)->src[0], &a)) return false;
    a.dim = to[a.dim];
    set_axis(f, id, a);
    return true;
}

/* A window that holds the whole dimension of positions, and in its other dimensions stays within one step of it. */
static bool follow_view(const follower *f, int32_t id)
{
    const gg_tensor *y = gg_at(f->g, id), *whole = gg_at(f->g, y->src[0]);
    axis a;
    if (!gg_is_contiguous(whole) || !find_axis(f, y->src[0], &a)) return false;
    int64_t step = whole->nb[a.dim], n_steps = whole->ne[a.dim], offset = gg_param_i64(y, 0);
    int64_t within = offset % step + gg_type_size(y->type); /* bytes of a step that the view reaches */
    int dim = -1;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        if (y->ne[i] == 1) continue;
        if (y->nb[i] == step && y->ne[i] == n_steps && dim < 0) dim = i;
        else if (y->nb[i] < step) within += (y->ne[i] - 1) * y->nb[i];
        else if (y->nb[i] % (step * n_steps) != 0) return false;
    }
    if (dim < 0 || within > step || offset / step % n_steps != 0) return false;
    set_axis(f, id, (axis){dim, a.inner});
    return true;
}

/* Dimension 2 of the first n_src sources is the axis of positions. */
static bool follow_heads(const follower *f, int32_t id, int n_src)
{
    const gg_tensor *y = gg_at(f->g, id);
    axis a;
    for (int k = 0; k < n_src; k++)
        if (positioned(f, y, k) < 0 || !find_axis(f, y->src[k], &a) || a.dim != 2 || a.inner != 1) return false;
    set_axis(f, id, a);
    return true;
}

/* Causal, without a window that hides anything as long as the caches have room, and without a mask. */
static bool sees_all_before(const follower *f, const gg_tensor *y)
{
    int32_t n_past = gg_param_i32(y, 1), window = gg_param_i32(y, 2);
    return n_past == 0 && (window == 0 || window >= f->capacity) && y->src[4] < 0;
}

static bool follow(const follower *f, int32_t id)
{
    static const int32_t transposed[GG_MAX_DIMS] = {1, 0, 2, 3};
    const gg_tensor *y = gg_at(f->g, id);
    switch (y->op) {
    case GG_OP_RESHAPE:
    case GG_OP_CONT: f->stride[id] = f->stride[y->src[0]]; return true;
    case GG_OP_VIEW: return follow_view(f, id);
    case GG_OP_PERMUTE: return follow_axes(f, id, y->op_params);
    case GG_OP_TRANSPOSE: return follow_axes(f, id, transposed);
    case GG_OP_GET_ROWS: return follow_lookup(f, id);
    case GG_OP_CONCAT: return follow_concat(f, id);
    case GG_OP_MUL_MAT_ID: return follow_experts(f, id);
    case GG_OP_MUL_MAT: return follow_product(f, id);
    case GG_OP_ROPE: return f->stride[y->src[1]] == 1 && follow_heads(f, id, 1);
    case GG_OP_ATTENTION: return sees_all_before(f, y) && follow_heads(f, id, 3);
    default: return gg_ops[y->op].by_row && follow_rows(f, id);
    }
}

static int32_t check_positions(const follower *f, gg_error *err)
{
    for (int32_t id = 0; id < f->g->n_tensors; id++) {
        const gg_tensor *t = gg_at(f->g, id);
        bool any = false;
        for (int k = 0; k < t->n_src; k++) any |= positioned(f, t, k) >= 0;
        if (any && !follow(f, id))
            return gg_fail(err, GG_ERR_UNSUPPORTED, id, "%s %s mixes positions of the text", gg_ops[t->op].name, t->name);
    }
    return 0;
}

/* ---------------------------------------------------------------- the copy */

typedef struct cacher {
    gg_rebuild *r;
    gg_graph   *shared; /* may be NULL */
    int64_t     capacity;
    int32_t     n_past; /* leaf */
    int         n_caches;
} cacher;

/* A leaf; it has the memory of the one of that name in `shared`. */
static int32_t add_leaf(const cacher *c, int32_t type, const int64_t *ne, const char *name)
{
    int32_t id = gg_leaf(c->r->out, type, ne, 0, name, c->r->err);
    int32_t old = c->shared ? gg_graph_find(c->shared, name) : -1;
    if (id < 0 || old < 0) return id;
    if (!gg_same_shape(gg_at(c->shared, old), gg_at(c->r->out, id)))
        return gg_fail(c->r->err, GG_ERR_ARGUMENT, old, "%s has another size in the graph to share it with", name);
    if (!gg_leaf_data(c->shared, old, c->r->err)) return -1;
    c->r->out->buffers[id] = c->shared->buffers[old];
    c->shared->buffers[old]->n_refs++;
    return id;
}

static int32_t copy_attention(cacher *c, const gg_tensor *t, const int32_t *operands)
{
    gg_builder to = {.g = c->r->out, .err = c->r->err};
    const gg_tensor *k = gg_at(c->r->in, t->src[1]);
    const int64_t n_blocks = gg_ceil_div(c->capacity, GG_ATTENTION_KEYS), n_heads = k->ne[1] * k->ne[3];
    const int64_t keys[GG_MAX_DIMS] = {GG_ATTENTION_KEYS, k->ne[0], n_blocks, n_heads};
    const int64_t values[GG_MAX_DIMS] = {k->ne[0], n_blocks * GG_ATTENTION_KEYS, n_heads, 1};
    int32_t src[6] = {operands[0], operands[1], operands[2]};
    char name[GG_MAX_NAME];
    snprintf(name, sizeof name, "cache.k.%d", c->n_caches);
    src[3] = gg_made(&to, add_leaf(c, GG_TYPE_F32, keys, name));
    snprintf(name, sizeof name, "cache.v.%d", c->n_caches++);
    src[4] = gg_made(&to, add_leaf(c, GG_TYPE_F32, values, name));
    src[5] = c->n_past;
    return gg_build(&to, GG_OP_CACHED_ATTENTION, 6, src, t->op_params, NULL, NULL);
}

static bool copy_all(cacher *c)
{
    static const int64_t one[GG_MAX_DIMS] = {1, 1, 1, 1};
    c->n_past = add_leaf(c, GG_TYPE_I32, one, "cache.n_past");
    if (c->n_past < 0) return false;
    for (int32_t id = 0; id < c->r->in->n_tensors; id++) {
        const gg_tensor *t = gg_at(c->r->in, id);
        int32_t src[GG_MAX_SRC];
        for (int k = 0; k < t->n_src; k++) src[k] = t->src[k] < 0 ? -1 : c->r->map[t->src[k]];
        int32_t copy = gg_is_leaf(t)              ? gg_copy_leaf(c->r, id, NULL)
                       : t->op == GG_OP_ATTENTION ? copy_attention(c, t, src)
                                                  : gg_copy_node(c->r, t, src);
        if (copy < 0 || gg_copied(c->r, id, copy) < 0) return false;
    }
    return true;
}

static int32_t follow_all(const gg_graph *g, int32_t n_inputs, const int32_t *inputs, int64_t n, int64_t capacity,
                          gg_error *err)
{
    follower f = {.g = g, .n = n, .capacity = capacity, .stride = calloc((size_t)g->n_tensors + 1, sizeof(int64_t))};
    if (!f.stride) return gg_fail(err, GG_ERR_MEMORY, -1, "no memory to follow %d tensors", g->n_tensors);
    for (int32_t i = 0; i < n_inputs; i++) f.stride[inputs[i]] = 1;
    int32_t result = check_positions(&f, err);
    free(f.stride);
    return result;
}

gg_graph *gg_cache(const gg_graph *g, int32_t n_inputs, const int32_t *inputs, int64_t capacity, gg_graph *shared,
                   gg_error *err)
{
    int64_t n = n_inputs > 0 && gg_graph_tensor(g, inputs[0]) ? gg_at(g, inputs[0])->ne[0] : 0;
    for (int32_t i = 0; i < n_inputs; i++)
        if (!gg_graph_tensor(g, inputs[i]) || gg_at(g, inputs[i])->ne[0] != n) n = 0;
    if (n < 1 || capacity < 1 || capacity > (int64_t)1 << 30) {
        gg_fail(err, GG_ERR_ARGUMENT, -1, "no inputs of as many positions, or a capacity of %lld", (long long)capacity);
        return NULL;
    }
    if (n > 1 && follow_all(g, n_inputs, inputs, n, capacity, err) < 0) return NULL;
    gg_rebuild r;
    if (!gg_rebuild_begin(&r, g, err)) return NULL;
    cacher c = {.r = &r, .shared = shared, .capacity = capacity};
    return gg_rebuild_end(&r, copy_all(&c));
}
