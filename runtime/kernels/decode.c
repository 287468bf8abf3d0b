/* decode.c - see decode.h. The blocks are those of ggml-common.h; a decoder is straight loops over bytes that the
 * compiler vectorises for each level.
 */
#include "decode.h"

enum { BLOCK = 32, SUPER_BLOCK = 256 };

#define DECODER(type) void GG_ISA_NAME(gg_decode_##type)(const void *blocks, int64_t n, float *restrict out)

static inline float f16_at(const uint8_t *p)
{
    uint16_t x;
    memcpy(&x, p, sizeof x);
    return gg_f16_to_f32(x);
}

/* ---------------------------------------------------------------- half precision */

DECODER(f16)
{
    const uint16_t *x = blocks;
    int64_t i = 0;
    for (; i + GG_LANES <= n; i += GG_LANES) gg_store(out + i, gg_load_f16(x + i));
    for (; i < n; i++) out[i] = gg_f16_to_f32(x[i]);
}

DECODER(bf16)
{
    const uint16_t *x = blocks;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
}

/* ---------------------------------------------------------------- blocks of 32 */

/* Numbers 0 to 15 in the lower halves of 16 bytes, 16 to 31 in the upper. */
static inline void unpack_nibbles(const uint8_t *q, int32_t *x)
{
    for (int i = 0; i < 16; i++) {
        x[i] = q[i] & 15;
        x[i + 16] = q[i] >> 4;
    }
}

/* Bit i of `high` is bit 4 of number i. */
static inline void add_fifth_bits(const uint8_t *high, int32_t *x)
{
    uint32_t bits;
    memcpy(&bits, high, sizeof bits);
    for (int i = 0; i < BLOCK; i++) x[i] |= (int32_t)(bits >> i & 1) << 4;
}

static inline void scale_block(const int32_t *x, int32_t zero, float d, float *restrict out)
{
    for (int i = 0; i < BLOCK; i++) out[i] = d * (float)(x[i] - zero);
}

static inline void scale_and_shift_block(const int32_t *x, float d, float m, float *restrict out)
{
    for (int i = 0; i < BLOCK; i++) out[i] = d * (float)x[i] + m;
}

/* f16 d, 16 bytes: d (x - 8) */
DECODER(q4_0)
{
    for (const uint8_t *b = blocks; n > 0; n -= BLOCK, b += 18, out += BLOCK) {
        int32_t x[BLOCK];
        unpack_nibbles(b + 2, x);
        scale_block(x, 8, f16_at(b), out);
    }
}

/* f16 d, m, 16 bytes: d x + m */
DECODER(q4_1)
{
    for (const uint8_t *b = blocks; n > 0; n -= BLOCK, b += 20, out += BLOCK) {
        int32_t x[BLOCK];
        unpack_nibbles(b + 4, x);
        scale_and_shift_block(x, f16_at(b), f16_at(b + 2), out);
    }
}

/* f16 d, fifth bits, 16 bytes: d (x - 16) */
DECODER(q5_0)
{
    for (const uint8_t *b = blocks; n > 0; n -= BLOCK, b += 22, out += BLOCK) {
        int32_t x[BLOCK];
        unpack_nibbles(b + 6, x);
        add_fifth_bits(b + 2, x);
        scale_block(x, 16, f16_at(b), out);
    }
}

/* f16 d, m, fifth bits, 16 bytes: d x + m */
DECODER(q5_1)
{
    for (const uint8_t *b = blocks; n > 0; n -= BLOCK, b += 24, out += BLOCK) {
        int32_t x[BLOCK];
        unpack_nibbles(b + 8, x);
        add_fifth_bits(b + 4, x);
        scale_and_shift_block(x, f16_at(b), f16_at(b + 2), out);
    }
}

/* f16 d, 32 signed bytes: d x */
DECODER(q8_0)
{
    for (const uint8_t *b = blocks; n > 0; n -= BLOCK, b += 34, out += BLOCK) {
        const int8_t *x = (const int8_t *)b + 2;
        float d = f16_at(b);
        for (int i = 0; i < BLOCK; i++) out[i] = d * (float)x[i];
    }
}

/* ---------------------------------------------------------------- super-blocks of 256 */

/* 16 bytes of a scale and a minimum in 4 bits each, 64 bytes of 2 bits, f16 d, m: for 16 at a time d scale x - m min.
 * A byte holds numbers that are 32 apart. */
DECODER(q2_k)
{
    for (const uint8_t *b = blocks; n > 0; n -= SUPER_BLOCK, b += 84, out += SUPER_BLOCK) {
        float d = f16_at(b + 80), m = f16_at(b + 82);
        for (int k = 0; k < 16; k++) {
            const uint8_t *q = b + 16 + k / 8 * 32 + k % 2 * 16;
            float scale = d * (float)(b[k] & 15), min = m * (float)(b[k] >> 4);
            int shift = k % 8 / 2 * 2;
            for (int i = 0; i < 16; i++) out[k * 16 + i] = scale * (float)(q[i] >> shift & 3) - min;
        }
    }
}

/* 32 bytes of third bits, 64 bytes of 2 bits, 12 bytes of 6-bit scales, f16 d: for 16 at a time d (scale - 32) (x - 4).
 * Of scale k, the lower four bits lie in a half of byte k % 8, the upper two in byte 8 + k % 4. */
DECODER(q3_k)
{
    for (const uint8_t *b = blocks; n > 0; n -= SUPER_BLOCK, b += 110, out += SUPER_BLOCK) {
        const uint8_t *scales = b + 96;
        float d = f16_at(b + 108);
        for (int k = 0; k < 16; k++) {
            const uint8_t *high = b + k % 2 * 16, *q = b + 32 + k / 8 * 32 + k % 2 * 16;
            int low_bits = scales[k % 8] >> k / 8 * 4 & 15, high_bits = scales[8 + k % 4] >> k / 4 * 2 & 3;
            float scale = d * (float)((low_bits | high_bits << 4) - 32);
            int shift = k % 8 / 2 * 2;
            for (int i = 0; i < 16; i++) {
                int x = (q[i] >> shift & 3) | (high[i] >> k / 2 & 1) << 2;
                out[k * 16 + i] = scale * (float)(x - 4);
            }
        }
    }
}

/* Scale and minimum k of 8, 6 bits each in 12 bytes: those of 0 to 3 whole, the upper bits of 4 to 7 above them. */
static inline void scale_and_min(const uint8_t *s, int k, float d, float m, float *scale, float *min)
{
    int of_scale = k < 4 ? s[k] & 63 : (s[k + 4] & 15) | s[k - 4] >> 6 << 4;
    int of_min = k < 4 ? s[k + 4] & 63 : s[k + 4] >> 4 | s[k] >> 6 << 4;
    *scale = d * (float)of_scale;
    *min = m * (float)of_min;
}

/* f16 d, m, 12 bytes of scales and minima, 128 bytes of 4 bits: for 32 at a time d scale x - m min */
DECODER(q4_k)
{
    for (const uint8_t *b = blocks; n > 0; n -= SUPER_BLOCK, b += 144, out += SUPER_BLOCK)
        for (int k = 0; k < 8; k++) {
            const uint8_t *q = b + 16 + k / 2 * 32;
            int shift = k % 2 * 4;
            float scale, min;
            scale_and_min(b + 4, k, f16_at(b), f16_at(b + 2), &scale, &min);
            for (int i = 0; i < 32; i++) out[k * 32 + i] = scale * (float)(q[i] >> shift & 15) - min;
        }
}

/* The same with 32 bytes of fifth bits before the 4 bits; bit k of byte i belongs to number i of 32 k. */
DECODER(q5_k)
{
    for (const uint8_t *b = blocks; n > 0; n -= SUPER_BLOCK, b += 176, out += SUPER_BLOCK)
        for (int k = 0; k < 8; k++) {
            const uint8_t *high = b + 16, *q = b + 48 + k / 2 * 32;
            int shift = k % 2 * 4;
            float scale, min;
            scale_and_min(b + 4, k, f16_at(b), f16_at(b + 2), &scale, &min);
            for (int i = 0; i < 32; i++)
                out[k * 32 + i] = scale * (float)((q[i] >> shift & 15) | (high[i] >> k & 1) << 4) - min;
        }
}

/* 128 bytes of 4 bits, 64 bytes of upper 2 bits, 16 signed scales, f16 d: for 16 at a time d scale (x - 32) */
DECODER(q6_k)
{
    for (const uint8_t *b = blocks; n > 0; n -= SUPER_BLOCK, b += 210, out += SUPER_BLOCK) {
        const int8_t *scales = (const int8_t *)b + 192;
        float d = f16_at(b + 208);
        for (int k = 0; k < 16; k++) {
            int half = k / 8, quarter = k % 8 / 2, column = k % 2 * 16; /* of 128, of 32 */
            const uint8_t *q = b + half * 64 + quarter % 2 * 32 + column, *high = b + 128 + half * 32 + column;
            int shift = quarter / 2 * 4;
            float scale = d * (float)scales[k];
            for (int i = 0; i < 16; i++) {
                int x = (q[i] >> shift & 15) | (high[i] >> 2 * quarter & 3) << 4;
                out[k * 16 + i] = scale * (float)(x - 32);
            }
        }
    }
}

void GG_ISA_NAME(gg_decode)(int32_t type, int64_t n, const void *blocks, float *out)
{
    GG_ISA_NAME(gg_decoders)[type](blocks, n, out);
}
