/* tensor.c - the sizes of a tensor, checked, and the strides that follow. See tensor.h. */
#include "tensor.h"

#include "error.h"

#define MAX_NE ((int64_t)1 << 40)

int gg_bad_size(const int64_t *ne)
{
    int i = 0;
    while (i < GG_MAX_DIMS && ne[i] >= 1 && ne[i] <= MAX_NE) i++;
    return i;
}

static void set_dense_strides(gg_tensor *t)
{
    t->nb[0] = gg_type_size(t->type);
    t->nb[1] = gg_row_nbytes(t->type, t->ne[0]);
    for (int i = 2; i < GG_MAX_DIMS; i++) t->nb[i] = t->nb[i - 1] * t->ne[i - 1];
}

int32_t gg_set_ne(gg_tensor *t, const int64_t *ne, gg_error *err)
{
    int64_t n = 1;
    int bad = gg_bad_size(ne);
    if (bad < GG_MAX_DIMS)
        return gg_fail_as(err, GG_ERR_SHAPE, "BadSize", -1, "size %lld of dimension %d is not in 1..2^40",
                          (long long)ne[bad], bad);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        if (!gg_mul_i64(n, ne[i], &n) || n > GG_MAX_ELEMENTS)
            return gg_fail_as(err, GG_ERR_SHAPE, "BadSize", -1, "more than 2^48 elements");
        t->ne[i] = ne[i];
    }
    const gg_type_info *type = &gg_types[t->type];
    if (ne[0] % type->block)
        return gg_fail_as(err, GG_ERR_SHAPE, "BadSize", -1, "rows of %lld are not whole blocks of %d of %s",
                          (long long)ne[0], type->block, type->name);
    set_dense_strides(t);
    return 0;
}
