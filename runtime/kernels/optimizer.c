/* optimizer.c - kernels of a training graph's last nodes: accumulate, and what updates parameters. They write their
 * sources in place and nothing else: the node's output is its first source.
 */
#include "reduce.h"
#include "update.h"

/* total, g, keep[1]. With keep 0 the old total does not matter, even if it is not finite. */
GG_KERNEL(accumulate)
{
    float *restrict       total = (float *)task->src_data[0];
    const float *restrict g = (const float *)task->src_data[1];
    float                 keep = *(const float *)task->src_data[2];
    int64_t               begin, end;
    gg_share(task, gg_nelements(task->src[0]), 1024, &begin, &end);
    if (keep == 0.0f) memcpy(total + begin, g + begin, (size_t)(end - begin) * sizeof(float));
    else for (int64_t i = begin; i < end; i++) total[i] = keep * total[i] + g[i];
}

/* ---- AdamW ---- */

/* One update's numbers, the same for every element of a parameter. */
typedef struct adam {
    float clip, limit;
    float beta1, beta2; /* decay of m and v */
    float keep;         /* factor of p */
    float rate;         /* over m's bias correction */
    float inv_sqrt_c2;  /* v's bias correction, on sqrt(v) */
    float eps;
} adam;

/* In the order of Loshchilov & Hutter's reference and torch: decay first, then the step. */
GG_INLINE void adamw_range(float *restrict p, const float *restrict gradient, float *restrict m, float *restrict v,
                           adam u, int64_t begin, int64_t end, bool cautious)
{
    for (int64_t i = begin; i < end; i++) {
        float g = clipped(gradient[i], u.clip, u.limit);
        m[i] += (1.0f - u.beta1) * (g - m[i]);
        v[i] = u.beta2 * v[i] + (1.0f - u.beta2) * g * g;
        p[i] = stepped(p[i], m[i] / (sqrtf(v[i]) * u.inv_sqrt_c2 + u.eps), u.keep, u.rate, cautious);
    }
}

/* p, g, m, v, hyper, sum_sqr; own: beta1, beta2, eps, 1 - beta1^t, 1 - beta2^t */
GG_KERNEL(adamw)
{
    update u;
    if (!begin_update(task, &u)) return;
    char *const *data = task->src_data;
    float       *p = (float *)data[0], *m = (float *)data[2], *v = (float *)data[3];
    const float *g = (const float *)data[1];
    adam a = {.clip = u.clip, .limit = u.limit, .beta1 = u.own[0], .beta2 = u.own[1], .keep = u.keep, .eps = u.own[2],
              .rate = (float)(u.rate / u.own[3]), .inv_sqrt_c2 = (float)(1.0 / sqrt(u.own[4]))};
    if (u.cautious) adamw_range(p, g, m, v, a, u.begin, u.end, true);
    else adamw_range(p, g, m, v, a, u.begin, u.end, false);
}

/* ggml's: p, g, m, v; op_params: iteration (64 bits), alpha, beta1, beta2, eps, weight decay */
static adam ggml_adam_of(const gg_tensor *y)
{
    double iteration = (double)gg_param_i64(y, 0), alpha = gg_param_f32(y, 2);
    double beta1 = gg_param_f32(y, 3), beta2 = gg_param_f32(y, 4);
    return (adam){.clip = 1,
                  .limit = INFINITY,
                  .beta1 = (float)beta1,
                  .beta2 = (float)beta2,
                  .keep = (float)(1.0 - alpha * gg_param_f32(y, 6)),
                  .rate = (float)(alpha / (1.0 - pow(beta1, iteration))),
                  .inv_sqrt_c2 = (float)(1.0 / sqrt(1.0 - pow(beta2, iteration))),
                  .eps = gg_param_f32(y, 5)};
}

GG_KERNEL(opt_step_adamw)
{
    char *const *data = task->src_data;
    int64_t      begin, end;
    gg_share(task, gg_nelements(task->src[0]), 1024, &begin, &end);
    adamw_range((float *)data[0], (const float *)data[1], (float *)data[2], (float *)data[3], ggml_adam_of(task->y),
                begin, end, false);
}

/* ---- SGD ---- */

/* p, g, hyper, sum_sqr */
GG_KERNEL(sgd)
{
    update u;
    if (!begin_update(task, &u)) return;
    float *restrict       p = (float *)task->src_data[0];
    const float *restrict gradient = (const float *)task->src_data[1];
    float                 decay = (float)u.decay, rate = (float)u.rate;
    for (int64_t i = u.begin; i < u.end; i++) p[i] -= rate * (clipped(gradient[i], u.clip, u.limit) + decay * p[i]);
}

/* p, g, m, hyper, sum_sqr; own: momentum, nesterov */
GG_KERNEL(sgd_momentum)
{
    update u;
    if (!begin_update(task, &u)) return;
    float *restrict       p = (float *)task->src_data[0], *restrict m = (float *)task->src_data[2];
    const float *restrict gradient = (const float *)task->src_data[1];
    float decay = (float)u.decay, rate = (float)u.rate, momentum = u.own[0];
    float of_g = u.own[1] != 0 ? 1.0f : 0.0f, of_m = u.own[1] != 0 ? momentum : 1.0f;
    for (int64_t i = u.begin; i < u.end; i++) {
        float g = clipped(gradient[i], u.clip, u.limit) + decay * p[i];
        m[i] = momentum * m[i] + g;
        p[i] -= rate * (of_g * g + of_m * m[i]);
    }
}

/* ---- Lion ---- */

GG_INLINE void lion_range(float *restrict p, const float *restrict gradient, float *restrict m, update u, bool cautious)
{
    float beta1 = u.own[0], beta2 = u.own[1], rate = (float)u.rate;
    for (int64_t i = u.begin; i < u.end; i++) {
        float g = clipped(gradient[i], u.clip, u.limit), c = beta1 * m[i] + (1.0f - beta1) * g;
        p[i] = stepped(p[i], c > 0 ? 1.0f : c < 0 ? -1.0f : 0.0f, u.keep, rate, cautious);
        m[i] = beta2 * m[i] + (1.0f - beta2) * g;
    }
}

/* p, g, m, hyper, sum_sqr; own: beta1, beta2 */
GG_KERNEL(lion)
{
    update u;
    if (!begin_update(task, &u)) return;
    float       *p = (float *)task->src_data[0], *m = (float *)task->src_data[2];
    const float *g = (const float *)task->src_data[1];
    if (u.cautious) lion_range(p, g, m, u, true);
    else lion_range(p, g, m, u, false);
}

/* ---- Muon ---- */

/* g, m, hyper, sum_sqr; own: momentum, nesterov */
GG_KERNEL(momentum)
{
    update u;
    if (!begin_update(task, &u)) return;
    float *restrict       y = (float *)task->y_data, *restrict m = (float *)task->src_data[1];
    const float *restrict gradient = (const float *)task->src_data[0];
    float                 beta = u.own[0], of_m = u.own[1] != 0 ? beta : 1.0f, of_g = 1.0f - of_m;
    for (int64_t i = u.begin; i < u.end; i++) {
        float g = clipped(gradient[i], u.clip, u.limit);
        m[i] = beta * m[i] + (1.0f - beta) * g;
        y[i] = of_m * m[i] + of_g * g;
    }
}

/* a, sum_sqr[1]; op_params: eps. y may be a. */
GG_KERNEL(unit)
{
    float       *y = (float *)task->y_data;
    const float *a = (const float *)task->src_data[0];
    float        norm = sqrtf(*(const float *)task->src_data[1]), inv = 1.0f / (norm + gg_param_f32(task->y, 0));
    int64_t      begin, end;
    gg_share(task, gg_nelements(task->y), 1024, &begin, &end);
    for (int64_t i = begin; i < end; i++) y[i] = a[i] * inv;
}

/* s, s2, square; op_params: a, b, c. y may be s2. */
GG_KERNEL(newton_schulz)
{
    const float *s = (const float *)task->src_data[0], *s2 = (const float *)task->src_data[1];
    float       *y = (float *)task->y_data;
    float        a = gg_param_f32(task->y, 0), b = gg_param_f32(task->y, 1), c = gg_param_f32(task->y, 2);
    int64_t      begin, end, n = task->y->ne[0];
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        for (int64_t i = r * n; i < (r + 1) * n; i++) y[i] = b * s[i] + c * s2[i];
        y[r * n + r % task->y->ne[1]] += a;
    }
}

GG_INLINE void muon_range(float *restrict p, const float *restrict u, float keep, float rate, int64_t begin, int64_t end,
                          bool cautious)
{
    for (int64_t i = begin; i < end; i++) p[i] = stepped(p[i], u[i], keep, rate, cautious);
}

/* p, u, hyper, sum_sqr */
GG_KERNEL(muon)
{
    update u;
    if (!begin_update(task, &u)) return;
    float       *p = (float *)task->src_data[0];
    const float *step = (const float *)task->src_data[1];
    if (u.cautious) muon_range(p, step, u.keep, (float)u.rate, u.begin, u.end, true);
    else muon_range(p, step, u.keep, (float)u.rate, u.begin, u.end, false);
}

/* p, u, v (a number a row), hyper, sum_sqr; own: momentum, nesterov, beta2, eps. work: of each row the factor of u, then
 * the sum of squares of what that gives. */
GG_KERNEL(normuon)
{
    update u;
    if (!begin_update(task, &u)) return;
    const gg_tensor *y = task->y;
    float           *p = (float *)task->src_data[0], *v = (float *)task->src_data[2];
    const float     *step = (const float *)task->src_data[1];
    int64_t          n = y->ne[0], n_rows = gg_nrows(y), begin, end;
    double          *factor = (double *)task->work, *sum_sqr = factor + n_rows, total = 0, beta2 = u.own[2];
    gg_share(task, n_rows, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        double sum = gg_sum_sqr(step + r * n, n);
        v[r] = (float)(beta2 * v[r] + (1.0 - beta2) * (sum / (double)n));
        factor[r] = 1.0 / (sqrt((double)v[r]) + u.own[3]);
        sum_sqr[r] = sum * factor[r] * factor[r];
    }
    gg_barrier(task);
    for (int64_t r = 0; r < n_rows; r++) total += sum_sqr[r];
    double rate = total > 0 ? u.rate / sqrt(total) : 0;
    for (int64_t r = begin; r < end; r++) {
        float of_row = (float)(rate * factor[r]);
        if (u.cautious) muon_range(p, step, u.keep, of_row, r * n, (r + 1) * n, true);
        else muon_range(p, step, u.keep, of_row, r * n, (r + 1) * n, false);
    }
}

/* ---- averages of weights ---- */

/* p, g, v, z, average, sums[2], hyper, sum_sqr; own: beta1, beta2, eps, 1 - beta2^t, whether t is 1. sums: the largest
 * rate so far, and the sum of the squares of what that was in each step. */
GG_KERNEL(schedule_free)
{
    update u;
    if (!begin_update(task, &u)) return;
    char *const          *data = task->src_data;
    float *restrict       p = (float *)data[0], *restrict v = (float *)data[2], *restrict z = (float *)data[3];
    float *restrict       x = (float *)data[4], *sums = (float *)data[5];
    const float *restrict gradient = (const float *)data[1];
    float beta1 = u.own[0], beta2 = u.own[1], eps = u.own[2], inv_sqrt_c2 = (float)(1.0 / sqrt((double)u.own[3]));
    bool  first = u.own[4] != 0;
    float largest = first || u.lr > sums[0] ? u.lr : sums[0], weight = largest * largest;
    float sum = (first ? 0.0f : sums[1]) + weight, share = sum > 0 ? weight / sum : 0.0f;
    float rate = (float)u.rate, decay = (float)u.decay;
    for (int64_t i = u.begin; i < u.end; i++) {
        float g = clipped(gradient[i], u.clip, u.limit), y = p[i], zi = first ? y : z[i], xi = first ? y : x[i];
        v[i] = beta2 * v[i] + (1.0f - beta2) * g * g;
        zi -= rate * (g / (sqrtf(v[i]) * inv_sqrt_c2 + eps) + decay * y);
        xi += share * (zi - xi);
        z[i] = zi;
        x[i] = xi;
        p[i] = zi + beta1 * (xi - zi);
    }
    gg_barrier(task); /* all have read sums */
    if (task->ith != 0) return;
    sums[0] = largest;
    sums[1] = sum;
}

/* average, p, hyper, sum_sqr; own: decay, whether t is 1 */
GG_KERNEL(ema)
{
    update u;
    if (!begin_update(task, &u)) return;
    float *restrict       average = (float *)task->src_data[0];
    const float *restrict p = (const float *)task->src_data[1];
    bool                  first = u.own[1] != 0;
    float                 share = 1.0f - u.own[0];
    for (int64_t i = u.begin; i < u.end; i++) average[i] = first ? p[i] : average[i] + share * (p[i] - average[i]);
}
