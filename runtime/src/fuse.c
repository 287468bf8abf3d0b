/* fuse.c - gg_fuse: keep what the roots need, and merge patterns of ggml's ops into the runtime's fused ones.
 *
 * One sweep downward from the roots finds, for each needed node, the pattern it is the last node of; what a pattern
 * swallowed is then needed by nobody and is not copied. A node is swallowed only if the pattern is its single user.
 * It is called before gg_grad for ops that have derivatives, and after it for what is done to gradients.
 */
#include "rebuild.h"

#include <math.h>
#include <stdlib.h>

#include "gg_ops.h"

typedef struct fusion {
    const gg_graph *g;
    int32_t        *n_uses;
    int32_t        *n_strided; /* of these, by ops that read any strides without a copy */
    bool           *reached; /* from the roots, before any fusion */
    bool           *needed;  /* after it */
    bool           *trained; /* see gg_find_trained */
    int32_t         enable, train;
} fusion;

/* A match: the fused op, and the old ids of its sources. op GG_OP_NONE: no match. */
typedef struct match {
    int32_t op;
    int32_t n_src;
    int32_t src[GG_MAX_SRC];
    int32_t op_params[GG_N_PARAMS];
    int32_t heads[GG_MAX_SRC]; /* old id in whose place source k is to be a view of src[k]; 0: none */
    int64_t ne[GG_MAX_DIMS];   /* source 0 in these sizes; 0: in its own */
} match;

/* Source k of node id, if it is an `op` that only this node uses; else -1. */
static int32_t swallow(const fusion *f, int32_t id, int k, int32_t op)
{
    int32_t src = id < 0 ? -1 : gg_at(f->g, id)->src[k];
    return src >= 0 && gg_at(f->g, src)->op == op && f->n_uses[src] == 1 ? src : -1;
}

/* Source 1 of node id, if it is one row of its source 0; else -1. */
static int32_t row_operand(const fusion *f, int32_t id)
{
    int32_t row = gg_at(f->g, id)->src[1];
    return gg_at(f->g, row)->ne[0] == gg_at(f->g, id)->ne[0] && gg_nrows(gg_at(f->g, row)) == 1 ? row : -1;
}

/* mul(norm(a), gain), or add(mul(norm(a), gain), bias): one pass, and only `a` is kept for the backward pass. */
static bool match_norm_gain(const fusion *f, int32_t id, match *m)
{
    int32_t mul = gg_at(f->g, id)->op == GG_OP_ADD ? swallow(f, id, 0, GG_OP_MUL) : id;
    if (mul < 0 || gg_at(f->g, mul)->op != GG_OP_MUL) return false;
    int32_t gain = row_operand(f, mul), bias = mul == id ? -1 : row_operand(f, id);
    int32_t rms = mul == id ? swallow(f, mul, 0, GG_OP_RMS_NORM) : -1;
    int32_t norm = rms < 0 ? swallow(f, mul, 0, GG_OP_NORM) : rms;
    if (norm < 0 || gain < 0 || (mul != id && bias < 0)) return false;
    *m = (match){.op = rms < 0 ? GG_OP_NORM_GAIN : GG_OP_RMS_NORM_GAIN, .n_src = rms < 0 ? 3 : 2,
                 .src = {gg_at(f->g, norm)->src[0], gain, bias}};
    memcpy(m->op_params, gg_at(f->g, norm)->op_params, sizeof m->op_params);
    return true;
}

/* mul(silu(a), b) with operands of one shape. */
static bool match_swiglu(const fusion *f, int32_t id, match *m)
{
    const gg_tensor *y = gg_at(f->g, id);
    int32_t silu = y->op == GG_OP_MUL ? swallow(f, id, 0, GG_OP_SILU) : -1;
    if (silu < 0 || !gg_same_shape(y, gg_at(f->g, y->src[1]))) return false;
    *m = (match){.op = GG_OP_SWIGLU, .n_src = 2, .src = {gg_at(f->g, silu)->src[0], y->src[1]}};
    return true;
}

static bool is_plain_soft_max(const gg_tensor *t) { return t->src[1] < 0 && gg_param_f32(t, 0) == 1.0f; }

/* sum(weights * log(get_rows(reshape(soft_max(logits)), targets))), scaled or not: the way a file spells cross-entropy. */
static bool match_cross_entropy(const fusion *f, int32_t id, match *m)
{
    int32_t sum = gg_at(f->g, id)->op == GG_OP_SCALE ? swallow(f, id, 0, GG_OP_SUM) : id;
    if (sum < 0 || gg_at(f->g, sum)->op != GG_OP_SUM) return false;
    int32_t mul = swallow(f, sum, 0, GG_OP_MUL), log = swallow(f, mul, 0, GG_OP_LOG);
    int32_t rows = swallow(f, log, 0, GG_OP_GET_ROWS), column = swallow(f, rows, 0, GG_OP_RESHAPE);
    int32_t probabilities = swallow(f, column, 0, GG_OP_SOFT_MAX);
    if (probabilities < 0 || !is_plain_soft_max(gg_at(f->g, probabilities))) return false;
    int32_t logits = gg_at(f->g, probabilities)->src[0];
    int32_t targets = gg_at(f->g, rows)->src[1], weights = gg_at(f->g, mul)->src[1];
    int64_t n_vocab = gg_at(f->g, logits)->ne[0], n_rows = gg_nrows(gg_at(f->g, logits));
    const int64_t one_column[GG_MAX_DIMS] = {1, n_vocab, n_rows, 1};
    if (memcmp(gg_at(f->g, column)->ne, one_column, sizeof one_column) != 0) return false;
    if (gg_nelements(gg_at(f->g, targets)) != n_rows || gg_nelements(gg_at(f->g, weights)) != n_rows) return false;
    *m = (match){.op = GG_OP_CROSS_ENTROPY, .n_src = 3, .src = {logits, targets, weights}};
    int32_t product = swallow(f, probabilities, 0, GG_OP_MUL_MAT);
    const gg_tensor *w = product < 0 ? NULL : gg_at(f->g, gg_at(f->g, product)->src[0]);
    if (w && w->ne[2] == 1 && w->ne[3] == 1)
        *m = (match){.op = GG_OP_LINEAR_CROSS_ENTROPY, .n_src = 4,
                     .src = {gg_at(f->g, product)->src[0], gg_at(f->g, product)->src[1], targets, weights}};
    const float scale = sum == id ? 1.0f : gg_param_f32(gg_at(f->g, id), 0);
    memcpy(&m->op_params[0], &scale, sizeof scale);
    return true;
}

/* Make x source k. Where x = reshape(cont(view(a))) splits a slice of rows into heads, as where one product makes q, k
 * and v, source k is to be a view of a in x's place: the op takes rows as they lie. True if so. */
static bool set_heads(const fusion *f, match *m, int k, int32_t x)
{
    m->src[k] = x;
    const gg_tensor *heads = gg_at(f->g, x);
    if (heads->op != GG_OP_RESHAPE || gg_at(f->g, heads->src[0])->op != GG_OP_CONT) return false;
    const gg_tensor *slice = gg_at(f->g, gg_at(f->g, heads->src[0])->src[0]);
    if (slice->op != GG_OP_VIEW || !gg_is_contiguous(gg_at(f->g, slice->src[0]))) return false;
    if (heads->ne[0] * heads->ne[1] != slice->ne[0] || heads->ne[2] != slice->ne[1] || heads->ne[3] != slice->ne[2])
        return false;
    m->src[k] = slice->src[0];
    m->heads[k] = x;
    return true;
}

static bool match_rope(const fusion *f, int32_t id, match *m)
{
    const gg_tensor *y = gg_at(f->g, id);
    if (y->op != GG_OP_ROPE) return false;
    *m = (match){.op = GG_OP_ROPE, .n_src = y->n_src};
    memcpy(m->src, y->src, sizeof m->src);
    memcpy(m->op_params, y->op_params, sizeof m->op_params);
    if (set_heads(f, m, 0, y->src[0])) return true;
    m->op = GG_OP_NONE;
    return false;
}

/* Node id, or in its place the scale by a positive number that is its source 0; *scale is multiplied by the number. */
static int32_t swallow_scale(const fusion *f, int32_t id, float *scale)
{
    int32_t node = swallow(f, id, 0, GG_OP_SCALE);
    if (node < 0 || !(gg_param_f32(gg_at(f->g, node), 0) > 0)) return id;
    *scale *= gg_param_f32(gg_at(f->g, node), 0);
    return node;
}

/* What node id permutes, if dimension i becomes dimension axes[i]; else -1. */
static int32_t permuted(const fusion *f, int32_t id, const int32_t axes[GG_MAX_DIMS])
{
    if (id < 0) return -1;
    const gg_tensor *t = gg_at(f->g, id);
    return t->op == GG_OP_PERMUTE && memcmp(t->op_params, axes, GG_MAX_DIMS * sizeof *axes) == 0 ? t->src[0] : -1;
}

enum { LSE = 3, MASK = 4, SECOND_MASK = 5, MOST_MASKS = 2 }; /* sources of attention; it takes the sum of two masks */

static const int32_t heads_out[GG_MAX_DIMS] = {0, 2, 1, 3}, heads_out_transposed[GG_MAX_DIMS] = {1, 2, 0, 3};

/* What attention takes beside queries, keys and values. */
typedef struct weighing {
    float   scale, soft_cap;
    int32_t n_past, window, n_masks, masks[MOST_MASKS];
} weighing;

static const int32_t swapped[GG_MAX_DIMS] = {1, 0, 2, 3};

/* Source 0 of node id, if it is a copy with dimensions 0 and 1 swapped: the node of the permutation. Else -1. */
static int32_t swallow_swapped(const fusion *f, int32_t id)
{
    int32_t permute = swallow(f, swallow(f, id, 0, GG_OP_CONT), 0, GG_OP_PERMUTE);
    return permuted(f, permute, swapped) < 0 ? -1 : permute;
}

/* Node id, or the causal mask below its source 0 that is taken of the scores transposed, for queries that come more than
 * `past` after a key: diag_mask_inf(scores^T)^T. */
static int32_t swallow_window(const fusion *f, int32_t id, int64_t *past)
{
    int32_t outside = swallow_swapped(f, id), mask = swallow(f, outside, 0, GG_OP_DIAG_MASK_INF);
    int32_t inside = swallow_swapped(f, mask);
    if (inside < 0) return id;
    *past = gg_param_i32(gg_at(f->g, mask), 0);
    return inside;
}

/* Whether b may be added to scores of these sizes as attention's mask: each size is theirs or 1, and it is not trained. */
static bool is_mask(const fusion *f, int32_t b, const gg_tensor *scores)
{
    const gg_tensor *t = gg_at(f->g, b);
    for (int i = 0; i < GG_MAX_DIMS; i++)
        if (t->ne[i] != scores->ne[i] && (i == 0 || t->ne[i] != 1)) return false;
    return t->type == GG_TYPE_F32 && !f->trained[b];
}

/* Node id, or what is below one or two sums with masks that are its source 0, as far as there is room for them. */
static int32_t swallow_masks(const fusion *f, int32_t id, weighing *w)
{
    for (int32_t add; w->n_masks < MOST_MASKS && (add = swallow(f, id, 0, GG_OP_ADD)) >= 0; id = add) {
        int32_t mask = gg_at(f->g, add)->src[1];
        if (!is_mask(f, mask, gg_at(f->g, add))) break;
        w->masks[w->n_masks++] = mask;
    }
    return id;
}

/* Node id, or below its source 0 the products whose soft cap it scales: scale * tanh(products). */
static int32_t swallow_soft_cap(const fusion *f, int32_t id, weighing *w)
{
    int32_t tanh = swallow(f, id, 0, GG_OP_TANH);
    if (tanh < 0) return id;
    w->soft_cap = w->scale;
    return swallow_scale(f, tanh, &w->scale);
}

/* The mask that ggml's soft_max takes itself, if any. False where it is none of ours. */
static bool take_mask(const fusion *f, int32_t soft_max, weighing *w)
{
    const gg_tensor *t = gg_at(f->g, soft_max);
    if (t->src[1] < 0) return true;
    w->masks[w->n_masks++] = t->src[1];
    return gg_param_f32(t, 1) == 0 && is_mask(f, t->src[1], t);
}

/* soft_max of mul_mat(k, q), with masks or none, with a causal mask, which may have a window, or none, with a soft cap or
 * none, scaled before the mask, after it, or by soft_max itself; the node of the product. -1: something else. */
static int32_t match_weights(const fusion *f, int32_t soft_max, weighing *w)
{
    if (soft_max < 0) return -1;
    int64_t past = -1;
    *w = (weighing){.scale = gg_param_f32(gg_at(f->g, soft_max), 0)};
    if (!take_mask(f, soft_max, w)) return -1;
    int32_t scores = swallow_window(f, swallow_scale(f, soft_max, &w->scale), &past);
    int32_t mask = swallow(f, scores, 0, GG_OP_DIAG_MASK_INF);
    w->n_past = mask < 0 ? INT32_MAX : gg_param_i32(gg_at(f->g, mask), 0);
    if (w->n_past < 0 || (mask < 0 && past >= 0)) return -1;
    if (past >= 0) w->window = (int32_t)gg_min_i64(INT32_MAX, w->n_past + past + 1);
    if (mask >= 0) scores = swallow_scale(f, mask, &w->scale);
    int32_t below = w->scale == 1.0f ? swallow_masks(f, scores, w) : scores;
    if (below != scores) scores = swallow_scale(f, below, &w->scale);
    scores = swallow_soft_cap(f, scores, w);
    return w->scale > 0 && w->scale < INFINITY ? swallow(f, scores, 0, GG_OP_MUL_MAT) : -1;
}

/* The values whose dimensions 0 (head_dim) and 1 (ctx) node id has swapped, head by head: by one PERMUTE, or by a TRANSPOSE
 * of the PERMUTE that q and k have. -1: something else. */
static int32_t match_values(const fusion *f, int32_t id)
{
    const gg_tensor *t = gg_at(f->g, id);
    return t->op == GG_OP_TRANSPOSE ? permuted(f, t->src[0], heads_out) : permuted(f, id, heads_out_transposed);
}

/* cont(permute(mul_mat(v, weights))): dimensions are (head_dim, n_head, ctx, batch) outside, and inside, where products
 * are taken head by head, (head_dim, ctx, n_head, batch). A file holds a copy of v transposed once more, for mul_mat
 * sums over dimension 0. */
static bool match_attention(const fusion *f, int32_t id, match *m)
{
    int32_t outside = gg_at(f->g, id)->op == GG_OP_CONT ? swallow(f, id, 0, GG_OP_PERMUTE) : -1;
    int32_t inside = swallow(f, outside, 0, GG_OP_MUL_MAT);
    if (inside < 0 || permuted(f, outside, heads_out) < 0) return false;
    weighing w;
    int32_t product = match_weights(f, swallow(f, inside, 1, GG_OP_SOFT_MAX), &w);
    const gg_tensor *values = gg_at(f->g, gg_at(f->g, inside)->src[0]);
    if (product < 0 || values->op != GG_OP_CONT || !gg_same_shape(values, gg_at(f->g, values->src[0]))) return false;
    int32_t q = permuted(f, gg_at(f->g, product)->src[1], heads_out);
    int32_t k = permuted(f, gg_at(f->g, product)->src[0], heads_out);
    int32_t v = match_values(f, values->src[0]);
    if (q < 0 || k < 0 || v < 0 || !gg_same_shape(gg_at(f->g, k), gg_at(f->g, v))) return false;
    if (gg_at(f->g, q)->ne[3] != gg_at(f->g, k)->ne[3]) return false;
    if (gg_at(f->g, k)->type != GG_TYPE_F32 || gg_at(f->g, v)->type != GG_TYPE_F32) return false;
    if (w.window > 0 && gg_at(f->g, q)->ne[2] > gg_at(f->g, k)->ne[2]) return false; /* queries may see no key */
    *m = (match){.op = GG_OP_ATTENTION, .n_src = w.n_masks > 0 ? MASK + w.n_masks : LSE,
                 .src = {[LSE] = -1, [MASK] = w.masks[0], [SECOND_MASK] = w.masks[1]}};
    set_heads(f, m, 0, q);
    set_heads(f, m, 1, k);
    set_heads(f, m, 2, v);
    memcpy(&m->op_params[0], &w.scale, sizeof w.scale);
    m->op_params[1] = w.n_past;
    m->op_params[2] = w.window;
    memcpy(&m->op_params[3], &w.soft_cap, sizeof w.soft_cap);
    return true;
}

/* Product with the loss's own cotangent, the number 1 that gg_grad starts from: its first operand. */
static bool match_seed(const fusion *f, int32_t id, match *m)
{
    const gg_tensor *y = gg_at(f->g, id);
    if (y->op != GG_OP_MUL || f->g->seed == 0 || y->src[1] != f->g->seed) return false;
    *m = (match){.op = GG_OP_RESHAPE, .n_src = 1, .src = {y->src[0]}};
    return true;
}

/* The sizes that dimensions `ne` of y have before they are repeated, if y's elements in order are those of `repeated`,
 * which was of size 1 where `single` says so. False where a dimension of y is of both kinds. */
static bool unrepeat(const gg_tensor *y, const gg_tensor *repeated, const bool *single, int64_t *ne)
{
    int64_t left = repeated->ne[0]; /* of dimension `from`, not yet in y */
    int from = 0;
    for (int d = 0; d < GG_MAX_DIMS; d++) {
        int64_t n = ne[d] = y->ne[d];
        for (bool begun = false; n > 1; begun = true) {
            while (left == 1) left = repeated->ne[++from];
            if (begun && single[from] != (ne[d] == 1)) return false;
            int64_t taken = gg_min_i64(n, left);
            if (n % taken || left % taken) return false;
            if (single[from]) ne[d] = 1;
            n /= taken;
            left /= taken;
        }
    }
    return true;
}

/* A repetition of single elements, in its own dimensions or others, for ops that take any strides: they read it in
 * place. Nobody may write over what it was made of, or over it, as long as it is read. */
static bool match_expand(const fusion *f, int32_t id, match *m)
{
    int32_t repeat = id;
    while (gg_at(f->g, repeat)->op == GG_OP_RESHAPE) repeat = gg_at(f->g, repeat)->src[0];
    const gg_tensor *y = gg_at(f->g, id), *repeated = gg_at(f->g, repeat);
    if (repeated->op != GG_OP_REPEAT || y->type != GG_TYPE_F32 || f->n_strided[id] != f->n_uses[id]) return false;
    const gg_tensor *a = gg_at(f->g, repeated->src[0]);
    bool single[GG_MAX_DIMS];
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        single[i] = a->ne[i] != repeated->ne[i];
        if (single[i] && a->ne[i] != 1) return false;
    }
    if (f->g->writers[repeat] > 0 || gg_overwriter(f->g, repeated->src[0], repeat, f->g->n_tensors) >= 0) return false;
    *m = (match){.op = GG_OP_EXPAND, .n_src = 1, .src = {repeated->src[0]}};
    return repeat == id || unrepeat(y, repeated, single, m->ne);
}

/* A sum of one tile, as in the gradient of an operand that was not repeated: the tile. */
static bool match_one_tile(const fusion *f, int32_t id, match *m)
{
    const gg_tensor *y = gg_at(f->g, id);
    if (y->op != GG_OP_REPEAT_BACK || !gg_same_shape(y, gg_at(f->g, y->src[0]))) return false;
    if (f->g->writers[id] > 0 || gg_overwriter(f->g, y->src[0], id, f->g->n_tensors) >= 0) return false;
    *m = (match){.op = GG_OP_RESHAPE, .n_src = 1, .src = {y->src[0]}};
    return true;
}

/* repeat_back(mul(a, b)) of operands that lie alike. */
static bool match_sum_products(const fusion *f, int32_t id, match *m)
{
    int32_t mul = gg_at(f->g, id)->op == GG_OP_REPEAT_BACK ? swallow(f, id, 0, GG_OP_MUL) : -1;
    if (mul < 0) return false;
    const int32_t *src = gg_at(f->g, mul)->src;
    const gg_tensor *a = gg_at(f->g, src[0]), *b = gg_at(f->g, src[1]);
    if (!gg_same_shape(a, b) || !gg_is_contiguous(a) || !gg_is_contiguous(b)) return false;
    *m = (match){.op = GG_OP_SUM_PRODUCTS, .n_src = 2, .src = {src[0], src[1]}};
    return true;
}

/* add(total, cotangent of a part of it), in either order: only the part's elements are touched. */
static bool match_part(const fusion *f, int32_t id, match *m)
{
    const gg_tensor *y = gg_at(f->g, id);
    if (y->op != GG_OP_ADD || !gg_same_shape(gg_at(f->g, y->src[0]), gg_at(f->g, y->src[1]))) return false;
    for (int k = 1; k >= 0; k--) {
        int32_t total = y->src[1 - k], view = swallow(f, id, k, GG_OP_VIEW_BACK);
        int32_t rows = swallow(f, id, k, GG_OP_GET_ROWS_BACK);
        if (view >= 0 && gg_at(f->g, view)->src[3] < 0) {
            const int32_t *src = gg_at(f->g, view)->src;
            *m = (match){.op = GG_OP_VIEW_BACK, .n_src = 4, .src = {src[0], src[1], src[2], total}};
            return true;
        }
        if (rows >= 0) {
            *m = (match){.op = GG_OP_ADD_ROWS, .n_src = 3,
                         .src = {gg_at(f->g, rows)->src[0], gg_at(f->g, rows)->src[1], total}};
            return true;
        }
    }
    return false;
}

/* Every pattern, and what enables it. */
static const struct {
    int32_t fusion;
    bool (*match)(const fusion *f, int32_t id, match *m);
} patterns[] = {
    {GG_FUSE_NORM_GAIN, match_norm_gain},
    {GG_FUSE_SWIGLU, match_swiglu},
    {GG_FUSE_ATTENTION, match_attention},
    {GG_FUSE_ATTENTION, match_rope},
    {GG_FUSE_CROSS_ENTROPY, match_cross_entropy},
    {GG_FUSE_ACCUMULATE, match_seed},
    {GG_FUSE_ACCUMULATE, match_part},
    {GG_FUSE_REPEAT, match_expand},
    {GG_FUSE_REPEAT, match_one_tile},
    {GG_FUSE_ACCUMULATE, match_sum_products},
};

static match find_match(const fusion *f, int32_t id)
{
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        match m = {.op = GG_OP_NONE};
        if ((f->enable & patterns[i].fusion) && patterns[i].match(f, id, &m)) return m;
    }
    return (match){.op = GG_OP_NONE};
}

/* Whether a source of the match, read where node id is, has been overwritten since its own reader. */
static bool comes_too_late(const fusion *f, int32_t id, const match *m)
{
    for (int k = 0; k < m->n_src; k++)
        if (m->src[k] >= 0 && gg_overwriter(f->g, m->src[k], m->src[k], id) >= 0) return true;
    return false;
}

/* ---------------------------------------------------------------- the sweep and the copy */

/* What is read after a run, the roots and the gradients of parameters: one use each. */
static void count_roots(fusion *f, int32_t n_roots, const int32_t *roots)
{
    for (int32_t i = 0; i < n_roots; i++) f->n_uses[roots[i]]++;
    for (int32_t id = 0; id < f->g->n_tensors; id++)
        if ((gg_at(f->g, id)->flags & GG_FLAG_PARAM) && f->g->grads[id] >= 0) f->n_uses[f->g->grads[id]]++;
    for (int32_t id = 0; id < f->g->n_tensors; id++) f->needed[id] = f->reached[id] = f->n_uses[id] > 0;
}

/* Elementwise, a copy, or another order of dimensions that only such ops read. */
static bool takes_strides(const fusion *f, int32_t id)
{
    int32_t op = gg_at(f->g, id)->op;
    bool turns = op == GG_OP_PERMUTE || op == GG_OP_PERMUTE_BACK || op == GG_OP_TRANSPOSE;
    return turns ? f->n_strided[id] == f->n_uses[id] : op == GG_OP_CONT || gg_ops[op].elementwise;
}

static void count_uses(fusion *f)
{
    for (int32_t id = f->g->n_tensors - 1; id >= 0; id--)
        for (int k = 0; f->reached[id] && k < GG_MAX_SRC; k++) {
            int32_t src = gg_at(f->g, id)->src[k];
            if (src < 0) continue;
            f->reached[src] = true;
            f->n_uses[src]++;
            f->n_strided[src] += takes_strides(f, id);
        }
}

static void find_matches(fusion *f, match *matches)
{
    for (int32_t id = f->g->n_tensors - 1; id >= 0; id--) {
        if (!f->needed[id] || gg_is_leaf(gg_at(f->g, id))) continue;
        matches[id] = find_match(f, id);
        if (comes_too_late(f, id, &matches[id])) matches[id].op = GG_OP_NONE;
        const int32_t *src = matches[id].op ? matches[id].src : gg_at(f->g, id)->src;
        int32_t n_src = matches[id].op ? matches[id].n_src : GG_MAX_SRC;
        for (int k = 0; k < n_src; k++)
            if (src[k] >= 0) f->needed[src[k]] = true;
    }
}

/* Old node `heads` as a view of `whole`; see set_heads. */
static int32_t view_heads(gg_rebuild *r, int32_t heads, int32_t whole)
{
    gg_builder to = {.g = r->out, .err = r->err};
    const gg_tensor *t = gg_at(r->in, heads), *slice = gg_at(r->in, gg_at(r->in, t->src[0])->src[0]);
    const int64_t nb[GG_MAX_DIMS] = {slice->nb[0], t->ne[0] * slice->nb[0], slice->nb[1], slice->nb[2]};
    return gg_build(&to, GG_OP_VIEW, 1, &whole, slice->op_params, t->ne, nb);
}

/* Memory that a fused op leaves something in for its derivative, as its further sources. */
static void add_written(gg_builder *to, const fusion *f, const match *m, int32_t *src, int32_t *n_src)
{
    if (m->op == GG_OP_LINEAR_CROSS_ENTROPY) {
        src[(*n_src)++] = f->trained[m->src[0]] ? gg_make_empty(to, src[0]) : -1;
        src[(*n_src)++] = gg_make_empty(to, src[1]);
    } else if (m->op == GG_OP_ATTENTION) {
        const gg_tensor *q = gg_at(to->g, src[0]);
        const int64_t one_per_query[GG_MAX_DIMS] = {q->ne[2], q->ne[1], q->ne[3], 1};
        src[LSE] = gg_build(to, GG_OP_EMPTY, 0, NULL, NULL, one_per_query, NULL);
        if (*n_src <= LSE) *n_src = LSE + 1;
    }
}

/* The sum of two masks, in the sizes of both. */
static int32_t add_masks(gg_builder *to, int32_t a, int32_t b)
{
    int64_t ne[GG_MAX_DIMS];
    for (int i = 0; i < GG_MAX_DIMS; i++) ne[i] = gg_max_i64(gg_at(to->g, a)->ne[i], gg_at(to->g, b)->ne[i]);
    return gg_make_add(to, gg_build(to, GG_OP_EXPAND, 1, &a, NULL, ne, NULL), b);
}

static int32_t copy_fused(gg_rebuild *r, const fusion *f, int32_t id, const match *m)
{
    gg_builder to = {.g = r->out, .err = r->err};
    int32_t src[GG_MAX_SRC], n_src = m->n_src;
    for (int k = 0; k < n_src; k++) {
        src[k] = m->src[k] < 0 ? -1 : r->map[m->src[k]];
        if (m->heads[k] && (src[k] = view_heads(r, m->heads[k], src[k])) < 0) return -1;
    }
    if (m->ne[0] > 0 && (src[0] = gg_build(&to, GG_OP_RESHAPE, 1, src, NULL, m->ne, NULL)) < 0) return -1;
    if (m->op == GG_OP_ATTENTION && n_src > SECOND_MASK) {
        src[MASK] = add_masks(&to, src[MASK], src[SECOND_MASK]);
        n_src = SECOND_MASK;
    }
    if (f->train) add_written(&to, f, m, src, &n_src);
    const int64_t *ne = gg_ops[m->op].sized ? gg_at(r->in, id)->ne : NULL;
    int32_t y = gg_build(&to, m->op, n_src, src, m->op_params, ne, NULL);
    if (y < 0 || gg_same_shape(gg_at(r->out, y), gg_at(r->in, id))) return y;
    return gg_build(&to, GG_OP_RESHAPE, 1, &y, NULL, gg_at(r->in, id)->ne, NULL);
}

static int32_t copy_plain(gg_rebuild *r, const gg_tensor *t)
{
    int32_t src[GG_MAX_SRC];
    for (int k = 0; k < t->n_src; k++) src[k] = t->src[k] < 0 ? -1 : r->map[t->src[k]];
    return gg_copy_node(r, t, src);
}

static bool copy_needed(gg_rebuild *r, const fusion *f, const match *matches)
{
    for (int32_t id = 0; id < f->g->n_tensors; id++) {
        const gg_tensor *t = gg_at(f->g, id);
        if (!f->needed[id]) continue;
        int32_t copy = gg_is_leaf(t)     ? gg_copy_leaf(r, id, NULL)
                       : matches[id].op ? copy_fused(r, f, id, &matches[id])
                                        : copy_plain(r, t);
        if (copy < 0 || gg_copied(r, id, copy) < 0) return false;
    }
    return true;
}

static bool fuse(gg_rebuild *r, fusion *f, int32_t n_roots, const int32_t *roots)
{
    size_t n = (size_t)f->g->n_tensors + 1;
    match *matches = calloc(n, sizeof *matches);
    f->n_uses = calloc(n, sizeof *f->n_uses);
    f->n_strided = calloc(n, sizeof *f->n_strided);
    f->reached = calloc(n, sizeof *f->reached);
    f->needed = calloc(n, sizeof *f->needed);
    f->trained = calloc(n, sizeof *f->trained);
    bool ok = matches && f->n_uses && f->n_strided && f->reached && f->needed && f->trained;
    if (ok) {
        gg_find_trained(f->g, f->g->n_tensors, f->trained);
        count_roots(f, n_roots, roots);
        count_uses(f);
        find_matches(f, matches);
        ok = copy_needed(r, f, matches);
    } else {
        gg_fail(r->err, GG_ERR_MEMORY, -1, "no memory to fuse %d tensors", f->g->n_tensors);
    }
    for (int32_t id = 0; ok && id < r->out->n_tensors; id++) gg_at(r->out, id)->flags &= ~GG_FLAG_OUTPUT;
    for (int32_t i = 0; ok && i < n_roots; i++) gg_at(r->out, r->map[roots[i]])->flags |= GG_FLAG_OUTPUT;
    free(matches);
    free(f->n_uses);
    free(f->n_strided);
    free(f->reached);
    free(f->needed);
    free(f->trained);
    return ok;
}

gg_graph *gg_fuse(const gg_graph *g, int32_t n_roots, const int32_t *roots, int32_t train, int32_t enable,
                  gg_error *err)
{
    gg_rebuild r;
    for (int32_t i = 0; i < n_roots; i++)
        if (!gg_graph_tensor(g, roots[i])) {
            gg_fail(err, GG_ERR_ARGUMENT, roots[i], "no tensor %d", roots[i]);
            return NULL;
        }
    if (!gg_rebuild_begin(&r, g, err)) return NULL;
    fusion f = {.g = g, .enable = enable, .train = train};
    return gg_rebuild_end(&r, fuse(&r, &f, n_roots, roots));
}
