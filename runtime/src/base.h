/* base.h - what every C file of the runtime starts from: fixed-width types, the public API, arithmetic of sizes. */
#ifndef GG_BASE_H
#define GG_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gg.h"

enum { GG_MAX_SRC = 10, GG_MAX_DIMS = 4, GG_MAX_NAME = 64, GG_N_PARAMS = 16, GG_ALIGN = 64, GG_MAX_THREADS = 256 };
enum { GG_N_HYPER = 12 }; /* what an update of parameters is told each step; see ops.py */

#define GG_MAX_ELEMENTS ((int64_t)1 << 48) /* of a tensor: a product of two sizes fits 64 bits */

/* Each returns false on overflow and then leaves *out undefined. */
static inline bool gg_add_i64(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline bool gg_mul_i64(int64_t a, int64_t b, int64_t *out) { return !__builtin_mul_overflow(a, b, out); }

/* Inlined wherever it is called, so that arguments which are constants there make it a function of its own. */
#define GG_INLINE static inline __attribute__((always_inline))

static inline int64_t gg_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t gg_round_up(int64_t n, int64_t unit) { return gg_ceil_div(n, unit) * unit; }
static inline int64_t gg_align(int64_t n) { return gg_round_up(n, GG_ALIGN); }
static inline int64_t gg_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t gg_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
