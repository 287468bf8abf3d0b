/* products.c - mul_mat, its cotangent mul_mat_back, and out_prod: batches of matrix products for gemm.c. Called by
 * the executor.
 *
 * Each kernel says how output matrix i is a sum of products; `products` divides the matrices over the threads.
 * Where a batch is one long list of rows it becomes one product, whose packed blocks then serve all of it.
 */
#include "gemm.h"
#include "gemv.h"
#include "typed_product.h"

/* Term `term` of the sum that is output matrix `matrix`. */
typedef gg_gemm term_of(const gg_task *task, int64_t matrix, int64_t term);

/* Whole matrices per thread as long as there is one for each; the rest together. */
static void products(const gg_task *task, int64_t n_matrices, int64_t n_terms, term_of *term_of)
{
    int64_t n_alone = task->nth == 1 ? 0 : n_matrices / task->nth * task->nth;
    for (int64_t i = task->ith; i < n_alone; i += task->nth)
        for (int64_t k = 0; k < n_terms; k++) {
            gg_gemm g = term_of(task, i, k);
            GG_ISA_NAME(gg_gemm_alone)(&g, task, task->work + task->ith * (int64_t)GG_GEMM_ALONE_NBYTES);
        }
    for (int64_t i = n_alone; i < n_matrices; i++)
        for (int64_t k = 0; k < n_terms; k++) {
            gg_gemm g = term_of(task, i, k);
            if (i > 0 || k > 0) gg_barrier(task); /* the scratch is free and C complete */
            GG_ISA_NAME(gg_gemm_together)(&g, task, task->work);
        }
}

/* Matrix (i2, i3) of t as a view: dimension `row` downwards, `col` sideways. */
static gg_matrix matrix_of(const gg_tensor *t, const char *data, int row, int col, int64_t i2, int64_t i3)
{
    return (gg_matrix){.data = (const float *)(data + i2 * t->nb[2] + i3 * t->nb[3]),
                       .row = t->nb[row] / (int64_t)sizeof(float), .col = t->nb[col] / (int64_t)sizeof(float)};
}

/* Dimensions 1 to 3 are one list of rows, equally far apart. */
static bool is_row_list(const gg_tensor *t)
{
    return (t->ne[2] == 1 || t->nb[2] == t->ne[1] * t->nb[1]) &&
           (t->ne[3] == 1 || t->nb[3] == t->ne[2] * t->ne[1] * t->nb[1]);
}

static bool is_matrix(const gg_tensor *t) { return t->ne[2] == 1 && t->ne[3] == 1; }

/* A product of each matrix of y with one of the weights, source 0, which are not float32. `one`: they are one matrix. */
static void typed_products(const gg_task *task, bool one, bool along_rows, term_of *term_of)
{
    const gg_tensor *y = task->y, *a = task->src[0], *b = task->src[1];
    int64_t n_matrices = one ? 1 : y->ne[2] * y->ne[3];
    for (int64_t i = 0; i < n_matrices; i++) {
        int64_t i2 = i % y->ne[2] / (b->ne[2] / a->ne[2]), i3 = i / y->ne[2] / (b->ne[3] / a->ne[3]);
        gg_gemm g = term_of(task, i, 0);
        if (i > 0) gg_barrier(task);
        GG_ISA_NAME(gg_typed_product)(&g, a, task->src_data[0] + i2 * a->nb[2] + i3 * a->nb[3], along_rows, task,
                                      task->work);
    }
}

static float *output(const gg_task *task, int64_t matrix)
{
    return (float *)task->y_data + matrix * task->y->ne[0] * task->y->ne[1];
}

/* ---------------------------------------------------------------- mul_mat: y = b a^T */

static gg_gemm mul_mat_term(const gg_task *task, int64_t matrix, int64_t term)
{
    (void)term;
    const gg_tensor *y = task->y, *a = task->src[0], *b = task->src[1];
    int64_t i2 = matrix % y->ne[2], i3 = matrix / y->ne[2];
    return (gg_gemm){
        .n_rows = b->ne[1], .n_cols = a->ne[1], .n_inner = a->ne[0],
        .a = matrix_of(b, task->src_data[1], 1, 0, i2, i3),
        .b = matrix_of(a, task->src_data[0], 0, 1, i2 / (b->ne[2] / a->ne[2]), i3 / (b->ne[3] / a->ne[3])),
        .c = output(task, matrix), .c_row = y->ne[0]};
}

static gg_gemm mul_mat_rows(const gg_task *task, int64_t matrix, int64_t term)
{
    gg_gemm g = mul_mat_term(task, matrix, term);
    g.n_rows = gg_nrows(task->src[1]);
    return g;
}

GG_KERNEL(mul_mat)
{
    bool one = is_matrix(task->src[0]) && is_row_list(task->src[1]);
    if (task->src[0]->type != GG_TYPE_F32) {
        typed_products(task, one, false, one ? mul_mat_rows : mul_mat_term);
        return;
    }
    if (!one) {
        products(task, task->y->ne[2] * task->y->ne[3], 1, mul_mat_term);
        return;
    }
    gg_gemm g = mul_mat_rows(task, 0, 0);
    if (GG_ISA_NAME(gg_gemv_fits)(&g)) GG_ISA_NAME(gg_gemv)(&g, task);
    else products(task, 1, 1, mul_mat_rows);
}

/* ---------------------------------------------------------------- mul_mat_back: y = sum over the group of g^T b */

static gg_gemm mul_mat_back_term(const gg_task *task, int64_t matrix, int64_t term)
{
    const gg_tensor *y = task->y, *g = task->src[0], *b = task->src[1];
    int64_t group2 = b->ne[2] / y->ne[2], group3 = b->ne[3] / y->ne[3];
    int64_t i2 = matrix % y->ne[2] * group2 + term % group2, i3 = matrix / y->ne[2] * group3 + term / group2;
    return (gg_gemm){
        .n_rows = y->ne[1], .n_cols = y->ne[0], .n_inner = b->ne[1],
        .a = matrix_of(g, task->src_data[0], 0, 1, i2, i3),
        .b = matrix_of(b, task->src_data[1], 1, 0, i2, i3),
        .c = output(task, matrix), .c_row = y->ne[0], .accumulate = term > 0};
}

static gg_gemm mul_mat_back_rows(const gg_task *task, int64_t matrix, int64_t term)
{
    gg_gemm g = mul_mat_back_term(task, matrix, term);
    g.n_inner = gg_nrows(task->src[1]);
    return g;
}

GG_KERNEL(mul_mat_back)
{
    const gg_tensor *y = task->y, *b = task->src[1];
    if (is_matrix(y) && is_row_list(task->src[0]) && is_row_list(b)) {
        products(task, 1, 1, mul_mat_back_rows);
    } else {
        int64_t n_matrices = y->ne[2] * y->ne[3];
        products(task, n_matrices, b->ne[2] * b->ne[3] / n_matrices, mul_mat_back_term);
    }
}

/* ---------------------------------------------------------------- out_prod: y = b^T a */

static gg_gemm out_prod_term(const gg_task *task, int64_t matrix, int64_t term)
{
    (void)term;
    const gg_tensor *y = task->y, *a = task->src[0], *b = task->src[1];
    int64_t i2 = matrix % y->ne[2], i3 = matrix / y->ne[2];
    return (gg_gemm){
        .n_rows = b->ne[0], .n_cols = a->ne[0], .n_inner = a->ne[1],
        .a = matrix_of(b, task->src_data[1], 0, 1, i2, i3),
        .b = matrix_of(a, task->src_data[0], 1, 0, i2 / (b->ne[2] / a->ne[2]), i3 / (b->ne[3] / a->ne[3])),
        .c = output(task, matrix), .c_row = y->ne[0]};
}

/* b is the transpose of a list of rows. */
static gg_gemm out_prod_rows(const gg_task *task, int64_t matrix, int64_t term)
{
    gg_gemm g = out_prod_term(task, matrix, term);
    g.n_rows = gg_nelements(task->src[1]) / task->src[1]->ne[1];
    return g;
}

GG_KERNEL(out_prod)
{
    const gg_tensor *y = task->y, *a = task->src[0], *b = task->src[1];
    gg_tensor rows = *b;
    rows.ne[0] = b->ne[1], rows.ne[1] = b->ne[0];
    rows.nb[0] = b->nb[1], rows.nb[1] = b->nb[0];
    bool one = is_matrix(a) && is_row_list(&rows);
    if (a->type != GG_TYPE_F32) typed_products(task, one, true, one ? out_prod_rows : out_prod_term);
    else products(task, one ? 1 : y->ne[2] * y->ne[3], 1, one ? out_prod_rows : out_prod_term);
}
