/* SPDX-License-Identifier: Apache-2.0 */
/* The sum over the 16 weights of a trial has a fixed order, so trials, and not weights, are the lanes of a vector: the
 * bits are the same on every machine. Compiled a second time for AVX2, where the book is searched by halves instead of
 * step by step. */
#include "q4_trials.h"

#include <string.h>

#include "numbers.h"

#ifdef __AVX2__
#include <immintrin.h>
#define q4_try q4_try_avx2
#endif

enum { LANES = 8 }; /* partial sums of a sum over 16 weights */

typedef float eight __attribute__((vector_size(Q4_TRIALS * 4)));
typedef int32_t eight_ints __attribute__((vector_size(Q4_TRIALS * 4)));

/* The book's numbers that are next to x: the least, and a step for each middle of two that lies below x. */
static inline __attribute__((always_inline)) void nearest(eight *n, const eight *x)
{
#ifdef __AVX2__
    const __m256 second = _mm256_setr_ps(-15, 11, 0, 0, 0, 0, 0, 0), v = (__m256)*x;
    const __m256 third = _mm256_setr_ps(-23.5f, -7.5f, 4.5f, 19.5f, 0, 0, 0, 0);
    const __m256 fourth = _mm256_setr_ps(-29, -19, -11, -4.5f, 1.5f, 7.5f, 15, 25);
    const __m256 low = _mm256_setr_ps(-32, -26, -21, -17, -13, -9, -6, -3);
    const __m256 high = _mm256_setr_ps(0, 3, 6, 9, 13, 17, 22, 28);
#define ABOVE(middle) _mm256_castps_si256(_mm256_cmp_ps(v, middle, _CMP_GT_OQ)) /* -1 where it is */
#define HALVE(middles) _mm256_sub_epi32(_mm256_add_epi32(at, at), ABOVE(_mm256_permutevar8x32_ps(middles, at)))
    __m256i at = _mm256_srli_epi32(ABOVE(_mm256_set1_ps(-1.5f)), 31);
    at = HALVE(second);
    at = HALVE(third);
    at = HALVE(fourth);
#undef HALVE
#undef ABOVE
    *n = (eight)_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at),
                                 _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
#else
    eight sum = (eight){0} + (float)integer_of_q4(0);
    for (unsigned code = 1; code < 16; code++) {
        const float below = (float)integer_of_q4(code - 1), above = (float)integer_of_q4(code);
        const eight step = (eight){0} + (above - below);
        sum += (eight)((*x > (below + above) / 2) & (eight_ints)step);
    }
    *n = sum;
#endif
}

void q4_try(struct trials *out, const struct weighed *x, const float *scales)
{
    eight scale, error = {0}, wq = {0}, qq = {0};
    memcpy(&scale, scales, sizeof scale);
    const eight inverse = 1.0f / scale;
    for (size_t l = 0; l < LANES; l++) { /* a partial sum is that of weights l and l + 8 */
        eight e[2], a[2], b[2];
        for (size_t i = 0; i < 2; i++) {
            const float w = x->w[l + i * LANES], importance = x->importance[l + i * LANES];
            eight n, at = w * inverse;
            nearest(&n, &at);
            const eight d = w - n * scale;
            e[i] = importance * (d * d);
            a[i] = importance * (w * n);
            b[i] = importance * (n * n);
        }
        error += e[0] + e[1];
        wq += a[0] + a[1];
        qq += b[0] + b[1];
    }
    memcpy(out->error, &error, sizeof error);
    memcpy(out->wq, &wq, sizeof wq);
    memcpy(out->qq, &qq, sizeof qq);
}
