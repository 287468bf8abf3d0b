/* import.c - gg_import: an exported cgraph file becomes a graph. The file is not trusted.
 *
 * What a file looks like is a gg_dialect, generated data; one reader serves all of them. Every scalar is read from
 * bytes that were checked to be there; counts are checked against the bytes that remain before anything is allocated;
 * every node's type, sizes and strides are derived again by the shape rules and compared. Leafs come first in the file
 * and nodes after them, so a tensor's id is its index in the file.
 */
#include "dialect.h"
#include "graph.h"

#include <stdio.h>

#include "gg_ops.h"

enum { KNOWN_FLAGS = GG_FLAG_INPUT | GG_FLAG_OUTPUT | GG_FLAG_PARAM | GG_FLAG_LOSS };

typedef struct reader {
    const uint8_t    *bytes;
    int64_t           size, at;
    const gg_dialect *dialect;
    bool              with_data; /* copy leafs' data; without, a file is only checked */
    int64_t           n_leafs, n_nodes;
    gg_graph         *g;
    gg_error         *err;
} reader;

/* Add to a failure where in the file it is; always -1. */
static int32_t fail_at(reader *r, int64_t offset)
{
    if (r->err) r->err->offset = offset;
    return -1;
}

#define REFUSE_AT(code, r, where, ...)                                    \
    do {                                                                  \
        gg_fail((r)->err, code, (r)->g->n_tensors, __VA_ARGS__);          \
        return fail_at(r, where);                                         \
    } while (0)

#define FAIL_AT(r, where, ...) REFUSE_AT(GG_ERR_FILE, r, where, __VA_ARGS__)

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

static int32_t read_header(reader *r)
{
    enum { MAGIC = 0, VERSION = 4, N_LEAFS = 8, N_NODES = 12 }; /* then size_eval: of a pool that we do not have */
    const gg_dialect *d = r->dialect;
    if (r->size < d->header_nbytes) FAIL_AT(r, r->size, "the file ends inside its header");
    uint32_t magic = u32_at(r, MAGIC), version = u32_at(r, VERSION);
    if (magic == __builtin_bswap32(d->magic)) FAIL_AT(r, MAGIC, "a big-endian file");
    if (magic != d->magic) FAIL_AT(r, MAGIC, "not a ggml graph: magic %08x, expected %08x", magic, d->magic);
    if (version != d->version)
        FAIL_AT(r, VERSION, "version %u, expected %u (dialect %s)", version, d->version, d->name);
    r->n_leafs = u32_at(r, N_LEAFS);
    r->n_nodes = u32_at(r, N_NODES);
    r->at = d->header_nbytes;
    if (r->n_leafs + r->n_nodes > GG_MAX_TENSORS)
        FAIL_AT(r, N_LEAFS, "%lld tensors, at most %d", (long long)(r->n_leafs + r->n_nodes), GG_MAX_TENSORS);
    if (r->n_leafs * d->leaf.nbytes + r->n_nodes * d->node.nbytes > r->size - r->at)
        FAIL_AT(r, N_LEAFS, "%lld leafs and %lld nodes do not fit in the file", (long long)r->n_leafs,
                (long long)r->n_nodes);
    return 0;
}

/* ---------------------------------------------------------------- one record */

typedef struct record {
    gg_tensor        t;  /* type, flags, ne, nb, name, op_params and, for nodes, src */
    uint32_t         op; /* as the file numbers it */
    int64_t          begin;
    const gg_layout *layout;
} record;

/* Names reach terminals, so they hold no control characters. */
static int32_t read_name(reader *r, int64_t at, char *name)
{
    memcpy(name, r->bytes + at, (size_t)r->dialect->name_nbytes);
    if (!memchr(name, 0, (size_t)r->dialect->name_nbytes)) FAIL_AT(r, at, "a name without end");
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) FAIL_AT(r, at, "a name with control characters");
    return 0;
}

/* Sources as ids: leafs keep their number, nodes follow them. Every id is that of an earlier tensor, or -1. */
static int32_t read_src(reader *r, record *rec)
{
    int64_t base = r->dialect->node_base < 0 ? r->n_leafs : r->dialect->node_base;
    for (int k = 0; k < GG_MAX_SRC; k++) rec->t.src[k] = -1;
    for (int k = 0; k < r->dialect->n_src && rec->layout->src >= 0; k++) {
        int64_t at = rec->begin + rec->layout->src + 4 * k;
        int64_t src = (int32_t)u32_at(r, at), id = src >= base ? src - base + r->n_leafs : src;
        if (id < -1 || id >= r->g->n_tensors || (id >= r->n_leafs) != (src >= base))
            FAIL_AT(r, at, "%s: source %d is tensor %lld, not an earlier one", rec->t.name, k, (long long)src);
        rec->t.src[k] = (int32_t)id;
    }
    return 0;
}

static int32_t read_record(reader *r, record *rec, bool is_node)
{
    const gg_dialect *d = r->dialect;
    const gg_layout *l = is_node ? &d->node : &d->leaf;
    int64_t begin = r->at;
    if (r->size - begin < l->nbytes) FAIL_AT(r, r->size, "the file ends inside tensor %d", r->g->n_tensors);
    r->at += l->nbytes;
    *rec = (record){.begin = begin, .layout = l, .op = u32_at(r, begin + l->op)};
    if (read_name(r, begin + l->name, rec->t.name) < 0) return -1;
    uint32_t type = u32_at(r, begin + l->type);
    rec->t.type = type < (uint32_t)d->n_types ? d->types[type] : -1;
    if (rec->t.type < 0) FAIL_AT(r, begin + l->type, "%s: no type %u", rec->t.name, type);
    if (l->flags >= 0) rec->t.flags = (int32_t)u32_at(r, begin + l->flags);
    if (rec->t.flags & ~KNOWN_FLAGS) FAIL_AT(r, begin + l->flags, "%s: unknown flags %x", rec->t.name, rec->t.flags);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        rec->t.ne[i] = i64_at(r, begin + l->ne + 16 * i);
        rec->t.nb[i] = i64_at(r, begin + l->ne + 16 * i + 8);
    }
    memcpy(rec->t.op_params, r->bytes + begin + l->op_params, 4 * (size_t)d->n_params);
    return read_src(r, rec);
}

static int32_t check_layout(reader *r, const record *rec, int32_t id)
{
    const gg_tensor *t = gg_at(r->g, id);
    for (int i = 0; i < GG_MAX_DIMS; i++) {
        int64_t at = rec->begin + rec->layout->ne + 16 * i;
        if (t->ne[i] != rec->t.ne[i])
            FAIL_AT(r, at, "%s: size of dimension %d is %lld, its sources give %lld", rec->t.name, i,
                    (long long)rec->t.ne[i], (long long)t->ne[i]);
        if (t->nb[i] != rec->t.nb[i])
            FAIL_AT(r, at + 8, "%s: stride of dimension %d is %lld, expected %lld", rec->t.name, i,
                    (long long)rec->t.nb[i], (long long)t->nb[i]);
    }
    if (t->type != rec->t.type)
        FAIL_AT(r, rec->begin + rec->layout->type, "%s: type %d, its sources give %d", rec->t.name, rec->t.type,
                t->type);
    return 0;
}

/* ---------------------------------------------------------------- leafs and parameters */

static int32_t read_leaf(reader *r, const record *rec)
{
    for (int k = 0; k < GG_N_PARAMS; k++)
        if (rec->t.op_params[k])
            FAIL_AT(r, rec->begin + rec->layout->op_params + 4 * k, "%s: a leaf with op_params", rec->t.name);
    int32_t id = gg_leaf(r->g, rec->t.type, rec->t.ne, rec->t.flags, rec->t.name, r->err);
    if (id < 0) return fail_at(r, rec->begin);
    if (check_layout(r, rec, id) < 0) return -1;
    int64_t nbytes = gg_span(gg_at(r->g, id));
    if (nbytes > r->size - r->at)
        FAIL_AT(r, r->at, "%s: %lld bytes of data, %lld remain", rec->t.name, (long long)nbytes,
                (long long)(r->size - r->at));
    void *data = r->with_data ? gg_leaf_data(r->g, id, r->err) : NULL;
    if (r->with_data && !data) return -1;
    if (data) memcpy(data, r->bytes + r->at, (size_t)nbytes);
    r->at += nbytes;
    return 0;
}

/* ---------------------------------------------------------------- nodes */

static bool is_unary(const reader *r, const record *rec) { return rec->op == (uint32_t)r->dialect->unary_op; }

static const gg_file_op *find_op(reader *r, const record *rec)
{
    const gg_dialect *d = r->dialect;
    uint32_t unary = (uint32_t)rec->t.op_params[0];
    if (rec->op >= (uint32_t)d->n_ops) {
        gg_fail(r->err, GG_ERR_FILE, r->g->n_tensors, "%s: no op %u", rec->t.name, rec->op);
        fail_at(r, rec->begin + rec->layout->op);
        return NULL;
    }
    if (!is_unary(r, rec)) return &d->ops[rec->op];
    if (unary < (uint32_t)d->n_unaries) return &d->unaries[unary];
    gg_fail(r->err, GG_ERR_FILE, r->g->n_tensors, "%s: no unary op %u", rec->t.name, unary);
    fail_at(r, rec->begin + rec->layout->op_params);
    return NULL;
}

/* Sources and op_params as the op table has them, where the dialect stores an op in its own way. */
static int32_t apply_variation(reader *r, record *rec, const gg_file_op *op)
{
    const gg_variation *v = op->variation;
    int32_t words[GG_N_PARAMS];
    if (!v) return 0;
    memcpy(words, v->implied, sizeof words);
    for (int w = 0; w < v->n_words; w++) words[v->words[w]] = rec->t.op_params[w];
    for (int w = v->n_words; w < GG_N_PARAMS; w++)
        if (rec->t.op_params[w])
            REFUSE_AT(GG_ERR_UNSUPPORTED, r, rec->begin + rec->layout->op_params + 4 * w,
                      "%s: op_params word %d of %s in dialect %s", rec->t.name, w, op->name, r->dialect->name);
    for (int k = v->n_src; k < GG_MAX_SRC; k++)
        if (rec->t.src[k] >= 0)
            FAIL_AT(r, rec->begin + rec->layout->src + 4 * k, "%s: %s takes %d sources in dialect %s", rec->t.name,
                    op->name, v->n_src, r->dialect->name);
    memcpy(rec->t.op_params, words, sizeof words);
    return 0;
}

static int32_t check_op_params(reader *r, const record *rec, const gg_op_info *op)
{
    for (int w = 0; w < GG_N_PARAMS; w++) {
        int64_t at = rec->begin + rec->layout->op_params + 4 * w;
        if (rec->t.op_params[w] && !(op->words >> w & 1))
            FAIL_AT(r, at, "%s: op_params word %d of %s is not zero", rec->t.name, w, op->name);
        if ((op->float_words >> w & 1) && !__builtin_isfinite(gg_param_f32(&rec->t, w)))
            FAIL_AT(r, at, "%s: op_params word %d of %s is not finite", rec->t.name, w, op->name);
    }
    return 0;
}

static int32_t read_node(reader *r, record *rec)
{
    const gg_file_op *file_op = find_op(r, rec);
    if (!file_op) return -1;
    if (file_op->op < 0)
        REFUSE_AT(GG_ERR_UNSUPPORTED, r, rec->begin + rec->layout->op, "%s: op %s is not supported", rec->t.name,
                  file_op->name);
    if (is_unary(r, rec)) rec->t.op_params[0] = 0;
    for (int w = 0; w < GG_N_PARAMS; w++)
        if (file_op->unread >> w & 1) rec->t.op_params[w] = 0;
    const gg_op_info *op = &gg_ops[file_op->op];
    const gg_tensor *t = &rec->t;
    if (apply_variation(r, rec, file_op) < 0 || check_op_params(r, rec, op) < 0) return -1;
    int32_t id = gg_node(r->g, file_op->op, op->n_src, t->src, t->op_params, op->sized ? t->ne : NULL,
                         file_op->op == GG_OP_VIEW ? t->nb : NULL, r->err);
    if (id < 0) return fail_at(r, rec->begin);
    gg_set_name(r->g, id, t->name, t->flags, r->err);
    return check_layout(r, rec, id);
}

/* A record of the node section: a parameter, which is a leaf to us, or an op. */
static int32_t read_node_or_param(reader *r, record *rec)
{
    bool is_none = rec->op == 0; /* GGML_OP_NONE in every dialect */
    bool is_param = rec->t.flags & GG_FLAG_PARAM;
    if (is_none && !r->dialect->param_nodes)
        REFUSE_AT(GG_ERR_UNSUPPORTED, r, rec->begin, "%s: a parameter; dialect %s stores no data of it", rec->t.name,
                  r->dialect->name);
    if (is_none != is_param)
        FAIL_AT(r, rec->begin + rec->layout->op, "%s: a parameter is a node without op", rec->t.name);
    if (!is_param) return read_node(r, rec);
    for (int k = 0; k < GG_MAX_SRC; k++)
        if (rec->t.src[k] != -1)
            FAIL_AT(r, rec->begin + rec->layout->src + 4 * k, "%s: a parameter with a source", rec->t.name);
    if (rec->t.type != GG_TYPE_F32)
        FAIL_AT(r, rec->begin + rec->layout->type, "%s: a parameter that is not float32", rec->t.name);
    return read_leaf(r, rec);
}

static int32_t read_all(reader *r)
{
    record rec;
    if (read_header(r) < 0) return -1;
    for (int64_t i = 0; i < r->n_leafs; i++) {
        if (read_record(r, &rec, false) < 0) return -1;
        if (rec.op != 0) FAIL_AT(r, rec.begin + rec.layout->op, "%s: a leaf with op %u", rec.t.name, rec.op);
        if (r->dialect->param_nodes && rec.t.flags & GG_FLAG_PARAM)
            FAIL_AT(r, rec.begin + rec.layout->flags, "%s: a parameter among the leafs", rec.t.name);
        if (read_leaf(r, &rec) < 0) return -1;
    }
    for (int64_t i = 0; i < r->n_nodes; i++)
        if (read_record(r, &rec, true) < 0 || read_node_or_param(r, &rec) < 0) return -1;
    if (r->at != r->size) FAIL_AT(r, r->at, "%lld bytes after the last tensor", (long long)(r->size - r->at));
    return 0;
}

static gg_graph *read_as(const gg_dialect *dialect, const uint8_t *bytes, int64_t size, bool with_data, gg_error *err)
{
    reader r = {.bytes = bytes, .size = size, .dialect = dialect, .with_data = with_data, .g = gg_graph_new(), .err = err};
    if (!r.g) {
        gg_fail(err, GG_ERR_MEMORY, -1, "no memory for a graph");
        return NULL;
    }
    if (read_all(&r) == 0) return r.g;
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

/* The same ops on the same sources: all that two dialects can read differently. */
static bool same_graph(const gg_graph *a, const gg_graph *b)
{
    if (a->n_tensors != b->n_tensors) return false;
    for (int32_t id = 0; id < a->n_tensors; id++) {
        const gg_tensor *x = gg_at(a, id), *y = gg_at(b, id);
        if (x->op != y->op || memcmp(x->src, y->src, sizeof x->src) != 0) return false;
        if (memcmp(x->op_params, y->op_params, sizeof x->op_params) != 0) return false;
    }
    return true;
}

/* The failed attempt that got furthest in the file, and the dialects that got there: most likely the file's. */
typedef struct attempt {
    gg_error error;
    char     dialects[64];
} attempt;

static void keep_furthest(attempt *best, const gg_dialect *dialect, const gg_error *error)
{
    size_t used = strlen(best->dialects);
    if (used && error->offset < best->error.offset) return;
    if (used && error->offset == best->error.offset) {
        snprintf(best->dialects + used, sizeof best->dialects - used, " or %s", dialect->name);
        return;
    }
    best->error = *error;
    snprintf(best->dialects, sizeof best->dialects, "%s", dialect->name);
}

static void fail_as(gg_error *err, const attempt *best)
{
    bool is_told = best->error.offset >= gg_dialects[0].header_nbytes; /* what is no graph file has no dialect */
    gg_fail(err, best->error.code, best->error.node, "%.160s%s%s%s", best->error.message, is_told ? " (as dialect " : "",
            is_told ? best->dialects : "", is_told ? ")" : "");
    if (err) err->offset = best->error.offset;
}

const char *gg_identify(const uint8_t *bytes, int64_t size, gg_error *err)
{
    const gg_dialect *found = NULL, *other = NULL;
    gg_graph *reading = NULL;
    attempt best = {.error = {.offset = -1}};
    for (int32_t i = 0; i < gg_n_dialects && !other; i++) {
        gg_error error = {.offset = -1};
        gg_graph *g = read_as(&gg_dialects[i], bytes, size, false, &error);
        if (!g) {
            keep_furthest(&best, &gg_dialects[i], &error);
        } else if (!found) {
            found = &gg_dialects[i];
            reading = g;
        } else {
            if (!same_graph(g, reading)) other = &gg_dialects[i];
            gg_graph_free(g);
        }
    }
    gg_graph_free(reading);
    if (other)
        gg_fail(err, GG_ERR_FILE, -1, "valid in dialect %s and in dialect %s, as different graphs; say which it is",
                found->name, other->name);
    else if (!found)
        fail_as(err, &best);
    return found && !other ? found->name : NULL;
}

gg_graph *gg_import(const uint8_t *bytes, int64_t size, const char *dialect, gg_error *err)
{
    const char *name = strcmp(dialect, "auto") == 0 ? gg_identify(bytes, size, err) : dialect;
    if (!name) return NULL;
    const gg_dialect *d = find_dialect(name);
    if (d) return read_as(d, bytes, size, true, err);
    gg_fail(err, GG_ERR_ARGUMENT, -1, "no dialect %.40s", name);
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
