/* cached_attention.c - attention of new positions to all before them, whose keys and values lie in a cache. Called by the
 * executor.
 *
 * First the new keys and values are written behind the old ones. Then a few rows of queries at a time, of all heads that
 * share keys and values, are multiplied with the keys; their rows of scores become weights, and these are multiplied with
 * the values: keys and values are read once for all of them. Keys lie in blocks of GG_ATTENTION_KEYS, transposed, so that
 * a lane is a key and no product is summed across lanes; values lie as rows. Threads take items from a counter: an item
 * is such a few rows, computed by one thread in one order.
 */
#include <stdatomic.h>

#include "../src/kernel.h"
#include "block_product.h"
#include "../src/blocks.h"
#include "simd_math.h"

enum { ROWS = GG_CACHED_ROWS, KEYS = GG_ATTENTION_KEYS };

enum { Q, K, V, K_CACHE, V_CACHE, N_PAST }; /* sources */

/* A head of keys and values of a sequence, with the group of query heads that it serves. Row r of the group is the query
 * at position r / size of its head r % size. */
typedef struct group {
    const char *q, *k, *v;
    float      *k_cache, *v_cache;
    char       *y;
    int64_t     size;
} group;

static group group_of(const gg_task *task, int64_t i_kv, int64_t sequence)
{
    const gg_tensor *const *src = task->src;
    int64_t cache = sequence * src[K]->ne[1] + i_kv, size = task->y->ne[1] / src[K]->ne[1];
    return (group){.q = task->src_data[Q] + i_kv * size * src[Q]->nb[1] + sequence * src[Q]->nb[3],
                   .k = task->src_data[K] + i_kv * src[K]->nb[1] + sequence * src[K]->nb[3],
                   .v = task->src_data[V] + i_kv * src[V]->nb[1] + sequence * src[V]->nb[3],
                   .k_cache = (float *)(task->src_data[K_CACHE] + cache * src[K_CACHE]->nb[3]),
                   .v_cache = (float *)(task->src_data[V_CACHE] + cache * src[V_CACHE]->nb[2]),
                   .y = task->y_data + i_kv * size * task->y->nb[1] + sequence * task->y->nb[3],
                   .size = size};
}

/* Positions that the cache holds before the run; faulty where they are more than it has room for. */
static int64_t n_past_of(const gg_task *task)
{
    int64_t n_past = *(const int32_t *)task->src_data[N_PAST], room = task->src[V_CACHE]->ne[1];
    if (n_past >= 0 && n_past < room) return n_past;
    if (task->ith == 0) gg_fault(task, n_past, room);
    return 0;
}

/* ---------------------------------------------------------------- writing the cache */

/* Position t goes to place n_past + t. */
static void append(const gg_task *task, const group *g, int64_t t, int64_t n_past)
{
    int64_t      at = n_past + t, head_dim = task->src[K]->ne[0];
    const float *k = (const float *)(g->k + t * task->src[K]->nb[2]);
    float       *column = g->k_cache + at / KEYS * KEYS * head_dim + at % KEYS;
    for (int64_t d = 0; d < head_dim; d++) column[d * KEYS] = k[d];
    memcpy(g->v_cache + at * head_dim, g->v + t * task->src[V]->nb[2], (size_t)head_dim * sizeof(float));
}

/* This thread's share of the new positions; those the cache has no room for are left out. */
static void append_all(const gg_task *task, int64_t n_past)
{
    const gg_tensor *k = task->src[K];
    int64_t          begin, end, n_new = gg_min_i64(k->ne[2], task->src[V_CACHE]->ne[1] - n_past);
    gg_share(task, n_new * k->ne[1] * k->ne[3], 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        group g = group_of(task, i / n_new % k->ne[1], i / n_new / k->ne[1]);
        append(task, &g, i % n_new, n_past);
    }
}

/* ---------------------------------------------------------------- attending */

/* A thread's blocks: queries, their scores with all keys, then weights, and the sums of values, before division. */
typedef struct blocks {
    float *q, *scores, *y;
} blocks;

/* 0: there is none. */
static float soft_cap_of(const gg_task *task) { return gg_param_f32(task->y, 3); }

/* n rows of queries, scaled, and by the soft cap. */
static void load_queries(float *dst, const gg_task *task, const group *g, int64_t row, int64_t n)
{
    int64_t head_dim = task->y->ne[0];
    float   scale = gg_param_f32(task->y, 0), soft_cap = soft_cap_of(task);
    if (soft_cap > 0) scale /= soft_cap;
    for (int64_t i = row; i < row + n; i++, dst += head_dim) {
        const float *q = (const float *)(g->q + i % g->size * task->src[Q]->nb[1] + i / g->size * task->src[Q]->nb[2]);
        for (int64_t d = 0; d < head_dim; d++) dst[d] = q[d] * scale;
    }
}

static void cap_scores(float *row, int64_t n_keys, float soft_cap)
{
    for (int64_t i = 0; i < n_keys; i += GG_LANES) gg_store(row + i, gg_tanh(gg_load(row + i)) * soft_cap);
}

/* The first n_seen of a row of scores become weights exp(score - maximum), those from there to n_keys zero; returns the
 * sum of the weights. */
static float weigh(float *row, int64_t n_seen, int64_t n_keys)
{
    int64_t i, whole = gg_round_up(n_seen, GG_LANES);
    for (i = n_seen; i < whole; i++) row[i] = -INFINITY;
    gg_vec max = gg_splat(-INFINITY), sum = {0};
    for (i = 0; i < whole; i += GG_LANES) max = gg_max(gg_load(row + i), max);
    float max_of_row = gg_hmax(max);
    for (i = 0; i < whole; i += GG_LANES) {
        gg_vec weight = gg_exp(gg_load(row + i) - max_of_row);
        gg_store(row + i, weight);
        sum += weight;
    }
    for (; i < n_keys; i++) row[i] = 0;
    return gg_hsum(sum);
}

/* n rows of queries, from `row` on, past the keys they see. */
static void attend(const gg_task *task, const blocks *w, const group *g, int64_t row, int64_t n, int64_t n_past)
{
    int64_t head_dim = task->y->ne[0], room = task->src[V_CACHE]->ne[1];
    int64_t n_keys = gg_min_i64(n_past + (row + n - 1) / g->size + 1, room);
    load_queries(w->q, task, g, row, n);
    for (int64_t key = 0; key < n_keys; key += KEYS)
        gg_multiply(&(gg_product){.a = w->q, .a_row = head_dim, .a_col = 1, .b = g->k_cache + key * head_dim,
                                  .b_row = KEYS, .c = w->scores + key, .c_row = room, .n_rows = n, .n_cols = KEYS,
                                  .n_inner = head_dim});
    float sum[ROWS], soft_cap = soft_cap_of(task);
    for (int64_t i = 0; i < n && soft_cap > 0; i++) cap_scores(w->scores + i * room, n_keys, soft_cap);
    for (int64_t i = 0; i < n; i++)
        sum[i] = weigh(w->scores + i * room, gg_min_i64(n_past + (row + i) / g->size + 1, n_keys), n_keys);
    gg_multiply(&(gg_product){.a = w->scores, .a_row = room, .a_col = 1, .b = g->v_cache, .b_row = head_dim,
                              .c = w->y, .c_row = head_dim, .n_rows = n, .n_cols = head_dim, .n_inner = n_keys});
    for (int64_t i = 0; i < n; i++) {
        float *y = (float *)(g->y + (row + i) % g->size * task->y->nb[1] + (row + i) / g->size * task->y->nb[2]);
        float  factor = 1 / sum[i];
        for (int64_t d = 0; d < head_dim; d++) y[d] = w->y[i * head_dim + d] * factor;
    }
}

GG_KERNEL(cached_attention)
{
    const gg_tensor *y = task->y, *k = task->src[K], *cache = task->src[V_CACHE];
    _Atomic int64_t *next = (_Atomic int64_t *)task->work;
    int64_t          n_past = n_past_of(task), n_rows = y->ne[1] / k->ne[1] * y->ne[2];
    int64_t          n_groups = k->ne[1] * y->ne[3], n_items = n_groups * gg_ceil_div(n_rows, ROWS);
    float           *own = (float *)(task->work + GG_ALIGN) + task->ith * gg_cached_attention_floats(cache);
    blocks           w = {.q = own, .scores = own + ROWS * cache->ne[0]};
    w.y = w.scores + ROWS * cache->ne[1];
    if (task->ith == 0) atomic_store_explicit(next, 0, memory_order_relaxed);
    append_all(task, n_past);
    gg_barrier(task);
    for (;;) {
        int64_t item = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
        if (item >= n_items) return;
        int64_t row = item / n_groups * ROWS;
        group   g = group_of(task, item % n_groups % k->ne[1], item % n_groups / k->ne[1]);
        attend(task, &w, &g, row, gg_min_i64(ROWS, n_rows - row), n_past);
    }
}
