/* shape.c - shape rules, but for those of windows that slide (shape_windows.c). See shape.h. */
#include "shape.h"

#include "blocks.h"

/* ---------------------------------------------------------------- elementwise and row-wise */

/* All float32 sources of one shape, which is the result's. */
int32_t gg_shape_same(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (check_f32(g, y, err) < 0) return -1;
    for (int k = 1; k < y->n_src; k++)
        if (y->src[k] >= 0 && !gg_same_shape(a, source(g, y, k))) FAIL("operands differ in shape");
    return like(y, a, err);
}

int32_t gg_shape_like(const gg_graph *g, gg_tensor *y, gg_error *err) { return like(y, source(g, y, 0), err); }

static int32_t check_eps(const gg_tensor *y, int word, gg_error *err)
{
    float eps = gg_param_f32(y, word);
    if (!(eps >= 0)) FAIL_AS("BadOpParams", "eps is %g, not 0 or more", (double)eps);
    return 0;
}

int32_t gg_shape_norm(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    return check_eps(y, 0, err) < 0 ? -1 : gg_shape_same(g, y, err);
}

int32_t gg_shape_group_norm(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    enum { N_GROUPS = 0, EPS = 1 };
    int64_t n_groups = gg_param_i32(y, N_GROUPS), n_channels = source(g, y, 0)->ne[2];
    if (n_groups < 1 || n_groups > n_channels)
        FAIL_AS("BadOpParams", "%lld groups of %lld channels", (long long)n_groups, (long long)n_channels);
    return check_eps(y, EPS, err) < 0 ? -1 : gg_shape_same(g, y, err);
}

int32_t gg_shape_clamp(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    float min = gg_param_f32(y, 0), max = gg_param_f32(y, 1);
    if (!(min <= max)) FAIL_AS("BadOpParams", "no number is in %g..%g", (double)min, (double)max);
    return gg_shape_same(g, y, err);
}

int32_t gg_shape_dropout(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *key = source(g, y, 1);
    float rate = gg_param_f32(y, 0);
    if (!(rate > 0 && rate < 1)) FAIL_AS("BadOpParams", "rate is %g, not between 0 and 1", (double)rate);
    if (check_type(a, GG_TYPE_F32, "the operand", err) < 0 || check_type(key, GG_TYPE_I32, "the key", err) < 0) return -1;
    if (gg_nelements(key) != 4) FAIL("the key has %lld numbers, not 4", (long long)gg_nelements(key));
    return like(y, a, err);
}

int32_t gg_shape_add1(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *b = source(g, y, 1);
    if (gg_nelements(b) != 1) FAIL("the second operand has %lld elements, not 1", (long long)gg_nelements(b));
    return check_f32(g, y, err) < 0 ? -1 : like(y, source(g, y, 0), err);
}

int32_t gg_shape_diag_mask(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    if (gg_param_i32(y, 0) < 0) FAIL_AS("BadOpParams", "n_past is %d, not 0 or more", gg_param_i32(y, 0));
    return gg_shape_same(g, y, err);
}

/* The result is the first source itself, which the op updates in place. */
int32_t gg_shape_first(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    return check_f32(g, y, err) < 0 ? -1 : like(y, source(g, y, 0), err);
}

int32_t gg_shape_second(const gg_graph *g, gg_tensor *y, gg_error *err) { return like(y, source(g, y, 1), err); }

int32_t gg_shape_broadcast(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *b = source(g, y, 1);
    if (check_f32(g, y, err) < 0) return -1;
    if (!tiles(b, a)) FAIL("the second operand cannot be tiled into the first");
    return like(y, a, err);
}

int32_t gg_shape_gain(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *gain = source(g, y, 1), *bias = source(g, y, 2);
    if (check_f32(g, y, err) < 0) return -1;
    if (gain->ne[0] != a->ne[0] || gg_nelements(gain) != gain->ne[0]) FAIL("the gain is not one row of the operand");
    if (bias && !gg_same_shape(bias, gain)) FAIL("gain and bias differ in shape");
    return like(y, a, err);
}

int32_t gg_shape_gain_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *cotangent = source(g, y, 0), *gain = source(g, y, 2), *dbias = source(g, y, 4);
    if (check_f32(g, y, err) < 0) return -1;
    if (!gg_same_shape(cotangent, source(g, y, 1))) FAIL("operands differ in shape");
    if (gain->ne[0] != cotangent->ne[0] || gg_nelements(gain) != gain->ne[0]) FAIL("the gain is not one row of the operand");
    if (!gg_same_shape(gain, source(g, y, 3)) || (dbias && !gg_same_shape(gain, dbias)))
        FAIL("dgain and dbias do not have the shape of gain");
    return like(y, cotangent, err);
}

/* ALiBi's slopes are factors of the mask. */
static int32_t check_max_bias(const gg_tensor *y, int word, const gg_tensor *mask, gg_error *err)
{
    float max_bias = gg_param_f32(y, word);
    if (max_bias < 0) FAIL_AS("BadOpParams", "max_bias %g is negative", (double)max_bias);
    if (max_bias > 0 && !mask) FAIL("max_bias (ALiBi) without a mask");
    return 0;
}

int32_t gg_shape_soft_max(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *mask = source(g, y, 1);
    if (check_f32(g, y, err) < 0 || check_finite(y, 0, 1, err) < 0) return -1;
    if (mask && (mask->ne[0] != a->ne[0] || mask->ne[1] < a->ne[1] || mask->ne[2] != 1 || mask->ne[3] != 1))
        FAIL("the mask is not a matrix over the operand's last two axes");
    if (check_max_bias(y, 1, mask, err) < 0) return -1;
    return like(y, a, err);
}

int32_t gg_shape_rope(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    enum { N_DIMS = 1, MODE = 2, N_CTX_ORIG = 4, FREQ_BASE, FREQ_SCALE, EXT_FACTOR, ATTN_FACTOR, BETA_FAST, BETA_SLOW };
    const gg_tensor *a = source(g, y, 0), *positions = source(g, y, 1), *factors = source(g, y, 2);
    int32_t n_dims = gg_param_i32(y, N_DIMS), mode = gg_param_i32(y, MODE);
    if (check_type(a, GG_TYPE_F32, "the operand", err) < 0) return -1;
    if (check_type(positions, GG_TYPE_I32, "positions", err) < 0) return -1;
    if (check_finite(y, FREQ_BASE, BETA_SLOW, err) < 0) return -1;
    if (positions->ne[0] != a->ne[2] || gg_nelements(positions) != a->ne[2])
        FAIL("%lld positions for a context of %lld", (long long)gg_nelements(positions), (long long)a->ne[2]);
    if (n_dims < 2 || n_dims % 2 || n_dims > a->ne[0]) FAIL_AS("BadOpParams", "n_dims %d is not even and in 2..head_dim", n_dims);
    if (mode != 0 && mode != 2) return gg_fail(err, GG_ERR_UNSUPPORTED, -1, "rope mode %d is not supported", mode);
    if (gg_param_f32(y, FREQ_BASE) <= 0) FAIL_AS("BadOpParams", "freq_base is not positive");
    bool ramps = gg_param_i32(y, N_CTX_ORIG) > 0 && gg_param_f32(y, BETA_FAST) > 0 && gg_param_f32(y, BETA_SLOW) > 0;
    if (gg_param_f32(y, EXT_FACTOR) != 0 && (!ramps || gg_param_f32(y, FREQ_BASE) <= 1 || gg_param_f32(y, FREQ_SCALE) <= 0))
        FAIL_AS("BadOpParams", "ext_factor (YaRN) needs n_ctx_orig, beta_fast, beta_slow, freq_scale and freq_base > 1");
    if (factors && (factors->type != GG_TYPE_F32 || gg_nelements(factors) < n_dims / 2))
        FAIL("freq_factors must be float32, one per rotated pair");
    return like(y, a, err);
}

enum { ATTENTION_SCALE = 0, ATTENTION_N_PAST = 1, ATTENTION_WINDOW = 2, ATTENTION_SOFT_CAP = 3 }; /* words */

static int32_t check_attention(const gg_tensor *y, const gg_tensor *q, const gg_tensor *k, const gg_tensor *v,
                               const gg_tensor *lse, gg_error *err)
{
    if (check_finite(y, ATTENTION_SCALE, ATTENTION_SCALE, err) < 0) return -1;
    if (check_finite(y, ATTENTION_SOFT_CAP, ATTENTION_SOFT_CAP, err) < 0) return -1;
    if (gg_param_f32(y, ATTENTION_SOFT_CAP) < 0)
        FAIL_AS("BadOpParams", "soft_cap %g is negative", (double)gg_param_f32(y, ATTENTION_SOFT_CAP));
    if (gg_param_i32(y, ATTENTION_N_PAST) < 0) FAIL_AS("BadOpParams", "n_past %d is negative", gg_param_i32(y, ATTENTION_N_PAST));
    if (!gg_same_shape(k, v)) FAIL("keys and values differ in shape");
    if (q->ne[0] != k->ne[0]) FAIL("head sizes %lld and %lld differ", (long long)q->ne[0], (long long)k->ne[0]);
    if (q->ne[1] % k->ne[1] || q->ne[3] != k->ne[3])
        FAIL("%lld heads in %lld sequences do not divide among %lld in %lld", (long long)q->ne[1],
             (long long)q->ne[3], (long long)k->ne[1], (long long)k->ne[3]);
    if (lse && (lse->ne[0] != q->ne[2] || lse->ne[1] != q->ne[1] || lse->ne[2] != q->ne[3] || lse->ne[3] != 1))
        FAIL("lse is not one number per query");
    return 0;
}

/* What only attention and its derivative have: a window, which leaves each query a key, and a mask. */
static int32_t check_hidden(const gg_tensor *y, const gg_tensor *q, const gg_tensor *k, const gg_tensor *mask,
                            gg_error *err)
{
    int64_t window = gg_param_i32(y, ATTENTION_WINDOW), n_past = gg_param_i32(y, ATTENTION_N_PAST);
    if (window < 0) FAIL_AS("BadOpParams", "window %lld is negative", (long long)window);
    if (window > 0 && q->ne[2] + n_past - window >= k->ne[2])
        FAIL("a window of %lld leaves the last query without a key", (long long)window);
    const int64_t scores[GG_MAX_DIMS] = {k->ne[2], q->ne[2], q->ne[1], q->ne[3]};
    for (int i = 0; mask && i < GG_MAX_DIMS; i++)
        if (mask->ne[i] != scores[i] && (i == 0 || mask->ne[i] != 1)) FAIL("the mask is not one number per key and query");
    return 0;
}

int32_t gg_shape_attention(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *q = source(g, y, 0);
    if (check_f32(g, y, err) < 0) return -1;
    if (check_attention(y, q, source(g, y, 1), source(g, y, 2), source(g, y, 3), err) < 0) return -1;
    if (check_hidden(y, q, source(g, y, 1), source(g, y, 4), err) < 0) return -1;
    return like(y, q, err);
}

int32_t gg_shape_attention_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *q = source(g, y, 5), *k = source(g, y, 6), *v = source(g, y, 7);
    if (check_f32(g, y, err) < 0 || check_attention(y, q, k, v, source(g, y, 8), err) < 0) return -1;
    if (check_hidden(y, q, k, source(g, y, 9), err) < 0) return -1;
    if (!gg_same_shape(source(g, y, 3), q) || !gg_same_shape(source(g, y, 4), q))
        FAIL("the cotangent is not that of an attention of these sizes");
    if (!gg_same_shape(source(g, y, 0), q) || !gg_same_shape(source(g, y, 1), k) ||
        !gg_same_shape(source(g, y, 2), v))
        FAIL("dq, dk and dv do not have the shapes of q, k and v");
    return like(y, q, err);
}

/* Keys lie transposed in blocks of ne[0], values as rows; see kernels/cached_attention.c. */
int32_t gg_shape_cached_attention(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *q = source(g, y, 0), *k = source(g, y, 1), *keys = source(g, y, 3), *values = source(g, y, 4);
    int64_t n_heads = k->ne[1] * k->ne[3];
    for (int i = 0; i < 5; i++)
        if (check_type(source(g, y, i), GG_TYPE_F32, "operands", err) < 0) return -1;
    if (check_type(source(g, y, 5), GG_TYPE_I32, "n_past", err) < 0) return -1;
    if (check_attention(y, q, k, source(g, y, 2), NULL, err) < 0) return -1;
    if (q->ne[2] != k->ne[2]) FAIL("%lld queries for %lld keys", (long long)q->ne[2], (long long)k->ne[2]);
    if (keys->ne[0] != GG_ATTENTION_KEYS || keys->ne[1] != q->ne[0] || keys->ne[3] != n_heads)
        FAIL("the cache of keys is not of these heads");
    if (values->ne[0] != q->ne[0] || values->ne[1] != keys->ne[0] * keys->ne[2] || values->ne[2] != n_heads ||
        values->ne[3] != 1)
        FAIL("the cache of values is not of these heads");
    return like(y, q, err);
}

static int32_t check_flash(const gg_tensor *y, const gg_tensor *q, const gg_tensor *k, const gg_tensor *v,
                           const gg_tensor *mask, gg_error *err)
{
    enum { SCALE, MAX_BIAS, SOFTCAP, PREC };
    if (check_finite(y, SCALE, SOFTCAP, err) < 0 || check_max_bias(y, MAX_BIAS, mask, err) < 0) return -1;
    if (gg_param_f32(y, SOFTCAP) < 0) FAIL_AS("BadOpParams", "logit_softcap is negative");
    if (gg_param_i32(y, PREC) < 0 || gg_param_i32(y, PREC) > 1)
        FAIL_AS("BadOpParams", "precision %d is neither 0 nor 1", gg_param_i32(y, PREC));
    if (!gg_same_shape(k, v)) FAIL("keys and values differ in shape");
    if (q->ne[0] != k->ne[0]) FAIL("head sizes %lld and %lld differ", (long long)q->ne[0], (long long)k->ne[0]);
    if (q->ne[2] % k->ne[2] || q->ne[3] != k->ne[3])
        FAIL("%lld heads in %lld sequences do not divide among %lld in %lld", (long long)q->ne[2],
             (long long)q->ne[3], (long long)k->ne[2], (long long)k->ne[3]);
    if (mask && (mask->ne[0] != k->ne[1] || mask->ne[1] < q->ne[1] || mask->ne[2] != 1 || mask->ne[3] != 1))
        FAIL("the mask is not a matrix of keys by queries");
    return 0;
}

int32_t gg_shape_flash_attn_ext(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *q = source(g, y, 0);
    const int64_t ne[GG_MAX_DIMS] = {q->ne[0], q->ne[2], q->ne[1], q->ne[3]};
    if (check_f32(g, y, err) < 0) return -1;
    if (check_flash(y, q, source(g, y, 1), source(g, y, 2), source(g, y, 3), err) < 0) return -1;
    y->type = GG_TYPE_F32;
    return gg_set_ne(y, ne, err);
}

int32_t gg_shape_flash_attn_ext_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *cotangent = source(g, y, 3), *q = source(g, y, 4), *k = source(g, y, 5), *v = source(g, y, 6);
    if (check_f32(g, y, err) < 0 || check_flash(y, q, k, v, source(g, y, 7), err) < 0) return -1;
    if (cotangent->ne[0] != q->ne[0] || cotangent->ne[1] != q->ne[2] || cotangent->ne[2] != q->ne[1] ||
        cotangent->ne[3] != q->ne[3])
        FAIL("the cotangent is not that of an attention of these sizes");
    if (!gg_same_shape(source(g, y, 0), q) || !gg_same_shape(source(g, y, 1), k) ||
        !gg_same_shape(source(g, y, 2), v))
        FAIL("dq, dk and dv do not have the shapes of q, k and v");
    return like(y, q, err);
}

/* ---------------------------------------------------------------- reductions and repeats */

static const int64_t ONE[GG_MAX_DIMS] = {1, 1, 1, 1};

int32_t gg_shape_scalar(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    y->type = GG_TYPE_F32;
    return check_f32(g, y, err) < 0 ? -1 : gg_set_ne(y, ONE, err);
}

int32_t gg_shape_row_scalars(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    const int64_t ne[GG_MAX_DIMS] = {1, a->ne[1], a->ne[2], a->ne[3]};
    y->type = GG_TYPE_F32;
    return check_f32(g, y, err) < 0 ? -1 : gg_set_ne(y, ne, err);
}

int32_t gg_shape_count_equal(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *b = source(g, y, 1);
    if (check_type(a, GG_TYPE_I32, "operands", err) < 0 || check_type(b, GG_TYPE_I32, "operands", err) < 0) return -1;
    if (!gg_same_shape(a, b)) FAIL("operands differ in shape");
    y->type = GG_TYPE_I64;
    return gg_set_ne(y, ONE, err);
}

int32_t gg_shape_sized(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    y->type = GG_TYPE_F32;
    return check_f32(g, y, err) < 0 ? -1 : gg_set_ne(y, y->ne, err);
}

int32_t gg_shape_repeat(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (a->type != GG_TYPE_I32 && check_f32(g, y, err) < 0) return -1;
    y->type = a->type;
    if (gg_set_ne(y, y->ne, err) < 0) return -1;
    if (!tiles(a, y)) FAIL("the operand does not tile the shape asked for");
    return 0;
}

int32_t gg_shape_repeat_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    if (gg_shape_sized(g, y, err) < 0) return -1;
    if (!tiles(y, source(g, y, 0))) FAIL("the shape asked for does not tile the operand");
    return 0;
}

int32_t gg_shape_sum_products(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    if (!gg_same_shape(source(g, y, 0), source(g, y, 1))) FAIL("operands differ in shape");
    return gg_shape_repeat_back(g, y, err);
}

int32_t gg_shape_expand(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (gg_shape_sized(g, y, err) < 0) return -1;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        if (a->ne[i] != y->ne[i] && a->ne[i] != 1) FAIL("the operand has %lld elements where 1 is repeated", (long long)a->ne[i]);
        y->nb[i] = a->ne[i] == y->ne[i] ? a->nb[i] : 0;
    }
    return 0;
}

/* ---------------------------------------------------------------- products */

static int32_t check_groups(const gg_tensor *a, const gg_tensor *b, gg_error *err)
{
    if (b->ne[2] % a->ne[2] || b->ne[3] % a->ne[3])
        FAIL("batch sizes %lld,%lld do not repeat into %lld,%lld", (long long)a->ne[3], (long long)a->ne[2],
             (long long)b->ne[3], (long long)b->ne[2]);
    return 0;
}

int32_t gg_shape_mul_mat(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *b = source(g, y, 1);
    const int64_t ne[GG_MAX_DIMS] = {a->ne[1], b->ne[1], b->ne[2], b->ne[3]};
    if (check_weights(a, "the weights", err) < 0 || check_type(b, GG_TYPE_F32, "the rows", err) < 0) return -1;
    if (a->ne[0] != b->ne[0])
        FAIL("inner sizes %lld and %lld differ", (long long)a->ne[0], (long long)b->ne[0]);
    if (gg_param_i32(y, 0) != 0 && gg_param_i32(y, 0) != 1)
        FAIL_AS("BadOpParams", "precision is %d, neither 0 nor 1", gg_param_i32(y, 0));
    y->type = GG_TYPE_F32;
    return check_groups(a, b, err) < 0 ? -1 : gg_set_ne(y, ne, err);
}

int32_t gg_shape_mul_mat_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *cotangent = source(g, y, 0), *b = source(g, y, 1);
    if (gg_shape_sized(g, y, err) < 0) return -1;
    if (cotangent->ne[0] != y->ne[1] || b->ne[0] != y->ne[0] || cotangent->ne[1] != b->ne[1] ||
        cotangent->ne[2] != b->ne[2] || cotangent->ne[3] != b->ne[3])
        FAIL("the cotangent is not that of a product of these sizes");
    return check_groups(y, b, err);
}

/* a [k, m, n_expert] on rows of b [k, n_used or a divisor, n] by ids [n_used, n]. */
static int32_t check_experts(const gg_tensor *a, const gg_tensor *b, const gg_tensor *ids, gg_error *err)
{
    if (check_type(ids, GG_TYPE_I32, "ids", err) < 0) return -1;
    if (a->ne[3] != 1 || b->ne[3] != 1 || ids->ne[2] != 1 || ids->ne[3] != 1) FAIL("more dimensions than the op has");
    if (ids->ne[1] != b->ne[2])
        FAIL("%lld lists of ids for %lld lists of rows", (long long)ids->ne[1], (long long)b->ne[2]);
    if (ids->ne[0] % b->ne[1])
        FAIL("%lld rows do not repeat into %lld ids", (long long)b->ne[1], (long long)ids->ne[0]);
    int64_t n_in, n_out; /* of the rows that are gathered for the products, and of those that these give */
    if (!gg_mul_i64(gg_nelements(ids), a->ne[0], &n_in) || n_in > GG_MAX_ELEMENTS ||
        !gg_mul_i64(gg_nelements(ids), a->ne[1], &n_out) || n_out > GG_MAX_ELEMENTS)
        FAIL_AS("BadSize", "more than 2^48 elements in the rows of %lld ids", (long long)gg_nelements(ids));
    return 0;
}

/* Rows of b times matrices of a, over dimension `inner` of these. */
int32_t gg_shape_mul_mat_id(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *b = source(g, y, 1), *ids = source(g, y, 2);
    int inner = y->op == GG_OP_MUL_MAT_ID ? 0 : 1;
    const int64_t ne[GG_MAX_DIMS] = {a->ne[1 - inner], ids->ne[0], b->ne[2], 1};
    if (check_weights(a, "the matrices", err) < 0 || check_type(b, GG_TYPE_F32, "the rows", err) < 0) return -1;
    if (a->ne[inner] != b->ne[0])
        FAIL("inner sizes %lld and %lld differ", (long long)a->ne[inner], (long long)b->ne[0]);
    y->type = GG_TYPE_F32;
    return check_experts(a, b, ids, err) < 0 ? -1 : gg_set_ne(y, ne, err);
}

int32_t gg_shape_mul_mat_id_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *cotangent = source(g, y, 0), *b = source(g, y, 1), *ids = source(g, y, 2);
    if (check_type(cotangent, GG_TYPE_F32, "the cotangent", err) < 0) return -1;
    if (check_type(b, GG_TYPE_F32, "the rows", err) < 0) return -1;
    y->type = GG_TYPE_F32;
    if (gg_set_ne(y, y->ne, err) < 0 || check_experts(y, b, ids, err) < 0) return -1;
    if (cotangent->ne[0] != y->ne[1] || cotangent->ne[1] != ids->ne[0] || cotangent->ne[2] != ids->ne[1] ||
        cotangent->ne[3] != 1 || b->ne[0] != y->ne[0])
        FAIL("the cotangent is not that of products of these sizes");
    return 0;
}

int32_t gg_shape_out_prod(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *b = source(g, y, 1);
    const int64_t ne[GG_MAX_DIMS] = {a->ne[0], b->ne[0], b->ne[2], b->ne[3]};
    if (check_weights(a, "the weights", err) < 0 || check_type(b, GG_TYPE_F32, "the rows", err) < 0) return -1;
    if (a->ne[1] != b->ne[1]) FAIL("row counts %lld and %lld differ", (long long)a->ne[1], (long long)b->ne[1]);
    y->type = GG_TYPE_F32;
    return check_groups(a, b, err) < 0 ? -1 : gg_set_ne(y, ne, err);
}

/* ---------------------------------------------------------------- layout */

static int32_t check_nelements(const gg_tensor *a, const gg_tensor *y, gg_error *err)
{
    if (gg_nelements(a) != gg_nelements(y))
        FAIL("%lld elements cannot take a shape of %lld", (long long)gg_nelements(a), (long long)gg_nelements(y));
    return 0;
}

int32_t gg_shape_cont(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (y->ne[0] == 0) return like(y, a, err);
    y->type = a->type;
    return gg_set_ne(y, y->ne, err) < 0 ? -1 : check_nelements(a, y, err);
}

int32_t gg_shape_reshape(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (!gg_is_contiguous(a)) FAIL("the operand is not contiguous; put cont() before");
    y->type = a->type;
    return gg_set_ne(y, y->ne, err) < 0 ? -1 : check_nelements(a, y, err);
}

/* offset + span, checked against overflow and against the memory of the root. */
static int32_t check_window(const gg_graph *g, const gg_tensor *a, const gg_tensor *y, int64_t offset, gg_error *err)
{
    const gg_tensor *root = gg_at(g, a->root);
    int64_t end, extent, size = gg_type_size(y->type);
    if (offset < 0 || offset % size)
        FAIL_AS("BadView", "offset %lld is not a multiple of %lld", (long long)offset, (long long)size);
    if (!gg_add_i64(offset, a->root_offset, &end) || !gg_add_i64(end, size, &end))
        FAIL_AS("BadView", "offset %lld overflows", (long long)offset);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        int64_t n = i == 0 ? y->ne[0] / gg_types[y->type].block : y->ne[i];
        if (y->nb[i] < 0 || y->nb[i] % size)
            FAIL_AS("BadView", "stride %lld is not a multiple of the element", (long long)y->nb[i]);
        if (!gg_mul_i64(n - 1, y->nb[i], &extent) || !gg_add_i64(end, extent, &end))
            FAIL_AS("BadView", "strides overflow");
    }
    if (end > gg_span(root))
        FAIL_AS("BadView", "ends at byte %lld of a tensor of %lld", (long long)end, (long long)gg_span(root));
    return 0;
}

int32_t gg_shape_view(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    int64_t nb[GG_MAX_DIMS];
    memcpy(nb, y->nb, sizeof nb);
    y->type = a->type;
    if (gg_set_ne(y, y->ne, err) < 0) return -1;
    if (nb[0] != y->nb[0])
        FAIL_AS("BadView", "stride of dimension 0 is %lld, not the element's size", (long long)nb[0]);
    memcpy(y->nb, nb, sizeof nb);
    y->root_offset = gg_param_i64(y, 0);
    return check_window(g, a, y, y->root_offset, err);
}

static int32_t check_conversion(int32_t from, int32_t to, gg_error *err)
{
    if (from == to || (gg_is_real(from) && (to == GG_TYPE_F32 || gg_types[to].encodes))) return 0;
    return gg_fail_as(err, GG_ERR_UNSUPPORTED, "UnsupportedType", -1, "a copy of %s to %s", gg_types[from].name,
                      gg_types[to].name);
}

/* Rows are whole blocks of a type, and its blocks lie without gaps. */
static int32_t check_block_rows(const gg_tensor *t, const gg_tensor *other, gg_error *err)
{
    const gg_type_info *type = &gg_types[t->type];
    if (type->block == 1) return 0;
    if (t->nb[0] != type->nbytes || other->ne[0] % type->block)
        FAIL("%s is copied from and to rows of whole blocks of %d without gaps", type->name, type->block);
    return 0;
}

int32_t gg_shape_cpy(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *b = source(g, y, 1);
    if (check_conversion(a->type, b->type, err) < 0 || check_nelements(a, b, err) < 0) return -1;
    if (check_block_rows(a, b, err) < 0 || check_block_rows(b, a, err) < 0) return -1;
    y->type = b->type;
    memcpy(y->ne, b->ne, sizeof y->ne);
    memcpy(y->nb, b->nb, sizeof y->nb);
    return 0;
}

int32_t gg_shape_cast(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    int32_t type = gg_param_i32(y, 0);
    if (!gg_is_type(type)) FAIL_AS("BadOpParams", "there is no type %d", type);
    y->type = type;
    if (check_conversion(a->type, type, err) < 0 || gg_set_ne(y, a->ne, err) < 0) return -1;
    return check_block_rows(a, y, err);
}

int32_t gg_shape_view_as(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    y->type = a->type;
    gg_lie_like(y, source(g, y, 1));
    return check_window(g, a, y, y->root_offset, err);
}

int32_t gg_shape_cleared(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    gg_tensor window = {.type = GG_TYPE_F32};
    if (check_type(source(g, y, 0), GG_TYPE_F32, "the operand", err) < 0 || like(y, source(g, y, 0), err) < 0) return -1;
    gg_lie_like(&window, source(g, y, 1));
    if (window.root_offset + gg_span(&window) > gg_span(y)) FAIL("the window does not lie in the operand");
    return 0;
}

int32_t gg_shape_view_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *cotangent = source(g, y, 0), *view = source(g, y, 1), *a = source(g, y, 2), *total = source(g, y, 3);
    gg_tensor window = {.type = GG_TYPE_F32}, whole = {.type = GG_TYPE_F32};
    y->type = GG_TYPE_F32;
    if (check_type(cotangent, GG_TYPE_F32, "the cotangent", err) < 0 || gg_set_ne(y, a->ne, err) < 0) return -1;
    if (!gg_same_shape(cotangent, view)) FAIL("the cotangent does not have the shape of the view");
    if (total && (total->type != GG_TYPE_F32 || !gg_same_shape(total, a))) FAIL("the total is of another shape");
    gg_lie_like(&window, view);
    gg_lie_like(&whole, a);
    int64_t offset = window.root_offset - whole.root_offset;
    if (!gg_is_contiguous(a) || offset < 0 || offset + gg_span(&window) > gg_span(y))
        return gg_fail(err, GG_ERR_UNSUPPORTED, -1,
                       "a view of or beyond a tensor with gaps has no gradient; put cont() between");
    return 0;
}

/* Elements of a block stay in dimension 0. */
static int32_t check_blocks(const gg_tensor *y, bool keeps_first, gg_error *err)
{
    if (keeps_first || gg_types[y->type].block == 1) return 0;
    return gg_fail_as(err, GG_ERR_UNSUPPORTED, "UnsupportedType", -1, "blocks of %s cannot be taken apart",
                      gg_types[y->type].name);
}

static int32_t check_axes(const gg_tensor *y, gg_error *err)
{
    uint32_t seen = 0;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        int32_t axis = gg_param_i32(y, i);
        if (axis < 0 || axis >= GG_MAX_DIMS) FAIL_AS("BadOpParams", "axis %d is not in 0..3", axis);
        seen |= 1u << axis;
    }
    if (seen != 0xf) FAIL_AS("BadOpParams", "the axes are not a permutation");
    return 0;
}

int32_t gg_shape_permute(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (check_axes(y, err) < 0) return -1;
    y->type = a->type;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        y->ne[gg_param_i32(y, i)] = a->ne[i];
        y->nb[gg_param_i32(y, i)] = a->nb[i];
    }
    return check_blocks(y, gg_param_i32(y, 0) == 0, err);
}

int32_t gg_shape_permute_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (check_axes(y, err) < 0) return -1;
    y->type = a->type;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        y->ne[i] = a->ne[gg_param_i32(y, i)];
        y->nb[i] = a->nb[gg_param_i32(y, i)];
    }
    return 0;
}

int32_t gg_shape_transpose(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    y->type = a->type;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        int from = i < 2 ? 1 - i : i;
        y->ne[i] = a->ne[from];
        y->nb[i] = a->nb[from];
    }
    return check_blocks(y, false, err);
}

int32_t gg_shape_concat(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *b = source(g, y, 1);
    int32_t dim = gg_param_i32(y, 0);
    int64_t ne[GG_MAX_DIMS];
    if (check_type(b, a->type, "the operands", err) < 0) return -1;
    if (dim < 0 || dim >= GG_MAX_DIMS) FAIL_AS("BadOpParams", "dimension %d is not in 0..3", dim);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        if (i != dim && a->ne[i] != b->ne[i])
            FAIL("sizes %lld and %lld of dimension %d differ", (long long)a->ne[i], (long long)b->ne[i], i);
        ne[i] = i == dim ? a->ne[i] + b->ne[i] : a->ne[i];
    }
    y->type = a->type;
    return gg_set_ne(y, ne, err);
}

int32_t gg_shape_part(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    int32_t dim = gg_param_i32(y, 0);
    y->type = a->type;
    if (dim < -1 || dim >= GG_MAX_DIMS) FAIL_AS("BadOpParams", "dimension %d is not in -1..3", dim);
    if (gg_set_ne(y, y->ne, err) < 0) return -1;
    for (int i = 0; i < GG_MAX_DIMS; i++)
        if (y->ne[i] > a->ne[i]) FAIL("the shape asked for is no part of the operand");
    memcpy(y->nb, a->nb, sizeof y->nb);
    y->root_offset = dim < 0 ? 0 : (a->ne[dim] - y->ne[dim]) * a->nb[dim];
    return 0;
}

/* A given size, none of which is less than the operand's. */
static int32_t check_grows(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (gg_shape_sized(g, y, err) < 0) return -1;
    for (int i = 0; i < GG_MAX_DIMS; i++)
        if (y->ne[i] < a->ne[i])
            FAIL("size %lld of dimension %d is less than the operand's %lld", (long long)y->ne[i], i,
                 (long long)a->ne[i]);
    return 0;
}

int32_t gg_shape_pad(const gg_graph *g, gg_tensor *y, gg_error *err) { return check_grows(g, y, err); }

int32_t gg_shape_upscale(const gg_graph *g, gg_tensor *y, gg_error *err) { return check_grows(g, y, err); }

int32_t gg_shape_upscale_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (gg_shape_sized(g, y, err) < 0) return -1;
    for (int i = 0; i < GG_MAX_DIMS; i++)
        if (y->ne[i] > a->ne[i]) FAIL("the shape asked for is larger than the operand");
    return 0;
}

int32_t gg_shape_diag(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    const int64_t ne[GG_MAX_DIMS] = {a->ne[0], a->ne[0], a->ne[2], a->ne[3]};
    if (a->ne[1] != 1) FAIL("the operand has %lld rows, not 1", (long long)a->ne[1]);
    y->type = GG_TYPE_F32;
    return check_f32(g, y, err) < 0 ? -1 : gg_set_ne(y, ne, err);
}

int32_t gg_shape_diagonal(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    const int64_t ne[GG_MAX_DIMS] = {a->ne[0], 1, a->ne[2], a->ne[3]};
    if (a->ne[0] != a->ne[1]) FAIL("matrices of %lld rows and %lld columns", (long long)a->ne[1], (long long)a->ne[0]);
    if (like(y, a, err) < 0 || gg_set_ne(y, ne, err) < 0) return -1;
    memcpy(y->nb, a->nb, sizeof y->nb);
    y->nb[0] += a->nb[1];
    return 0;
}

/* Rows like those of b from `offset` on, `nb` bytes apart, in a dense a: inside it, and each element once. */
static int32_t check_set(const gg_tensor *y, const gg_tensor *a, const gg_tensor *b, gg_error *err)
{
    enum { NB1 = 0, OFFSET = 3, MAX_OFFSET = 1 << 30 };
    int32_t offset = gg_param_i32(y, OFFSET);
    int64_t row = b->ne[0] * 4, end = offset + row, extent; /* row: bytes that the dimensions before take */
    if (offset < 0 || offset >= MAX_OFFSET || offset % 4)
        FAIL_AS("BadOpParams", "offset %d is not a multiple of 4 in 0..2^30", offset);
    for (int i = 1; i < GG_MAX_DIMS; i++) {
        int64_t nb = gg_param_i32(y, NB1 + i - 1);
        if (nb < 0 || nb % 4) FAIL_AS("BadOpParams", "stride %lld is not a multiple of 4 bytes", (long long)nb);
        if (b->ne[i] == 1) continue;
        if (nb < row)
            FAIL_AS("BadOpParams", "stride %lld of dimension %d is less than the %lld bytes before", (long long)nb, i,
                    (long long)row);
        if (!gg_mul_i64(b->ne[i] - 1, nb, &extent) || !gg_add_i64(end, extent, &end)) FAIL("strides overflow");
        row += extent;
    }
    if (end > gg_nelements(a) * 4)
        FAIL("the window ends at byte %lld of an operand of %lld", (long long)end, (long long)gg_nelements(a) * 4);
    return 0;
}

int32_t gg_shape_set(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    enum { INPLACE = 4 }; /* whether ggml writes the result over a; import.c makes a copy of that */
    const gg_tensor *a = source(g, y, 0);
    if (gg_param_i32(y, INPLACE) != 0 && gg_param_i32(y, INPLACE) != 1)
        FAIL_AS("BadOpParams", "inplace is %d, neither 0 nor 1", gg_param_i32(y, INPLACE));
    return check_f32(g, y, err) < 0 || check_set(y, a, source(g, y, 1), err) < 0 ? -1 : like(y, a, err);
}

int32_t gg_shape_window(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    if (gg_shape_sized(g, y, err) < 0 || check_set(y, a, y, err) < 0) return -1;
    for (int i = 1; i < GG_MAX_DIMS; i++) y->nb[i] = gg_param_i32(y, i - 1);
    y->root_offset = gg_param_i32(y, 3);
    return 0;
}

int32_t gg_shape_get_rows(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0), *ids = source(g, y, 1);
    const int64_t ne[GG_MAX_DIMS] = {a->ne[0], ids->ne[0], ids->ne[1], ids->ne[2]};
    bool is_integer = a->type == GG_TYPE_I32;
    if ((!is_integer && check_weights(a, "the table", err) < 0) || check_type(ids, GG_TYPE_I32, "ids", err) < 0) return -1;
    if (a->ne[2] != ids->ne[1] || a->ne[3] != 1 || ids->ne[3] != 1)
        FAIL("%lld tables for %lld lists of ids", (long long)a->ne[2], (long long)ids->ne[1]);
    y->type = is_integer ? GG_TYPE_I32 : GG_TYPE_F32;
    return gg_set_ne(y, ne, err);
}

int32_t gg_shape_get_rows_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *cotangent = source(g, y, 0), *ids = source(g, y, 1);
    if (check_type(cotangent, GG_TYPE_F32, "the cotangent", err) < 0) return -1;
    if (check_type(ids, GG_TYPE_I32, "ids", err) < 0) return -1;
    y->type = GG_TYPE_F32;
    if (gg_set_ne(y, y->ne, err) < 0) return -1;
    if (source(g, y, 2) && !gg_same_shape(source(g, y, 2), y)) FAIL("the total is of another shape");
    if (cotangent->ne[0] != y->ne[0] || cotangent->ne[1] != ids->ne[0] || cotangent->ne[2] != ids->ne[1] ||
        cotangent->ne[3] != ids->ne[2] || y->ne[2] != ids->ne[1] || ids->ne[3] != 1)
        FAIL("the cotangent is not that of rows of this table");
    return 0;
}

/* ---------------------------------------------------------------- order */

int32_t gg_shape_argsort(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    int32_t order = gg_param_i32(y, 0);
    if (check_f32(g, y, err) < 0) return -1;
    if (order != 0 && order != 1) FAIL_AS("BadOpParams", "order %d is neither 0 (rising) nor 1 (falling)", order);
    if (source(g, y, 0)->ne[0] > INT32_MAX) FAIL("rows of more than 2^31 elements");
    y->type = GG_TYPE_I32;
    return gg_set_ne(y, source(g, y, 0)->ne, err);
}

int32_t gg_shape_argmax(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *a = source(g, y, 0);
    const int64_t ne[GG_MAX_DIMS] = {a->ne[1], 1, 1, 1};
    if (check_f32(g, y, err) < 0) return -1;
    if (a->ne[2] != 1 || a->ne[3] != 1) FAIL("the operand is not a matrix");
    if (a->ne[0] > INT32_MAX) FAIL("rows of more than 2^31 elements");
    y->type = GG_TYPE_I32;
    return gg_set_ne(y, ne, err);
}

/* ---------------------------------------------------------------- made of numbers */

int32_t gg_shape_arange(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    enum { START, STOP, STEP, MAX_N = INT32_MAX };
    (void)g;
    if (check_finite(y, START, STEP, err) < 0) return -1;
    float start = gg_param_f32(y, START), stop = gg_param_f32(y, STOP), step = gg_param_f32(y, STEP);
    float n = ceilf((stop - start) / step); /* in float32, as ggml counts */
    if (!(n >= 1 && n <= (float)MAX_N))
        FAIL_AS("BadOpParams", "no %g to %g in steps of %g", (double)start, (double)stop, (double)step);
    const int64_t ne[GG_MAX_DIMS] = {(int64_t)n, 1, 1, 1};
    y->type = GG_TYPE_F32;
    return gg_set_ne(y, ne, err);
}

static int32_t check_embedding(const gg_graph *g, const gg_tensor *y, const gg_tensor *timesteps, gg_error *err)
{
    enum { DIM, MAX_PERIOD };
    if (check_f32(g, y, err) < 0) return -1;
    if (gg_nelements(timesteps) != timesteps->ne[0]) FAIL("the timesteps are not a vector");
    if (gg_param_i32(y, DIM) < 2 || gg_param_i32(y, DIM) == INT32_MAX || gg_param_i32(y, MAX_PERIOD) < 1)
        FAIL_AS("BadOpParams", "dim %d or max_period %d is too small", gg_param_i32(y, DIM),
                gg_param_i32(y, MAX_PERIOD));
    return 0;
}

/* Columns of an embedding: an odd dim is rounded up. */
static int64_t embedding_dim(const gg_tensor *y) { return gg_param_i32(y, 0) + gg_param_i32(y, 0) % 2; }

int32_t gg_shape_timestep_embedding(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *timesteps = source(g, y, 0);
    if (check_embedding(g, y, timesteps, err) < 0) return -1;
    const int64_t ne[GG_MAX_DIMS] = {embedding_dim(y), timesteps->ne[0], 1, 1};
    y->type = GG_TYPE_F32;
    return gg_set_ne(y, ne, err);
}

int32_t gg_shape_timestep_embedding_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *cotangent = source(g, y, 0), *timesteps = source(g, y, 1);
    if (check_embedding(g, y, timesteps, err) < 0) return -1;
    if (cotangent->ne[0] != embedding_dim(y) || cotangent->ne[1] != timesteps->ne[0])
        FAIL("the cotangent is not that of an embedding of these sizes");
    return like(y, timesteps, err);
}

/* ---------------------------------------------------------------- loss */

int32_t gg_shape_soft_cross_entropy(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    if (!gg_same_shape(source(g, y, 0), source(g, y, 1))) FAIL("logits and labels differ in shape");
    y->type = GG_TYPE_F32;
    return check_f32(g, y, err) < 0 ? -1 : gg_set_ne(y, ONE, err);
}

int32_t gg_shape_soft_cross_entropy_back(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    int logits = y->op == GG_OP_SOFT_CROSS_ENTROPY_BACK ? 1 : 0, cotangent = y->op == GG_OP_SOFT_CROSS_ENTROPY_BACK ? 0 : 2;
    if (check_f32(g, y, err) < 0) return -1;
    if (!gg_same_shape(source(g, y, logits), source(g, y, logits + 1))) FAIL("logits and labels differ in shape");
    if (gg_nelements(source(g, y, cotangent)) != 1) FAIL("the cotangent is not one number");
    return like(y, source(g, y, logits), err);
}

static int32_t check_targets(const gg_tensor *targets, const gg_tensor *weights, int64_t n_rows, gg_error *err)
{
    if (check_type(targets, GG_TYPE_I32, "targets", err) < 0) return -1;
    if (check_type(weights, GG_TYPE_F32, "weights", err) < 0) return -1;
    if (gg_nelements(targets) != n_rows || gg_nelements(weights) != n_rows)
        FAIL("%lld targets and %lld weights for %lld rows", (long long)gg_nelements(targets),
             (long long)gg_nelements(weights), (long long)n_rows);
    return 0;
}

int32_t gg_shape_cross_entropy(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *logits = source(g, y, 0);
    if (check_type(logits, GG_TYPE_F32, "logits", err) < 0) return -1;
    y->type = GG_TYPE_F32;
    if (check_targets(source(g, y, 1), source(g, y, 2), gg_nrows(logits), err) < 0) return -1;
    return gg_set_ne(y, ONE, err);
}

int32_t gg_shape_linear_cross_entropy(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    const gg_tensor *w = source(g, y, 0), *x = source(g, y, 1), *dw = source(g, y, 4), *dx = source(g, y, 5);
    if (check_weights(w, "w", err) < 0 || check_type(x, GG_TYPE_F32, "x", err) < 0) return -1;
    if (w->ne[0] != x->ne[0] || w->ne[2] != 1 || w->ne[3] != 1) FAIL("w is not a matrix over the rows of x");
    if ((dw && !dx) || (dw && !gg_same_shape(w, dw)) || (dx && !gg_same_shape(x, dx)))
        FAIL("dw and dx do not have the shapes of w and x");
    if (check_targets(source(g, y, 2), source(g, y, 3), gg_nrows(x), err) < 0) return -1;
    y->type = GG_TYPE_F32;
    return gg_set_ne(y, ONE, err);
}

/* ---------------------------------------------------------------- optimiser */

int32_t gg_shape_opt_step_adamw(const gg_graph *g, gg_tensor *y, gg_error *err)
{
    enum { ITERATION = 0, ALPHA = 2, BETA1, BETA2, EPS, WEIGHT_DECAY };
    if (check_finite(y, ALPHA, WEIGHT_DECAY, err) < 0) return -1;
    if (gg_param_i64(y, ITERATION) < 1) FAIL_AS("BadOpParams", "update %lld", (long long)gg_param_i64(y, ITERATION));
    if (gg_param_f32(y, ALPHA) <= 0) FAIL_AS("BadOpParams", "the rate is not positive");
    for (int word = BETA1; word <= WEIGHT_DECAY; word++)
        if (gg_param_f32(y, word) < 0 || (word != EPS && gg_param_f32(y, word) > 1))
            FAIL_AS("BadOpParams", "parameter %g in word %d is out of range", (double)gg_param_f32(y, word), word);
    return gg_shape_same(g, y, err);
}
