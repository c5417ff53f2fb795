/* SPDX-License-Identifier: Apache-2.0 */
/* Weights to 8 and 4 bits: ranges, errors, and the numbers that are handled on purpose. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "q4_trials.h"
#include "quantise.h"
#include "../suite.h"

static uint64_t state = 0x2545f4914f6cdd1du;

static float random_number(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float)(int32_t)(state >> 32) * 0x1p-31f;
}

/* A group of one magnitude, with outliers and zeros now and then. */
static void random_group(float *w, int exponent)
{
    for (size_t i = 0; i < GROUP; i++) {
        float x = random_number() + random_number() + random_number();
        w[i] = ldexpf(x, exponent);
        if (random_number() > 0.95f)
            w[i] *= 8;
        if (random_number() > 0.9f)
            w[i] = 0;
    }
}

static double largest_of(const float *w)
{
    double largest = 0;
    for (size_t i = 0; i < GROUP; i++)
        largest = fmax(largest, fabs((double)w[i]));
    return largest;
}

START_TEST(q8_lies_in_its_range_and_within_half_a_step)
{
    float w[GROUP];
    struct group g;
    for (int round = 0; round < rounds_of(100000); round++) {
        random_group(w, -12 + round % 24);
        ck_assert(quantise_q8(&g, w));
        double scale = (double)float_of_f16(g.scale);
        for (size_t i = 0; i < GROUP; i++) {
            ck_assert(g.q[i] >= -127 && g.q[i] <= 127);
            /* A scale that binary16 rounded downwards clips the largest by 2^-11 of itself, or by half its last place. */
            double clipped = largest_of(w) * 0x1p-11 + 127 * 0x1p-25;
            ck_assert_msg(fabs((double)w[i] - g.q[i] * scale) <= scale / 2 + clipped, "round %d", round);
        }
        ck_assert(!(g.scale & 0x8000));
    }
}
END_TEST

static const int book[16] = {-32, -26, -21, -17, -13, -9, -6, -3, 0, 3, 6, 9, 13, 17, 22, 28};

/* The error of a half under a scale, each weight rounded to the nearest in binary64; errors count by rms + |w|. */
static double least_error(const float *w, double scale)
{
    double square = 0, error = 0;
    for (size_t i = 0; i < HALF; i++)
        square += (double)w[i] * (double)w[i];
    for (size_t i = 0; i < HALF; i++) {
        double least = INFINITY;
        for (size_t code = 0; code < 16; code++)
            least = fmin(least, fabs((double)w[i] - book[code] * scale));
        error += (sqrt(square / HALF) + fabs((double)w[i])) * least * least;
    }
    return error;
}

/* The same of what it has become. */
static double error_of(const float *w, const struct half *h, double row_scale)
{
    double square = 0, error = 0;
    for (size_t i = 0; i < HALF; i++)
        square += (double)w[i] * (double)w[i];
    for (size_t i = 0; i < HALF; i++) {
        double d = (double)w[i] - book[h->code[i]] * h->scale * row_scale;
        error += (sqrt(square / HALF) + fabs((double)w[i])) * d * d;
    }
    return error;
}

/* One trial as it is defined: eight partial sums, added upwards. */
static void try_one(float out[3], const struct weighed *x, float scale)
{
    float sums[3][8] = {{0}}, inverse = 1.0f / scale;
    for (size_t i = 0; i < HALF; i++) {
        float w = x->w[i], importance = x->importance[i], n = -32;
        for (size_t code = 1; code < 16; code++)
            n = w * inverse > (float)(book[code - 1] + book[code]) / 2 ? (float)book[code] : n;
        float d = w - n * scale;
        sums[0][i % 8] += importance * (d * d);
        sums[1][i % 8] += importance * (w * n);
        sums[2][i % 8] += importance * (n * n);
    }
    for (size_t s = 0; s < 3; s++) {
        out[s] = 0;
        for (size_t l = 0; l < 8; l++)
            out[s] = out[s] + sums[s][l];
    }
}

/* Both ways to try eight scales at once, to the bit; some weights are middles of the book's numbers times a scale. */
START_TEST(eight_q4_trials_are_eight_times_one)
{
    for (int round = 0; round < 20000; round++) {
        float group[GROUP], scales[Q4_TRIALS], want[3];
        struct weighed x;
        struct trials got[2];
        size_t ways = 1;
        random_group(group, -12 + round % 24);
        for (size_t i = 0; i < Q4_TRIALS; i++)
            scales[i] = ldexpf(random_number() + (i % 2 ? 0.01f : -0.01f), -17 + round % 24);
        scales[0] = ldexpf(1, -17 + round % 24);
        for (size_t i = 0; i < HALF; i++) {
            size_t code = (size_t)(fabsf(random_number()) * 14.99f) + 1;
            x.w[i] = i % 4 ? group[i] : (float)(book[code - 1] + book[code]) / 2 * scales[0];
            x.importance[i] = fabsf(group[i]) + fabsf(random_number());
        }
        q4_try(&got[0], &x, scales);
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx2"))
            q4_try_avx2(&got[ways++], &x, scales);
#endif
        for (size_t way = 0; way < ways; way++)
            for (size_t i = 0; i < Q4_TRIALS; i++) {
                try_one(want, &x, scales[i]);
                const float is[3] = {got[way].error[i], got[way].wq[i], got[way].qq[i]};
                ck_assert_msg(!memcmp(want, is, sizeof is), "way %zu round %d trial %zu: %a, %a, %a instead of %a, %a, %a",
                              way, round, i, (double)is[0], (double)is[1], (double)is[2], (double)want[0], (double)want[1],
                              (double)want[2]);
            }
    }
}
END_TEST

enum { ROW = 4 * HALF };

/* A row of q4; false where it is too large. */
static bool quantise_row(struct half *out, float *row_scale, const float *w)
{
    float scales[ROW / HALF];
    uint16_t half;
    for (size_t i = 0; i < ROW / HALF; i++)
        scales[i] = q4_scale(w + i * HALF);
    if (!q4_row_scale(&half, scales, ROW / HALF))
        return false;
    *row_scale = float_of_f16(half);
    for (size_t i = 0; i < ROW / HALF; i++)
        quantise_q4(&out[i], w + i * HALF, scales[i], half);
    return true;
}

static double number_of(const struct half *row, float row_scale, size_t i)
{
    return (double)row_scale * row[i / HALF].scale * book[row[i / HALF].code[i % HALF]];
}

/* Against a search that tries every hundredth: a scale of either sign costs at most 1 % more than the best of all, and its
 * int8 multiple 3 % more than that; every code is a nearest one. */
START_TEST(a_q4_scale_is_about_the_best_there_is_and_codes_are_nearest)
{
    double ours = 0, rounded = 0, best_of_all = 0;
    for (int round = 0; round < rounds_of(2000); round++) {
        float w[2 * GROUP], row_scale;
        struct half row[ROW / HALF];
        random_group(w, -6 + round % 12);
        random_group(w + GROUP, -6 + round % 12);
        ck_assert(quantise_row(row, &row_scale, w));
        for (size_t h = 0; h < ROW / HALF; h++) {
            const float *x = w + h * HALF;
            double largest = 0, best = INFINITY, scale = (double)q4_scale(x);
            for (size_t i = 0; i < HALF; i++)
                largest = fmax(largest, fabs((double)x[i]));
            if (largest == 0)
                continue;
            for (double steps = 20; steps < 48; steps *= 1.01)
                best = fmin(best, fmin(least_error(x, largest / steps), least_error(x, -largest / steps)));
            double error = error_of(x, &row[h], (double)row_scale), unit = pow(largest, 3);
            ck_assert_int_ge(row[h].scale, -127);
            ck_assert_msg(error <= least_error(x, (double)row_scale * row[h].scale) * (1 + 1e-5), "round %d", round);
            best_of_all += best / unit;
            ours += least_error(x, scale) / unit;
            rounded += error / unit;
        }
    }
    ck_assert_msg(ours <= best_of_all * 1.01, "scales: error %g, %g is possible", ours, best_of_all);
    ck_assert_msg(rounded <= ours * 1.03, "int8 scales: error %g, %g without rounding", rounded, ours);
}
END_TEST

START_TEST(zeros_stay_zeros)
{
    float w[ROW] = {0, -0.0f}, row_scale;
    struct group g;
    struct half row[ROW / HALF];
    memset(&g, 0x55, sizeof g);
    memset(row, 0x55, sizeof row);
    ck_assert(quantise_q8(&g, w) && quantise_row(row, &row_scale, w));
    ck_assert_uint_eq(g.scale, 0);
    ck_assert(row_scale == 0);
    for (size_t i = 0; i < ROW; i++) {
        ck_assert_int_eq(row[i / HALF].code[i % HALF], Q4_ZERO);
        ck_assert_int_eq(row[i / HALF].scale, 0);
        ck_assert(i >= GROUP || g.q[i] == 0);
    }
}
END_TEST

START_TEST(a_weight_however_small_is_kept_as_well_as_binary16_can)
{
    struct group g;
    struct half row[ROW / HALF];
    for (int exponent = -149; exponent < -10; exponent++) {
        float w[ROW] = {[3] = ldexpf(1, exponent), [4] = -ldexpf(1, exponent)}, row_scale;
        ck_assert(quantise_q8(&g, w));
        ck_assert(g.q[3] >= 0 && g.q[4] <= 0);
        double scale = (double)float_of_f16(g.scale);
        ck_assert_msg(fabs((double)w[3] - g.q[3] * scale) <= fmax(0x1p-25, ldexp(1, exponent) / 7), "q8, 2^%d", exponent);
        ck_assert(quantise_row(row, &row_scale, w));
        for (size_t i = 3; i < 5; i++)
            ck_assert_msg(fabs((double)w[i] - number_of(row, row_scale, i)) <= fmax(3 * 0x1p-25, ldexp(1, exponent) / 7),
                          "q4, 2^%d: %g", exponent, number_of(row, row_scale, i));
    }
}
END_TEST

START_TEST(what_no_binary16_scale_holds_is_said_and_the_largest_that_one_holds_is_kept)
{
    struct group g;
    struct half row[ROW / HALF];
    float w[ROW] = {[0] = 65504.0f * 127}, row_scale;
    ck_assert(quantise_q8(&g, w));
    ck_assert_int_eq(g.q[0], 127);
    w[0] = -65504.0f * 127 * 20;
    ck_assert(quantise_row(row, &row_scale, w));
    ck_assert(fabs(number_of(row, row_scale, 0) - (double)w[0]) < 0x1p-7 * fabs((double)w[0]));
    for (float x = 1e9f; x < 3e38f; x *= 10) {
        w[0] = x;
        ck_assert(!quantise_q8(&g, w));
        ck_assert(!quantise_row(row, &row_scale, w));
    }
    w[0] = INFINITY;
    ck_assert(!quantise_q8(&g, w));
    ck_assert(!quantise_row(row, &row_scale, w));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantise");
    TCase *tc = tcase_create("quantise");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, q8_lies_in_its_range_and_within_half_a_step);
    tcase_add_test(tc, eight_q4_trials_are_eight_times_one);
    tcase_add_test(tc, a_q4_scale_is_about_the_best_there_is_and_codes_are_nearest);
    tcase_add_test(tc, zeros_stay_zeros);
    tcase_add_test(tc, a_weight_however_small_is_kept_as_well_as_binary16_can);
    tcase_add_test(tc, what_no_binary16_scale_holds_is_said_and_the_largest_that_one_holds_is_kept);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
