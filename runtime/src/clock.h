/* clock.h - the monotonic clock. Used by exec.c to profile and by isa.c to measure the peak. */
#ifndef GG_CLOCK_H
#define GG_CLOCK_H

#include <time.h>

/* Seconds since some fixed moment. */
static inline double gg_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
