/* tensor.h - questions about one tensor's layout. Used by shape rules, passes and kernels alike. */
#ifndef GG_TENSOR_H
#define GG_TENSOR_H

#include <string.h>

#include "base.h"

/* An element type: `block` elements in `nbytes` bytes. Strides of dimension 0 count blocks, those of others bytes of
 * whole blocks. Generated from ggmlgraph/table/dialect.py. */
typedef struct gg_type_info {
    const char *name;   /* NULL: no type has this number */
    int32_t     block, nbytes;
    bool        decodes; /* kernels read it as float32 where they say so */
    bool        encodes; /* float32 is copied into it */
} gg_type_info;

extern const gg_type_info gg_types[]; /* by GG_TYPE_* */
extern const int32_t      gg_n_types;

static inline bool gg_is_type(int32_t type) { return type >= 0 && type < gg_n_types && gg_types[type].name; }

/* Bytes of a block, which for most types is an element. */
static inline int64_t gg_type_size(int32_t type) { return gg_types[type].nbytes; }

/* Bytes of n elements that lie without gaps, whole blocks. */
static inline int64_t gg_row_nbytes(int32_t type, int64_t n) { return n / gg_types[type].block * gg_types[type].nbytes; }

/* Bytes that as many elements of type `to` take as `nbytes` hold of type `from`, whole blocks. */
static inline int64_t gg_as_type(int64_t nbytes, int32_t from, int32_t to)
{
    return nbytes / gg_types[from].nbytes * gg_types[from].block / gg_types[to].block * gg_types[to].nbytes;
}

/* A real number, in whichever form: what a cotangent is for. */
static inline bool gg_is_real(int32_t type) { return type == GG_TYPE_F32 || gg_types[type].decodes; }

static inline int64_t gg_nelements(const gg_tensor *t) { return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; }

static inline int64_t gg_nrows(const gg_tensor *t) { return t->ne[1] * t->ne[2] * t->ne[3]; }

/* Bytes from the first element to the end of the last, in the tensor's own layout. */
static inline int64_t gg_span(const gg_tensor *t)
{
    int64_t span = gg_type_size(t->type) + (t->ne[0] / gg_types[t->type].block - 1) * t->nb[0];
    for (int i = 1; i < GG_MAX_DIMS; i++) span += (t->ne[i] - 1) * t->nb[i];
    return span;
}

static inline bool gg_same_shape(const gg_tensor *a, const gg_tensor *b)
{
    return memcmp(a->ne, b->ne, sizeof a->ne) == 0;
}

/* The last axis (ne[0]) lies without gaps. */
static inline bool gg_is_row_contiguous(const gg_tensor *t)
{
    return t->ne[0] == gg_types[t->type].block || t->nb[0] == gg_type_size(t->type);
}

/* All elements lie in order without gaps; strides of axes of size 1 do not matter. */
static inline bool gg_is_contiguous(const gg_tensor *t)
{
    int64_t stride = gg_row_nbytes(t->type, t->ne[0]);
    for (int i = 1; i < GG_MAX_DIMS; i++) {
        if (t->ne[i] != 1 && t->nb[i] != stride) return false;
        stride *= t->ne[i];
    }
    return gg_is_row_contiguous(t);
}

/* Sizes, strides and place in memory of `like`, for elements of y's type. */
static inline void gg_lie_like(gg_tensor *y, const gg_tensor *like)
{
    memcpy(y->ne, like->ne, sizeof y->ne);
    for (int i = 0; i < GG_MAX_DIMS; i++) y->nb[i] = gg_as_type(like->nb[i], like->type, y->type);
    if (gg_types[like->type].block > 1) y->nb[0] = gg_type_size(y->type);
    y->root_offset = gg_as_type(like->root_offset, like->type, y->type);
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

/* The size and dense strides of t, of the type it has; -1 after filling err where they are none. */
int32_t gg_set_ne(gg_tensor *t, const int64_t *ne, gg_error *err);
/* The first dimension whose size is out of range, or GG_MAX_DIMS. */
int gg_bad_size(const int64_t *ne);

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
