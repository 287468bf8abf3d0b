/* graph.c - the append-only array of tensors: creation, naming, lookup, leaf memory. See graph.h. */
#include "graph.h"

#include <stdlib.h>

#include "gg_ops.h"
#include "hugepages.h"

gg_graph *gg_graph_new(void) { return calloc(1, sizeof(gg_graph)); }

void gg_graph_free(gg_graph *g)
{
    if (!g) return;
    for (int32_t id = 0; id < g->n_tensors; id++) gg_buffer_release(g->buffers[id]);
    free(g->tensors);
    free(g->buffers);
    free(g->grads);
    free(g->writers);
    free(g);
}

int32_t gg_graph_size(const gg_graph *g) { return g->n_tensors; }

const gg_tensor *gg_graph_tensor(const gg_graph *g, int32_t id)
{
    return id >= 0 && id < g->n_tensors ? gg_at(g, id) : NULL;
}

int32_t gg_is_version(const gg_graph *g, int32_t id, int32_t old)
{
    const gg_tensor *t = gg_graph_tensor(g, id);
    if (!t) return 0;
    return (t->op == GG_OP_UPDATED && t->src[0] == old) || (t->op == GG_OP_VIEW_AS && t->src[1] == old);
}

int32_t gg_graph_find(const gg_graph *g, const char *name)
{
    int32_t found = -1;
    for (int32_t id = 0; id < g->n_tensors; id++) {
        if (strcmp(gg_at(g, id)->name, name) != 0) continue;
        if (found >= 0 && !gg_is_version(g, id, found)) return -2;
        found = id;
    }
    return found;
}

int64_t gg_nbytes(const gg_graph *g, int32_t id)
{
    const gg_tensor *t = gg_graph_tensor(g, id);
    return t ? gg_span(t) : -1;
}

int64_t gg_leaf_nbytes(const gg_graph *g)
{
    int64_t nbytes = 0;
    for (int32_t id = 0; id < g->n_tensors; id++)
        if (gg_is_leaf(gg_at(g, id)) && !gg_add_i64(nbytes, gg_span(gg_at(g, id)), &nbytes)) return INT64_MAX;
    return nbytes;
}

int64_t gg_held_nbytes(const gg_graph *g)
{
    int64_t nbytes = 0;
    for (int32_t id = 0; id < g->n_tensors; id++)
        if (g->buffers[id] && g->buffers[id]->block) nbytes += gg_span(gg_at(g, id));
    return nbytes;
}

int32_t gg_grad_of(const gg_graph *g, int32_t id) { return gg_graph_tensor(g, id) ? g->grads[id] : -1; }

/* ---------------------------------------------------------------- memory */

/* calloc leaves large memory untouched until it is used, which posix_memalign with memset would not. */
gg_buffer *gg_buffer_new(int64_t nbytes)
{
    gg_buffer *buffer = calloc(1, sizeof *buffer);
    char *block = buffer ? calloc(1, (size_t)nbytes + GG_ALIGN) : NULL;
    if (!block) {
        free(buffer);
        return NULL;
    }
    gg_want_huge_pages(block, nbytes);
    *buffer = (gg_buffer){.n_refs = 1, .block = block};
    buffer->bytes = block + (GG_ALIGN - (uintptr_t)block % GG_ALIGN);
    return buffer;
}

gg_buffer *gg_buffer_at(char *bytes)
{
    gg_buffer *buffer = calloc(1, sizeof *buffer);
    if (buffer) *buffer = (gg_buffer){.n_refs = 1, .bytes = bytes};
    return buffer;
}

void gg_buffer_release(gg_buffer *buffer)
{
    if (!buffer || --buffer->n_refs > 0) return;
    free(buffer->block);
    free(buffer);
}

void *gg_leaf_data(gg_graph *g, int32_t id, gg_error *err)
{
    const gg_tensor *t = gg_graph_tensor(g, id);
    if (!t || !gg_is_leaf(t)) {
        gg_fail(err, GG_ERR_ARGUMENT, id, "tensor %d is not a leaf", id);
        return NULL;
    }
    if (!g->buffers[id]) g->buffers[id] = gg_buffer_new(gg_span(t));
    if (!g->buffers[id]) {
        gg_fail(err, GG_ERR_MEMORY, id, "no memory for the %lld bytes of %s", (long long)gg_span(t), t->name);
        return NULL;
    }
    return g->buffers[id]->bytes;
}

/* ---------------------------------------------------------------- writes */

bool gg_writes(const gg_tensor *t, int k) { return t->src[k] >= 0 && gg_ops[t->op].writes >> k & 1; }

int32_t gg_writes_leaf(const gg_graph *g, int32_t id)
{
    const gg_tensor *t = gg_graph_tensor(g, id);
    for (int k = 0; t && k < GG_MAX_SRC; k++)
        if (gg_writes(t, k) && gg_is_leaf(gg_at(g, gg_at(g, t->src[k])->root))) return 1;
    return 0;
}

int32_t gg_overwriter(const gg_graph *g, int32_t id, int32_t since, int32_t until)
{
    const gg_tensor *t = gg_at(g, id);
    if (until > g->writers[t->root]) until = g->writers[t->root] + 1;
    for (int32_t w = since + 1; w < until; w++)
        for (int k = 0; k < GG_MAX_SRC; k++)
            if (gg_writes(gg_at(g, w), k) && gg_overlaps(gg_at(g, gg_at(g, w)->src[k]), t)) return w;
    return -1;
}

/* ---------------------------------------------------------------- appending */

int32_t gg_reserve(gg_graph *g, int32_t n, gg_error *err)
{
    if (n <= g->capacity) return 0;
    size_t count = (size_t)n;
    gg_tensor *tensors = realloc(g->tensors, count * sizeof *tensors);
    if (tensors) g->tensors = tensors;
    gg_buffer **buffers = realloc(g->buffers, count * sizeof(gg_buffer *));
    if (buffers) g->buffers = buffers;
    int32_t *grads = realloc(g->grads, count * sizeof *grads);
    if (grads) g->grads = grads;
    int32_t *writers = realloc(g->writers, count * sizeof *writers);
    if (writers) g->writers = writers;
    if (!tensors || !buffers || !grads || !writers) return gg_fail(err, GG_ERR_MEMORY, -1, "no memory for %d tensors", n);
    g->capacity = n;
    return 0;
}

int32_t gg_append(gg_graph *g, const gg_tensor *t, gg_error *err)
{
    if (g->n_tensors >= GG_MAX_TENSORS) return gg_fail(err, GG_ERR_MEMORY, -1, "more than %d tensors", GG_MAX_TENSORS);
    if (g->n_tensors == g->capacity && gg_reserve(g, g->capacity ? g->capacity * 2 : 256, err) < 0) return -1;
    int32_t id = g->n_tensors++;
    g->tensors[id] = *t;
    g->buffers[id] = NULL;
    g->grads[id] = -1;
    g->writers[id] = 0;
    if (t->root < 0) g->tensors[id].root = id;
    for (int k = 0; k < GG_MAX_SRC; k++) {
        if (!gg_writes(t, k)) continue;
        g->writers[gg_at(g, t->src[k])->root] = id;
        g->has_writes = true;
    }
    return id;
}

static bool copy_name(gg_tensor *t, const char *name)
{
    size_t length = strlen(name);
    if (length >= GG_MAX_NAME) return false;
    memcpy(t->name, name, length + 1);
    return true;
}

int32_t gg_set_name(gg_graph *g, int32_t id, const char *name, int32_t flags, gg_error *err)
{
    if (!gg_graph_tensor(g, id)) return gg_fail(err, GG_ERR_ARGUMENT, id, "no tensor %d", id);
    if (name && !copy_name(gg_at(g, id), name))
        return gg_fail(err, GG_ERR_ARGUMENT, id, "name %.40s... is longer than %d bytes", name, GG_MAX_NAME - 1);
    gg_at(g, id)->flags |= flags;
    return id;
}

int32_t gg_set_flags(gg_graph *g, int32_t id, int32_t flags, gg_error *err)
{
    if (!gg_graph_tensor(g, id)) return gg_fail(err, GG_ERR_ARGUMENT, id, "no tensor %d", id);
    gg_at(g, id)->flags = flags;
    return id;
}

int32_t gg_leaf(gg_graph *g, int32_t type, const int64_t *ne, int32_t flags, const char *name, gg_error *err)
{
    gg_tensor t = {.type = type, .op = GG_OP_NONE, .flags = flags, .root = -1};
    if (!gg_is_type(type)) return gg_fail(err, GG_ERR_ARGUMENT, -1, "no type %d", type);
    if ((flags & GG_FLAG_PARAM) && type != GG_TYPE_F32)
        return gg_fail(err, GG_ERR_UNSUPPORTED, -1, "a parameter of %s; only float32 is trained", gg_types[type].name);
    if (gg_set_ne(&t, ne, err) < 0) return -1;
    if (!copy_name(&t, name))
        return gg_fail(err, GG_ERR_ARGUMENT, -1, "name %.40s... is longer than %d bytes", name, GG_MAX_NAME - 1);
    for (int k = 0; k < GG_MAX_SRC; k++) t.src[k] = -1;
    return gg_append(g, &t, err);
}

static int32_t check_sources(const gg_graph *g, const gg_op_info *op, const gg_tensor *y, gg_error *err)
{
    for (int k = 0; k < GG_MAX_SRC; k++) {
        bool wanted = k < op->n_src && !(op->optional >> k & 1);
        if (y->src[k] < 0 && wanted)
            return gg_fail(err, GG_ERR_ARGUMENT, g->n_tensors, "%s: source %d is missing", op->name, k);
        if (y->src[k] >= 0 && k >= op->n_src)
            return gg_fail(err, GG_ERR_ARGUMENT, g->n_tensors, "%s takes %d sources", op->name, op->n_src);
        if (y->src[k] < -1 || y->src[k] >= g->n_tensors)
            return gg_fail(err, GG_ERR_ARGUMENT, g->n_tensors, "%s: source %d is %d, not an earlier tensor", op->name,
                           k, y->src[k]);
    }
    return 0;
}

/* Whether no two elements, or blocks of them, lie on one another. */
static bool is_injective(const gg_tensor *t)
{
    const int64_t ne[GG_MAX_DIMS] = {t->ne[0] / gg_types[t->type].block, t->ne[1], t->ne[2], t->ne[3]};
    return gg_is_injective(ne, t->nb, gg_type_size(t->type));
}

/* What a kernel writes lies as it takes it, for no copy would do, and apart from all that it reads. */
static int32_t check_writes(const gg_graph *g, const gg_tensor *y, gg_error *err)
{
    for (int k = 0; k < GG_MAX_SRC; k++) {
        if (!gg_writes(y, k)) continue;
        const gg_tensor *to = gg_at(g, y->src[k]);
        if (!gg_fits(to, y->op, k))
            return gg_fail(err, GG_ERR_SHAPE, -1, "source %d has gaps, and %s writes it", k, gg_ops[y->op].name);
        if (!is_injective(to))
            return gg_fail(err, GG_ERR_SHAPE, -1,
                           "elements of source %d lie on one another, so what %s writes would depend on their order", k,
                           gg_ops[y->op].name);
        for (int other = 0; other < GG_MAX_SRC; other++)
            if (other != k && y->src[other] >= 0 && gg_overlaps(to, gg_at(g, y->src[other])))
                return gg_fail(err, GG_ERR_SHAPE, -1,
                               "sources %d and %d share memory, so what %s writes would depend on the order of elements", k,
                               other, gg_ops[y->op].name);
    }
    return 0;
}

/* A view lies in a source's memory. */
static void set_root(const gg_graph *g, gg_tensor *y)
{
    y->root = -1;
    if (gg_ops[y->op].view < 0) return;
    const gg_tensor *base = gg_at(g, y->src[gg_ops[y->op].view]);
    y->root = base->root;
    y->root_offset += base->root_offset;
}

int32_t gg_node(gg_graph *g, int32_t op, int32_t n_src, const int32_t *src, const int32_t *op_params,
                const int64_t *ne, const int64_t *nb, gg_error *err)
{
    if (op <= GG_OP_NONE || op >= GG_OP_COUNT) return gg_fail(err, GG_ERR_ARGUMENT, -1, "no op %d", op);
    const gg_op_info *info = &gg_ops[op];
    gg_tensor y = {.op = op, .n_src = n_src};
    if (n_src < 0 || n_src > GG_MAX_SRC)
        return gg_fail(err, GG_ERR_ARGUMENT, -1, "%s: %d sources, at most %d", info->name, n_src, GG_MAX_SRC);
    for (int k = 0; k < GG_MAX_SRC; k++) y.src[k] = k < n_src ? src[k] : -1;
    if (op_params) memcpy(y.op_params, op_params, sizeof y.op_params);
    if (ne) memcpy(y.ne, ne, sizeof y.ne);
    if (nb) memcpy(y.nb, nb, sizeof y.nb);
    if (check_sources(g, info, &y, err) < 0 || info->shape(g, &y, err) < 0 || check_writes(g, &y, err) < 0) return -1;
    set_root(g, &y);
    return gg_append(g, &y, err);
}

/* ---------------------------------------------------------------- what depends on parameters */

bool gg_has_influence(int32_t op, int k) { return !((gg_ops[op].writes | gg_ops[op].layouts) >> k & 1); }

void gg_find_trained(const gg_graph *g, int32_t n, bool *trained)
{
    for (int32_t id = 0; id < n; id++) {
        const gg_tensor *t = gg_at(g, id);
        trained[id] = gg_is_leaf(t) && (t->flags & GG_FLAG_PARAM);
        for (int k = 0; k < GG_MAX_SRC && !gg_ops[t->op].no_gradient; k++)
            trained[id] |= t->src[k] >= 0 && trained[t->src[k]] && gg_has_influence(t->op, k);
        trained[id] &= gg_is_real(t->type);
    }
}

/* ---------------------------------------------------------------- building inside passes */

bool gg_fits(const gg_tensor *t, int32_t op, int k)
{
    if (gg_ops[op].dense >> k & 1) return gg_is_contiguous(t);
    return !(gg_ops[op].rows >> k & 1) || gg_is_row_contiguous(t);
}

int32_t gg_missing(gg_builder *b, int32_t op)
{
    if (!b->failed)
        gg_fail(b->err, GG_ERR_ARGUMENT, -1, "%s lacks an operand, which gg_fuse keeps with train", gg_ops[op].name);
    b->failed = true;
    return -1;
}

int32_t gg_contiguous(gg_builder *b, int32_t id)
{
    if (id < 0) return gg_missing(b, GG_OP_CONT);
    if (gg_is_contiguous(gg_at(b->g, id))) return id;
    return gg_made(b, gg_node(b->g, GG_OP_CONT, 1, &id, NULL, NULL, NULL, b->err));
}

int32_t gg_build(gg_builder *b, int32_t op, int32_t n_src, const int32_t *src, const int32_t *op_params,
                 const int64_t *ne, const int64_t *nb)
{
    int32_t fixed[GG_MAX_SRC];
    for (int k = 0; k < n_src; k++) {
        fixed[k] = src[k];
        if (src[k] < 0 && !(gg_ops[op].optional >> k & 1)) return gg_missing(b, op);
        if (src[k] >= 0 && !gg_fits(gg_at(b->g, src[k]), op, k)) fixed[k] = gg_contiguous(b, src[k]);
    }
    if (b->failed) return -1;
    return gg_made(b, gg_node(b->g, op, n_src, fixed, op_params, ne, nb, b->err));
}
