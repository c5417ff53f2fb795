/* SPDX-License-Identifier: Apache-2.0 */
/* Filters and tests that an expression applies to a value: their names, and their arguments, which are brought into the
 * order of their parameters. */
#include "template_code.h"

/* ---- names ---- */

struct filter_entry {
    uint16_t number;
    uint8_t required;
    const char *name, *parameters;
};

static const struct filter_entry filter_entries[] = {
#define FILTER(number, id, name, parameters, required) {number, required, name, parameters},
#include "template.def"
};

struct alias_entry {
    uint16_t number;
    const char *name;
};

static const struct alias_entry filter_aliases[] = {
#define FILTER_ALIAS(id, name) {FILTER_##id, name},
#include "template.def"
};

struct test_entry {
    uint16_t number, arguments;
    const char *name;
};

static const struct test_entry test_entries[] = {
#define TEST(number, id, name, arguments) {number, arguments, name},
#include "template.def"
};

static const struct alias_entry test_aliases[] = {
#define TEST_ALIAS(id, name) {TEST_##id, name},
#include "template.def"
};

static const struct filter_entry *filter_numbered(uint16_t number)
{
    for (size_t i = 0; i < COUNT(filter_entries); i++)
        if (filter_entries[i].number == number)
            return &filter_entries[i];
    return NULL;
}

static const struct filter_entry *filter_named(struct compiler *c, const char *text, size_t length)
{
    for (size_t i = 0; i < COUNT(filter_entries); i++)
        if (same(filter_entries[i].name, text, length))
            return &filter_entries[i];
    for (size_t i = 0; i < COUNT(filter_aliases); i++)
        if (same(filter_aliases[i].name, text, length))
            return filter_numbered(filter_aliases[i].number);
    compile_fail(c, "filter '%.*s' is not supported", (int)(length < 60 ? length : 60), text);
    return NULL;
}

static const struct test_entry *test_numbered(uint16_t number)
{
    for (size_t i = 0; i < COUNT(test_entries); i++)
        if (test_entries[i].number == number)
            return &test_entries[i];
    return NULL;
}

static const struct test_entry *test_named(struct compiler *c, const char *text, size_t length)
{
    for (size_t i = 0; i < COUNT(test_entries); i++)
        if (same(test_entries[i].name, text, length))
            return &test_entries[i];
    for (size_t i = 0; i < COUNT(test_aliases); i++)
        if (same(test_aliases[i].name, text, length))
            return test_numbered(test_aliases[i].number);
    compile_fail(c, "test '%.*s' is not supported", (int)(length < 60 ? length : 60), text);
    return NULL;
}

/* ---- arguments ---- */

size_t arguments(struct compiler *c, struct argument list[ARGUMENTS_MAX])
{
    size_t n = 0;
    bool named = false;
    while (!c->status && !take_operator(c, ")")) {
        if (n)
            want_operator(c, ",");
        if (n && take_operator(c, ")"))
            break;
        if (n == ARGUMENTS_MAX) {
            compile_fail(c, "more than %d arguments", ARGUMENTS_MAX);
            break;
        }
        if (at_operator(c, "*") || at_operator(c, "**")) {
            compile_fail(c, "arguments by '%.*s' are not supported", (int)c->at->length,
                         c->at->text);
            break;
        }
        struct argument *a = &list[n++];
        a->keyword = NULL;
        if (c->at->kind == TOKEN_NAME && c->at[1].kind == TOKEN_OPERATOR && c->at[1].length == 1 &&
            *c->at[1].text == '=') {
            a->keyword = c->at;
            c->at += 2;
            named = true;
        } else if (named)
            compile_fail(c, "an argument by position behind one by name");
        a->code.begin = code_count(c);
        expression(c);
        a->code.end = code_count(c);
    }
    return n;
}

/* The position of `keyword` in "a b c", or -1. */
static int parameter_index(const char *parameters, const struct token *keyword)
{
    int index = 0;
    for (const char *p = parameters; *p; index++) {
        size_t n = strcspn(p, " ");
        if (n == keyword->length && !memcmp(p, keyword->text, n))
            return index;
        p += n + (p[n] == ' ');
    }
    return -1;
}

static int parameter_count(const char *parameters)
{
    int n = *parameters != '\0';
    for (const char *p = parameters; *p; p++)
        n += *p == ' ';
    return n;
}

/* Brings the arguments into the order of the filter's parameters; returns how many are left on the
 * stack. Their code begins at `from` and is all that stands there. */
static size_t bind(struct compiler *c, const struct filter_entry *f, size_t from,
                   const struct argument *list, size_t n)
{
    struct stretch order[ARGUMENTS_MAX] = {{0, 0}};
    size_t count = 0;
    int most = parameter_count(f->parameters);
    for (size_t i = 0; i < n && !c->status; i++) {
        int index = list[i].keyword ? parameter_index(f->parameters, list[i].keyword) : (int)i;
        if (index < 0)
            compile_fail(c, "filter '%s' has no parameter '%.*s'", f->name,
                         (int)list[i].keyword->length, list[i].keyword->text);
        else if (index >= most || order[index].begin != order[index].end)
            compile_fail(c, "filter '%s' has an argument too many", f->name);
        else {
            order[index] = list[i].code;
            count = count > (size_t)index + 1 ? count : (size_t)index + 1;
        }
    }
    for (size_t i = 0; i < f->required && !c->status; i++)
        if (order[i].begin == order[i].end)
            compile_fail(c, "filter '%s' lacks an argument", f->name);
    code_arrange(c, from, order, count);
    return count;
}

/* A filter or test that an argument names: it must be a plain string, and leaves the code. Its text
 * in *text; false, and an error, where it is none. */
static bool take_named(struct compiler *c, struct argument *list, size_t index, size_t n,
                       const char **text, size_t *length)
{
    struct template_op *op = code_at(c, list[index].code.begin);
    const struct template_constant *k =
        (struct template_constant *)c->tables[TABLE_CONSTANTS].data + op->operand;
    if (c->status)
        return false;
    if (list[index].keyword || list[index].code.end != list[index].code.begin + 1 ||
        op->op != OP_CONSTANT || k->kind != CONSTANT_TEXT) {
        compile_fail(c, "a filter or test that is not named by a plain string");
        return false;
    }
    const struct template_string *s =
        (struct template_string *)c->tables[TABLE_STRINGS].data + k->string;
    *text = (char *)c->tables[TABLE_BYTES].data + s->offset;
    *length = s->length;
    memmove(&list[index], &list[index + 1], (n - index - 1) * sizeof *list);
    return true;
}

static void map_filter(struct compiler *c, size_t from, struct argument *list, size_t n)
{
    const struct filter_entry *f = filter_numbered(FILTER_MAP_ATTRIBUTE);
    const char *text;
    size_t length, at;
    if (n && !list[0].keyword) {
        if (!take_named(c, list, 0, n, &text, &length) || !(f = filter_named(c, text, length)))
            return;
        if (*f->parameters == '*') {
            compile_fail(c, "map('%s') is not supported", f->name);
            return;
        }
        size_t count = bind(c, f, from, list, n - 1);
        at = emit(c, OP_FILTER, count, f->number);
        if (!c->status)
            code_at(c, at)->id = FILTER_MAP;
        return;
    }
    size_t count = bind(c, f, from, list, n);
    at = emit(c, OP_FILTER, count, 0);
    if (!c->status)
        code_at(c, at)->id = FILTER_MAP_ATTRIBUTE;
}

/* select and reject: a test and its arguments; selectattr and rejectattr: an attribute before it.
 */
static void select_filter(struct compiler *c, uint16_t number, size_t from, struct argument *list,
                          size_t n)
{
    size_t first = number == FILTER_SELECTATTR || number == FILTER_REJECTATTR;
    const struct test_entry *t = test_numbered(TEST_TRUTH);
    const char *text;
    size_t length;
    if (n < first) {
        compile_fail(c, "selectattr without an attribute");
        return;
    }
    if (n > first) {
        if (!take_named(c, list, first, n, &text, &length) || !(t = test_named(c, text, length)))
            return;
        n--;
    }
    struct stretch order[ARGUMENTS_MAX];
    for (size_t i = 0; i < n; i++) {
        order[i] = list[i].code;
        if (list[i].keyword)
            compile_fail(c, "select and its kin by name of an argument are not supported");
    }
    if (n - first != t->arguments)
        compile_fail(c, "test '%s' takes %d arguments", t->name, t->arguments);
    code_arrange(c, from, order, n);
    size_t at = emit(c, OP_FILTER, n, t->number);
    if (!c->status)
        code_at(c, at)->id = number;
}

void apply_filter(struct compiler *c)
{
    struct argument list[ARGUMENTS_MAX];
    size_t n = 0, from = code_count(c);
    const struct token *name = want_name(c);
    const struct filter_entry *f = c->status ? NULL : filter_named(c, name->text, name->length);
    if (!f)
        return;
    if (take_operator(c, "("))
        n = arguments(c, list);
    if (c->status)
        return;
    if (f->number == FILTER_MAP)
        map_filter(c, from, list, n);
    else if (*f->parameters == '*')
        select_filter(c, f->number, from, list, n);
    else {
        size_t count = bind(c, f, from, list, n), at = emit(c, OP_FILTER, count, 0);
        if (!c->status)
            code_at(c, at)->id = f->number;
    }
}

void filters(struct compiler *c)
{
    while (!c->status && take_operator(c, "|"))
        apply_filter(c);
}

/* ---- tests ---- */

/* Where a test without parentheses has an argument behind it. */
static bool at_test_argument(const struct compiler *c)
{
    if (c->at->kind == TOKEN_NAME)
        return !at_name(c, "else") && !at_name(c, "or") && !at_name(c, "and") && !at_name(c, "is");
    return c->at->kind == TOKEN_STRING || c->at->kind == TOKEN_INTEGER ||
           c->at->kind == TOKEN_FLOAT || at_operator(c, "[") || at_operator(c, "{");
}

void apply_test(struct compiler *c)
{
    struct argument list[ARGUMENTS_MAX];
    bool negated = take_name(c, "not");
    size_t n = 0;
    const struct token *t = want_name(c);
    const struct test_entry *entry = c->status ? NULL : test_named(c, t->text, t->length);
    if (!entry)
        return;
    if (take_operator(c, "("))
        n = arguments(c, list);
    else if (at_test_argument(c) && !at_name(c, "if")) {
        expression_operand(c);
        list[n++].keyword = NULL;
    } else if (at_name(c, "is"))
        compile_fail(c, "tests cannot be chained with is");
    for (size_t i = 0; i < n; i++)
        if (list[i].keyword)
            compile_fail(c, "arguments of tests by name are not supported");
    if (n != entry->arguments)
        compile_fail(c, "test '%s' takes %d arguments", entry->name, entry->arguments);
    size_t at = emit(c, OP_TEST, n, 0);
    if (c->status)
        return;
    code_at(c, at)->id = entry->number;
    if (negated)
        emit(c, OP_NOT, 0, 0);
}
