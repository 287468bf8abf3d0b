/* elementwise.h - the driver all ops with a `scalar` formula share, and the macros that make a kernel of a formula.
 *
 * The generated elementwise.c defines gg_formula_NAME per op and instantiates a macro; layout.c makes `repeat` of
 * it. A formula becomes a span function, which maps dense runs of floats; the driver finds the runs. Elements
 * are shared out by number, so threads may meet inside a row: a tail runs the same formula on a padded vector, and
 * the result does not depend on where the cut is. y may lie in the memory of a contiguous first source.
 */
#ifndef GG_ELEMENTWISE_H
#define GG_ELEMENTWISE_H

#include "rows.h"
#include "simd.h"

/* y[i] = formula(a[i * a_step], b[i * b_step]) for i < n; steps are 0 or 1, and one-operand formulas ignore b. */
typedef void gg_span_fn(float *y, const float *a, int64_t a_step, const float *b, int64_t b_step, int64_t n);

typedef gg_vec gg_formula_1(gg_vec a);
typedef gg_vec gg_formula_2(gg_vec a, gg_vec b);

/* The formula is a constant at every call: inlining makes it the body of the loop. */
GG_INLINE void gg_map_1(gg_formula_1 *formula, float *y, const float *a, int64_t n)
{
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(y + i, formula(gg_load(a + i)));
    if (i < n) gg_store_n(y + i, formula(gg_load_n(a + i, n - i)), n - i);
}

GG_INLINE void gg_map_2(gg_formula_2 *formula, float *y, const float *a, const float *b, int64_t n)
{
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(y + i, formula(gg_load(a + i), gg_load(b + i)));
    if (i < n) gg_store_n(y + i, formula(gg_load_n(a + i, n - i), gg_load_n(b + i, n - i)), n - i);
}

GG_INLINE void gg_map_2_scalar(gg_formula_2 *formula, float *y, const float *a, gg_vec b, int64_t n)
{
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(y + i, formula(gg_load(a + i), b));
    if (i < n) gg_store_n(y + i, formula(gg_load_n(a + i, n - i), b), n - i);
}

GG_INLINE void gg_map_scalar_2(gg_formula_2 *formula, float *y, gg_vec a, const float *b, int64_t n)
{
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(y + i, formula(a, gg_load(b + i)));
    if (i < n) gg_store_n(y + i, formula(a, gg_load_n(b + i, n - i)), n - i);
}

static inline void gg_fill(float *y, gg_vec x, int64_t n)
{
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(y + i, x);
    if (i < n) gg_store_n(y + i, x, n - i);
}

/* `flatten` inlines the formula, however long, at each of its calls. */
#define GG_SPAN(name)                                                                                                  \
    __attribute__((flatten)) static void gg_span_##name(float *y, const float *a, int64_t a_step, const float *b,      \
                                                        int64_t b_step, int64_t n)

#define GG_SPAN_2(name, formula)                                                                                       \
    GG_SPAN(name)                                                                                                      \
    {                                                                                                                  \
        if (a_step == 0 && b_step == 0) gg_fill(y, formula(gg_splat(a[0]), gg_splat(b[0])), n);                        \
        else if (a_step == 0) gg_map_scalar_2(formula, y, gg_splat(a[0]), b, n);                                       \
        else if (b_step == 0) gg_map_2_scalar(formula, y, a, gg_splat(b[0]), n);                                       \
        else gg_map_2(formula, y, a, b, n);                                                                            \
    }

#define GG_ELEMENTWISE_1(name)                                                                                         \
    GG_SPAN(name)                                                                                                      \
    {                                                                                                                  \
        (void)b, (void)b_step;                                                                                         \
        if (a_step == 0) gg_fill(y, gg_formula_##name(gg_splat(a[0])), n);                                             \
        else gg_map_1(gg_formula_##name, y, a, n);                                                                     \
    }                                                                                                                  \
    GG_KERNEL(name) { gg_elementwise(task, gg_span_##name, gg_operand_of(task, 0), gg_operand_none()); }

#define GG_ELEMENTWISE_2(name)                                                                                         \
    GG_SPAN_2(name, gg_formula_##name)                                                                                 \
    GG_KERNEL(name) { gg_elementwise(task, gg_span_##name, gg_operand_of(task, 0), gg_operand_of(task, 1)); }

/* Up to four numbers from op_params[word] on are the first lanes p[0], p[1], ... of a second operand. */
#define GG_ELEMENTWISE_1_PARAMS(name, word, n_params, ...)                                                             \
    static inline gg_vec gg_formula_vec_##name(gg_vec a, gg_vec p) { return gg_formula_##name(a, __VA_ARGS__); }       \
    GG_SPAN(name)                                                                                                      \
    {                                                                                                                  \
        (void)b_step;                                                                                                  \
        gg_vec p = gg_load_n(b, n_params);                                                                             \
        if (a_step == 0) gg_fill(y, gg_formula_vec_##name(gg_splat(a[0]), p), n);                                      \
        else gg_map_2_scalar(gg_formula_vec_##name, y, a, p, n);                                                       \
    }                                                                                                                  \
    GG_KERNEL(name)                                                                                                    \
    {                                                                                                                  \
        float p[n_params];                                                                                             \
        for (int i = 0; i < n_params; i++) p[i] = gg_param_f32(task->y, word + i);                                     \
        gg_elementwise(task, gg_span_##name, gg_operand_of(task, 0), gg_operand_scalar(p));                            \
    }

enum { GG_GATHER = 512 }; /* floats of a strided or tiled row that are laid out densely at a time */

/* A source, tiled into the shape of y. */
typedef struct gg_operand {
    const char *data;
    int64_t     ne[GG_MAX_DIMS], nb[GG_MAX_DIMS];
} gg_operand;

/* Along a stride of 0, as `expand` has them, there is one element. */
static inline gg_operand gg_operand_of(const gg_task *task, int source)
{
    gg_operand o = {.data = task->src_data[source]};
    memcpy(o.ne, task->src[source]->ne, sizeof o.ne);
    memcpy(o.nb, task->src[source]->nb, sizeof o.nb);
    for (int d = 0; d < GG_MAX_DIMS; d++)
        if (o.nb[d] == 0) o.ne[d] = 1;
    return o;
}

static inline gg_operand gg_operand_scalar(const float *x)
{
    return (gg_operand){(const char *)x, {1, 1, 1, 1}, {4, 4, 4, 4}};
}

/* Stands for the second operand of a formula of one. */
static inline gg_operand gg_operand_none(void)
{
    static const float unused = 0;
    return gg_operand_scalar(&unused);
}

/* Whether dimension d of the operand goes on where dimension 0 ends, so that both are one row of n0 * n. */
static inline bool gg_operand_merges(const gg_operand *o, int d, int64_t n0, int64_t n)
{
    if (n0 == 1 || (o->ne[0] == 1 && o->ne[d] == 1)) return true;
    return o->ne[0] == n0 && o->ne[d] == n && o->nb[d] == n0 * o->nb[0];
}

static inline void gg_operand_merge(gg_operand *o, int d)
{
    if (o->ne[0] == 1) o->nb[0] = o->nb[d];
    o->ne[0] *= o->ne[d];
    o->ne[d] = 1;
}

/* Lengthen the rows as far as both operands allow: sources of y's shape without gaps become a single row. */
static inline void gg_merge_rows(int64_t *ne, gg_operand *a, gg_operand *b)
{
    for (int d = 1; d < GG_MAX_DIMS; d++) {
        if (ne[d] == 1) continue;
        if (!gg_operand_merges(a, d, ne[0], ne[d]) || !gg_operand_merges(b, d, ne[0], ne[d])) return;
        gg_operand_merge(a, d);
        gg_operand_merge(b, d);
        ne[0] *= ne[d];
        ne[d] = 1;
    }
}

/* The operand's row that is tiled into row `row` of a tensor with sizes ne. */
static inline const char *gg_operand_row(const gg_operand *o, const int64_t *ne, int64_t row)
{
    gg_place p = gg_place_of(ne, row);
    return gg_row_at(o->data, o->nb, (gg_place){p.i1 % o->ne[1], p.i2 % o->ne[2], p.i3 % o->ne[3]});
}

static inline bool gg_operand_is_dense(const gg_operand *o, int64_t n0) { return o->ne[0] == n0 && o->nb[0] == 4; }

/* Elements [first, first + n) of a tensor, all in one row of it. */
typedef struct gg_run {
    int64_t row, column, n;
} gg_run;

/* The longest run from `first` on, in rows of n0, that ends by `end`. */
static inline gg_run gg_run_from(int64_t first, int64_t end, int64_t n0, int64_t longest)
{
    int64_t column = first % n0;
    return (gg_run){first / n0, column, gg_min_i64(gg_min_i64(n0 - column, end - first), longest)};
}

/* The operand's elements for a run of y's row, tiled from its own `row`: where they lie, or else copied to `buffer`. Of
 * an operand of one column, that column. */
static inline const float *gg_operand_data(const gg_operand *o, const int64_t *ne, const gg_run *run, float *buffer)
{
    const char *row = gg_operand_row(o, ne, run->row);
    if (o->ne[0] == 1) return (const float *)row;
    if (gg_operand_is_dense(o, ne[0])) return (const float *)row + run->column;
    int64_t i0 = run->column % o->ne[0];
    for (int64_t i = 0; i < run->n; i++) {
        buffer[i] = *(const float *)(row + i0 * o->nb[0]);
        if (++i0 == o->ne[0]) i0 = 0;
    }
    return buffer;
}

/* Whether an operand's elements are read where they lie. */
static inline bool gg_operand_is_read(const gg_operand *o, int64_t n0)
{
    return o->ne[0] == 1 || gg_operand_is_dense(o, n0);
}

static inline void gg_elementwise(const gg_task *task, gg_span_fn *span, gg_operand a, gg_operand b)
{
    int64_t ne[GG_MAX_DIMS], begin, end;
    memcpy(ne, task->y->ne, sizeof ne);
    gg_merge_rows(ne, &a, &b);
    int64_t n0 = ne[0], a_step = a.ne[0] != 1, b_step = b.ne[0] != 1;
    int64_t longest = gg_operand_is_read(&a, n0) && gg_operand_is_read(&b, n0) ? n0 : GG_GATHER;

    gg_share(task, gg_nelements(task->y), 1024, &begin, &end);
    gg_run run;
    for (int64_t i = begin; i < end; i += run.n) {
        run = gg_run_from(i, end, n0, longest);
        float        a_buffer[GG_GATHER], b_buffer[GG_GATHER];
        const float *a_data = gg_operand_data(&a, ne, &run, a_buffer), *b_data = gg_operand_data(&b, ne, &run, b_buffer);
        span((float *)task->y_data + i, a_data, a_step, b_data, b_step, run.n);
    }
}

#endif
