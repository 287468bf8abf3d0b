/* hugepages.h - asking the system for large pages, which cost fewer misses of the TLB. Used by graph.c and exec.c.
 *
 * Linux decides page by page, and by default (`madvise`) only where asked. Elsewhere nothing happens.
 */
#ifndef GG_HUGEPAGES_H
#define GG_HUGEPAGES_H

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* A wish, for memory that is still untouched; what lies beside it on its first page may be wished along. */
static inline void gg_want_huge_pages(void *memory, int64_t nbytes)
{
#ifdef MADV_HUGEPAGE
    const int64_t huge = 2 << 20;
    if (nbytes < huge) return;
    uintptr_t before = (uintptr_t)memory % (uintptr_t)sysconf(_SC_PAGESIZE);
    (void)!madvise((char *)memory - before, (size_t)nbytes + before, MADV_HUGEPAGE);
#else
    (void)memory, (void)nbytes;
#endif
}

#endif
