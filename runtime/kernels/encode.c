/* encode.c - float32 as half precision and as ggml's blocks of 32; see decode.h. Halves are rounded to nearest, ties to
 * even, and NaN becomes a quiet NaN; blocks are those of quantize_row_*_ref in ggml-quants.c. In a block NaN becomes the
 * lowest number.
 */
#include <math.h>

#include "decode.h"

enum { BLOCK = 32 };

#define ENCODER(type) void GG_ISA_NAME(gg_encode_##type)(const float *restrict x, int64_t n, void *blocks)

/* ---------------------------------------------------------------- half precision */

ENCODER(f16)
{
    uint16_t *out = blocks;
    int64_t   i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store_f16(out + i, gg_load(x + i));
    for (; i < n; i++) out[i] = gg_f32_to_f16(x[i]);
}

ENCODER(bf16)
{
    uint16_t *out = blocks;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
        out[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
    }
}

/* ---------------------------------------------------------------- blocks of 32 */

static inline void put_f16(uint8_t *p, float x)
{
    uint16_t half = gg_f32_to_f16(x);
    memcpy(p, &half, sizeof half);
}

static inline float inverse(float d) { return d == 0 ? 0 : 1 / d; }

/* The numbers x / d + zero, rounded, of 0 to `most`. */
static inline void quantise(const float *x, float d, float zero, float most, int32_t *q)
{
    float scale = inverse(d);
    for (int i = 0; i < BLOCK; i++) q[i] = (int32_t)fminf(fmaxf(x[i] * scale + zero + 0.5f, 0), most);
}

/* The element farthest from 0. */
static inline float farthest(const float *x)
{
    float found = 0;
    for (int i = 0; i < BLOCK; i++)
        if (fabsf(x[i]) > fabsf(found)) found = x[i];
    return found;
}

/* x less its smallest element, which is returned; *range is the largest of the result. */
static inline float shift(const float *x, float *shifted, float *range)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < BLOCK; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    for (int i = 0; i < BLOCK; i++) shifted[i] = x[i] - low;
    *range = high - low;
    return low;
}

/* The fifth bits of numbers that have them, then numbers 0 to 15 in the lower halves of 16 bytes, 16 to 31 in the upper. */
static inline void pack(const int32_t *q, int n_bits, uint8_t *out)
{
    if (n_bits == 5) {
        uint32_t fifth = 0;
        for (int i = 0; i < BLOCK; i++) fifth |= (uint32_t)(q[i] >> 4) << i;
        memcpy(out, &fifth, sizeof fifth);
        out += sizeof fifth;
    }
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

/* Blocks f16 d, numbers of 4 or 5 bits: d (x - half). */
static inline void encode_signed(const float *x, int64_t n, int n_bits, uint8_t *block)
{
    const int32_t half = 1 << (n_bits - 1), nbytes = 2 + 4 * n_bits;
    for (; n > 0; n -= BLOCK, block += nbytes, x += BLOCK) {
        int32_t q[BLOCK];
        float   d = farthest(x) / (float)-half;
        quantise(x, d, (float)half, (float)(2 * half - 1), q);
        put_f16(block, d);
        pack(q, n_bits, block + 2);
    }
}

/* Blocks f16 d, f16 m, numbers of 4 or 5 bits: d x + m. */
static inline void encode_shifted(const float *x, int64_t n, int n_bits, uint8_t *block)
{
    const int32_t most = (1 << n_bits) - 1, nbytes = 4 + 4 * n_bits;
    for (; n > 0; n -= BLOCK, block += nbytes, x += BLOCK) {
        int32_t q[BLOCK];
        float   shifted[BLOCK], range, low = shift(x, shifted, &range), d = range / (float)most;
        quantise(shifted, d, 0, (float)most, q);
        put_f16(block, d);
        put_f16(block + 2, low);
        pack(q, n_bits, block + 4);
    }
}

ENCODER(q4_0) { encode_signed(x, n, 4, blocks); }
ENCODER(q5_0) { encode_signed(x, n, 5, blocks); }
ENCODER(q4_1) { encode_shifted(x, n, 4, blocks); }
ENCODER(q5_1) { encode_shifted(x, n, 5, blocks); }

ENCODER(q8_0)
{
    for (uint8_t *b = blocks; n > 0; n -= BLOCK, b += 34, x += BLOCK) {
        float d = fabsf(farthest(x)) / 127, scale = inverse(d);
        put_f16(b, d);
        for (int i = 0; i < BLOCK; i++) b[2 + i] = (uint8_t)(int8_t)rintf(fminf(fmaxf(x[i] * scale, -127), 127));
    }
}

void GG_ISA_NAME(gg_encode)(int32_t type, int64_t n, const float *x, void *blocks)
{
    GG_ISA_NAME(gg_encoders)[type](x, n, blocks);
}
