/* optimizer.c - kernels of a training graph's last nodes: accumulate and adamw. They write their sources in place and
 * nothing else: the node's output is its first source.
 */
#include <math.h>

#include "../src/kernel.h"
#include "simd.h"

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

/* One update's numbers, the same for every element of a parameter. */
typedef struct update {
    float clip;          /* factor of g */
    float beta1, beta2;  /* decay of m and v */
    float decay;         /* factor of p */
    float rate;          /* lr over m's bias correction */
    float inv_sqrt_c2;   /* v's bias correction, on sqrt(v) */
    float eps;
} update;

/* hyper: lr, beta1, beta2, eps, weight decay, clip, 1 - beta1^t, 1 - beta2^t */
static update update_of(const float *hyper, float norm, bool decays)
{
    double lr = hyper[0], clip = hyper[5];
    return (update){
        .clip = clip > 0 && norm > clip ? (float)(clip / (norm + 1e-6)) : 1.0f,
        .beta1 = hyper[1],
        .beta2 = hyper[2],
        .decay = decays ? (float)(1.0 - lr * hyper[4]) : 1.0f,
        .rate = (float)(lr / hyper[6]),
        .inv_sqrt_c2 = (float)(1.0 / sqrt(hyper[7])),
        .eps = hyper[3],
    };
}

/* In the order of Loshchilov & Hutter's reference and torch: decay first, then the step. */
static void adamw_range(float *restrict p, const float *restrict gradient, float *restrict m, float *restrict v,
                        update u, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        float g = gradient[i] * u.clip;
        m[i] += (1.0f - u.beta1) * (g - m[i]);
        v[i] = u.beta2 * v[i] + (1.0f - u.beta2) * g * g;
        p[i] = p[i] * u.decay - u.rate * (m[i] / (sqrtf(v[i]) * u.inv_sqrt_c2 + u.eps));
    }
}

/* p, g, m, v, hyper[8], sum_sqr[1] of all gradients; op_params[0]: whether p decays */
GG_KERNEL(adamw)
{
    char *const *data = task->src_data;
    float        norm = sqrtf(*(const float *)data[5]);
    if (!isfinite(norm)) return;
    update  u = update_of((const float *)data[4], norm, gg_param_i32(task->y, 0) != 0);
    int64_t begin, end;
    gg_share(task, gg_nelements(task->src[0]), 1024, &begin, &end);
    adamw_range((float *)data[0], (const float *)data[1], (float *)data[2], (float *)data[3], u, begin, end);
}

/* ggml's: p, g, m, v; op_params: iteration (64 bits), alpha, beta1, beta2, eps, weight decay */
static update ggml_update_of(const gg_tensor *y)
{
    double iteration = (double)gg_param_i64(y, 0), alpha = gg_param_f32(y, 2);
    double beta1 = gg_param_f32(y, 3), beta2 = gg_param_f32(y, 4);
    return (update){.clip = 1,
                    .beta1 = (float)beta1,
                    .beta2 = (float)beta2,
                    .decay = (float)(1.0 - alpha * gg_param_f32(y, 6)),
                    .rate = (float)(alpha / (1.0 - pow(beta1, iteration))),
                    .inv_sqrt_c2 = (float)(1.0 / sqrt(1.0 - pow(beta2, iteration))),
                    .eps = gg_param_f32(y, 5)};
}

GG_KERNEL(opt_step_adamw)
{
    char *const *data = task->src_data;
    int64_t      begin, end;
    gg_share(task, gg_nelements(task->src[0]), 1024, &begin, &end);
    adamw_range((float *)data[0], (const float *)data[1], (float *)data[2], (float *)data[3], ggml_update_of(task->y),
                begin, end);
}
