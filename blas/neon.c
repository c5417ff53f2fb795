/* SPDX-License-Identifier: Apache-2.0 */
/* The table for aarch64 with the dot product instructions; compiled twice, once with those of int8
 * matrix multiplication (i8mm) too; both are the table "neon". A vector is a quarter of a panel.
 * With i8mm usdot takes the unsigned bytes of an image as they are, and where several tiles read a
 * block, usmmla does two products of two rows at once. Without, there is sdot, which is signed: q8
 * bytes have their top bit flipped, in registers for one tile, once for more. */
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "kernels.h"
#include "numbers.h"

#define LANES 4
#define FLOAT_ROWS 6
#define BF16_ROWS 5
#define Q8_ROWS 4
#define Q4_ROWS 4
#define CODE_ROWS 4
#define Q8_ALONE 4
#define Q4_ALONE 4
#define CODE_ALONE 4
#define ROWS_MAX 4
#define Q8_PLANES 1
#ifdef __ARM_FEATURE_MATMUL_INT8
#define Q8_SIGNED 0
#define MATRIX 1
#else
#define Q8_SIGNED 1
#define MATRIX 0
#endif
#define CODE_HALVES 1
#define Q4_WORDS 0

/* 32 registers hold 24 accumulators of float (20 where bf16 is parted), or 16 of integers, while
 * those of float wait in memory for the end of the group. */
/* clang-format off */
#define FLOAT_TILES(T)                              \
    T(1, 1) T(1, 2) T(1, 3) T(1, 4) T(1, 5) T(1, 6) \
    T(2, 1) T(2, 2) T(2, 3)
#define Q8_TILES(T) T(1, 1) T(1, 2) T(1, 3) T(1, 4)
#define Q4_TILES(T) Q8_TILES(T)
#define CODE_TILES(T) Q8_TILES(T)
/* clang-format on */

typedef float32x4_t vec;
typedef int32x4_t bits;
typedef int32_t any_four __attribute__((may_alias));

static inline vec vec_zero(void)
{
    return vdupq_n_f32(0);
}

static inline vec vec_set(float x)
{
    return vdupq_n_f32(x);
}

/* Four bytes into the first lane, which the products below read: unlike a load into every lane this
 * takes no vector instruction. */
static inline bits first_lane(const void *p)
{
    bits v;
    __asm__("ldr %s0, %1" : "=w"(v) : "m"(*(const any_four *)p));
    return v;
}

static inline vec vec_splat(const float *p)
{
    return vreinterpretq_f32_s32(first_lane(p));
}

static inline vec vec_load(const float *p)
{
    return vld1q_f32(p);
}

static inline void vec_store(float *p, vec v)
{
    vst1q_f32(p, v);
}

static inline vec vec_load_part(const float *p, size_t n, vec other)
{
    float lane[LANES];
    if (n == LANES)
        return vec_load(p);
    vec_store(lane, other);
    for (size_t i = 0; i < n; i++)
        lane[i] = p[i];
    return vec_load(lane);
}

static inline void vec_store_part(float *p, vec v, size_t n)
{
    float lane[LANES];
    if (n == LANES) {
        vec_store(p, v);
        return;
    }
    vec_store(lane, v);
    for (size_t i = 0; i < n; i++)
        p[i] = lane[i];
}

static inline vec vec_add(vec a, vec b)
{
    return vaddq_f32(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return vsubq_f32(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return vmulq_f32(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return vdivq_f32(a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return vminq_f32(a, b);
}

static inline vec vec_max(vec a, vec b)
{
    return vmaxq_f32(a, b);
}

static inline vec vec_abs(vec a)
{
    return vabsq_f32(a);
}

static inline vec vec_negate(vec a)
{
    return vnegq_f32(a);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return vfmaq_f32(c, a, b);
}

static inline vec vec_fma_splat(vec a, vec b, vec c)
{
    return vfmaq_laneq_f32(c, a, b, 0);
}

static inline vec vec_fms(vec a, vec b, vec c)
{
    return vfmaq_f32(vnegq_f32(c), a, b);
}

static inline vec vec_fnma(vec a, vec b, vec c)
{
    return vfmsq_f32(c, a, b);
}

static inline vec vec_f16(const void *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

static inline void vec_store_f16(void *p, vec v)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}

static inline void vec_store_bytes(void *p, vec v)
{
    int16x4_t words = vmovn_s32(vcvtq_s32_f32(v));
    int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    vst1_lane_s32(p, vreinterpret_s32_s8(bytes), 0);
}

static inline vec vec_raise(vec p, vec n)
{
    bits m = vshlq_n_s32(vreinterpretq_s32_f32(n), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), m));
}

static inline vec vec_from(vec x, vec low, vec y)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcltq_f32(x, low)));
}

static inline bool vec_below(vec x, vec limit)
{
    return vminvq_u32(vcltq_f32(x, limit)) != 0;
}

static inline float vec_largest(vec v)
{
    return vmaxvq_f32(v);
}

static inline float vec_fold(vec v)
{
    float32x2_t two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

static inline bits bits_of_bytes(uint8x16_t v)
{
    return vreinterpretq_s32_u8(v);
}

static inline uint8x16_t bytes_of_bits(bits v)
{
    return vreinterpretq_u8_s32(v);
}

static inline bits bits_load(const void *p)
{
    return vld1q_s32(p);
}

static inline void bits_store(void *p, bits v)
{
    vst1q_s32(p, v);
}

static inline bits bits_low(bits v)
{
    return bits_of_bytes(vandq_u8(bytes_of_bits(v), vdupq_n_u8(15)));
}

static inline bits bits_high(bits v)
{
    return bits_of_bytes(vshrq_n_u8(bytes_of_bits(v), 4));
}

static inline bits bits_look_up(bits v, const uint8_t *book)
{
    return bits_of_bytes(vqtbl1q_u8(vld1q_u8(book), bytes_of_bits(v)));
}

static inline bits bits_q8(bits v)
{
    return Q8_SIGNED ? bits_of_bytes(veorq_u8(bytes_of_bits(v), vdupq_n_u8(Q8_ZERO))) : v;
}

/* 2^(e - 127), for e = 0 the subnormal one; then half of it. */
static inline vec vec_e8m0(const void *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    uint16x8_t wide = vmovl_u8(vcreate_u8(four));
    bits exponent = vreinterpretq_s32_u32(vshll_n_u16(vget_low_u16(wide), 16));
    exponent = vmaxq_s32(vshlq_n_s32(exponent, 7), vdupq_n_s32(0x00400000));
    return vmulq_f32(vreinterpretq_f32_s32(exponent), vdupq_n_f32(0.5f));
}

static inline vec vec_s8(const void *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}

/* A bf16 is the upper half of a float. */
static inline vec pair_even(bits v)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(v, 16));
}

static inline vec pair_odd(bits v)
{
    return vreinterpretq_f32_s32(vandq_s32(v, vdupq_n_s32((int)0xffff0000)));
}

static inline bits quad_load(const void *p)
{
    return vld1q_s32(p);
}

static inline bits bits_once(bits v)
{
    return v;
}

static inline bits quad_splat(const int8_t *p)
{
    return first_lane(p);
}

/* Sums of products: lanes of 32 bits that start where the row says. */
static inline bits quad_begin(const int32_t *start)
{
    return vld1q_dup_s32(start);
}

/* sum + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, x from quad_splat. */
static inline bits quad_add(bits sum, bits w, bits x)
{
#if Q8_SIGNED
    return vdotq_laneq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x), 0);
#else
    return vusdotq_laneq_s32(sum, bytes_of_bits(w), vreinterpretq_s8_s32(x), 0);
#endif
}

/* The bits of 1.5 * 2^23 + isum as that number. */
static inline vec quad_end(const bits sum[2], int16_t times, const int32_t *start)
{
    (void)times, (void)start;
    return vreinterpretq_f32_s32(sum[0]);
}

static inline vec vec_of_ints(bits v)
{
    return vcvtq_f32_s32(v);
}

#if MATRIX
/* Of two k-lines of 4 rows: 8 k of rows 0 and 1, or of rows 2 and 3. */
static inline bits matrix_low(bits first, bits second)
{
    return vzip1q_s32(first, second);
}

static inline bits matrix_high(bits first, bits second)
{
    return vzip2q_s32(first, second);
}

/* 8 activations of each of two rows. */
static inline bits matrix_splat(const int8_t *row, const int8_t *next)
{
    return vreinterpretq_s32_s8(vcombine_s8(vld1_s8(row), vld1_s8(next)));
}

static inline bits matrix_begin(const int32_t *row, const int32_t *next)
{
    return vzip1q_s32(vld1q_dup_s32(row), vld1q_dup_s32(next));
}

/* sum + two rows of w times two of x. */
static inline bits matrix_add(bits sum, bits w, bits x)
{
    return vusmmlaq_s32(sum, bytes_of_bits(w), vreinterpretq_s8_s32(x));
}

static inline bits matrix_row(const bits sum[2], size_t row)
{
    return row ? vuzp2q_s32(sum[0], sum[1]) : vuzp1q_s32(sum[0], sum[1]);
}
#endif

#include "tile.inc"
#include "vector.inc"

static bool usable(void)
{
    bool dot = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#if Q8_SIGNED
    return dot;
#else
    return dot && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
#endif
}

#if Q8_SIGNED
const struct blas_kernels blas_neon = {
#else
const struct blas_kernels blas_neon_i8mm = {
#endif
    .name = "neon",
    .usable = usable,
    .dot = {dot_f32, dot_bf16, dot_f16, dot_q8, dot_q4, dot_mxfp4},
    .quantise = quantise,
    .rms_norm = rms_norm,
    .rotate = rotate,
    .gate = {gate_silu, gate_gelu, gate_clamped},
    .soft_cap = soft_cap,
    .kv_store = {kv_store_f32, kv_store_f16},
    .attend = {attend_f32, attend_f16},
    .attend_join = attend_join,
    .log_sum = log_sum,
};
