/* SPDX-License-Identifier: Apache-2.0 */
/* What the `tokenizers` library makes of texts with whole vocabularies, case by case: every
 * tokenizer.json of the test data with its cases.json and decode_cases.json (shared/tokenizers, its
 * synthetic/, shared/models), and the repository's own in fixtures/. STELE_TEST_DATA names the
 * data; what is not there is counted and printed. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "tokenizer.h"
#include "vocab_build.h"
#include "../suite.h"

enum { FOLDERS_MAX = 512, SHOWN_MAX = 5 };

static char *folders[FOLDERS_MAX]; /* each holds a tokenizer.json */
static int folder_count, absent_count;

/* ---------------------------------------------------------------------------------- one folder */

struct run {
    const char *folder;
    struct tokenizer tokenizer;
    int cases, wrong;
};

static void wrong(struct run *r, const char *what, const char *text, size_t length)
{
    if (r->wrong++ < SHOWN_MAX) {
        fprintf(stderr, "%s: %s: \"", r->folder, what);
        for (size_t i = 0; i < length && i < 160; i++)
            fprintf(stderr, text[i] < 0x20 ? "\\x%02x" : "%c", (unsigned char)text[i]);
        fprintf(stderr, "\"\n");
    }
}

static uint32_t *ids_of(const json_t *list, size_t *count)
{
    *count = json_array_size(list);
    uint32_t *ids = calloc(*count + 1, sizeof *ids);
    ck_assert_ptr_nonnull(ids);
    for (size_t i = 0; i < *count; i++)
        ids[i] = (uint32_t)json_number_value(json_array_get(list, i));
    return ids;
}

static void print_ids(const char *name, const uint32_t *ids, size_t count)
{
    fprintf(stderr, "    %s", name);
    for (size_t i = 0; i < count && i < 40; i++)
        fprintf(stderr, " %" PRIu32, ids[i]);
    fprintf(stderr, "\n");
}

static void check_encode(struct run *r, const json_t *text, const json_t *want, unsigned flags)
{
    if (!want)
        return;
    struct stele_error err = {0};
    size_t want_count, count;
    uint32_t *wanted = ids_of(want, &want_count), *ids;
    enum stele_status status =
        tokenizer_encode(&r->tokenizer, json_string_value(text), NULL, json_string_length(text), flags,
                         &ids, &count, &err);
    if (status || count != want_count || (count && memcmp(ids, wanted, count * sizeof *ids))) {
        wrong(r, status ? err.text : "encodes otherwise", json_string_value(text),
              json_string_length(text));
        if (r->wrong <= SHOWN_MAX) {
            print_ids("want", wanted, want_count);
            print_ids("got ", ids, count);
        }
    }
    free(ids);
    free(wanted);
}

static void check_decode(struct run *r, const json_t *list, const json_t *want, bool skip_special)
{
    if (!want)
        return;
    struct stele_error err = {0};
    size_t count, bytes;
    uint32_t *ids = ids_of(list, &count);
    char *text;
    enum stele_status status =
        tokenizer_decode(&r->tokenizer, ids, count, skip_special, &text, &bytes, &err);
    if (status || bytes != json_string_length(want) ||
        memcmp(text, json_string_value(want), bytes)) {
        wrong(r, status ? err.text : "decodes otherwise, wanted", json_string_value(want),
              json_string_length(want));
        wrong(r, "    got", text, bytes);
    }
    free(text);
    free(ids);
}

/* A stream over ids[0, cut) as prompt and the rest one by one gives decode(all) less
 * decode(prompt). */
static void check_stream(struct run *r, const json_t *list, const json_t *want)
{
    if (!want)
        return;
    size_t count, bytes, owed_bytes, got = 0;
    uint32_t *ids = ids_of(list, &count);
    size_t cut = count / 3;
    char *owed, *all = malloc(json_string_length(want) + 64);
    const char *text;
    struct tokenizer_stream *s;
    ck_assert_int_eq(tokenizer_decode(&r->tokenizer, ids, cut, true, &owed, &owed_bytes, NULL),
                     STELE_OK);
    ck_assert_int_eq(tokenizer_stream_open(&s, &r->tokenizer, ids, cut, NULL), STELE_OK);
    for (size_t i = cut; i <= count; i++) {
        enum stele_status status = i < count ? tokenizer_stream_push(s, ids[i], &text, &bytes, NULL)
                                             : tokenizer_stream_end(s, &text, &bytes, NULL);
        ck_assert_int_eq(status, STELE_OK);
        ck_assert_uint_le(got + bytes, json_string_length(want));
        memcpy(all + got, text, bytes);
        got += bytes;
    }
    size_t want_bytes = json_string_length(want), same = 0;
    const char *wanted = json_string_value(want);
    while (same < owed_bytes && same < want_bytes && owed[same] == wanted[same])
        same++;
    while (same && same < want_bytes && ((unsigned char)wanted[same] & 0xc0) == 0x80)
        same--;
    if (got != want_bytes - same || memcmp(all, wanted + same, got))
        wrong(r, "streams otherwise, wanted", wanted + same, want_bytes - same);
    tokenizer_stream_free(s);
    free(owed);
    free(all);
    free(ids);
}

static void check_case(struct run *r, const json_t *c)
{
    const json_t *text = json_object_get(c, "text"), *ids = json_object_get(c, "ids");
    const json_t *special = json_object_get(c, "ids_special");
    if (text) {
        check_encode(r, text, ids, TOKENIZER_BARE);
        check_encode(r, text, special, 0);
    }
    const json_t *all = json_object_get(c, "decoded_special"),
                 *skip = json_object_get(c, "decoded_skip");
    if (all) { /* the models' cases: decode(ids_special) with and without special tokens */
        check_decode(r, special, all, false);
        skip = json_object_get(c, "decoded");
    } else
        check_decode(r, ids, json_object_get(c, "decoded"), false);
    check_decode(r, ids, skip, true);
    check_stream(r, ids, skip);
    r->cases++;
}

static json_t *read_cases(const char *folder, const char *name)
{
    char path[4096];
    json_t *json = NULL;
    struct stele_error err;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (!access(path, R_OK))
        ck_assert_msg(!json_read_file(&json, path, &err), "%s", err.text);
    return json;
}

/* Copied to where a read beyond its end is seen by the address sanitizer. */
static void open_section(struct run *r, const uint8_t *section, size_t length)
{
    struct stele_error err;
    ck_assert_msg(!tokenizer_open(&r->tokenizer, section, length, &err), "%s: %s", r->folder,
                  err.text);
}

static void check_refused(struct run *r, const json_t *cases, enum stele_status status,
                          const struct stele_error *err)
{
    const char *component = json_string_value(json_object_get(cases, "component"));
    ck_assert_msg(status == STELE_INPUT && strstr(err->text, component),
                  "%s: not refused naming %s: %s", r->folder, component,
                  status ? err->text : "accepted");
}

START_TEST(every_case_is_the_librarys)
{
    static const char *const names[] = {"cases.json", "decode_cases.json", "tokenizer_cases.json"};
    struct run r = {.folder = folders[_i]};
    char path[4096];
    uint8_t *section;
    size_t length;
    struct stele_error err = {0};
    snprintf(path, sizeof path, "%s/tokenizer.json", r.folder);
    enum stele_status status = vocab_build(&section, &length, path, NULL, &err);
    for (size_t i = 0; i < 3; i++) {
        json_t *json = read_cases(r.folder, names[i]), *cases = json, *c;
        const json_t *refuse = json_object_get(json, "refuse");
        size_t n;
        if (refuse && (status || json_is_true(refuse)))
            check_refused(&r, json, status, &err);
        else if (json) {
            ck_assert_msg(!status, "%s", err.text);
            open_section(&r, section, length);
            if (json_is_object(json))
                cases = json_object_get(json, "cases");
            json_array_foreach(cases, n, c) check_case(&r, c);
        }
        json_decref(json);
    }
    printf("%s: %d cases, %d wrong, %zu bytes\n", r.folder, r.cases, r.wrong, length);
    free(section);
    ck_assert_msg(!r.wrong, "%s: %d wrong", r.folder, r.wrong);
}
END_TEST

/* ------------------------------------------------------------------------------------- folders */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Adds the folders in `parent` that have a tokenizer.json. */
static void find_folders(const char *parent)
{
    DIR *dir = opendir(parent);
    if (!dir) {
        printf("skipped: no %s\n", parent);
        absent_count++;
        return;
    }
    int first = folder_count;
    for (struct dirent *entry; (entry = readdir(dir)) && folder_count < FOLDERS_MAX;) {
        char path[4096];
        if (*entry->d_name == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s/tokenizer.json", parent, entry->d_name);
        if (access(path, R_OK))
            continue;
        path[strlen(path) - strlen("/tokenizer.json")] = '\0';
        folders[folder_count++] = strdup(path);
    }
    closedir(dir);
    qsort(folders + first, (size_t)(folder_count - first), sizeof *folders, by_name);
}

int main(void)
{
    static const char *const parents[] = {"models", "tokenizers", "tokenizers/synthetic"};
    const char *data = getenv("STELE_TEST_DATA");
    char path[4096];
    find_folders("tests/text/fixtures");
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", data ? data : "../shared", parents[i]);
        find_folders(path);
    }
    Suite *suite = suite_create("cases");
    TCase *tc = tcase_create("cases");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, every_case_is_the_librarys, 0, folder_count);
    suite_add_tcase(suite, tc);
    int failed = suite_run(suite);
    printf("%d vocabularies, %d failed, %d folders of test data absent\n", folder_count, failed,
           absent_count);
    for (int i = 0; i < folder_count; i++)
        free(folders[i]);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
