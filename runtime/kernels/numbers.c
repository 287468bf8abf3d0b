/* numbers.c - kernels whose results are made of numbers: arange, and embeddings of timesteps. Called by the executor.
 */
#include "../src/kernel.h"
#include "simd.h"

GG_KERNEL(arange)
{
    float   start = gg_param_f32(task->y, 0), step = gg_param_f32(task->y, 2), *y = (float *)task->y_data;
    int64_t begin, end;
    gg_share(task, task->y->ne[0], 1024, &begin, &end);
    for (int64_t i = begin; i < end; i++) y[i] = start + step * (float)i;
}

/* Frequency i of `half`; op_params hold the number of columns and the longest period. */
static double frequency(const gg_tensor *y, int64_t i, int64_t half)
{
    return exp(-log(gg_param_i32(y, 1)) * (double)i / (double)half);
}

/* y [dim, n], timesteps [n]: cosines, then sines */
GG_KERNEL(timestep_embedding)
{
    const float *timesteps = (const float *)task->src_data[0];
    int64_t      begin, end, n = task->y->ne[0], half = gg_param_i32(task->y, 0) / 2;
    gg_share(task, task->y->ne[1], 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        float *y = (float *)task->y_data + t * n;
        memset(y, 0, (size_t)n * sizeof(float));
        for (int64_t i = 0; i < half; i++) {
            double angle = timesteps[t] * frequency(task->y, i, half);
            y[i] = (float)cos(angle);
            y[half + i] = (float)sin(angle);
        }
    }
}

/* y [n], g [dim, n], timesteps [n] */
GG_KERNEL(timestep_embedding_back)
{
    const float *timesteps = (const float *)task->src_data[1];
    int64_t      begin, end, half = gg_param_i32(task->y, 0) / 2;
    gg_share(task, task->y->ne[0], 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        const float *g = (const float *)(task->src_data[0] + t * task->src[0]->nb[1]);
        double       total = 0;
        for (int64_t i = 0; i < half; i++) {
            double f = frequency(task->y, i, half), angle = timesteps[t] * f;
            total += f * (g[half + i] * cos(angle) - g[i] * sin(angle));
        }
        ((float *)task->y_data)[t] = (float)total;
    }
}
