/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a GPU as a back end, for the files that its ops are in:
 *
 *     device.c     memory, opening, steps
 *     products.c   embeddings, norms, and all that multiplies panels with rows
 *     attention.c  keys, values, attention
 *     experts.c    routers, gates, experts */
#ifndef CUDA_DEVICE_H
#define CUDA_DEVICE_H

#include "cuda_memory.h"
#include "gpu.h"

/* Memory that both sides have: the host's is pinned. */
struct twin {
    void *host;
    cu_pointer device;
    uint64_t bytes;
};

struct blas_device {
    struct gpu gpu;
    struct blas_setup setup;
    struct weights *weights;
    struct launcher *launcher;
    enum reach reach;
    char name[64];
    const struct blas_step *step;
    bool begun;      /* and not waited for */
    size_t rope_ops; /* of the step so far */
    cu_pointer kv, slots, q, q_scale, small_logits, pairs, tiles, gated, down, kept;
    struct rows_at rounded; /* activations whose integers and scales are in q and q_scale: rows of so many numbers */
    uint64_t rounded_k, rounded_count;
    uint64_t kept_blocks; /* KV blocks' results of one head that fit into `kept` */
    size_t rows;        /* of the step as it began */
    struct twin input;  /* rows [rows], ropes [rows][rope_numbers], tables */
    struct twin bounce;
    bool bounce_busy; /* a copy out of it may be on its way */
    struct twin verdict; /* fault; used [experts_max of each op]: set where the host has set it, too */
    size_t experts_ops;
    uint8_t *used[CUDA_EXPERTS_OPS_MAX]; /* the host's, of each experts op of the step */
    size_t used_count[CUDA_EXPERTS_OPS_MAX];
    uint32_t processors;
};

/* ---- device.c ---- */

/* Until all that was started is done. */
void device_wait(struct blas_device *d);

/* Rows of a slot from the step's row `first` on, in the device's memory. */
struct rows_at device_rows(const struct blas_device *d, struct blas_view view, size_t first);

/* Where ropes and tables begin in the step's input. */
uint64_t device_ropes(const struct blas_device *d);
uint64_t device_tables(const struct blas_device *d);

/* Where the device has weights of the mapping, for kernels that are started next; NULL stays NULL. */
const void *device_weights(struct blas_device *d, const void *host);

/* Starts a kernel, and forgets which activations are rounded. */
void device_start(struct blas_device *d, enum cuda_kernel kernel, uint64_t blocks, const void *args);

/* ---- products.c ---- */

/* A product that is described but for its rows, panels and kernel. */
struct args_dot product_of(struct blas_device *d, const struct blas_matrix *w);

/* Rounds the activations to 8 bits, where they are not already. */
void product_rounded(struct blas_device *d, struct args_dot *a, uint64_t k, size_t count, const uint32_t *pairs);

/* The rows at a time that a type's kernels come for. */
const uint32_t *product_rows(enum tensor_type type);

/* Which of those takes `rows` at once: the first, else the last. */
uint32_t product_choice(enum tensor_type type, size_t rows);

/* Starts the product of what is rounded, or of floats. `tile_rows`: of the tiles that experts have; else 0. */
void product_start(struct blas_device *d, struct args_dot *a, enum tensor_type type, uint32_t tile_rows);

/* All rows of the product, from the step's row `first` on. */
void product_run(struct blas_device *d, struct args_dot *a, const struct blas_matrix *w, struct blas_view in,
                 size_t first, size_t count);

/* ---- ops ---- */

void cuda_embed(struct blas_device *d, const struct op_embed *op);
void cuda_linear(struct blas_device *d, const struct op_linear *op);
void cuda_logits(struct blas_device *d, const struct op_logits *op, size_t from, size_t count, float *out);
void cuda_norm(struct blas_device *d, const struct op_norm *op);
bool cuda_rope_kv(struct blas_device *d, const struct op_rope_kv *op, size_t *row);
void cuda_copy_kv(struct blas_device *d, const struct blas_kv *kv, size_t to, size_t from);
void cuda_attention(struct blas_device *d, const struct op_attention *op);
void cuda_router(struct blas_device *d, const struct op_router *op);
void cuda_gate(struct blas_device *d, const struct op_gate *op);
void cuda_experts(struct blas_device *d, const struct op_experts *op);

#endif
