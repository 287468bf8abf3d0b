/* swiglu.c - both cotangents of silu(a) * b in one pass, for they share the sigmoid. Called by the executor. */
#include "../src/kernel.h"
#include "simd_math.h"

typedef struct cotangents {
    gg_vec da, db;
} cotangents;

static inline cotangents differentiate(gg_vec g, gg_vec a, gg_vec b)
{
    gg_vec sigmoid = 1.0f / (1.0f + gg_exp(-a));
    return (cotangents){g * b * (sigmoid * (1.0f + a * (1.0f - sigmoid))), g * (a * sigmoid)};
}

/* y, which may be g; sources g, a, b, db */
GG_KERNEL(swiglu_back)
{
    const float *g = (const float *)task->src_data[0], *a = (const float *)task->src_data[1];
    const float *b = (const float *)task->src_data[2];
    float       *da = (float *)task->y_data, *db = (float *)task->src_data[3];
    int64_t      i, end;
    gg_share(task, gg_nelements(task->y), 1024, &i, &end);
    for (; i + GG_LANES <= end; i += GG_LANES) {
        cotangents c = differentiate(gg_load(g + i), gg_load(a + i), gg_load(b + i));
        gg_store(da + i, c.da);
        gg_store(db + i, c.db);
    }
    if (i == end) return;
    cotangents c = differentiate(gg_load_n(g + i, end - i), gg_load_n(a + i, end - i), gg_load_n(b + i, end - i));
    gg_store_n(da + i, c.da, end - i);
    gg_store_n(db + i, c.db, end - i);
}
