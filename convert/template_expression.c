/* SPDX-License-Identifier: Apache-2.0 */
/* Expressions of a template, by recursive descent, as Jinja's parser has them. Priority, loosest
 * first: if else; or; and; not; comparisons; + -; ~; * / // %; ** (from the left); filters and
 * tests; signs; attributes, items, calls. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "template_code.h"
#include "utf8.h"

enum { ARGUMENTS_MAX = 64, TEXT_MAX = 1 << 20 };

/* -------------------------------------------------------------------------- filters, tests, names
 */

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

#define COUNT(a) (sizeof(a) / sizeof *(a))

static bool same(const char *name, const char *text, size_t length)
{
    return length && strlen(name) == length && !memcmp(name, text, length);
}

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

/* ------------------------------------------------------------------------------------- arguments
 */

struct argument {
    struct stretch code;
    const struct token *keyword; /* NULL: by position */
};

/* What stands in ( ), its "(" taken; returns how many. Code of all, in the order of the text. */
static size_t arguments(struct compiler *c, struct argument list[ARGUMENTS_MAX])
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

static void filter(struct compiler *c)
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
        filter(c);
}

/* ---------------------------------------------------------------------------------------- literals
 */

static int hex_digits(const char *s, size_t room, int n, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < n; i++) {
        if ((size_t)i >= room)
            return 0;
        char d = s[i] | 0x20;
        if (!((d >= '0' && d <= '9' && s[i] == d) || (d >= 'a' && d <= 'f')))
            return 0;
        *out = *out << 4 | (uint32_t)(d <= '9' ? d - '0' : d - 'a' + 10);
    }
    return n;
}

/* One escape at s[0] = '\\' into `out`; returns how many bytes of s it took, *put those of out. */
static size_t escape(struct compiler *c, const char *s, size_t room, char *out, size_t *put)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    char e = room > 1 ? s[1] : 0;
    const char *simple = e ? strchr(from, e) : NULL;
    uint32_t value = 0;
    size_t taken = 2;
    *put = 0;
    if (e == '\n')
        return 2;
    if (simple) {
        out[(*put)++] = to[simple - from];
        return 2;
    }
    if (e == 'x' || e == 'u' || e == 'U') {
        int digits = e == 'x' ? 2 : e == 'u' ? 4 : 8;
        if (!hex_digits(s + 2, room - 2, digits, &value) || value > 0x10ffff ||
            (value >= 0xd800 && value < 0xe000))
            compile_fail(c, "the escape \\%c in a string lacks digits or is no character", e);
        taken += (size_t)digits;
    } else if (e >= '0' && e <= '7') {
        for (taken = 1; taken < 4 && taken < room && s[taken] >= '0' && s[taken] <= '7'; taken++)
            value = value << 3 | (uint32_t)(s[taken] - '0');
    } else if (e == 'N') {
        compile_fail(c, "the escape \\N in a string is not supported");
        return 2;
    } else if ((unsigned char)e >=
               0x80) { /* Python sees \xe9 where \ stands before e with accent */
        size_t at = 1;
        value = utf8_next(s, room, &at);
        *put = (size_t)snprintf(out, 16,
                                value < 0x100     ? "\\x%02" PRIx32
                                : value < 0x10000 ? "\\u%04" PRIx32
                                                  : "\\U%08" PRIx32,
                                value);
        return at;
    } else { /* an unknown one keeps its backslash */
        out[(*put)++] = '\\';
        return 1;
    }
    *put = utf8_put(out, value);
    return taken;
}

/* Strings that stand side by side, joined. */
static void string_literal(struct compiler *c)
{
    size_t room = 1, n = 0;
    for (const struct token *t = c->at; t->kind == TOKEN_STRING; t++)
        room += t->length * 4;
    char *text = malloc(room + 16);
    if (!text) {
        compile_fail(c, "no memory for a string of %zu bytes", room);
        return;
    }
    for (; c->at->kind == TOKEN_STRING; c->at++) {
        const char *s = c->at->text + 1;
        size_t length = c->at->length - 2;
        for (size_t i = 0; i < length && !c->status;) {
            size_t put = 1;
            if (s[i] == '\\')
                i += escape(c, s + i, length - i, text + n, &put);
            else
                text[n] = s[i++];
            n += put;
        }
        if (c->status)
            break;
    }
    struct template_constant k = {.kind = CONSTANT_TEXT, .string = string_of(c, text, n)};
    emit(c, OP_CONSTANT, 0, constant_of(c, k));
    free(text);
}

static void number_literal(struct compiler *c)
{
    char digits[400];
    size_t n = 0;
    struct template_constant k = {.kind = CONSTANT_INT};
    for (size_t i = 0; i < c->at->length; i++)
        if (c->at->text[i] != '_' && n < sizeof digits - 1)
            digits[n++] = c->at->text[i];
    digits[n] = '\0';
    if (n == sizeof digits - 1) {
        compile_fail(c, "a number of more than %zu digits", n);
        return;
    }
    int base = n > 1 && *digits == '0' ? digits[1] | 0x20 : 0;
    base = base == 'x' ? 16 : base == 'o' ? 8 : base == 'b' ? 2 : 10;
    if (c->at->kind == TOKEN_FLOAT) {
        double value = strtod(digits, NULL);
        k.kind = CONSTANT_FLOAT;
        memcpy(&k.bits, &value, 8);
    } else {
        char *end;
        errno = 0;
        long long value = strtoll(base == 10 ? digits : digits + 2, &end, base);
        k.bits = (uint64_t)value;
        if (errno && base != 10)
            compile_fail(c, "the number %s is not supported", digits);
        else if (errno)
            k = (struct template_constant){.kind = CONSTANT_BIG, .string = string_of(c, digits, n)};
    }
    c->at++;
    emit(c, OP_CONSTANT, 0, constant_of(c, k));
}

static void list_literal(struct compiler *c)
{
    size_t n = 0;
    while (!c->status && !take_operator(c, "]")) {
        if (n)
            want_operator(c, ",");
        if (n && take_operator(c, "]"))
            break;
        expression(c);
        n++;
    }
    emit(c, OP_LIST, n, 0);
}

static void dict_literal(struct compiler *c)
{
    size_t n = 0;
    while (!c->status && !take_operator(c, "}")) {
        if (n)
            want_operator(c, ",");
        if (n && take_operator(c, "}"))
            break;
        expression(c);
        want_operator(c, ":");
        expression(c);
        n++;
    }
    emit(c, OP_DICT, n, 0);
}

static void plain_constant(struct compiler *c, uint32_t kind)
{
    emit(c, OP_CONSTANT, 0, constant_of(c, (struct template_constant){.kind = kind}));
}

static void name(struct compiler *c)
{
    static const struct {
        const char *name;
        uint32_t flag;
    } special[] = {{"varargs", MACRO_VARARGS}, {"kwargs", MACRO_KWARGS}, {"caller", MACRO_CALLER}};
    if (take_name(c, "true") || take_name(c, "True"))
        plain_constant(c, CONSTANT_TRUE);
    else if (take_name(c, "false") || take_name(c, "False"))
        plain_constant(c, CONSTANT_FALSE);
    else if (take_name(c, "none") || take_name(c, "None"))
        plain_constant(c, CONSTANT_NONE);
    else {
        for (size_t i = 0; i < COUNT(special); i++)
            c->macro_flags |= at_name(c, special[i].name) ? special[i].flag : 0;
        uint32_t index = name_of(c, c->at->text, c->at->length);
        name_read(c, index);
        emit(c, OP_LOAD, 0, index);
        c->at++;
    }
}

/* After "(": a value, a tuple, or (). */
static void parentheses(struct compiler *c)
{
    size_t n = 0;
    bool comma = false;
    while (!c->status && !at_operator(c, ")")) {
        expression(c);
        n++;
        if (!(comma = take_operator(c, ",")))
            break;
    }
    want_operator(c, ")");
    if (n != 1 || comma)
        emit(c, OP_TUPLE, n, 0);
}

static void primary(struct compiler *c)
{
    char shown[64];
    if (c->at->kind == TOKEN_NAME)
        name(c);
    else if (c->at->kind == TOKEN_STRING)
        string_literal(c);
    else if (c->at->kind == TOKEN_INTEGER || c->at->kind == TOKEN_FLOAT)
        number_literal(c);
    else if (take_operator(c, "("))
        parentheses(c);
    else if (take_operator(c, "["))
        list_literal(c);
    else if (take_operator(c, "{"))
        dict_literal(c);
    else
        compile_fail(c, "found %s, expected an expression", token_show(c->at, shown));
}

/* ------------------------------------------------------------------------- attributes, items,
 * calls */

/* After "[": an item or a slice. */
static void subscript(struct compiler *c)
{
    bool colon = take_operator(c, ":");
    if (colon)
        plain_constant(c, CONSTANT_NONE);
    else {
        expression(c);
        colon = take_operator(c, ":");
    }
    if (!colon) {
        if (at_operator(c, ","))
            compile_fail(c, "an index of several values is not supported");
        want_operator(c, "]");
        emit(c, OP_ITEM, 0, 0);
        return;
    }
    if (at_operator(c, ":") || at_operator(c, "]"))
        plain_constant(c, CONSTANT_NONE);
    else
        expression(c);
    if (take_operator(c, ":") && !at_operator(c, "]"))
        expression(c);
    else
        plain_constant(c, CONSTANT_NONE);
    want_operator(c, "]");
    emit(c, OP_SLICE, 0, 0);
}

static void attribute(struct compiler *c)
{
    if (c->at->kind == TOKEN_INTEGER) {
        number_literal(c);
        emit(c, OP_ITEM, 0, 0);
        return;
    }
    const struct token *t = want_name(c);
    emit(c, OP_FIELD, 0, string_of(c, t->text, t->length));
}

/* Methods that Python has and the runtime has not: refused here, by name. */
static const char *const missing_methods[] = {
    "casefold",   "center",      "encode",    "expandtabs", "format",
    "format_map", "isascii",     "isdecimal", "istitle",    "isidentifier",
    "isnumeric",  "isprintable", "ljust",     "maketrans",  "rjust",
    "rpartition", "swapcase",    "translate", "zfill",      "fromkeys",
};

/* Refuses a call that the runtime cannot do; `op` makes what is called. */
static void check_callee(struct compiler *c, const struct template_op *op, bool keywords)
{
    static const char *const functions[] = {"lipsum", "cycler", "joiner"};
    static const char *const positional[] = {"split", "rsplit", "splitlines"};
    const struct template_string *strings = c->tables[TABLE_STRINGS].data;
    const uint32_t *names = c->tables[TABLE_NAMES].data;
    if (op->op != OP_FIELD && op->op != OP_LOAD)
        return;
    const struct template_string *s =
        &strings[op->op == OP_FIELD ? op->operand : names[op->operand] & ~NAME_HIDDEN];
    const char *text = (char *)c->tables[TABLE_BYTES].data + s->offset;
    bool field = op->op == OP_FIELD;
    for (size_t i = 0; !field && i < COUNT(functions); i++)
        if (same(functions[i], text, s->length))
            compile_fail(c, "function '%s' is not supported", functions[i]);
    for (size_t i = 0; field && i < COUNT(missing_methods); i++)
        if (same(missing_methods[i], text, s->length))
            compile_fail(c, "method '%s' is not supported", missing_methods[i]);
    for (size_t i = 0; field && keywords && i < COUNT(positional); i++)
        if (same(positional[i], text, s->length))
            compile_fail(c, "method '%s' with named arguments is not supported", positional[i]);
}

/* After "(". */
static void call(struct compiler *c)
{
    struct argument list[ARGUMENTS_MAX];
    uint32_t names[ARGUMENTS_MAX], first = 0;
    size_t callee = code_count(c) - 1, n = arguments(c, list), keywords = 0;
    for (size_t i = 0; i < n && !c->status; i++)
        if (list[i].keyword)
            names[keywords++] = string_of(c, list[i].keyword->text, list[i].keyword->length);
    for (size_t i = 0; i < keywords; i++) {
        uint32_t at = table_append(c, TABLE_KEYWORDS, &names[i]);
        first = i ? first : at;
        for (size_t j = 0; j < i; j++)
            if (names[i] == names[j])
                compile_fail(c, "an argument is named twice");
    }
    if (!c->status)
        check_callee(c, code_at(c, callee), keywords > 0);
    size_t at = emit(c, OP_CALL, n - keywords, first);
    if (!c->status)
        code_at(c, at)->keywords = (uint8_t)keywords;
}

static void postfix(struct compiler *c)
{
    while (!c->status) {
        if (take_operator(c, "."))
            attribute(c);
        else if (take_operator(c, "["))
            subscript(c);
        else if (take_operator(c, "("))
            call(c);
        else
            break;
    }
}

/* ------------------------------------------------------------------------------------------- tests
 */

/* Where a test without parentheses has an argument behind it. */
static bool at_test_argument(const struct compiler *c)
{
    if (c->at->kind == TOKEN_NAME)
        return !at_name(c, "else") && !at_name(c, "or") && !at_name(c, "and") && !at_name(c, "is");
    return c->at->kind == TOKEN_STRING || c->at->kind == TOKEN_INTEGER ||
           c->at->kind == TOKEN_FLOAT || at_operator(c, "[") || at_operator(c, "{");
}

/* After "is". */
static void test(struct compiler *c)
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
        primary(c);
        postfix(c);
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

static void filters_and_tests(struct compiler *c)
{
    while (!c->status) {
        if (take_operator(c, "|"))
            filter(c);
        else if (take_name(c, "is"))
            test(c);
        else if (take_operator(c, "("))
            call(c);
        else
            break;
    }
}

/* --------------------------------------------------------------------------------------- operators
 */

static void unary(struct compiler *c, bool with_filters)
{
    if (!compile_enter(c))
        return;
    if (take_operator(c, "-")) {
        unary(c, false);
        emit(c, OP_NEGATE, 0, 0);
    } else if (take_operator(c, "+")) {
        unary(c, false);
        emit(c, OP_PLUS, 0, 0);
    } else
        primary(c);
    postfix(c);
    if (with_filters)
        filters_and_tests(c);
    compile_leave(c);
}

static void binary(struct compiler *c, enum template_operator operator)
{
    size_t at = emit(c, OP_BINARY, 0, 0);
    if (!c->status)
        code_at(c, at)->id = (uint16_t) operator;
}

static void power(struct compiler *c)
{
    unary(c, true);
    while (!c->status && take_operator(c, "**")) {
        unary(c, true);
        binary(c, OPERATOR_POW);
    }
}

static void product(struct compiler *c)
{
    static const struct {
        const char *text;
        enum template_operator operator;
    } all[] = {
        {"*", OPERATOR_MUL}, {"/", OPERATOR_DIV}, {"//", OPERATOR_FLOORDIV}, {"%", OPERATOR_MOD}};
    power(c);
    for (size_t i = 0; i < COUNT(all) && !c->status;)
        if (take_operator(c, all[i].text)) {
            power(c);
            binary(c, all[i].operator);
            i = 0;
        } else
            i++;
}

static void concatenation(struct compiler *c)
{
    size_t n = 1;
    product(c);
    while (!c->status && take_operator(c, "~")) {
        product(c);
        n++;
    }
    if (n > 1)
        emit(c, OP_CONCAT, n, 0);
}

static void sum(struct compiler *c)
{
    concatenation(c);
    while (!c->status) {
        bool plus = at_operator(c, "+");
        if (!plus && !at_operator(c, "-"))
            break;
        c->at++;
        concatenation(c);
        binary(c, plus ? OPERATOR_ADD : OPERATOR_SUB);
    }
}

/* The comparison that is next, taken; 0 where there is none. */
static enum template_operator take_comparison(struct compiler *c)
{
    static const struct {
        const char *text;
        enum template_operator operator;
    } all[] = {{"==", OPERATOR_EQ}, {"!=", OPERATOR_NE}, {"<", OPERATOR_LT},
               {"<=", OPERATOR_LE}, {">", OPERATOR_GT},  {">=", OPERATOR_GE}};
    for (size_t i = 0; i < COUNT(all); i++)
        if (take_operator(c, all[i].text))
            return all[i].operator;
    if (take_name(c, "in"))
        return OPERATOR_IN;
    if (at_name(c, "not") && c->at[1].kind == TOKEN_NAME &&
        same("in", c->at[1].text, c->at[1].length)) {
        c->at += 2;
        return OPERATOR_NOT_IN;
    }
    return 0;
}

/* a < b < c: b is kept for the second comparison, which is made only where the first holds. */
static void comparison(struct compiler *c)
{
    enum { CHAIN_MAX = 32 };
    size_t exits[CHAIN_MAX], n = 0;
    sum(c);
    enum template_operator operator= take_comparison(c), next;
    while (operator&& !c->status) {
        sum(c);
        next = take_comparison(c);
        if (!next) {
            binary(c, operator);
            break;
        }
        if (n == CHAIN_MAX) {
            compile_fail(c, "more than %d comparisons in a chain", CHAIN_MAX);
            break;
        }
        emit(c, OP_DUP, 0, 0);
        emit(c, OP_ROT, 3, 0);
        binary(c, operator);
        exits[n++] = emit(c, OP_AND, 0, 0);
        operator= next;
    }
    if (!n || c->status)
        return;
    size_t over = emit(c, OP_JUMP, 0, 0);
    for (size_t i = 0; i < n; i++)
        jump_here(c, exits[i]);
    emit(c, OP_ROT, 2, 0);
    emit(c, OP_POP, 0, 0);
    jump_here(c, over);
}

static void negation(struct compiler *c)
{
    size_t n = 0;
    while (take_name(c, "not"))
        n++;
    comparison(c);
    for (n = n > 2 ? 2 + n % 2 : n; n; n--) /* not not not x is not x */
        emit(c, OP_NOT, 0, 0);
}

static void conjunction(struct compiler *c)
{
    negation(c);
    while (!c->status && take_name(c, "and")) {
        size_t exit = emit(c, OP_AND, 0, 0);
        negation(c);
        jump_here(c, exit);
    }
}

void expression_or(struct compiler *c)
{
    conjunction(c);
    while (!c->status && take_name(c, "or")) {
        size_t exit = emit(c, OP_OR, 0, 0);
        conjunction(c);
        jump_here(c, exit);
    }
}

/* x if y else z: the code of y goes before that of x. */
void expression(struct compiler *c)
{
    size_t begin = code_count(c);
    if (!compile_enter(c))
        return;
    expression_or(c);
    while (!c->status && take_name(c, "if")) {
        size_t value = code_count(c);
        expression_or(c);
        size_t skip = emit(c, OP_JUMP_IF_NOT, 0, 0);
        code_swap(c, begin, value);
        skip = skip - value + begin;
        size_t over = emit(c, OP_JUMP, 0, 0);
        jump_here(c, skip);
        if (take_name(c, "else"))
            expression(c);
        else
            plain_constant(c, CONSTANT_NOTHING);
        jump_here(c, over);
    }
    compile_leave(c);
}

static bool at_tuple_end(const struct compiler *c)
{
    return c->at->kind == TOKEN_PRINT_END || c->at->kind == TOKEN_BLOCK_END ||
           c->at->kind == TOKEN_END || at_operator(c, ")");
}

static void tuple(struct compiler *c, void (*item)(struct compiler *))
{
    size_t n = 0;
    bool comma = false;
    do {
        item(c);
        n++;
        comma = take_operator(c, ",");
    } while (comma && !c->status && !at_tuple_end(c));
    if (n > 1 || comma)
        emit(c, OP_TUPLE, n, 0);
}

void expression_tuple(struct compiler *c)
{
    tuple(c, expression);
}

void expression_tuple_or(struct compiler *c)
{
    tuple(c, expression_or);
}

void expression_call(struct compiler *c)
{
    unary(c, false);
}
