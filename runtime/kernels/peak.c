/* peak.c - a loop of multiply-adds in registers alone: the speed a product could at most have. Behind gg_peak_flops. */
#include "../src/base.h"
#include "simd.h"

double GG_ISA_NAME(gg_peak_loop)(int64_t n_iterations, int32_t matmul_precision);

/* At least latency times throughput on any core so far, and no more than its registers hold. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { N_CHAINS = 24 };
#else
enum { N_CHAINS = 12 };
#endif

static double fma_loop(int64_t n_iterations)
{
    gg_vec sum[N_CHAINS];
    gg_vec scale = gg_splat(0.5f), step = gg_splat(1.0f);
#pragma GCC unroll 24
    for (int c = 0; c < N_CHAINS; c++) sum[c] = gg_splat((float)c); /* equal chains would be computed once */
    for (int64_t i = 0; i < n_iterations; i++) {
#pragma GCC unroll 24
        for (int c = 0; c < N_CHAINS; c++) sum[c] = gg_fma(sum[c], scale, step);
    }
#pragma GCC unroll 24
    for (int c = 1; c < N_CHAINS; c++) sum[0] += sum[c];
    /* Never true, but only the sums tell; so the loop has to be run. */
    if (gg_hsum(sum[0]) < 0) return 0;
    return (double)n_iterations * N_CHAINS * GG_LANES * 2;
}

#if defined(__AVX512BF16__)
static double dot_loop(int64_t n_iterations)
{
    gg_vec sum[N_CHAINS], b = gg_round_bf16(gg_splat(0.5f));
    float pair = 0.5f; /* of which the lower half is zero */
#pragma GCC unroll 24
    for (int c = 0; c < N_CHAINS; c++) sum[c] = gg_splat((float)c);
    for (int64_t i = 0; i < n_iterations; i++) {
#pragma GCC unroll 24
        for (int c = 0; c < N_CHAINS; c++) sum[c] = gg_dot_bf16(&pair, b, sum[c]);
    }
#pragma GCC unroll 24
    for (int c = 1; c < N_CHAINS; c++) sum[0] += sum[c];
    if (gg_hsum(sum[0]) < 0) return 0;
    return (double)n_iterations * N_CHAINS * GG_LANES * 4;
}
#endif

double GG_ISA_NAME(gg_peak_loop)(int64_t n_iterations, int32_t matmul_precision)
{
#if defined(__AVX512BF16__)
    if (matmul_precision == GG_MATMUL_BF16) return dot_loop(n_iterations);
#endif
    (void)matmul_precision;
    return fma_loop(n_iterations);
}
