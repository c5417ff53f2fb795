/* SPDX-License-Identifier: Apache-2.0 */
/* What a CPU table fills: one constant table per instruction set, every slot filled, if need be by the generic function.
 * NUMBERS.md defines each result; the generic table is that definition as code, every other table equals it bit for bit.
 *
 * Kernels are straight code: callers settle types, shapes and options, no kernel allocates, fails or knows of threads.
 * Pointers to panels and KV are 64-byte aligned, float pointers 4-byte aligned; results and inputs don't overlap unless
 * said. Nothing is written beyond the stated shapes. Finite inputs are assumed; others give some bits, no fault, but what a
 * NaN goes into does not come out as a number. */
#ifndef BLAS_KERNELS_H
#define BLAS_KERNELS_H

#include "panel.h"
#include "types.h"

enum gate { GATE_SILU, GATE_GELU, GATE_CLAMPED, GATES };

/* Rows of activations. Float weights read f; quantised ones read q, scale and sum, which quantise() made of f. */
struct blas_rows {
    const float *f; /* [m][f_stride], k numbers used */
    size_t f_stride;
    const int8_t *q;      /* [m][k32], k32 = k rounded up to 32; zeros from k on */
    const float *scale;   /* [m][k32 / 32] */
    /* [m][2][k32 / 32]: sums of the first 16 q of each group, then those of the others; each in two words of 16 bits, the
     * lower of the q whose k is 0 or 1 modulo 4, the upper of the others, as products of bytes are added up in AVX2. */
    const int32_t *sum;
};

static inline int32_t words_of(int lower, int upper)
{
    return (int32_t)((uint32_t)lower & 0xffff) | (int32_t)((uint32_t)upper << 16);
}

/* One block of 64 positions of one KV head, seen by the query heads of one row that share it. */
struct attend_block {
    const float *q; /* [heads][q_stride], head_dim numbers used */
    size_t q_stride;
    size_t heads;
    size_t head_dim;
    const void *kv; /* the head's part of the block: panel.h, "A KV block" */
    size_t first;   /* positions [first, last) of the block are seen; first < last <= 64 */
    size_t last;
    float scale;    /* multiplies each score */
    float cap;      /* soft cap of the scaled score; 0: none */
};

/* The running result of attention over blocks, and that of one block. [heads] each; value has rows of
 * kv_value_stride(head_dim), whose padding is undefined. */
struct attend_sum {
    float *max;
    float *sum;
    float *value;
};

struct blas_kernels {
    const char *name;      /* as STELE_KERNELS spells it */
    bool (*usable)(void);  /* can this CPU run it? */

    /* y[m][n_panels * 16] = x[m][k] times n_panels consecutive panels of k columns. Rows of y are y_stride apart.
     * NUMBERS.md, "Dot products". Any m, n_panels, k >= 1. */
    void (*dot[TENSOR_TYPES])(float *y, size_t y_stride, const void *panels, size_t n_panels, size_t k,
                              const struct blas_rows *x, size_t m);

    /* One row of k numbers into q [k32], scale [k32 / 32], sum [2][k32 / 32]. NUMBERS.md, "Activations". */
    void (*quantise)(int8_t *q, float *scale, int32_t *sum, const float *x, size_t k);

    /* y[n] = x[n] / rms(x) * weight[n]; y may be x. NUMBERS.md, "RMSNorm". */
    void (*rms_norm)(float *y, const float *x, const float *weight, size_t n, float epsilon);

    /* Half rotation in place of one head: pairs (i, i + pairs). NUMBERS.md, "RoPE". */
    void (*rotate)(float *x, const float *cosine, const float *sine, size_t pairs);

    /* y[n] = activation(gate[n]) * up[n]; y may be gate. NUMBERS.md, "Gates". `limit` is GATE_CLAMPED's. */
    void (*gate[GATES])(float *y, const float *gate, const float *up, size_t n, float limit);

    /* x[n] = cap * tanh(x[n] / cap). */
    void (*soft_cap)(float *x, size_t n, float cap);

    /* Stores one position of one KV head, rounded to the KV type; `kv` is the head's part of the block. Index 0 is f32,
     * 1 is f16. False if a number has no finite value in the type (it is stored all the same). */
    bool (*kv_store[2])(void *kv, size_t position, const float *key, const float *value, size_t head_dim);

    /* One block of attention into *out. NUMBERS.md, "Attention". */
    void (*attend[2])(const struct attend_sum *out, const struct attend_block *block);

    /* Adds a block's result behind a running one: *sum becomes both. Blocks come in ascending order. */
    void (*attend_join)(const struct attend_sum *sum, const struct attend_sum *block, size_t heads, size_t head_dim);

    /* The largest of x[n] and the sum of e^(x - largest). NUMBERS.md, "Softmax over a vector". n >= 1. */
    void (*log_sum)(float *largest, float *sum, const float *x, size_t n);
};

enum { KV_F32 = 0, KV_F16 = 1 };

extern const struct blas_kernels blas_generic;
#if defined(__x86_64__)
extern const struct blas_kernels blas_generic_fma; /* the same source, compiled with the fma instruction */
extern const struct blas_kernels blas_avx2;
extern const struct blas_kernels blas_avx512;
#elif defined(__aarch64__)
extern const struct blas_kernels blas_neon;
extern const struct blas_kernels blas_neon_i8mm; /* the same source, compiled with usdot */
#endif

/* The i-th table, fastest first; NULL behind the last. Which of them this CPU can run: usable(). */
const struct blas_kernels *blas_table(size_t i);

/* The table that STELE_KERNELS names (`forced`), or the first usable one where it is NULL or empty.
 * NULL where the name is unknown or this CPU cannot run it. */
const struct blas_kernels *blas_choose(const char *forced);

#endif
