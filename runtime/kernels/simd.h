/* simd.h - one vector type for every ISA level, by GCC vector extensions: + - * / and comparisons are operators.
 *
 * The build compiles every kernel file once per level with that level's flags and -DGG_ISA=<suffix>; GG_LANES and
 * the few operations that have no operator are chosen here, and nowhere else. gg_fma rounds once where the level
 * has fused multiply-add and twice where it does not, the same way for every element.
 */
#ifndef GG_SIMD_H
#define GG_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* GG_ISA_NAME(f) is f_<level>: what gives each level's copy of a function its own symbol. */
#define GG_PASTE_(a, b) a##_##b
#define GG_PASTE(a, b) GG_PASTE_(a, b)
#define GG_ISA_NAME(name) GG_PASTE(name, GG_ISA)
#define GG_KERNEL(name) void GG_ISA_NAME(gg_kernel_##name)(const gg_task *task)

/* Before a loop none of whose turns reads what another writes, though its pointers may be equal. */
#if defined(__clang__)
#define GG_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define GG_INDEPENDENT _Pragma("GCC ivdep")
#endif

#if defined(__AVX512F__)
enum { GG_LANES = 16 };
#elif defined(__AVX2__)
enum { GG_LANES = 8 };
#else
enum { GG_LANES = 4 };
#endif

typedef float gg_vec __attribute__((vector_size(GG_LANES * 4)));
typedef int32_t gg_ivec __attribute__((vector_size(GG_LANES * 4)));
typedef uint32_t gg_uvec __attribute__((vector_size(GG_LANES * 4)));

static inline gg_vec gg_load(const float *p)
{
    gg_vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void gg_store(float *p, gg_vec v) { memcpy(p, &v, sizeof v); }

static inline gg_vec gg_splat(float x) { return x - (gg_vec){0}; }

/* The first n < GG_LANES elements; the other lanes are zero, and nothing past p + n is touched. */
static inline gg_vec gg_load_n(const float *p, int64_t n)
{
#if defined(__AVX512F__)
    return (gg_vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(__AVX2__)
    const gg_ivec lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (gg_vec)_mm256_maskload_ps(p, (__m256i)(lane < (int32_t)n));
#else
    gg_vec v = {0};
    memcpy(&v, p, (size_t)n * sizeof(float));
    return v;
#endif
}

static inline void gg_store_n(float *p, gg_vec v, int64_t n) { memcpy(p, &v, (size_t)n * sizeof(float)); }

/* a * b + c */
static inline gg_vec gg_fma(gg_vec a, gg_vec b, gg_vec c)
{
#if defined(__AVX512F__)
    return (gg_vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (gg_vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (gg_vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* Lanes 2i and 2i + 1 have changed places. */
static inline gg_vec gg_swap_pairs(gg_vec v)
{
    typedef uint64_t pair_vec __attribute__((vector_size(GG_LANES * 4)));
    return (gg_vec)((pair_vec)v << 32 | (pair_vec)v >> 32);
}

/* The 64 bits of each lane's product with m, the upper and the lower half. */
static inline void gg_multiply_wide(gg_uvec a, uint32_t m, gg_uvec *high, gg_uvec *low)
{
    typedef uint64_t pair_vec __attribute__((vector_size(GG_LANES * 4)));
    const pair_vec lower = (pair_vec){0} + 0xffffffff;
    pair_vec even = (pair_vec)a, odd = (pair_vec)a >> 32;
#if defined(__AVX512F__)
    even = (pair_vec)_mm512_mul_epu32((__m512i)even, _mm512_set1_epi64(m));
    odd = (pair_vec)_mm512_mul_epu32((__m512i)odd, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
    even = (pair_vec)_mm256_mul_epu32((__m256i)even, _mm256_set1_epi64x(m));
    odd = (pair_vec)_mm256_mul_epu32((__m256i)odd, _mm256_set1_epi64x(m));
#elif defined(__SSE2__)
    even = (pair_vec)_mm_mul_epu32((__m128i)even, _mm_set1_epi64x(m));
    odd = (pair_vec)_mm_mul_epu32((__m128i)odd, _mm_set1_epi64x(m));
#else
    even = (even & lower) * m;
    odd = odd * m;
#endif
    *high = (gg_uvec)(even >> 32 | (odd & ~lower));
    *low = (gg_uvec)((even & lower) | odd << 32);
}

/* mask: all ones or all zeros in each lane, as a comparison gives it. */
static inline gg_vec gg_select(gg_ivec mask, gg_vec yes, gg_vec no)
{
    return (gg_vec)((mask & (gg_ivec)yes) | (~mask & (gg_ivec)no));
}

/* a > b ? a : b, which x86 has as an instruction; so the second argument where either is NaN. */
static inline gg_vec gg_max(gg_vec a, gg_vec b)
{
#if defined(__AVX512F__)
    return (gg_vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (gg_vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (gg_vec)_mm_max_ps((__m128)a, (__m128)b);
#else
    return gg_select(a > b, a, b);
#endif
}

static inline gg_vec gg_min(gg_vec a, gg_vec b)
{
#if defined(__AVX512F__)
    return (gg_vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (gg_vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (gg_vec)_mm_min_ps((__m128)a, (__m128)b);
#else
    return gg_select(a < b, a, b);
#endif
}

/* Four floats from src + at[0], four from src + at[4], and so on. */
static inline gg_vec gg_load_blocks(const float *src, const int64_t *at)
{
#if defined(__AVX512F__)
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(src + at[0]));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(src + at[4]), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(src + at[8]), 2);
    return (gg_vec)_mm512_insertf32x4(v, _mm_loadu_ps(src + at[12]), 3);
#elif defined(__AVX2__)
    __m256 v = _mm256_castps128_ps256(_mm_loadu_ps(src + at[0]));
    return (gg_vec)_mm256_insertf128_ps(v, _mm_loadu_ps(src + at[4]), 1);
#else
    return gg_load(src + at[0]);
#endif
}

/* In each 128 bits of two vectors, of lanes a0 to a3 and b0 to b3:
 * low floats a0 b0 a1 b1, high floats a2 b2 a3 b3, low pairs a0 a1 b0 b1, high pairs a2 a3 b2 b3. */
#if defined(__AVX512F__)
static inline gg_vec gg_low_floats(gg_vec a, gg_vec b) { return (gg_vec)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
static inline gg_vec gg_high_floats(gg_vec a, gg_vec b) { return (gg_vec)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
static inline gg_vec gg_low_pairs(gg_vec a, gg_vec b) { return (gg_vec)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); }
static inline gg_vec gg_high_pairs(gg_vec a, gg_vec b) { return (gg_vec)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); }
#elif defined(__AVX2__)
static inline gg_vec gg_low_floats(gg_vec a, gg_vec b) { return (gg_vec)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
static inline gg_vec gg_high_floats(gg_vec a, gg_vec b) { return (gg_vec)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
static inline gg_vec gg_low_pairs(gg_vec a, gg_vec b) { return (gg_vec)_mm256_unpacklo_pd((__m256d)a, (__m256d)b); }
static inline gg_vec gg_high_pairs(gg_vec a, gg_vec b) { return (gg_vec)_mm256_unpackhi_pd((__m256d)a, (__m256d)b); }
#else
static inline gg_vec gg_low_floats(gg_vec a, gg_vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
static inline gg_vec gg_high_floats(gg_vec a, gg_vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
static inline gg_vec gg_low_pairs(gg_vec a, gg_vec b) { return __builtin_shufflevector(a, b, 0, 1, 4, 5); }
static inline gg_vec gg_high_pairs(gg_vec a, gg_vec b) { return __builtin_shufflevector(a, b, 2, 3, 6, 7); }
#endif

/* Each lane's nearest bfloat16, ties to even, which is the upper half of a float32; NaN stays NaN. */
static inline gg_vec gg_round_bf16(gg_vec v)
{
    gg_uvec bits = (gg_uvec)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
    gg_vec nearest = gg_select(v == v, (gg_vec)rounded, (gg_vec)(bits | 0x400000));
    return (gg_vec)((gg_uvec)nearest & 0xffff0000);
}

#if defined(__AVX512BF16__)
/* c plus the products of both halves: a pair of bfloat16, the same for all lanes, and each lane's pair of b. Denormal
 * numbers count as 0. */
static inline gg_vec gg_dot_bf16(const float *a, gg_vec b, gg_vec c)
{
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    return (gg_vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)(pair + (gg_ivec){0}), (__m512bh)b);
}
#endif

/* Sum and maximum over the lanes, in a fixed pairwise order: lane i and the lane half a vector on, again and again. */
static inline float gg_hsum(gg_vec v)
{
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 half = _mm512_castps512_ps256((__m512)v) +
                  _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1));
#else
    __m256 half = (__m256)v;
#endif
    __m128 four = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
    __m128 two = four + _mm_movehl_ps(four, four);
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    for (int half = GG_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
#endif
}

static inline float gg_hmax(gg_vec v)
{
    float max = v[0];
    for (int i = 1; i < GG_LANES; i++) max = v[i] > max ? v[i] : max;
    return max;
}

/* Half precision. NaN stays NaN; to half precision rounds to nearest, ties to even. */

static inline float gg_f16_to_f32(uint16_t x)
{
    uint32_t magnitude = (uint32_t)(x & 0x7fff) << 13, sign = (uint32_t)(x & 0x8000) << 16;
    float    value;
    memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f; /* the exponents' biases differ by 112 */
    memcpy(&magnitude, &value, sizeof value);
    if ((x & 0x7c00) == 0x7c00) magnitude |= 0x7f800000;
    magnitude |= sign;
    memcpy(&value, &magnitude, sizeof value);
    return value;
}

static inline uint16_t gg_f32_to_f16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* from halfway beyond the largest on: infinite */
    if (magnitude < 0x38800000) { /* no normal number of half precision: adding 0.5 rounds it to a multiple of 2^-24 */
        float sum;
        memcpy(&sum, &magnitude, sizeof sum);
        sum += 0.5f;
        memcpy(&magnitude, &sum, sizeof sum);
        return (uint16_t)(sign | (magnitude - 0x3f000000));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

static inline gg_vec gg_load_f16(const uint16_t *p)
{
#if defined(__AVX512F__)
    return (gg_vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return (gg_vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    gg_vec v;
    for (int i = 0; i < GG_LANES; i++) v[i] = gg_f16_to_f32(p[i]);
    return v;
#endif
}

static inline void gg_store_f16(uint16_t *p, gg_vec v)
{
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < GG_LANES; i++) p[i] = gg_f32_to_f16(v[i]);
#endif
}

#endif
