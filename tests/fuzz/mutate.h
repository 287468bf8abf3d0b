/* mutate.h - changes to a graph file that keep most of it a graph file. Used by fuzz.c. */
#ifndef GG_FUZZ_MUTATE_H
#define GG_FUZZ_MUTATE_H

#include "dialect.h"

enum { FUZZ_MAX_NBYTES = 1 << 16, FUZZ_MAX_RECORDS = 256 };

/* A file and where its records begin, as far as they can be followed. */
typedef struct fuzz_file {
    uint8_t           *bytes; /* room for FUZZ_MAX_NBYTES */
    int64_t            size;
    const gg_dialect  *dialect;
    int32_t            n_leafs, n_records;
    int64_t            begin[FUZZ_MAX_RECORDS];
} fuzz_file;

uint64_t fuzz_random(uint64_t *state); /* splitmix64 (Steele, Lea & Flood 2014) */

/* Find the records of f->bytes. */
void fuzz_walk(fuzz_file *f);

/* One to four changes; `other` lends records. */
void fuzz_mutate(fuzz_file *f, const fuzz_file *other, uint64_t *state);

/* Give every node the type, sizes and strides that follow from its op and sources, so that more of it is accepted. */
void fuzz_repair(fuzz_file *f);

#endif
