/* SPDX-License-Identifier: Apache-2.0 */
/* Programs of chat templates from strangers: damaged ones, ones that run away, templates that are
 * not understood; and where each byte of the output came from. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "chat.h"
#include "template_compile.h"
#include "../suite.h"

static const struct tm now = {
    .tm_year = 126, .tm_mday = 15, .tm_hour = 10, .tm_min = 30, .tm_wday = 4};

/* A template that uses most of what there is. */
static const char everything[] =
    "{%- macro show(x, deep=1) -%}{%- if x is mapping -%}{%- for k, v in x.items() -%}"
    "{{ k }}={{ show(v, deep + 1) }}{{ ', ' if not loop.last }}{%- endfor -%}"
    "{%- elif x is string -%}{{ x|trim|upper }}{%- else -%}{{ x|tojson(indent=2) }}{%- endif -%}"
    "{%- endmacro -%}"
    "{% set ns = namespace(n=0, seen=[]) %}"
    "{% for m in messages if m.role != 'tool' %}"
    "{% set ns.n = ns.n + loop.index %}{% set ns.seen = ns.seen + [m.role] %}"
    "<|{{ m.role }}|>{{ m.content.split('</think>')[-1].lstrip('\\n') ~ loop.length }}"
    "{% if loop.index > 3 %}{% break %}{% endif %}"
    "{% generation %}{{ m['content'][::-1][1:] }}{% set a, b = 1, [2, 3] %}{{ a < b[0] < 3 }}{% "
    "endgeneration %}"
    "{% else %}none{% endfor %}"
    "{% set text %}{{ ns.seen|join('/') }}{% endset %}{{ text|replace('u', 'U')|length }}"
    "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }}"
    "{{ tools and show(tools[0]) }}{{ {'a': 1.5, 'b': -3 // 2}|dictsort }}{{ (x|safe) + '<' }}"
    "{% macro twice(a) %}{{ caller(a) }}{{ caller(varargs) }}{{ kwargs }}{% endmacro %}"
    "{% call(y) twice('q', 7, z=8) %}{{ y }}{% endcall %}"
    "{{ messages|map('string')|join|length }}{{ 'x' * 3 if ns.n else 'y' }}{{ strftime_now('%Y') }}"
    "{{ raise_exception('few') if messages|length < 2 }}";

static const char conversation[] =
    "[{\"role\": \"user\", \"content\": \" <|user|> h\xc3\xa9llo \"}, {\"role\": \"assistant\", "
    "\"content\": \"<think>\\nno</think>\\nyes\"}, {\"role\": \"user\", \"content\": \"again\"}]";
static const char tools_text[] = "[{\"name\": \"f\", \"parameters\": {\"a\": [1, {\"b\": null}]}}]";

static uint8_t *compiled(const char *source, size_t *length)
{
    struct stele_error err;
    uint8_t *program;
    ck_assert_msg(!template_compile(&program, length, source, strlen(source), "test", &err), "%s",
                  err.text);
    return program;
}

/* Renders the conversation; true where it worked. The heap stays open. */
static bool render(struct heap *h, const uint8_t *bytes, size_t length,
                   const struct heap_limits *limits, struct stele_error *err)
{
    struct template_program program;
    struct chat_request request = {.now = &now};
    heap_open(h, limits, err);
    if (template_open(&program, bytes, length, err))
        return false;
    ck_assert_int_eq(value_json(h, conversation, strlen(conversation), "test", &request.messages),
                     0);
    ck_assert_int_eq(value_json(h, tools_text, strlen(tools_text), "test", &request.tools), 0);
    return chat_render(h, &program, &request);
}

/* Whatever bytes a program has, it ends in a text or in a sentence, within its limits. */
START_TEST(damage_is_a_sentence)
{
    static const struct heap_limits limits = {20000, 4 << 20, 1 << 20};
    size_t length;
    int rendered = 0, rounds = rounds_of(20000);
    uint8_t *program = compiled(everything, &length), *copy = malloc(length);
    struct stele_error err;
    struct heap h;
    random_state += (uint64_t)_i * 0x9e3779b97f4a7c15u;
    ck_assert_msg(render(&h, program, length, &limits, &err), "%s", err.text);
    heap_close(&h);
    for (int i = 0; i < rounds; i++) {
        memcpy(copy, program, length);
        for (uint32_t n = 1 + random_below(4); n; n--) {
            uint32_t at = random_below((uint32_t)length);
            uint32_t other = random_below(2) ? random_below(256) : copy[at] ^ 1u << random_below(8);
            copy[at] = (uint8_t)other;
        }
        bool done = render(&h, copy, length, &limits, &err);
        ck_assert_msg(done || *err.text, "no sentence: round %d, seed %d", i, _i);
        rendered += done;
        heap_close(&h);
    }
    printf("damaged programs: %d of %d still render\n", rendered, rounds);
    free(copy);
    free(program);
}
END_TEST

/* A program that is cut short is refused, however short. */
START_TEST(a_cut_program_is_refused)
{
    struct heap_limits limits = template_limits();
    struct stele_error err;
    struct heap h;
    size_t length;
    uint8_t *program = compiled(everything, &length);
    for (size_t cut = 0; cut < length; cut += 1 + cut / 16) {
        uint8_t *copy = malloc(cut ? cut : 1); /* the address sanitizer sees reads beyond it */
        memcpy(copy, program, cut);
        ck_assert(!render(&h, copy, cut, &limits, &err));
        heap_close(&h);
        free(copy);
    }
    free(program);
}
END_TEST

/* Whatever limit is met, and wherever: a sentence, and nothing is lost track of. */
START_TEST(every_limit_is_a_sentence)
{
    struct heap_limits limits = template_limits();
    struct stele_error err;
    struct heap h;
    size_t length, stopped = 0;
    uint8_t *program = compiled(everything, &length);
    ck_assert_msg(render(&h, program, length, &limits, &err), "%s", err.text);
    size_t used = h.used;
    heap_close(&h);
    for (size_t i = 0; i < 600; i++) {
        struct heap_limits small = limits;
        if (_i == 0)
            small.steps = i * 3;
        else if (_i == 1)
            small.memory_bytes = used - i * 8;
        else
            small.output_bytes = i * 2;
        bool done = render(&h, program, length, &small, &err);
        ck_assert(done ? !h.failure : h.failure == FAILURE_LIMIT && *err.text);
        stopped += !done;
        heap_close(&h);
    }
    ck_assert_uint_gt(stopped, 0);
    free(program);
}
END_TEST

static const struct {
    const char *source;
    enum failure failure;
} hostile[] = {
    {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", FAILURE_LIMIT},
    {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
     FAILURE_LIMIT},
    {"{{ 'x' * 9999999999 }}", FAILURE_LIMIT},
    {"{{ 'x' * 99999999 }}", FAILURE_LIMIT},
    {"{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor "
     "%}",
     FAILURE_LIMIT},
    {"{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor "
     "%}",
     FAILURE_LIMIT},
    {"{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor "
     "%}{{ ns.s }}",
     FAILURE_LIMIT},
    {"{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}"
     "{{ ns.s|tojson }}",
     FAILURE_LIMIT},
    {"{% set ns = namespace(s=[]) %}{% for i in range(999) %}{% set ns.s = [ns.s] %}{% endfor %}"
     "{{ ns.s == [ns.s] }}",
     FAILURE_LIMIT},
    {"{% for i in range(99999) %}{{ 'a long line of text that repeats'.replace('', 'abc' * 99) "
     "}}{% endfor %}",
     FAILURE_LIMIT},
    {"{{ 9 ** 9999 }}", FAILURE_UNSUPPORTED},
    {"{{ range(1, 999999999999) }}", FAILURE_VALUE},
    {"{{ 'a' | indent(9999999999) }}", FAILURE_LIMIT},
};

START_TEST(what_runs_away_is_stopped)
{
    struct heap_limits limits = template_limits();
    struct stele_error err;
    struct heap h;
    size_t length;
    limits.memory_bytes = 64 << 20;
    limits.output_bytes = 16 << 20;
    uint8_t *program = compiled(hostile[_i].source, &length);
    ck_assert_msg(!render(&h, program, length, &limits, &err), "%s", hostile[_i].source);
    ck_assert_msg(h.failure == hostile[_i].failure, "%s: %s", hostile[_i].source, err.text);
    heap_close(&h);
    free(program);
}
END_TEST

/* clang-format off */
static const struct { const char *source, *names, *line; } refused[] = {
    {"a\n{% include 'x' %}", "include", "line 2"},
    {"{% import 'x' as y %}", "import", "line 1"},
    {"{% extends 'x' %}", "extends", "line 1"},
    {"{% block b %}{% endblock %}", "block", "line 1"},
    {"{% filter upper %}x{% endfilter %}", "filter", "line 1"},
    {"\n\n{% autoescape true %}{% endautoescape %}", "autoescape", "line 3"},
    {"{% with a = 1 %}{% endwith %}", "with", "line 1"},
    {"{% for x in y recursive %}{% endfor %}", "recursive", "line 1"},
    {"{% do x %}", "do", "line 1"},
    {"{{ x\n|nofilter }}", "nofilter", "line 2"},
    {"{{ x is nosuch }}", "nosuch", "line 1"},
    {"{{ xs|map('nofilter')|list }}", "nofilter", "line 1"},
    {"{{ xs|selectattr('a', 'nosuch')|list }}", "nosuch", "line 1"},
    {"{{ x|tojson(sep=1) }}", "sep", "line 1"},
    {"{{ f(*xs) }}", "'*'", "line 1"},
    {"{{ 'a'.zfill(3) }}", "zfill", "line 1"},
    {"{{ cycler('a') }}", "cycler", "line 1"},
    {"{{ '\\N{BULLET}' }}", "\\N", "line 1"},
    {"{% if x %}", "endif", "line 1"},
};
/* clang-format on */

START_TEST(what_is_not_understood_is_named)
{
    struct stele_error err;
    uint8_t *program;
    size_t length;
    const char *source = refused[_i].source;
    ck_assert_int_eq(template_compile(&program, &length, source, strlen(source), "t.jinja", &err),
                     STELE_INPUT);
    ck_assert_ptr_null(program);
    ck_assert_msg(strstr(err.text, refused[_i].names) && strstr(err.text, refused[_i].line) &&
                      strstr(err.text, "t.jinja"),
                  "%s: %s", source, err.text);
}
END_TEST

/* Also one that raises an empty text. */
START_TEST(a_template_that_refuses_is_a_sentence)
{
    static const char *const sources[] = {"{{ raise_exception('') }}", "{{ raise_exception('\\0') }}"};
    struct heap_limits limits = template_limits();
    struct stele_error err = {0};
    struct heap h;
    size_t length;
    uint8_t *program = compiled(sources[_i], &length);
    ck_assert(!render(&h, program, length, &limits, &err));
    ck_assert_int_eq(h.failure, FAILURE_RAISED);
    ck_assert_str_ne(err.text, "");
    heap_close(&h);
    free(program);
}
END_TEST

/* Nesting, words and numbers without end: a sentence, soon. */
START_TEST(a_template_without_end_is_refused)
{
    static const char *const parts[] = {"(",           "[",     "{{",    "{% if x %}",
                                        "{{ -",        "not ",  "x|",    "{% for a in b %}",
                                        "{% set x %}", "{{ (",  "{{ [[", "{% macro f() %}",
                                        "x if ",       "{{ a.", "'"};
    size_t n = strlen(parts[_i]), bytes = 200000, length;
    char *source = malloc(bytes + 3);
    struct stele_error err;
    uint8_t *program;
    memcpy(source, "{{ ", 3);
    for (size_t i = 0; i < bytes; i++)
        source[3 + i] = parts[_i][i % n];
    for (size_t from = 0; from <= 3; from += 3) {
        enum stele_status status =
            template_compile(&program, &length, source + from, bytes, "t", &err);
        ck_assert(status == STELE_INPUT || status == STELE_OK); /* "(" alone is text */
        free(program);
    }
    free(source);
}
END_TEST

/* clang-format off */
/* Rendered with text "U<b>" of a message's content: marks under what is content. */
static const struct { const char *source, *text, *marks; } origins[] = {
    {"<s>{{ c }}</s>",                          "<s>U<b></s>",            "---####----"},
    {"{{ '<s>' + c + '</s>' }}",                "<s>U<b></s>",            "---####----"},
    {"{{ '<s>' ~ c }}",                         "<s>U<b>",                "---####"},
    {"{% set x = '<' + c + '>' %}{{ x[1:-1] }}", "U<b>",                  "####"},
    {"{{ ('<' + c)|upper }}",                   "<U<B>",                  "-####"},
    {"{{ (' ' ~ c ~ ' ')|trim }}",              "U<b>",                   "####"},
    {"{{ ('a,' + c).split(',') | join('<s>') }}", "a<s>U<b>",             "----####"},
    {"{{ c.replace('<b>', '<s>') }}",           "U<s>",                   "#---"},
    {"{{ [c, '<s>'] }}",                        "['U<b>', '<s>']",        "-######--------"},
    {"{{ {'a': c}|tojson }}",                   "{\"a\": \"U<b>\"}",      "------######-"},
    {"{{ m|tojson }}",                          "{\"content\": \"U<b>\"}", "###################"},
    {"{{ c[::-1] }}{{ c|length }}",             ">b<U4",                  "####-"},
    {"{% set x %}<{{ c }}>{% endset %}{{ x }}", "<U<b>>",                 "-####-"},
    {"{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(c) }}{{ f('s') }}", "<U<b>><s>", "-####----"},
    {"{% for x in c %}{{ x }}.{% endfor %}",    "U.<.b.>.",               "#-#-#-#-"},
    {"{% set ns = namespace(t='') %}{% for x in [c, '<s>'] %}{% set ns.t = ns.t + x %}{% endfor %}{{ ns.t }}",
                                                "U<b><s>",                "####---"},
    {"{{ '<'|safe + c }}",                      "<U&lt;b&gt;",            "-##########"},
    {"{{ (c + '\n' + c)|indent(2) }}",          "U<b>\n  U<b>",           "####---####"},
    {"{{ n + 1 }}{{ n }}{{ 1 }}",               "871",                    "##-"},
    {"<|{{ r }}|>",                             "<|user|>",               "--------"},
};
/* clang-format on */

START_TEST(every_byte_knows_its_origin)
{
    struct heap_limits limits = template_limits();
    struct template_program program;
    struct stele_error err;
    struct heap h;
    struct value messages;
    char marks[64] = "";
    size_t length;
    char source[512];
    snprintf(source, sizeof source,
             "{%% set c = messages[0].content %%}{%% set m = messages[1] %%}"
             "{%% set n = messages[0].n %%}{%% set r = messages[0].role %%}%s",
             origins[_i].source);
    static const char two[] =
        "[{\"role\": \"user\", \"content\": \"U<b>\", \"n\": 7}, {\"content\": \"U<b>\"}]";
    uint8_t *bytes = compiled(source, &length);
    heap_open(&h, &limits, &err);
    ck_assert_int_eq(template_open(&program, bytes, length, &err), 0);
    ck_assert_int_eq(value_json(&h, two, strlen(two), "test", &messages), 0);
    struct chat_request request = {.messages = messages, .now = &now};
    ck_assert_msg(chat_render(&h, &program, &request), "%s", err.text);
    ck_assert_msg(h.out_length == strlen(origins[_i].text) &&
                      !memcmp(h.out, origins[_i].text, h.out_length),
                  "%s gives %.*s", origins[_i].source, (int)h.out_length, h.out);
    for (size_t i = 0; i < h.out_length && i < sizeof marks - 1; i++)
        marks[i] = h.out_origins[i] == ORIGIN_CONTENT ? '#' : '-';
    ck_assert_msg(!strcmp(marks, origins[_i].marks), "%s: %s, not %s", origins[_i].source, marks,
                  origins[_i].marks);
    heap_close(&h);
    free(bytes);
}
END_TEST

/* clang-format off */
static const char *const bad_json[] = {
    "", "[", "[1,]", "{\"a\":1,}", "{a:1}", "[1 2]", "01", "1.", "-", "+1", ".5", "1e", "nul", "\"a", "\"\\x\"",
    "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\x01\"", "\"\xff\"", "[] []", "{\"a\":1,\"a\":2}", "\"\\", "{\"a\"", "tru",
};
/* clang-format on */

START_TEST(bad_json_is_refused_by_its_place)
{
    struct heap_limits limits = template_limits();
    struct stele_error err;
    struct value v;
    struct heap h;
    size_t n = strlen(bad_json[_i]);
    char *copy = malloc(n ? n : 1); /* the address sanitizer sees reads beyond it */
    memcpy(copy, bad_json[_i], n);
    heap_open(&h, &limits, &err);
    ck_assert_msg(value_json(&h, copy, n, "m.json", &v) == STELE_INPUT, "%s", bad_json[_i]);
    ck_assert_ptr_nonnull(strstr(err.text, "m.json"));
    heap_close(&h);
    free(copy);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

int main(void)
{
    Suite *suite = suite_create("program");
    TCase *tc = tcase_create("program");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, damage_is_a_sentence, 0, 4);
    tcase_add_test(tc, a_cut_program_is_refused);
    tcase_add_loop_test(tc, every_limit_is_a_sentence, 0, 3);
    tcase_add_loop_test(tc, what_runs_away_is_stopped, 0, COUNT(hostile));
    tcase_add_loop_test(tc, what_is_not_understood_is_named, 0, COUNT(refused));
    tcase_add_loop_test(tc, a_template_that_refuses_is_a_sentence, 0, 2);
    tcase_add_loop_test(tc, a_template_without_end_is_refused, 0, 15);
    tcase_add_loop_test(tc, every_byte_knows_its_origin, 0, COUNT(origins));
    tcase_add_loop_test(tc, bad_json_is_refused_by_its_place, 0, COUNT(bad_json));
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
