/* dialect.h - how one version of ggml numbers and lays out a file. Generated from ggmlgraph/dialect.py into ops.c. */
#ifndef GG_DIALECT_H
#define GG_DIALECT_H

#include "base.h"

typedef struct gg_file_op {
    const char *name; /* as ggml calls it */
    int32_t     op;   /* row of gg_ops, or -1: known to ggml, not supported here */
} gg_file_op;

typedef struct gg_dialect {
    const char       *name;
    uint32_t          magic, version;
    int32_t           n_ops, unary_op; /* unary_op: the number whose op_params[0] indexes `unaries` */
    const gg_file_op *ops;
    int32_t           n_unaries;
    const gg_file_op *unaries;
} gg_dialect;

extern const gg_dialect gg_dialect_v2;

#endif
