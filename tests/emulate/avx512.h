/* avx512.h - AVX-512 for processors without it. What the levels avx512 and avx512_bf16 use of it becomes portable code by
 * SIMDe; the rest is vector extensions, which the compiler lowers by itself. `make emulate` includes this in front of
 * every kernel of these levels; the kernels are the same sources.
 */
#ifndef EMULATE_AVX512_H
#define EMULATE_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h> /* before the macros below make it believe in AVX-512 */
#include <simde/x86/avx512.h>

/* Not in SIMDe 0.7.4. */
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps emulate_maskz_loadu_ps
static inline simde__m512 emulate_maskz_loadu_ps(simde__mmask16 mask, const float *p)
{
    simde__m512 v = simde_mm512_setzero_ps();
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) v[i] = p[i];
    return v;
}

#define __AVX512F__ 1
#if defined(EMULATE_BF16)
#define __AVX512BF16__ 1
#endif

#endif
