/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation of the tokenizer is made to fail in turn: the status says so, and nothing
 * crashes. The sanitizers bring an allocator of their own; with them there is nothing to test here.
 */
#include <stdlib.h>

#include "tokenizer.h"
#include "vocab_build.h"
#include "../suite.h"

static long calls_left = -1; /* until every allocation fails; negative: never */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
enum { CAN_FAIL = 0 };
#else
enum { CAN_FAIL = 1 };
void *__libc_malloc(size_t bytes); /* glibc's own, which stands behind the functions below */
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);

static bool fails(void)
{
    return calls_left == 0 || (calls_left > 0 && calls_left-- == 0);
}

void *malloc(size_t bytes)
{
    return fails() ? NULL : __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    return fails() ? NULL : __libc_calloc(count, bytes);
}

void *realloc(void *p, size_t bytes)
{
    return fails() ? NULL : __libc_realloc(p, bytes);
}
#endif

static const char *const paths[] = {
    "tests/text/fixtures/sp-legacy/tokenizer.json",
    "tests/text/fixtures/added-nfc/tokenizer.json",
    "tests/text/fixtures/split-o200k/tokenizer.json",
    "tests/text/fixtures/metaspace-first/tokenizer.json",
};

START_TEST(every_failed_allocation_is_reported)
{
    struct stele_error err;
    uint8_t *section;
    size_t length, count, bytes;
    struct tokenizer t;
    ck_assert(!vocab_build(&section, &length, paths[_i], NULL, &err));
    ck_assert(!tokenizer_open(&t, section, length, &err));
    char text[4096], *back = NULL;
    memset(text, 'a', sizeof text);
    static const char tail[] = "the end <s> I'm e\xcc\x81 \xe4\xb8\xad </s> caf\xc3\xa9";
    memcpy(text + sizeof text - sizeof tail, tail, sizeof tail);
    uint32_t *ids = NULL;
    enum stele_status status = STELE_SYSTEM;
    for (long n = 0; CAN_FAIL && status; n++) {
        calls_left = n;
        status = tokenizer_encode(&t, text, NULL, sizeof text - 1, 0, &ids, &count, &err);
        if (!status)
            status = tokenizer_decode(&t, ids, count, true, &back, &bytes, &err);
        calls_left = -1;
        ck_assert_msg(status == STELE_OK || status == STELE_SYSTEM, "%ld: %s", n, err.text);
        free(ids);
        free(back);
        ids = NULL;
        back = NULL;
    }
    free(section);
}
END_TEST

/* Each of the first thousand, which the parser of JSON has; then one in 37, to the end. */
START_TEST(a_failed_build_is_reported)
{
    struct stele_error err;
    uint8_t *section = NULL;
    size_t length;
    enum stele_status status = STELE_SYSTEM;
    const long each = rounds_of(1000);
    for (long n = 0; CAN_FAIL && status; n += n < each ? 1 : 37000 / each) {
        calls_left = n;
        status = vocab_build(&section, &length, paths[_i], NULL, &err);
        calls_left = -1;
        ck_assert(status == STELE_OK || !section);
    }
    free(section);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory");
    TCase *tc = tcase_create("memory");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, every_failed_allocation_is_reported, 0, 4);
    tcase_add_loop_test(tc, a_failed_build_is_reported, 0, 4);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
