/* simd_math.h - elementary functions on gg_vec, for formula ops (elementwise.h) and the row and loss kernels.
 *
 * Every function is branch-free, so a lane's result depends on that lane alone, and follows IEEE 754 at zeros,
 * denormals, infinities and NaN. Polynomials are minimax: weighted least squares on Chebyshev nodes, reweighted
 * until the error is level (Lawson), then rounded to float one coefficient at a time, refitting the rest. Each
 * comment gives the fit's own relative error, and the largest error of the function against float64 measured with
 * and without fused multiply-add, in units in the last place of the result (ulp).
 */
#ifndef GG_SIMD_MATH_H
#define GG_SIMD_MATH_H

#include "simd.h"

static inline gg_vec gg_abs(gg_vec a) { return (gg_vec)((gg_ivec)a & 0x7fffffff); }

/* Magnitude of `a`, which is not negative, with the sign of `sign`. */
static inline gg_vec gg_with_sign(gg_vec a, gg_vec sign) { return (gg_vec)((gg_ivec)a | ((gg_ivec)sign & INT32_MIN)); }

/* Constants come first in gg_max and gg_min, which give their second argument where either is NaN. */
static inline gg_vec gg_clamp(gg_vec a, float low, float high)
{
    return gg_max(gg_splat(low), gg_min(gg_splat(high), a));
}

/* 1 where low <= a <= high, else 0. */
static inline gg_vec gg_within(gg_vec a, float low, float high)
{
    return gg_select((a >= low) & (a <= high), gg_splat(1.0f), gg_splat(0.0f));
}

static inline gg_vec gg_hardsigmoid(gg_vec a) { return gg_clamp((a + 3.0f) / 6.0f, 0.0f, 1.0f); }

/* Natural logarithm of 2 in two parts: a product of the first with an exponent is exact. */
static const float gg_ln2_high = 0x1.63p-1f, gg_ln2_low = -0x1.bd0106p-13f;

static inline gg_vec gg_relu(gg_vec a) { return gg_max(gg_splat(0.0f), a); }

static inline gg_vec gg_step(gg_vec a) { return gg_select(a > 0.0f, gg_splat(1.0f), gg_splat(0.0f)); }

/* A loop the compiler turns into one instruction, where vectors have no operator. */
static inline gg_vec gg_sqrt(gg_vec a)
{
    float x[GG_LANES];
    gg_store(x, a);
    for (int i = 0; i < GG_LANES; i++) x[i] = sqrtf(x[i]);
    return gg_load(x);
}

/* By the C library, a lane at a time: no model calls them where time is spent. */
static inline gg_vec gg_sin(gg_vec a)
{
    for (int i = 0; i < GG_LANES; i++) a[i] = sinf(a[i]);
    return a;
}

static inline gg_vec gg_cos(gg_vec a)
{
    for (int i = 0; i < GG_LANES; i++) a[i] = cosf(a[i]);
    return a;
}

/* 2^n for -126 <= n <= 127 */
static inline gg_vec gg_exp2i(gg_ivec n) { return (gg_vec)((n + 127) << 23); }

/* exp(a) = 2^n (1 + r + r^2 p(r)) with a = n ln 2 + r, |r| <= ln 2 / 2. Fit 3.4e-9, error 1.02 ulp. */
static inline gg_vec gg_exp(gg_vec a)
{
    const float log2_e = 0x1.715476p0f, round = 0x1.8p23f; /* adding `round` leaves the integer in the low bits */
    gg_vec x = gg_clamp(a, -104.0f, 89.0f);                /* past these the result is 0 or inf */
    gg_vec shifted = gg_fma(x, gg_splat(log2_e), gg_splat(round));
    gg_vec n = shifted - round;
    gg_vec r = gg_fma(n, gg_splat(-gg_ln2_low), gg_fma(n, gg_splat(-gg_ln2_high), x));

    gg_vec p = gg_splat(1.3820742024108768e-3f);
    p = gg_fma(p, r, gg_splat(8.369248360395432e-3f));
    p = gg_fma(p, r, gg_splat(4.1668280959129333e-2f));
    p = gg_fma(p, r, gg_splat(1.6666516661643982e-1f));
    p = gg_fma(p, r, gg_splat(4.999999403953552e-1f));
    p = gg_fma(p * r, r, r) + 1.0f;

    /* 2^n in two factors, for n may lie outside a float's exponents: results are denormal, or infinite */
    gg_ivec exponent = (gg_ivec)shifted - (gg_ivec)gg_splat(round);
    gg_ivec half = exponent >> 1;
    return p * gg_exp2i(half) * gg_exp2i(exponent - half);
}

/* log(a) = e ln 2 + f - f^2 / 2 + f^3 p(f) with a = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2).
 * Fit 5.9e-9, error 0.84 ulp. */
static inline gg_vec gg_log(gg_vec a)
{
    const int32_t sqrt_half = 0x3f3504f3; /* bits of sqrt(1/2) */
    gg_ivec denormal = a < 0x1p-126f;
    gg_ivec bits = (gg_ivec)gg_abs(gg_select(denormal, a * 0x1p23f, a)) - sqrt_half; /* of no negative number */
    gg_vec e = __builtin_convertvector((bits >> 23) - (denormal & 23), gg_vec);
    gg_vec f = (gg_vec)((bits & 0x7fffff) + sqrt_half) - 1.0f;

    gg_vec p = gg_splat(-7.638542354106903e-2f);
    p = gg_fma(p, f, gg_splat(1.2764616310596466e-1f));
    p = gg_fma(p, f, gg_splat(-1.3159999251365662e-1f));
    p = gg_fma(p, f, gg_splat(1.4201262593269348e-1f));
    p = gg_fma(p, f, gg_splat(-1.6623327136039734e-1f));
    p = gg_fma(p, f, gg_splat(2.0001251995563507e-1f));
    p = gg_fma(p, f, gg_splat(-2.50008225440979e-1f));
    p = gg_fma(p, f, gg_splat(3.333333134651184e-1f));

    gg_vec square = f * f;
    gg_vec tail = gg_fma(e, gg_splat(gg_ln2_low), p * f * square);
    gg_vec y = gg_fma(e, gg_splat(gg_ln2_high), gg_fma(square, gg_splat(-0.5f), tail) + f);
    y = gg_select(a > 0.0f, y, gg_splat(NAN)); /* below zero, and NaN itself */
    y = gg_select(a == 0.0f, gg_splat(-INFINITY), y);
    return gg_select(a == INFINITY, a, y);
}

/* With x = |a|: x + x^3 p(x^2) below 0.6 (fit 2.8e-9), else 1 - 2 / (exp(2 x) + 1). Error 1.32 ulp. */
static inline gg_vec gg_tanh(gg_vec a)
{
    gg_vec x = gg_abs(a), square = x * x;
    gg_vec p = gg_splat(-5.897966679185629e-3f);
    p = gg_fma(p, square, gg_splat(2.079862542450428e-2f));
    p = gg_fma(p, square, gg_splat(-5.378471687436104e-2f));
    p = gg_fma(p, square, gg_splat(1.3331936299800873e-1f));
    p = gg_fma(p, square, gg_splat(-3.3333298563957214e-1f));
    gg_vec near = gg_fma(p * square, x, x);
    gg_vec far = 1.0f - 2.0f / (gg_exp(x + x) + 1.0f);
    return gg_with_sign(gg_select(x < 0.6f, near, far), a);
}

/* The upper tail of the normal distribution at x >= 0 is density * ratio: parts of one, for GELU and its slope. */
typedef struct gg_normal_tail {
    gg_vec x;       /* |a|, at most 15: past that the tail and the density are 0 in float */
    gg_vec density; /* exp(-x^2 / 2) */
    gg_vec ratio;   /* erfcx(x / sqrt 2) / 2 */
} gg_normal_tail;

/* The ratio is a rational function with positive coefficients, so it has no cancellation. Its fit minimises the
 * relative error on [0, 15] (linearised least squares, reweighted): 4.4e-8 with coefficients rounded to float. */
static inline gg_normal_tail gg_normal_tail_of(gg_vec a)
{
    gg_vec x = gg_min(gg_splat(15.0f), gg_abs(a));
    gg_vec n = gg_splat(4.153246991336346e-3f);
    n = gg_fma(n, x, gg_splat(4.0881235152482986e-2f));
    n = gg_fma(n, x, gg_splat(1.839694380760193e-1f));
    n = gg_fma(n, x, gg_splat(4.392838180065155e-1f));
    n = gg_fma(n, x, gg_splat(5.0e-1f));
    gg_vec d = gg_splat(1.0410535149276257e-2f);
    d = gg_fma(d, x, gg_splat(1.0248018056154251e-1f));
    d = gg_fma(d, x, gg_splat(4.7140949964523315e-1f));
    d = gg_fma(d, x, gg_splat(1.2055494785308838f));
    d = gg_fma(d, x, gg_splat(1.67645263671875f));
    d = gg_fma(d, x, gg_splat(1.0f));

    /* exp multiplies an error of its argument by it, so the square needs its own rounding error (Dekker 1971). */
    gg_vec high = (gg_vec)((gg_ivec)x & ~0xfff), low = x - high, square = x * x;
    gg_vec error = ((high * high - square) + 2.0f * high * low) + low * low;
    gg_vec density = gg_exp(-0.5f * square);
    return (gg_normal_tail){x, gg_fma(-0.5f * error, density, density), n / d};
}

/* a / 2 * erfc(-a / sqrt 2): for a < 0 it is -x * tail, for a > 0 it is a - x * tail. Error 3.2 ulp for a > 0 and
 * 1.1e-6 of the value for a < 0, however small it is. */
static inline gg_vec gg_gelu_erf(gg_vec a)
{
    gg_normal_tail t = gg_normal_tail_of(a);
    return gg_relu(a) - t.x * (t.density * t.ratio);
}

/* Derivative of gg_gelu_erf: distribution function + a * density / sqrt(2 pi). Absolute error 1.4e-7. */
static inline gg_vec gg_gelu_erf_slope(gg_vec a)
{
    gg_normal_tail t = gg_normal_tail_of(a);
    gg_vec below = t.density * gg_fma(t.x, gg_splat(-0x1.988454p-2f), t.ratio);
    return gg_select(a < 0.0f, below, 1.0f - below);
}

#endif
