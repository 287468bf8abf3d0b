/* graph.h - the graph's own structure: an append-only array of tensors and the memory of its leafs.
 *
 *     id    0        1        2         3         4
 *        [ leaf ] [ leaf ] [ param ] [ node ] [ node ] ...      src ids are always smaller than the node's id
 *
 * Views record their root, so that no pass has to walk a chain. Used by every pass; nobody outside the runtime.
 */
#ifndef GG_GRAPH_H
#define GG_GRAPH_H

#include "error.h"
#include "work.h"

/* Memory of one leaf, shared by the graphs derived from one another. */
typedef struct gg_buffer {
    _Atomic int64_t n_refs; /* threads may free graphs that share it */
    char           *bytes;  /* inside block, GG_ALIGN-aligned; or the caller's, aligned for its type */
    char           *block;  /* NULL: the bytes are the caller's */
} gg_buffer;

struct gg_graph {
    int32_t     n_tensors;
    int32_t     capacity;
    gg_tensor  *tensors;
    gg_buffer **buffers; /* per tensor: a leaf's memory once it was asked for, else NULL */
    int32_t    *grads;   /* per tensor: id of its gradient, or -1 */
    int32_t    *writers; /* per root: the last node that writes its memory; 0: none */
    bool        has_writes;
    int32_t     seed;    /* the leaf that gg_grad started from, the number 1; 0: none */
};

/* What the generator knows of an op (gg_op_info in the generated ops.c). */
typedef int32_t gg_shape_rule(const gg_graph *g, gg_tensor *y, gg_error *err);

/* Where a rule appends its nodes. A failed step fills err and returns -1; every later one just returns -1. */
typedef struct gg_builder {
    gg_graph *g;
    gg_error *err;
    bool      failed;
} gg_builder;

/* Fill grad[k] with the cotangent of source k where want[k]; -1 where the rule has none. */
typedef void gg_vjp_rule(gg_builder *b, int32_t y, int32_t g, const bool *want, int32_t *grad);

typedef struct gg_op_info {
    const char    *name;
    int32_t        n_src;     /* source slots */
    uint32_t       optional;  /* bit k: source k may be absent */
    uint32_t       rows;      /* bit k: source k needs a contiguous last axis */
    uint32_t       dense;     /* bit k: source k must be contiguous */
    uint32_t       writes;    /* bit k: the kernel writes source k, whose elements lie apart, and apart from other sources' */
    uint32_t       layouts;   /* bit k: of source k only the place in memory matters */
    uint32_t       decoded;   /* bit k: a file may hold source k in any type with a decoder */
    int32_t        result;    /* the source whose type the result may have in a file, GG_RESULT_F16, or -1 */
    uint32_t       words;     /* bit w: op_params word w is a parameter */
    uint32_t       finite_words; /* bit w: a float that is neither infinite nor NaN */
    bool           sized;     /* ne is given */
    int32_t        view;      /* the source in whose memory the result lies, or -1 */
    int32_t        inplace;   /* the source whose memory the result may take when that dies there, or -1 */
    bool           elementwise; /* reads an element of each source for the last time before it writes the result's in its
                                 * place: a source whose memory the result takes may be another source too */
    bool           by_row;     /* a row of the result follows from the same row of each source */
    bool           no_gradient;
    bool           has_kernel;
    bool           exact;      /* the file shows another op of the same ggml_op, which approximates or stands for it */
    int32_t        ggml;       /* the op as a file shows it: for an exact form, the row it refines; else its own */
    gg_shape_rule *shape;
    gg_work       *work;
} gg_op_info;

/* Generated; GG_OP_COUNT rows each. */
extern const gg_op_info   gg_ops[];
extern gg_vjp_rule *const gg_vjps[]; /* NULL: no derivative */

enum { GG_RESULT_F16 = GG_MAX_SRC }; /* the result may be half precision in a file */

enum { GG_MAX_TENSORS = 1 << 20 };

static inline gg_tensor *gg_at(const gg_graph *g, int32_t id) { return &g->tensors[id]; }
static inline bool gg_is_leaf(const gg_tensor *t) { return t->op == 0; }

gg_buffer *gg_buffer_new(int64_t nbytes);
gg_buffer *gg_buffer_at(char *bytes); /* somebody else's */
void gg_buffer_release(gg_buffer *buffer);
int32_t gg_reserve(gg_graph *g, int32_t n, gg_error *err); /* room for n tensors in all */
int32_t gg_append(gg_graph *g, const gg_tensor *t, gg_error *err);
/* Append op y->op on y->src, making sources contiguous where the op needs it; ne may be NULL. For rules and passes. */
int32_t gg_build(gg_builder *b, int32_t op, int32_t n_src, const int32_t *src, const int32_t *op_params,
                 const int64_t *ne, const int64_t *nb);
int32_t gg_contiguous(gg_builder *b, int32_t id);
/* Whether tensor t lies as the kernel of op reads its source k: without gaps, or at least in every row. */
bool gg_fits(const gg_tensor *t, int32_t op, int k);
/* id, the result of a step that was not made by gg_build. */
static inline int32_t gg_made(gg_builder *b, int32_t id) { return b->failed |= id < 0, id; }
/* A step without an operand that it needs: because an earlier step failed, or else the error says so. Always -1. */
int32_t gg_missing(gg_builder *b, int32_t op);
/* Whether node t writes the memory of its source k. */
bool gg_writes(const gg_tensor *t, int k);
/* The first node after `since` and before `until` that writes memory of tensor id, or -1. */
int32_t gg_overwriter(const gg_graph *g, int32_t id, int32_t since, int32_t until);
/* Neither what source k held before the op writes it has influence on the result, nor the values of one whose place
 * alone matters. */
bool gg_has_influence(int32_t op, int k);
/* For each of the first n tensors: whether it depends on a parameter in a way that has a derivative. */
void gg_find_trained(const gg_graph *g, int32_t n, bool *trained);

#endif
