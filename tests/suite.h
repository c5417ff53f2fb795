/* SPDX-License-Identifier: Apache-2.0 */
/* What the Check suites share: assertions, rounds, random numbers, the end of main. */
#ifndef TESTS_SUITE_H
#define TESTS_SUITE_H

#include <check.h>
#include <stdint.h>
#include <stdlib.h>

/* Check's own note in a file, each time that they hold, that they came by: for a million of them that is seconds. */
#undef ck_assert_msg
#undef ck_assert
#define ck_assert_msg(holds, ...) \
    do { \
        if (!(holds)) \
            ck_abort_msg(__VA_ARGS__); \
    } while (0)
#define ck_assert(holds) ck_assert_msg(holds, "%s does not hold", #holds)

/* How many rounds a test takes that takes `all` in `make test`: CHECK_ROUNDS=N, else an eighth with STELE_FAST. */
static inline int rounds_of(int all)
{
    const char *asked = getenv("CHECK_ROUNDS");
    return asked ? atoi(asked) : getenv("STELE_FAST") ? (all + 7) / 8 : all;
}

static uint64_t random_state = 88172645463325252u;

static inline uint32_t random_below(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 16) % n;
}

/* Runs the suite and frees it; how many tests failed. */
static inline int suite_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

#endif
