/* SPDX-License-Identifier: Apache-2.0 */
/* What the host gives to the kernels: one struct each, by value. Pointers are the device's. */
#ifndef CUDA_ARGS_H
#define CUDA_ARGS_H

#include "types.h"

/* Name of a kernel, and of its struct behind "args_"; threads of a block. */
#define CUDA_KERNELS(X)          \
    X(quantise, quantise, 256)   \
    X(dot_f32_1, dot, 128)       \
    X(dot_f32_4, dot, 128)       \
    X(dot_f32_8, dot, 128)       \
    X(dot_bf16_1, dot, 128)      \
    X(dot_bf16_4, dot, 128)      \
    X(dot_bf16_8, dot, 128)      \
    X(dot_f16_1, dot, 128)       \
    X(dot_f16_4, dot, 128)       \
    X(dot_f16_8, dot, 128)       \
    X(dot_q8_8, dot, 256)        \
    X(dot_q8_32, dot, 128)       \
    X(dot_q8_128, dot, 256)      \
    X(dot_q4_8, dot, 256)        \
    X(dot_q4_32, dot, 128)       \
    X(dot_q4_128, dot, 256)      \
    X(dot_mxfp4_8, dot, 256)     \
    X(dot_mxfp4_32, dot, 128)    \
    X(dot_mxfp4_128, dot, 256)   \
    X(norm, norm, 256)           \
    X(rope_kv, rope_kv, 128)     \
    X(attend, attend, 128)       \
    X(attend_rows, attend, 128)  \
    X(attend_join, attend, 128)  \
    X(route, route, 128)         \
    X(group, group, 128)         \
    X(add_experts, add_experts, 128) \
    X(add_branch, add_branch, 128)   \
    X(peak_read, peak, 256)      \
    X(peak_mma, peak, 128)       \
    X(peak_scaled, peak, 128)

enum cuda_kernel {
#define CUDA_NAME(name, args, threads) KERNEL_##name,
    CUDA_KERNELS(CUDA_NAME)
#undef CUDA_NAME
    KERNELS
};

enum {
    DOT_ITEMS =
        256, /* sums of blocks that a block of the dot kernels keeps, for each row: divided by the rows of a tile */
    TILE_PANELS = 8, /* panels and rows that one block of dot_TYPE_128 makes */
    TILE_ROWS = 128,
    ATTEND_HEADS = 4, /* query heads that one block attends for: a warp each */
    ATTEND_ROWS = 4,  /* rows of one sequence that a warp attends for, where there are many */
    DOT_TILES_MAX = 1 << 30,
};

/* Rows of activations, r from `data + r * stride` on. */
struct rows_at {
    float *data;
    uint64_t stride;
};

/* Work of the experts, which the host does not know: a tile is up to `rows` entries of `pairs` that one expert has.
 * Entry p = row * top + i stands for the i-th of a row's experts. */
struct tile {
    uint32_t expert, from, count;
};

struct args_quantise {
    struct rows_at in;
    int8_t *q;    /* [row][q_stride] */
    float *scale; /* [row][scale_stride] */
    uint64_t k;
    uint32_t q_stride, scale_stride;
    uint32_t count;
    const uint32_t *pairs, *pair_count; /* the rows to take; NULL: all */
};

/* A product and all that follows it: y = panels * x; + bias; the gate; * scale; cap; residual + y. */
struct args_dot {
    const uint8_t *panels;
    uint64_t panel_bytes, k;
    uint32_t n_panels, width; /* numbers of a result row; less than its panels make where rows are not padded */
    uint32_t span;            /* panels of a block, of floats */
    uint32_t count;           /* rows; without tiles */
    uint32_t tiles;           /* tiles of rows: of all, or at most of all experts */
    /* activations: floats, or integers and scales as quantise leaves them */
    struct rows_at x;
    const int8_t *q;
    const float *q_scale;
    uint32_t q_stride, scale_stride; /* multiples of 32 bytes and of 8 numbers */
    /* experts; NULL: none */
    const struct tile *tile;
    const uint32_t *pairs;
    uint32_t divisor; /* row of x of an entry: entry / divisor */
    uint64_t bank_stride, bias_stride;
    /* what follows */
    const float *bias;
    int gate; /* enum gate, -1: none */
    float limit, scale, cap;
    struct rows_at residual, out; /* residual.data NULL: none */
};

struct args_norm {
    struct rows_at in, residual, out;
    const float *weight;
    uint64_t n;
    float epsilon;
    uint32_t q_stride, scale_stride;
    int8_t *q; /* the results as quantise leaves them, too; NULL: not wanted */
    float *scale;
};

struct step_row {
    uint32_t position, sequence, table; /* table: of its sequence, an index into `tables` */
};

/* The keys and values of one layer, as blas_kv. */
struct kv_at {
    uint8_t *data;
    uint64_t block_bytes, window, ring;
    uint32_t heads, head_dim, f16, reserved; /* no padding: lists of launches are compared byte for byte */
};

struct args_rope_kv {
    struct rows_at q, k, v;
    const struct step_row *rows;
    const uint32_t *tables;
    uint32_t count, heads;
    const float *q_norm, *k_norm; /* NULL: none */
    float epsilon;
    const float *rope; /* [count][2][pairs]; NULL: none */
    uint32_t pairs;
    uint32_t op;     /* number of the op among the step's rope_kv */
    uint64_t *fault; /* the least op << 32 | row whose key or value is not finite */
    struct kv_at kv;
};

/* attend: a block for each row, KV head, ATTEND_HEADS of its query heads, and part of the row's KV blocks. One part is
 * finished at once; of several each KV block is kept, and attend_join joins them. */
struct args_attend {
    struct rows_at q, out;
    const struct step_row *rows;
    const uint32_t *tables;
    uint32_t count, heads, parts, blocks_max; /* blocks_max: KV blocks that a row sees, at most; with several parts */
    float scale, cap;
    const float *sinks; /* NULL: none */
    struct kv_at kv;
    float *kept; /* [row][head][blocks_max][2 + head_dim]: maximum, sum, value */
};

struct args_route {
    struct rows_at logits, out;
    uint32_t count, experts, top;
    int routing; /* enum blas_routing */
};

struct args_group {
    struct rows_at route;
    uint32_t count, experts, top, tile_rows, tiles;
    uint32_t *pairs;      /* out: entries by expert, each expert's ascending */
    uint32_t *pair_count; /* out */
    struct tile *tile;    /* out: [tiles]; those behind the last are of 0 entries */
    uint8_t *used;        /* [experts] */
};

struct args_add_experts {
    struct rows_at route, residual, sum, out;
    const float *down; /* [entry][n] */
    uint64_t n;
    uint32_t count, experts, top;
    float scale;
};

/* Loops that only measure. */
struct args_peak {
    const uint32_t *words; /* peak_read: 16 bytes `count` times */
    uint64_t count;        /* of loads; of rounds */
    uint32_t *out;
    uint32_t blocks, never;
};

struct args_add_branch {
    struct rows_at gate, branch, residual, out;
    uint64_t n;
    uint32_t count;
};

#endif
