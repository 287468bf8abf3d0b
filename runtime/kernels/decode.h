/* decode.h - numbers of any type with a decoder as float32, and float32 as half precision. Used by every kernel that
 * takes weights in the form they are stored in, and by gg_decode and gg_encode.
 *
 * Exact: what a block says is the product, and for some types the difference, of numbers that are rounded to float32
 * as the definition in ggml-quants.c does, at every ISA level alike. NaN stays NaN, infinity infinity.
 */
#ifndef GG_DECODE_H
#define GG_DECODE_H

#include "../src/tensor.h"
#include "simd.h"

/* n numbers of one type, whole blocks without gaps. */
typedef void gg_decoder(const void *blocks, int64_t n, float *out);

extern gg_decoder *const GG_ISA_NAME(gg_decoders)[]; /* by type; generated */

void GG_ISA_NAME(gg_decode)(int32_t type, int64_t n, const void *blocks, float *out);

/* To GG_TYPE_F16 or GG_TYPE_BF16, rounded to nearest, ties to even; NaN becomes a quiet NaN. */
void GG_ISA_NAME(gg_encode)(int32_t type, int64_t n, const float *x, uint16_t *out);

#endif
