/* shape.h - the shape rules by the names `shape=` gives in the op table. */
#ifndef GG_SHAPE_H
#define GG_SHAPE_H

#include "graph.h"

gg_shape_rule gg_shape_same, gg_shape_first, gg_shape_second, gg_shape_broadcast, gg_shape_gain, gg_shape_scalar,
    gg_shape_row_scalars, gg_shape_sized, gg_shape_repeat, gg_shape_repeat_back, gg_shape_mul_mat,
    gg_shape_mul_mat_back, gg_shape_out_prod, gg_shape_cont, gg_shape_reshape, gg_shape_view, gg_shape_view_back,
    gg_shape_permute, gg_shape_permute_back, gg_shape_transpose, gg_shape_get_rows, gg_shape_get_rows_back,
    gg_shape_soft_max, gg_shape_rope, gg_shape_attention, gg_shape_attention_back, gg_shape_cached_attention,
    gg_shape_cross_entropy, gg_shape_linear_cross_entropy;

#endif
