/* shape_windows.c - shape rules of what slides over an image: im2col, transposed convolutions, pooling. See shape.h. */
#include "shape.h"

enum { MAX_STEP = 1 << 20 }; /* of strides, paddings, dilations and windows: times any size it fits in 64 bits */

/* Words [first, first + n) are numbers from `least` on. */
static int32_t check_steps(const gg_tensor *y, int first, int n, int32_t least, const char *what, gg_error *err)
{
    for (int w = first; w < first + n; w++)
        if (gg_param_i32(y, w) < least || gg_param_i32(y, w) > MAX_STEP)
            FAIL_AS("BadOpParams", "%s %d is not in %d..2^20", what, gg_param_i32(y, w), least);
    return 0;
}

/* ---------------------------------------------------------------- im2col */

enum { STRIDE = 0, PADDING = 2, DILATION = 4, IS_2D = 6 }; /* words, of which the first three come in pairs */

/* ne of the patches that kernel a takes from images of size `image`. */
static int32_t patch_sizes(const gg_tensor *y, const gg_tensor *a, const int64_t *image, int64_t *ne, gg_error *err)
{
    int32_t is_2d = gg_param_i32(y, IS_2D), axes = is_2d ? 2 : 1;
    int64_t out[2] = {1, 1};
    if (is_2d != 0 && is_2d != 1) FAIL_AS("BadOpParams", "is_2D is %d, neither 0 nor 1", is_2d);
    if (check_steps(y, STRIDE, axes, 1, "stride", err) < 0 || check_steps(y, PADDING, axes, 0, "padding", err) < 0 ||
        check_steps(y, DILATION, axes, 1, "dilation", err) < 0)
        return -1;
    if (a->ne[axes] != image[axes])
        FAIL("a kernel of %lld channels for images of %lld", (long long)a->ne[axes], (long long)image[axes]);
    if (!is_2d && image[3] != 1) FAIL("images of four dimensions in one");
    for (int i = 0; i < axes; i++) {
        int64_t room = image[i] + 2 * gg_param_i32(y, PADDING + i) - gg_param_i32(y, DILATION + i) * (a->ne[i] - 1) - 1;
        if (room < 0) FAIL("the kernel is larger than the image along dimension %d", i);
        out[i] = room / gg_param_i32(y, STRIDE + i) + 1;
    }
    ne[0] = a->ne[0] * a->ne[1] * (is_2d ? a->ne[2] : 1);
    ne[1] = out[0];
    ne[2] = is_2d ? out[1] : image[2];
    ne[3] = is_2d ? image[3] : 1;
    return 0;
}

int32_t gg_shape_im2col(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    int64_t ne[GG_MAX_DIMS];
    if (check_type(source(g, y, 1), GG_TYPE_F32, "the images", err) < 0) return -1;
    if (patch_sizes(y, source(g, y, 0), source(g, y, 1)->ne, ne, err) < 0) return -1;
    y->type = GG_TYPE_F32;
    return gg_set_ne(y, ne, err);
}

int32_t gg_shape_im2col_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    int64_t ne[GG_MAX_DIMS];
    if (check_type(source(g, y, 1), GG_TYPE_F32, "the cotangent", err) < 0) return -1;
    y->type = GG_TYPE_F32;
    if (gg_set_ne(y, y->ne, err) < 0 || patch_sizes(y, source(g, y, 0), y->ne, ne, err) < 0) return -1;
    if (memcmp(ne, source(g, y, 1)->ne, sizeof ne) != 0) FAIL("the cotangent is not that of patches of these images");
    return 0;
}

/* ---------------------------------------------------------------- transposed convolutions */

/* ne of what a kernel spreads images into, in two dimensions or one. */
static int32_t spread_sizes(const gg_tensor *y, const int64_t *a, const int64_t *b, int dims, int64_t *ne, gg_error *err)
{
    int64_t stride = gg_param_i32(y, 0);
    if (check_steps(y, 0, 1, 1, "stride", err) < 0) return -1;
    if (a[dims + 1] != b[dims])
        FAIL("a kernel from %lld channels for images of %lld", (long long)a[dims + 1], (long long)b[dims]);
    if (dims == 1 && (a[3] != 1 || b[2] != 1 || b[3] != 1)) FAIL("more dimensions than the op has");
    for (int i = 0; i < GG_MAX_DIMS; i++) ne[i] = i < dims ? (b[i] - 1) * stride + a[i] : 1;
    ne[dims] = a[dims];
    if (dims == 2) ne[3] = b[3];
    return 0;
}

static int32_t conv_transpose(const gg_graph *g, gg_tensor *y, int dims, gg_error *err)
{
    int64_t ne[GG_MAX_DIMS];
    if (check_f32(g, y, err) < 0) return -1;
    if (spread_sizes(y, source(g, y, 0)->ne, source(g, y, 1)->ne, dims, ne, err) < 0) return -1;
    y->type = GG_TYPE_F32;
    return gg_set_ne(y, ne, err);
}

int32_t gg_shape_conv_transpose_1d(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    if (gg_param_i32(y, 1) != 0 || gg_param_i32(y, 2) != 1)
        FAIL_AS("BadOpParams", "padding %d and dilation %d are not 0 and 1", gg_param_i32(y, 1), gg_param_i32(y, 2));
    return conv_transpose(g, y, 1, err);
}

int32_t gg_shape_conv_transpose_2d(const gg_graph *g, gg_tensor *y, gg_error *err) { return conv_transpose(g, y, 2, err); }

/* y is the kernel or the images, the second source the other. */
int32_t gg_shape_conv_transpose_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    int64_t        ne[GG_MAX_DIMS];
    const int64_t *other = source(g, y, 1)->ne;
    bool           is_kernel = y->op == GG_OP_CONV_TRANSPOSE_KERNEL_BACK;
    int32_t        dims = gg_param_i32(y, 1);
    if (dims != 1 && dims != 2) FAIL_AS("BadOpParams", "%d dimensions", dims);
    if (gg_shape_sized(g, y, err) < 0) return -1;
    if (spread_sizes(y, is_kernel ? y->ne : other, is_kernel ? other : y->ne, dims, ne, err) < 0) return -1;
    if (memcmp(ne, source(g, y, 0)->ne, sizeof ne) != 0) FAIL("the cotangent is not that of these sizes");
    return 0;
}

/* ---------------------------------------------------------------- pooling */

/* ne of the windows over `in`; op_params: kind, sizes, strides, paddings. */
static int32_t pool_sizes(const gg_tensor *y, const int64_t *in, int dims, int64_t *ne, gg_error *err)
{
    int size = 1, stride = 1 + dims, padding = 1 + 2 * dims;
    if (gg_param_i32(y, 0) != 0 && gg_param_i32(y, 0) != 1)
        FAIL_AS("BadOpParams", "kind %d is neither 0 (maximum) nor 1 (mean)", gg_param_i32(y, 0));
    if (check_steps(y, size, dims, 1, "window", err) < 0 || check_steps(y, stride, dims, 1, "stride", err) < 0 ||
        check_steps(y, padding, dims, 0, "padding", err) < 0)
        return -1;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        ne[i] = in[i];
        if (i >= dims) continue;
        int32_t k = gg_param_i32(y, size + i), p = gg_param_i32(y, padding + i);
        if (p >= k) FAIL_AS("BadOpParams", "padding %d leaves a window of %d outside", p, k);
        if (in[i] + 2 * p < k) FAIL("a window of %d over %lld elements", k, (long long)in[i]);
        ne[i] = (in[i] + 2 * p - k) / gg_param_i32(y, stride + i) + 1;
    }
    return 0;
}

static int32_t pool(const gg_graph *g, gg_tensor *y, int dims, gg_error *err)
{
    int64_t ne[GG_MAX_DIMS];
    if (check_f32(g, y, err) < 0 || pool_sizes(y, source(g, y, 0)->ne, dims, ne, err) < 0) return -1;
    y->type = GG_TYPE_F32;
    return gg_set_ne(y, ne, err);
}

static int32_t pool_back(const gg_graph *g, gg_tensor *y, int dims, gg_error *err)
{
    const gg_tensor *cotangent = source(g, y, 0), *a = source(g, y, 1);
    int64_t ne[GG_MAX_DIMS];
    if (check_f32(g, y, err) < 0 || pool_sizes(y, a->ne, dims, ne, err) < 0) return -1;
    if (memcmp(ne, cotangent->ne, sizeof ne) != 0) FAIL("the cotangent is not that of windows over the operand");
    return like(y, a, err);
}

int32_t gg_shape_pool_1d(const gg_graph *g, gg_tensor *y, gg_error *err) { return pool(g, y, 1, err); }
int32_t gg_shape_pool_2d(const gg_graph *g, gg_tensor *y, gg_error *err) { return pool(g, y, 2, err); }
int32_t gg_shape_pool_1d_back(const gg_graph *g, gg_tensor *y, gg_error *err) { return pool_back(g, y, 1, err); }
int32_t gg_shape_pool_2d_back(const gg_graph *g, gg_tensor *y, gg_error *err) { return pool_back(g, y, 2, err); }
