/* SPDX-License-Identifier: Apache-2.0 */
/* The table for AVX2, FMA and F16C. A vector is half a panel. Products of bytes are vpmaddubsw's, w
 * unsigned, x signed, pairs added in 16 bits: with whole bytes that would saturate, with four bits
 * it has room for a group, with the six of q4's book for half of one. So a q8 byte is taken as 16 *
 * high + low (as fast as vpmaddwd on w widened to 16 bits, and x stays as it lies). */
#include <cpuid.h>
#include <immintrin.h>

#include "kernels.h"
#include "numbers.h"

#define LANES 8
#define FLOAT_ROWS 6
#define BF16_ROWS 5
#define Q8_ROWS 2
#define Q4_ROWS 4
#define CODE_ROWS 2
#define Q8_ALONE 2
#define Q4_ALONE 4
#define CODE_ALONE 2
#define ROWS_MAX 4
#define Q8_PLANES 2
#define Q8_SIGNED 0
#define MATRIX 0
#define CODE_HALVES 2
#define Q4_WORDS 1

/* 16 registers hold 12 accumulators of float (10 where bf16 is parted), or 8 of integers. */
/* clang-format off */
#define FLOAT_TILES(T)                              \
    T(1, 1) T(1, 2) T(1, 3) T(1, 4) T(1, 5) T(1, 6) \
    T(2, 1) T(2, 2) T(2, 3)                         \
    T(4, 1)
#define Q8_TILES(T) T(1, 1) T(1, 2)
#define Q4_TILES(T) T(1, 1) T(1, 2) T(1, 3) T(1, 4)
#define CODE_TILES(T) T(1, 1) T(1, 2)
/* clang-format on */

typedef __m256 vec;
typedef __m256i bits;

static inline vec vec_zero(void)
{
    return _mm256_setzero_ps();
}

static inline vec vec_set(float x)
{
    return _mm256_set1_ps(x);
}

static inline vec vec_splat(const float *p)
{
    return _mm256_broadcast_ss(p);
}

static inline vec vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void vec_store(float *p, vec v)
{
    _mm256_storeu_ps(p, v);
}

/* The first n lanes: a window of a row of ones and zeros. */
static inline bits lanes(size_t n)
{
    static const int32_t window[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const bits *)(const void *)(window + 8 - n));
}

static inline vec vec_load_part(const float *p, size_t n, vec other)
{
    if (n == LANES)
        return vec_load(p);
    return _mm256_blendv_ps(other, _mm256_maskload_ps(p, lanes(n)), _mm256_castsi256_ps(lanes(n)));
}

static inline void vec_store_part(float *p, vec v, size_t n)
{
    if (n == LANES)
        vec_store(p, v);
    else
        _mm256_maskstore_ps(p, lanes(n), v);
}

static inline vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

static inline vec vec_abs(vec a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}

static inline vec vec_negate(vec a)
{
    return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f));
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vec vec_fma_splat(vec a, vec b, vec c)
{
    return vec_fma(a, b, c);
}

static inline vec vec_fms(vec a, vec b, vec c)
{
    return _mm256_fmsub_ps(a, b, c);
}

static inline vec vec_fnma(vec a, vec b, vec c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

static inline vec vec_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

static inline void vec_store_f16(void *p, vec v)
{
    _mm_storeu_si128(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline void vec_store_bytes(void *p, vec v)
{
    bits whole = _mm256_cvtps_epi32(v);
    __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(p, _mm_packs_epi16(words, words));
}

static inline vec vec_raise(vec p, vec n)
{
    bits m = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), m));
}

static inline vec vec_from(vec x, vec low, vec y)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_NLT_UQ), y);
}

static inline bool vec_below(vec x, vec limit)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ)) == 0xff;
}

static inline float vec_largest(vec v)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

static inline float vec_fold(vec v)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline bits bits_load(const void *p)
{
    return _mm256_load_si256(p);
}

static inline void bits_store(void *p, bits v)
{
    _mm256_store_si256(p, v);
}

static inline bits bits_low(bits v)
{
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

static inline bits bits_high(bits v)
{
    return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}

static inline bits bits_look_up(bits v, const uint8_t *book)
{
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128((const void *)book)), v);
}

/* 2^(e - 127), for e = 0 the subnormal one; then half of it. */
static inline vec vec_e8m0(const void *p)
{
    bits exponent = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p)), 23);
    exponent = _mm256_max_epi32(exponent, _mm256_set1_epi32(0x00400000));
    return _mm256_mul_ps(_mm256_castsi256_ps(exponent), _mm256_set1_ps(0.5f));
}

static inline vec vec_s8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
}

/* A bf16 is the upper half of a float. */
static inline vec pair_even(bits v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

static inline vec pair_odd(bits v)
{
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000)));
}

/* The empty asm keeps gcc from loading it again for every row. */
static inline bits quad_load(const void *p)
{
    bits v = _mm256_load_si256(p);
    __asm__("" : "+x"(v));
    return v;
}

static inline bits bits_once(bits v)
{
    return v;
}

static inline bits quad_splat(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Sums of products: pairs in lanes of 16 bits. A group adds 8 times two products of at most 15 *
 * 128, half a group of codes 4 times two of at most 28 * 128: 30720 and 28672 fit. */
static inline bits quad_begin(const int32_t *start)
{
    (void)start;
    return _mm256_setzero_si256();
}

/* The empty asm keeps gcc from adding a group's products as a tree, for which 16 registers are too
 * few. */
static inline bits quad_add(bits sum, bits w, bits x)
{
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
    __asm__("" : "+x"(sum));
    return sum;
}

/* start + the pairs' sums, the second ones `times` (16 for the high four bits): the bits of 1.5 *
 * 2^23 + isum. */
static inline vec quad_end(const bits sum[2], int16_t times, const int32_t *start)
{
    bits all = _mm256_add_epi32(_mm256_set1_epi32(*start),
                                _mm256_madd_epi16(sum[0], _mm256_set1_epi16(1)));
    if (times)
        all = _mm256_add_epi32(all, _mm256_madd_epi16(sum[1], _mm256_set1_epi16(times)));
    return _mm256_castsi256_ps(all);
}

static inline vec vec_of_ints(bits v)
{
    return _mm256_cvtepi32_ps(v);
}

/* LANES int8 numbers, each in both words of a lane. */
static inline bits words_s8(const void *p)
{
    bits v = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p));
    return _mm256_blend_epi16(v, _mm256_slli_epi32(v, 16), 0xaa);
}

static inline bits words_begin(const int32_t *start)
{
    return _mm256_set1_epi32(*start);
}

static inline bits words_scale(bits words, bits scale)
{
    return _mm256_madd_epi16(words, scale);
}

static inline bits words_add(bits sum, bits words, bits scale)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(words, scale));
}

#include "tile.inc"
#include "vector.inc"

static bool usable(void)
{
    unsigned a, b, c = 0, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

const struct blas_kernels blas_avx2 = {
    .name = "avx2",
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
