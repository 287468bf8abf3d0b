/* mutate.c - see mutate.h. A mutation picks a field of a record by the dialect's layout and writes a number that tends to
 * be a boundary; others move whole records, bytes, or the file's end.
 */
#include "mutate.h"

#include <string.h>

#include "gg_ops.h"

uint64_t fuzz_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static int64_t below(uint64_t *state, int64_t n) { return n <= 0 ? 0 : (int64_t)(fuzz_random(state) % (uint64_t)n); }

/* ---------------------------------------------------------------- records */

static uint32_t get32(const fuzz_file *f, int64_t at)
{
    uint32_t x;
    memcpy(&x, f->bytes + at, sizeof x);
    return x;
}

static int64_t get64(const fuzz_file *f, int64_t at)
{
    int64_t x;
    memcpy(&x, f->bytes + at, sizeof x);
    return x;
}

static void put(fuzz_file *f, int64_t at, const void *value, size_t nbytes)
{
    if (at >= 0 && at + (int64_t)nbytes <= f->size) memcpy(f->bytes + at, value, nbytes);
}

static const gg_layout *layout_of(const fuzz_file *f, int32_t k)
{
    return k < f->n_leafs ? &f->dialect->leaf : &f->dialect->node;
}

/* Bytes of data behind record k, -1 if they cannot be. */
static int64_t data_nbytes(const fuzz_file *f, int32_t k)
{
    const gg_layout *l = layout_of(f, k);
    int64_t at = f->begin[k];
    uint32_t type = get32(f, at + l->type);
    gg_tensor t = {.type = type < (uint32_t)f->dialect->n_types ? f->dialect->types[type] : -1};
    if (k >= f->n_leafs && !(f->dialect->param_nodes && get32(f, at + l->op) == 0)) return 0;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        t.ne[i] = get64(f, at + l->ne + 16 * i);
        t.nb[i] = get64(f, at + l->ne + 16 * i + 8);
        if (t.ne[i] < 1 || t.ne[i] > f->size || t.nb[i] < 0 || t.nb[i] > f->size) return -1;
    }
    int64_t unit = f->dialect->data_unit;
    return t.type < 0 ? -1 : (gg_span(&t) + unit - 1) / unit * unit;
}

void fuzz_walk(fuzz_file *f)
{
    const gg_dialect *d = f->dialect;
    f->n_records = f->n_leafs = 0;
    if (f->size < d->header_nbytes) return;
    int64_t n_leafs = get32(f, 8), n = n_leafs + get32(f, 12), at = d->header_nbytes;
    if (n > FUZZ_MAX_RECORDS) return;
    f->n_leafs = (int32_t)n_leafs;
    for (int32_t k = 0; k < n && at + layout_of(f, k)->nbytes <= f->size; k++) {
        f->begin[k] = at;
        int64_t nbytes = data_nbytes(f, k);
        f->n_records = k + 1;
        if (nbytes < 0) return;
        at += layout_of(f, k)->nbytes + nbytes;
    }
}

/* ---------------------------------------------------------------- values */

static uint64_t boundary(uint64_t *state)
{
    static const uint64_t values[] = {
        0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 33, 64, 255, 256, 257, 0x7fff, 0x8000, 0xffff, 0x10000,
        0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff,
        1ull << 40, (1ull << 40) + 1, 1ull << 47, 1ull << 48, 1ull << 50, 1ull << 62,
        0x3f800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x00000001, 0xbf800000, /* 1, inf, -inf, nan, denormal, -1 */
    };
    return values[below(state, sizeof values / sizeof values[0])];
}

static uint64_t near(uint64_t old, uint64_t *state)
{
    switch (below(state, 6)) {
    case 0: return old + 1;
    case 1: return old - 1;
    case 2: return old * 2;
    case 3: return old / 2;
    case 4: return old ^ (1ull << below(state, 64));
    default: return (uint64_t)below(state, 8);
    }
}

/* ---------------------------------------------------------------- changes */

static void change_header(fuzz_file *f, uint64_t *state)
{
    int64_t at = 4 * below(state, 6);
    uint64_t old = at < f->size - 8 ? get32(f, at) : 0, new = below(state, 2) ? near(old, state) : boundary(state);
    put(f, at, &new, at == 16 ? 8 : 4);
}

static void change_field(fuzz_file *f, int32_t k, uint64_t *state)
{
    const gg_layout *l = layout_of(f, k);
    const gg_dialect *d = f->dialect;
    int64_t at = f->begin[k];
    size_t nbytes = 4;
    uint64_t value = boundary(state);
    bool small = below(state, 2);
    int64_t field = below(state, l->src >= 0 ? 9 : 6);
    if (l->op_params < 0 && (field == 5 || field == 6)) field = 3;
    if (l->n_dims >= 0 && below(state, 16) == 0) field = 2;
    switch (field) {
    case 0: at += l->type; if (small) value = (uint64_t)below(state, d->n_types); break;
    case 1: at += l->op; if (small) value = (uint64_t)below(state, d->n_ops); break;
    case 2: at += l->flags >= 0 ? l->flags : l->n_dims >= 0 ? l->n_dims : l->type; if (small) value = (uint64_t)below(state, 16); break;
    case 3:
    case 4: at += l->ne + 8 * below(state, 8); nbytes = 8; if (small) value = near((uint64_t)get64(f, at), state); break;
    case 5: at += l->op_params + 4 * below(state, d->n_params); if (small) value = near(get32(f, at), state); break;
    case 6: at += l->op_params; if (small) value = (uint64_t)below(state, 16); break;
    default: at += l->src + 4 * below(state, d->n_src); if (small) value = (uint64_t)(below(state, k + 1) - 1); break;
    }
    put(f, at, &value, nbytes);
}

/* A field as another record has it. */
static void copy_field(fuzz_file *f, int32_t k, const fuzz_file *other, uint64_t *state)
{
    if (other->n_records == 0) return;
    int32_t from = (int32_t)below(state, other->n_records);
    const gg_layout *l = layout_of(f, k), *m = layout_of(other, from);
    switch (below(state, f->dialect->n_params ? 5 : 4)) {
    case 0: put(f, f->begin[k] + l->type, other->bytes + other->begin[from] + m->type, 4); break;
    case 1: put(f, f->begin[k] + l->op, other->bytes + other->begin[from] + m->op, 4); break;
    case 2: put(f, f->begin[k] + l->ne, other->bytes + other->begin[from] + m->ne, 64); break;
    case 3: put(f, f->begin[k] + l->name, other->bytes + other->begin[from] + m->name, (size_t)f->dialect->name_nbytes); break;
    default:
        put(f, f->begin[k] + l->op_params, other->bytes + other->begin[from] + m->op_params,
            4 * (size_t)f->dialect->n_params);
    }
}

static void change_bytes(fuzz_file *f, uint64_t *state)
{
    int64_t at = below(state, f->size), n = below(state, 4) ? 1 : 1 + below(state, 8);
    for (int64_t i = at; i < at + n && i < f->size; i++) f->bytes[i] = (uint8_t)fuzz_random(state);
}

static void change_name(fuzz_file *f, int32_t k, uint64_t *state)
{
    static const char *const parts[] = {"\xc3\xa9", "\xe2\x80\xae", "\xed\xa0\x80", "\xf0\x9f\x8e\x89", "\x1b[2J", "\xff", "", "x"};
    int64_t at = f->begin[k] + layout_of(f, k)->name + below(state, f->dialect->name_nbytes);
    const char *part = parts[below(state, 8)];
    put(f, at, part, strlen(part) ? strlen(part) : 1);
}

static void change_end(fuzz_file *f, uint64_t *state)
{
    if (below(state, 2)) {
        f->size = below(state, f->size + 1);
        return;
    }
    int64_t n = below(state, 300);
    if (f->size + n > FUZZ_MAX_NBYTES) return;
    memset(f->bytes + f->size, below(state, 2) ? 0 : 0xff, (size_t)n);
    f->size += n;
}

static void add_to_count(fuzz_file *f, bool of_nodes, int32_t delta)
{
    uint32_t n = get32(f, of_nodes ? 12 : 8) + (uint32_t)delta;
    put(f, of_nodes ? 12 : 8, &n, 4);
}

/* Put n bytes in the place of `old` at `at`. */
static bool replace_bytes(fuzz_file *f, int64_t at, int64_t old, const uint8_t *bytes, int64_t n)
{
    if (f->size + n - old > FUZZ_MAX_NBYTES || at + old > f->size) return false;
    memmove(f->bytes + at + n, f->bytes + at + old, (size_t)(f->size - at - old));
    memcpy(f->bytes + at, bytes, (size_t)n);
    f->size += n - old;
    return true;
}

/* Insert a record of the other file, remove one, or both. */
static void change_record(fuzz_file *f, int32_t k, const fuzz_file *other, uint64_t *state)
{
    uint8_t bytes[4096];
    int32_t from = other->n_records ? (int32_t)below(state, other->n_records) : -1;
    int64_t old = layout_of(f, k)->nbytes + data_nbytes(f, k), n = 0;
    bool is_node = k >= f->n_leafs, remove = below(state, 2);
    if (old < layout_of(f, k)->nbytes) return;
    if (from >= 0 && (from >= other->n_leafs) == is_node && below(state, 4)) {
        n = layout_of(other, from)->nbytes + data_nbytes(other, from);
        if (n < 0 || n > (int64_t)sizeof bytes || other->begin[from] + n > other->size) return;
        memcpy(bytes, other->bytes + other->begin[from], (size_t)n);
    }
    if (!replace_bytes(f, f->begin[k], remove ? old : 0, bytes, n)) return;
    add_to_count(f, is_node, (n > 0) - remove);
}

static void change_once(fuzz_file *f, const fuzz_file *other, uint64_t *state)
{
    int64_t what = below(state, 32);
    if (f->size == 0 || what == 0) change_end(f, state);
    else if (what == 1 || f->n_records == 0) change_header(f, state);
    else if (what <= 4) change_bytes(f, state);
    else {
        int32_t k = (int32_t)below(state, f->n_records);
        if (what == 5) change_name(f, k, state);
        else if (what <= 8) change_record(f, k, other, state);
        else if (what <= 12) copy_field(f, k, other, state);
        else change_field(f, k, state);
    }
}

void fuzz_mutate(fuzz_file *f, const fuzz_file *other, uint64_t *state)
{
    int64_t n = 1 + (below(state, 2) ? 0 : below(state, 4));
    for (int64_t i = 0; i < n; i++) {
        change_once(f, other, state);
        fuzz_walk(f);
    }
}

/* ---------------------------------------------------------------- repair */

/* The node of record k in the graph so far, with what the file says; -1 if it cannot be. */
static int32_t node_of(const fuzz_file *f, int32_t k, gg_graph *g, int64_t size)
{
    const gg_layout *l = layout_of(f, k);
    const gg_dialect *d = f->dialect;
    int64_t at = f->begin[k], ne[GG_MAX_DIMS], nb[GG_MAX_DIMS];
    int32_t src[GG_MAX_SRC], params[GG_N_PARAMS] = {0};
    uint32_t op = get32(f, at + l->op), unary = l->op_params < 0 ? 0 : get32(f, at + l->op_params);
    bool is_unary = op == (uint32_t)d->unary_op;
    if (op >= (uint32_t)d->n_ops || (is_unary && unary >= (uint32_t)d->n_unaries)) return -1;
    int32_t row = is_unary ? d->unaries[unary].op : d->ops[op].op;
    if (row <= 0 || d->ops[op].variation) return -1;
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        ne[i] = get64(f, at + l->ne + 16 * i);
        nb[i] = get64(f, at + l->ne + 16 * i + 8);
        if (ne[i] > size) return -1;
    }
    if (d->n_params) memcpy(params, f->bytes + at + l->op_params, 4 * (size_t)d->n_params);
    if (is_unary) params[0] = 0;
    for (int j = 0; j < GG_MAX_SRC; j++) {
        src[j] = j < d->n_src ? (int32_t)get32(f, at + l->src + 4 * j) : -1;
        if (d->node_base >= 0 && src[j] >= d->node_base) src[j] += f->n_leafs - d->node_base;
    }
    return gg_node(g, row, gg_ops[row].n_src, src, params, gg_ops[row].sized ? ne : NULL, row == GG_OP_VIEW ? nb : NULL,
                   NULL);
}

void fuzz_repair(fuzz_file *f)
{
    if (f->n_records <= f->n_leafs) return;
    gg_graph *g = gg_graph_new();
    for (int32_t k = 0; g && k < f->n_records; k++) {
        const gg_layout *l = layout_of(f, k);
        uint32_t type = get32(f, f->begin[k] + l->type);
        bool has_data = k < f->n_leafs || get32(f, f->begin[k] + l->op) == 0;
        int64_t ne[GG_MAX_DIMS];
        for (int i = 0; i < GG_MAX_DIMS; i++) ne[i] = get64(f, f->begin[k] + l->ne + 16 * i);
        int32_t known = type < (uint32_t)f->dialect->n_types ? f->dialect->types[type] : -1;
        int32_t id = has_data ? gg_leaf(g, known, ne, 0, "", NULL) : node_of(f, k, g, f->size);
        if (id < 0) break;
        if (has_data) continue;
        const gg_tensor *t = gg_at(g, id);
        for (uint32_t number = 0; number < (uint32_t)f->dialect->n_types; number++)
            if (f->dialect->types[number] == t->type) put(f, f->begin[k] + l->type, &number, 4);
        for (int i = 0; i < GG_MAX_DIMS; i++) {
            put(f, f->begin[k] + l->ne + 16 * i, &t->ne[i], 8);
            put(f, f->begin[k] + l->ne + 16 * i + 8, &t->nb[i], 8);
        }
    }
    gg_graph_free(g);
    const uint64_t plenty = 1ull << 40; /* of size_eval, which the nodes may now exceed */
    put(f, 16, &plenty, 8);
}
