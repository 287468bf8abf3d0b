/* decode.h - numbers of any type with a decoder as float32, and float32 as any type with an encoder. Used by every kernel
 * that takes operands in the form they are stored in, by cpy and cast, and by gg_decode and gg_encode.
 *
 * Decoding is exact: what a block says is the product, and for some types the difference, of numbers that are rounded to
 * float32 as the definition in ggml-quants.c does, at every ISA level alike. NaN stays NaN, infinity infinity.
 */
#ifndef GG_DECODE_H
#define GG_DECODE_H

#include "../src/tensor.h"
#include "simd.h"

/* n numbers of one type, whole blocks without gaps. */
typedef void gg_decoder(const void *blocks, int64_t n, float *out);
typedef void gg_encoder(const float *x, int64_t n, void *blocks);

extern gg_decoder *const GG_ISA_NAME(gg_decoders)[]; /* by type; generated */
extern gg_encoder *const GG_ISA_NAME(gg_encoders)[];

void GG_ISA_NAME(gg_decode)(int32_t type, int64_t n, const void *blocks, float *out);
void GG_ISA_NAME(gg_encode)(int32_t type, int64_t n, const float *x, void *blocks);

#endif
