/* normal.c - normally distributed numbers out of random bits: the same bytes on any machine. Behind gg_normals.
 *
 * Box & Muller (1958) in float64 out of exactly rounded operations only (+ - * / sqrt and bit moves; the build forbids
 * contraction to fused multiply-adds). Library logarithms and cosines differ in their last bit between C libraries, so
 * log, sin and cos are polynomials here, fdlibm's (Sun Microsystems, e_log.c, k_sin.c, k_cos.c), good to about 1e-16.
 * Every loop is free of branches, so that the compiler makes vectors of it.
 */
#include <math.h>
#include <string.h>

#include "../src/base.h"
#include "simd.h"

enum { BLOCK = 256 }; /* pairs at a time: the temporaries stay in the L1 cache */

void GG_ISA_NAME(gg_normals)(int64_t n, const uint64_t *bits, double mean, double std, float *out);

static inline double as_double(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint64_t as_bits(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* n < 2^53, exactly: its halves become the low bits of 2^84 and of 2^52, because few levels can convert vectors. */
static inline double to_double(uint64_t n)
{
    double high = as_double((n >> 32) | 0x4530000000000000), low = as_double((n & 0xFFFFFFFF) | 0x4330000000000000);
    return (high - 0x1.00000001p84) + low;
}

static inline double choose(bool condition, double yes, double no)
{
    uint64_t mask = 0 - (uint64_t)condition;
    return as_double((as_bits(yes) & mask) | (as_bits(no) & ~mask));
}

/* Of a normal number x > 0: x = 2^k (1 + f), s = f / (2 + f), log(1 + f) = 2 atanh(s). */
static inline double logarithm(double x)
{
    double m = as_double((as_bits(x) & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000); /* [1, 2) */
    double halve = choose(m > 0x1.6a09e667f3bcdp0, 1.0, 0.0), f = m * (1.0 - 0.5 * halve) - 1.0;
    double k = to_double(as_bits(x) >> 52) - 1023.0 + halve;
    double s = f / (2.0 + f), z = s * s, half_square = 0.5 * f * f, p = 0x1.2f112df3e5244p-3;
    p = p * z + 0x1.39a09d078c69fp-3;
    p = p * z + 0x1.7466496cb03dep-3;
    p = p * z + 0x1.c71c51d8e78afp-3;
    p = p * z + 0x1.2492494229359p-2;
    p = p * z + 0x1.999999997fa04p-2;
    p = p * z + 0x1.5555555555593p-1;
    double rest = s * (half_square + z * p);
    return k * 0x1.62e42feep-1 - ((half_square - (rest + k * 0x1.a39ef35793c76p-33)) - f);
}

/* For |x| <= pi/4. */
static inline double sine(double x)
{
    double z = x * x, p = 0x1.5d93a5acfd57cp-33;
    p = p * z + -0x1.ae5e68a2b9cebp-26;
    p = p * z + 0x1.71de357b1fe7dp-19;
    p = p * z + -0x1.a01a019c161d5p-13;
    p = p * z + 0x1.111111110f8a6p-7;
    p = p * z + -0x1.5555555555549p-3;
    return x + x * z * p;
}

static inline double cosine(double x)
{
    double z = x * x, p = -0x1.8fae9be8838d4p-37;
    p = p * z + 0x1.1ee9ebdb4b1c4p-29;
    p = p * z + -0x1.27e4f809c52adp-22;
    p = p * z + 0x1.a01a019cb1590p-16;
    p = p * z + -0x1.6c16c16c15177p-10;
    p = p * z + 0x1.555555555554cp-5;
    return 1.0 - (0.5 * z - z * z * p);
}

/* Two normals a pair of words. The first word is the radius, by 53 bits. The second is the angle: 53 bits place it in
 * the quarter turn around 0, where the polynomials hold; its lowest two bits choose the quarter. */
static void box_muller(int64_t n, const uint64_t *bits, double *normal)
{
    for (int64_t i = 0; i < n; i++) {
        uint64_t first = bits[2 * i], second = bits[2 * i + 1];
        double uniform = to_double((first >> 11) + 1) * 0x1p-53; /* (0, 1]: its logarithm is finite */
        double radius = sqrt(-2.0 * logarithm(uniform));
        radius = choose(second & 2, -radius, radius);
        double turn = (to_double(second >> 11) * 0x1p-53 - 0.5) * 0x1.921fb54442d18p0;
        double s = sine(turn), c = cosine(turn);
        normal[2 * i] = radius * choose(second & 1, s, c);
        normal[2 * i + 1] = radius * choose(second & 1, c, s);
    }
}

void GG_ISA_NAME(gg_normals)(int64_t n, const uint64_t *bits, double mean, double std, float *out)
{
    double normal[2 * BLOCK];
    for (int64_t i = 0; i < n; i += 2 * BLOCK) {
        int64_t size = gg_min_i64(2 * BLOCK, n - i);
        box_muller((size + 1) / 2, bits + i, normal);
        for (int64_t j = 0; j < size; j++) out[i + j] = (float)(mean + std * normal[j]);
    }
}
