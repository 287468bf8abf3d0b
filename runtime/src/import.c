/* import.c - gg_import: an exported cgraph file becomes a graph. The file is not trusted.
 *
 * What a file looks like is a gg_dialect, generated data; one reader serves all of them, and what it accepts is valid:
 * no later pass checks again. Every scalar is read from bytes that were checked to be there; counts are checked against
 * the bytes that remain before anything is allocated; every node's type, sizes and strides are derived again by the
 * shape rules and compared. Each refusal names the byte, the tensor and the rule: docs/cgraph.md lists the rules by their
 * codes.
 *
 * A tensor of the file is one of the graph. Casts are added to those: in front of a source that is not float32, but that
 * a kernel reads as float32, and behind a result that is not float32 in the file. A result that ggml computes in place
 * is copied over its source.
 */
#include "dialect.h"
#include "graph.h"
#include "order.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "gg_ops.h"

enum { KNOWN_FLAGS = GG_FLAG_INPUT | GG_FLAG_OUTPUT | GG_FLAG_PARAM | GG_FLAG_LOSS };

#define MAX_STRIDE ((int64_t)1 << 50)

/* The tensor being read. */
typedef struct record {
    const gg_layout  *layout; /* NULL between records */
    int64_t           begin;
    gg_tensor         t; /* type, flags, ne, name, op_params, src; nb as of a dense tensor */
    int64_t           nb[GG_MAX_DIMS]; /* as the file has them */
    const gg_file_op *op;
} record;

typedef struct reader {
    const uint8_t    *bytes;
    int64_t           size, at;
    const gg_dialect *dialect;
    const gg_limits  *limits;
    bool              with_data; /* copy leafs' data; without, a file is only checked */
    uint8_t          *mapped;    /* the same bytes, for leafs to lie in instead of being copied; or NULL */
    int64_t           n_leafs, n_nodes;
    int64_t          *data_at; /* offset of each leaf's data, where words of ops lie in leafs; else NULL */
    int32_t           n_read, n_charged; /* tensors of the file that are in the graph, and of the graph against limits */
    int32_t          *ids, *decoded;   /* per tensor of the file: its id, and that of its newest cast to float32, or -1 */
    int64_t           nbytes, nodes_nbytes; /* of what was read: all memory, and what size_eval has to hold */
    double            flops;
    record            rec;
    gg_graph         *g;
    gg_error         *err;
} reader;

/* Fill the error, with the tensor before the message; always -1. */
static int32_t __attribute__((format(printf, 5, 6)))
fail_at(reader *r, int32_t kind, const char *code, int64_t offset, const char *format, ...)
{
    const record *rec = &r->rec;
    char message[sizeof r->err->message];
    int32_t id = r->n_read;
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (rec->layout) {
        bool is_node = id >= r->n_leafs;
        bool named = rec->t.name[0], is_op = is_node && rec->op && rec->op->op != GG_OP_NONE;
        gg_fail_as(r->err, kind, code, id, "%s %lld%s%s%s%s%s%s: %.150s", is_node ? "node" : "leaf",
                   (long long)(is_node ? id - r->n_leafs : id), named ? " '" : "", rec->t.name, named ? "'" : "",
                   is_op ? " (" : "", is_op ? rec->op->name : "", is_op ? ")" : "", message);
    } else {
        gg_fail_as(r->err, kind, code, -1, "%s", message);
    }
    r->err->offset = offset;
    return -1;
}

#define BAD(code, r, offset, ...) return fail_at(r, GG_ERR_FORMAT, code, offset, __VA_ARGS__)
#define UNSUPPORTED(code, r, offset, ...) return fail_at(r, GG_ERR_UNSUPPORTED, code, offset, __VA_ARGS__)
#define OVER_LIMIT(code, r, offset, ...) return fail_at(r, GG_ERR_LIMIT, code, offset, __VA_ARGS__)

/* Say where in the file a failure of the graph was. */
static int32_t pass_on(reader *r, int64_t offset)
{
    gg_error cause = *r->err;
    return fail_at(r, cause.kind, cause.code, offset, "%s", cause.message);
}

/* The caller has made sure that the bytes are there. */
static uint32_t u32_at(const reader *r, int64_t at)
{
    uint32_t x;
    memcpy(&x, r->bytes + at, sizeof x);
    return x;
}

static int64_t i64_at(const reader *r, int64_t at)
{
    int64_t x;
    memcpy(&x, r->bytes + at, sizeof x);
    return x;
}

/* ---------------------------------------------------------------- header */

enum { MAGIC = 0, VERSION = 4, N_LEAFS = 8, N_NODES = 12, SIZE_EVAL = 16 }; /* offsets */

static int32_t read_header(reader *r)
{
    const gg_dialect *d = r->dialect;
    if (r->size < d->header_nbytes) BAD("Truncated", r, r->size, "the file ends inside its header");
    uint32_t magic = u32_at(r, MAGIC), version = u32_at(r, VERSION);
    if (magic == __builtin_bswap32(d->magic)) BAD("BadMagic", r, MAGIC, "a big-endian file");
    if (magic != d->magic)
        BAD("BadMagic", r, MAGIC, "not a ggml graph: magic is %08x, expected %08x", magic, d->magic);
    if (version != d->version)
        BAD("BadVersion", r, VERSION, "version is %u, dialect %s has %u", version, d->name, d->version);
    r->n_leafs = u32_at(r, N_LEAFS);
    r->n_nodes = u32_at(r, N_NODES);
    r->at = d->header_nbytes;
    int64_t n = r->n_leafs + r->n_nodes, most = gg_min_i64(r->limits->n_tensors, GG_MAX_TENSORS);
    if (r->n_leafs * d->leaf.nbytes + r->n_nodes * d->node.nbytes > r->size - r->at)
        BAD("BadCount", r, N_LEAFS, "%lld leafs and %lld nodes do not fit in the %lld bytes that follow",
            (long long)r->n_leafs, (long long)r->n_nodes, (long long)(r->size - r->at));
    if (n > most)
        OVER_LIMIT("TooManyTensors", r, N_LEAFS, "%lld tensors, at most %lld are allowed", (long long)n,
                   (long long)most);
    r->ids = malloc((size_t)(n + 1) * sizeof *r->ids);
    r->decoded = malloc((size_t)(n + 1) * sizeof *r->decoded);
    if (d->n_params == 0) r->data_at = calloc((size_t)r->n_leafs + 1, sizeof *r->data_at);
    if (!r->ids || !r->decoded || (d->n_params == 0 && !r->data_at))
        return gg_fail(r->err, GG_ERR_MEMORY, -1, "no memory for %lld tensors", (long long)n);
    return gg_reserve(r->g, (int32_t)n, r->err) < 0 ? pass_on(r, N_LEAFS) : 0;
}

/* ggml's importer takes size_eval bytes for its nodes. */
static int32_t check_end(reader *r)
{
    r->rec = (record){0};
    if (r->at != r->size)
        BAD("TrailingBytes", r, r->at, "%lld bytes after the last tensor", (long long)(r->size - r->at));
    if (r->dialect->eval_padded && (uint64_t)i64_at(r, SIZE_EVAL) < (uint64_t)r->nodes_nbytes)
        BAD("BadEvalSize", r, SIZE_EVAL, "size_eval is %llu, but the nodes have %lld bytes",
            (unsigned long long)i64_at(r, SIZE_EVAL), (long long)r->nodes_nbytes);
    return 0;
}

/* ---------------------------------------------------------------- any record */

static int64_t type_at(const reader *r) { return r->rec.begin + r->rec.layout->type; }
static int64_t op_at(const reader *r) { return r->rec.begin + r->rec.layout->op; }
static int64_t flags_at(const reader *r) { return r->rec.begin + r->rec.layout->flags; }
static int64_t ne_at(const reader *r, int i) { return r->rec.begin + r->rec.layout->ne + 16 * i; }
static int64_t nb_at(const reader *r, int i) { return ne_at(r, i) + 8; }
static int64_t word_at(const reader *r, int w) { return r->rec.begin + r->rec.layout->op_params + 4 * w; }
static int64_t src_at(const reader *r, int k) { return r->rec.begin + r->rec.layout->src + 4 * k; }

/* The next character of text that ends with NUL; -1 if it is not UTF-8 in its shortest form. */
static int32_t next_character(const char **text)
{
    static const int32_t least[] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)*text;
    int n = s[0] < 0x80 ? 0 : s[0] >> 5 == 6 ? 1 : s[0] >> 4 == 14 ? 2 : s[0] >> 3 == 30 ? 3 : -1;
    if (n < 0) return -1;
    int32_t c = n == 0 ? s[0] : s[0] & (0x3f >> n);
    for (int i = 1; i <= n; i++) {
        if (s[i] >> 6 != 2) return -1;
        c = c << 6 | (s[i] & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) return -1;
    *text += n + 1;
    return c;
}

/* Names reach terminals: no control characters, no line or paragraph separators, nothing that changes direction. */
static bool is_control(int32_t c)
{
    return c < 0x20 || (c >= 0x7f && c <= 0x9f) || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2066 && c <= 0x2069);
}

/* A name ends at its first NUL; ggml leaves the tail of an older, longer name behind it. */
static int32_t read_name(reader *r)
{
    int64_t at = r->rec.begin + r->rec.layout->name;
    char name[GG_MAX_NAME] = "";
    memcpy(name, r->bytes + at, (size_t)r->dialect->name_nbytes);
    if (!memchr(name, 0, (size_t)r->dialect->name_nbytes)) BAD("BadName", r, at, "the name does not end in its field");
    if (!name[0]) BAD("BadName", r, at, "the name is empty");
    for (const char *c = name; *c;) {
        int64_t offset = at + (c - name);
        int32_t character = next_character(&c);
        if (character < 0) BAD("BadName", r, offset, "the name is not UTF-8");
        if (is_control(character)) BAD("BadName", r, offset, "the name has the control character U+%04X", character);
    }
    memcpy(r->rec.t.name, name, sizeof name);
    return 0;
}

static int32_t read_type(reader *r)
{
    const gg_dialect *d = r->dialect;
    uint32_t type = u32_at(r, type_at(r));
    r->rec.t.type = type < (uint32_t)d->n_types ? d->types[type] : -1;
    if (r->rec.t.type < 0) BAD("BadType", r, type_at(r), "type is %u, which dialect %s does not have", type, d->name);
    return 0;
}

static int32_t read_op(reader *r)
{
    const gg_dialect *d = r->dialect;
    uint32_t op = u32_at(r, op_at(r));
    if (op >= (uint32_t)d->n_ops)
        BAD("BadOp", r, op_at(r), "op is %u, which dialect %s does not have", op, d->name);
    r->rec.op = &d->ops[op];
    if (op != (uint32_t)d->unary_op) return 0;
    uint32_t unary = u32_at(r, word_at(r, 0));
    if (unary >= (uint32_t)d->n_unaries)
        BAD("BadOp", r, word_at(r, 0), "unary op is %u, which dialect %s does not have", unary, d->name);
    r->rec.op = &d->unaries[unary];
    return 0;
}

static int32_t read_flags(reader *r)
{
    if (r->rec.layout->flags < 0) return 0;
    r->rec.t.flags = (int32_t)u32_at(r, flags_at(r));
    if (r->rec.t.flags & ~KNOWN_FLAGS)
        BAD("BadFlags", r, flags_at(r), "flags are %x, of which %x are unknown", r->rec.t.flags,
            r->rec.t.flags & ~KNOWN_FLAGS);
    return 0;
}

/* ggml made leafs with so many dimensions; of a node it may have left the number that its source had. */
static int32_t read_n_dims(reader *r)
{
    if (r->rec.layout->n_dims < 0) return 0;
    int64_t at = r->rec.begin + r->rec.layout->n_dims;
    uint32_t n_dims = u32_at(r, at);
    if (n_dims < 1 || n_dims > GG_MAX_DIMS) BAD("BadSize", r, at, "%u dimensions, not 1..%d", n_dims, GG_MAX_DIMS);
    for (int i = (int)n_dims; i < GG_MAX_DIMS && r->rec.op->op == GG_OP_NONE; i++)
        if (r->rec.t.ne[i] != 1)
            BAD("BadSize", r, at, "%u dimensions, but the size of dimension %d is %lld", n_dims, i,
                (long long)r->rec.t.ne[i]);
    return 0;
}

/* Strides of what has data in the file follow from its sizes. Those of nodes are derived once its sources are known. */
static int32_t read_sizes(reader *r)
{
    gg_tensor *t = &r->rec.t;
    int64_t ne[GG_MAX_DIMS], size = gg_type_size(t->type);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        ne[i] = i64_at(r, ne_at(r, i));
        r->rec.nb[i] = i64_at(r, nb_at(r, i));
    }
    if (gg_set_ne(t, ne, r->err) < 0) return pass_on(r, ne_at(r, gg_bad_size(ne) % GG_MAX_DIMS));
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        int64_t nb = r->rec.nb[i];
        if (nb < 0 || nb > MAX_STRIDE || nb % size)
            BAD("BadStride", r, nb_at(r, i), "stride of dimension %d is %lld, not a multiple of %lld in 0..2^50", i,
                (long long)nb, (long long)size);
        if (r->rec.op->op == GG_OP_NONE && nb != t->nb[i])
            BAD("BadStride", r, nb_at(r, i), "stride of dimension %d is %lld, expected %lld", i, (long long)nb,
                (long long)t->nb[i]);
    }
    return 0;
}

static int32_t read_record(reader *r, const gg_layout *l)
{
    r->rec = (record){.begin = r->at, .layout = l};
    for (int k = 0; k < GG_MAX_SRC; k++) r->rec.t.src[k] = -1;
    if (r->size - r->at < l->nbytes) BAD("Truncated", r, r->size, "the file ends inside the record");
    r->at += l->nbytes;
    if (read_name(r) < 0 || read_type(r) < 0 || read_op(r) < 0 || read_flags(r) < 0 || read_sizes(r) < 0) return -1;
    if (read_n_dims(r) < 0) return -1;
    if (r->dialect->n_params) memcpy(r->rec.t.op_params, r->bytes + word_at(r, 0), 4 * (size_t)r->dialect->n_params);
    return 0;
}

/* Count tensor id against the limits. */
static int32_t charge(reader *r, int32_t id)
{
    const gg_tensor *t = gg_at(r->g, id);
    double touched = (double)gg_nelements(t);
    for (int k = 0; k < GG_MAX_SRC; k++)
        if (t->src[k] >= 0) touched += (double)gg_nelements(gg_at(r->g, t->src[k]));
    if (!gg_is_leaf(t)) r->flops += gg_node_flops(r->g, t) + touched;
    if (t->root == id && (!gg_add_i64(r->nbytes, gg_span(t), &r->nbytes) || r->nbytes > r->limits->nbytes))
        OVER_LIMIT("TooManyBytes", r, ne_at(r, 0), "more than the %lld bytes of tensors that are allowed",
                   (long long)r->limits->nbytes);
    if (r->flops > r->limits->flops)
        OVER_LIMIT("TooManyFlops", r, ne_at(r, 0), "more than the %g floating-point operations that are allowed",
                   r->limits->flops);
    return 0;
}

/* The tensor read is now `id`, the last of those added for it. */
static int32_t finish_tensor(reader *r, int32_t id)
{
    for (int32_t added = r->n_charged; added <= id; added++)
        if (charge(r, added) < 0) return -1;
    r->n_charged = id + 1;
    r->ids[r->n_read] = id;
    r->decoded[r->n_read] = -1;
    r->n_read++;
    return 0;
}

/* ---------------------------------------------------------------- leafs and parameters */

/* Whole numbers and floats at multiples of their size; a block has nothing larger than four bytes in it. */
static bool is_aligned(const void *data, const gg_type_info *type)
{
    return (uintptr_t)data % (type->block == 1 ? (uintptr_t)type->nbytes : 4) == 0;
}

static int32_t set_data(reader *r, int32_t id, int64_t nbytes)
{
    uint8_t *there = r->mapped ? r->mapped + r->at : NULL;
    if (there && is_aligned(there, &gg_types[gg_at(r->g, id)->type])) {
        r->g->buffers[id] = gg_buffer_at((char *)there);
        return r->g->buffers[id] ? 0 : gg_fail(r->err, GG_ERR_MEMORY, -1, "no memory for a leaf in the file");
    }
    void *data = gg_leaf_data(r->g, id, r->err);
    if (!data) return -1;
    memcpy(data, r->bytes + r->at, (size_t)nbytes);
    return 0;
}

static int32_t add_leaf(reader *r)
{
    const gg_tensor *t = &r->rec.t;
    for (int w = 0; w < GG_N_PARAMS; w++)
        if (t->op_params[w]) BAD("BadOpParams", r, word_at(r, w), "op_params word %d is set, but there is no op", w);
    int64_t nbytes = gg_span(t), unit = r->dialect->data_unit, stored = gg_round_up(nbytes, unit);
    if (stored > r->size - r->at)
        BAD("Truncated", r, r->at, "%lld bytes of data, but the file ends after %lld", (long long)stored,
            (long long)(r->size - r->at));
    int32_t id = gg_leaf(r->g, t->type, t->ne, t->flags, t->name, r->err);
    if (id < 0) return pass_on(r, r->rec.begin);
    if (r->with_data && set_data(r, id, nbytes) < 0) return pass_on(r, r->rec.begin);
    if (r->data_at) r->data_at[r->n_read] = r->at;
    r->at += stored;
    return finish_tensor(r, id);
}

static int32_t read_leaf(reader *r)
{
    if (read_record(r, &r->dialect->leaf) < 0) return -1;
    if (r->rec.op->op != GG_OP_NONE) BAD("BadLeaf", r, op_at(r), "op is %s, but a leaf has none", r->rec.op->name);
    if (r->dialect->param_nodes && r->rec.t.flags & GG_FLAG_PARAM)
        BAD("BadParam", r, flags_at(r), "a parameter among the leafs");
    return add_leaf(r);
}

static int32_t read_param(reader *r)
{
    if (!r->dialect->param_nodes)
        UNSUPPORTED("NoParamData", r, r->rec.begin, "a parameter, of which dialect %s stores no data", r->dialect->name);
    if (!(r->rec.t.flags & GG_FLAG_PARAM)) BAD("BadParam", r, flags_at(r), "neither an op nor a parameter");
    if (r->rec.t.type != GG_TYPE_F32) BAD("BadParam", r, type_at(r), "a parameter that is not float32");
    for (int k = 0; k < GG_MAX_SRC; k++)
        if (r->rec.t.src[k] >= 0) BAD("BadParam", r, src_at(r, k), "a parameter with a source");
    return add_leaf(r);
}

/* ---------------------------------------------------------------- nodes */

/* Sources as numbers of tensors of the file: leafs keep theirs, nodes follow them. Every one is that of an earlier
 * tensor, or -1; but the destination of a CPY may be the CPY itself. */
static int32_t read_src(reader *r)
{
    int64_t base = r->dialect->node_base < 0 ? r->n_leafs : r->dialect->node_base;
    for (int k = 0; k < r->dialect->n_src; k++) {
        int64_t src = (int32_t)u32_at(r, src_at(r, k)), id = src >= base ? src - base + r->n_leafs : src;
        bool is_cast = r->rec.op->op == GG_OP_CPY && k == 1 && id == r->n_read;
        if (id < -1 || (id >= r->n_read && !is_cast) || (id >= r->n_leafs) != (src >= base))
            BAD("BadSource", r, src_at(r, k), "src[%d] is %lld, which is none of the %d tensors before", k,
                (long long)src, r->n_read);
        r->rec.t.src[k] = (int32_t)id;
    }
    return 0;
}

/* The words of an op that lie in a leaf. */
static int32_t fetch_words(reader *r, const gg_variation *v)
{
    int32_t id = r->rec.t.src[v->words_in];
    if (id < 0) BAD("BadArity", r, src_at(r, v->words_in), "src[%d] is missing, which holds the op's words", v->words_in);
    const gg_tensor *t = gg_at(r->g, r->ids[id]);
    if (!gg_is_leaf(t) || gg_nelements(t) != v->n_words || gg_span(t) != 4 * (int64_t)v->n_words)
        BAD("BadOpParams", r, src_at(r, v->words_in), "src[%d] is no leaf of the op's %d words", v->words_in, v->n_words);
    memcpy(r->rec.t.op_params, r->bytes + r->data_at[id], 4 * (size_t)v->n_words);
    return 0;
}

static int32_t check_only(reader *r, const gg_variation *v, const int32_t *words)
{
    for (int i = 0; i < v->n_only; i++) {
        const gg_only *o = &v->only[i];
        int64_t word = (uint32_t)words[o->word];
        bool holds = o->value == GG_ONLY_SET      ? word != 0
                     : o->value == GG_ONLY_SIZE_0 ? word == r->rec.t.ne[0]
                                                  : words[o->word] == o->value;
        if (!holds && (o->mode < 0 || words[2] == o->mode))
            UNSUPPORTED("UnsupportedOpParams", r, op_at(r),
                        "with %#x for word %d dialect %s meant something else by the op", (unsigned)word, o->word,
                        r->dialect->name);
    }
    return 0;
}

/* Sources and op_params as the op table has them, where the dialect stores an op in its own way. */
static int32_t apply_variation(reader *r)
{
    const gg_variation *v = r->rec.op->variation;
    gg_tensor *t = &r->rec.t;
    int32_t words[GG_N_PARAMS], src[GG_MAX_SRC];
    if (!v) return 0;
    for (int k = v->n_src; k < GG_MAX_SRC; k++)
        if (t->src[k] >= 0)
            BAD("BadArity", r, src_at(r, k), "src[%d] is set, the op takes %d in dialect %s", k, v->n_src,
                r->dialect->name);
    if (v->scalar >= 0 && t->src[v->scalar] >= 0 && gg_nelements(gg_at(r->g, r->ids[t->src[v->scalar]])) != 1)
        BAD("BadShape", r, src_at(r, v->scalar), "src[%d] has more than one element", v->scalar);
    if (v->words_in >= 0 && fetch_words(r, v) < 0) return -1;
    memcpy(words, v->implied, sizeof words);
    for (int w = 0; w < v->n_words; w++)
        if (v->words[w] >= 0) words[v->words[w]] = t->op_params[w];
    for (int w = v->n_words; w < GG_N_PARAMS; w++)
        if (t->op_params[w])
            UNSUPPORTED("UnsupportedOpParams", r, word_at(r, w), "op_params word %d is set, in dialect %s", w,
                        r->dialect->name);
    if (check_only(r, v, words) < 0) return -1;
    for (int k = 0; k < GG_MAX_SRC; k++) src[k] = -1;
    for (int k = 0; k < v->n_src; k++)
        if (v->src[k] >= 0) src[v->src[k]] = t->src[k];
    memcpy(t->op_params, words, sizeof words);
    memcpy(t->src, src, sizeof src);
    return 0;
}

static int32_t check_arity(reader *r, const gg_op_info *op)
{
    for (int k = 0; k < GG_MAX_SRC; k++) {
        bool is_set = r->rec.t.src[k] >= 0, is_optional = op->optional >> k & 1;
        if (is_set && k >= op->n_src)
            BAD("BadArity", r, src_at(r, k), "src[%d] is set, the op takes %d", k, op->n_src);
        if (!is_set && k < op->n_src && !is_optional) BAD("BadArity", r, src_at(r, k), "src[%d] is missing", k);
    }
    return 0;
}

static int32_t check_op_params(reader *r, const gg_op_info *op)
{
    for (int w = 0; w < GG_N_PARAMS; w++) {
        if (r->rec.t.op_params[w] && !(op->words >> w & 1))
            BAD("BadOpParams", r, word_at(r, w), "op_params word %d is %#x, but the op has none there", w,
                (unsigned)r->rec.t.op_params[w]);
        if ((op->finite_words >> w & 1) && !__builtin_isfinite(gg_param_f32(&r->rec.t, w)))
            BAD("BadOpParams", r, word_at(r, w), "op_params word %d is not a finite number", w);
    }
    return 0;
}

/* The file's type, sizes and strides against those that follow from the sources. */
static int32_t compare(reader *r, int32_t id)
{
    const gg_tensor *t = gg_at(r->g, id);
    if (t->type != r->rec.t.type)
        BAD("WrongType", r, type_at(r), "type is %s, its sources give %s", gg_types[r->rec.t.type].name,
            gg_types[t->type].name);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        if (t->ne[i] != r->rec.t.ne[i])
            BAD("WrongSize", r, ne_at(r, i), "size of dimension %d is %lld, its sources give %lld", i,
                (long long)r->rec.t.ne[i], (long long)t->ne[i]);
        if (t->nb[i] != r->rec.nb[i])
            BAD("BadStride", r, nb_at(r, i), "stride of dimension %d is %lld, expected %lld", i,
                (long long)r->rec.nb[i], (long long)t->nb[i]);
    }
    return 0;
}

/* ---------------------------------------------------------------- types that kernels have not */

static int32_t add_cast(reader *r, int32_t id, int32_t type)
{
    gg_builder to = {.g = r->g, .err = r->err};
    return gg_make_cast(&to, id, type);
}

/* Tensor `number` of the file as float32. A CPY may have changed it since it was last cast. */
static int32_t decoded(reader *r, int32_t number)
{
    const gg_tensor *t = gg_at(r->g, r->ids[number]);
    if (t->type == GG_TYPE_F32 || !gg_is_real(t->type)) return r->ids[number];
    if (r->decoded[number] < 0 || r->decoded[number] < r->g->writers[t->root])
        r->decoded[number] = add_cast(r, r->ids[number], GG_TYPE_F32);
    return r->decoded[number];
}

/* The type that the result is to have: its record's, where the op may have that in a file. */
static int32_t result_type(const reader *r, const gg_op_info *op, int32_t y)
{
    const gg_tensor *t = &r->rec.t;
    bool fits = op->result == GG_RESULT_F16 ? t->type == GG_TYPE_F16
                : op->result >= 0           ? t->type == gg_at(r->g, r->ids[t->src[op->result]])->type
                                            : false;
    return fits ? t->type : gg_at(r->g, y)->type;
}

/* Append the op that was read, with casts where it needs them; the id of its result. */
static int32_t add_op(reader *r, int32_t row)
{
    const gg_op_info *op = &gg_ops[row];
    const gg_tensor *t = &r->rec.t;
    int32_t src[GG_MAX_SRC];
    for (int k = 0; k < op->n_src; k++) {
        src[k] = t->src[k] < 0 ? -1 : op->decoded >> k & 1 ? decoded(r, t->src[k]) : r->ids[t->src[k]];
        if (t->src[k] >= 0 && src[k] < 0) return -1;
    }
    int32_t y = gg_node(r->g, row, op->n_src, src, t->op_params, op->sized ? t->ne : NULL,
                        row == GG_OP_VIEW ? r->rec.nb : NULL, r->err);
    if (y < 0) return -1;
    int32_t type = result_type(r, op, y);
    return type == gg_at(r->g, y)->type ? y : add_cast(r, y, type);
}

/* ggml_cast makes a CPY into itself: a new tensor, of another type or of the same. */
static bool is_cast(const reader *r) { return r->rec.op->op == GG_OP_CPY && r->rec.t.src[1] == r->n_read; }

/* Whether the result lies in the memory of source 0, which ggml says in a name "... (view)" or in a word of SET and ACC,
 * and no more once the result has another name. */
static bool is_inplace(const reader *r, int32_t row)
{
    enum { SET_INPLACE = 4 };
    static const char suffix[] = " (view)";
    const gg_tensor *t = &r->rec.t;
    size_t length = strlen(t->name), n = sizeof suffix - 1;
    if (gg_ops[row].view >= 0 || t->src[0] < 0) return false;
    const gg_tensor *a = gg_at(r->g, r->ids[t->src[0]]);
    if (!gg_same_shape(t, a) || t->type != a->type) return false;
    if (row == GG_OP_SET || row == GG_OP_ACC) return t->op_params[SET_INPLACE] != 0;
    return length >= n && strcmp(t->name + length - n, suffix) == 0;
}

/* Result `id` written over source 0. */
static int32_t write_back(reader *r, int32_t id)
{
    gg_builder to = {.g = r->g, .err = r->err};
    return gg_make_cpy(&to, id, r->ids[r->rec.t.src[0]]);
}

static int32_t add_node(reader *r)
{
    const gg_file_op *file_op = r->rec.op;
    gg_tensor *t = &r->rec.t;
    if (file_op->op < 0)
        UNSUPPORTED("UnsupportedOp", r, op_at(r), "the op is not supported, as in dialect %s", r->dialect->name);
    if (t->flags & GG_FLAG_PARAM) BAD("BadParam", r, flags_at(r), "computed, yet a parameter");
    if (u32_at(r, op_at(r)) == (uint32_t)r->dialect->unary_op) t->op_params[0] = 0;
    for (int w = 0; w < GG_N_PARAMS; w++)
        if (file_op->unread >> w & 1) t->op_params[w] = 0;
    int32_t row = file_op->op;
    if (is_cast(r)) {
        row = GG_OP_CONT;
        t->src[1] = -1;
    }
    const gg_op_info *op = &gg_ops[row];
    if (apply_variation(r) < 0 || check_arity(r, op) < 0 || check_op_params(r, op) < 0) return -1;
    bool converts = row != file_op->op && t->type != gg_at(r->g, r->ids[t->src[0]])->type;
    int32_t id = converts ? add_cast(r, r->ids[t->src[0]], t->type) : add_op(r, row);
    if (id >= 0 && is_inplace(r, row)) id = write_back(r, id);
    if (id < 0) return pass_on(r, r->rec.begin);
    gg_set_name(r->g, id, t->name, t->flags, r->err);
    return compare(r, id) < 0 ? -1 : finish_tensor(r, id);
}

/* A record of the node section: a parameter, which is a leaf to us, or an op. */
static int32_t read_node(reader *r)
{
    if (read_record(r, &r->dialect->node) < 0 || read_src(r) < 0) return -1;
    if ((r->rec.op->op == GG_OP_NONE ? read_param(r) : add_node(r)) < 0) return -1;
    int64_t padded = gg_round_up(gg_span(gg_at(r->g, r->g->n_tensors - 1)), 16);
    if (!gg_add_i64(r->nodes_nbytes, padded, &r->nodes_nbytes)) r->nodes_nbytes = INT64_MAX;
    return 0;
}

/* ---------------------------------------------------------------- a file */

static int32_t read_all(reader *r)
{
    if (read_header(r) < 0) return -1;
    for (int64_t i = 0; i < r->n_leafs; i++)
        if (read_leaf(r) < 0) return -1;
    for (int64_t i = 0; i < r->n_nodes; i++)
        if (read_node(r) < 0) return -1;
    return check_end(r);
}

/* NULL after filling err, which must be there; *reached is how far in the file the reader came. */
static gg_graph *read_as(reader r, gg_error *err, int64_t *reached)
{
    r.err = err;
    r.g = gg_graph_new();
    if (!r.g) gg_fail(err, GG_ERR_MEMORY, -1, "no memory for a graph");
    bool ok = r.g && read_all(&r) == 0;
    free(r.ids);
    free(r.decoded);
    *reached = r.at;
    free(r.data_at);
    if (ok) return r.g;
    gg_graph_free(r.g);
    return NULL;
}

/* ---------------------------------------------------------------- which dialect */

static const gg_dialect *find_dialect(const char *name)
{
    for (int32_t i = 0; i < gg_n_dialects; i++)
        if (strcmp(gg_dialects[i].name, name) == 0) return &gg_dialects[i];
    return NULL;
}

static bool same_tensor(const gg_tensor *a, const gg_tensor *b)
{
    return a->type == b->type && a->op == b->op && a->flags == b->flags && strcmp(a->name, b->name) == 0 &&
           memcmp(a->ne, b->ne, sizeof a->ne) == 0 && memcmp(a->nb, b->nb, sizeof a->nb) == 0 &&
           memcmp(a->src, b->src, sizeof a->src) == 0 &&
           memcmp(a->op_params, b->op_params, sizeof a->op_params) == 0;
}

/* Whether two dialects read the same graph: where leafs are as long and equal, their data are the same bytes. */
static bool same_graph(const gg_dialect *a_dialect, const gg_graph *a, const gg_dialect *b_dialect, const gg_graph *b)
{
    if (a->n_tensors != b->n_tensors) return false;
    if (a->n_tensors > 0 && a_dialect->leaf.nbytes != b_dialect->leaf.nbytes) return false;
    for (int32_t id = 0; id < a->n_tensors; id++)
        if (!same_tensor(gg_at(a, id), gg_at(b, id))) return false;
    return true;
}

typedef struct names {
    char text[128];
} names;

static void add_name(names *list, const char *name)
{
    size_t used = strlen(list->text);
    snprintf(list->text + used, sizeof list->text - used, "%s%s", used ? " or " : "", name);
}

/* The failed attempt that got furthest in the file, and the dialects that got there: most likely the file's. */
typedef struct attempt {
    gg_error error;
    int64_t  reached;
    names    dialects;
} attempt;

static void keep_furthest(attempt *best, const gg_dialect *dialect, const gg_error *error, int64_t reached)
{
    if (best->dialects.text[0] && reached < best->reached) return;
    if (reached > best->reached || !best->dialects.text[0])
        *best = (attempt){.error = *error, .reached = reached};
    add_name(&best->dialects, dialect->name);
}

static void fail_as(gg_error *err, const attempt *best)
{
    bool is_told = best->reached > 0; /* what is no graph file has no dialect */
    gg_fail_as(err, best->error.kind, best->error.code, best->error.node, "%.*s%s%s%s",
               (int)(sizeof err->message - sizeof best->dialects - 16), best->error.message,
               is_told ? " (as dialect " : "", is_told ? best->dialects.text : "", is_told ? ")" : "");
    err->offset = best->error.offset;
}

/* The first dialect that fits, unless another one fits as a different graph. */
static const gg_dialect *identify(reader r, gg_error *err)
{
    const gg_dialect *found = NULL;
    gg_graph *reading = NULL;
    attempt best = {.reached = -1};
    names fitting = {""};
    bool agree = true;
    for (int32_t i = 0; i < gg_n_dialects; i++) {
        gg_error error;
        int64_t reached;
        r.dialect = &gg_dialects[i];
        gg_graph *g = read_as(r, &error, &reached);
        if (!g && error.kind == GG_ERR_MEMORY) { /* which says nothing about the file */
            *err = error;
            gg_graph_free(reading);
            return NULL;
        }
        if (!g) {
            keep_furthest(&best, r.dialect, &error, reached);
            continue;
        }
        add_name(&fitting, r.dialect->name);
        if (!found) {
            found = r.dialect;
            reading = g;
            continue;
        }
        agree = agree && same_graph(found, reading, r.dialect, g);
        gg_graph_free(g);
    }
    gg_graph_free(reading);
    if (!found) fail_as(err, &best);
    else if (!agree)
        gg_fail_as(err, GG_ERR_FORMAT, "AmbiguousDialect", -1,
                   "valid as %s, which read it as different graphs; say which dialect it is", fitting.text);
    if (found && !agree) err->offset = VERSION;
    return agree ? found : NULL;
}

const char *gg_identify(const uint8_t *bytes, int64_t size, const gg_limits *limits, gg_error *err)
{
    const gg_dialect *d = identify((reader){.bytes = bytes, .size = size, .limits = limits}, err);
    return d ? d->name : NULL;
}

static gg_graph *import_as(reader r, const char *dialect, gg_error *err)
{
    int64_t reached;
    bool is_auto = strcmp(dialect, "auto") == 0;
    r.dialect = is_auto ? identify(r, err) : find_dialect(dialect);
    if (!r.dialect && !is_auto) gg_fail(err, GG_ERR_ARGUMENT, -1, "no dialect %.40s", dialect);
    if (!r.dialect) return NULL;
    r.with_data = true;
    gg_graph *g = read_as(r, err, &reached);
    if (!g || !g->has_writes) return g;
    gg_graph *ordered = gg_order_writes(g, err);
    if (!ordered && err->offset < 0) err->offset = reached; /* the whole of the graph is at fault, which ends here */
    gg_graph_free(g);
    return ordered;
}

gg_graph *gg_import(const uint8_t *bytes, int64_t size, const char *dialect, const gg_limits *limits, gg_error *err)
{
    return import_as((reader){.bytes = bytes, .size = size, .limits = limits}, dialect, err);
}

gg_graph *gg_import_mapped(uint8_t *bytes, int64_t size, const char *dialect, const gg_limits *limits, gg_error *err)
{
    return import_as((reader){.bytes = bytes, .mapped = bytes, .size = size, .limits = limits}, dialect, err);
}

int32_t gg_refine(gg_graph *g, int32_t id, const char *op, gg_error *err)
{
    const gg_tensor *t = gg_graph_tensor(g, id);
    for (int32_t row = 1; t && row < GG_OP_COUNT; row++)
        if (strcmp(gg_ops[row].name, op) == 0 && gg_ops[row].exact && gg_ops[row].ggml == t->op) {
            gg_at(g, id)->op = row;
            return id;
        }
    return gg_fail(err, GG_ERR_ARGUMENT, id, "%.40s is not an exact form of %s", op, t ? gg_ops[t->op].name : "nothing");
}
