/* flash_attention.c - ggml's FLASH_ATTN_EXT, with mask, ALiBi and soft cap, and its cotangents. Called by the executor.
 *
 * A block of queries meets all keys at once, in products of gemm.c; its scores lie in the thread's scratch memory.
 * Forward, heads of blocks of queries are shared out; backward, heads of keys, each with the queries that it serves,
 * so that one thread sums a gradient. (What fuse.c makes of a causal model is attention.c, which never stores a row.)
 */
#include "alibi.h"
#include "gemm.h"
#include "rows.h"
#include "soft_max.h"

/* One head's operands; rows are so many floats apart. */
typedef struct head {
    const gg_task *task;
    const float   *q, *k, *v, *mask;
    int64_t        q_row, k_row, v_row, mask_row, n_queries, n_keys, head_dim;
    float          scale, cap, slope; /* cap 0: none; slope: ALiBi's factor of the mask */
    char          *work;              /* of gg_gemm_alone */
    float         *scores, *back, *tilt; /* queries x keys each; tilt: derivative of the capped scores */
} head;

static int64_t row_floats(const gg_tensor *t, int dim) { return t->nb[dim] / (int64_t)sizeof(float); }

/* Head h of batch b; the sources q, k, v, mask begin at number `first`. */
static head head_of(const gg_task *task, int first, int64_t h, int64_t b)
{
    const gg_tensor *q = task->src[first], *k = task->src[first + 1], *v = task->src[first + 2];
    int64_t          kv = h / (q->ne[2] / k->ne[2]), n = gg_flash_floats(k->ne[1]);
    float            cap = gg_param_f32(task->y, 2);
    char            *work = task->work + task->ith * gg_flash_nbytes(k->ne[1]);
    float           *blocks = (float *)(work + GG_GEMM_ALONE_NBYTES);
    return (head){
        .task = task, .q = gg_source_row_at(task, first, (gg_place){0, h, b}),
        .k = gg_source_row_at(task, first + 1, (gg_place){0, kv, b}),
        .v = gg_source_row_at(task, first + 2, (gg_place){0, kv, b}), .mask = (const float *)task->src_data[first + 3],
        .q_row = row_floats(q, 1), .k_row = row_floats(k, 1), .v_row = row_floats(v, 1),
        .mask_row = task->src[first + 3] ? row_floats(task->src[first + 3], 1) : 0,
        .n_queries = q->ne[1], .n_keys = k->ne[1], .head_dim = q->ne[0],
        .scale = gg_param_f32(task->y, 0), .cap = cap, .slope = gg_alibi_slope(h, q->ne[2], gg_param_f32(task->y, 1)),
        .work = work, .scores = blocks, .back = blocks + n, .tilt = blocks + 2 * n};
}

static void multiply(const head *x, gg_gemm g) { GG_ISA_NAME(gg_gemm_alone)(&g, x->task, x->work); }

/* s = cap * tanh(scale / cap * s), and in tilt its derivative by s */
static void cap_row(float *s, float *tilt, float scale, float cap, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float t = tanhf(s[i] * (scale / cap));
        s[i] = cap * t;
        tilt[i] = scale * (1 - t * t);
    }
}

/* The softmax of row i of the block that begins with query `first`. */
static void weigh_row(const head *x, int64_t first, int64_t i)
{
    float       *s = x->scores + i * x->n_keys, *tilt = x->tilt + i * x->n_keys;
    const float *mask = x->mask ? x->mask + (first + i) * x->mask_row : NULL;
    if (x->cap != 0) cap_row(s, tilt, x->scale, x->cap, x->n_keys);
    else for (int64_t k = 0; k < x->n_keys; k++) s[k] *= x->scale;
    for (int64_t k = 0; mask && k < x->n_keys; k++) s[k] += x->slope * mask[k];
    gg_soft_max_row(s, x->n_keys);
}

/* scores = softmax of queries [first, first + n) */
static void weigh(const head *x, int64_t first, int64_t n)
{
    multiply(x, (gg_gemm){.n_rows = n, .n_cols = x->n_keys, .n_inner = x->head_dim,
                          .a = {x->q + first * x->q_row, x->q_row, 1}, .b = {x->k, 1, x->k_row},
                          .c = x->scores, .c_row = x->n_keys});
    for (int64_t i = 0; i < n; i++) weigh_row(x, first, i);
}

/* y [d, h, n, b]; q [d, n, h, b], k and v [d, m, a divisor of h, b], optional mask [m, at least n] */
GG_KERNEL(flash_attn_ext)
{
    const gg_tensor *q = task->src[0];
    int64_t          begin, end, n_heads = q->ne[2], n_blocks = gg_ceil_div(q->ne[1], GG_FLASH_QUERIES);
    gg_share(task, n_blocks * n_heads * q->ne[3], 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t h = i / n_blocks % n_heads, b = i / n_blocks / n_heads, first = i % n_blocks * GG_FLASH_QUERIES;
        int64_t n = gg_min_i64(GG_FLASH_QUERIES, q->ne[1] - first);
        head    x = head_of(task, 0, h, b);
        weigh(&x, first, n);
        float *y = gg_y_row(task, (b * x.n_queries + first) * n_heads + h);
        multiply(&x, (gg_gemm){.n_rows = n, .n_cols = x.head_dim, .n_inner = x.n_keys, .a = {x.scores, x.n_keys, 1},
                               .b = {x.v, x.v_row, 1}, .c = y, .c_row = n_heads * x.head_dim});
    }
}

/* back = derivative by the products q k, of back = derivative by the weights */
static void soft_max_back(const head *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float *p = x->scores + i * x->n_keys, *tilt = x->tilt + i * x->n_keys;
        float       *d = x->back + i * x->n_keys;
        double       dot = 0;
        for (int64_t k = 0; k < x->n_keys; k++) dot += (double)p[k] * d[k];
        for (int64_t k = 0; k < x->n_keys; k++) d[k] = p[k] * (d[k] - (float)dot) * (x->cap != 0 ? tilt[k] : x->scale);
    }
}

/* Queries [first, first + n) of a head: writes their dq, adds to dk and dv unless `fresh`. g_row floats between rows of g. */
static void back_block(const head *x, int64_t first, int64_t n, const float *g, int64_t g_row, float *dq, float *dk,
                       float *dv, bool fresh)
{
    const float *q = x->q + first * x->q_row;
    int64_t      m = x->n_keys, d = x->head_dim;
    weigh(x, first, n);
    multiply(x, (gg_gemm){.n_rows = m, .n_cols = d, .n_inner = n, .a = {x->scores, 1, m}, .b = {g, g_row, 1},
                          .c = dv, .c_row = d, .accumulate = !fresh});
    multiply(x, (gg_gemm){.n_rows = n, .n_cols = m, .n_inner = d, .a = {g, g_row, 1}, .b = {x->v, 1, x->v_row},
                          .c = x->back, .c_row = m});
    soft_max_back(x, n);
    multiply(x, (gg_gemm){.n_rows = n, .n_cols = d, .n_inner = m, .a = {x->back, m, 1}, .b = {x->k, x->k_row, 1},
                          .c = dq, .c_row = d});
    multiply(x, (gg_gemm){.n_rows = m, .n_cols = d, .n_inner = n, .a = {x->back, 1, m}, .b = {q, x->q_row, 1},
                          .c = dk, .c_row = d, .accumulate = !fresh});
}

/* sources: dq, dk, dv, g, q, k, v, mask */
GG_KERNEL(flash_attn_ext_back)
{
    enum { DQ, DK, DV, G, Q, K };
    const gg_tensor *g = task->src[G], *q = task->src[Q], *k = task->src[K];
    int64_t          begin, end, group = q->ne[2] / k->ne[2];
    gg_share(task, k->ne[2] * k->ne[3], 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t b = i / k->ne[2], n_kv = i * k->ne[1] * k->ne[0];
        for (int64_t h = i % k->ne[2] * group, end_h = h + group, first_h = h; h < end_h; h++) {
            head   x = head_of(task, Q, h, b);
            float *dq = (float *)task->src_data[DQ] + (b * q->ne[2] + h) * x.n_queries * x.head_dim;
            for (int64_t first = 0; first < x.n_queries; first += GG_FLASH_QUERIES) {
                const float *g_rows = gg_source_row_at(task, G, (gg_place){h, first, b});
                back_block(&x, first, gg_min_i64(GG_FLASH_QUERIES, x.n_queries - first), g_rows, row_floats(g, 2),
                           dq + first * x.head_dim, (float *)task->src_data[DK] + n_kv,
                           (float *)task->src_data[DV] + n_kv, h == first_h && first == 0);
            }
        }
    }
}
