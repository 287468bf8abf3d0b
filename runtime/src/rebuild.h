/* rebuild.h - copying a graph tensor by tensor while something changes: sizes (resize.c) or structure (order.c, fuse.c,
 * recompute.c). */
#ifndef GG_REBUILD_H
#define GG_REBUILD_H

#include "graph.h"

typedef struct gg_rebuild {
    const gg_graph *in;
    gg_graph       *out;
    int32_t        *map; /* id in `in` -> id in `out`, -1 before it is copied */
    gg_error       *err;
} gg_rebuild;

bool gg_rebuild_begin(gg_rebuild *r, const gg_graph *in, gg_error *err);
/* Ends the rebuild: the new graph, with gradients noted, or NULL (and everything freed) unless ok. */
gg_graph *gg_rebuild_end(gg_rebuild *r, bool ok);
/* Copy a leaf; it shares the old one's memory if its size stays. ne NULL: unchanged. */
int32_t gg_copy_leaf(gg_rebuild *r, int32_t id, const int64_t *ne);
/* Append a node like t, a tensor of `in`, on sources `src` of `out`. */
int32_t gg_copy_node(gg_rebuild *r, const gg_tensor *t, const int32_t *src);
/* Note that old `id` is now `copy`, which takes over its name and flags. Returns copy. */
int32_t gg_copied(gg_rebuild *r, int32_t id, int32_t copy);

#endif
