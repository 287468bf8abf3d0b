/* conv.c - what convolutions lower to: im2col and its cotangent, transposed convolutions and theirs. Called by the
 * executor. Layouts are ggml's: width first, then height, channels, batch; one dimension is a height of 1.
 */
#include "../src/kernel.h"
#include "gg_ops.h"
#include "simd.h"

/* ---- im2col ---- */

/* Sizes of an image, of what slides over it, and of where that can be; op_params as ggml stores them. */
typedef struct patches {
    int64_t n_channels, width, height, k_width, k_height, out_width, out_height, n_images;
    int64_t stride[2], padding[2], dilation[2]; /* across, down */
} patches;

/* a: the kernel; image, columns: the tensors that im2col makes one of the other. */
static patches patches_of(const gg_tensor *y, const gg_tensor *a, const gg_tensor *image, const gg_tensor *columns)
{
    bool    is_2d = gg_param_i32(y, 6) == 1;
    patches p = {.n_channels = image->ne[is_2d ? 2 : 1], .width = image->ne[0], .height = is_2d ? image->ne[1] : 1,
                 .k_width = a->ne[0], .k_height = is_2d ? a->ne[1] : 1, .out_width = columns->ne[1],
                 .out_height = is_2d ? columns->ne[2] : 1, .n_images = image->ne[is_2d ? 3 : 2]};
    for (int i = 0; i < 2; i++) {
        p.stride[i] = i == 0 || is_2d ? gg_param_i32(y, i) : 1;
        p.padding[i] = i == 0 || is_2d ? gg_param_i32(y, 2 + i) : 0;
        p.dilation[i] = i == 0 || is_2d ? gg_param_i32(y, 4 + i) : 1;
    }
    return p;
}

/* One row of a patch: k_width numbers of an image's row, 0 beyond its ends. */
static void copy_patch_row(float *to, const float *row, const patches *p, int64_t out_x)
{
    for (int64_t k = 0; k < p->k_width; k++) {
        int64_t x = out_x * p->stride[0] + k * p->dilation[0] - p->padding[0];
        to[k] = row && x >= 0 && x < p->width ? row[x] : 0;
    }
}

/* y [k_width k_height channels, out_width, out_height, images], a for its size, b the images */
GG_KERNEL(im2col)
{
    patches      p = patches_of(task->y, task->src[0], task->src[1], task->y);
    const float *images = (const float *)task->src_data[1];
    int64_t      begin, end, n = task->y->ne[0];
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        int64_t out_x = r % p.out_width, out_y = r / p.out_width % p.out_height, image = r / p.out_width / p.out_height;
        float  *to = (float *)task->y_data + r * n;
        for (int64_t i = 0; i < p.n_channels * p.k_height; i++) {
            int64_t channel = i / p.k_height;
            int64_t y = out_y * p.stride[1] + i % p.k_height * p.dilation[1] - p.padding[1];
            bool    inside = y >= 0 && y < p.height;
            const float *row = images + ((image * p.n_channels + channel) * p.height + (inside ? y : 0)) * p.width;
            copy_patch_row(to + i * p.k_width, inside ? row : NULL, &p, out_x);
        }
    }
}

/* Which position puts element k of the kernel on element i of the image; -1 for none. */
static int64_t position(const patches *p, int axis, int64_t i, int64_t k, int64_t n_out)
{
    int64_t at = i + p->padding[axis] - k * p->dilation[axis];
    return at < 0 || at % p->stride[axis] || at / p->stride[axis] >= n_out ? -1 : at / p->stride[axis];
}

static float sum_patches(const patches *p, const float *g, int64_t image, int64_t channel, int64_t x, int64_t y)
{
    int64_t n_patch = p->n_channels * p->k_height * p->k_width;
    float   total = 0;
    for (int64_t ky = 0; ky < p->k_height; ky++) {
        int64_t out_y = position(p, 1, y, ky, p->out_height);
        for (int64_t kx = 0; out_y >= 0 && kx < p->k_width; kx++) {
            int64_t out_x = position(p, 0, x, kx, p->out_width);
            if (out_x < 0) continue;
            total += g[((image * p->out_height + out_y) * p->out_width + out_x) * n_patch +
                       (channel * p->k_height + ky) * p->k_width + kx];
        }
    }
    return total;
}

/* y the images, a for its size, g [k_width k_height channels, out_width, out_height, images] */
GG_KERNEL(im2col_back)
{
    patches      p = patches_of(task->y, task->src[0], task->y, task->src[1]);
    const float *g = (const float *)task->src_data[1];
    int64_t      begin, end;
    gg_share(task, p.n_images * p.n_channels * p.height, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        int64_t y = r % p.height, channel = r / p.height % p.n_channels, image = r / p.height / p.n_channels;
        for (int64_t x = 0; x < p.width; x++)
            ((float *)task->y_data)[r * p.width + x] = sum_patches(&p, g, image, channel, x, y);
    }
}

/* ---- transposed convolutions ---- */

/* y [out_width, out_height, n_out, images] from a kernel [k_width, k_height, n_out, n_in] and images of n_in channels */
typedef struct spread {
    int64_t k_width, k_height, n_out, n_in, width, height, n_images, out_width, stride;
    int64_t k_plane, plane, out_plane; /* floats of one channel */
} spread;

static spread spread_of(const gg_tensor *a, const gg_tensor *b, int64_t stride, bool is_2d)
{
    spread s = {.k_width = a->ne[0], .k_height = is_2d ? a->ne[1] : 1, .n_out = a->ne[is_2d ? 2 : 1],
                .n_in = a->ne[is_2d ? 3 : 2], .width = b->ne[0], .height = is_2d ? b->ne[1] : 1,
                .n_images = is_2d ? b->ne[3] : 1, .stride = stride};
    s.out_width = (s.width - 1) * stride + s.k_width;
    s.k_plane = s.k_width * s.k_height;
    s.plane = s.width * s.height;
    s.out_plane = s.out_width * ((s.height - 1) * stride + s.k_height);
    return s;
}

/* Add to y's plane what one plane of the images spreads through one of the kernel. */
static void spread_plane(const spread *s, float *y, const float *a, const float *b)
{
    for (int64_t i = 0; i < s->plane; i++)
        for (int64_t ky = 0; ky < s->k_height; ky++) {
            float *row = y + (i / s->width * s->stride + ky) * s->out_width + i % s->width * s->stride;
            for (int64_t kx = 0; kx < s->k_width; kx++) row[kx] += b[i] * a[ky * s->k_width + kx];
        }
}

static void conv_transpose(const gg_task *task, bool is_2d)
{
    spread  s = spread_of(task->src[0], task->src[1], gg_param_i32(task->y, 0), is_2d);
    int64_t begin, end;
    gg_share(task, s.n_out * s.n_images, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float *y = (float *)task->y_data + i * s.out_plane;
        memset(y, 0, (size_t)s.out_plane * sizeof(float));
        for (int64_t c = 0; c < s.n_in; c++)
            spread_plane(&s, y, (const float *)task->src_data[0] + (c * s.n_out + i % s.n_out) * s.k_plane,
                         (const float *)task->src_data[1] + (i / s.n_out * s.n_in + c) * s.plane);
    }
}

GG_KERNEL(conv_transpose_1d) { conv_transpose(task, false); }
GG_KERNEL(conv_transpose_2d) { conv_transpose(task, true); }

/* Sum of kernel times g where the kernel lies for element i of an image. */
static float gather_plane(const spread *s, const float *g, const float *a, int64_t i)
{
    float total = 0;
    for (int64_t ky = 0; ky < s->k_height; ky++) {
        const float *row = g + (i / s->width * s->stride + ky) * s->out_width + i % s->width * s->stride;
        for (int64_t kx = 0; kx < s->k_width; kx++) total += row[kx] * a[ky * s->k_width + kx];
    }
    return total;
}

/* y the images, g, a; op_params: stride, dimensions */
GG_KERNEL(conv_transpose_data_back)
{
    spread  s = spread_of(task->src[1], task->y, gg_param_i32(task->y, 0), gg_param_i32(task->y, 1) == 2);
    int64_t begin, end;
    gg_share(task, s.n_in * s.n_images, 1, &begin, &end);
    for (int64_t p = begin; p < end; p++) {
        float *y = (float *)task->y_data + p * s.plane;
        memset(y, 0, (size_t)s.plane * sizeof(float));
        for (int64_t o = 0; o < s.n_out; o++) {
            const float *g = (const float *)task->src_data[0] + (p / s.n_in * s.n_out + o) * s.out_plane;
            const float *a = (const float *)task->src_data[1] + (p % s.n_in * s.n_out + o) * s.k_plane;
            for (int64_t i = 0; i < s.plane; i++) y[i] += gather_plane(&s, g, a, i);
        }
    }
}

/* y the kernel, g, b; op_params: stride, dimensions */
GG_KERNEL(conv_transpose_kernel_back)
{
    spread  s = spread_of(task->y, task->src[1], gg_param_i32(task->y, 0), gg_param_i32(task->y, 1) == 2);
    int64_t begin, end;
    gg_share(task, gg_nelements(task->y), 1, &begin, &end);
    for (int64_t e = begin; e < end; e++) {
        int64_t kx = e % s.k_width, ky = e / s.k_width % s.k_height, o = e / s.k_plane % s.n_out;
        int64_t c = e / s.k_plane / s.n_out;
        double  total = 0;
        for (int64_t n = 0; n < s.n_images; n++) {
            const float *g = (const float *)task->src_data[0] + (n * s.n_out + o) * s.out_plane;
            const float *b = (const float *)task->src_data[1] + (n * s.n_in + c) * s.plane;
            for (int64_t i = 0; i < s.plane; i++)
                total += b[i] * g[(i / s.width * s.stride + ky) * s.out_width + i % s.width * s.stride + kx];
        }
        ((float *)task->y_data)[e] = (float)total;
    }
}
