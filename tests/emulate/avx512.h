/* avx512.h - AVX-512 for processors without it. What the levels avx512 and avx512_bf16 use of it becomes portable code by
 * SIMDe; the rest is vector extensions, which the compiler lowers by itself. `make emulate` includes this in front of
 * every kernel of these levels; the kernels are the same sources.
 */
#ifndef EMULATE_AVX512_H
#define EMULATE_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h> /* before the macros below make it believe in AVX-512 */
#include <simde/x86/avx512.h>
#include <string.h>

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

#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps emulate_cvtph_ps
static inline simde__m512 emulate_cvtph_ps(__m256i halves)
{
    __m256 parts[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                       _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
    simde__m512 v;
    memcpy(&v, parts, sizeof v);
    return v;
}

#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph emulate_cvtps_ph
static inline __m256i emulate_cvtps_ph(simde__m512 v, int rounding)
{
    __m256 parts[2];
    memcpy(parts, &v, sizeof v);
    (void)rounding; /* to nearest is all that is asked for, and the instruction wants a constant */
    return _mm256_set_m128i(_mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT));
}

#define __AVX512F__ 1
#if defined(EMULATE_BF16)
#define __AVX512BF16__ 1
#endif

#endif
