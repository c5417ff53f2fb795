/* SPDX-License-Identifier: Apache-2.0 */
/* Whole ops over slots: what a back end implements (cpu.c; cuda/). The executor names slots by offsets and weights by
 * their place in the mapping; only the back end knows where activations, keys and values really are. A step is
 *
 *     begin(step)  ->  embed, norm, linear, rope_kv, attention … in plan order  ->  finish
 *     begin(step)  ->  logits, in blocks of rows  ->  finish
 *
 * Rows of a step are numbered slice by slice. Behind the last rope_kv narrow() leaves only rows whose logits are wanted.
 * NUMBERS.md defines what each op computes. A back end may compute behind the calls; what went wrong meanwhile is said by
 * finish. */
#ifndef BLAS_OPS_H
#define BLAS_OPS_H

#include "error.h"
#include "kernels.h"
#include "types.h"

struct blas_device;

/* Rows of activations in scratch: row r begins at number offset + r * stride. */
struct blas_view {
    size_t offset;
    size_t stride;
};

struct blas_matrix {
    enum tensor_type type;
    size_t rows; /* output rows, unpadded */
    size_t k;
    const void *panels; /* in the mapping */
};

/* The keys and values of one layer, for all sequences: block b lies at byte offset + b * block_bytes of KV memory. */
struct blas_kv {
    size_t offset;
    size_t block_bytes;
    size_t heads;
    size_t head_dim;
    size_t window; /* positions that a row sees, itself among them; 0: all */
    size_t ring;   /* blocks that each sequence has for itself, used in turn, where a window needs no more; 0: the table */
};

/* Sines and cosines for the rows of a step: [rows][2][pairs], cosines first; host memory, valid during the step. */
struct blas_rope {
    const float *rows;
    size_t pairs;
};

struct blas_row {
    uint32_t id;
    uint32_t position;
    uint32_t sequence;
    const uint32_t *blocks; /* KV block of each 64 positions of the row's sequence */
};

struct blas_step {
    const struct blas_row *rows;
    size_t count;
    size_t first; /* row of the slots that is rows[0]'s */
    const struct blas_rope *ropes; /* all that its ops name */
    size_t rope_count;
};

/* The first row of the first rope_kv whose keys or values have no finite value in the KV type. */
struct blas_fault {
    size_t op; /* number among the step's rope_kv; SIZE_MAX: none */
    size_t row;
};

struct op_embed {
    struct blas_view out;
    struct blas_matrix table;
    float scale;
};

struct op_norm {
    struct blas_view in, out, residual;
    const float *weight;
    size_t n;
    float epsilon;
    bool has_residual;
};

struct op_linear {
    struct blas_view in, out, residual;
    struct blas_matrix weight; /* rows padded to 16; with a gate, panels of gate and up in turn */
    const float *bias;         /* NULL: none */
    int gate;                  /* enum gate, or -1: none */
    bool has_residual;
    float scale;
};

struct op_rope_kv {
    struct blas_view q, k, v;
    size_t heads;
    const float *q_norm, *k_norm; /* NULL: none */
    float epsilon;
    const struct blas_rope *rope; /* NULL: none */
    struct blas_kv kv;
};

struct op_attention {
    struct blas_view q, out;
    size_t heads;
    float scale;
    float cap;          /* 0: none */
    const float *sinks; /* [heads]; NULL: none */
    struct blas_kv kv;
};

/* A bank of matrices of one shape, expert e's at panels + e * stride. */
struct blas_bank {
    struct blas_matrix first;
    size_t stride;
    size_t count;
};

enum blas_routing { BLAS_ROUTING_ALL, BLAS_ROUTING_NORMED, BLAS_ROUTING_CHOSEN };

struct op_router {
    struct blas_view in, out; /* out: [top] ids ascending, [top] weights */
    struct blas_matrix weight;
    const float *bias; /* NULL: none */
    size_t top;
    enum blas_routing routing;
};

struct op_experts {
    struct blas_view in, route, out, residual;
    struct blas_view gathered, gated, sum; /* scratch */
    struct blas_bank up, down;
    size_t top;
    const float *up_bias, *down_bias; /* [count][rows padded to 16]; NULL: none */
    int gate;                         /* enum gate, or -1: none */
    bool has_residual;
    float scale, limit;
    uint8_t *used; /* [count]: set to 1 for each expert that a row was sent to; host memory, never cleared here */
};

/* out = residual + sigmoid(weight * in) * branch. */
struct op_gate {
    struct blas_view in, branch, out, residual;
    struct blas_matrix weight; /* one row */
    size_t n;
};

struct op_logits {
    struct blas_view in;
    struct blas_matrix head;
    float scale;
    float cap; /* 0: none */
};

/* A tensor that steps read, in the mapping. */
struct blas_span {
    const uint8_t *bytes;
    uint64_t length;
};

/* What a back end with memory of its own has to know of the weights: views, valid while the device is open. */
struct blas_weights {
    const char *name;     /* of the file, for sentences */
    const uint8_t *bytes; /* the mapping, of the whole file */
    uint64_t length;
    int fd;
    const struct blas_span *spans; /* in plan order, each once; rows of embeddings are read where they are */
    size_t count;
};

/* What a device is opened for. */
struct blas_setup {
    size_t threads;
    size_t rows_max;        /* rows of a step */
    size_t scratch_numbers; /* of slots, for all rows */
    size_t k_max;           /* the largest K of a quantised matrix; 0: none */
    size_t kv_bytes;        /* reserved; touched as it fills */
    int kv_type;            /* KV_F32 or KV_F16 */
    size_t heads_max;       /* the most query heads of an attention, and the largest head_dim */
    size_t head_dim_max;
    const struct blas_kernels *kernels;
    /* for devices with memory of their own */
    size_t sequences, positions; /* of each */
    size_t rope_numbers;         /* of a row, all ropes together */
    size_t vocabulary;
    size_t experts_max;  /* of an op; 0: none */
    size_t top_max;      /* that a row is sent to */
    size_t expert_width; /* the most numbers of a gated row and of a result */
    struct blas_weights weights;
    int ordinal;    /* of the device among its kind */
    uint64_t limit; /* bytes of weights that it may keep; UINT64_MAX: as it has room for */
};

struct blas_memory {
    uint64_t kv_bytes, scratch_bytes; /* reserved */
    uint64_t kept_bytes;              /* of weights in the device's own memory */
    double upload;                    /* seconds that bringing them took, once all are there; 0 before */
    const char *device, *reach;       /* its name, and how it reaches the weights; NULL: it is the CPU */
};

struct blas_backend {
    const char *name;

    /* Reserves memory; STELE_SYSTEM says how many bytes could not be had. */
    enum stele_status (*open)(struct blas_device **out, const struct blas_setup *setup, struct stele_error *err);
    void (*close)(struct blas_device *device); /* NULL is allowed */

    void (*begin)(struct blas_device *device, const struct blas_step *step);

    /* The ops that follow are for `step` only, which is a part of the step that began: rows [first, first + count). */
    void (*narrow)(struct blas_device *device, const struct blas_step *step);
    void (*embed)(struct blas_device *device, const struct op_embed *op);
    void (*norm)(struct blas_device *device, const struct op_norm *op);
    void (*linear)(struct blas_device *device, const struct op_linear *op);

    /* False if a key or value has no finite value in the KV type; *row is the first such row. Or finish says it. */
    bool (*rope_kv)(struct blas_device *device, const struct op_rope_kv *op, size_t *row);
    void (*attention)(struct blas_device *device, const struct op_attention *op);

    /* Waits for what began. STELE_SYSTEM and *err, or *fault, say what went wrong since begin. */
    enum stele_status (*finish)(struct blas_device *device, struct blas_fault *fault, struct stele_error *err);

    /* Copies block `from` of a state over block `to`. */
    void (*copy_kv)(struct blas_device *device, const struct blas_kv *kv, size_t to, size_t from);

    void (*router)(struct blas_device *device, const struct op_router *op);
    void (*experts)(struct blas_device *device, const struct op_experts *op);
    void (*gate)(struct blas_device *device, const struct op_gate *op);

    /* Logits of the rows [from, from + count) of the step into out[count][head.rows], in host memory. */
    void (*logits)(struct blas_device *device, const struct op_logits *op, size_t from, size_t count, float *out);

    /* Copies numbers of a row of scratch to the host: for finding the op that made a NaN. */
    void (*peek)(struct blas_device *device, struct blas_view view, size_t row, size_t n, float *out);

    struct blas_memory (*memory)(const struct blas_device *device);
    size_t (*threads)(const struct blas_device *device);
};

extern const struct blas_backend blas_cpu;

#endif
