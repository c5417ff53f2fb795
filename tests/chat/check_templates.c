/* SPDX-License-Identifier: Apache-2.0 */
/* What transformers' apply_chat_template makes of conversations, case by case: templates and cases
 * of the test data (shared/chat; STELE_TEST_DATA names it, what is absent is counted and printed),
 * its snippets of the language, and the repository's own in fixtures/. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "chat.h"
#include "template_compile.h"
#include "../suite.h"

enum { NAMES_MAX = 256, SHOWN_MAX = 3, TOKENS_MAX = 32 };

static const char *const failure_names[] = {
    [FAILURE_NONE] = "none",       [FAILURE_RAISED] = "raised",
    [FAILURE_REFUSED] = "refused", [FAILURE_UNDEFINED] = "undefined",
    [FAILURE_TYPE] = "type",       [FAILURE_VALUE] = "value",
    [FAILURE_RUNTIME] = "runtime", [FAILURE_SECURITY] = "security",
    [FAILURE_LIMIT] = "limit",     [FAILURE_UNSUPPORTED] = "unsupported",
    [FAILURE_PROGRAM] = "program", [FAILURE_MEMORY] = "memory",
};

/* The clock of the cases: Thursday, 2026-01-15 10:30:00. */
static const struct tm clock_of_cases = {.tm_year = 126,
                                         .tm_mon = 0,
                                         .tm_mday = 15,
                                         .tm_hour = 10,
                                         .tm_min = 30,
                                         .tm_wday = 4,
                                         .tm_yday = 14};

static char *folders[NAMES_MAX]; /* of templates: chat_template.jinja, special.json */
static int folder_count;
static char data[2048];

/* ------------------------------------------------------------------------------------------- files
 */

/* NULL where there is none; else the caller frees it. */
static char *read_all(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*bytes + 1);
    ck_assert_uint_eq(fread(text, 1, *bytes, f), *bytes);
    fclose(f);
    return text;
}

static const struct value *get(struct heap *h, const struct value *dict, const char *name)
{
    return value_find_text(h, dict, name, strlen(name));
}

static struct value given(struct heap *h, const struct value *dict, const char *name)
{
    const struct value *v = get(h, dict, name);
    return v ? *v : (struct value){.kind = VALUE_ABSENT};
}

/* ------------------------------------------------------------------------------------------ a case
 */

struct tally {
    const char *name;
    int cases, wrong, shown;
};

static void show(const char *label, const char *text, size_t bytes)
{
    fprintf(stderr, "    %s \"", label);
    for (size_t i = 0; i < bytes && i < 3000; i++)
        fprintf(stderr, text[i] == '\n' ? "\\n" : "%c", text[i]);
    fprintf(stderr, "\"\n");
}

/* Compares what became of a case with what it asks for. `h` has rendered; `err` is its error. */
static void judge(struct tally *t, const struct value *c, struct heap *h,
                  const struct stele_error *err, bool done)
{
    struct heap side;
    struct heap_limits limits = template_limits();
    heap_open(&side, &limits, NULL);
    const struct value *name = get(&side, c, "name"), *want = get(&side, c, "rendered"),
                       *error = get(&side, c, "error"), *kind = get(&side, c, "kind");
    bool right;
    if (want)
        right = done && h->out_length == want->count &&
                (!want->count || !memcmp(h->out, want->text, want->count));
    else
        right = !done && value_is_text(kind, failure_names[h->failure]) &&
                (h->failure != FAILURE_RAISED || (h->message_bytes == error->count &&
                                                  !memcmp(h->message, error->text, error->count)));
    t->cases++;
    if (!right && t->wrong++ < SHOWN_MAX) {
        fprintf(stderr, "%s: %.*s\n", t->name, (int)name->count, name->text);
        if (want)
            show("want", want->text, want->count);
        else
            fprintf(stderr, "    want a failure '%.*s': %.*s\n", (int)kind->count, kind->text,
                    (int)error->count, error->text);
        if (done)
            show("got ", h->out, h->out_length);
        else
            fprintf(stderr, "    got a failure '%s': %s\n", failure_names[h->failure], err->text);
    }
    heap_close(&side);
}

static size_t tokens_of(struct heap *h, const struct value *special,
                        struct template_variable *tokens)
{
    const struct value *seen = get(h, special, "template_sees");
    size_t n = 0;
    for (uint32_t i = 0; seen && i < seen->count && n < TOKENS_MAX; i++) {
        struct value v = seen->entries[i].value;
        v.origin = ORIGIN_TEMPLATE;
        tokens[n++] =
            (struct template_variable){seen->entries[i].key.text, seen->entries[i].key.count, v};
    }
    return n;
}

static void check_case(struct tally *t, const struct template_program *p,
                       const struct value *special, const struct value *c)
{
    struct stele_error err = {0};
    struct heap_limits limits = template_limits();
    struct template_variable tokens[TOKENS_MAX];
    struct heap h;
    heap_open(&h, &limits, &err);
    struct chat_request request = {
        .messages = given(&h, c, "messages"),
        .tools = given(&h, c, "tools"),
        .arguments = given(&h, c, "kwargs"),
        .tokens = tokens,
        .token_count = tokens_of(&h, special, tokens),
        .now = &clock_of_cases,
    };
    bool done = chat_render(&h, p, &request);
    judge(t, c, &h, &err, done);
    heap_close(&h);
}

/* A program, copied to where a read beyond its end is seen by the address sanitizer. */
static uint8_t *compile(const char *source, size_t bytes, const char *name,
                        struct template_program *p, struct stele_error *err)
{
    uint8_t *program;
    size_t length;
    if (template_compile(&program, &length, source, bytes, name, err))
        return NULL;
    ck_assert_int_eq(template_open(p, program, length, err), STELE_OK);
    return program;
}

static void check_file(struct tally *t, const struct template_program *p,
                       const struct value *special, const char *path)
{
    struct stele_error err = {0};
    struct heap_limits limits = {1000 * 1000 * 1000, (size_t)1 << 30, (size_t)1 << 30};
    struct heap h;
    struct value cases;
    size_t bytes;
    char *text = read_all(path, &bytes);
    ck_assert_msg(text != NULL, "no %s", path);
    heap_open(&h, &limits, &err);
    ck_assert_msg(!value_json(&h, text, bytes, path, &cases), "%s", err.text);
    for (uint32_t i = 0; i < cases.count; i++)
        check_case(t, p, special, &cases.items[i]);
    heap_close(&h);
    free(text);
}

START_TEST(every_case_is_the_librarys)
{
    const char *folder = folders[_i], *name = strrchr(folder, '/') + 1;
    struct tally t = {.name = name};
    char path[4096];
    struct stele_error err = {0};
    struct template_program p;
    struct heap_limits limits = template_limits();
    struct heap h;
    struct value special = {.kind = VALUE_DICT};
    size_t bytes, special_bytes;
    snprintf(path, sizeof path, "%s/chat_template.jinja", folder);
    char *source = read_all(path, &bytes);
    snprintf(path, sizeof path, "%s/special.json", folder);
    char *special_text = read_all(path, &special_bytes);
    heap_open(&h, &limits, &err);
    if (special_text)
        ck_assert_msg(!value_json(&h, special_text, special_bytes, path, &special), "%s", err.text);
    uint8_t *program = compile(source, bytes, name, &p, &err);
    ck_assert_msg(program != NULL, "%s", err.text);
    snprintf(path, sizeof path, "%s/cases.json", folder);
    if (access(path, R_OK))
        snprintf(path, sizeof path, "%s/chat/cases/%s.json", data, name);
    check_file(&t, &p, &special, path);
    printf("%s: %d cases, %d wrong, %zu bytes of Jinja, %" PRIu32 " of program\n", name, t.cases,
           t.wrong, bytes, p.header.length);
    heap_close(&h);
    free(program);
    free(special_text);
    free(source);
    ck_assert_msg(!t.wrong, "%s: %d of %d wrong", name, t.wrong, t.cases);
}
END_TEST

/* ---------------------------------------------------------------------------------------- snippets
 */

/* A snippet is a template and its variables, no conversation. */
static void check_snippet(struct tally *t, int *refused, const struct value *c)
{
    struct stele_error err = {0};
    struct heap_limits limits = template_limits();
    struct template_variable variables[TOKENS_MAX];
    struct template_program p;
    struct heap h;
    size_t n = 0;
    heap_open(&h, &limits, &err);
    const struct value *source = get(&h, c, "template"), *given_ones = get(&h, c, "variables"),
                       *kind = get(&h, c, "kind"), *core = get(&h, c, "core");
    for (uint32_t i = 0; i < given_ones->count; i++)
        variables[n++] = (struct template_variable){given_ones->entries[i].key.text,
                                                    given_ones->entries[i].key.count,
                                                    given_ones->entries[i].value};
    uint8_t *program = compile(source->text, source->count, "snippet", &p, &err);
    if (program) {
        bool done = template_run(&h, &p, variables, n, &clock_of_cases);
        if (core->truth || done || h.failure != FAILURE_UNSUPPORTED)
            judge(t, c, &h, &err, done);
        else
            ++*refused;
    } else if (kind && (value_is_text(kind, "syntax") || value_is_text(kind, "loader")))
        t->cases++;
    else if (!core->truth)
        ++*refused; /* by name, at conversion: more than templates need */
    else
        judge(t, c, &h, &err, false);
    free(program);
    heap_close(&h);
}

static void check_snippets(const char *path, int *refused, struct tally *t)
{
    struct stele_error err = {0};
    struct heap_limits limits = {1000 * 1000 * 1000, (size_t)1 << 30, (size_t)1 << 30};
    struct heap h;
    struct value cases;
    size_t bytes;
    char *text = read_all(path, &bytes);
    if (!text) {
        printf("skipped: no %s\n", path);
        return;
    }
    heap_open(&h, &limits, &err);
    ck_assert_msg(!value_json(&h, text, bytes, path, &cases), "%s", err.text);
    for (uint32_t i = 0; i < cases.count; i++)
        check_snippet(t, refused, &cases.items[i]);
    heap_close(&h);
    free(text);
    printf("%s: %d snippets, %d wrong, %d beyond what templates need and refused by name\n", path,
           t->cases, t->wrong, *refused);
}

START_TEST(every_snippet_is_the_librarys)
{
    struct tally t = {.name = "snippets"};
    int refused = 0;
    char path[4096];
    snprintf(path, sizeof path, "%s/chat/language/cases.json", data);
    check_snippets(_i ? path : "tests/chat/fixtures/snippets.json", &refused, &t);
    ck_assert_msg(!t.wrong, "%d of %d snippets wrong", t.wrong, t.cases);
}
END_TEST

/* ----------------------------------------------------------------------------------------- folders
 */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Adds the folders in `parent` that have a template; false where there is no such folder. */
static bool find_folders(const char *parent)
{
    DIR *dir = opendir(parent);
    int first = folder_count;
    if (!dir) {
        printf("skipped: no %s\n", parent);
        return false;
    }
    for (struct dirent *entry; (entry = readdir(dir)) && folder_count < NAMES_MAX;) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s/chat_template.jinja", parent, entry->d_name);
        if (*entry->d_name == '.' || access(path, R_OK))
            continue;
        path[strlen(path) - strlen("/chat_template.jinja")] = '\0';
        folders[folder_count++] = strdup(path);
    }
    closedir(dir);
    qsort(folders + first, (size_t)(folder_count - first), sizeof *folders, by_name);
    return true;
}

int main(void)
{
    const char *named = getenv("STELE_TEST_DATA");
    char path[4096];
    snprintf(data, sizeof data, "%s", named ? named : "../shared");
    snprintf(path, sizeof path, "%s/chat/templates", data);
    find_folders("tests/chat/fixtures");
    bool there = find_folders(path);
    Suite *suite = suite_create("templates");
    TCase *tc = tcase_create("templates");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, every_case_is_the_librarys, 0, folder_count);
    tcase_add_loop_test(tc, every_snippet_is_the_librarys, 0, there ? 2 : 1);
    suite_add_tcase(suite, tc);
    int failed = suite_run(suite);
    printf("%d templates, %d tests failed%s\n", folder_count, failed,
           there ? "" : ", the test data is absent");
    for (int i = 0; i < folder_count; i++)
        free(folders[i]);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
