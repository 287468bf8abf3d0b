/* pooling.c - pooling in one and two dimensions, and its cotangent. Called by the executor.
 *
 * A plane is what windows slide over: a row in one dimension, a matrix in two. Padding counts in a mean, as zeros, and
 * never in a maximum. Planes are shared out whole.
 */
#include "../src/kernel.h"
#include "gg_ops.h"
#include "simd.h"

enum { POOL_MAX = 0 };

/* Sizes of a plane and its windows; 1 in the dimension there is none of. */
typedef struct pool {
    bool    is_max;
    int64_t width, height, out_width, out_height, n_planes;
    int64_t k_width, k_height, stride_x, stride_y, padding_x, padding_y;
} pool;

static pool pool_of(const gg_tensor *y, const gg_tensor *in, const gg_tensor *out)
{
    bool is_2d = y->op == GG_OP_POOL_2D || y->op == GG_OP_POOL_2D_BACK;
    pool p = {.is_max = gg_param_i32(y, 0) == POOL_MAX, .width = in->ne[0], .height = 1, .out_width = out->ne[0],
              .out_height = 1, .n_planes = gg_nrows(in), .k_width = gg_param_i32(y, 1), .k_height = 1,
              .stride_x = gg_param_i32(y, is_2d ? 3 : 2), .stride_y = 1, .padding_x = gg_param_i32(y, is_2d ? 5 : 3)};
    if (!is_2d) return p;
    p.height = in->ne[1];
    p.out_height = out->ne[1];
    p.n_planes = in->ne[2] * in->ne[3];
    p.k_height = gg_param_i32(y, 2);
    p.stride_y = gg_param_i32(y, 4);
    p.padding_y = gg_param_i32(y, 6);
    return p;
}

/* The part of window i that is inside its plane. */
typedef struct window {
    int64_t left, right, top, bottom; /* right and bottom exclusive */
} window;

static window window_of(const pool *p, int64_t i)
{
    int64_t x = i % p->out_width * p->stride_x - p->padding_x, y = i / p->out_width * p->stride_y - p->padding_y;
    return (window){gg_max_i64(0, x), gg_min_i64(p->width, x + p->k_width), gg_max_i64(0, y),
                    gg_min_i64(p->height, y + p->k_height)};
}

/* Where the largest element of a window is, the first of equal ones. */
static int64_t largest(const pool *p, const float *plane, window w)
{
    int64_t best = w.top * p->width + w.left;
    for (int64_t y = w.top; y < w.bottom; y++)
        for (int64_t x = w.left; x < w.right; x++)
            if (plane[y * p->width + x] > plane[best]) best = y * p->width + x;
    return best;
}

static float mean(const pool *p, const float *plane, window w)
{
    float total = 0;
    for (int64_t y = w.top; y < w.bottom; y++)
        for (int64_t x = w.left; x < w.right; x++) total += plane[y * p->width + x];
    return total / (float)(p->k_width * p->k_height);
}

static void pool_planes(const gg_task *task)
{
    pool    p = pool_of(task->y, task->src[0], task->y);
    int64_t begin, end, n = p.out_width * p.out_height;
    gg_share(task, p.n_planes, 1, &begin, &end);
    for (int64_t k = begin; k < end; k++) {
        const float *plane = (const float *)task->src_data[0] + k * p.width * p.height;
        float       *y = (float *)task->y_data + k * n;
        for (int64_t i = 0; i < n; i++) {
            window w = window_of(&p, i);
            y[i] = p.is_max ? plane[largest(&p, plane, w)] : mean(&p, plane, w);
        }
    }
}

GG_KERNEL(pool_1d) { pool_planes(task); }
GG_KERNEL(pool_2d) { pool_planes(task); }

static void spread_mean(const pool *p, float *plane, window w, float g)
{
    for (int64_t y = w.top; y < w.bottom; y++)
        for (int64_t x = w.left; x < w.right; x++)
            plane[y * p->width + x] += g / (float)(p->k_width * p->k_height);
}

/* y, g, a */
static void pool_back_planes(const gg_task *task)
{
    pool    p = pool_of(task->y, task->y, task->src[0]);
    int64_t begin, end, n = p.out_width * p.out_height, n_plane = p.width * p.height;
    gg_share(task, p.n_planes, 1, &begin, &end);
    for (int64_t k = begin; k < end; k++) {
        const float *g = (const float *)task->src_data[0] + k * n, *a = (const float *)task->src_data[1] + k * n_plane;
        float       *y = (float *)task->y_data + k * n_plane;
        memset(y, 0, (size_t)n_plane * sizeof(float));
        for (int64_t i = 0; i < n; i++) {
            window w = window_of(&p, i);
            if (p.is_max) y[largest(&p, a, w)] += g[i];
            else spread_mean(&p, y, w, g[i]);
        }
    }
}

GG_KERNEL(pool_1d_back) { pool_back_planes(task); }
GG_KERNEL(pool_2d_back) { pool_back_planes(task); }
