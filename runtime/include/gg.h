/* gg.h - the public C API of the ggmlgraph runtime, and the very text given to ffi.cdef (so: no directives).
 *
 * Life of a training run:
 *     gg_import -> gg_resize -> gg_fuse -> gg_grad -> gg_fuse -> gg_optimize -> gg_program_new -> gg_program_run
 *
 * A graph is an append-only array of tensors with integer ids; creation order is topological order. Dimensions
 * are in ggml's order, ne[0] fastest. Passes append nodes (gg_grad, gg_optimize) or build a new graph (gg_resize,
 * gg_fuse); new graphs share the leafs' memory with the old. Nothing here prints, aborts, or keeps global state.
 * Threads may work on graphs and programs of their own at the same time, also where these share leafs that none writes;
 * a graph with its programs takes one call at a time.
 * A function that can fail takes a gg_error and returns -1 or NULL after filling it.
 */

typedef struct gg_graph gg_graph;
typedef struct gg_pool gg_pool;
typedef struct gg_program gg_program;

enum {
    GG_ERR_SHAPE = 1,       /* operands do not fit an op's rule */
    GG_ERR_FORMAT = 2,      /* the file breaks the format; offset says where */
    GG_ERR_UNSUPPORTED = 3, /* known, but not done here: op, type, or a missing derivative */
    GG_ERR_MEMORY = 4,      /* allocation failed */
    GG_ERR_DATA = 5,        /* a value at run time is out of range, e.g. a token id */
    GG_ERR_ARGUMENT = 6,    /* the caller's mistake: bad id, bad size, bad name */
    GG_ERR_LIMIT = 7        /* the file is larger than the caller allows */
};

typedef struct gg_error {
    int32_t     kind;   /* GG_ERR_* */
    int32_t     node;   /* id of the node, or -1 */
    int64_t     offset; /* byte offset in the file, or -1 */
    const char *code;   /* the rule that was broken, e.g. "BadSource": a stable name, listed in docs/cgraph.md */
    char        message[256];
} gg_error;

/* ggml's numbers. ggmlgraph/table/dialect.py has the table of all types; these are the ones that C code names. */
enum { GG_TYPE_F32 = 0, GG_TYPE_F16 = 1, GG_TYPE_I8 = 24, GG_TYPE_I32 = 26, GG_TYPE_I64 = 27, GG_TYPE_BF16 = 30 };

enum { GG_FLAG_INPUT = 1, GG_FLAG_OUTPUT = 2, GG_FLAG_PARAM = 4, GG_FLAG_LOSS = 8 };

typedef struct gg_tensor {
    int32_t type;          /* GG_TYPE_* */
    int32_t op;            /* row of the op table; 0 for a leaf */
    int32_t flags;         /* GG_FLAG_* */
    int32_t n_src;
    int32_t src[10];       /* ids, each below the node's own; -1 for an absent optional source */
    int64_t ne[4];         /* elements */
    int64_t nb[4];         /* strides in bytes */
    int32_t op_params[16]; /* as ggml stores them */
    char    name[64];
    int32_t root;          /* whose memory this is: its own id, or the base of a chain of views */
    int64_t root_offset;   /* bytes into the root's memory */
} gg_tensor;

/* ---- graphs ---- */
gg_graph *gg_graph_new(void);
void gg_graph_free(gg_graph *g);
int32_t gg_graph_size(const gg_graph *g);
const gg_tensor *gg_graph_tensor(const gg_graph *g, int32_t id); /* valid until the next node is added */
/* id of the tensor of that name, of one whose memory others write its last version; -1: none; -2: more than one */
int32_t gg_graph_find(const gg_graph *g, const char *name);
/* 1 if tensor `id` is what `old`, of the same name, became when others wrote its memory (order.c), 0 if not */
int32_t gg_is_version(const gg_graph *g, int32_t id, int32_t old);
/* 1 if node `id` writes memory of a leaf, which a run without it would leave as it was; else 0 */
int32_t gg_writes_leaf(const gg_graph *g, int32_t id);
int32_t gg_leaf(gg_graph *g, int32_t type, const int64_t *ne, int32_t flags, const char *name, gg_error *err);
/* ne: size for sized ops, else NULL. nb: strides for view, else NULL. op_params may be NULL. */
int32_t gg_node(gg_graph *g, int32_t op, int32_t n_src, const int32_t *src, const int32_t *op_params,
                const int64_t *ne, const int64_t *nb, gg_error *err);
int32_t gg_set_name(gg_graph *g, int32_t id, const char *name, int32_t flags, gg_error *err); /* adds the flags */
int32_t gg_set_flags(gg_graph *g, int32_t id, int32_t flags, gg_error *err);                  /* replaces them */
void *gg_leaf_data(gg_graph *g, int32_t id, gg_error *err); /* zero until written */
int64_t gg_nbytes(const gg_graph *g, int32_t id);
int64_t gg_leaf_nbytes(const gg_graph *g); /* of all leafs */
int64_t gg_held_nbytes(const gg_graph *g); /* of those that have memory already, in no file of the caller's */

/* ---- file to graph ---- */
/* How large a graph a file may hold. */
typedef struct gg_limits {
    int64_t n_tensors;
    int64_t nbytes; /* of all tensors that are no views */
    double  flops;  /* of computing every node once, as gg_program_flops counts, plus the elements touched */
} gg_limits;

/* dialect: the name of one, or "auto": what gg_identify finds. */
gg_graph *gg_import(const uint8_t *bytes, int64_t size, const char *dialect, const gg_limits *limits, gg_error *err);
/* The same without a copy: leafs lie in `bytes`, where a type's alignment allows it. They must be there as long as any
 * graph that came of this one, and what is written into a leaf is written there. */
gg_graph *gg_import_mapped(uint8_t *bytes, int64_t size, const char *dialect, const gg_limits *limits, gg_error *err);
/* The one dialect in which the whole file is valid; NULL if there is none, or if two disagree on what it means. */
const char *gg_identify(const uint8_t *bytes, int64_t size, const gg_limits *limits, gg_error *err);
/* Name the exact form of an op that ggml approximates, e.g. gelu -> gelu_erf, or what it stands for. */
int32_t gg_refine(gg_graph *g, int32_t id, const char *op, gg_error *err);

/* ---- graph to graph ---- */
/* Give leafs and sized nodes `ids` the sizes `ne` (4 each), views and scales among them the first two words of op_params
 * (the byte offset, the factor); the rest follows. */
gg_graph *gg_resize(const gg_graph *g, int32_t n, const int32_t *ids, const int64_t *ne, const int64_t *words,
                    gg_error *err);
/* The graph to be trained, in which the nodes `ids`, rising, reshapes to the same shape, drop elements at these rates. Ids
 * are one higher: tensor 0 is the leaf `dropout.key`, int32 (4): seed (2), step, and 1 + the micro-batch or 0, with which
 * nothing is dropped. */
gg_graph *gg_dropout(const gg_graph *g, int32_t n, const int32_t *ids, const float *rates, gg_error *err);
enum {
    GG_FUSE_NORM_GAIN = 1,
    GG_FUSE_SWIGLU = 2,
    GG_FUSE_CROSS_ENTROPY = 4,
    GG_FUSE_ATTENTION = 8,
    GG_FUSE_REPEAT = 16,
    GG_FUSE_ACCUMULATE = 32,
    GG_FUSE_DIFFERENTIABLE = 31, /* before gg_grad: what has derivative rules */
    GG_FUSE_GRADIENTS = 48,      /* after it */
    GG_FUSE_ALL = 63
};
/* Keep what `roots` and gradients of parameters need and merge the enabled patterns into fused ops; with `train` a fused
 * op leaves behind what its derivative needs. The roots become OUTPUT, and nothing else is: readable after a run. */
gg_graph *gg_fuse(const gg_graph *g, int32_t n_roots, const int32_t *roots, int32_t train, int32_t enable,
                  gg_error *err);

/* The same graph for a text whose earlier positions were computed before: attention finds their keys and values in leafs
 * `cache.*`, with room for `capacity` positions, to which it adds the new ones; leaf `cache.n_past`, int32 (1), says how
 * many there are. ne[0] of the leafs `inputs`, token ids and position numbers, is the number of new positions. Caches
 * are shared with those of `shared`, unless it is NULL. Fails where an op but causal attention mixes positions, which
 * shows only with more than one new position. */
gg_graph *gg_cache(const gg_graph *g, int32_t n_inputs, const int32_t *inputs, int64_t capacity, gg_graph *shared,
                   gg_error *err);

/* ---- training graph ---- */
int32_t gg_grad(gg_graph *g, int32_t loss, gg_error *err);         /* number of parameters differentiated */
int32_t gg_grad_of(const gg_graph *g, int32_t id);                 /* id of a tensor's gradient, or -1 */
/* The training graph up to gg_grad once more, with fewer activations kept and more computed again: level 0 keeps all,
 * gg_recompute_levels is the highest level that makes a difference. Ids up to `loss` stay. */
int32_t gg_recompute_levels(const gg_graph *g, int32_t loss, gg_error *err);
gg_graph *gg_recompute(const gg_graph *g, int32_t loss, int32_t level, gg_error *err);
int32_t gg_accumulate(gg_graph *g, gg_error *err);                 /* sum micro-batches; id of input `keep` */
/* How a parameter is updated: by an op of the table that is made for it (adamw, sgd, sgd_momentum, lion,
 * adafactor, adafactor_whole, schedule_free; of matrices muon, normuon, behind nodes for the momentum and for
 * Newton-Schulz). */
typedef struct gg_update {
    int32_t param, op;
    float   rate, decay; /* factors of the step, and of what decay takes of the parameter */
    int32_t cautious;    /* decay only where the step goes the same way */
    int32_t averaged;    /* an exponential average of the parameter is kept too, by op ema */
} gg_update;
/* Clip and update parameters; id of the last node. Adds for each op a leaf OP.hyper, float32 (12), which ops.py
 * describes, and leafs without names that an op keeps its state in: the sources that it writes, but for the parameter. */
int32_t gg_optimize(gg_graph *g, int32_t n, const gg_update *updates, gg_error *err);

/* ---- running ---- */
/* How matrix products read their operands: as they are, or each rounded to the nearest bfloat16. They add in float32. */
enum { GG_MATMUL_FLOAT32 = 0, GG_MATMUL_BF16 = 1 };
/* The threads that programs run on, the caller's among them: as many programs as there are, one at a time. They are
 * started by the first run; a process that was forked starts its own. */
gg_pool *gg_pool_new(int32_t n_threads, gg_error *err);
void gg_pool_free(gg_pool *pool);
/* A graph ready to run on a pool, both to be freed after it: plans, allocates nothing. isa: a level's name, or NULL for
 * the best. An imported graph has to have gone through gg_fuse, which puts copies where a kernel cannot read a tensor as
 * it lies; else this fails. */
gg_program *gg_program_new(gg_graph *g, gg_pool *pool, const char *isa, int32_t matmul_precision, gg_error *err);
void gg_program_free(gg_program *p);
int64_t gg_program_arena_nbytes(const gg_program *p); /* memory of all non-leaf tensors */
int64_t gg_program_live_nbytes(const gg_program *p);  /* the most of it that is in use at once: the lower bound */
int64_t gg_program_work_nbytes(const gg_program *p);
int64_t gg_program_offset(const gg_program *p, int32_t id); /* in the arena; -1 for leafs */
double gg_program_flops(const gg_program *p, int32_t begin, int32_t end); /* of matrix products */
/* Nodes [begin, end); those before must be computed. Fails while another thread runs on the pool. */
int32_t gg_program_run(gg_program *p, int32_t begin, int32_t end, gg_error *err);
/* A tensor's memory as the last run left it; NULL if it has no values yet, or gave its memory to others. Outputs and
 * gradients of parameters keep theirs to the end. */
void *gg_program_data(gg_program *p, int32_t id);
/* From now on add each node's wall time to seconds[id], one per tensor of the graph; NULL: no longer. */
void gg_program_profile(gg_program *p, double *seconds);

/* ---- machine ---- */
const char *gg_isa_name(int32_t level);        /* levels compiled in, best first; NULL past the last */
int32_t gg_isa_supported(int32_t level);       /* whether this CPU runs it */
/* Measured multiply-adds per second x 2, of the instructions that products of this precision use. */
double gg_peak_flops(const char *isa, int32_t matmul_precision, int32_t n_threads, double seconds);

/* ---- element types ---- */
/* n numbers, a multiple of the type's block, of a type with a decoder, as float32. */
int32_t gg_decode(int32_t type, int64_t n, const void *blocks, float *out, gg_error *err);
/* n numbers, a multiple of the type's block, in a type with an encoder. Halves are rounded to nearest, ties to even; what
 * is too large becomes infinite. */
int32_t gg_encode(int32_t type, int64_t n, const float *x, void *blocks, gg_error *err);

/* ---- first weights ---- */
/* n numbers mean + std * normal out of as many random words (n rounded up to even): the same bytes at every level. */
int32_t gg_normals(int64_t n, const uint64_t *bits, double mean, double std, float *out, gg_error *err);
