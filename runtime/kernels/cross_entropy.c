/* cross_entropy.c - the loss over logits, its cotangent, and the loss fused with the product that makes the logits.
 * Called by the executor.
 *
 * A row's log-probability is target - max - log(sum of exp(logit - max)), the sum and what follows in double: where
 * the model is sure, the loss is the small difference of large terms. Rows are shared by the threads; the losses meet
 * in work memory, and one thread adds them in row order. A row of weight 0 is not looked at, so padding may hold
 * anything.
 */
#include "gemm.h"
#include "soft_max.h"
#include "typed_product.h"

/* ---------------------------------------------------------------- one row */

/* What each row is worth. */
typedef struct loss {
    const gg_task *task;
    const int32_t *targets;
    const float   *weights;
    int64_t        n_vocab;
    float          scale; /* of all weights */
} loss;

static loss loss_of(const gg_task *task, int targets, int64_t n_vocab, float scale)
{
    return (loss){task, (const int32_t *)task->src_data[targets], (const float *)task->src_data[targets + 1], n_vocab,
                  scale};
}

static float weight_of(const loss *l, int64_t t) { return l->scale * l->weights[t]; }

/* Whether row t counts; a target that is no token is reported. */
static bool row_counts(const loss *l, int64_t t)
{
    bool valid = l->targets[t] >= 0 && l->targets[t] < l->n_vocab;
    if (!valid) gg_fault(l->task, l->targets[t], l->n_vocab);
    return valid && l->weights[t] != 0;
}

static double row_loss(const loss *l, int64_t t, const float *row)
{
    if (!row_counts(l, t)) return 0;
    float max = gg_row_max(row, l->n_vocab);
    return weight_of(l, t) * ((double)row[l->targets[t]] - max - log(gg_exp_row(row, max, l->n_vocab, NULL, true)));
}

/* The same, and in out, which may be row itself, weight * (onehot - softmax). */
static double row_loss_and_slope(const loss *l, int64_t t, const float *row, float *out)
{
    if (!row_counts(l, t)) {
        memset(out, 0, (size_t)l->n_vocab * sizeof(float));
        return 0;
    }
    float max = gg_row_max(row, l->n_vocab), weight = weight_of(l, t);
    double target = (double)row[l->targets[t]] - max;
    double sum = gg_exp_row(row, max, l->n_vocab, out, true), others = sum - out[l->targets[t]];
    gg_scale_row(out, (float)(-weight / sum), l->n_vocab);
    out[l->targets[t]] = (float)(weight * (others / sum)); /* 1 - p, without its cancellation */
    return weight * (target - log(sum));
}

/* y[0] = sum of the losses, once all threads have written theirs. */
static void add_losses(const gg_task *task, const double *losses, int64_t n_rows)
{
    gg_barrier(task);
    if (task->ith != 0) return;
    double total = 0;
    for (int64_t t = 0; t < n_rows; t++) total += losses[t];
    *(float *)task->y_data = (float)total;
}

/* ---------------------------------------------------------------- the loss of given logits */

/* sources: logits, targets, weights */
GG_KERNEL(cross_entropy)
{
    const gg_tensor *logits = task->src[0];
    const float *rows = (const float *)task->src_data[0];
    loss l = loss_of(task, 1, logits->ne[0], gg_param_f32(task->y, 0));
    double *losses = (double *)task->work;
    int64_t begin, end;
    gg_share(task, gg_nrows(logits), 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) losses[t] = row_loss(&l, t, rows + t * l.n_vocab);
    add_losses(task, losses, gg_nrows(logits));
}

/* sources: g, logits, targets, weights */
GG_KERNEL(cross_entropy_back)
{
    const gg_tensor *logits = task->src[1];
    const float *g = (const float *)task->src_data[0], *rows = (const float *)task->src_data[1];
    loss l = loss_of(task, 2, logits->ne[0], g[0]);
    int64_t begin, end;
    gg_share(task, gg_nrows(logits), 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        row_loss_and_slope(&l, t, rows + t * l.n_vocab, (float *)task->y_data + t * l.n_vocab);
}

/* ---------------------------------------------------------------- the loss of given logits and soft labels */

/* sum of labels * log softmax(row), and in label_sum that of the labels. A label of 0 hides whatever its logit is. */
static double soft_row_loss(const float *row, const float *labels, int64_t n, double *label_sum)
{
    float  max = gg_row_max(row, n);
    double dot = 0;
    *label_sum = gg_sum(labels, n);
    for (int64_t i = 0; i < n; i++) dot += labels[i] == 0 ? 0 : labels[i] * ((double)row[i] - max);
    return dot - *label_sum * log(gg_exp_row(row, max, n, NULL, true));
}

/* sources: logits, labels */
GG_KERNEL(soft_cross_entropy)
{
    const float *logits = (const float *)task->src_data[0], *labels = (const float *)task->src_data[1];
    int64_t      begin, end, n = task->src[0]->ne[0], n_rows = gg_nrows(task->src[0]);
    double      *losses = (double *)task->work, label_sum;
    gg_share(task, n_rows, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        losses[t] = -soft_row_loss(logits + t * n, labels + t * n, n, &label_sum) / (double)n_rows;
    add_losses(task, losses, n_rows);
}

/* y = g / n_rows * (sum(labels) * softmax(logits) - labels); as CROSS_ENTROPY_LOSS_BACK the sum counts as 1 */
static void soft_slopes(const gg_task *task, const float *logits, const float *labels, float g, bool is_normal)
{
    int64_t begin, end, n = task->y->ne[0], n_rows = gg_nrows(task->y);
    gg_share(task, n_rows, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        const float *row = logits + t * n, *label = labels + t * n;
        float       *y = (float *)task->y_data + t * n, factor = g / (float)n_rows;
        double       sum = gg_exp_row(row, gg_row_max(row, n), n, y, true);
        gg_scale_row(y, (float)((is_normal ? 1.0 : gg_sum(label, n)) / sum), n);
        for (int64_t i = 0; i < n; i++) y[i] = factor * (y[i] - label[i]);
    }
}

/* sources: g, logits, labels */
GG_KERNEL(soft_cross_entropy_back)
{
    const float *const *data = (const float *const *)task->src_data;
    soft_slopes(task, data[1], data[2], *data[0], false);
}

/* sources: logits, labels, g */
GG_KERNEL(soft_cross_entropy_grad)
{
    const float *const *data = (const float *const *)task->src_data;
    soft_slopes(task, data[0], data[1], *data[2], true);
}

/* ---------------------------------------------------------------- the loss of logits x w^T, never stored whole */

/* Rows [first, first + n_rows) of x and their logits, or in the logits' place the loss's derivative by them. */
typedef struct chunk {
    int64_t      first, n_rows, n_vocab, n_inner;
    const float *x;
    float       *logits;
} chunk;

static void chunk_logits(const gg_task *task, const chunk *c)
{
    gg_gemm g = {.n_rows = c->n_rows, .n_cols = c->n_vocab, .n_inner = c->n_inner,
                 .a = {c->x, c->n_inner, 1}, .c = c->logits, .c_row = c->n_vocab};
    GG_ISA_NAME(gg_typed_product)(&g, task->src[0], task->src_data[0], false, task, task->work);
}

/* dx = logits' w */
static void chunk_dx(const gg_task *task, const chunk *c)
{
    gg_gemm g = {.n_rows = c->n_rows, .n_cols = c->n_inner, .n_inner = c->n_vocab,
                 .a = {c->logits, c->n_vocab, 1},
                 .c = (float *)task->src_data[5] + c->first * c->n_inner, .c_row = c->n_inner};
    GG_ISA_NAME(gg_typed_product)(&g, task->src[0], task->src_data[0], true, task, task->work);
}

/* dw = logits'^T x for the first chunk, and more for the others */
static void chunk_dw(const gg_task *task, const chunk *c)
{
    gg_gemm g = {.n_rows = c->n_vocab, .n_cols = c->n_inner, .n_inner = c->n_rows,
                 .a = {c->logits, 1, c->n_vocab}, .b = {c->x, c->n_inner, 1},
                 .c = (float *)task->src_data[4], .c_row = c->n_inner, .accumulate = c->first > 0};
    GG_ISA_NAME(gg_gemm_together)(&g, task, task->work);
}

static void chunk_losses(const loss *l, const chunk *c, double *losses, bool train)
{
    int64_t begin, end;
    gg_share(l->task, c->n_rows, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t t = c->first + i;
        float *row = c->logits + i * c->n_vocab;
        losses[t] = train ? row_loss_and_slope(l, t, row, row) : row_loss(l, t, row);
    }
}

/* sources: w, x, targets, weights, and the dw and dx to write, if any */
GG_KERNEL(linear_cross_entropy)
{
    const gg_tensor *w = task->src[0], *x = task->src[1];
    int64_t n_rows = gg_nrows(x), n_vocab = w->ne[1], n_inner = w->ne[0], step = gg_logits_rows(n_rows, n_vocab);
    float *logits = (float *)(task->work + gg_gemm_nbytes(task->nth) + gg_slab_nbytes(w));
    double *losses = (double *)((char *)logits + gg_align(step * n_vocab * (int64_t)sizeof(float)));
    loss l = loss_of(task, 2, n_vocab, gg_param_f32(task->y, 0));
    bool train = task->src[5] != NULL;
    for (int64_t first = 0; first < n_rows; first += step) {
        chunk c = {.first = first, .n_rows = gg_min_i64(step, n_rows - first), .n_vocab = n_vocab, .n_inner = n_inner,
                   .x = (const float *)task->src_data[1] + first * n_inner, .logits = logits};
        chunk_logits(task, &c);
        gg_barrier(task);
        chunk_losses(&l, &c, losses, train);
        gg_barrier(task);
        if (!train) continue;
        chunk_dx(task, &c);
        gg_barrier(task);
        if (!task->src[4]) continue; /* w is not trained */
        chunk_dw(task, &c);
        gg_barrier(task);
    }
    add_losses(task, losses, n_rows);
}
