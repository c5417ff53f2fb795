/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of numbers.h are as exact as NUMBERS.md says, against libm in binary64; conversions
 * on every value. */
#include <stdio.h>
#include <stdlib.h>

#include "numbers.h"
#include "../suite.h"

/* How far `got` is from `exact`, in units of the last place of a binary32 of that size. */
static double ulps(float got, double exact)
{
    int exponent;
    frexp(exact, &exponent);
    return fabs((double)got - exact) * ldexp(1.0, 24 - (exponent < -125 ? -125 : exponent));
}

/* Every `step`th binary32 between two, by their bits. */
static double exp_error(uint32_t first, uint32_t last, uint32_t step)
{
    double largest = 0;
    for (uint32_t bits = first; bits <= last; bits += step) {
        float x = float_of_bits(bits);
        double error = ulps(num_exp(x), exp((double)x));
        largest = error > largest ? error : largest;
    }
    return largest;
}

START_TEST(exp_is_off_by_less_than_an_ulp)
{
    double up = exp_error(0, float_bits(EXP_HIGH), 331);
    double down = exp_error(0x80000000, float_bits(EXP_LOW), 331);
    ck_assert_msg(up < 0.975 && down < 0.975, "largest error %.4f upwards, %.4f downwards", up,
                  down);
}
END_TEST

START_TEST(exp_ends_where_it_is_said_to)
{
    ck_assert_uint_eq(float_bits(num_exp(nextafterf(EXP_LOW, -INFINITY))), 0);
    ck_assert_uint_eq(float_bits(num_exp(-INFINITY)), 0);
    ck_assert(num_exp(EXP_LOW) > 0x1p-126f);
    ck_assert_uint_eq(float_bits(num_exp(nextafterf(EXP_HIGH, INFINITY))),
                      float_bits(num_exp(EXP_HIGH)));
    ck_assert_uint_eq(float_bits(num_exp(0x1p100f)), float_bits(num_exp(EXP_HIGH)));
    ck_assert_uint_eq(float_bits(num_exp(0.0f)), float_bits(1.0f));
    ck_assert_uint_eq(float_bits(num_exp(-0.0f)), float_bits(1.0f));
}
END_TEST

START_TEST(log_is_rounded_once)
{
    double largest = 0;
    for (uint32_t bits = 1; bits < 0x7f800000; bits += 997) {
        float x = float_of_bits(bits);
        double error = ulps(num_log(x), log((double)x));
        largest = error > largest ? error : largest;
    }
    ck_assert_msg(largest < 0.50001, "largest error %.6f", largest);
    ck_assert_uint_eq(float_bits(num_log(1.0f)), 0);
}
END_TEST

START_TEST(sine_and_cosine_are_rounded_once)
{
    double largest = 0;
    for (uint32_t bits = float_bits(0x1p-20f); bits < float_bits(0x1p20f); bits += 499) {
        float angle = float_of_bits(bits), sine, cosine;
        num_sincos(angle, &sine, &cosine);
        double error = fmax(ulps(sine, sin((double)angle)), ulps(cosine, cos((double)angle)));
        largest = error > largest ? error : largest;
        num_sincos(-angle, &sine, &cosine);
        error = fmax(ulps(sine, -sin((double)angle)), ulps(cosine, cos((double)angle)));
        largest = error > largest ? error : largest;
    }
    ck_assert_msg(largest < 0.5001, "largest error %.6f", largest);
}
END_TEST

/* What the bits of a binary16 stand for, by its definition. */
static double f16_value(unsigned h)
{
    int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 0x3ff);
    double x = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h & 0x8000 ? -x : x;
}

START_TEST(f16_widens_exactly_and_back)
{
    for (unsigned h = 0; h < 0x10000; h++) {
        float x = float_of_f16((uint16_t)h);
        if ((h & 0x7c00) == 0x7c00) {
            ck_assert(h & 0x3ff ? isnan(x) : isinf(x));
            ck_assert(h & 0x3ff ? isnan(float_of_f16(f16_of_float(x))) : f16_of_float(x) == h);
            continue;
        }
        ck_assert_msg((double)x == f16_value(h) && !signbit(x) == !(h & 0x8000), "%#x", h);
        ck_assert_uint_eq(f16_of_float(x), h);
    }
}
END_TEST

START_TEST(bf16_widens_exactly_and_back)
{
    for (unsigned h = 0; h < 0x10000; h++) {
        float x = float_of_bf16((uint16_t)h);
        ck_assert_uint_eq(float_bits(x), h << 16);
        if (!isnan(x))
            ck_assert_uint_eq(bf16_of_float(x), h);
        else
            ck_assert(isnan(float_of_bf16(bf16_of_float(x))));
    }
}
END_TEST

/* Between each two neighbours: the middle goes to the even one, what is next to the middle to the
 * nearer one. */
static void check_middles(uint16_t round(float), float widen(uint16_t), unsigned infinite,
                          unsigned sign)
{
    for (unsigned h = 0; h + 1 < infinite; h++) {
        float low = widen((uint16_t)(h | sign)), high = widen((uint16_t)((h + 1) | sign));
        float middle = (float)(((double)low + (double)high) / 2);
        ck_assert_uint_eq(round(middle), (h + (h & 1)) | sign);
        ck_assert_uint_eq(round(nextafterf(middle, low)), h | sign);
        ck_assert_uint_eq(round(nextafterf(middle, high)), (h + 1) | sign);
    }
}

START_TEST(f16_rounds_to_nearest_even)
{
    check_middles(f16_of_float, float_of_f16, 0x7c00, 0);
    check_middles(f16_of_float, float_of_f16, 0x7c00, 0x8000);
    ck_assert_uint_eq(f16_of_float(nextafterf(65520.0f, 0)), 0x7bff);
    ck_assert_uint_eq(f16_of_float(65520.0f), 0x7c00);
    ck_assert_uint_eq(f16_of_float(-1e30f), 0xfc00);
}
END_TEST

START_TEST(bf16_rounds_to_nearest_even)
{
    check_middles(bf16_of_float, float_of_bf16, 0x7f80, 0);
    check_middles(bf16_of_float, float_of_bf16, 0x7f80, 0x8000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("numbers");
    TCase *tc = tcase_create("numbers");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, exp_is_off_by_less_than_an_ulp);
    tcase_add_test(tc, exp_ends_where_it_is_said_to);
    tcase_add_test(tc, log_is_rounded_once);
    tcase_add_test(tc, sine_and_cosine_are_rounded_once);
    tcase_add_test(tc, f16_widens_exactly_and_back);
    tcase_add_test(tc, bf16_widens_exactly_and_back);
    tcase_add_test(tc, f16_rounds_to_nearest_even);
    tcase_add_test(tc, bf16_rounds_to_nearest_even);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
