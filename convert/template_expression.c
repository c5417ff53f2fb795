/* SPDX-License-Identifier: Apache-2.0 */
/* Expressions of a template, by recursive descent, as Jinja's parser has them. Priority, loosest
 * first: if else; or; and; not; comparisons; + -; ~; * / // %; ** (from the left); filters and
 * tests; signs; attributes, items, calls. */
#include "template_code.h"

/* ---- lists, names ---- */

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

void expression_operand(struct compiler *c)
{
    primary(c);
    postfix(c);
}

static void filters_and_tests(struct compiler *c)
{
    while (!c->status) {
        if (take_operator(c, "|"))
            apply_filter(c);
        else if (take_name(c, "is"))
            apply_test(c);
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
