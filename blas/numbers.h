/* SPDX-License-Identifier: Apache-2.0 */
/* NUMBERS.md as code, one number at a time: conversions, stored weights, exp, log, sine and cosine. The generic table is
 * written with these; every other table gives the same bits. Nothing here calls libm but fmaf and sqrtf. */
#ifndef BLAS_NUMBERS_H
#define BLAS_NUMBERS_H

#include <math.h>
#include <string.h>

#include "panel.h"
#include "types.h"

static inline uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float float_of_bf16(uint16_t h)
{
    return float_of_bits((uint32_t)h << 16);
}

/* Exact, subnormals too. */
static inline float float_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    if (exponent == 31)
        return float_of_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent)
        return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float x = (float)fraction * 0x1p-24f;
    return sign ? -x : x;
}

/* Nearest, ties to even; beyond the largest binary16 it is infinity, NaN stays NaN (quiet). */
static inline uint16_t f16_of_float(float x)
{
    uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x47800000) /* 65536 and more, infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) { /* below 2^-14: the sum with 0.5 leaves the subnormal's bits at the bottom */
        float sum = float_of_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (float_bits(sum) - 0x3f000000));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

static inline uint16_t bf16_of_float(float x)
{
    uint32_t bits = float_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* An E8M0 scale byte e < 255, for integers that are twice an E2M1 code's value: 2^(e - 128), subnormal for 0 and 1. */
static inline float float_of_e8m0(uint8_t e)
{
    return float_of_bits(e ? (uint32_t)e << 23 : 0x00400000) * 0.5f;
}

/* Twice the value of an E2M1 code: sign, two bits of exponent, one of fraction. */
static inline int integer_of_e2m1(unsigned code)
{
    static const int8_t twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return twice[code & 15];
}

/* The book of q4: what a code stands for. Lloyd's quantiser for the weights of trained models in halves of groups, each
 * divided by its best scale, in 6 bits (FORMAT.md, "Why q4 is what it is"). */
static inline int integer_of_q4(unsigned code)
{
    static const int8_t book[16] = {-32, -26, -21, -17, -13, -9, -6, -3, 0, 3, 6, 9, 13, 17, 22, 28};
    return book[code & 15];
}

/* The integer weight (row, k) of a quantised block. */
static inline int block_integer(enum tensor_type type, const uint8_t *block, size_t groups, size_t row, size_t k)
{
    uint8_t byte = block[block_weight(type, groups, row, k)];
    if (type == TENSOR_Q8)
        return byte - Q8_ZERO;
    unsigned four = k & 4 ? byte >> 4 : byte & 15;
    return type == TENSOR_Q4 ? integer_of_q4(four) : integer_of_e2m1(four);
}

/* The scale of (row, group) of a block of q8 or mxfp4. */
static inline float block_scale_of(enum tensor_type type, const uint8_t *block, size_t row, size_t group)
{
    const uint8_t *at = block + block_scale(type, row, group);
    uint16_t half;
    if (type == TENSOR_MXFP4)
        return float_of_e8m0(*at);
    memcpy(&half, at, sizeof half);
    return float_of_f16(half);
}

/* The scale of (row, half a group) of a block of q4, and that of a row of its panel. */
static inline int q4_scale_of(const uint8_t *block, size_t row, size_t half)
{
    int8_t scale;
    memcpy(&scale, block + block_scale(TENSOR_Q4, row, half), sizeof scale);
    return scale;
}

static inline float q4_row_scale_of(const void *panel, size_t row)
{
    uint16_t half;
    memcpy(&half, (const uint8_t *)panel + row * sizeof half, sizeof half);
    return float_of_f16(half);
}

/* The weight (row, at) of a quantised panel of k columns as a number: its integer times its scale, rounded once. */
static inline float panel_weight(enum tensor_type type, const void *panel, size_t k, size_t row, size_t at)
{
    size_t groups, in = at % DOT_BLOCK;
    const uint8_t *block = (const uint8_t *)panel + panel_block(type, k, at / DOT_BLOCK, &groups);
    int integer = block_integer(type, block, groups, row, in);
    if (type == TENSOR_Q4)
        return (float)(integer * q4_scale_of(block, row, in / HALF)) * q4_row_scale_of(panel, row);
    return (float)integer * block_scale_of(type, block, row, in / GROUP);
}

/* The number (row, k) of a panel of `columns` columns. NUMBERS.md, "Embedding". */
static inline float panel_number(enum tensor_type type, const void *panel, size_t columns, size_t row, size_t k)
{
    const size_t index = panel_index_float(type, row, k);
    if (type == TENSOR_F32)
        return ((const float *)panel)[index];
    if (type == TENSOR_BF16)
        return float_of_bf16(((const uint16_t *)panel)[index]);
    if (type == TENSOR_F16)
        return float_of_f16(((const uint16_t *)panel)[index]);
    return panel_weight(type, panel, columns, row, k);
}

/* Nearest whole number, ties to even, for |x| < 2^22, as a sum: vectors do the same two additions. */
#define ROUND_MAGIC 0x1.8p23f

/* e^x. At most 1 ulp off for -87 <= x <= 88; 0 below, e^88 above (NUMBERS.md, "exp"). */
#define EXP_LOW (-87.0f)
#define EXP_HIGH 88.0f
#define EXP_LOG2E 0x1.715476p+0f
#define EXP_LN2_HIGH 0x1.62e4p-1f
#define EXP_LN2_LOW 0x1.7f7d1cp-20f
#define EXP_C6 0x1.6a0c6ep-10f
#define EXP_C5 0x1.1239d6p-7f
#define EXP_C4 0x1.555a7ep-5f
#define EXP_C3 0x1.55548ep-3f
#define EXP_C2 0x1.fffff8p-2f

static inline float num_exp(float x)
{
    if (!(x >= EXP_LOW))
        return x < EXP_LOW ? 0.0f : x; /* a NaN */
    x = x > EXP_HIGH ? EXP_HIGH : x;
    float n = fmaf(x, EXP_LOG2E, ROUND_MAGIC) - ROUND_MAGIC;
    float r = fmaf(-n, EXP_LN2_HIGH, x);
    r = fmaf(-n, EXP_LN2_LOW, r);
    float p = fmaf(EXP_C6, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * float_of_bits((uint32_t)((int32_t)n + 127) << 23);
}

/* x / (1 + e^-x) */
static inline float num_silu(float x)
{
    return x / (1.0f + num_exp(-x));
}

/* (up + 1) * gate * sigmoid(1.702 gate), gate at most `limit`, up within it. */
#define CLAMPED_SLOPE (-0x1.b3b646p+0f)

static inline float num_clamped(float gate, float up, float limit)
{
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return gate / (1.0f + num_exp(gate * CLAMPED_SLOPE)) * (up + 1.0f);
}

/* tanh(x) = 1 - 2 / (1 + e^2x): at most 1.2e-7 off, which is what caps on scores and logits need. */
static inline float num_tanh(float x)
{
    return 1.0f - 2.0f / (1.0f + num_exp(x + x));
}

/* x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), written as x / (1 + e^-2u): the two are the same function. */
#define GELU_X (-0x1.988454p+0f)  /* -2 sqrt(2 / pi) */
#define GELU_XXX (-0x1.2444f2p-4f) /* that times 0.044715 */

static inline float num_gelu(float x)
{
    return x / (1.0f + num_exp(x * fmaf(x * x, GELU_XXX, GELU_X)));
}

/* Natural logarithm of a finite x > 0, in binary64 by the series of atanh, rounded once; 0.5 ulp as far as tested. */
static inline float num_log(float x)
{
    uint32_t bits = float_bits(x);
    int32_t exponent = -127;
    if (bits < 0x00800000) {
        bits = float_bits(x * 0x1p23f);
        exponent = -127 - 23;
    }
    exponent += (int32_t)(bits >> 23);
    uint32_t fraction = bits & 0x007fffff;
    if (fraction >= 0x3504f3) /* sqrt 2: keep m in [0.707, 1.414) */
        exponent++;
    double m = (double)float_of_bits(fraction | (fraction >= 0x3504f3 ? 0x3f000000 : 0x3f800000));
    double s = (m - 1.0) / (m + 1.0), t = s * s, p = 1.0 / 17.0;
    for (int k = 15; k >= 1; k -= 2)
        p = p * t + 1.0 / k;
    return (float)((double)exponent * 0x1.62e42fefa39efp-1 + 2.0 * s * p);
}

/* Sine and cosine of a finite angle, |angle| < 2^20, in binary64 (no fma), each rounded once. Reduction by pi/2 in three
 * parts of 33 bits (as fdlibm's e_rem_pio2.c has them), so that n times a part is exact; Taylor to degree 17 and 16. */
static inline void num_sincos(float angle, float *sine, float *cosine)
{
    double x = (double)angle;
    double n = (x * 0x1.45f306dc9c883p-1 + 0x1.8p52) - 0x1.8p52;
    double r = ((x - n * 0x1.921fb544p+0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69;
    double z = r * r;
    double s = 1.0 / 355687428096000.0;
    s = s * z - 1.0 / 1307674368000.0;
    s = s * z + 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = r + r * z * s;
    double c = 1.0 / 20922789888000.0;
    c = c * z - 1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 0.5;
    c = 1.0 + z * c;
    unsigned quadrant = (unsigned)((int64_t)n & 3);
    double sin_of[4] = {s, c, -s, -c}, cos_of[4] = {c, -s, -c, s};
    *sine = (float)sin_of[quadrant];
    *cosine = (float)cos_of[quadrant];
}

#endif
