/* isa.h - the ISA levels compiled into this library. Used by exec.c to pick kernels. */
#ifndef GG_ISA_H
#define GG_ISA_H

#include "kernel.h"

/* The level of that name, or for NULL the best this CPU runs; NULL and err if there is none. */
const gg_kernels *gg_isa_find(const char *isa, gg_error *err);

#endif
