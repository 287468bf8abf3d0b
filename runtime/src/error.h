/* error.h - filling a gg_error. Used by everything that can fail. */
#ifndef GG_ERROR_H
#define GG_ERROR_H

#include "base.h"

/* Fill err (may be NULL) printf-style; always returns -1. `code` is the broken rule's, default the kind's. */
int32_t gg_fail(gg_error *err, int32_t kind, int32_t node, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int32_t gg_fail_as(gg_error *err, int32_t kind, const char *code, int32_t node, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

#endif
