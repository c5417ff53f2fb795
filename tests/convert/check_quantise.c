/* SPDX-License-Identifier: Apache-2.0 */
/* One group of weights to 8 and 4 bits: ranges, errors, and the numbers that are handled on purpose. */
#include <check.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "quantise.h"

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
    for (int round = 0; round < 100000; round++) {
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

/* What quantise_q4 makes small: errors count by rms + |w|. */
static double weighted_error(const float *w, const struct group *g)
{
    double square = 0, error = 0, scale = (double)float_of_f16(g->scale);
    for (size_t i = 0; i < GROUP; i++)
        square += (double)w[i] * (double)w[i];
    for (size_t i = 0; i < GROUP; i++) {
        double d = (double)w[i] - g->q[i] * scale;
        error += (sqrt(square / GROUP) + fabs((double)w[i])) * d * d;
    }
    return error / largest_of(w);
}

START_TEST(q4_lies_in_its_range_and_its_scale_beats_the_ordinary_ones)
{
    float w[GROUP];
    struct group g;
    double ours = 0, ordinary = 0;
    for (int round = 0; round < 20000; round++) {
        random_group(w, -6 + round % 12);
        ck_assert(quantise_q4(&g, w));
        double best = INFINITY;
        for (int steps = 7; steps <= 8; steps++) {
            struct group plain = {.scale = f16_of_float((float)(largest_of(w) / steps))};
            double scale = (double)float_of_f16(plain.scale);
            for (size_t i = 0; scale > 0 && i < GROUP; i++)
                plain.q[i] = (int8_t)fmax(-8, fmin(7, rint((double)w[i] / scale)));
            best = fmin(best, weighted_error(w, &plain));
        }
        for (size_t i = 0; i < GROUP; i++)
            ck_assert(g.q[i] >= -8 && g.q[i] <= 7);
        ck_assert(!(g.scale & 0x8000));
        ck_assert_msg(weighted_error(w, &g) <= best * (1 + 1e-4) + 1e-30, "round %d: %g, not %g", round, weighted_error(w, &g), best);
        ours += weighted_error(w, &g) / largest_of(w) / largest_of(w);
        ordinary += best / largest_of(w) / largest_of(w);
    }
    ck_assert_msg(ours < 0.93 * ordinary, "error %g, ordinary scales give %g", ours, ordinary);
}
END_TEST

START_TEST(zeros_stay_zeros)
{
    float w[GROUP] = {0, -0.0f};
    struct group g;
    for (int type = 0; type < 2; type++) {
        memset(&g, 0x55, sizeof g);
        ck_assert(type ? quantise_q8(&g, w) : quantise_q4(&g, w));
        ck_assert(!(g.scale & 0x8000));
        for (size_t i = 0; i < GROUP; i++)
            ck_assert_int_eq(g.q[i], 0);
    }
}
END_TEST

START_TEST(a_weight_however_small_keeps_a_scale_and_its_sign)
{
    struct group g;
    for (int exponent = -149; exponent < -10; exponent++)
        for (int type = 0; type < 2; type++) {
            float w[GROUP] = {[3] = ldexpf(1, exponent), [4] = -ldexpf(1, exponent)};
            ck_assert(type ? quantise_q8(&g, w) : quantise_q4(&g, w));
            ck_assert(g.q[3] >= 0 && g.q[4] <= 0);
            double scale = (double)float_of_f16(g.scale);
            ck_assert_msg(fabs((double)w[3] - g.q[3] * scale) <= fmax(0x1p-25, ldexp(1, exponent) / 7), "2^%d", exponent);
        }
}
END_TEST

START_TEST(what_no_binary16_scale_holds_is_said_and_the_largest_that_one_holds_is_kept)
{
    struct group g;
    float w[GROUP] = {[0] = 65504.0f * 127};
    ck_assert(quantise_q8(&g, w));
    ck_assert_int_eq(g.q[0], 127);
    w[0] = -65504.0f * 7.5f;
    ck_assert(quantise_q4(&g, w));
    for (float x = 1e8f; x < 3e38f; x *= 10) {
        w[0] = x;
        ck_assert(!quantise_q8(&g, w));
        ck_assert(!quantise_q4(&g, w));
    }
    w[0] = INFINITY;
    ck_assert(!quantise_q8(&g, w));
    ck_assert(!quantise_q4(&g, w));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantise");
    TCase *tc = tcase_create("quantise");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, q8_lies_in_its_range_and_within_half_a_step);
    tcase_add_test(tc, q4_lies_in_its_range_and_its_scale_beats_the_ordinary_ones);
    tcase_add_test(tc, zeros_stay_zeros);
    tcase_add_test(tc, a_weight_however_small_keeps_a_scale_and_its_sign);
    tcase_add_test(tc, what_no_binary16_scale_holds_is_said_and_the_largest_that_one_holds_is_kept);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int bad = srunner_ntests_failed(runner);
    srunner_free(runner);
    return bad ? 1 : 0;
}
