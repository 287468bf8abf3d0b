/* error.c - the one place that writes a gg_error. */
#include <stdarg.h>
#include <stdio.h>

#include "graph.h"

int32_t gg_fail(gg_error *err, int32_t code, int32_t node, const char *format, ...)
{
    if (!err) return -1;
    err->code = code;
    err->node = node;
    err->offset = -1;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return -1;
}
