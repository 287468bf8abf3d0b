/* plan.h - where every tensor lives: liveness of each root, then offsets in one arena. Used by exec.c. */
#ifndef GG_PLAN_H
#define GG_PLAN_H

#include "graph.h"

typedef struct gg_plan {
    int64_t *offsets;      /* per tensor: bytes into the arena, -1 for leafs and their views */
    int32_t *lasts;        /* per tensor: the node that reads its memory last; n_tensors: kept to the end of the run */
    int64_t  arena_nbytes;
    int64_t  live_nbytes;  /* the largest sum of buffers that live at once: what no arena can go below */
    int64_t  work_nbytes;  /* the largest scratch any node asks for */
} gg_plan;

int32_t gg_plan_make(gg_plan *plan, const gg_graph *g, int n_threads, gg_error *err);
void gg_plan_free(gg_plan *plan);

#endif
