/* qfw_plugin.h: algorithms for qfw, loaded at run time. C11 and C++17.
 *
 * A plugin is a shared library that exports one function, `qfw_plugin_entry_v1`. The host asks it for descriptions, makes instances of
 * algorithms with their options, and calls the extension that belongs to an algorithm's phase. Nothing but what is declared here
 * crosses the border.
 *
 * Rules
 *  - Every struct begins with its size, as its maker knows it. Later versions append members; nothing is moved or removed.
 *    A member that lies behind the other side's `size` does not exist, and reads as zero. What a plugin gives out may be larger than
 *    the host knows: the rest has to be zero, as the host cannot do what it asks for. A struct that may grow is never a member or an
 *    element of another: there are pointers to it.
 *  - Extensions have names with a revision, such as "qfw.round/1". An unknown name yields NULL.
 *  - Strings are UTF-8. What is passed to a call is valid until it returns; what an instance holds, until it is destroyed; what a
 *    description holds, for the life of the process. A library that was loaded is never unloaded.
 *  - Tensors are DLPack tensors on the CPU, contiguous and row-major; `strides` is NULL. Those the host passes in are views, flagged
 *    read-only unless they are named as outputs. Nobody frees the other side's memory; `deleter` is NULL in views.
 *  - A call that fails returns a status other than QFW_OK, after telling why with `set_error`.
 *  - Nothing may be thrown or unwound across a call. A plugin starts at most `threads` threads.
 *  - The same inputs, options and seed give the same bytes, whatever the number of threads.
 *
 * Threads: [main] one call at a time in a process; [instance] one call at a time for each instance, or any number where the
 * description has QFW_REENTRANT; [any] any thread, also several at once.
 *
 * If you use the original dlpack.h too, include it before this file.
 */
#ifndef QFW_PLUGIN_H
#define QFW_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#define QFW_ABI_MAJOR 1u
#define QFW_ABI_MINOR 0u

#if defined(_WIN32)
#define QFW_EXPORT __declspec(dllexport)
#else
#define QFW_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- tensors: DLPack 1.x, as published by dmlc/dlpack ---- */

#ifndef DLPACK_MAJOR_VERSION
typedef struct {
    uint32_t major;
    uint32_t minor;
} DLPackVersion;

typedef struct {
    int32_t device_type; /* 1: CPU */
    int32_t device_id;
} DLDevice;

typedef struct {
    uint8_t code; /* 0 int, 1 unsigned, 2 float */
    uint8_t bits;
    uint16_t lanes; /* 1 */
} DLDataType;

typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct DLManagedTensorVersioned {
    DLPackVersion version;
    void *manager_ctx;
    void (*deleter)(struct DLManagedTensorVersioned *self);
    uint64_t flags; /* bit 0: read-only */
    DLTensor dl_tensor;
} DLManagedTensorVersioned;
#endif

typedef DLManagedTensorVersioned qfw_tensor;

/* ---- plain values ---- */

typedef struct {
    uint32_t major;
    uint32_t minor;
} qfw_version;

typedef struct {
    const char *ptr; /* not NUL-terminated */
    size_t len;
} qfw_str;

/* What a call returns. */
enum {
    QFW_OK = 0,
    QFW_ERR_OPTIONS = 1,     /* the options cannot be */
    QFW_ERR_UNSUPPORTED = 2, /* the plan asks for what the algorithm cannot do */
    QFW_ERR_NUMERIC = 3,     /* this site cannot be solved; the run may round it to nearest instead */
    QFW_ERR_CANCELLED = 4,   /* `cancelled` said so */
    QFW_ERR_PANIC = 5,       /* the plugin broke; the instance is not used again */
    QFW_ERR_INTERNAL = 6     /* anything else */
};

enum { QFW_LOG_ERROR = 1, QFW_LOG_WARN = 2, QFW_LOG_INFO = 3, QFW_LOG_DEBUG = 4 };

/* When an algorithm runs: in this order. */
enum { QFW_TRANSFORM = 0, QFW_CONDITION = 1, QFW_SPLIT = 2, QFW_ROUND = 3, QFW_CORRECT = 4 };

/* What is known of the inputs of a site. n: its input channels. */
enum {
    QFW_STAT_GRAM = 0,        /* f32 [n, n]: X'X over all tokens; the lower triangle, zeros above */
    QFW_STAT_CROSS_GRAM = 1,  /* f32 [n, n]: of the stream (rows) with the reference (columns) */
    QFW_STAT_MEAN = 2,        /* f64 [n] */
    QFW_STAT_ABS_MEAN = 3,    /* f64 [n] */
    QFW_STAT_LEAST = 4,       /* f64 [n] */
    QFW_STAT_GREATEST = 5,    /* f64 [n] */
    QFW_STAT_ROUNDED_MEAN = 6 /* f64 [n]; absent where inputs are not rounded */
};

/* Whose activations. */
enum {
    QFW_STREAM_REFERENCE = 0, /* of the original model */
    QFW_STREAM_QUANTIZED = 1, /* of the model quantized so far */
    QFW_STREAM_ROUNDED = 2    /* the same, rounded as the scheme says */
};

/* ---- what the host offers ---- */

typedef struct qfw_host {
    uint32_t size;
    qfw_version abi;
    uint32_t threads; /* threads that a plugin may use */
    void *ctx;        /* the host's own */
    /* [any] Why the call is about to fail. The last one counts. `hint`: what the user can do, or empty. */
    void (*set_error)(const struct qfw_host *host, qfw_str message, qfw_str hint);
    /* [any] */
    void (*log)(const struct qfw_host *host, uint32_t level, qfw_str message);
    /* [any] Not 0: return QFW_ERR_CANCELLED soon; after a grace period the host ends the process. */
    int32_t (*cancelled)(const struct qfw_host *host);
    /* [any] How far the call is, in steps of any size; the host shows it, now and then. */
    void (*progress)(const struct qfw_host *host, uint64_t done, uint64_t total);
    /* [any] The answer of a call that has one: JSON. The last one counts. */
    void (*reply)(const struct qfw_host *host, qfw_str json);
    /* [any] Something worth reporting of the site: one JSON object, such as {"dead-columns":{"count":3}}. */
    void (*event)(const struct qfw_host *host, qfw_str json);
    /* [any] A zeroed output whose shape is the plugin's choice; it is the host's, and valid until the call returns. Types: unsigned of
     * 8, 16 and 32 bits, floats of 32 and 64; 1 to 8 dimensions. */
    int32_t (*alloc)(const struct qfw_host *host, uint8_t code, uint8_t bits, int32_t ndim, const int64_t *shape, qfw_tensor **out);
    /* [any] What else the host offers, such as "qfw.numeric/1"; NULL if it does not. */
    const void *(*extension)(const struct qfw_host *host, const char *id);
} qfw_host;

/* ---- a site: one matrix of weights under work ---- */

enum { QFW_GRID_INT = 0, QFW_GRID_FLOAT = 1, QFW_GRID_LEVELS = 2 };
enum { QFW_ZERO_NONE = 0, QFW_ZERO_FIXED = 1, QFW_ZERO_INTEGER = 2, QFW_ZERO_FLOAT = 3 };

/* What codes stand for: scale * (code - zero) for integers, scale * value(code) for floats and tables. Rounding is half to even. */
typedef struct qfw_grid {
    uint32_t size;
    uint32_t kind;
    int32_t lo; /* smallest code */
    int32_t hi; /* largest code */
    uint32_t bits;
    uint32_t zero;
    int32_t fixed_zero;
    uint32_t exponent; /* floats: bits of the exponent */
    uint32_t mantissa; /* floats: bits of the mantissa */
    uint32_t variant;  /* floats: 0 plain, 1 OCP, 2 FNUZ */
    const float *levels;
    size_t n_levels;
} qfw_grid;

/* Which elements share a scale: tiles of a [rows, cols] matrix, counted row by row; the last may be smaller. */
typedef struct qfw_tiles {
    uint32_t size;
    uint32_t reserved;
    uint64_t rows;
    uint64_t cols;
    uint64_t tile_rows;
    uint64_t tile_cols;
} qfw_tiles;

typedef struct qfw_stat {
    uint32_t size;
    uint32_t kind;
    uint32_t stream;
    uint32_t reserved;
    uint64_t tokens;
    uint64_t id; /* the same id is the same numbers, for the life of the process */
    const qfw_tensor *tensor;
} qfw_stat;

enum {
    QFW_SITE_FEEDS_BACK = 1 /* what rounds it says QFW_FEEDS_BACK; known where the layer reads a region */
};

typedef struct qfw_site {
    uint32_t size;
    uint32_t stream; /* the stream to take statistics from */
    uint64_t token;  /* the host's own */
    qfw_str name;    /* "blocks.3.attn.q" */
    qfw_str role;    /* "attn.q" */
    int64_t block;   /* -1: of no block */
    uint64_t seed;
    const qfw_tensor *weight;   /* f32 [rows, cols]: output channels, input channels; finite */
    const qfw_tensor *original; /* the weight before any pass moved it */
    const qfw_tensor *ranged;   /* what scales and zero points are to be fitted to: what a condition chose for that, else `weight` itself */
    const qfw_stat *const *stats;
    size_t n_stats;
    const qfw_grid *grid;   /* NULL where the site is not to be rounded (readers of a region) */
    const qfw_tiles *tiles; /* NULL with it */
    qfw_str spec;           /* everything about what it becomes, as JSON; empty with it */
    qfw_str input;          /* how its input is rounded, as JSON; empty if it is not */
    qfw_str linear;         /* shape, ports and bias of the layer, as JSON */
    float amax;             /* largest magnitude over the weights that share a factor with this one */
    uint32_t flags;             /* QFW_SITE_... */
} qfw_site;

/* ---- host extension "qfw.numeric/1" ----
 *
 * Pointers are to as many numbers as the site, the tensor or the sizes beside them say, aligned as their type. What is written overlaps
 * nothing else that is passed. Tensors are contiguous: no strides, no offset. The host checks what can be checked, and returns
 * QFW_ERR_INTERNAL, with a message, for what is not so. */

/* Upper U, row-major f32 [n, n], with (H + lambda I)^-1 = U'U, lambda = damp * mean(diag H). */
typedef struct qfw_factor {
    uint32_t size;
    uint32_t reserved;
    uint64_t n;
    const float *u;
    const uint32_t *order; /* order[i] is the column that comes i-th; NULL: as stored */
    const uint32_t *dead;  /* columns that never fired */
    size_t n_dead;
    double damp; /* that was used */
} qfw_factor;

typedef struct qfw_numeric {
    uint32_t size;
    uint32_t reserved;
    /* [any] C = A B, or C += A B with `add`; f32, row-major, strides in elements. A is [m, k], or [k, m] where it is transposed; B is
     * [k, n], or [n, k]. One thread; the sum over k has one order. */
    int32_t (*gemm)(const qfw_host *host, size_t m, size_t n, size_t k, int32_t add, float *c, size_t c_stride, const float *a,
                    int32_t a_transposed, size_t a_stride, const float *b, int32_t b_transposed, size_t b_stride);
    /* [any] Scales and zero points of the site's tiles for a [rows, cols] weight, as its scheme chooses them: for the site's `ranged`, or
     * what was made of that. */
    int32_t (*fit)(const qfw_host *host, const qfw_site *site, const float *weight, float *scale, float *zero);
    /* [any] Every element to its nearest code. `codes` is that of the site's output. */
    int32_t (*nearest)(const qfw_host *host, const qfw_site *site, const float *weight, const float *scale, const float *zero,
                       const qfw_tensor *codes);
    /* [any] What codes stand for, [rows, cols]. */
    int32_t (*expand)(const qfw_host *host, const qfw_site *site, const qfw_tensor *codes, const float *scale, const float *zero,
                      float *weight);
    /* [any] The factor of a Gram matrix; of one that belongs to a site it is made once and shared. Valid until the call returns. */
    int32_t (*factor)(const qfw_host *host, const qfw_tensor *gram, double damp, int32_t by_diagonal, const qfw_factor **out);
    /* [any] Rounds column by column, in the factor's order, feeding each error into the columns still open. */
    int32_t (*sweep)(const qfw_host *host, const qfw_site *site, const float *weight, const qfw_factor *factor, const float *scale,
                     const float *zero, size_t block, const qfw_tensor *codes);
    /* [any] 64 uniform bits: a pure function of the key, such as { seed, index }. */
    uint64_t (*random)(const uint64_t *key, size_t words);
    /* [any] Calls body(state, i) for every i below n, on the host's threads, in any order. Ends at the first status that is not
     * QFW_OK and returns it. Hold no lock while the host works. */
    int32_t (*parallel_for)(const qfw_host *host, size_t n, void *state, int32_t (*body)(void *state, size_t i));
} qfw_numeric;

/* ---- algorithms ---- */

struct qfw_algo;

/* Bits of `needs`: 1 << QFW_STAT_..., on the stream that the run propagates. */
#define QFW_NEED(stat) (UINT64_C(1) << (stat))

enum {
    QFW_REENTRANT = 1,     /* calls of one instance may run at once */
    QFW_WEIGHT_ONLY = 2,   /* it reads no activations with its default options; others may ask for them, through "qfw.plan/1" */
    QFW_CHECKS_OPTIONS = 4, /* `create` checks options and fills in defaults; else the host does, by the schema */
    QFW_FEEDS_BACK = 8      /* it rounds, and the error of each column moves those that come after it */
};

typedef struct qfw_algo_desc {
    uint32_t size;
    uint32_t phase;
    const char *id;
    const char *summary;        /* one line */
    const char *options_schema; /* JSON Schema 2020-12; without QFW_CHECKS_OPTIONS no more than the guide says the host checks */
    uint64_t needs;
    uint32_t flags;
    uint32_t reserved;
} qfw_algo_desc;

typedef struct qfw_algo {
    uint32_t size;
    uint32_t reserved;
    void *state;
    qfw_str options; /* with defaults filled in, as JSON; empty: as they were given */
    /* [main] What goes wrong can be logged. May be NULL. */
    void (*destroy)(struct qfw_algo *algo, const qfw_host *host);
    /* [any] "qfw.round/1" and the like; NULL for what it is not. The same answer each time. */
    const void *(*extension)(const struct qfw_algo *algo, const char *id);
} qfw_algo;

/* "qfw.plan/1": needs that depend on the options or on the plan. Optional, but for splits. */
typedef struct qfw_plan {
    uint32_t size;
    uint32_t reserved;
    /* [main] Looks at the sites it will work on and replies with its needs, both JSON (see the guide). */
    int32_t (*needs)(qfw_algo *algo, const qfw_host *host, qfw_str plan);
} qfw_plan;

/* The outputs of "qfw.round/1", zeroed. */
typedef struct qfw_round_out {
    uint32_t size;
    uint32_t reserved;
    qfw_tensor *codes; /* [rows, cols]: code - lo; u8 for grids of up to 256 codes, else u16 */
    qfw_tensor *scale; /* f32, one for each tile; finite, not zero */
    qfw_tensor *zero;  /* f32, one for each tile */
    /* NULL, or a u32 [cols] from `alloc`: the tile column of each input channel, where groups do not run in storage order. Wants
     * "group-index" among its needs. */
    const qfw_tensor *group_index;
} qfw_round_out;

/* "qfw.round/1": weights become codes. */
typedef struct qfw_round {
    uint32_t size;
    uint32_t reserved;
    /* [instance] */
    int32_t (*round)(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out);
} qfw_round;

/* The outputs of "qfw.condition/1". */
typedef struct qfw_condition_out {
    uint32_t size;
    uint32_t reserved;
    qfw_tensor *weight; /* f32 [rows, cols]: holds the weight as it stands and receives the one to round instead; finite */
    /* NULL, or an f32 [rows, cols] from `alloc`: the weight that scales and zero points are fitted to, where that is not the one that is
     * rounded; finite. */
    const qfw_tensor *ranged;
} qfw_condition_out;

/* "qfw.condition/1": weights move, in high precision. */
typedef struct qfw_condition {
    uint32_t size;
    uint32_t reserved;
    /* [instance] */
    int32_t (*condition)(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_condition_out *out);
} qfw_condition;

/* The outputs of "qfw.split/1", zeroed. */
typedef struct qfw_split_out {
    uint32_t size;
    uint32_t stored;      /* what `a` and `b` will be rounded to: 0 f32, 1 f16, 2 bf16 */
    uint64_t rank;        /* at most that of the needs */
    qfw_tensor *a;        /* f32 [rank, cols], shared by the sites */
    qfw_tensor *const *b; /* for each site f32 [its rows, rank] */
} qfw_split_out;

/* "qfw.split/1": a branch of low rank beside the codes, W = residual + B A. Wants "qfw.plan/1", which says how much of it. */
typedef struct qfw_split {
    uint32_t size;
    uint32_t reserved;
    /* [main] Asked once for each instance. 1: branches are fitted to what rounding has left, and the sites' weights are that; 0: they are
     * taken out before. NULL: before. */
    int32_t (*after_rounding)(qfw_algo *algo, const qfw_host *host, uint32_t *answer);
    /* [instance] */
    int32_t (*split)(qfw_algo *algo, const qfw_host *host, const qfw_site *const *sites, size_t n_sites, qfw_split_out *out);
} qfw_split;

/* A space of channels, and the layers that read it. */
typedef struct qfw_region {
    uint32_t size;
    uint32_t space; /* 0 residual, 1 attn-in, 2 mlp-in, 3 head-in, 4 heads, 5 values, 6 mlp-hidden, 7 multiplied */
    qfw_str name;   /* "blocks.3.values" */
    int64_t block;
    uint64_t width;        /* channels */
    uint64_t head_width;   /* channels of a head; `width` where there are no heads */
    uint64_t repeat;       /* readers see each head so many times in a row */
    uint64_t rotated;      /* per head: channels i and i + rotated/2 have to change alike; 0: none do */
    uint32_t allows;       /* bit 0 scaling, bit 1 permutation, bit 2 rotation */
    uint32_t stream;
    uint64_t seed;
    const qfw_site *const *readers; /* NULL while the plan is made */
    size_t n_readers;
    const qfw_stat *const *stats; /* at the readers' input: width * repeat channels */
    size_t n_stats;
} qfw_region;

/* The output of "qfw.transform/1". */
typedef struct qfw_transform_out {
    uint32_t size;
    uint32_t reserved;
    /* f64 [width], all ones: channel i becomes factor[i] times what it was. Finite and positive, and alike where channels are rotated
     * together. All ones: leave it. */
    qfw_tensor *factor;
} qfw_transform_out;

/* "qfw.transform/1": changes of basis that leave the function unchanged. The host applies them. */
typedef struct qfw_transform {
    uint32_t size;
    uint32_t reserved;
    /* [main] Whether it works on a region: 0 no, 1 if it is named, 2 by default. */
    int32_t (*suits)(qfw_algo *algo, const qfw_host *host, const qfw_region *region, uint32_t *answer);
    /* [instance] */
    int32_t (*solve)(qfw_algo *algo, const qfw_host *host, const qfw_region *region, qfw_transform_out *out);
} qfw_transform;

/* ---- number formats: plugin extension "qfw.format/1" ---- */

typedef struct qfw_format_desc {
    uint32_t size;
    uint32_t reserved;
    const char *id;
    const char *summary;
    const qfw_grid *grid; /* integers without zero points, or levels: rising, 2 to 256 */
} qfw_format_desc;

typedef struct qfw_formats {
    uint32_t size;
    uint32_t reserved;
    /* [main] */
    uint32_t (*count)(void);
    /* [main] The same answer each time. */
    int32_t (*describe)(const qfw_host *host, uint32_t index, const qfw_format_desc **out);
} qfw_formats;

/* ---- the library ---- */

typedef struct qfw_plugin {
    uint32_t size;
    qfw_version abi; /* QFW_ABI_MAJOR, QFW_ABI_MINOR */
    uint32_t reserved;
    const char *id; /* as in plugin.toml */
    const char *version;
    /* [main] */
    uint32_t (*count)(void);
    /* [main] The same answer each time. */
    int32_t (*describe)(const qfw_host *host, uint32_t index, const qfw_algo_desc **out);
    /* [main] A new instance. `seed` is 0 in this version: a site carries the run's. NULL where there are formats only. */
    int32_t (*create)(const qfw_host *host, const char *id, qfw_str options, uint64_t seed, qfw_algo **out);
    /* [main] "qfw.format/1"; NULL for what it does not have. May itself be NULL. */
    const void *(*extension)(const char *id);
} qfw_plugin;

/* What a plugin exports: its table, the same each time. NULL refuses to be loaded. */
QFW_EXPORT const qfw_plugin *qfw_plugin_entry_v1(void);

#ifdef __cplusplus
}
#endif

#endif
