/* rope.c - rotary position embedding and its inverse (Su et al. 2021): ops ROPE and ROPE_BACK.
 *
 * The angles depend on the position and the pair alone, so they are computed once per position for a block of pairs
 * and applied to every head of every sequence. Positions are shared between the threads.
 */
#include "gg_ops.h"
#include "rows.h"
#include "simd.h"

enum { MODE_NEOX = 2, PAIR_BLOCK = 64 };

/* Pairs [first, first + n) of a head. */
typedef struct pairs {
    int64_t first, n;
    double  frequency[PAIR_BLOCK]; /* angle per position */
    float   cos[2 * PAIR_BLOCK], sin[2 * PAIR_BLOCK]; /* one of each per pair; after spread_angles, per element */
} pairs;

/* YaRN (Peng et al. 2023): slow pairs are interpolated, fast ones keep their frequency, in between a ramp. */
typedef struct ramp {
    double low, high; /* pairs: fast up to low, slow from high on */
} ramp;

/* The pair that turns `turns` times in the context that the model was trained on. */
static double turning_pair(const gg_tensor *y, double turns)
{
    const double pi = 3.14159265358979323846;
    double       n_dims = gg_param_i32(y, 1), n_ctx = gg_param_i32(y, 4), base = gg_param_f32(y, 5);
    return n_dims * log(n_ctx / (turns * 2 * pi)) / (2 * log(base));
}

static ramp ramp_of(const gg_tensor *y)
{
    return (ramp){fmax(0, floor(turning_pair(y, gg_param_f32(y, 9)))),
                  fmin(gg_param_i32(y, 1) - 1, ceil(turning_pair(y, gg_param_f32(y, 10))))};
}

/* Factor of a pair's frequency: `scale`, or for fast pairs 1 as far as ext_factor says. */
static double scale_of(const gg_tensor *y, int64_t pair)
{
    double scale = gg_param_f32(y, 6), ext_factor = gg_param_f32(y, 7);
    if (ext_factor == 0) return scale;
    ramp   r = ramp_of(y);
    double slow = fmin(1, fmax(0, ((double)pair - r.low) / fmax(0.001, r.high - r.low)));
    double mix = (1 - slow) * ext_factor;
    return scale * (1 - mix) + mix;
}

/* Factor of the result: with YaRN also that of its section 3.4. */
static float magnitude_of(const gg_tensor *y)
{
    double attn_factor = gg_param_f32(y, 8), scale = gg_param_f32(y, 6);
    return (float)(gg_param_f32(y, 7) == 0 ? attn_factor : attn_factor * (1 + 0.1 * log(1 / scale)));
}

static void set_frequencies(pairs *p, const gg_task *task)
{
    const float *factors = task->src[2] ? (const float *)task->src_data[2] : NULL;
    double       n_dims = gg_param_i32(task->y, 1), base = gg_param_f32(task->y, 5);
    for (int64_t i = 0; i < p->n; i++) {
        int64_t pair = p->first + i;
        p->frequency[i] = scale_of(task->y, pair) * pow(base, -2.0 * (double)pair / n_dims) / (factors ? factors[pair] : 1.0);
    }
}

/* Cosine and sine in double, then rounded: at position 1e5 a float angle is off by 4e-3. The angle is reduced to
 * [-pi/4, pi/4] by multiples of pi/2, there the Taylor series err by 4e-13, and the two swap places and
 * signs by quadrant. Without calls or branches, so that the compiler vectorises it. */
static void set_angles(pairs *p, double position, float magnitude, float direction)
{
    const double round = 0x1.8p52; /* adding it leaves the nearest integer in the low bits */
    const double half_pi_high = 0x1.921fb544p0, half_pi_low = 0x1.0b4611a626331p-34;
    for (int64_t i = 0; i < p->n; i++) {
        double  angle = position * p->frequency[i];
        double  shifted = angle * 0x1.45f306dc9c883p-1 + round, quarters = shifted - round;
        int64_t quadrant;
        memcpy(&quadrant, &shifted, sizeof quadrant);
        double r = (angle - quarters * half_pi_high) - quarters * half_pi_low, s = r * r;
        double sine = r + r * s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880
                      + s * (-1.0 / 39916800 + s * (1.0 / 6227020800))))));
        double cosine = 1 + s * (-1.0 / 2 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320
                        + s * (-1.0 / 3628800 + s * (1.0 / 479001600))))));
        float c = (float)(quadrant & 1 ? sine : cosine), sn = (float)(quadrant & 1 ? cosine : sine);
        p->cos[i] = ((quadrant + 1) & 2 ? -c : c) * magnitude;
        p->sin[i] = (quadrant & 2 ? -sn : sn) * magnitude * direction;
    }
}

/* What rotate_adjacent multiplies each element, and the other one of its pair, by. */
static void spread_angles(pairs *p)
{
    for (int64_t i = p->n - 1; i >= 0; i--) {
        float c = p->cos[i], s = p->sin[i];
        p->cos[2 * i] = p->cos[2 * i + 1] = c;
        p->sin[2 * i] = -s;
        p->sin[2 * i + 1] = s;
    }
}

static gg_vec rotate(gg_vec x, gg_vec cos, gg_vec sin) { return x * cos + gg_swap_pairs(x) * sin; }

/* Pairs (2i, 2i + 1). Read before written, for y may be a. */
static void rotate_adjacent(float *y, const float *a, const pairs *p)
{
    int64_t i = 0, n = 2 * p->n;
    y += 2 * p->first, a += 2 * p->first;
    for (; i + GG_LANES <= n; i += GG_LANES)
        gg_store(y + i, rotate(gg_load(a + i), gg_load(p->cos + i), gg_load(p->sin + i)));
    if (i == n) return;
    gg_vec rest = rotate(gg_load_n(a + i, n - i), gg_load_n(p->cos + i, n - i), gg_load_n(p->sin + i, n - i));
    gg_store_n(y + i, rest, n - i);
}

/* Pairs (i, i + half). */
static void rotate_halves(float *y, const float *a, int64_t half, const pairs *p)
{
    float       *y0 = y + p->first, *y1 = y0 + half;
    const float *a0 = a + p->first, *a1 = a0 + half;
    GG_INDEPENDENT
    for (int64_t i = 0; i < p->n; i++) {
        float x0 = a0[i], x1 = a1[i];
        y0[i] = x0 * p->cos[i] - x1 * p->sin[i];
        y1[i] = x0 * p->sin[i] + x1 * p->cos[i];
    }
}

/* Apply the angles to position t of every head; with the last pairs, copy what is not rotated. */
static void rotate_heads(const gg_task *task, const pairs *p, int64_t t)
{
    const gg_tensor *y = task->y;
    int64_t          n_dims = gg_param_i32(y, 1), n_rest = p->first + p->n == n_dims / 2 ? y->ne[0] - n_dims : 0;
    for (int64_t b = 0; b < y->ne[3]; b++) {
        for (int64_t h = 0; h < y->ne[1]; h++) {
            float       *head = gg_y_row(task, (b * y->ne[2] + t) * y->ne[1] + h);
            const float *a = gg_source_row_at(task, 0, (gg_place){h, t, b});
            if (gg_param_i32(y, 2) == MODE_NEOX) rotate_halves(head, a, n_dims / 2, p);
            else rotate_adjacent(head, a, p);
            if (head != a) memcpy(head + n_dims, a + n_dims, (size_t)n_rest * sizeof(float));
        }
    }
}

/* y, a [d, h, T, B], positions [T], optional freq_factors [n_dims / 2] */
GG_KERNEL(rope)
{
    const gg_tensor *y = task->y;
    const int32_t   *positions = (const int32_t *)task->src_data[1];
    int64_t          begin, end, n_pairs = gg_param_i32(y, 1) / 2;
    float            magnitude = magnitude_of(y), direction = y->op == GG_OP_ROPE_BACK ? -1.0f : 1.0f;
    gg_share(task, y->ne[2], 1, &begin, &end);
    for (int64_t first = 0; first < n_pairs; first += PAIR_BLOCK) {
        pairs p = {.first = first, .n = gg_min_i64(PAIR_BLOCK, n_pairs - first)};
        set_frequencies(&p, task);
        for (int64_t t = begin; t < end; t++) {
            set_angles(&p, positions[t], magnitude, direction);
            if (gg_param_i32(y, 2) != MODE_NEOX) spread_angles(&p);
            rotate_heads(task, &p, t);
        }
    }
}
