/* SPDX-License-Identifier: Apache-2.0 */
/* The section of chat templates from a stranger: opening it reads nothing behind it, which is a page that cannot be
 * read, and of what is accepted every text and program lies inside. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "template_set.h"
#include "types.h"
#include "../suite.h"

enum { TEMPLATES = 2, TOKENS = 3, PROGRAM_BYTES = 88, SECTION_BYTES = 32 + (TEMPLATES + TOKENS) * 16 + 48 + 2 * 88 };

/* ---- a section that is right ---- */

struct made {
    struct template_set_header header;
    struct template_set_template templates[TEMPLATES];
    struct template_set_token tokens[TOKENS];
    char texts[48];
    struct template_header programs[TEMPLATES];
};
static_assert(sizeof(struct made) == SECTION_BYTES && sizeof(struct template_header) == PROGRAM_BYTES, "as drawn");

static struct template_set_text text_at(struct made *m, size_t at, const char *text)
{
    memcpy(m->texts + at, text, strlen(text));
    return (struct template_set_text){(uint32_t)(offsetof(struct made, texts) + at), (uint32_t)strlen(text)};
}

static struct made make(void)
{
    struct made m = {.header = {.templates = TEMPLATES, .tokens = TOKENS}};
    m.header.think = text_at(&m, 0, "<t>");
    m.header.think_done = text_at(&m, 3, "</t>");
    m.header.think_next = text_at(&m, 7, "n");
    static const char *const names[] = {"default", "tool_use"};
    for (uint32_t i = 0; i < TEMPLATES; i++) {
        uint32_t at = (uint32_t)(offsetof(struct made, programs) + i * PROGRAM_BYTES);
        m.templates[i] = (struct template_set_template){text_at(&m, 8 + 8 * i, names[i]), at, PROGRAM_BYTES};
        m.programs[i] = (struct template_header){
            .magic = TEMPLATE_MAGIC, .version = TEMPLATE_VERSION, .length = PROGRAM_BYTES};
    }
    for (uint32_t i = 0; i < TOKENS; i++)
        m.tokens[i] = (struct template_set_token){text_at(&m, 24 + 2 * i, "n"), text_at(&m, 30 + i, "<s>")};
    return m;
}

/* ---- before memory ends ---- */

/* `bytes` bytes (a multiple of 8) that end at a page which cannot be read; *map and 8192 bytes of it to unmap. */
static uint8_t *guard(const void *from, size_t bytes, void **map)
{
    *map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(*map != MAP_FAILED && !mprotect((uint8_t *)*map + 4096, 4096, PROT_NONE));
    uint8_t *at = (uint8_t *)*map + 4096 - bytes;
    memcpy(at, from, bytes);
    return at;
}

static uint32_t sum(const struct template_set *s, struct template_set_text text)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < text.length; i++)
        n += (uint8_t)template_set_text(s, text)[i];
    return n;
}

/* Reads everything that an opened section gives. */
static uint32_t read_all(const struct template_set *s, size_t bytes)
{
    uint32_t n = sum(s, s->header.think) + sum(s, s->header.think_done) + sum(s, s->header.think_next) +
                 template_set_find(s, "tool_use");
    for (uint32_t i = 0; i < s->header.tokens; i++)
        n += sum(s, s->tokens[i].name) + sum(s, s->tokens[i].text);
    for (uint32_t i = 0; i < s->header.templates; i++) {
        struct template_program p;
        n += sum(s, s->templates[i].name);
        if (template_set_program(s, i, &p, NULL) == STELE_OK)
            ck_assert(p.base >= s->base && p.header.length <= (size_t)(s->base + bytes - p.base));
    }
    return n;
}

START_TEST(a_section_that_is_right_gives_its_texts_and_programs)
{
    struct made m = make();
    struct template_set s;
    struct stele_error err;
    struct template_program p;
    ck_assert_msg(!template_set_open(&s, (const uint8_t *)&m, sizeof m, &err), "%s", err.text);
    ck_assert_uint_eq(template_set_find(&s, "default"), 0);
    ck_assert_uint_eq(template_set_find(&s, "tool_use"), 1);
    ck_assert_uint_eq(template_set_find(&s, "tool_us"), TEMPLATES);
    ck_assert_uint_eq(template_set_find(&s, ""), TEMPLATES);
    ck_assert(!memcmp(template_set_text(&s, s.header.think_done), "</t>", 4));
    ck_assert_msg(!template_set_program(&s, 1, &p, &err), "%s", err.text);
}
END_TEST

START_TEST(each_wrong_field_is_refused_by_name)
{
    static const struct {
        size_t offset;
        uint32_t value;
        const char *says;
    } wrong[] = {
        {0, 0, "0 templates"},
        {0, 65, "65 templates"},
        {0, UINT32_MAX, "templates"},
        {4, 65, "65 tokens"},
        {4, UINT32_MAX, "tokens"},
        {0, 40, "40 templates"}, /* more than lie in it */
        {8, SECTION_BYTES, "thinking mark"},
        {12, UINT32_MAX, "thinking mark"},
        {16, UINT32_MAX, "thinking mark"},
        {20, SECTION_BYTES, "thinking mark"},
        {24, UINT32_MAX, "thinking mark"},
        {28, SECTION_BYTES, "thinking mark"},
        {32, UINT32_MAX, "name of a template"},
        {40, 4, "template 0"}, /* not a multiple of 8 */
        {40, SECTION_BYTES + 8, "template 0"},
        {44, SECTION_BYTES, "template 0"},
        {32 + 16 + 12, UINT32_MAX, "template 1"},
        {64, UINT32_MAX, "name of a token"},
        {64 + 12, SECTION_BYTES, "text of a token"},
    };
    struct made m = make();
    struct template_set s;
    struct stele_error err = {0};
    memcpy((uint8_t *)&m + wrong[_i].offset, &wrong[_i].value, 4);
    ck_assert_int_eq(template_set_open(&s, (const uint8_t *)&m, sizeof m, &err), STELE_INPUT);
    ck_assert_msg(strstr(err.text, "templates section: ") && strstr(err.text, wrong[_i].says), "%s", err.text);
}
END_TEST
enum { WRONG = 19 };

START_TEST(a_section_that_is_cut_short_is_refused)
{
    struct made m = make();
    for (size_t bytes = 0; bytes < sizeof m; bytes += 8) {
        void *map;
        struct template_set s;
        uint8_t *section = guard(&m, bytes, &map);
        ck_assert_int_eq(template_set_open(&s, section, bytes, NULL), STELE_INPUT);
        munmap(map, 8192);
    }
}
END_TEST

START_TEST(of_a_mutated_section_nothing_outside_is_read)
{
    static const uint32_t edges[] = {0, 1, 8, 64, SECTION_BYTES - 1, SECTION_BYTES, SECTION_BYTES + 1, UINT32_MAX - 7,
                                     UINT32_MAX};
    int opened = 0, rounds = 20000;
    uint32_t read = 0;
    for (int round = 0; round < rounds; round++) {
        struct made m = make();
        for (uint32_t i = 0; i <= random_below(3); i++) {
            uint32_t value = random_below(2) ? edges[random_below(9)] : random_below(SECTION_BYTES);
            memcpy((uint8_t *)&m + 4 * random_below(random_below(4) ? 28 : SECTION_BYTES / 4), &value, 4);
        }
        void *map;
        struct template_set s;
        uint8_t *section = guard(&m, sizeof m, &map);
        if (template_set_open(&s, section, sizeof m, NULL) == STELE_OK) {
            read += read_all(&s, sizeof m);
            opened++;
        }
        munmap(map, 8192);
    }
    printf("%d of %d mutated sections open (%u)\n", opened, rounds, read);
    ck_assert(opened > rounds / 20 && opened < rounds);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("template_set");
    TCase *tc = tcase_create("template_set");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_section_that_is_right_gives_its_texts_and_programs);
    tcase_add_loop_test(tc, each_wrong_field_is_refused_by_name, 0, WRONG);
    tcase_add_test(tc, a_section_that_is_cut_short_is_refused);
    tcase_add_test(tc, of_a_mutated_section_nothing_outside_is_read);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
