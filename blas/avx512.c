/* SPDX-License-Identifier: Apache-2.0 */
/* The table for AVX-512 F, BW, DQ, VL and VNNI. A vector is a panel's 16 rows; vpdpbusd takes the
 * bytes of a k-line as an image has them. The BF16 dot instructions round otherwise and are not
 * used: bf16 widens by a shift or a mask. */
#include <immintrin.h>

#include "kernels.h"
#include "numbers.h"

#define LANES 16
#define FLOAT_ROWS 12
#define BF16_ROWS 12
#define Q8_ROWS 6
#define Q4_ROWS 4
#define CODE_ROWS 6
#define Q8_ALONE 12
#define Q4_ALONE 8
#define CODE_ALONE 12
#define ROWS_MAX 12
#define Q8_PLANES 1
#define Q8_SIGNED 0
#define MATRIX 0
#define CODE_HALVES 1
#define Q4_WORDS 0

/* 32 registers hold 24 accumulators of float, or 12 and as many of integers. Four panels are for
 * rows that wait for memory. */
/* clang-format off */
#define FLOAT_TILES(T)                                                                                 \
    T(1, 1) T(1, 2) T(1, 3) T(1, 4) T(1, 5) T(1, 6) T(1, 7) T(1, 8) T(1, 9) T(1, 10) T(1, 11) T(1, 12) \
    T(2, 1) T(2, 2) T(2, 3) T(2, 4) T(2, 5) T(2, 6) T(2, 7) T(2, 8) T(2, 9) T(2, 10) T(2, 11) T(2, 12) \
    T(4, 1) T(4, 2) T(4, 3) T(4, 4)
#define Q8_TILES(T)                                                                                    \
    T(1, 1) T(1, 2) T(1, 3) T(1, 4) T(1, 5) T(1, 6) T(1, 7) T(1, 8) T(1, 9) T(1, 10) T(1, 11) T(1, 12) \
    T(2, 1) T(2, 2) T(2, 3) T(2, 4) T(2, 5) T(2, 6)
#define Q4_TILES(T)                                                                                    \
    T(1, 1) T(1, 2) T(1, 3) T(1, 4) T(1, 5) T(1, 6) T(1, 7) T(1, 8)                                    \
    T(2, 1) T(2, 2) T(2, 3) T(2, 4)
#define CODE_TILES(T) Q8_TILES(T)
/* clang-format on */

typedef __m512 vec;
typedef __m512i bits;

static inline vec vec_zero(void)
{
    return _mm512_setzero_ps();
}

static inline vec vec_set(float x)
{
    return _mm512_set1_ps(x);
}

static inline vec vec_splat(const float *p)
{
    return _mm512_set1_ps(*p);
}

static inline vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void vec_store(float *p, vec v)
{
    _mm512_storeu_ps(p, v);
}

static inline __mmask16 lanes(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}

static inline vec vec_load_part(const float *p, size_t n, vec other)
{
    return _mm512_mask_loadu_ps(other, lanes(n), p);
}

static inline void vec_store_part(float *p, vec v, size_t n)
{
    _mm512_mask_storeu_ps(p, lanes(n), v);
}

static inline vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

static inline vec vec_abs(vec a)
{
    return _mm512_abs_ps(a);
}

static inline vec vec_negate(vec a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vec vec_fma_splat(vec a, vec b, vec c)
{
    return vec_fma(a, b, c);
}

static inline vec vec_fms(vec a, vec b, vec c)
{
    return _mm512_fmsub_ps(a, b, c);
}

static inline vec vec_fnma(vec a, vec b, vec c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

static inline vec vec_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

static inline void vec_store_f16(void *p, vec v)
{
    _mm256_storeu_si256(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline void vec_store_bytes(void *p, vec v)
{
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

static inline vec vec_raise(vec p, vec n)
{
    bits m = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), m));
}

static inline vec vec_from(vec x, vec low, vec y)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), y);
}

static inline bool vec_below(vec x, vec limit)
{
    return _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ) == 0xffff;
}

static inline float vec_largest(vec v)
{
    return _mm512_reduce_max_ps(v);
}

static inline float vec_fold(vec v)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline bits bits_load(const void *p)
{
    return _mm512_load_si512(p);
}

static inline void bits_store(void *p, bits v)
{
    _mm512_store_si512(p, v);
}

static inline bits bits_low(bits v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}

static inline bits bits_high(bits v)
{
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}

static inline bits bits_look_up(bits v, const uint8_t *book)
{
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128((const void *)book)), v);
}

/* 2^(e - 127), for e = 0 the subnormal one; then half of it. */
static inline vec vec_e8m0(const void *p)
{
    bits exponent = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(p)), 23);
    exponent = _mm512_max_epi32(exponent, _mm512_set1_epi32(0x00400000));
    return _mm512_mul_ps(_mm512_castsi512_ps(exponent), _mm512_set1_ps(0.5f));
}

static inline vec vec_s8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}

/* A bf16 is the upper half of a float. */
static inline vec pair_even(bits v)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

static inline vec pair_odd(bits v)
{
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000)));
}

/* Left to gcc as an operand in memory: instructions fewer let the CPU look further ahead (Zen 4, q8 by one row: 93 % of
 * the read bandwidth, 87 with a load of its own). */
static inline bits quad_load(const void *p)
{
    return _mm512_load_si512(p);
}

/* For nibbles, of which gcc loads a line twice (Zen 4, q4 by one row: 87 % of the read bandwidth, 82 without). */
static inline bits bits_once(bits v)
{
    __asm__("" : "+v"(v));
    return v;
}

static inline bits quad_splat(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}

/* Sums of products: lanes of 32 bits that start where the row says. */
static inline bits quad_begin(const int32_t *start)
{
    return _mm512_set1_epi32(*start);
}

/* sum + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, w unsigned, x signed. Written out: gcc 12 wraps two
 * moves of registers around each _mm512_dpbusd_epi32 of an unrolled loop. */
static inline bits quad_add(bits sum, bits w, bits x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}

/* The bits of 1.5 * 2^23 + isum as that number. */
static inline vec quad_end(const bits sum[2], int16_t times, const int32_t *start)
{
    (void)times, (void)start;
    return _mm512_castsi512_ps(sum[0]);
}

static inline vec vec_of_ints(bits v)
{
    return _mm512_cvtepi32_ps(v);
}

#include "tile.inc"
#include "vector.inc"

static bool usable(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

const struct blas_kernels blas_avx512 = {
    .name = "avx512",
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
