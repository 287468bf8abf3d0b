/* shape.h - what shape rules share. Every rule exists once; the tracer, the importer and the gradient pass all come
 * through them (gg_node). Used by shape.c and shape_windows.c; gg_ops.h declares the rules.
 *
 * A rule gets the new tensor y with op, sources, op_params and, for sized ops, ne (views: nb) filled in. It checks
 * the sources and sets y's type, ne, nb. Sizes in messages are ggml's, dimension 0 fastest.
 */
#ifndef GG_SHAPE_H
#define GG_SHAPE_H

#include <math.h>

#include "gg_ops.h"

#define FAIL(...) return gg_fail(err, GG_ERR_SHAPE, -1, __VA_ARGS__)
#define FAIL_AS(code, ...) return gg_fail_as(err, GG_ERR_SHAPE, code, -1, __VA_ARGS__)

static inline const gg_tensor *source(const gg_graph *g, const gg_tensor *y, int k)
{
    return y->src[k] < 0 ? NULL : gg_at(g, y->src[k]);
}

static inline int32_t like(gg_tensor *y, const gg_tensor *a, gg_error *err)
{
    y->type = a->type;
    return gg_set_ne(y, a->ne, err);
}

static inline int32_t check_type(const gg_tensor *t, int32_t type, const char *what, gg_error *err)
{
    if (t->type == type) return 0;
    bool ours = t->type == GG_TYPE_F32 || t->type == GG_TYPE_I32 || t->type == GG_TYPE_I8; /* so it is a mistake */
    return gg_fail_as(err, ours ? GG_ERR_SHAPE : GG_ERR_UNSUPPORTED, ours ? "BadShape" : "UnsupportedType", -1,
                      "%s must be %s, not %s", what, type == GG_TYPE_F32 ? "float32" : "int32",
                      gg_types[t->type].name);
}

/* What kernels read through a decoder: any type that has one, rows without gaps; or float32, lying as it may. */
static inline int32_t check_weights(const gg_tensor *t, const char *what, gg_error *err)
{
    if (t->type == GG_TYPE_F32) return 0;
    if (!gg_types[t->type].decodes) return check_type(t, GG_TYPE_F32, what, err);
    if (gg_is_row_contiguous(t)) return 0;
    return gg_fail_as(err, GG_ERR_UNSUPPORTED, "UnsupportedType", -1, "%s of %s must have contiguous rows", what,
                      gg_types[t->type].name);
}

static inline int32_t check_f32(const gg_graph *g, const gg_tensor *y, gg_error *err)
{
    for (int k = 0; k < y->n_src; k++)
        if (y->src[k] >= 0 && check_type(source(g, y, k), GG_TYPE_F32, "operands", err) < 0) return -1;
    return 0;
}

static inline bool tiles(const gg_tensor *small, const gg_tensor *large)
{
    for (int i = 0; i < GG_MAX_DIMS; i++)
        if (large->ne[i] % small->ne[i] != 0) return false;
    return true;
}

static inline int32_t check_finite(const gg_tensor *y, int first_word, int last_word, gg_error *err)
{
    for (int w = first_word; w <= last_word; w++)
        if (!isfinite(gg_param_f32(y, w))) FAIL_AS("BadOpParams", "parameter in word %d is not a finite number", w);
    return 0;
}

#endif
