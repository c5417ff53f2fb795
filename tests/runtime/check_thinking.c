/* SPDX-License-Identifier: Apache-2.0 */
/* Thinking and answer are told apart as by one look at the whole text, however tokens cut it, and what is handed on
 * never has to be taken back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "thinking.h"
#include "../suite.h"

enum { TEXT_MAX = 12 };

static const struct {
    const char *begin, *done, *next;
    const char *parts[8]; /* what texts are made of: parts of the marks above all */
} kinds[] = {
    {"<t>", "</t>", "", {"<t>", "</t>", "<", "</t", ">", " ", "\n", "x"}},
    {"aab", "aaac", "", {"aab", "aaac", "a", "aa", "b", "c", " ", "x"}},
    {"|ca|", "|cf|", "", {"|ca|", "|cf|", "|c", "|", "a|", "f", " ", "x"}},
    {"|a|", "|f|", "|e|as", {"|a|", "|f|", "|e|as", "|e|", "as", "|", "|e", "x"}},
    {"[T]\n", "[/T]", "", {"[T]\n", "[/T]", "[T]", "\n", "[", "/T", "]", " "}},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- the whole text at once ---- */

struct parted {
    char thoughts[2 * TEXT_MAX], answer[2 * TEXT_MAX]; /* with a NUL behind */
};

/* Appends what no special token wrote. */
static void append(char *to, const char *text, const bool *special, size_t from, size_t stop)
{
    size_t n = strlen(to);
    for (size_t i = from; i < stop; i++)
        if (!special[i])
            to[n++] = text[i];
    to[n] = '\0';
}

/* The length of the mark where the text starts with it, else 0. */
static size_t starts(const char *text, const char *mark)
{
    return strncmp(text, mark, strlen(mark)) ? 0 : strlen(mark);
}

static struct parted part(int kind, bool inside, const char *text, const bool *special)
{
    static const char spaces[] = " \t\n\v\f\r";
    struct parted p = {"", ""};
    const char *begin = kinds[kind].begin, *done = kinds[kind].done, *next = kinds[kind].next;
    size_t n = strlen(text), at = inside ? 0 : strspn(text, spaces);
    if (!inside && !starts(text + at, begin) && !starts(text + at, done)) {
        append(p.answer, text, special, 0, n);
        return p;
    }
    if (!inside)
        at += starts(text + at, begin);
    while (at < n && !starts(text + at, done)) {
        size_t skip = starts(text + at, next);
        append(p.thoughts, text, special, at, skip ? at : at + 1);
        at += skip ? skip + starts(text + at + skip, begin) : 1;
    }
    if (at < n) {
        at += strlen(done);
        append(p.answer, text, special, at + strspn(text + at, spaces), n);
    }
    return p;
}

/* ---- piece by piece ---- */

static void take(struct thinking *t, struct parted *sum, const struct parted *want)
{
    strncat(sum->thoughts, t->thoughts.length ? t->thoughts.data : "", t->thoughts.length);
    strncat(sum->answer, t->answer.length ? t->answer.data : "", t->answer.length);
    ck_assert_msg(!strncmp(sum->thoughts, want->thoughts, strlen(sum->thoughts)), "thoughts \"%s\", not of \"%s\"",
                  sum->thoughts, want->thoughts);
    ck_assert_msg(!strncmp(sum->answer, want->answer, strlen(sum->answer)), "answer \"%s\", not of \"%s\"", sum->answer,
                  want->answer);
}

/* The text in pieces: bit i of `cuts` is a cut behind byte i. */
static void check_cut(int kind, bool inside, const char *text, const bool *special, uint32_t cuts,
                      const struct parted *want)
{
    struct thinking t = {.begin = {kinds[kind].begin, strlen(kinds[kind].begin)},
                         .done = {kinds[kind].done, strlen(kinds[kind].done)},
                         .next = {kinds[kind].next, strlen(kinds[kind].next)},
                         .state = inside ? THINKING_INSIDE : THINKING_START};
    struct parted sum = {"", ""};
    size_t n = strlen(text), from = 0;
    for (size_t i = 0; i < n; i++)
        if (i + 1 == n || (cuts >> i & 1) || special[i] != special[i + 1]) {
            ck_assert_msg(!thinking_push(&t, text + from, i + 1 - from, special[from], false, NULL), "no memory");
            take(&t, &sum, want);
            ck_assert_msg(t.state == THINKING_START || t.held.length < t.begin.bytes + t.done.bytes + t.next.bytes,
                          "%zu bytes held of \"%s\"", t.held.length, text);
            from = i + 1;
        }
    ck_assert_msg(!thinking_push(&t, "", 0, false, true, NULL), "no memory");
    take(&t, &sum, want);
    ck_assert_msg(!strcmp(sum.thoughts, want->thoughts) && !strcmp(sum.answer, want->answer),
                  "\"%s\" cut as %x, begun %d: \"%s\" and \"%s\" instead of \"%s\" and \"%s\"", text, cuts, inside,
                  sum.thoughts, sum.answer, want->thoughts, want->answer);
    thinking_close(&t);
}

START_TEST(every_way_to_cut_a_text_parts_it_as_the_whole_is_parted)
{
    int parted = 0, texts = rounds_of(400);
    for (int round = 0; round < texts; round++) {
        char text[TEXT_MAX + 1] = "";
        bool special[TEXT_MAX + 1] = {false}, inside = random_below(3) == 0;
        for (;;) {
            const char *more = kinds[_i].parts[random_below(8)];
            size_t at = strlen(text), n = strlen(more);
            if (at + n > TEXT_MAX)
                break;
            memcpy(text + at, more, n + 1);
            memset(special + at, random_below(4) == 0, n);
        }
        struct parted want = part(_i, inside, text, special);
        parted += *want.thoughts && *want.answer;
        for (uint32_t cuts = 0; cuts < 1u << (strlen(text) - 1); cuts++)
            check_cut(_i, inside, text, special, cuts, &want);
    }
    ck_assert_int_gt(parted, texts / 40);
}
END_TEST

START_TEST(without_marks_everything_is_the_answer_at_once)
{
    struct thinking t = {.held = {0}};
    ck_assert(!thinking_push(&t, " <t>", 4, false, false, NULL));
    ck_assert_uint_eq(t.answer.length, 4);
    ck_assert(!thinking_push(&t, "s", 1, true, false, NULL));
    ck_assert_uint_eq(t.answer.length, 0);
    thinking_close(&t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("thinking");
    TCase *tc = tcase_create("thinking");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, every_way_to_cut_a_text_parts_it_as_the_whole_is_parted, 0, KINDS);
    tcase_add_test(tc, without_marks_everything_is_the_answer_at_once);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
