/* SPDX-License-Identifier: Apache-2.0 */
/* The pattern compiler: what it takes on means what Oniguruma makes of the same expression, and
 * what popular models use it takes on. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "json.h"
#include "pattern.h"
#include "utf8.h"
#include "vocab_build.h"
#include "../suite.h"

#define SUFFIX "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD_START "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define WORD_END "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* Patterns that must run on our matcher. */
static const char *const ours[] = {
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    SUFFIX "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" SPACES,
    SUFFIX "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" SPACES,
    WORD_START "*" WORD_END "+" SUFFIX "?|" WORD_START "+" WORD_END "*" SUFFIX "?|\\p{N}{1,3}|"
               " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" SPACES,
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++"
    "[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s",
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    "[\r\n]",
    "\\s?\\p{L}+",
    "\\s?\\p{P}+",
    "[\xe4\xb8\x80-\xe9\xbe\xa5\xe0\xa0\x80-\xe4\xb8\x80\xea\xb0\x80-\xed\x9f\xbf]+",
    "\\s+$",
    "\\d{2,4}|[,;.]",
    "a(b(?:c|d)?e|\\d)?[^a]{2,}(?=\\s)|\\p{Lu}{2,}x?",
};

/* Expressions that only Oniguruma may run: each has something that the compiler does not take on.
 */
static const char *const theirs[] = {
    "^\\s+",    "\\w+",     "\\h+",    "[\\p{L}&&[^a]]+", "(.)\\1+", "x*",
    "(?<=a)b",  "(?:ab)+",  "a+?",     "(?i:\xc3\x9f)",   "(?i:ss)", "\\R",
    "a{2}?",    "(?>a|b)c", "(?i)abc", "\\p{Alpha}+",     "a|",      "(a|b)*c",
    "a{1,2}+?",
};

/* A tokenizer with one Split and every byte as a token: its section. */
static uint8_t *section_of(const char *regex, enum stele_status *status, struct stele_error *err)
{
    char path[] = "/tmp/check_pattern.XXXXXX";
    int fd = mkstemp(path);
    FILE *file = fdopen(fd, "w");
    json_t *text = json_string(regex);
    char *quoted = json_dumps(text, JSON_ENCODE_ANY);
    fprintf(file,
            "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":"
            "{\"type\":\"Split\",\"pattern\":{\"Regex\":%s},\"behavior\":\"Isolated\"}}",
            quoted);
    fclose(file);
    uint8_t *section;
    size_t length;
    *status = vocab_build(&section, &length, path, NULL, err);
    unlink(path);
    free(quoted);
    json_decref(text);
    return section;
}

static enum pattern_kind kind_of(const uint8_t *section, struct vocab *v)
{
    ck_assert(!vocab_open(v, section, UINT32_MAX, NULL));
    ck_assert_uint_eq(vocab_count(v, VOCAB_PATTERNS), 1);
    return ((const struct vocab_pattern *)vocab_records(v, VOCAB_PATTERNS))->kind;
}

/* Random text of what patterns tell apart, of characters that Debian's Oniguruma knows. */
static size_t random_text(char *out, size_t characters, uint64_t *seed)
{
    static const char *const pool[] = {"a",
                                       "b",
                                       "c",
                                       "e",
                                       "S",
                                       "s",
                                       "t",
                                       "T",
                                       "L",
                                       "l",
                                       "x",
                                       "d",
                                       "'",
                                       "'",
                                       " ",
                                       " ",
                                       " ",
                                       "\n",
                                       "\r",
                                       "\t",
                                       "1",
                                       "2",
                                       "9",
                                       ",",
                                       ".",
                                       "/",
                                       "-",
                                       "$",
                                       "_",
                                       "\"",
                                       "\xc3\xa9",
                                       "\xc5\xbf",
                                       "\xe2\x84\xaa",
                                       "\xcc\x81",
                                       "\xe4\xb8\xad",
                                       "\xea\xb0\x80",
                                       "\xc2\xa0",
                                       "\xe3\x80\x80",
                                       "\xc2\x85",
                                       "\xe2\x80\xa8",
                                       "\xe1\xa0\x8e",
                                       "\xd9\xa3",
                                       "\xc2\xbd",
                                       "\xc7\x85",
                                       "\xca\xb0",
                                       "\xf0\x9f\x98\x80",
                                       "\xe2\x80\x8d",
                                       "\xe2\x85\xab",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf"};
    size_t length = 0;
    for (size_t i = 0; i < characters; i++) {
        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        const char *c = pool[(*seed >> 33) % (sizeof pool / sizeof *pool)];
        size_t repeat = *seed >> 61 ? 1 : 3;
        for (; repeat; repeat--) {
            memcpy(out + length, c, strlen(c));
            length += strlen(c);
        }
    }
    return length;
}

START_TEST(a_program_matches_as_oniguruma_does)
{
    struct stele_error err;
    enum stele_status status;
    uint8_t *section = section_of(ours[_i], &status, &err);
    struct vocab v;
    ck_assert_msg(!status, "%s", err.text);
    ck_assert_msg(kind_of(section, &v) == PATTERN_PROGRAM, "left to Oniguruma: %s", ours[_i]);
    struct matcher mine, other;
    ck_assert(!matcher_open(&mine, &v, 0, NULL));
    /* the same expression, for Oniguruma: as a section that says so */
    ck_assert(!matcher_open_regex(&other, ours[_i], strlen(ours[_i]), NULL));
    uint64_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        char text[1024];
        size_t length = random_text(text, 1 + (size_t)round % 24, &seed);
        matcher_start(&mine, text, length);
        matcher_start(&other, text, length);
        for (bool a = true, b; a;) {
            size_t start[2] = {0}, stop[2] = {0};
            ck_assert(!matcher_next(&mine, &a, &start[0], &stop[0], NULL));
            ck_assert(!matcher_next(&other, &b, &start[1], &stop[1], NULL));
            ck_assert_msg(a == b && start[0] == start[1] && stop[0] == stop[1],
                          "%s\n\"%.*s\": %d %zu-%zu, Oniguruma %d %zu-%zu", ours[_i], (int)length,
                          text, a, start[0], stop[0], b, start[1], stop[1]);
        }
    }
    matcher_close(&mine);
    matcher_close(&other);
    free(section);
}
END_TEST

START_TEST(what_is_not_wholly_understood_is_left_to_oniguruma)
{
    struct stele_error err;
    enum stele_status status;
    struct vocab v;
    uint8_t *section = section_of(theirs[_i], &status, &err);
    ck_assert_msg(!status, "%s: %s", theirs[_i], err.text);
    ck_assert_msg(kind_of(section, &v) == PATTERN_ONIGURUMA, "taken on: %s", theirs[_i]);
    free(section);
}
END_TEST

START_TEST(a_posix_bracket_is_refused_by_name)
{
    static const char *const regexes[] = {"[[:alpha:]]+", "[^[:space:]x]", "a|[[:^punct:]]"};
    struct stele_error err;
    enum stele_status status;
    ck_assert_ptr_null(section_of(regexes[_i], &status, &err));
    ck_assert_int_eq(status, STELE_INPUT);
    ck_assert_msg(strstr(err.text, "Split") && strstr(err.text, "POSIX"), "%s", err.text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pattern");
    TCase *tc = tcase_create("pattern");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, a_program_matches_as_oniguruma_does, 0, sizeof ours / sizeof *ours);
    tcase_add_loop_test(tc, what_is_not_wholly_understood_is_left_to_oniguruma, 0,
                        sizeof theirs / sizeof *theirs);
    tcase_add_loop_test(tc, a_posix_bracket_is_refused_by_name, 0, 3);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
