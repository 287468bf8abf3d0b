/* adafactor.c - kernels of Adafactor (Shazeer & Stern 2018): the mean of squares of a matrix is kept as means of its rows
 * and columns. The step is as long as the parameter is large, and cut where it is longer than usual; both are sums over
 * the whole parameter, so the gradient is read again for each.
 */
#include "reduce.h"
#include "update.h"

enum { BETA2, ADDED, FLOOR, LEAST_SCALE, THRESHOLD, MOST_RATE }; /* own */
enum { COLUMNS = 256 };                                          /* that are summed side by side */

/* One thread's part. */
typedef struct factored {
    update  u;
    double *p_sqr, *u_sqr;         /* of each row the sums of squares of p and of the step */
    int64_t n, n_rows, begin, end; /* columns, rows, this thread's rows */
} factored;

static bool begin_factored(const gg_task *task, factored *f)
{
    if (!begin_update(task, &f->u)) return false;
    f->n = task->y->ne[0];
    f->n_rows = gg_nrows(task->y);
    f->p_sqr = (double *)task->work;
    f->u_sqr = f->p_sqr + f->n_rows;
    gg_share(task, f->n_rows, 1, &f->begin, &f->end);
    return true;
}

/* 1 / sqrt(v), v being least_sqr at least. */
GG_INLINE float inverse_root(float v, float least_sqr) { return 1.0f / sqrtf(v > least_sqr ? v : least_sqr); }

/* Factor of the step, once all rows' sums are there. */
static float step_factor(const factored *f)
{
    double p_sqr = 0, u_sqr = 0, n = (double)f->n * (double)f->n_rows;
    for (int64_t r = 0; r < f->n_rows; r++) {
        p_sqr += f->p_sqr[r];
        u_sqr += f->u_sqr[r];
    }
    double rms_p = sqrt(p_sqr / n), longer = sqrt(u_sqr / n) / f->u.own[THRESHOLD];
    double scale = rms_p > f->u.own[LEAST_SCALE] ? rms_p : f->u.own[LEAST_SCALE], most = f->u.own[MOST_RATE];
    double slower = most > 0 && f->u.lr > most ? most / f->u.lr : 1;
    return (float)(scale * f->u.rate * slower / (longer > 1 ? longer : 1));
}

static void average_rows(const factored *f, const float *gradient, float *r)
{
    for (int64_t row = f->begin; row < f->end; row++) {
        double sum = 0;
        for (int64_t i = row * f->n; i < (row + 1) * f->n; i++) {
            double g = clipped(gradient[i], f->u.clip, f->u.limit);
            sum += g * g;
        }
        r[row] += (1.0f - f->u.own[BETA2]) * ((float)(sum / (double)f->n) + f->u.own[ADDED] - r[row]);
    }
}

static void average_columns(const gg_task *task, const factored *f, const float *gradient, float *c)
{
    int64_t n = f->n, m = task->y->ne[1], n_blocks = gg_ceil_div(n, COLUMNS), begin, end;
    gg_share(task, n_blocks * (f->n_rows / m), 1, &begin, &end);
    for (int64_t k = begin; k < end; k++) {
        int64_t matrix = k / n_blocks, first = k % n_blocks * COLUMNS, some = gg_min_i64(COLUMNS, n - first);
        double  sums[COLUMNS] = {0};
        for (int64_t row = matrix * m; row < (matrix + 1) * m; row++)
            for (int64_t i = 0; i < some; i++) {
                double g = clipped(gradient[row * n + first + i], f->u.clip, f->u.limit);
                sums[i] += g * g;
            }
        for (int64_t i = 0; i < some; i++) {
            float *mean = &c[matrix * n + first + i];
            *mean += (1.0f - f->u.own[BETA2]) * ((float)(sums[i] / (double)m) + f->u.own[ADDED] - *mean);
        }
    }
}

/* The mean of r over the matrix that a row is in, or the least there is to be. */
static float mean_of(const factored *f, const float *r, int64_t row, int64_t m)
{
    float mean = (float)(gg_sum(r + row / m * m, m) / (double)m), least = f->u.own[FLOOR];
    return mean > least ? mean : least;
}

/* p, g, r (a number a row), c (a number a column of each matrix), hyper, sum_sqr */
GG_KERNEL(adafactor)
{
    factored f;
    if (!begin_factored(task, &f)) return;
    float       *p = (float *)task->src_data[0], *r = (float *)task->src_data[2], *c = (float *)task->src_data[3];
    const float *gradient = (const float *)task->src_data[1];
    float        least_sqr = f.u.own[FLOOR] * f.u.own[FLOOR], mean = 0;
    int64_t      n = f.n, m = task->y->ne[1];
    average_rows(&f, gradient, r);
    average_columns(task, &f, gradient, c);
    gg_barrier(task);
    for (int64_t row = f.begin; row < f.end; row++) {
        if (row == f.begin || row % m == 0) mean = mean_of(&f, r, row, m);
        const float *of_columns = c + row / m * n;
        float        of_row = r[row] / mean;
        f.p_sqr[row] = gg_sum_sqr(p + row * n, n);
        f.u_sqr[row] = 0;
        for (int64_t i = 0; i < n; i++) {
            double u = clipped(gradient[row * n + i], f.u.clip, f.u.limit) * inverse_root(of_row * of_columns[i], least_sqr);
            f.u_sqr[row] += u * u;
        }
    }
    gg_barrier(task);
    float factor = step_factor(&f);
    for (int64_t row = f.begin; row < f.end; row++) {
        if (row == f.begin || row % m == 0) mean = mean_of(&f, r, row, m);
        const float *of_columns = c + row / m * n;
        float        of_row = r[row] / mean;
        for (int64_t i = 0; i < n; i++) {
            float g = clipped(gradient[row * n + i], f.u.clip, f.u.limit), *at = &p[row * n + i];
            *at = stepped(*at, g * inverse_root(of_row * of_columns[i], least_sqr), f.u.keep, factor, f.u.cautious);
        }
    }
}

/* p, g, v, hyper, sum_sqr */
GG_KERNEL(adafactor_whole)
{
    factored f;
    if (!begin_factored(task, &f)) return;
    float       *p = (float *)task->src_data[0], *v = (float *)task->src_data[2];
    const float *gradient = (const float *)task->src_data[1];
    float        least_sqr = f.u.own[FLOOR] * f.u.own[FLOOR], fresh = 1.0f - f.u.own[BETA2], added = f.u.own[ADDED];
    for (int64_t row = f.begin; row < f.end; row++) {
        f.p_sqr[row] = gg_sum_sqr(p + row * f.n, f.n);
        f.u_sqr[row] = 0;
        for (int64_t i = row * f.n; i < (row + 1) * f.n; i++) {
            float g = clipped(gradient[i], f.u.clip, f.u.limit);
            v[i] += fresh * (g * g + added - v[i]);
            double u = g * inverse_root(v[i], least_sqr);
            f.u_sqr[row] += u * u;
        }
    }
    gg_barrier(task);
    float factor = step_factor(&f);
    for (int64_t i = f.begin * f.n; i < f.end * f.n; i++) {
        float g = clipped(gradient[i], f.u.clip, f.u.limit);
        p[i] = stepped(p[i], g * inverse_root(v[i], least_sqr), f.u.keep, factor, f.u.cautious);
    }
}
