/* SPDX-License-Identifier: Apache-2.0 */
/* How much of a GPU's memory a session takes, weights, keys and values left out: for the back end, which takes it, and
 * for who only asks. */
#ifndef CUDA_MEMORY_H
#define CUDA_MEMORY_H

#include "ops.h"

/* Bytes of each part; 0: it is not needed. */
struct cuda_memory {
    uint64_t slots;
    uint64_t q, q_scale;   /* activations rounded to 8 bits, and their scales */
    uint64_t small_logits; /* of routers and gates */
    uint64_t pairs, tiles, gated, down; /* of experts */
    uint64_t kept, kept_blocks; /* results of KV blocks that attention joins, of all heads; how many blocks */
    uint64_t input;        /* of a step: rows, ropes, tables of KV blocks */
    uint64_t bounce;       /* what logits and embeddings pass through */
    uint64_t verdict;      /* fault; used experts of each op */
};

enum { CUDA_EXPERTS_OPS_MAX = 1024 }; /* that verdict has room for */

struct cuda_memory cuda_memory_of(const struct blas_setup *setup);

/* All parts together. */
uint64_t cuda_scratch_bytes(const struct blas_setup *setup);

/* KV blocks of a sequence. */
uint64_t cuda_kv_blocks(const struct blas_setup *setup);

/* Numbers of a row's scales: whole blocks, so that all begin at a multiple of 32 bytes. */
uint64_t cuda_scale_stride(uint64_t k);

#endif
