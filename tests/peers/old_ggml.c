/* old_ggml.c - builds, exports, imports and computes graphs with a ggml of 2023. Compiled together with the C sources
 * of that ggml by old_ggml.py, which says by POSITIONS, EPS and GRAPH_POINTERS what this version's functions take.
 *
 *     old_ggml make mlp|transformer FILE RESULT     export a graph; its result, as computed before, as raw floats
 *     old_ggml compute FILE NAME RESULT ...         import a file; tensors of it as raw bytes
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"

static struct ggml_context *ctx;

/* ---------------------------------------------------------------- what changed in 2023 */

#if GRAPH_POINTERS
static struct ggml_cgraph *build(struct ggml_tensor *root)
{
    struct ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, root);
    return graph;
}

#define import_graph ggml_graph_import
#else
static struct ggml_cgraph *build(struct ggml_tensor *root)
{
    static struct ggml_cgraph graph;
    graph = ggml_build_forward(root);
    return &graph;
}

static struct ggml_cgraph *import_graph(const char *file, struct ggml_context **data, struct ggml_context **eval)
{
    static struct ggml_cgraph graph;
    graph = ggml_graph_import(file, data, eval);
    return &graph;
}
#endif

static struct ggml_tensor *norm(struct ggml_tensor *a)
{
#if EPS >= 2
    return ggml_norm(ctx, a, 1e-5f);
#else
    return ggml_norm(ctx, a);
#endif
}

static struct ggml_tensor *rms_norm(struct ggml_tensor *a)
{
#if EPS >= 1
    return ggml_rms_norm(ctx, a, 1e-5f);
#else
    return ggml_rms_norm(ctx, a);
#endif
}

static struct ggml_tensor *rope(struct ggml_tensor *a, struct ggml_tensor *positions, int mode)
{
#if POSITIONS
    return ggml_rope(ctx, a, positions, (int)a->ne[0], mode, 0);
#else
    (void)positions;
    (void)mode;
    return a;
#endif
}

/* ---------------------------------------------------------------- the graphs */

static struct ggml_tensor *filled(const char *name, int64_t ne0, int64_t ne1)
{
    static int n_filled;
    struct ggml_tensor *t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ne0, ne1);
    for (int64_t i = 0; i < ggml_nelements(t); i++)
        ((float *)t->data)[i] = (float)((37 * i + 11 * n_filled) % 64 - 32) / 64;
    n_filled++;
    return ggml_set_name(t, name);
}

static struct ggml_tensor *numbered(const char *name, int64_t n, int step)
{
    struct ggml_tensor *t = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n);
    for (int i = 0; i < n; i++) ((int *)t->data)[i] = step * i % 7;
    return ggml_set_name(t, name);
}

static struct ggml_tensor *mlp(void)
{
    struct ggml_tensor *x = filled("x", 4, 3);
    struct ggml_tensor *h = ggml_mul_mat(ctx, filled("w1", 4, 6), x);
    h = ggml_silu(ctx, ggml_add(ctx, h, ggml_repeat(ctx, filled("b1", 6, 1), h)));
    h = ggml_mul(ctx, norm(h), filled("gain", 6, 1));
    h = ggml_mul_mat(ctx, filled("w2", 6, 5), h);
    return ggml_soft_max(ctx, ggml_scale(ctx, ggml_relu(ctx, h), ggml_new_f32(ctx, 1.5f)));
}

enum { N_EMBD = 8, N_HEAD = 2, HEAD = 4, N_CTX = 5, N_VOCAB = 7 };

static struct ggml_tensor *heads(struct ggml_tensor *a)
{
    return ggml_reshape_3d(ctx, a, HEAD, N_HEAD, N_CTX);
}

static struct ggml_tensor *transformer(void)
{
    struct ggml_tensor *positions = numbered("positions", N_CTX, 1);
    struct ggml_tensor *h = ggml_get_rows(ctx, filled("embedding", N_EMBD, N_VOCAB), numbered("tokens", N_CTX, 3));
    struct ggml_tensor *x = ggml_mul(ctx, rms_norm(h), filled("gain", N_EMBD, 1));
    struct ggml_tensor *q = rope(heads(ggml_mul_mat(ctx, filled("wq", N_EMBD, N_EMBD), x)), positions, 0);
    struct ggml_tensor *k = rope(heads(ggml_mul_mat(ctx, filled("wk", N_EMBD, N_EMBD), x)), positions, 2);
    struct ggml_tensor *v = ggml_mul_mat(ctx, filled("wv", N_EMBD, N_EMBD), x);
    struct ggml_tensor *scores = ggml_mul_mat(ctx, ggml_permute(ctx, k, 0, 2, 1, 3), ggml_permute(ctx, q, 0, 2, 1, 3));
    scores = ggml_scale(ctx, scores, ggml_new_f32(ctx, 0.5f));
    scores = ggml_soft_max(ctx, ggml_diag_mask_inf(ctx, scores, 0));
    v = ggml_cont(ctx, ggml_permute(ctx, heads(v), 1, 2, 0, 3));
    struct ggml_tensor *y = ggml_permute(ctx, ggml_mul_mat(ctx, v, scores), 0, 2, 1, 3);
    y = ggml_reshape_2d(ctx, ggml_cont(ctx, y), N_EMBD, N_CTX);
    h = ggml_add(ctx, h, ggml_mul_mat(ctx, filled("wo", N_EMBD, N_EMBD), y));
    struct ggml_tensor *up = ggml_mul_mat(ctx, filled("up", N_EMBD, 12), rms_norm(h));
    h = ggml_add(ctx, h, ggml_mul_mat(ctx, filled("down", 12, N_EMBD), ggml_mul(ctx, ggml_silu(ctx, up), up)));
    return ggml_mul_mat(ctx, filled("head", N_EMBD, N_VOCAB), norm(h));
}

/* ---------------------------------------------------------------- commands */

static void save(const struct ggml_tensor *t, const char *path)
{
    FILE *file = fopen(path, "wb");
    size_t nbytes = t ? ggml_nelements(t) * ggml_element_size(t) : 0;
    if (!file || fwrite(t->data, 1, nbytes, file) != nbytes || fclose(file)) {
        fprintf(stderr, "old_ggml: no %s\n", path);
        exit(1);
    }
}

int main(int n, char **arguments)
{
    struct ggml_init_params room = {.mem_size = 256 << 20};
    ctx = ggml_init(room);
    if (n == 5 && strcmp(arguments[1], "make") == 0) {
        struct ggml_tensor *y = ggml_set_name(strcmp(arguments[2], "mlp") ? transformer() : mlp(), "y");
        struct ggml_cgraph *graph = build(y);
        ggml_graph_compute_with_ctx(ctx, graph, 1);
        ggml_graph_export(graph, arguments[3]);
        save(y, arguments[4]);
        return 0;
    }
    if (n < 5 || n % 2 == 0 || strcmp(arguments[1], "compute") != 0) return 2;
    struct ggml_context *data = NULL, *eval = NULL;
    struct ggml_cgraph *graph = import_graph(arguments[2], &data, &eval);
    ggml_graph_compute_with_ctx(ctx, graph, 1);
    for (int i = 3; i < n; i += 2) save(ggml_graph_get_tensor(graph, arguments[i]), arguments[i + 1]);
    return 0;
}
