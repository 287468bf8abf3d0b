/* isa.c - which levels exist, which this CPU runs, and what needs a level but no graph: the peak,
 * normals, element types. See isa.h. */
#include "isa.h"

#include "clock.h"
#include "graph.h"
#include "pool.h"

#if defined(__x86_64__)
extern const gg_kernels gg_kernels_avx512_bf16, gg_kernels_avx512, gg_kernels_avx2, gg_kernels_x86_64_v2;
static const gg_kernels *const levels[] = {&gg_kernels_avx512_bf16, &gg_kernels_avx512, &gg_kernels_avx2,
                                           &gg_kernels_x86_64_v2};
#elif defined(__aarch64__)
extern const gg_kernels gg_kernels_neon;
static const gg_kernels *const levels[] = {&gg_kernels_neon};
#else
#error "ggmlgraph supports x86-64 and AArch64"
#endif

enum { N_LEVELS = sizeof levels / sizeof levels[0] };

const char *gg_isa_name(int32_t level) { return level >= 0 && level < N_LEVELS ? levels[level]->isa : NULL; }

int32_t gg_isa_supported(int32_t level)
{
    if (!gg_isa_name(level)) return 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool x86_64_v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    bool supported[N_LEVELS] = {avx512 && __builtin_cpu_supports("avx512bf16"), avx512, avx2, x86_64_v2};
    return supported[level];
#else
    return 1;
#endif
}

const gg_kernels *gg_isa_find(const char *isa, gg_error *err)
{
    for (int32_t level = 0; level < N_LEVELS; level++) {
        if (isa && strcmp(isa, levels[level]->isa) != 0) continue;
        if (gg_isa_supported(level)) return levels[level];
        if (isa) break;
    }
    gg_fail(err, GG_ERR_ARGUMENT, -1, "ISA level %.32s is not one this build has and this CPU runs",
            isa ? isa : "x86_64_v2");
    return NULL;
}

/* ---------------------------------------------------------------- the peak */

typedef struct peak {
    const gg_kernels *kernels;
    int32_t           matmul_precision;
    double            seconds;
    double            rate[GG_MAX_THREADS];
} peak;

static void measure(void *arg, int ith)
{
    peak *p = arg;
    double flops = 0, start = gg_now(), elapsed;
    do {
        flops += p->kernels->peak_loop(20000, p->matmul_precision);
        elapsed = gg_now() - start;
    } while (elapsed < p->seconds);
    p->rate[ith] = flops / elapsed;
}

double gg_peak_flops(const char *isa, int32_t matmul_precision, int32_t n_threads, double seconds)
{
    peak p = {.kernels = gg_isa_find(isa, NULL), .matmul_precision = matmul_precision, .seconds = seconds};
    gg_pool *pool = p.kernels ? gg_pool_new(n_threads, NULL) : NULL;
    double total = 0;
    if (pool && gg_pool_enter(pool, NULL) == 0) {
        gg_pool_run(pool, measure, &p);
        gg_pool_leave(pool);
        for (int32_t i = 0; i < n_threads; i++) total += p.rate[i];
    }
    gg_pool_free(pool);
    return total;
}

/* ---------------------------------------------------------------- element types */

int32_t gg_decode(int32_t type, int64_t n, const void *blocks, float *out, gg_error *err)
{
    const gg_kernels *kernels = gg_isa_find(NULL, err);
    if (!kernels) return -1;
    if (!gg_is_type(type) || !gg_types[type].decodes || n < 0 || n % gg_types[type].block)
        return gg_fail(err, GG_ERR_ARGUMENT, -1, "%lld numbers of type %d cannot be decoded", (long long)n, type);
    kernels->decode(type, n, blocks, out);
    return 0;
}

int32_t gg_encode(int32_t type, int64_t n, const float *x, void *blocks, gg_error *err)
{
    const gg_kernels *kernels = gg_isa_find(NULL, err);
    if (!kernels) return -1;
    if (!gg_is_type(type) || !gg_types[type].encodes || n < 0 || n % gg_types[type].block)
        return gg_fail(err, GG_ERR_ARGUMENT, -1, "%lld numbers cannot be encoded as type %d", (long long)n, type);
    kernels->encode(type, n, x, blocks);
    return 0;
}

/* ---------------------------------------------------------------- first weights */

int32_t gg_normals(int64_t n, const uint64_t *bits, double mean, double std, float *out, gg_error *err)
{
    const gg_kernels *kernels = gg_isa_find(NULL, err);
    if (!kernels) return -1;
    kernels->normals(n, bits, mean, std, out);
    return 0;
}
