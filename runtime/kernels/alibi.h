/* alibi.h - the slopes of ALiBi (Press et al. 2022): each head's factor of the mask. As ggml has them: for heads that
 * are no power of two, those beyond it take every second slope of the next. Used by rows.c and flash_attention.c.
 */
#ifndef GG_ALIBI_H
#define GG_ALIBI_H

#include <math.h>
#include <stdint.h>

static inline float gg_alibi_slope(int64_t head, int64_t n_head, float max_bias)
{
    int64_t n_main = 1;
    if (max_bias == 0) return 1;
    while (2 * n_main <= n_head) n_main *= 2;
    double steps = head < n_main ? (double)(head + 1) : (double)(2 * (head - n_main) + 1) / 2;
    return (float)exp2(-max_bias * steps / (double)n_main);
}

#endif
