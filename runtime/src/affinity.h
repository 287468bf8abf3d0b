/* affinity.h - which CPUs a thread may run on, and keeping it to some of them. Used by pool.c, after _GNU_SOURCE.
 *
 * Only Linux lets a program choose. Elsewhere nothing is known and every thread runs where the system puts it.
 */
#ifndef GG_AFFINITY_H
#define GG_AFFINITY_H

#include <stdbool.h>

#if defined(__linux__)
#include <sched.h>

typedef cpu_set_t gg_cpus;

/* The CPUs this thread may run on. False if the system does not say, or has more than a gg_cpus can hold. */
static inline bool gg_get_cpus(gg_cpus *cpus) { return sched_getaffinity(0, sizeof *cpus, cpus) == 0; }

/* A wish: refused, the system places the thread. */
static inline void gg_set_cpus(const gg_cpus *cpus) { (void)!sched_setaffinity(0, sizeof *cpus, cpus); }

static inline int gg_count_cpus(const gg_cpus *cpus) { return CPU_COUNT(cpus); }

/* The i-th of them alone. */
static inline gg_cpus gg_ith_cpu(const gg_cpus *cpus, int i)
{
    gg_cpus own;
    CPU_ZERO(&own);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, cpus) && i-- == 0) CPU_SET(cpu, &own);
    return own;
}

#else

typedef struct gg_cpus {
    int none;
} gg_cpus;

static inline bool gg_get_cpus(gg_cpus *cpus) { return (void)cpus, false; }
static inline void gg_set_cpus(const gg_cpus *cpus) { (void)cpus; }
static inline int gg_count_cpus(const gg_cpus *cpus) { return (void)cpus, 0; }
static inline gg_cpus gg_ith_cpu(const gg_cpus *cpus, int i) { return (void)i, *cpus; }

#endif
#endif
