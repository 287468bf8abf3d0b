/* update.h - what the kernels share that update parameters: the numbers of a step, clipping, decay. The comment above
 * adamw in ggmlgraph/table/ops.py says what they mean. Used by optimizer.c and adafactor.c.
 */
#ifndef GG_UPDATE_H
#define GG_UPDATE_H

#include <math.h>

#include "../src/kernel.h"
#include "simd.h"

enum { LR, WEIGHT_DECAY, CLIP, CLIP_VALUE, OWN }; /* hyper; the op's own numbers from OWN on */
enum { RATE, DECAY, CAUTIOUS };                   /* op_params */

/* One thread's part of an update. */
typedef struct update {
    float        lr;
    float        clip, limit; /* g is multiplied by the one, then cut at +- the other */
    double       rate;        /* of the step */
    double       decay;       /* what is taken of p, before the rate */
    float        keep;        /* factor of p where decay is decoupled */
    bool         cautious;
    const float *own;
    int64_t      begin, end;
} update;

/* The last two sources are hyper and sum_sqr. False where the gradient is not finite: then nothing changes. */
static inline bool begin_update(const gg_task *task, update *u)
{
    const gg_tensor *y = task->y;
    const float     *hyper = (const float *)task->src_data[y->n_src - 2];
    float            norm = sqrtf(*(const float *)task->src_data[y->n_src - 1]);
    double           lr = hyper[LR], clip = hyper[CLIP], decay = (double)hyper[WEIGHT_DECAY] * gg_param_f32(y, DECAY);
    *u = (update){
        .lr = hyper[LR],
        .clip = clip > 0 && norm > clip ? (float)(clip / (norm + 1e-6)) : 1.0f,
        .limit = hyper[CLIP_VALUE] > 0 ? hyper[CLIP_VALUE] : INFINITY,
        .rate = lr * gg_param_f32(y, RATE),
        .decay = decay,
        .keep = (float)(1.0 - lr * decay),
        .cautious = gg_param_i32(y, CAUTIOUS) != 0,
        .own = hyper + OWN,
    };
    gg_share(task, gg_nelements(task->src[0]), 1024, &u->begin, &u->end);
    return isfinite(norm);
}

GG_INLINE float clipped(float g, float clip, float limit)
{
    g *= clip;
    g = g > limit ? limit : g;
    return g < -limit ? -limit : g;
}

/* p after decay and a step along u. */
GG_INLINE float stepped(float p, float u, float keep, float rate, bool cautious)
{
    return (!cautious || u * p >= 0.0f ? p * keep : p) - rate * u;
}

#endif
