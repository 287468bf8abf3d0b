/* dropout.c - the dropout kernel: which elements are dropped follows from a key and the element's number alone, so it is
 * the same for any number of threads, at every ISA level, and when it is asked again: no mask is kept.
 *
 * Philox4x32-10 (Salmon et al. 2011). 16 counters give the 64 words of a group of elements: word w of counter l is that of
 * element 16 w + l, which needs no shuffling at any width of vectors up to 16.
 */
#include "../src/kernel.h"
#include "simd.h"

enum { COLUMNS = 16, WORDS = 4, GROUP = COLUMNS * WORDS, N_ROUNDS = 10 };

static const uint32_t MULTIPLIERS[2] = {0xD2511F53, 0xCD9E8D57}, STEPS[2] = {0x9E3779B9, 0xBB67AE85};
static const uint32_t COLUMN[COLUMNS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* One round; in each lane a counter of its own. */
GG_INLINE void mix(gg_uvec *c, const uint32_t *key)
{
    gg_uvec high0, low0, high1, low1;
    gg_multiply_wide(c[0], MULTIPLIERS[0], &high0, &low0);
    gg_multiply_wide(c[2], MULTIPLIERS[1], &high1, &low1);
    c[0] = high1 ^ c[1] ^ key[0];
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key[1];
    c[3] = low0;
}

GG_INLINE void philox(gg_uvec *c, const uint32_t *key)
{
    uint32_t k[2] = {key[0], key[1]};
    for (int round = 0; round < N_ROUNDS; round++) {
        mix(c, k);
        for (int i = 0; i < 2; i++) k[i] += STEPS[i];
    }
}

/* What a node draws with: a key out of the run's seed, and as counter the node, the step and the micro-batch. */
static void key_of(const gg_task *task, const uint32_t *words, uint32_t *key)
{
    const uint32_t counter[WORDS] = {(uint32_t)gg_param_i32(task->y, 1), words[2], words[3], 0};
    gg_uvec c[WORDS] = {0};
    for (int w = 0; w < WORDS; w++) c[w] += counter[w];
    philox(c, words);
    key[0] = c[0][0];
    key[1] = c[1][0];
}

/* y = a * scale where the element's word is at least `least`, else 0; n <= GROUP elements of one group. */
static void drop_group(float *y, const float *a, int64_t group, int64_t n, const uint32_t *key, uint32_t least,
                       float scale)
{
    for (int64_t l = 0; l < COLUMNS; l += GG_LANES) {
        uint64_t first = (uint64_t)(group * COLUMNS);
        gg_uvec c[WORDS] = {0};
        memcpy(&c[0], COLUMN + l, sizeof c[0]);
        c[0] += (uint32_t)first;
        c[1] += (uint32_t)(first >> 32);
        philox(c, key);
        for (int w = 0; w < WORDS; w++) {
            int64_t i = w * COLUMNS + l;
            gg_ivec keep = (gg_ivec)(c[w] >= least);
            if (i + GG_LANES <= n) gg_store(y + i, gg_select(keep, gg_load(a + i) * scale, gg_splat(0.0f)));
            else if (i < n)
                gg_store_n(y + i, gg_select(keep, gg_load_n(a + i, n - i) * scale, gg_splat(0.0f)), n - i);
        }
    }
}

/* a, key: the seed's two words, the step, and 1 + the micro-batch, or 0: nothing is dropped. */
GG_KERNEL(dropout)
{
    float *y = (float *)task->y_data;
    const float *a = (const float *)task->src_data[0];
    const uint32_t *words = (const uint32_t *)task->src_data[1];
    double rate = gg_param_f32(task->y, 0);
    uint32_t key[2], least = (uint32_t)(rate * 0x1p32);
    int64_t begin, end;
    gg_share(task, gg_nelements(task->y), GROUP, &begin, &end);
    if (words[3] == 0) {
        if (y != a) memcpy(y + begin, a + begin, (size_t)(end - begin) * sizeof(float));
        return;
    }
    key_of(task, words, key);
    for (int64_t i = begin; i < end; i += GROUP)
        drop_group(y + i, a + i, i / GROUP, gg_min_i64(GROUP, end - i), key, least, (float)(1.0 / (1.0 - rate)));
}
