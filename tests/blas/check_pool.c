/* SPDX-License-Identifier: Apache-2.0 */
/* The pool: every item is worked on once, by one thread at a time, whatever the number of threads and items. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"
#include "../suite.h"

enum { ITEMS_MAX = 300, THREADS_MAX = 9 };

struct log {
    _Atomic unsigned char times[ITEMS_MAX]; /* that an item was worked on */
    _Atomic unsigned char inside[THREADS_MAX];
    size_t n, threads;
    _Atomic bool wrong;
};

static void work(void *context, size_t from, size_t to, size_t thread)
{
    struct log *log = context;
    if (thread >= log->threads || from > to || to > log->n || atomic_fetch_add(&log->inside[thread], 1))
        log->wrong = true;
    for (size_t i = from; i < to; i++)
        atomic_fetch_add(&log->times[i], 1);
    atomic_fetch_sub(&log->inside[thread], 1);
}

START_TEST(every_item_is_worked_on_once)
{
    size_t threads = (size_t)_i;
    struct pool *pool = pool_open(threads);
    ck_assert_ptr_nonnull(pool);
    for (size_t round = 0; round < 1000; round++) {
        struct log log = {.n = round * 7919 % ITEMS_MAX, .threads = threads};
        pool_run(pool, log.n, work, &log);
        ck_assert_msg(!log.wrong, "%zu threads, %zu items", threads, log.n);
        for (size_t i = 0; i < ITEMS_MAX; i++)
            ck_assert_msg(log.times[i] == (i < log.n), "%zu threads: item %zu of %zu: %d times", threads, i, log.n,
                          log.times[i]);
    }
    pool_close(pool);
}
END_TEST

START_TEST(a_pool_that_never_ran_closes)
{
    pool_close(pool_open(4));
    pool_close(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pool");
    TCase *tc = tcase_create("pool");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, every_item_is_worked_on_once, 1, THREADS_MAX + 1);
    tcase_add_test(tc, a_pool_that_never_ran_closes);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
