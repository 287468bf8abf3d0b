/* peak.c - a loop of multiply-adds in registers alone: the speed a product could at most have. Behind gg_peak_flops. */
#include "../src/base.h"
#include "simd.h"

double GG_ISA_NAME(gg_fma_loop)(int64_t n_iterations);

/* At least latency times throughput on any core so far, and no more than its registers hold. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { N_CHAINS = 24 };
#else
enum { N_CHAINS = 12 };
#endif

double GG_ISA_NAME(gg_fma_loop)(int64_t n_iterations)
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
