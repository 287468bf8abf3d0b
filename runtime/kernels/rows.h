/* rows.h - where a row of a tensor lies. Rows are counted through dimensions 1, 2 and 3. Used by kernels. */
#ifndef GG_ROWS_H
#define GG_ROWS_H

#include "../src/kernel.h"

/* Indices along dimensions 1 to 3. */
typedef struct gg_place {
    int64_t i1, i2, i3;
} gg_place;

static inline gg_place gg_place_of(const int64_t *ne, int64_t row)
{
    return (gg_place){row % ne[1], row / ne[1] % ne[2], row / ne[1] / ne[2]};
}

/* Bytes from the first row to row `row`, in strides nb. */
static inline int64_t gg_row_offset(const int64_t *ne, const int64_t *nb, int64_t row)
{
    gg_place p = gg_place_of(ne, row);
    return p.i1 * nb[1] + p.i2 * nb[2] + p.i3 * nb[3];
}

/* The row at a place of what begins at `data`. One addition after the other: of a sum of offsets, compilers put off the
 * last part to where the row is read. */
static inline const char *gg_row_at(const char *data, const int64_t *nb, gg_place p)
{
    return data + p.i1 * nb[1] + p.i2 * nb[2] + p.i3 * nb[3];
}

static inline const float *gg_source_row_at(const gg_task *task, int source, gg_place p)
{
    return (const float *)gg_row_at(task->src_data[source], task->src[source]->nb, p);
}

/* The source's row at the place of y's row. */
static inline const float *gg_source_row(const gg_task *task, int source, int64_t row)
{
    return gg_source_row_at(task, source, gg_place_of(task->y->ne, row));
}

/* y is dense. */
static inline float *gg_y_row(const gg_task *task, int64_t row) { return (float *)task->y_data + row * task->y->ne[0]; }

#endif
