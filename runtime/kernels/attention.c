/* attention.c - softmax(scale q k^T) v and its derivatives without the matrix of scores. Called by the executor.
 *
 * A block of queries passes along blocks of keys. Forward, the running maximum and sum of each softmax correct what was
 * added up before (Milakov & Gimelshein 2018); backward, the scores are computed again from q, k and the softmax's
 * log-sum-exp (Dao et al. 2022). Keys that no query of a block sees are skipped, in the block on the diagonal strip by
 * strip, so a causal mask halves the work, and with a window it grows with the window.
 *
 * Blocks of scores lie transposed, a row per key and a lane per query: what a softmax does to its row is then done to
 * GG_LANES rows at once, and only the queries need transposing. Threads take items from a counter. An item is all that
 * is added into one part of the result, in one order, so it does not matter who computes it.
 */
#include <float.h>
#include <stdatomic.h>

#include "../src/kernel.h"
#include "block_product.h"
#include "../src/blocks.h"
#include "simd_math.h"
#include "transpose.h"

enum { QUERIES = GG_ATTENTION_QUERIES, KEYS = GG_ATTENTION_KEYS, TILE_COLS = GG_PRODUCT_COLS, STRIP = 16 };

_Static_assert(QUERIES % TILE_COLS == 0, "a row of scores is whole tiles");

/* ---------------------------------------------------------------- rows to blocks */

/* The rows of one head of a tensor: row t is at data + t * row. */
typedef struct rows {
    float  *data;
    int64_t row;
} rows;

static rows head_rows(const gg_tensor *t, char *data, int64_t head, int64_t sequence)
{
    return (rows){(float *)(data + head * t->nb[1] + sequence * t->nb[3]), t->nb[2] / (int64_t)sizeof(float)};
}

static int64_t whole_vectors(int64_t n) { return gg_round_up(n, GG_LANES); }

static void copy_row(float *dst, const float *src, int64_t n, float scale)
{
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(dst + i, gg_load(src + i) * scale);
    if (i < n) gg_store_n(dst + i, gg_load_n(src + i, n - i) * scale, n - i);
}

/* scale times rows [first, first + n), filled up with zeros to whole vectors both ways. */
static void load_block(float *dst, const rows *src, int64_t first, int64_t n, int64_t head_dim, float scale)
{
    int64_t row = gg_attention_row(head_dim);
    for (int64_t i = 0; i < n; i++) {
        copy_row(dst + i * row, src->data + (first + i) * src->row, head_dim, scale);
        for (int64_t d = head_dim; d < row; d++) dst[i * row + d] = 0;
    }
    memset(dst + n * row, 0, (size_t)((whole_vectors(n) - n) * row) * sizeof(float));
}

/* What load_block made of n queries, a column each. */
static void transpose_block(float *dst, const float *src, int64_t n, int64_t head_dim)
{
    int64_t row = gg_attention_row(head_dim);
    for (int64_t i = 0; i < whole_vectors(n); i += GG_LANES)
        gg_transpose(dst + i, QUERIES, src + i * row, row, head_dim, GG_LANES);
}

/* ---------------------------------------------------------------- a block of queries and a block of keys */

/* Key j of the block is visible to query i where i + behind <= j <= i + ahead. */
typedef struct pair {
    int64_t n_queries, n_keys, ahead, behind, head_dim;
} pair;

/* Keys from n on are not visible to query i. */
static int64_t visible_keys(const pair *p, int64_t i) { return gg_max_i64(0, gg_min_i64(p->n_keys, i + p->ahead + 1)); }

/* Keys [0, n) are not visible to query i. */
static int64_t hidden_keys(const pair *p, int64_t i) { return gg_max_i64(0, gg_min_i64(p->n_keys, i + p->behind)); }

/* Queries [n, n_queries) see key j. */
static int64_t first_query(const pair *p, int64_t j) { return gg_max_i64(0, gg_min_i64(p->n_queries, j - p->ahead)); }

/* For each key's row of `keys` and each query's column of `queries` their product, in strips of queries, as far as one
 * query of the strip sees the key. */
static void score(const pair *p, float *scores, const float *keys, const float *queries)
{
    for (int64_t i = 0; i < p->n_queries; i += TILE_COLS) {
        int64_t n_cols = gg_min_i64(TILE_COLS, whole_vectors(p->n_queries - i));
        gg_multiply(&(gg_product){.a = keys, .a_row = gg_attention_row(p->head_dim), .a_col = 1,
                            .b = queries + i, .b_row = QUERIES, .c = scores + i, .c_row = QUERIES,
                            .n_rows = visible_keys(p, i + n_cols - 1), .n_cols = n_cols, .n_inner = p->head_dim});
    }
}

/* Each query's weighted sum of the rows of `keys`, written to its row of out or added to it. */
static void sum_keys(const pair *p, float *out, const float *weights, const float *keys, bool accumulate)
{
    int64_t row = gg_attention_row(p->head_dim);
    for (int64_t i = 0; i < p->n_queries; i += STRIP) {
        int64_t n = gg_min_i64(STRIP, p->n_queries - i);
        gg_multiply(&(gg_product){.a = weights + i, .a_row = 1, .a_col = QUERIES, .b = keys, .b_row = row,
                            .c = out + i * row, .c_row = row, .n_rows = n, .n_cols = row,
                            .n_inner = visible_keys(p, i + n - 1), .accumulate = accumulate});
    }
}

/* Each key's weighted sum of the rows of `queries`, added to its row of out. */
static void sum_queries(const pair *p, const rows *out, int64_t first_key, const float *weights, const float *queries)
{
    int64_t row = gg_attention_row(p->head_dim);
    for (int64_t j = 0; j < p->n_keys; j += STRIP) {
        int64_t i = first_query(p, j);
        gg_multiply(&(gg_product){.a = weights + j * QUERIES + i, .a_row = QUERIES, .a_col = 1, .b = queries + i * row,
                            .b_row = row, .c = out->data + (first_key + j) * out->row, .c_row = out->row,
                            .n_rows = gg_min_i64(STRIP, p->n_keys - j), .n_cols = p->head_dim,
                            .n_inner = p->n_queries - i, .accumulate = true});
    }
}

/* A lane each for the queries from i on: keys [inner, all) are visible to every one, none but [begin, some) to any, and
 * key j to those where first <= j <= last. */
typedef struct lanes {
    int64_t begin, inner, all, some, n_keys;
    gg_ivec first, last;
} lanes;

static lanes lanes_of(const pair *p, int64_t i)
{
    lanes l = {.some = visible_keys(p, i + GG_LANES - 1), .n_keys = p->n_keys};
    l.begin = gg_min_i64(hidden_keys(p, i), l.some);
    l.inner = gg_min_i64(hidden_keys(p, i + GG_LANES - 1), l.some);
    l.all = gg_max_i64(l.inner, visible_keys(p, i));
    for (int k = 0; k < GG_LANES; k++) {
        l.first[k] = (int32_t)(i + k + p->behind);
        l.last[k] = (int32_t)(i + k + p->ahead);
    }
    return l;
}

/* x in the lanes that see key j, else `other`. */
static inline gg_vec where_visible(const lanes *l, int64_t j, gg_vec x, gg_vec other)
{
    if (j >= l->inner && j < l->all) return x;
    return gg_select(((int32_t)j >= l->first) & ((int32_t)j <= l->last), x, other);
}

static void clear_keys(float *column, int64_t begin, int64_t end)
{
    for (int64_t j = begin; j < end; j++) gg_store(column + j * QUERIES, gg_splat(0.0f));
}

/* ---------------------------------------------------------------- a head's share of the node */

/* One head of queries and the head of keys and values that serves it. */
typedef struct head {
    rows         q, k, v;
    int64_t      head_dim, n_queries, n_keys, n_past, window; /* of the last `window` keys that a query would see */
    float        scale;        /* of the products, by the soft cap if there is one */
    float        soft_cap;     /* 0: none */
    const float *mask;         /* added to the scores; NULL: none */
    int64_t      mask_row;     /* floats from one query's to the next one's; 0: the same for all */
} head;

static const float *mask_of(const gg_tensor *mask, const char *data, int64_t i_head, int64_t sequence)
{
    if (!mask) return NULL;
    return (const float *)(data + i_head % mask->ne[2] * mask->nb[2] + sequence % mask->ne[3] * mask->nb[3]);
}

static head head_of(const gg_task *task, int first_src, int64_t i_head, int64_t sequence)
{
    const gg_tensor *const *src = task->src + first_src; /* q, k, v, lse, mask */
    char *const *data = task->src_data + first_src;
    int64_t i_kv = i_head / (src[0]->ne[1] / src[1]->ne[1]), window = gg_param_i32(task->y, 2);
    float   scale = gg_param_f32(task->y, 0), soft_cap = gg_param_f32(task->y, 3);
    return (head){.window = window > 0 ? window : INT64_MAX / 2, .mask = mask_of(src[4], data[4], i_head, sequence),
                  .mask_row = src[4] && src[4]->ne[1] > 1 ? src[4]->ne[0] : 0, .soft_cap = soft_cap,
                  .q = head_rows(src[0], data[0], i_head, sequence), .k = head_rows(src[1], data[1], i_kv, sequence),
                  .v = head_rows(src[2], data[2], i_kv, sequence), .head_dim = src[0]->ne[0],
                  .n_queries = src[0]->ne[2], .n_keys = src[1]->ne[2], .n_past = gg_param_i32(task->y, 1),
                  .scale = soft_cap > 0 ? scale / soft_cap : scale};
}

static float *lse_of(const gg_tensor *lse, char *data, int64_t i_head, int64_t sequence)
{
    return (float *)(data + i_head * lse->nb[1] + sequence * lse->nb[2]);
}

/* The queries from `query` on against the keys from `key` on. `ahead` and `behind` are cut off where they hide no key. */
static pair pair_of(const head *h, int64_t query, int64_t key)
{
    return (pair){.n_queries = gg_min_i64(QUERIES, h->n_queries - query), .n_keys = gg_min_i64(KEYS, h->n_keys - key),
                  .ahead = gg_min_i64(KEYS, query + h->n_past - key),
                  .behind = gg_max_i64(-QUERIES, query + h->n_past + 1 - h->window - key), .head_dim = h->head_dim};
}

/* The first key of the first block of which the queries from `query` on see any. */
static int64_t first_key_seen(const head *h, int64_t query)
{
    return gg_max_i64(0, query + h->n_past + 1 - h->window) / KEYS * KEYS;
}

/* Keys that any query of the block from `query` on sees. */
static int64_t n_keys_seen(const head *h, int64_t query)
{
    return gg_min_i64(h->n_keys, gg_min_i64(query + QUERIES, h->n_queries) + h->n_past);
}

/* Items 0, 1, 2, ... go to whichever thread comes next, once all have met in start_items. */
static void start_items(const gg_task *task)
{
    if (task->ith == 0) atomic_store_explicit((_Atomic int64_t *)task->work, 0, memory_order_relaxed);
    gg_barrier(task);
}

static int64_t next_item(const gg_task *task)
{
    return atomic_fetch_add_explicit((_Atomic int64_t *)task->work, 1, memory_order_relaxed);
}

/* This thread's scratch memory of n_floats, behind the counter. */
static float *own_work(const gg_task *task, int64_t n_floats)
{
    return (float *)(task->work + GG_ALIGN) + task->ith * n_floats;
}

/* The next n floats of scratch memory. */
static float *carve(float **work, int64_t n)
{
    float *block = *work;
    *work += n;
    return block;
}

/* ---------------------------------------------------------------- forward */

/* A thread's blocks: scores and weights, operands, and for each query the running maximum, the sum of its weights
 * and the factor that corrects what was added up under an older maximum. */
typedef struct forward_blocks {
    float *scores, *k, *v, *q, *y, *max, *sum, *correction;
} forward_blocks;

static forward_blocks carve_forward(float *work, int64_t head_dim)
{
    int64_t row = gg_attention_row(head_dim);
    forward_blocks w;
    w.scores = carve(&work, GG_ATTENTION_SCORES);
    w.k = carve(&work, KEYS * row);
    w.v = carve(&work, KEYS * row);
    w.q = carve(&work, QUERIES * row);
    w.y = carve(&work, QUERIES * row);
    w.max = carve(&work, QUERIES);
    w.sum = carve(&work, QUERIES);
    w.correction = carve(&work, QUERIES);
    return w;
}

/* Scores become soft_cap * tanh(score), and `bends`, unless it is NULL, the derivatives of that. */
static void cap_scores(const pair *p, float *scores, float soft_cap, float *bends)
{
    for (int64_t i = 0; i < p->n_queries; i += GG_LANES) {
        int64_t end = visible_keys(p, i + GG_LANES - 1);
        for (int64_t j = hidden_keys(p, i); j < end; j++) {
            gg_vec t = gg_tanh(gg_load(scores + j * QUERIES + i));
            gg_store(scores + j * QUERIES + i, t * soft_cap);
            if (bends) gg_store(bends + j * QUERIES + i, (1.0f - t * t) * soft_cap);
        }
    }
}

/* Add to each key's row of scores what belongs to the key. */
static void add_key_mask(const pair *p, float *scores, const float *mask)
{
    for (int64_t j = 0; j < p->n_keys; j++)
        for (int64_t i = 0; i < p->n_queries; i += GG_LANES)
            gg_store(scores + j * QUERIES + i, gg_load(scores + j * QUERIES + i) + mask[j]);
}

/* Add to the scores what belongs to a key and a query; each query's are a row of the mask. */
static void add_mask(const pair *p, float *scores, const float *mask, int64_t row)
{
    for (int64_t i = 0; i < p->n_queries; i += GG_LANES) {
        float   columns[KEYS * GG_LANES];
        int64_t n = gg_min_i64(GG_LANES, p->n_queries - i), n_keys = visible_keys(p, i + GG_LANES - 1);
        if (n < GG_LANES) memset(columns, 0, sizeof columns);
        gg_transpose(columns, GG_LANES, mask + i * row, row, n_keys, (int)n);
        for (int64_t j = 0; j < n_keys; j++)
            gg_store(scores + j * QUERIES + i, gg_load(scores + j * QUERIES + i) + gg_load(columns + j * GG_LANES));
    }
}

/* The scores of the queries from `query` on and the keys from `key` on, of which there are the scaled products. */
static void finish_scores(const pair *p, const head *h, float *scores, float *bends, int64_t query, int64_t key)
{
    if (h->soft_cap > 0) cap_scores(p, scores, h->soft_cap, bends);
    if (h->mask_row > 0) add_mask(p, scores, h->mask + query * h->mask_row + key, h->mask_row);
    else if (h->mask) add_key_mask(p, scores, h->mask + key);
}

/* Scores of GG_LANES queries from i on become weights exp(score - maximum). */
static void weigh(const forward_blocks *w, const pair *p, int64_t i)
{
    lanes l = lanes_of(p, i);
    float *column = w->scores + i;
    gg_vec old = gg_load(w->max + i), max = old, sum = {0};
    for (int64_t j = l.begin; j < l.some; j++)
        max = gg_max(where_visible(&l, j, gg_load(column + j * QUERIES), gg_splat(-INFINITY)), max);
    clear_keys(column, 0, l.begin);
    for (int64_t j = l.begin; j < l.some; j++) {
        gg_vec e = where_visible(&l, j, gg_exp(gg_load(column + j * QUERIES) - max), gg_splat(0.0f));
        gg_store(column + j * QUERIES, e);
        sum += e;
    }
    clear_keys(column, l.some, l.n_keys);
    gg_vec correction = gg_exp(old - max);
    gg_store(w->correction + i, correction);
    gg_store(w->sum + i, gg_fma(gg_load(w->sum + i), correction, sum));
    gg_store(w->max + i, max);
}

static void scale_rows(float *block, const float *factors, int64_t n, int64_t row)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < row; d += GG_LANES)
            gg_store(block + i * row + d, gg_load(block + i * row + d) * factors[i]);
}

/* y = the weighted sum over the weights' sum, lse = max + log(sum) */
static void finish_queries(const forward_blocks *w, const rows *y, int64_t query, int64_t n, int64_t head_dim,
                           float *lse)
{
    for (int64_t i = 0; i < n; i++)
        copy_row(y->data + (query + i) * y->row, w->y + i * gg_attention_row(head_dim), head_dim, 1 / w->sum[i]);
    if (!lse) return;
    for (int64_t i = 0; i < n; i += GG_LANES)
        gg_store(w->max + i, gg_load(w->max + i) + gg_log(gg_load(w->sum + i)));
    memcpy(lse + query, w->max, (size_t)n * sizeof(float));
}

/* The block of queries from `query` on past all keys it sees. */
static void attend(const forward_blocks *w, const head *h, int64_t query, const rows *y, float *lse)
{
    int64_t n_queries = gg_min_i64(QUERIES, h->n_queries - query), n_keys = n_keys_seen(h, query);
    int64_t first = first_key_seen(h, query);
    float least = h->mask || h->window < h->n_keys ? -FLT_MAX : -INFINITY; /* a block may hide all its keys from a query */
    load_block(w->y, &h->q, query, n_queries, h->head_dim, h->scale);
    transpose_block(w->q, w->y, n_queries, h->head_dim);
    for (int64_t i = 0; i < QUERIES; i++) w->max[i] = least;
    memset(w->sum, 0, QUERIES * sizeof(float));
    for (int64_t key = first; key < n_keys; key += KEYS) {
        pair p = pair_of(h, query, key);
        load_block(w->k, &h->k, key, p.n_keys, h->head_dim, 1);
        load_block(w->v, &h->v, key, p.n_keys, h->head_dim, 1);
        score(&p, w->scores, w->k, w->q);
        finish_scores(&p, h, w->scores, NULL, query, key);
        for (int64_t i = 0; i < n_queries; i += GG_LANES) weigh(w, &p, i);
        if (key > first) scale_rows(w->y, w->correction, n_queries, gg_attention_row(h->head_dim));
        sum_keys(&p, w->y, w->scores, w->v, key > first);
    }
    finish_queries(w, y, query, n_queries, h->head_dim, lse);
}

/* sources: q, k, v, the lse to write and the mask, if any. The last queries see most keys, so they come first. */
GG_KERNEL(attention)
{
    const gg_tensor *y = task->y, *lse = task->src[3];
    int64_t n_heads = y->ne[1] * y->ne[3], n_blocks = gg_ceil_div(y->ne[2], QUERIES);
    forward_blocks w = carve_forward(own_work(task, gg_attention_floats(y->ne[0])), y->ne[0]);
    start_items(task);
    for (int64_t item = next_item(task); item < n_blocks * n_heads; item = next_item(task)) {
        int64_t block = n_blocks - 1 - item / n_heads, i_head = item % y->ne[1], sequence = item % n_heads / y->ne[1];
        head h = head_of(task, 0, i_head, sequence);
        rows out = head_rows(y, task->y_data, i_head, sequence);
        attend(&w, &h, block * QUERIES, &out, lse ? lse_of(lse, task->src_data[3], i_head, sequence) : NULL);
    }
}

/* ---------------------------------------------------------------- backward */

/* A thread's blocks: scores, then weights; their derivative; that of the soft cap; operands, a query's as rows and as
 * columns; lse and g . y of each query. */
typedef struct backward_blocks {
    float *weights, *slopes, *bends, *k, *v, *q, *q_columns, *g, *g_columns, *dq, *lse, *g_y;
} backward_blocks;

static backward_blocks carve_backward(float *work, int64_t head_dim)
{
    int64_t row = gg_attention_row(head_dim);
    backward_blocks w;
    w.weights = carve(&work, GG_ATTENTION_SCORES);
    w.slopes = carve(&work, GG_ATTENTION_SCORES);
    w.bends = carve(&work, GG_ATTENTION_SCORES);
    w.k = carve(&work, KEYS * row);
    w.v = carve(&work, KEYS * row);
    w.q = carve(&work, QUERIES * row);
    w.q_columns = carve(&work, QUERIES * row);
    w.g = carve(&work, QUERIES * row);
    w.g_columns = carve(&work, QUERIES * row);
    w.dq = carve(&work, QUERIES * row);
    w.lse = carve(&work, QUERIES);
    w.g_y = carve(&work, QUERIES);
    return w;
}

/* What the backward pass has beside a head's q, k and v; dk and dv are shared by the group. */
typedef struct cotangents {
    rows         g, y, dq, dk, dv;
    const float *lse;
} cotangents;

/* Of GG_LANES queries from i on, scores become weights exp(score - lse), and g . v the derivative by the score,
 * weight (g . v - g . y). */
static void differentiate(const backward_blocks *w, const pair *p, int64_t i)
{
    lanes l = lanes_of(p, i);
    float *weights = w->weights + i, *slopes = w->slopes + i;
    gg_vec lse = gg_load(w->lse + i), g_y = gg_load(w->g_y + i);
    clear_keys(weights, 0, l.begin);
    clear_keys(slopes, 0, l.begin);
    for (int64_t j = l.begin; j < l.some; j++) {
        gg_vec weight = gg_exp(gg_load(weights + j * QUERIES) - lse), slope = gg_load(slopes + j * QUERIES) - g_y;
        weight = where_visible(&l, j, weight, gg_splat(0.0f));
        gg_store(weights + j * QUERIES, weight);
        gg_store(slopes + j * QUERIES, weight * slope);
    }
    clear_keys(weights, l.some, l.n_keys);
    clear_keys(slopes, l.some, l.n_keys);
}

/* Derivatives by the scores become those by the products that a soft cap was put on. */
static void bend(const backward_blocks *w, const pair *p)
{
    for (int64_t i = 0; i < p->n_queries; i += GG_LANES) {
        int64_t end = visible_keys(p, i + GG_LANES - 1);
        for (int64_t j = hidden_keys(p, i); j < end; j++) {
            float *slopes = w->slopes + j * QUERIES + i;
            gg_store(slopes, gg_load(slopes) * gg_load(w->bends + j * QUERIES + i));
        }
    }
}

static float dot(const float *a, const float *b, int64_t n)
{
    gg_vec sum = {0};
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) sum = gg_fma(gg_load(a + i), gg_load(b + i), sum);
    if (i < n) sum = gg_fma(gg_load_n(a + i, n - i), gg_load_n(b + i, n - i), sum);
    return gg_hsum(sum);
}

static void load_queries(const backward_blocks *w, const head *h, const cotangents *c, int64_t query, int64_t n)
{
    load_block(w->q, &h->q, query, n, h->head_dim, h->scale);
    load_block(w->g, &c->g, query, n, h->head_dim, 1);
    transpose_block(w->q_columns, w->q, n, h->head_dim);
    transpose_block(w->g_columns, w->g, n, h->head_dim);
    memset(w->lse, 0, QUERIES * sizeof(float));
    memset(w->g_y, 0, QUERIES * sizeof(float));
    memcpy(w->lse, c->lse + query, (size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        w->g_y[i] = dot(c->g.data + (query + i) * c->g.row, c->y.data + (query + i) * c->y.row, h->head_dim);
}

/* The block of queries from `query` on: its dq, and what it adds to dk and dv. */
static void attend_back(const backward_blocks *w, const head *h, const cotangents *c, int64_t query)
{
    int64_t n_queries = gg_min_i64(QUERIES, h->n_queries - query), n_keys = n_keys_seen(h, query);
    int64_t first = first_key_seen(h, query);
    load_queries(w, h, c, query, n_queries);
    for (int64_t key = first; key < n_keys; key += KEYS) {
        pair p = pair_of(h, query, key);
        load_block(w->k, &h->k, key, p.n_keys, h->head_dim, 1);
        load_block(w->v, &h->v, key, p.n_keys, h->head_dim, 1);
        score(&p, w->weights, w->k, w->q_columns);
        finish_scores(&p, h, w->weights, w->bends, query, key);
        score(&p, w->slopes, w->v, w->g_columns);
        for (int64_t i = 0; i < n_queries; i += GG_LANES) differentiate(w, &p, i);
        if (h->soft_cap > 0) bend(w, &p);
        sum_queries(&p, &c->dv, key, w->weights, w->g);
        sum_queries(&p, &c->dk, key, w->slopes, w->q);
        sum_keys(&p, w->dq, w->slopes, w->k, key > first);
    }
    int64_t row = gg_attention_row(h->head_dim);
    for (int64_t i = 0; i < n_queries; i++)
        copy_row(c->dq.data + (query + i) * c->dq.row, w->dq + i * row, h->head_dim, h->scale);
}

enum { DQ, DK, DV, G, Y, Q, K, V, LSE }; /* sources, and the mask, if any */

static rows source_rows(const gg_task *task, int k, int64_t i_head, int64_t sequence)
{
    return head_rows(task->src[k], task->src_data[k], i_head, sequence);
}

static void clear_rows(const rows *r, int64_t n, int64_t head_dim)
{
    for (int64_t t = 0; t < n; t++) memset(r->data + t * r->row, 0, (size_t)head_dim * sizeof(float));
}

/* All queries of the group that shares a head of keys and values. */
static void attend_back_group(const gg_task *task, const backward_blocks *w, int64_t i_kv, int64_t sequence)
{
    int64_t n_group = task->src[Q]->ne[1] / task->src[K]->ne[1];
    cotangents c = {.dk = source_rows(task, DK, i_kv, sequence), .dv = source_rows(task, DV, i_kv, sequence)};
    clear_rows(&c.dk, task->src[K]->ne[2], task->src[K]->ne[0]);
    clear_rows(&c.dv, task->src[K]->ne[2], task->src[K]->ne[0]);
    for (int64_t i = i_kv * n_group; i < (i_kv + 1) * n_group; i++) {
        head h = head_of(task, Q, i, sequence);
        c.g = source_rows(task, G, i, sequence);
        c.y = source_rows(task, Y, i, sequence);
        c.dq = source_rows(task, DQ, i, sequence);
        c.lse = lse_of(task->src[LSE], task->src_data[LSE], i, sequence);
        for (int64_t query = 0; query < h.n_queries; query += QUERIES) attend_back(w, &h, &c, query);
    }
}

GG_KERNEL(attention_back)
{
    const gg_tensor *k = task->src[K];
    backward_blocks w = carve_backward(own_work(task, gg_attention_back_floats(k->ne[0])), k->ne[0]);
    start_items(task);
    for (int64_t item = next_item(task); item < k->ne[1] * k->ne[3]; item = next_item(task))
        attend_back_group(task, &w, item % k->ne[1], item / k->ne[1]);
}
