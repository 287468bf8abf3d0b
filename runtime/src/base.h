/* base.h - what every C file of the runtime starts from: fixed-width types, the public API, checked arithmetic. */
#ifndef GG_BASE_H
#define GG_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gg.h"

enum { GG_MAX_SRC = 10, GG_MAX_DIMS = 4, GG_MAX_NAME = 64, GG_N_PARAMS = 16, GG_ALIGN = 64, GG_MAX_THREADS = 256 };

#define GG_MAX_ELEMENTS ((int64_t)1 << 48) /* of a tensor: a product of two sizes fits 64 bits */

/* Each returns false on overflow and then leaves *out undefined. */
static inline bool gg_add_i64(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline bool gg_mul_i64(int64_t a, int64_t b, int64_t *out) { return !__builtin_mul_overflow(a, b, out); }

static inline int64_t gg_align(int64_t n) { return (n + GG_ALIGN - 1) / GG_ALIGN * GG_ALIGN; }
static inline int64_t gg_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t gg_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
