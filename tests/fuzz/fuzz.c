/* fuzz.c - feeds changed graph files to the importer, and what it accepts to every pass and the kernels.
 *
 *     fuzz parse|run SECONDS SEED CORPUS... KEEP   change files at random; those that reach new code go to KEEP
 *     fuzz bytes CORPUS...                         every truncation and every value of every byte of each file
 *     fuzz replay CORPUS...                        each file as it is, parsed and run
 *     fuzz starve CORPUS...                        the same, once for each allocation, which fails
 *     fuzz merge CORPUS... KEEP                    the files that together reach what all do go to KEEP
 *
 * Run by `make fuzz`, under AddressSanitizer and UndefinedBehaviorSanitizer. A finding ends the process: a crash, a
 * hang, a verdict that takes 10 ms of the processor whenever it is repeated, memory beyond twice the file and 16 MiB, a
 * refusal without code, offset or one-line message, an allocation whose failure is not told as one. The input is then in
 * ./fuzz-input. The same seed gives the same inputs.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "gg_ops.h"
#include "mutate.h"

enum { MAX_CORPUS = 20000, N_EDGES = 1 << 16, ALLOWANCE = 16 << 20, MAX_RUN_NBYTES = 32 << 20, HANG_SECONDS = 20, ATTEMPTS = 5 };

#define MAX_SECONDS 0.01 /* for a verdict */

/* ---------------------------------------------------------------- memory in use */

static int64_t in_use, peak;
static int64_t n_allocations, failing; /* which of them fails; 0: none */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t n);
void  __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t n);
void  __wrap_free(void *p);
int   __real_posix_memalign(void **p, size_t alignment, size_t n);
int   __wrap_posix_memalign(void **p, size_t alignment, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);

static bool fails(void) { return ++n_allocations == failing; }

static void *count(void *p)
{
    if (p) in_use += (int64_t)malloc_usable_size(p);
    if (in_use > peak) peak = in_use;
    return p;
}

static void uncount(void *p)
{
    if (p) in_use -= (int64_t)malloc_usable_size(p);
}

void *__wrap_malloc(size_t n) { return fails() ? NULL : count(__real_malloc(n)); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : count(__real_calloc(n, size)); }
void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    return fails() ? NULL : count(__real_aligned_alloc(alignment, n));
}

int __wrap_posix_memalign(void **p, size_t alignment, size_t n)
{
    int status = fails() ? ENOMEM : __real_posix_memalign(p, alignment, n);
    if (status == 0) count(*p);
    return status;
}

/* While it moves, a block may exist twice. */
void *__wrap_realloc(void *old, size_t n)
{
    int64_t before = old ? (int64_t)malloc_usable_size(old) : 0;
    void *p = fails() ? NULL : __real_realloc(old, n);
    count(p);
    if (p) in_use -= before;
    return p;
}

void __wrap_free(void *p)
{
    uncount(p);
    __real_free(p);
}

/* ---------------------------------------------------------------- code reached */

static uint8_t   edges[N_EDGES];
static uintptr_t previous;
static int64_t   n_edges;

void __sanitizer_cov_trace_pc(void);

/* Called at every basic block of the core: an edge is a pair of blocks, as AFL counts them. */
void __sanitizer_cov_trace_pc(void)
{
    uintptr_t block = (uintptr_t)__builtin_return_address(0);
    uint8_t  *edge = &edges[(block ^ previous << 1) % N_EDGES];
    n_edges += !*edge;
    *edge = 1;
    previous = block;
}

/* ---------------------------------------------------------------- what is checked */

static const char *const names[] = {"accepted", "refused", "run", "trained", "not run"};
enum { ACCEPTED, REFUSED, RUN, TRAINED, NOT_RUN, N_OUTCOMES };
static int64_t  outcomes[N_OUTCOMES];
static int64_t  n_executions;
static double   slowest; /* verdict, in seconds of the processor */
static uint8_t *shown; /* ./fuzz-input, mapped: it outlives a crash */

static double clock_at(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double now(void) { return clock_at(CLOCK_MONOTONIC); }

static void finding(const char *what, const gg_error *err)
{
    fprintf(stderr, "FINDING: %s: [%s] %s\n", what, err->code ? err->code : "", err->message);
    exit(1);
}

static void check_refusal(const gg_error *err, int64_t size)
{
    bool has_kind = err->kind == GG_ERR_SHAPE || err->kind == GG_ERR_FORMAT || err->kind == GG_ERR_UNSUPPORTED ||
                    err->kind == GG_ERR_LIMIT;
    if (!has_kind || !err->code) finding("a refusal of no kind", err);
    if (err->offset < 0 || err->offset > size) finding("a refusal without offset", err);
    if (!err->message[0] || strpbrk(err->message, "\n\r\x1b")) finding("a refusal that is not one line", err);
}

/* gg_import, whose verdict has to be quick. A process is charged for being interrupted too, so a file whose verdict seems
 * slow is read again, and is a finding if it is slow every time. */
static gg_graph *import_quickly(const uint8_t *bytes, int64_t size, const char *dialect, const gg_limits *limits,
                                gg_error *err)
{
    for (int attempt = 1;; attempt++) {
        *err = (gg_error){0};
        double begin = clock_at(CLOCK_PROCESS_CPUTIME_ID);
        gg_graph *g = gg_import(bytes, size, dialect, limits, err);
        double seconds = clock_at(CLOCK_PROCESS_CPUTIME_ID) - begin;
        if (seconds <= MAX_SECONDS) {
            if (seconds > slowest) slowest = seconds;
            return g;
        }
        if (attempt == ATTEMPTS) finding("a slow verdict", err);
        gg_graph_free(g);
    }
}

/* The graph, checked as far as a caller can: NULL if it was refused. */
static gg_graph *parse(const fuzz_file *f, const char *dialect, const gg_limits *limits)
{
    gg_error err;
    int64_t  before = in_use;
    memcpy(shown, f->bytes, (size_t)f->size);
    *(int64_t *)(void *)(shown + FUZZ_MAX_NBYTES) = f->size;
    uint8_t *exact = malloc((size_t)f->size + 1); /* so that reading past the file's end is seen */
    if (!exact) exit(2);
    memcpy(exact, f->bytes, (size_t)f->size);
    peak = in_use;
    before = in_use;
    gg_graph *g = import_quickly(exact, f->size, dialect, limits, &err);
    free(exact);
    n_executions++;
    outcomes[g ? ACCEPTED : REFUSED]++;
    if (!g) check_refusal(&err, f->size);
    if (peak - before > 2 * f->size + ALLOWANCE) finding("too much memory", &err);
    return g;
}

/* ---------------------------------------------------------------- running what was accepted */

static bool run_program(gg_graph *g, int32_t n_threads, uint64_t *state)
{
    gg_error err;
    int32_t  level = (int32_t)(fuzz_random(state) % 3);
    const char *isa = gg_isa_name(level) && gg_isa_supported(level) ? gg_isa_name(level) : NULL;
    int32_t  precision = fuzz_random(state) % 4 ? GG_MATMUL_FLOAT32 : GG_MATMUL_BF16;
    gg_pool *pool = gg_pool_new(n_threads, &err);
    gg_program *p = pool ? gg_program_new(g, pool, isa, precision, &err) : NULL;
    bool fits = p && gg_program_arena_nbytes(p) >= 0 && gg_program_arena_nbytes(p) <= MAX_RUN_NBYTES &&
                gg_program_work_nbytes(p) <= MAX_RUN_NBYTES && gg_program_flops(p, 0, gg_graph_size(g)) < 1e7;
    if (fits) gg_program_run(p, 0, gg_graph_size(g), &err);
    gg_program_free(p);
    gg_pool_free(pool);
    return fits;
}

/* Sizes as metadata in a file could ask for. */
static gg_graph *resize(const gg_graph *g, uint64_t *state)
{
    int32_t ids[8], n = gg_graph_size(g) ? (int32_t)(fuzz_random(state) % 8) : 0;
    int64_t ne[8 * GG_MAX_DIMS], words[8];
    gg_error err;
    for (int32_t i = 0; i < n; i++) {
        ids[i] = (int32_t)(fuzz_random(state) % (uint64_t)gg_graph_size(g));
        words[i] = 4 * (int64_t)(fuzz_random(state) % 64);
        memcpy(&ne[GG_MAX_DIMS * i], gg_graph_tensor(g, ids[i])->ne, sizeof(int64_t) * GG_MAX_DIMS);
        ne[GG_MAX_DIMS * i + (int64_t)(fuzz_random(state) % GG_MAX_DIMS)] = (int64_t)(fuzz_random(state) % 9);
    }
    return gg_resize(g, n, ids, ne, words, &err);
}

/* As generation asks for it: the int32 leafs are ids and positions. */
static gg_graph *with_cache(const gg_graph *g, uint64_t *state)
{
    int32_t inputs[2], n = 0;
    gg_error err;
    for (int32_t id = 0; id < gg_graph_size(g) && n < 2; id++)
        if (gg_graph_tensor(g, id)->op == GG_OP_NONE && gg_graph_tensor(g, id)->type == GG_TYPE_I32) inputs[n++] = id;
    return n ? gg_cache(g, n, inputs, (int64_t)(fuzz_random(state) % 9), NULL, &err) : NULL;
}

static void run_forward(const gg_graph *g, uint64_t *state)
{
    int32_t roots[4], n = 0, size = gg_graph_size(g), enable = (int32_t)(fuzz_random(state) % (GG_FUSE_ALL + 1));
    gg_error err;
    for (int32_t id = size - 1; id >= 0 && n < 4; id--)
        if (id == size - 1 || gg_graph_tensor(g, id)->flags & GG_FLAG_OUTPUT) roots[n++] = id;
    gg_graph *fused = n ? gg_fuse(g, n, roots, 0, enable, &err) : NULL;
    outcomes[fused && run_program(fused, 1, state) ? RUN : NOT_RUN]++;
    gg_graph *cached = fused ? with_cache(fused, state) : NULL;
    if (cached) run_program(cached, 1, state);
    gg_graph_free(cached);
    gg_graph_free(fused);
}

/* The last tensor that says so, or -1. */
static int32_t loss_of(const gg_graph *g)
{
    int32_t loss = -1;
    for (int32_t id = 0; id < gg_graph_size(g); id++)
        if (gg_graph_tensor(g, id)->flags & GG_FLAG_LOSS) loss = id;
    return loss;
}

/* Update every parameter that has a gradient, each by another op. */
static int32_t append_updates(gg_graph *g, gg_error *err)
{
    static const int32_t ops[] = {GG_OP_ADAMW, GG_OP_SGD, GG_OP_SGD_MOMENTUM, GG_OP_LION, GG_OP_MUON, GG_OP_NORMUON,
                                  GG_OP_ADAFACTOR, GG_OP_ADAFACTOR_WHOLE, GG_OP_SCHEDULE_FREE};
    gg_update updates[FUZZ_MAX_RECORDS];
    int32_t   n = 0;
    for (int32_t id = 0; id < gg_graph_size(g) && n < FUZZ_MAX_RECORDS; id++) {
        const gg_tensor *t = gg_graph_tensor(g, id);
        if (t->op || !(t->flags & GG_FLAG_PARAM) || gg_grad_of(g, id) < 0) continue;
        int32_t op = ops[n % (int)(sizeof ops / sizeof *ops)];
        bool    is_matrix = t->ne[2] == 1 && t->ne[3] == 1;
        if (!is_matrix && (op == GG_OP_MUON || op == GG_OP_NORMUON)) op = GG_OP_ADAMW;
        updates[n] = (gg_update){id, op, 1, 1, n % 2, n % 3 == 0};
        n++;
    }
    return gg_optimize(g, n, updates, err);
}

/* One step of a graph with gradients, if it is there. */
static bool run_step(const gg_graph *g, uint64_t *state)
{
    gg_error err;
    int32_t  loss = g ? loss_of(g) : -1;
    gg_graph *fused = g ? gg_fuse(g, 1, &loss, 1, GG_FUSE_GRADIENTS, &err) : NULL;
    bool      done = fused && append_updates(fused, &err) >= 0 && run_program(fused, 1, state);
    gg_graph_free(fused);
    return done;
}

static void run_training(const gg_graph *g, uint64_t *state)
{
    int32_t loss = loss_of(g);
    gg_error err;
    if (loss < 0) return;
    gg_graph *fused = gg_fuse(g, 1, &loss, 1, GG_FUSE_DIFFERENTIABLE, &err);
    if (fused) loss = loss_of(fused);
    bool has_gradient = fused && gg_grad(fused, loss, &err) >= 0;
    gg_graph *again = has_gradient ? gg_recompute(fused, loss, (int32_t)(fuzz_random(state) % 4), &err) : NULL;
    run_step(again, state);
    if (has_gradient && run_step(fused, state)) outcomes[TRAINED]++;
    gg_graph_free(again);
    gg_graph_free(fused);
}

static void run(gg_graph *g, uint64_t *state)
{
    gg_error  err;
    gg_graph *resized = resize(g, state);
    if (fuzz_random(state) % 8 == 0) gg_refine(g, gg_graph_size(g) - 1, "gelu_erf", &err);
    run_forward(g, state);
    run_training(g, state);
    if (resized) run_forward(resized, state);
    gg_graph_free(resized);
}

/* ---------------------------------------------------------------- the corpus */

static fuzz_file corpus[MAX_CORPUS];
static int32_t   n_corpus;

static const gg_limits parse_limits = {1 << 16, (int64_t)1 << 40, 1e15};
static const gg_limits run_limits = {FUZZ_MAX_RECORDS, 1 << 20, 1e6};

static const gg_dialect *dialect_of(const uint8_t *bytes, int64_t size)
{
    gg_error err;
    const char *name = gg_identify(bytes, size, &parse_limits, &err);
    for (int32_t i = 0; name && i < gg_n_dialects; i++)
        if (strcmp(gg_dialects[i].name, name) == 0) return &gg_dialects[i];
    return &gg_dialects[size > 4 && bytes[4] == 1 ? gg_n_dialects - 1 : 0];
}

/* Under a name that follows from its content. */
static void save(const fuzz_file *f, const char *directory)
{
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a (Fowler, Noll & Vo) */
    char path[1024];
    for (int64_t i = 0; i < f->size; i++) hash = (hash ^ f->bytes[i]) * 0x100000001b3;
    snprintf(path, sizeof path, "%s/%s_%016llx.bin", directory, f->dialect->name, (unsigned long long)hash);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || write(file, f->bytes, (size_t)f->size) != f->size || close(file) != 0) {
        fprintf(stderr, "fuzz: cannot write %s\n", path);
        exit(2);
    }
}

static void add(const uint8_t *bytes, int64_t size, const gg_dialect *dialect)
{
    if (n_corpus == MAX_CORPUS) return;
    fuzz_file *f = &corpus[n_corpus++];
    *f = (fuzz_file){.bytes = malloc((size_t)size + 1), .size = size};
    if (!f->bytes) exit(2);
    memcpy(f->bytes, bytes, (size_t)size);
    f->dialect = dialect ? dialect : dialect_of(bytes, size);
    fuzz_walk(f);
}

static void read_corpus(const char *directory)
{
    static uint8_t bytes[FUZZ_MAX_NBYTES];
    struct dirent **entries;
    int n = scandir(directory, &entries, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", directory, entries[i]->d_name);
        int file = entries[i]->d_name[0] == '.' ? -1 : open(path, O_RDONLY);
        ssize_t size = file < 0 ? -1 : read(file, bytes, sizeof bytes);
        if (size >= 0) add(bytes, size, NULL);
        if (file >= 0) close(file);
        free(entries[i]);
    }
    if (n >= 0) free(entries);
}

/* ---------------------------------------------------------------- modes */

static void fuzz(bool with_run, double seconds, uint64_t seed)
{
    static uint8_t bytes[FUZZ_MAX_NBYTES];
    uint64_t state = seed;
    for (double end = now() + seconds; now() < end;) {
        alarm(HANG_SECONDS);
        for (int k = 0; k < 256; k++) {
            const fuzz_file *seed_file = &corpus[fuzz_random(&state) % (uint64_t)n_corpus];
            const fuzz_file *other = &corpus[fuzz_random(&state) % (uint64_t)n_corpus];
            fuzz_file f = *seed_file;
            f.bytes = bytes;
            memcpy(bytes, seed_file->bytes, (size_t)f.size);
            int64_t before = n_edges;
            fuzz_mutate(&f, other->dialect == f.dialect ? other : seed_file, &state);
            if (fuzz_random(&state) % 8 < (with_run ? 6 : 1)) fuzz_repair(&f);
            bool is_auto = fuzz_random(&state) % 8 == 0;
            gg_graph *g = parse(&f, is_auto ? "auto" : f.dialect->name, with_run ? &run_limits : &parse_limits);
            if (g && with_run) run(g, &state);
            gg_graph_free(g);
            if (n_edges > before) add(f.bytes, f.size, f.dialect);
        }
    }
}

static void try_bytes(fuzz_file *f)
{
    gg_graph_free(parse(f, f->dialect->name, &parse_limits));
}

static void every_byte(void)
{
    static uint8_t bytes[FUZZ_MAX_NBYTES];
    for (int32_t k = 0; k < n_corpus; k++) {
        fuzz_file f = corpus[k];
        f.bytes = bytes;
        memcpy(bytes, corpus[k].bytes, (size_t)f.size);
        for (f.size = 0; f.size < corpus[k].size; f.size++) try_bytes(&f);
        for (int64_t at = 0; at < f.size; at++) {
            alarm(HANG_SECONDS);
            for (int new = 0; new < 256; new++) {
                bytes[at] = (uint8_t)new;
                if (new != corpus[k].bytes[at]) try_bytes(&f);
            }
            bytes[at] = corpus[k].bytes[at];
        }
    }
}

/* A call that is tried: it works, or it fails with an error of its own, that of memory where the failing allocation was. */
static gg_error tried_error;
static int64_t  tried_from;

static gg_error *try_with(void)
{
    tried_error = (gg_error){.offset = -1};
    tried_from = n_allocations;
    return &tried_error;
}

static bool tried(bool worked)
{
    const gg_error *err = &tried_error;
    bool starved = tried_from < failing && n_allocations >= failing;
    if (worked && starved) finding("a call that went on without memory", err);
    if (!worked && (!err->kind || !err->code || !err->message[0])) finding("a failure without an error", err);
    if (starved && err->kind != GG_ERR_MEMORY) finding("a want of memory told as something else", err);
    return worked;
}

static gg_graph *got(gg_graph *g) { return tried(g != NULL) ? g : NULL; }

static void try_program(gg_graph *g)
{
    gg_pool    *pool = gg_pool_new(2, try_with());
    gg_program *p = tried(pool != NULL) ? gg_program_new(g, pool, NULL, GG_MATMUL_FLOAT32, try_with()) : NULL;
    if (pool && tried(p != NULL) && gg_program_arena_nbytes(p) + gg_program_work_nbytes(p) <= MAX_RUN_NBYTES)
        tried(gg_program_run(p, 0, gg_graph_size(g), try_with()) >= 0);
    gg_program_free(p);
    gg_pool_free(pool);
}

static void try_forward(const gg_graph *g)
{
    const int32_t last = gg_graph_size(g) - 1, first = 0;
    gg_graph *fused = got(gg_fuse(g, 1, &last, 0, GG_FUSE_DIFFERENTIABLE, try_with()));
    if (fused) try_program(fused);
    gg_graph *cached = fused ? got(gg_cache(fused, 1, &first, 8, NULL, try_with())) : NULL;
    gg_graph_free(cached);
    gg_graph_free(fused);
}

static void try_step(gg_graph *g, int32_t loss)
{
    if (!tried(gg_grad(g, loss, try_with()) >= 0)) return;
    gg_graph *again = got(gg_recompute(g, loss, 2, try_with()));
    gg_graph *fused = again ? got(gg_fuse(again, 1, &loss, 0, GG_FUSE_GRADIENTS, try_with())) : NULL;
    if (fused && tried(gg_accumulate(fused, try_with()) >= 0) && tried(append_updates(fused, try_with()) >= 0))
        try_program(fused);
    gg_graph_free(fused);
    gg_graph_free(again);
}

/* Every function that takes memory. */
static void try_all(const fuzz_file *f, bool mapped)
{
    gg_graph *g = got(mapped ? gg_import_mapped(f->bytes, f->size, "auto", &run_limits, try_with())
                             : gg_import(f->bytes, f->size, f->dialect->name, &run_limits, try_with()));
    gg_graph *resized = g ? got(gg_resize(g, 0, NULL, NULL, NULL, try_with())) : NULL;
    if (resized && gg_graph_size(resized)) try_forward(resized);
    int32_t   loss = resized ? loss_of(resized) : -1;
    gg_graph *fused = loss < 0 ? NULL : got(gg_fuse(resized, 1, &loss, 1, GG_FUSE_DIFFERENTIABLE, try_with()));
    if (fused) try_step(fused, loss_of(fused));
    gg_graph_free(fused);
    gg_graph_free(resized);
    gg_graph_free(g);
}

static void starve(bool mapped)
{
    for (int32_t k = 0; k < n_corpus; k++) {
        memcpy(shown, corpus[k].bytes, (size_t)corpus[k].size);
        *(int64_t *)(void *)(shown + FUZZ_MAX_NBYTES) = corpus[k].size;
        for (failing = 1; failing == 1 || n_allocations >= failing - 1; failing++, n_executions++) {
            alarm(HANG_SECONDS);
            n_allocations = 0;
            try_all(&corpus[k], mapped);
        }
    }
}

/* Small files first, so that of those that reach the same the smallest is kept. */
static int by_size(const void *a, const void *b)
{
    int64_t x = ((const fuzz_file *)a)->size, y = ((const fuzz_file *)b)->size;
    return x < y ? -1 : x > y;
}

static void replay(const char *keep)
{
    uint64_t state = 1;
    qsort(corpus, (size_t)n_corpus, sizeof *corpus, by_size);
    for (int32_t k = 0; k < n_corpus; k++) {
        int64_t before = n_edges;
        alarm(HANG_SECONDS);
        gg_graph_free(parse(&corpus[k], "auto", &parse_limits));
        for (int32_t i = 0; i < gg_n_dialects; i++) {
            gg_graph *g = parse(&corpus[k], gg_dialects[i].name, &run_limits);
            if (g) run(g, &state);
            gg_graph_free(g);
        }
        if (keep && n_edges > before) save(&corpus[k], keep);
    }
}

static int usage(void)
{
    fprintf(stderr, "usage: fuzz parse|run SECONDS SEED CORPUS... KEEP\n"
                    "       fuzz bytes|replay|starve CORPUS...\n"
                    "       fuzz merge CORPUS... KEEP\n");
    return 2;
}

int main(int n_arguments, char **arguments)
{
    const char *mode = n_arguments > 2 ? arguments[1] : "", *keep = arguments[n_arguments - 1];
    bool changes = strcmp(mode, "parse") == 0 || strcmp(mode, "run") == 0, merges = strcmp(mode, "merge") == 0;
    bool bytes = strcmp(mode, "bytes") == 0, starves = strcmp(mode, "starve") == 0;
    if (!changes && !merges && !bytes && !starves && strcmp(mode, "replay") != 0) return usage();
    int first = changes ? 4 : 2, end = merges ? n_arguments - 1 : n_arguments;
    for (int i = first; i < end; i++) read_corpus(arguments[i]);
    int file = open("fuzz-input", O_RDWR | O_CREAT, 0644);
    if (n_corpus == 0 || file < 0 || ftruncate(file, FUZZ_MAX_NBYTES + 8) != 0) return usage();
    shown = mmap(NULL, FUZZ_MAX_NBYTES + 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shown == MAP_FAILED) return 2;
    int32_t n_files = n_corpus;
    double  begin = now();
    if (bytes) every_byte();
    else if (starves) {
        starve(false);
        starve(true);
        failing = 0;
    }
    else if (!changes) replay(merges ? keep : NULL);
    else fuzz(strcmp(mode, "run") == 0, strtod(arguments[2], NULL), strtoull(arguments[3], NULL, 10));
    for (int32_t k = n_files; k < n_corpus; k++) save(&corpus[k], keep);
    printf("%s: %lld executions, %.0f/s, slowest %.2f ms, %d files + %d kept, %lld edges;", mode,
           (long long)n_executions, (double)n_executions / (now() - begin), slowest * 1e3, n_files,
           n_corpus - n_files, (long long)n_edges);
    for (int i = 0; i < N_OUTCOMES; i++)
        printf(" %lld %s%s", (long long)outcomes[i], names[i], i + 1 < N_OUTCOMES ? "," : "\n");
    return 0;
}
