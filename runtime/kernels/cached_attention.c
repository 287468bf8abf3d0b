/* cached_attention.c - attention of new positions to all before them, whose keys and values lie in a cache. Called by the
 * executor.
 *
 * First the new keys and values are written behind the old ones. Then a few queries at a time are multiplied with the
 * keys, their rows of scores become weights, and these are multiplied with the values. Keys lie in blocks of
 * GG_ATTENTION_KEYS, transposed, so that a lane is a key and no product is summed across lanes; values lie as rows.
 * Threads take items from a counter: an item is a head of a few queries, computed by one thread in one order.
 */
#include <stdatomic.h>

#include "../src/kernel.h"
#include "block_product.h"
#include "blocks.h"
#include "simd_math.h"

enum { QUERIES = GG_CACHED_QUERIES, KEYS = GG_ATTENTION_KEYS };

enum { Q, K, V, K_CACHE, V_CACHE, N_PAST }; /* sources */

/* One head's part of the node. */
typedef struct head {
    const char *q, *k, *v;
    float      *k_cache, *v_cache;
    char       *y;
} head;

static head head_of(const gg_task *task, int64_t i_head, int64_t i_kv, int64_t sequence)
{
    const gg_tensor *const *src = task->src;
    int64_t cache = sequence * src[K]->ne[1] + i_kv;
    return (head){.q = task->src_data[Q] + i_head * src[Q]->nb[1] + sequence * src[Q]->nb[3],
                  .k = task->src_data[K] + i_kv * src[K]->nb[1] + sequence * src[K]->nb[3],
                  .v = task->src_data[V] + i_kv * src[V]->nb[1] + sequence * src[V]->nb[3],
                  .k_cache = (float *)(task->src_data[K_CACHE] + cache * src[K_CACHE]->nb[3]),
                  .v_cache = (float *)(task->src_data[V_CACHE] + cache * src[V_CACHE]->nb[2]),
                  .y = task->y_data + i_head * task->y->nb[1] + sequence * task->y->nb[3]};
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

/* Position t of a head goes to place n_past + t. */
static void append(const gg_task *task, const head *h, int64_t t, int64_t n_past)
{
    int64_t      at = n_past + t, head_dim = task->src[K]->ne[0];
    const float *k = (const float *)(h->k + t * task->src[K]->nb[2]);
    float       *column = h->k_cache + at / KEYS * KEYS * head_dim + at % KEYS;
    for (int64_t d = 0; d < head_dim; d++) column[d * KEYS] = k[d];
    memcpy(h->v_cache + at * task->src[V_CACHE]->ne[0], h->v + t * task->src[V]->nb[2],
           (size_t)head_dim * sizeof(float));
}

/* This thread's share of the new positions; those the cache has no room for are left out. */
static void append_all(const gg_task *task, int64_t n_past)
{
    const gg_tensor *k = task->src[K];
    int64_t          begin, end, n_new = gg_min_i64(k->ne[2], task->src[V_CACHE]->ne[1] - n_past);
    gg_share(task, n_new * k->ne[1] * k->ne[3], 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t i_kv = i / n_new % k->ne[1];
        head    h = head_of(task, 0, i_kv, i / n_new / k->ne[1]);
        append(task, &h, i % n_new, n_past);
    }
}

/* ---------------------------------------------------------------- attending */

/* A thread's blocks: queries, their scores with all keys, then weights, and the sums of values, before division. */
typedef struct blocks {
    float *q, *scores, *y;
} blocks;

/* n rows of queries, scaled. */
static void load_queries(float *dst, const gg_task *task, const head *h, int64_t query, int64_t n)
{
    int64_t head_dim = task->y->ne[0];
    float   scale = gg_param_f32(task->y, 0);
    for (int64_t i = 0; i < n; i++) {
        const float *q = (const float *)(h->q + (query + i) * task->src[Q]->nb[2]);
        for (int64_t d = 0; d < head_dim; d++) dst[i * head_dim + d] = q[d] * scale;
    }
}

/* The first n_seen of a row of scores become weights exp(score - maximum), those from there to n_keys zero; returns the
 * sum of the weights. */
static float weigh(float *row, int64_t n_seen, int64_t n_keys)
{
    int64_t i, whole = (n_seen + GG_LANES - 1) / GG_LANES * GG_LANES;
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

/* n queries from `query` on past the keys they see. */
static void attend(const gg_task *task, const blocks *w, const head *h, int64_t query, int64_t n, int64_t n_past)
{
    int64_t head_dim = task->y->ne[0], room = task->src[V_CACHE]->ne[1], value_row = task->src[V_CACHE]->ne[0];
    int64_t n_keys = gg_min_i64(n_past + query + n, room);
    load_queries(w->q, task, h, query, n);
    for (int64_t key = 0; key < n_keys; key += KEYS)
        gg_multiply(&(gg_product){.a = w->q, .a_row = head_dim, .a_col = 1, .b = h->k_cache + key * head_dim,
                                  .b_row = KEYS, .c = w->scores + key, .c_row = room, .n_rows = n, .n_cols = KEYS,
                                  .n_inner = head_dim});
    float sum[QUERIES];
    for (int64_t i = 0; i < n; i++)
        sum[i] = weigh(w->scores + i * room, gg_min_i64(n_past + query + i + 1, n_keys), n_keys);
    gg_multiply(&(gg_product){.a = w->scores, .a_row = room, .a_col = 1, .b = h->v_cache, .b_row = value_row,
                              .c = w->y, .c_row = value_row, .n_rows = n, .n_cols = value_row, .n_inner = n_keys});
    for (int64_t i = 0; i < n; i++) {
        float *y = (float *)(h->y + (query + i) * task->y->nb[2]), factor = 1 / sum[i];
        for (int64_t d = 0; d < head_dim; d++) y[d] = w->y[i * value_row + d] * factor;
    }
}

GG_KERNEL(cached_attention)
{
    const gg_tensor *y = task->y, *cache = task->src[V_CACHE];
    _Atomic int64_t *next = (_Atomic int64_t *)task->work;
    int64_t          n_past = n_past_of(task), group = y->ne[1] / task->src[K]->ne[1];
    int64_t          n_heads = y->ne[1] * y->ne[3], n_items = n_heads * ((y->ne[2] + QUERIES - 1) / QUERIES);
    float           *own = (float *)(task->work + GG_ALIGN) + task->ith * gg_cached_attention_floats(cache);
    blocks           w = {.q = own, .scores = own + QUERIES * cache->ne[0]};
    w.y = w.scores + QUERIES * cache->ne[1];
    if (task->ith == 0) atomic_store_explicit(next, 0, memory_order_relaxed);
    append_all(task, n_past);
    gg_barrier(task);
    for (;;) {
        int64_t item = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
        if (item >= n_items) return;
        int64_t i_head = item % y->ne[1], query = item / n_heads * QUERIES;
        head    h = head_of(task, i_head, i_head / group, item % n_heads / y->ne[1]);
        attend(task, &w, &h, query, gg_min_i64(QUERIES, y->ne[2] - query), n_past);
    }
}
