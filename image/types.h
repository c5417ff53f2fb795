/* SPDX-License-Identifier: Apache-2.0 */
/* Types and checked arithmetic that every room uses. */
#ifndef IMAGE_TYPES_H
#define IMAGE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "an image is little-endian and is used where it is mapped: stele needs a little-endian machine"
#endif

/* How the numbers of a tensor are stored. The values stand in images (FORMAT.md, "Tensors"). */
enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_BF16 = 1,
    TENSOR_F16 = 2,
    TENSOR_Q8 = 3, /* 8 bits, symmetric, one binary16 scale for 32 along K */
    TENSOR_Q4 = 4, /* 4 bits: a code of a fixed book, one int8 scale for 16 along K, one binary16 for a row */
    TENSOR_MXFP4 = 5, /* 4-bit floats (E2M1), one power of two (E8M0) for 32 along K; only from sources that hold it */
    TENSOR_TYPES
};

/* As --weights spells it, and inspect. */
static inline const char *type_name(enum tensor_type type)
{
    static const char *const names[TENSOR_TYPES] = {"f32", "bf16", "f16", "q8", "q4", "mxfp4"};
    return type < TENSOR_TYPES ? names[type] : "unknown";
}

/* True for the types that weights can be turned into; mxfp4 is only kept. */
static inline bool type_offered(enum tensor_type type)
{
    return type != TENSOR_MXFP4;
}

/* a + b and a * b into *out; false, and *out undefined, where the result does not fit. Sizes come from strangers. */
static inline bool size_add(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool size_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* The least multiple of `unit` (a power of two) that is at least n. Callers know that n + unit does not overflow. */
static inline uint64_t round_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) & ~(unit - 1);
}

#endif
