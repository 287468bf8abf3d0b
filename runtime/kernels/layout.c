/* layout.c - kernels that move elements: cont, repeat, concat, get_rows and view's and their cotangents.
 *
 * The forward ones copy; the backward ones sum. A sum is split by the elements it ends in, and each is summed by
 * one thread in the order of the tiles or ids, so results do not depend on the number of threads.
 */
#include "decode.h"
#include "elementwise.h"
#include "reduce.h"

/* ---- cont ---- */

/* Rows and columns of the blocks a transposed source is copied in: a block's cache lines are all used while in L1. */
enum { CONT_BLOCK = 16 };

/* n elements of `size` bytes, `stride` bytes apart, to a dense row. Inlined for each size, so that memcpy is a move. */
GG_INLINE void gather_row(char *y, const char *a, int64_t n, int64_t stride, size_t size)
{
    for (int64_t i = 0; i < n; i++) memcpy(y + i * (int64_t)size, a + i * stride, size);
}

/* Up to CONT_BLOCK rows of n elements each; y's rows are y_stride bytes apart. */
GG_INLINE void gather_rows(char *y, int64_t y_stride, const char *a, const gg_tensor *src, int64_t n_rows, size_t size)
{
    for (int64_t column = 0; column < src->ne[0]; column += CONT_BLOCK) {
        int64_t n = gg_min_i64(CONT_BLOCK, src->ne[0] - column);
        for (int64_t r = 0; r < n_rows; r++)
            gather_row(y + r * y_stride + column * (int64_t)size, a + r * src->nb[1] + column * src->nb[0], n,
                       src->nb[0], size);
    }
}

/* Rows [r, r + n_rows) of a source, all in one matrix of it. */
static void copy_rows(char *y, const char *a, const gg_tensor *src, int64_t r, int64_t n_rows)
{
    int64_t size = gg_type_size(src->type), y_stride = gg_row_nbytes(src->type, src->ne[0]);
    y += r * y_stride;
    a += gg_row_offset(src->ne, src->nb, r);
    if (gg_is_row_contiguous(src))
        for (int64_t i = 0; i < n_rows; i++) memcpy(y + i * y_stride, a + i * src->nb[1], (size_t)y_stride);
    else if (size == 4) gather_rows(y, y_stride, a, src, n_rows, 4);
    else if (size == 2) gather_rows(y, y_stride, a, src, n_rows, 2);
    else if (size == 8) gather_rows(y, y_stride, a, src, n_rows, 8);
    else gather_rows(y, y_stride, a, src, n_rows, 1);
}

/* Of a contiguous source, its bytes; of any other, its rows. y may have another shape: only the order counts. */
GG_KERNEL(cont)
{
    const gg_tensor *src = task->src[0];
    const char      *a = task->src_data[0];
    int64_t          begin, end;
    if (gg_is_contiguous(src)) {
        gg_share(task, gg_row_nbytes(src->type, gg_nelements(src)), 4096, &begin, &end);
        memcpy(task->y_data + begin, a + begin, (size_t)(end - begin));
        return;
    }
    gg_share(task, gg_nrows(src), CONT_BLOCK, &begin, &end);
    for (int64_t r = begin, n; r < end; r += n) {
        int64_t left_in_matrix = src->ne[1] - r % src->ne[1];
        n = gg_min_i64(gg_min_i64(CONT_BLOCK, end - r), left_in_matrix);
        copy_rows(task->y_data, a, src, r, n);
    }
}

/* ---- cpy ---- */

/* Elements that are converted at a time: whole blocks of every type. */
enum { CPY_ELEMENTS = 1024 };

/* n elements of y's type, each so many bytes behind the one before; of a block type they lie without gaps. */
typedef struct elements {
    int32_t type;
    int64_t stride;
    char   *data;
} elements;

static void move_elements(const elements *y, const elements *a, int64_t n)
{
    int64_t size = gg_type_size(y->type);
    if (y->stride == size && a->stride == size) memcpy(y->data, a->data, (size_t)gg_row_nbytes(y->type, n));
    else if (size == 4) for (int64_t i = 0; i < n; i++) memcpy(y->data + i * y->stride, a->data + i * a->stride, 4);
    else for (int64_t i = 0; i < n; i++) memcpy(y->data + i * y->stride, a->data + i * a->stride, (size_t)size);
}

static void load_elements(float *out, const elements *a, int64_t n)
{
    if (a->type == GG_TYPE_F32)
        for (int64_t i = 0; i < n; i++) memcpy(out + i, a->data + i * a->stride, 4);
    else if (a->stride == gg_type_size(a->type)) GG_ISA_NAME(gg_decode)(a->type, n, a->data, out);
    else
        for (int64_t i = 0; i < n; i++) GG_ISA_NAME(gg_decode)(a->type, 1, a->data + i * a->stride, out + i);
}

static void store_elements(const elements *y, const float *x, int64_t n)
{
    if (y->type == GG_TYPE_F32)
        for (int64_t i = 0; i < n; i++) memcpy(y->data + i * y->stride, x + i, 4);
    else if (y->stride == gg_type_size(y->type)) GG_ISA_NAME(gg_encode)(y->type, n, x, y->data);
    else
        for (int64_t i = 0; i < n; i++) GG_ISA_NAME(gg_encode)(y->type, 1, x + i, y->data + i * y->stride);
}

/* Element i of a tensor, in order. */
static elements elements_at(const gg_tensor *t, char *data, int64_t i)
{
    int64_t column = i % t->ne[0] / gg_types[t->type].block * t->nb[0];
    return (elements){t->type, t->nb[0], data + gg_row_offset(t->ne, t->nb, i / t->ne[0]) + column};
}

/* Rows of either tensor are whole blocks of both types, and so are the parts between their ends. */
GG_KERNEL(cpy)
{
    const gg_tensor *a = task->src[0], *y = task->y;
    int64_t          begin, end;
    gg_share(task, gg_nelements(y), CPY_ELEMENTS, &begin, &end);
    for (int64_t i = begin, n; i < end; i += n) {
        float    values[CPY_ELEMENTS];
        elements from = elements_at(a, task->src_data[0], i), to = elements_at(y, task->y_data, i);
        n = gg_min_i64(end - i, gg_min_i64(a->ne[0] - i % a->ne[0], y->ne[0] - i % y->ne[0]));
        if (a->type == y->type) {
            move_elements(&to, &from, n);
            continue;
        }
        n = gg_min_i64(n, CPY_ELEMENTS);
        load_elements(values, &from, n);
        store_elements(&to, values, n);
    }
}

/* ---- repeat ---- */

static inline gg_vec gg_formula_repeat(gg_vec a) { return a; }

GG_ELEMENTWISE_1(repeat)

/* ---- repeat_back, sum_products ---- */

/* Columns summed at a time, in L1, and rows per partial sum: rounding errors then grow with rows / 64 + 64. */
enum { SUM_COLUMNS = 512, SUM_ROWS = 64 };

/* The tiles of a dense source that fall on one row of y, `width` floats each. */
typedef struct row_tiles {
    const float *a, *b; /* where the first one begins, in the other source too; b NULL: there is none */
    int64_t      width;
    int64_t      count[GG_MAX_DIMS], stride[GG_MAX_DIMS]; /* innermost first; strides in floats */
} row_tiles;

/* Leaves out dimensions of one tile, and makes one of two that lie evenly. */
static row_tiles row_tiles_of(const gg_task *task, int64_t y_row)
{
    const gg_tensor *y = task->y, *a = task->src[0];
    row_tiles        t = {.width = y->ne[0], .count = {1, 1, 1, 1}};
    int64_t          first = gg_row_offset(y->ne, a->nb, y_row);
    t.a = (const float *)(task->src_data[0] + first);
    t.b = task->src[1] ? (const float *)(task->src_data[1] + first) : NULL;
    int n = 0;
    for (int d = 0; d < GG_MAX_DIMS; d++) {
        int64_t count = a->ne[d] / y->ne[d], stride = y->ne[d] * a->nb[d] / (int64_t)sizeof(float);
        if (count == 1) continue;
        if (n > 0 && stride == t.count[n - 1] * t.stride[n - 1]) {
            t.count[n - 1] *= count;
        } else {
            t.count[n] = count;
            t.stride[n++] = stride;
        }
    }
    return t;
}

static void add_row(float *restrict total, const float *restrict a, int64_t n)
{
    for (int64_t i = 0; i < n; i++) total[i] += a[i];
}

static void multiply_row(float *restrict y, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = a[i] * b[i];
}

static void add_products(float *restrict total, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) total[i] += a[i] * b[i];
}

/* Add the same n <= SUM_COLUMNS columns of count[0] tiles to total; the first lies `at` floats from the first of all. */
static void add_tiles(float *total, const row_tiles *t, int64_t at, int64_t n)
{
    for (int64_t i = 0; i < t->count[0]; i += SUM_ROWS) {
        float   partial[SUM_COLUMNS];
        int64_t end = gg_min_i64(i + SUM_ROWS, t->count[0]), first = at + i * t->stride[0];
        if (t->b) multiply_row(partial, t->a + first, t->b + first, n);
        else memcpy(partial, t->a + first, (size_t)n * sizeof(float));
        for (int64_t k = i + 1; k < end; k++) {
            int64_t row = at + k * t->stride[0];
            if (t->b) add_products(partial, t->a + row, t->b + row, n);
            else add_row(partial, t->a + row, n);
        }
        add_row(total, partial, n);
    }
}

/* Of count[0] elements side by side, or of their products, summed across the lanes. */
static float sum_line(const row_tiles *t, int64_t at)
{
    double sum = 0;
    if (!t->b) return (float)gg_sum(t->a + at, t->count[0]);
    for (int64_t i = 0, n; i < t->count[0]; i += n) {
        float products[SUM_COLUMNS];
        n = gg_min_i64(SUM_COLUMNS, t->count[0] - i);
        multiply_row(products, t->a + at + i, t->b + at + i, n);
        sum += gg_sum(products, n);
    }
    return (float)sum;
}

static void sum_tiles(float *y, const row_tiles *t, int64_t column, int64_t n)
{
    float   total[SUM_COLUMNS] = {0};
    bool    is_line = t->width == 1 && t->stride[0] == 1;
    int64_t n_outer = t->count[1] * t->count[2] * t->count[3];
    for (int64_t i = 0; i < n_outer; i++) {
        int64_t at = column + gg_row_offset(t->count, t->stride, i);
        if (is_line) total[0] += sum_line(t, at);
        else add_tiles(total, t, at, n);
    }
    memcpy(y, total, (size_t)n * sizeof(float));
}

static void sum_all_tiles(const gg_task *task)
{
    float  *y = (float *)task->y_data;
    int64_t begin, end;
    gg_share(task, gg_nelements(task->y), 16, &begin, &end);
    gg_run run;
    for (int64_t i = begin; i < end; i += run.n) {
        run = gg_run_from(i, end, task->y->ne[0], SUM_COLUMNS);
        row_tiles tiles = row_tiles_of(task, run.row);
        sum_tiles(y + i, &tiles, run.column, run.n);
    }
}

GG_KERNEL(repeat_back) { sum_all_tiles(task); }
GG_KERNEL(sum_products) { sum_all_tiles(task); }

/* ---- concat ---- */

/* Part of rows [begin, end) of y that one source fills: its first element goes to `at` along dimension dim. */
static void copy_part(const gg_task *task, int source, int dim, int64_t at, int64_t begin, int64_t end)
{
    const gg_tensor *y = task->y, *a = task->src[source];
    int64_t          first = dim == 0 ? gg_row_nbytes(y->type, at) : 0, nbytes = gg_row_nbytes(a->type, a->ne[0]);
    for (int64_t r = begin; r < end; r++) {
        gg_place p = gg_place_of(y->ne, r);
        int64_t  i[GG_MAX_DIMS] = {0, p.i1, p.i2, p.i3};
        i[dim] -= at;
        if (dim > 0 && (i[dim] < 0 || i[dim] >= a->ne[dim])) continue;
        const char *row = gg_row_at(task->src_data[source], a->nb, (gg_place){i[1], i[2], i[3]});
        memcpy(task->y_data + r * y->nb[1] + first, row, (size_t)nbytes);
    }
}

GG_KERNEL(concat)
{
    int     dim = gg_param_i32(task->y, 0);
    int64_t begin, end;
    gg_share(task, gg_nrows(task->y), 1, &begin, &end);
    copy_part(task, 0, dim, 0, begin, end);
    copy_part(task, 1, dim, task->src[0]->ne[dim], begin, end);
}

/* ---- view_back ---- */

/* Where a tensor lies in its root's memory, for elements of 4 bytes. */
static gg_tensor place_of(const gg_tensor *t)
{
    gg_tensor place = {.type = GG_TYPE_F32};
    gg_lie_like(&place, t);
    return place;
}

static void add_strided_row(char *y, int64_t y_stride, const char *a, int64_t n, int64_t stride)
{
    if (stride == 4 && y_stride == 4) add_row((float *)y, (const float *)a, n);
    else for (int64_t i = 0; i < n; i++) *(float *)(y + i * y_stride) += *(const float *)(a + i * stride);
}

/* Bytes [begin, end) of y as they are before something is added: those of `total`, or zeros if that is NULL. */
static void start_from(const gg_task *task, const char *total, int64_t begin, int64_t end)
{
    if (total == NULL) memset(task->y_data + begin, 0, (size_t)(end - begin));
    else if (total != task->y_data) memcpy(task->y_data + begin, total + begin, (size_t)(end - begin));
}

/* g added into total or zeros where view lies in a, of which only the places matter */
GG_KERNEL(view_back)
{
    const gg_tensor *g = task->src[0];
    gg_tensor        w = place_of(task->src[1]);
    char            *first = task->y_data + w.root_offset - place_of(task->src[2]).root_offset;
    int64_t          begin, end;
    gg_share(task, gg_nelements(task->y) * 4, 4096, &begin, &end);
    start_from(task, task->src_data[3], begin, end);
    gg_barrier(task);

    int64_t n = gg_nelements(g);
    bool    alone = !gg_is_injective(g->ne, w.nb, 4);
    gg_share(task, n, alone ? n : 1024, &begin, &end);
    gg_run run;
    for (int64_t i = begin; i < end; i += run.n) {
        run = gg_run_from(i, end, g->ne[0], end);
        char       *y = first + gg_row_offset(g->ne, w.nb, run.row) + run.column * w.nb[0];
        const char *row = task->src_data[0] + gg_row_offset(g->ne, g->nb, run.row) + run.column * g->nb[0];
        add_strided_row(y, w.nb[0], row, run.n, g->nb[0]);
    }
}

/* ---- cleared ---- */

GG_KERNEL(cleared)
{
    const gg_tensor *by = task->src[1];
    gg_tensor        w = place_of(by);
    int64_t          begin, end;
    gg_share(task, gg_nelements(task->y) * 4, 4096, &begin, &end);
    start_from(task, task->src_data[0], begin, end);
    gg_barrier(task);

    gg_share(task, gg_nelements(by), 1024, &begin, &end);
    gg_run run;
    for (int64_t i = begin; i < end; i += run.n) {
        run = gg_run_from(i, end, by->ne[0], end);
        char *y = task->y_data + w.root_offset + gg_row_offset(by->ne, w.nb, run.row) + run.column * w.nb[0];
        for (int64_t k = 0; k < run.n; k++) memset(y + k * w.nb[0], 0, 4);
    }
}

/* ---- get_rows ---- */

/* ids [n, X, Y] choose among the rows of the table's matrix x of X, which may also have a fourth dimension. */
static int64_t table_offset(const gg_tensor *table, const gg_tensor *ids, int64_t i)
{
    int64_t x = i / ids->ne[0] % ids->ne[1], y = i / ids->ne[0] / ids->ne[1];
    return x * table->nb[2] + y % table->ne[3] * table->nb[3];
}

GG_KERNEL(get_rows)
{
    const gg_tensor *a = task->src[0], *ids = task->src[1];
    const int32_t   *id = (const int32_t *)task->src_data[1];
    int64_t          begin, end, n = a->ne[0];
    gg_share(task, gg_nelements(ids), 16, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float      *y = (float *)task->y_data + i * n;
        const char *row = task->src_data[0] + id[i] * a->nb[1] + table_offset(a, ids, i);
        if (id[i] < 0 || id[i] >= a->ne[1]) {
            gg_fault(task, id[i], a->ne[1]);
            memset(y, 0, (size_t)n * sizeof(float));
        } else if (a->type == task->y->type) {
            memcpy(y, row, (size_t)n * sizeof(float));
        } else {
            GG_ISA_NAME(gg_decode)(a->type, n, row, y);
        }
    }
}

/* A thread owns rows of y, that is of the table: it clears them, or takes those of source 2, then looks through all ids
 * for its own. */
GG_KERNEL(get_rows_back)
{
    const gg_tensor *g = task->src[0], *ids = task->src[1], *y = task->y;
    const int32_t   *id = (const int32_t *)task->src_data[1];
    int64_t          begin, end, row_nbytes = y->ne[0] * 4, n = gg_nelements(ids);
    gg_share(task, gg_nrows(y), 16, &begin, &end);
    start_from(task, task->src_data[2], begin * row_nbytes, end * row_nbytes);
    for (int64_t i = 0; i < n; i++) {
        if (id[i] < 0 || id[i] >= y->ne[1]) {
            if (task->ith == 0) gg_fault(task, id[i], y->ne[1]);
            continue;
        }
        int64_t row = id[i] + table_offset(y, ids, i) / row_nbytes;
        if (row < begin || row >= end) continue;
        const char *g_row = task->src_data[0] + gg_row_offset(g->ne, g->nb, i);
        add_row((float *)(task->y_data + row * row_nbytes), (const float *)g_row, y->ne[0]);
    }
}
