/* import.c - gg_import: an exported cgraph file (dialect v2) becomes a graph. The file is not trusted.
 *
 * Every scalar is read through a bounds-checked cursor; counts are checked against the bytes that remain before
 * anything is allocated; every node's type, sizes and strides are derived again by the shape rules and compared.
 * Leafs come first in the file and nodes after them, so a tensor's id is its index in the file.
 */
#include "dialect.h"
#include "graph.h"

#include "gg_ops.h"

enum { NAME_BYTES = GG_MAX_NAME, PARAM_BYTES = 4 * GG_N_PARAMS, HEADER_BYTES = 24 };
enum { LEAF_BYTES = 12 + 64 + NAME_BYTES + PARAM_BYTES, NODE_BYTES = LEAF_BYTES + 4 * GG_MAX_SRC };
enum { KNOWN_FLAGS = GG_FLAG_INPUT | GG_FLAG_OUTPUT | GG_FLAG_PARAM | GG_FLAG_LOSS };

typedef struct reader {
    const uint8_t    *bytes;
    int64_t           size, at;
    const gg_dialect *dialect;
    gg_graph         *g;
    gg_error         *err;
} reader;

/* Add to a failure where in the file it is; always -1. */
static int32_t fail_at(reader *r, int64_t offset)
{
    if (r->err) r->err->offset = offset;
    return -1;
}

#define FAIL_AT(r, where, ...)                                            \
    do {                                                                  \
        gg_fail((r)->err, GG_ERR_FILE, (r)->g->n_tensors, __VA_ARGS__);   \
        fail_at(r, where);                                                \
        return -1;                                                        \
    } while (0)

/* The caller has made sure that the bytes are there. */
static void take(reader *r, void *out, int64_t n)
{
    memcpy(out, r->bytes + r->at, (size_t)n);
    r->at += n;
}

static uint32_t take_u32(reader *r)
{
    uint32_t x;
    take(r, &x, sizeof x);
    return x;
}

/* ---------------------------------------------------------------- header */

typedef struct header {
    int64_t n_leafs, n_nodes;
} header;

static int32_t read_header(reader *r, header *h)
{
    if (r->size < HEADER_BYTES) FAIL_AT(r, r->size, "the file ends inside its header");
    uint32_t magic = take_u32(r), version = take_u32(r);
    if (magic == __builtin_bswap32(r->dialect->magic)) FAIL_AT(r, 0, "a big-endian file");
    if (magic != r->dialect->magic) FAIL_AT(r, 0, "not a ggml graph: magic %08x, expected %08x", magic, r->dialect->magic);
    if (version != r->dialect->version)
        FAIL_AT(r, 4, "version %u, expected %u (dialect %s)", version, r->dialect->version, r->dialect->name);
    h->n_leafs = take_u32(r);
    h->n_nodes = take_u32(r);
    r->at += 8; /* size_eval sizes a pool of the real importer; ours plans for itself */
    if (h->n_leafs + h->n_nodes > GG_MAX_TENSORS)
        FAIL_AT(r, 8, "%lld tensors, at most %d", (long long)(h->n_leafs + h->n_nodes), GG_MAX_TENSORS);
    if (h->n_leafs * LEAF_BYTES + h->n_nodes * NODE_BYTES > r->size - r->at)
        FAIL_AT(r, 8, "%lld leafs and %lld nodes do not fit in the file", (long long)h->n_leafs, (long long)h->n_nodes);
    return 0;
}

/* ---------------------------------------------------------------- one record */

typedef struct record {
    gg_tensor t;        /* type, flags, ne, nb, name, op_params and, for nodes, src */
    uint32_t  op;       /* as the file numbers it */
    int64_t   begin;
} record;

/* Names reach terminals, so they hold no control characters. */
static int32_t read_name(reader *r, char *name)
{
    take(r, name, NAME_BYTES);
    if (!memchr(name, 0, NAME_BYTES)) FAIL_AT(r, r->at - NAME_BYTES, "a name without end");
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) FAIL_AT(r, r->at - NAME_BYTES, "a name with control characters");
    return 0;
}

static int32_t read_record(reader *r, record *rec, bool is_node)
{
    int64_t nbytes = is_node ? NODE_BYTES : LEAF_BYTES;
    *rec = (record){.begin = r->at};
    if (r->size - r->at < nbytes) FAIL_AT(r, r->size, "the file ends inside tensor %d", r->g->n_tensors);
    rec->t.type = (int32_t)take_u32(r);
    rec->op = take_u32(r);
    rec->t.flags = (int32_t)take_u32(r);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        take(r, &rec->t.ne[i], 8);
        take(r, &rec->t.nb[i], 8);
    }
    if (read_name(r, rec->t.name) < 0) return -1;
    take(r, rec->t.op_params, PARAM_BYTES);
    for (int k = 0; k < GG_MAX_SRC; k++) rec->t.src[k] = is_node ? (int32_t)take_u32(r) : -1;
    if (rec->t.flags & ~KNOWN_FLAGS) FAIL_AT(r, rec->begin + 8, "%s: unknown flags %x", rec->t.name, rec->t.flags);
    return 0;
}

static int32_t check_layout(reader *r, const record *rec, int32_t id)
{
    const gg_tensor *t = gg_at(r->g, id);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        int64_t at = rec->begin + 12 + 16 * i;
        if (t->ne[i] != rec->t.ne[i])
            FAIL_AT(r, at, "%s: size of dimension %d is %lld, its sources give %lld", rec->t.name, i,
                    (long long)rec->t.ne[i], (long long)t->ne[i]);
        if (t->nb[i] != rec->t.nb[i])
            FAIL_AT(r, at + 8, "%s: stride of dimension %d is %lld, expected %lld", rec->t.name, i,
                    (long long)rec->t.nb[i], (long long)t->nb[i]);
    }
    if (t->type != rec->t.type)
        FAIL_AT(r, rec->begin, "%s: type %d, its sources give %d", rec->t.name, rec->t.type, t->type);
    return 0;
}

/* ---------------------------------------------------------------- leafs and parameters */

static int32_t read_leaf(reader *r, const record *rec)
{
    for (int k = 0; k < GG_N_PARAMS; k++)
        if (rec->t.op_params[k]) FAIL_AT(r, rec->begin, "%s: a leaf with op_params", rec->t.name);
    int32_t id = gg_leaf(r->g, rec->t.type, rec->t.ne, rec->t.flags, rec->t.name, r->err);
    if (id < 0) return fail_at(r, rec->begin);
    if (check_layout(r, rec, id) < 0) return -1;
    int64_t nbytes = gg_span(gg_at(r->g, id));
    if (nbytes > r->size - r->at)
        FAIL_AT(r, r->at, "%s: %lld bytes of data, %lld remain", rec->t.name, (long long)nbytes,
                (long long)(r->size - r->at));
    void *data = gg_leaf_data(r->g, id, r->err);
    if (!data) return -1;
    take(r, data, nbytes);
    return 0;
}

/* ---------------------------------------------------------------- nodes */

static int32_t find_op(reader *r, const record *rec)
{
    const gg_dialect *d = r->dialect;
    if (rec->op >= (uint32_t)d->n_ops) FAIL_AT(r, rec->begin + 4, "%s: no op %u", rec->t.name, rec->op);
    const gg_file_op *op = &d->ops[rec->op];
    if (rec->op == (uint32_t)d->unary_op) {
        uint32_t unary = (uint32_t)rec->t.op_params[0];
        if (unary >= (uint32_t)d->n_unaries) FAIL_AT(r, rec->begin, "%s: no unary op %u", rec->t.name, unary);
        op = &d->unaries[unary];
    }
    if (op->op >= 0) return op->op;
    gg_fail(r->err, GG_ERR_UNSUPPORTED, r->g->n_tensors, "%s: op %s is not supported", rec->t.name, op->name);
    return fail_at(r, rec->begin + 4);
}

static int32_t check_op_params(reader *r, const record *rec, int32_t op)
{
    bool is_unary = rec->op == (uint32_t)r->dialect->unary_op;
    for (int w = is_unary; w < GG_N_PARAMS; w++) {
        int64_t at = rec->begin + LEAF_BYTES - PARAM_BYTES + 4 * w;
        if (rec->t.op_params[w] && !(gg_ops[op].words >> w & 1))
            FAIL_AT(r, at, "%s: op_params word %d of %s is not zero", rec->t.name, w, gg_ops[op].name);
        if ((gg_ops[op].float_words >> w & 1) && !__builtin_isfinite(gg_param_f32(&rec->t, w)))
            FAIL_AT(r, at, "%s: op_params word %d of %s is not finite", rec->t.name, w, gg_ops[op].name);
    }
    return 0;
}

static int32_t read_node(reader *r, const record *rec)
{
    int32_t op = find_op(r, rec);
    if (op < 0 || check_op_params(r, rec, op) < 0) return -1;
    for (int k = 0; k < GG_MAX_SRC; k++)
        if (rec->t.src[k] < -1 || rec->t.src[k] >= r->g->n_tensors)
            FAIL_AT(r, rec->begin + LEAF_BYTES + 4 * k, "%s: source %d is tensor %d, not an earlier one", rec->t.name, k,
                    rec->t.src[k]);
    gg_tensor t = rec->t;
    if (rec->op == (uint32_t)r->dialect->unary_op) t.op_params[0] = 0;
    int32_t id = gg_node(r->g, op, gg_ops[op].n_src, t.src, t.op_params, gg_ops[op].sized ? t.ne : NULL,
                         op == GG_OP_VIEW ? t.nb : NULL, r->err);
    if (id < 0) return fail_at(r, rec->begin);
    gg_set_name(r->g, id, t.name, t.flags, r->err);
    return check_layout(r, rec, id);
}

/* A record of the node section: a parameter, which is a leaf to us, or an op. */
static int32_t read_node_or_param(reader *r, const record *rec)
{
    bool is_none = rec->op == 0; /* GGML_OP_NONE in every dialect */
    bool is_param = rec->t.flags & GG_FLAG_PARAM;
    if (is_none != is_param) FAIL_AT(r, rec->begin + 4, "%s: a parameter is a node without op", rec->t.name);
    if (!is_param) return read_node(r, rec);
    for (int k = 0; k < GG_MAX_SRC; k++)
        if (rec->t.src[k] != -1) FAIL_AT(r, rec->begin + LEAF_BYTES + 4 * k, "%s: a parameter with a source", rec->t.name);
    if (rec->t.type != GG_TYPE_F32) FAIL_AT(r, rec->begin, "%s: a parameter that is not float32", rec->t.name);
    return read_leaf(r, rec);
}

static int32_t read_all(reader *r)
{
    header h;
    record rec;
    if (read_header(r, &h) < 0) return -1;
    for (int64_t i = 0; i < h.n_leafs; i++) {
        if (read_record(r, &rec, false) < 0) return -1;
        if (rec.op != 0) FAIL_AT(r, rec.begin + 4, "%s: a leaf with op %u", rec.t.name, rec.op);
        if (rec.t.flags & GG_FLAG_PARAM) FAIL_AT(r, rec.begin + 8, "%s: a parameter among the leafs", rec.t.name);
        if (read_leaf(r, &rec) < 0) return -1;
    }
    for (int64_t i = 0; i < h.n_nodes; i++)
        if (read_record(r, &rec, true) < 0 || read_node_or_param(r, &rec) < 0) return -1;
    if (r->at != r->size) FAIL_AT(r, r->at, "%lld bytes after the last tensor", (long long)(r->size - r->at));
    return 0;
}

gg_graph *gg_import(const uint8_t *bytes, int64_t size, gg_error *err)
{
    reader r = {.bytes = bytes, .size = size, .dialect = &gg_dialect_v2, .g = gg_graph_new(), .err = err};
    if (!r.g) {
        gg_fail(err, GG_ERR_MEMORY, -1, "no memory for a graph");
        return NULL;
    }
    if (read_all(&r) == 0) return r.g;
    gg_graph_free(r.g);
    return NULL;
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
