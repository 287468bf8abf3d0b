/* tensor.h - questions about one tensor's layout. Used by shape rules, passes and kernels alike. */
#ifndef GG_TENSOR_H
#define GG_TENSOR_H

#include <string.h>

#include "base.h"

static inline int64_t gg_type_size(int32_t type)
{
    switch (type) {
    case GG_TYPE_F32: return 4;
    case GG_TYPE_I32: return 4;
    case GG_TYPE_I8: return 1;
    default: return 0;
    }
}

static inline int64_t gg_nelements(const gg_tensor *t) { return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; }

static inline int64_t gg_nrows(const gg_tensor *t) { return t->ne[1] * t->ne[2] * t->ne[3]; }

/* Bytes from the first element to the end of the last, in the tensor's own layout. */
static inline int64_t gg_span(const gg_tensor *t)
{
    int64_t span = gg_type_size(t->type);
    for (int i = 0; i < GG_MAX_DIMS; i++) span += (t->ne[i] - 1) * t->nb[i];
    return span;
}

static inline bool gg_same_shape(const gg_tensor *a, const gg_tensor *b)
{
    return memcmp(a->ne, b->ne, sizeof a->ne) == 0;
}

/* The last axis (ne[0]) lies without gaps. */
static inline bool gg_is_row_contiguous(const gg_tensor *t)
{
    return t->ne[0] == 1 || t->nb[0] == gg_type_size(t->type);
}

/* All elements lie in order without gaps; strides of axes of size 1 do not matter. */
static inline bool gg_is_contiguous(const gg_tensor *t)
{
    int64_t stride = gg_type_size(t->type);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        if (t->ne[i] != 1 && t->nb[i] != stride) return false;
        stride *= t->ne[i];
    }
    return true;
}

/* Whether two tensors may have bytes in common, judged by where each begins and ends. */
static inline bool gg_overlaps(const gg_tensor *a, const gg_tensor *b)
{
    return a->root == b->root && a->root_offset < b->root_offset + gg_span(b) &&
           b->root_offset < a->root_offset + gg_span(a);
}

/* Whether no two elements lie on one another: taken by rising stride, each dimension steps over those before it. */
static inline bool gg_is_injective(const int64_t *ne, const int64_t *nb, int64_t element_nbytes)
{
    bool    taken[GG_MAX_DIMS] = {false};
    int64_t span = element_nbytes; /* bytes from the first element to the end of the last, in the dimensions taken */
    for (int n = 0; n < GG_MAX_DIMS; n++) {
        int next = -1;
        for (int d = 0; d < GG_MAX_DIMS; d++)
            if (!taken[d] && (next < 0 || nb[d] < nb[next])) next = d;
        taken[next] = true;
        if (ne[next] > 1 && nb[next] < span) return false;
        span += (ne[next] - 1) * nb[next];
    }
    return true;
}

static inline int32_t gg_param_i32(const gg_tensor *t, int word) { return t->op_params[word]; }

static inline float gg_param_f32(const gg_tensor *t, int word)
{
    float x;
    memcpy(&x, &t->op_params[word], sizeof x);
    return x;
}

static inline int64_t gg_param_i64(const gg_tensor *t, int word)
{
    int64_t x;
    memcpy(&x, &t->op_params[word], sizeof x);
    return x;
}

#endif
