/* dialect.h - how one version of ggml numbers and lays out a file. Generated from ggmlgraph/table/dialect.py into ops.c;
 * read by import.c.
 */
#ifndef GG_DIALECT_H
#define GG_DIALECT_H

#include "base.h"

/* What a word must be for this dialect and the op table to mean the same: its bits, or one of these. */
enum { GG_ONLY_SIZE_0 = -1, GG_ONLY_SET = -2 }; /* the size of dimension 0; anything but zero */

typedef struct gg_only {
    int32_t word, value;
    int32_t mode; /* only where word 2 is this; -1: anywhere */
} gg_only;

/* Where an op differs from the op table: the file's source k is the table's source src[k], its op_params word w the
 * table's word words[w]; -1: the table does without. */
typedef struct gg_variation {
    int32_t n_src, src[GG_MAX_SRC];       /* sources the op takes at most */
    int32_t n_words, words[GG_N_PARAMS];  /* words that the file has; those behind them are zero */
    int32_t implied[GG_N_PARAMS];         /* values of the table's words that the file does not have */
    int32_t scalar;                       /* the file's source that has one element, or -1 */
    int32_t words_in;                     /* the file's source that holds the words, or -1: they are in op_params */
    int32_t n_only;
    gg_only only[4];
} gg_variation;

typedef struct gg_file_op {
    const char         *name;      /* as ggml calls it */
    int32_t             op;        /* row of gg_ops, or -1: known to ggml, not supported here */
    uint32_t            unread;    /* bit w: a file may have anything in op_params word w */
    const gg_variation *variation; /* NULL: as in the op table */
} gg_file_op;

/* Byte offsets of a record's fields; -1 where the record has no such field. */
typedef struct gg_layout {
    int32_t nbytes, type, op, n_dims, flags, ne, name, op_params, src; /* ne: ne0, nb0, ne1, nb1, ... of 8 bytes each */
} gg_layout;

typedef struct gg_dialect {
    const char       *name;
    uint32_t          magic, version;
    int32_t           header_nbytes;
    gg_layout         leaf, node;
    int32_t           name_nbytes, n_params, n_src; /* n_params in words */
    int32_t           node_base;                    /* what src adds to a node's index; -1: the number of leafs */
    bool              param_nodes;                  /* parameters are nodes, with data */
    bool              eval_padded;                  /* size_eval counts every node's bytes, each padded to 16 */
    int32_t           data_unit;                    /* bytes of data are a multiple of this */
    int32_t           n_types;
    const int32_t    *types;                        /* GG_TYPE_*, or -1 */
    int32_t           n_ops, unary_op;              /* unary_op: the number whose op_params[0] indexes `unaries`, or -1 */
    const gg_file_op *ops;
    int32_t           n_unaries;
    const gg_file_op *unaries;
} gg_dialect;

extern const gg_dialect gg_dialects[];
extern const int32_t    gg_n_dialects;

#endif
