/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "template_code.h"

enum { DEPTH_MAX = 150 };

/* ---------------------------------------------------------------------------------------- words */

static void stop(struct compiler *c, enum stele_status status)
{
    c->status = status;
    c->at = c->tokens.tokens + c->tokens.count - 1;
}

void compile_fail(struct compiler *c, const char *format, ...)
{
    char text[512];
    va_list args;
    if (c->status)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    stop(c,
         stele_fail(c->err, STELE_INPUT, "%s: line %" PRIu32 ": %s", c->name, c->at->line, text));
}

static bool at_text(const struct compiler *c, enum token_kind kind, const char *text)
{
    return c->at->kind == kind && c->at->length == strlen(text) &&
           !memcmp(c->at->text, text, c->at->length);
}

bool at_operator(const struct compiler *c, const char *text)
{
    return at_text(c, TOKEN_OPERATOR, text);
}

bool at_name(const struct compiler *c, const char *text)
{
    return at_text(c, TOKEN_NAME, text);
}

bool take_operator(struct compiler *c, const char *text)
{
    bool is = at_operator(c, text);
    c->at += is;
    return is;
}

bool take_name(struct compiler *c, const char *text)
{
    bool is = at_name(c, text);
    c->at += is;
    return is;
}

void want_operator(struct compiler *c, const char *text)
{
    char shown[64];
    if (!take_operator(c, text))
        compile_fail(c, "found %s, expected '%s'", token_show(c->at, shown), text);
}

const struct token *want_name(struct compiler *c)
{
    char shown[64];
    const struct token *t = c->at;
    if (t->kind == TOKEN_NAME)
        c->at++;
    else
        compile_fail(c, "found %s, expected a name", token_show(t, shown));
    return t;
}

const char *token_show(const struct token *t, char text[64])
{
    static const char *const names[] = {
        [TOKEN_END] = "the end of the template",
        [TOKEN_DATA] = "text",
        [TOKEN_PRINT] = "'{{'",
        [TOKEN_PRINT_END] = "'}}'",
        [TOKEN_BLOCK] = "'{%'",
        [TOKEN_BLOCK_END] = "'%}'",
    };
    if (t->kind < TOKEN_NAME)
        return names[t->kind];
    snprintf(text, 64, "'%.*s'%s", t->length > 40 ? 40 : (int)t->length, t->text,
             t->length > 40 ? "..." : "");
    return text;
}

bool compile_enter(struct compiler *c)
{
    if (c->depth == DEPTH_MAX)
        compile_fail(c, "more than %d expressions or blocks inside one another", DEPTH_MAX);
    c->depth++;
    return !c->status;
}

void compile_leave(struct compiler *c)
{
    c->depth--;
}

/* --------------------------------------------------------------------------------------- tables */

static const size_t record_bytes[TEMPLATE_TABLES] = {
    [TABLE_CODE] = sizeof(struct template_op),
    [TABLE_CONSTANTS] = sizeof(struct template_constant),
    [TABLE_NAMES] = 4,
    [TABLE_MACROS] = sizeof(struct template_macro),
    [TABLE_PARAMETERS] = 4,
    [TABLE_KEYWORDS] = 4,
    [TABLE_STRINGS] = sizeof(struct template_string),
    [TABLE_BYTES] = 1,
    [TABLE_WORDS] = 1,
};

/* Appends `count` records; the index of the first, 0 after an error. */
static uint32_t append(struct compiler *c, enum template_table table, const void *records,
                       size_t count)
{
    struct grown *g = &c->tables[table];
    size_t size = record_bytes[table];
    if (c->status)
        return 0;
    if (g->count + count > TEMPLATE_BYTES_MAX / size / 4) {
        compile_fail(c, "the template is too long");
        return 0;
    }
    if (g->count + count > g->capacity) {
        size_t capacity = g->capacity * 2 + count + 64;
        void *data = realloc(g->data, capacity * size);
        if (!data) {
            stop(c, stele_fail(c->err, STELE_SYSTEM, "no memory for %zu bytes", capacity * size));
            return 0;
        }
        g->data = data;
        g->capacity = capacity;
    }
    if (count)
        memcpy((char *)g->data + g->count * size, records, count * size);
    g->count += count;
    return (uint32_t)(g->count - count);
}

uint32_t table_append(struct compiler *c, enum template_table table, const void *record)
{
    return append(c, table, record, 1);
}

uint32_t string_of(struct compiler *c, const char *text, size_t length)
{
    const struct template_string *strings = c->tables[TABLE_STRINGS].data;
    for (size_t i = 0; i < c->tables[TABLE_STRINGS].count; i++)
        if (strings[i].length == length &&
            (!length ||
             !memcmp((char *)c->tables[TABLE_BYTES].data + strings[i].offset, text, length)))
            return (uint32_t)i;
    struct template_string s = {append(c, TABLE_BYTES, text, length), (uint32_t)length};
    return append(c, TABLE_STRINGS, &s, 1);
}

uint32_t name_of(struct compiler *c, const char *text, size_t length)
{
    uint32_t string = string_of(c, text, length);
    const uint32_t *names = c->tables[TABLE_NAMES].data;
    for (size_t i = 0; i < c->tables[TABLE_NAMES].count; i++)
        if ((names[i] & ~NAME_HIDDEN) == string)
            return (uint32_t)i;
    if (c->tables[TABLE_NAMES].count == UINT16_MAX)
        compile_fail(c, "more than %d names", UINT16_MAX);
    return append(c, TABLE_NAMES, &string, 1);
}

void name_read(struct compiler *c, uint32_t name)
{
    if (!c->scope_count && !c->status)
        c->seen[name] = 1;
}

void name_set(struct compiler *c, uint32_t name)
{
    if (!c->scope_count && !c->branches && !c->status && !c->seen[name])
        ((uint32_t *)c->tables[TABLE_NAMES].data)[name] |= NAME_HIDDEN;
    name_read(c, name);
}

uint32_t constant_of(struct compiler *c, struct template_constant k)
{
    const struct template_constant *all = c->tables[TABLE_CONSTANTS].data;
    for (size_t i = 0; i < c->tables[TABLE_CONSTANTS].count; i++)
        if (all[i].kind == k.kind && all[i].string == k.string && all[i].bits == k.bits)
            return (uint32_t)i;
    return append(c, TABLE_CONSTANTS, &k, 1);
}

/* ----------------------------------------------------------------------------------------- code */

size_t code_count(const struct compiler *c)
{
    return c->tables[TABLE_CODE].count;
}

struct template_op *code_at(struct compiler *c, size_t index)
{
    return (struct template_op *)c->tables[TABLE_CODE].data + index;
}

size_t emit(struct compiler *c, enum template_opcode op, size_t count, uint32_t operand)
{
    if (count > UINT16_MAX)
        compile_fail(c, "a list of %zu items", count);
    struct template_op o = {.op = (uint8_t)op,
                            .count = (uint16_t)count,
                            .operand = operand,
                            .line = c->at->line < UINT16_MAX ? (uint16_t)c->at->line : UINT16_MAX};
    return append(c, TABLE_CODE, &o, 1);
}

void jump_to(struct compiler *c, size_t index, size_t target)
{
    if (!c->status)
        code_at(c, index)->operand = (uint32_t)((int64_t)target - (int64_t)index - 1);
}

void jump_here(struct compiler *c, size_t index)
{
    jump_to(c, index, code_count(c));
}

void code_arrange(struct compiler *c, size_t from, const struct stretch *stretches, size_t count)
{
    if (c->status)
        return;
    size_t total = code_count(c) - from;
    struct template_op *copy = malloc((total + 1) * sizeof *copy);
    if (!copy) {
        stop(c, stele_fail(c->err, STELE_SYSTEM, "no memory for %zu instructions", total));
        return;
    }
    if (total)
        memcpy(copy, code_at(c, from), total * sizeof *copy);
    c->tables[TABLE_CODE].count = from;
    for (size_t i = 0; i < count; i++) {
        struct stretch s = stretches[i];
        if (s.begin == s.end)
            emit(c, OP_CONSTANT, 0,
                 constant_of(c, (struct template_constant){.kind = CONSTANT_ABSENT}));
        else
            append(c, TABLE_CODE, copy + (s.begin - from), s.end - s.begin);
    }
    free(copy);
}

void code_swap(struct compiler *c, size_t from, size_t middle)
{
    struct stretch s[2] = {{middle, code_count(c)}, {from, middle}};
    code_arrange(c, from, s, 2);
}

bool code_is_text(const struct compiler *c, size_t from, uint32_t *string, const char **text,
                  size_t *length)
{
    const struct template_op *op = (const struct template_op *)c->tables[TABLE_CODE].data + from;
    if (c->status || code_count(c) != from + 1 || op->op != OP_CONSTANT)
        return false;
    const struct template_constant *k =
        (const struct template_constant *)c->tables[TABLE_CONSTANTS].data + op->operand;
    if (k->kind != CONSTANT_TEXT)
        return false;
    const struct template_string *s =
        (const struct template_string *)c->tables[TABLE_STRINGS].data + k->string;
    *string = k->string;
    *text = (const char *)c->tables[TABLE_BYTES].data + s->offset;
    *length = s->length;
    return true;
}
