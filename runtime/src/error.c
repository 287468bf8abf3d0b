/* error.c - the one place that writes a gg_error. */
#include <stdarg.h>
#include <stdio.h>

#include "error.h"

/* The code of an error that names no rule of its own. */
static const char *const codes[] = {
    [GG_ERR_SHAPE] = "BadShape",
    [GG_ERR_FORMAT] = "BadFormat",
    [GG_ERR_UNSUPPORTED] = "Unsupported",
    [GG_ERR_MEMORY] = "OutOfMemory",
    [GG_ERR_DATA] = "BadValue",
    [GG_ERR_ARGUMENT] = "BadArgument",
    [GG_ERR_LIMIT] = "OverLimit",
};

static int32_t fill(gg_error *err, int32_t kind, const char *code, int32_t node, const char *format, va_list args)
{
    if (!err) return -1;
    err->kind = kind;
    err->code = code;
    err->node = node;
    err->offset = -1;
    vsnprintf(err->message, sizeof err->message, format, args);
    return -1;
}

int32_t gg_fail(gg_error *err, int32_t kind, int32_t node, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(err, kind, codes[kind], node, format, args);
    va_end(args);
    return -1;
}

int32_t gg_fail_as(gg_error *err, int32_t kind, const char *code, int32_t node, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(err, kind, code, node, format, args);
    va_end(args);
    return -1;
}
