/* SPDX-License-Identifier: Apache-2.0 */
/* Statements of a template, and the program's layout. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "template_code.h"
#include "template_compile.h"

enum { SOURCE_MAX = 1 << 18, TARGETS_MAX = 64, PARAMETERS_MAX = 64 };

/* ------------------------------------------------------------------------------------------ scopes
 */

static struct scope *open_scope(struct compiler *c, enum scope_kind kind)
{
    if (c->scope_count == SCOPES_MAX)
        compile_fail(c, "more than %d blocks inside one another", SCOPES_MAX);
    if (c->status) {
        c->no_scope = (struct scope){.kind = kind};
        return &c->no_scope;
    }
    c->scopes[c->scope_count] = (struct scope){.kind = kind};
    return &c->scopes[c->scope_count++];
}

static void close_scope(struct compiler *c)
{
    if (c->scope_count) {
        free(c->scopes[--c->scope_count].breaks.data);
        c->scopes[c->scope_count] = (struct scope){0};
    }
}

/* Keeps a jump whose target is not known yet. */
static void note_jump(struct compiler *c, struct grown *g, size_t jump)
{
    if (g->count == g->capacity) {
        size_t capacity = g->capacity * 2 + 8;
        size_t *data = realloc(g->data, capacity * sizeof *data);
        if (!data) {
            compile_fail(c, "no memory for %zu jumps", capacity);
            return;
        }
        g->data = data;
        g->capacity = capacity;
    }
    ((size_t *)g->data)[g->count++] = jump;
}

/* break or continue: leaves what is open inside the innermost loop, and jumps. */
static void leave_loop(struct compiler *c, bool again)
{
    int i = c->scope_count - 1;
    while (i >= 0 && (c->scopes[i].kind == SCOPE_FRAME || c->scopes[i].kind == SCOPE_CAPTURE))
        i--;
    if (i < 0 || c->scopes[i].kind != SCOPE_LOOP) {
        compile_fail(c, "'%s' stands in no loop", again ? "continue" : "break");
        return;
    }
    for (int inner = c->scope_count - 1; inner > i; inner--) {
        bool frame = c->scopes[inner].kind == SCOPE_FRAME;
        emit(c, frame ? OP_FRAME_END : OP_CAPTURE_END, 0, 0);
        if (!frame)
            emit(c, OP_POP, 0, 0);
    }
    size_t jump = emit(c, OP_JUMP, 0, 0);
    if (again)
        jump_to(c, jump, c->scopes[i].next);
    else
        note_jump(c, &c->scopes[i].breaks, jump);
}

/* ----------------------------------------------------------------------------------------- targets
 */

/* What takes a value apart into names: instructions that are emitted behind the value's. */
struct target {
    struct template_op ops[TARGETS_MAX];
    size_t count;
};

static void target_add(struct compiler *c, struct target *t, struct template_op op)
{
    if (t->count == TARGETS_MAX)
        compile_fail(c, "more than %d names to assign to", TARGETS_MAX);
    else
        t->ops[t->count++] = op;
}

static void target_name(struct compiler *c, struct target *t, bool fields)
{
    static const char *const reserved[] = {"true",  "false", "none", "True",
                                           "False", "None",  "loop"};
    const struct token *name = want_name(c);
    for (size_t i = 0; i < 7; i++)
        if (name->length == strlen(reserved[i]) && !memcmp(name->text, reserved[i], name->length))
            compile_fail(c, "'%s' cannot be assigned to", reserved[i]);
    uint32_t index = c->status ? 0 : name_of(c, name->text, name->length);
    struct template_op op = {.op = OP_STORE, .operand = index};
    if (fields && take_operator(c, ".")) {
        const struct token *field = want_name(c);
        op.op = OP_STORE_FIELD;
        op.count = (uint16_t)index;
        op.operand = c->status ? 0 : string_of(c, field->text, field->length);
    }
    target_add(c, t, op);
}

/* a, or a, (b, c): each UNPACK is followed by its parts. */
static void target_list(struct compiler *c, struct target *t, bool fields)
{
    size_t n = 0, at = t->count;
    bool comma = false;
    if (!compile_enter(c))
        return;
    target_add(c, t, (struct template_op){.op = OP_UNPACK});
    do {
        if (take_operator(c, "(")) {
            target_list(c, t, fields);
            want_operator(c, ")");
        } else
            target_name(c, t, fields);
        n++;
        comma = take_operator(c, ",");
    } while (comma && !c->status && (c->at->kind == TOKEN_NAME || at_operator(c, "(")) &&
             !at_name(c, "in"));
    compile_leave(c);
    if (c->status)
        return;
    if (n == 1 && !comma)
        memmove(&t->ops[at], &t->ops[at + 1], (--t->count - at) * sizeof *t->ops);
    else
        t->ops[at].count = (uint16_t)n;
}

static void note_target(struct compiler *c, const struct target *t)
{
    for (size_t i = 0; i < t->count && !c->status; i++)
        if (t->ops[i].op == OP_STORE)
            name_set(c, t->ops[i].operand);
        else if (t->ops[i].op == OP_STORE_FIELD)
            name_read(c, t->ops[i].count);
}

static void emit_target(struct compiler *c, const struct target *t)
{
    for (size_t i = 0; i < t->count && !c->status; i++)
        emit(c, t->ops[i].op, t->ops[i].count, t->ops[i].operand);
}

/* -------------------------------------------------------------------------------------- statements
 */

static int body(struct compiler *c, const char *const *ends);

static void end_block(struct compiler *c)
{
    char shown[64];
    if (c->at->kind == TOKEN_BLOCK_END)
        c->at++;
    else
        compile_fail(c, "found %s, expected '%%}'", token_show(c->at, shown));
}

/* A body that ends with {% name %}, which is taken as far as its name. */
static void body_until(struct compiler *c, const char *name)
{
    const char *const ends[] = {name, NULL};
    end_block(c);
    body(c, ends);
}

static void if_statement(struct compiler *c)
{
    static const char *const any[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif",
                                                                                       NULL};
    struct grown exits = {0};
    int end = 0;
    while (!c->status && end == 0) {
        expression_tuple_or(c); /* Jinja reads a tuple without `if` there */
        size_t skip = emit(c, OP_JUMP_IF_NOT, 0, 0);
        end_block(c);
        c->branches++;
        end = body(c, any);
        c->branches--;
        if (end == 2 || c->status) {
            jump_here(c, skip);
            break;
        }
        note_jump(c, &exits, emit(c, OP_JUMP, 0, 0));
        jump_here(c, skip);
    }
    if (!c->status && end == 1) {
        end_block(c);
        c->branches++;
        body(c, last);
        c->branches--;
    }
    for (size_t i = 0; i < exits.count; i++)
        jump_here(c, ((size_t *)exits.data)[i]);
    free(exits.data);
}

/* The values that a loop's `if` lets through take the place of those on the stack. */
static void loop_filter(struct compiler *c, const struct target *target)
{
    open_scope(c, SCOPE_FRAME);
    emit(c, OP_LOOP, 1, 0); /* its frame has no `loop` */
    size_t next = emit(c, OP_NEXT, 0, 0);
    emit(c, OP_DUP, 0, 0);
    emit_target(c, target);
    expression(c);
    emit(c, OP_KEEP, 0, 0);
    jump_to(c, emit(c, OP_JUMP, 0, 0), next);
    jump_here(c, next);
    emit(c, OP_KEPT, 0, 0);
    close_scope(c);
}

/* Whether the rest of a loop, from its `if` to its endfor, speaks of `loop`. */
static bool speaks_of_loop(const struct compiler *c)
{
    int inside = 0;
    for (const struct token *t = c->at; t->kind != TOKEN_END && inside >= 0; t++) {
        bool tag = t > c->tokens.tokens && t[-1].kind == TOKEN_BLOCK;
        if (t->kind != TOKEN_NAME)
            continue;
        if (t->length == 4 && !memcmp(t->text, "loop", 4) && *t[-1].text != '.')
            return true;
        inside += tag && t->length == 3 && !memcmp(t->text, "for", 3);
        inside -= tag && t->length == 6 && !memcmp(t->text, "endfor", 6);
    }
    return false;
}

static void for_statement(struct compiler *c)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct target target = {.count = 0};
    target_list(c, &target, false);
    if (!c->status && !take_name(c, "in"))
        compile_fail(c, "a loop without 'in'");
    expression_tuple_or(c);
    /* Where passes are not numbered, each value is looked at when it is its turn, as in Jinja: what
     * a pass sets in a namespace can end the loop. Else all are chosen before the first pass. */
    bool filtered = take_name(c, "if"), in_turn = filtered && !speaks_of_loop(c);
    if (filtered && !in_turn)
        loop_filter(c, &target);
    emit(c, OP_LOOP, 0, 0);
    struct scope *loop = open_scope(c, SCOPE_LOOP);
    loop->next = emit(c, OP_NEXT, 0, 0);
    size_t next = loop->next;
    emit_target(c, &target);
    if (in_turn) {
        expression(c);
        jump_to(c, emit(c, OP_JUMP_IF_NOT, 0, 0), next);
    }
    if (at_name(c, "recursive"))
        compile_fail(c, "'for ... recursive' is not supported");
    end_block(c);
    int end = body(c, ends);
    if (end == 0) /* as in Jinja, a pass that ends in break or continue does not keep `else` away */
        emit(c, OP_PASS, 0, 0);
    jump_to(c, emit(c, OP_JUMP, 0, 0), next);
    jump_here(c, next);
    for (size_t i = 0; i < loop->breaks.count; i++)
        jump_here(c, ((size_t *)loop->breaks.data)[i]);
    size_t over = emit(c, OP_LOOP_END, 0, 0);
    close_scope(c);
    if (!c->status && end == 0) {
        open_scope(c, SCOPE_FRAME);
        emit(c, OP_FRAME, 0, 0);
        body_until(c, "endfor");
        emit(c, OP_FRAME_END, 0, 0);
        close_scope(c);
    }
    jump_here(c, over);
}

static void set_statement(struct compiler *c)
{
    struct target target = {.count = 0};
    target_list(c, &target, true);
    if (take_operator(c, "=")) {
        for (size_t i = 0; i < target.count; i++)
            if (target.ops[i].op == OP_STORE_FIELD)
                emit(c, OP_SPACE, 0, target.ops[i].count);
        expression_tuple(c);
        note_target(c, &target);
        emit_target(c, &target);
        return;
    }
    if (at_operator(c, "|") || c->at->kind == TOKEN_BLOCK_END) {
        /* filters stand before the text that they are for: read them again behind it */
        const struct token *marks = c->at;
        size_t from = code_count(c);
        filters(c);
        if (!c->status)
            c->tables[TABLE_CODE].count = from;
        emit(c, OP_FRAME, 0, 0);
        open_scope(c, SCOPE_FRAME);
        emit(c, OP_CAPTURE, 0, 0);
        open_scope(c, SCOPE_CAPTURE);
        body_until(c, "endset");
        emit(c, OP_CAPTURE_END, 0, 0);
        close_scope(c);
        emit(c, OP_FRAME_END, 0, 0);
        close_scope(c);
        const struct token *end = c->at;
        if (!c->status) {
            c->at = marks;
            filters(c);
        }
        if (!c->status)
            c->at = end;
        note_target(c, &target);
        emit_target(c, &target);
        return;
    }
    compile_fail(c, "'set' without a value");
}

/* (a, b=1): parameters, and the code of their defaults. Returns the first one's index. */
static uint32_t parameters(struct compiler *c, uint16_t *count)
{
    uint32_t first = (uint32_t)c->tables[TABLE_PARAMETERS].count;
    bool optional = false;
    *count = 0;
    while (!c->status && !take_operator(c, ")")) {
        if (*count)
            want_operator(c, ",");
        const struct token *t = want_name(c);
        if (*count == PARAMETERS_MAX)
            compile_fail(c, "more than %d parameters", PARAMETERS_MAX);
        if (c->status)
            break;
        uint32_t name = name_of(c, t->text, t->length);
        table_append(c, TABLE_PARAMETERS, &name);
        ++*count;
        if (take_operator(c, "=")) {
            size_t given = emit(c, OP_GIVEN, name, 0);
            expression(c);
            emit(c, OP_STORE, 0, name);
            jump_here(c, given);
            optional = true;
        } else if (optional)
            compile_fail(c, "a parameter without a default behind one that has one");
    }
    return first;
}

/* A macro with the parameters that stand at `signature` (NULL: none), and the body that follows
 * here up to {% `end`; leaves it on the stack. */
static void macro(struct compiler *c, const struct token *name, const struct token *signature,
                  const char *end)
{
    struct template_macro m = {.name = string_of(c, name->text, name->length)};
    const struct token *here = c->at;
    uint32_t outer_flags = c->macro_flags;
    size_t over = emit(c, OP_JUMP, 0, 0);
    open_scope(c, SCOPE_MACRO);
    c->macro_flags = 0;
    m.entry = (uint32_t)code_count(c);
    m.parameter = (uint32_t)c->tables[TABLE_PARAMETERS].count;
    if (signature && !c->status) {
        c->at = signature;
        want_operator(c, "(");
        m.parameter = parameters(c, &m.parameters);
        if (here != signature && !c->status)
            c->at = here;
    }
    body_until(c, end);
    emit(c, OP_RETURN, 0, 0);
    close_scope(c);
    jump_here(c, over);
    m.flags = c->macro_flags;
    c->macro_flags = outer_flags;
    emit(c, OP_MACRO, 0, table_append(c, TABLE_MACROS, &m));
}

static void macro_statement(struct compiler *c)
{
    const struct token *name = want_name(c);
    macro(c, name, c->at, "endmacro");
    uint32_t index = name_of(c, name->text, name->length);
    name_set(c, index);
    emit(c, OP_STORE, 0, index);
}

/* Goes over ( ) without reading what stands in it. */
static void skip_parentheses(struct compiler *c)
{
    int nesting = 0;
    do {
        nesting += at_operator(c, "(") - at_operator(c, ")");
        c->at += c->at->kind != TOKEN_END;
    } while (nesting && c->at->kind != TOKEN_END);
}

/* {% call(a) f(x) %}: f gets the body as its argument `caller`. */
static void call_statement(struct compiler *c)
{
    static const struct token caller = {.text = "caller", .length = 6};
    const struct token *signature = at_operator(c, "(") ? c->at : NULL;
    if (signature)
        skip_parentheses(c);
    expression_call(c);
    struct template_op op = {0};
    if (!c->status)
        op = *code_at(c, code_count(c) - 1);
    if (!c->status && op.op != OP_CALL)
        compile_fail(c, "'call' without a call");
    if (c->status)
        return;
    c->tables[TABLE_CODE].count--; /* the body comes before the call */
    macro(c, &caller, signature, "endcall");
    uint32_t first = 0;
    for (size_t i = 0; i <= op.keywords && !c->status; i++) {
        const uint32_t *keywords = c->tables[TABLE_KEYWORDS].data;
        uint32_t keyword =
            i < op.keywords ? keywords[op.operand + i] : string_of(c, caller.text, caller.length);
        uint32_t at = table_append(c, TABLE_KEYWORDS, &keyword);
        first = i ? first : at;
    }
    size_t at = emit(c, OP_CALL, op.count, first);
    if (!c->status)
        code_at(c, at)->keywords = (uint8_t)(op.keywords + 1);
    emit(c, OP_PRINT, 0, 0);
}

static void generation_statement(struct compiler *c)
{
    emit(c, OP_FRAME, 0, 0);
    open_scope(c, SCOPE_FRAME);
    body_until(c, "endgeneration");
    emit(c, OP_FRAME_END, 0, 0);
    close_scope(c);
}

/* A value is written; a text that is known already, at once. */
static void print(struct compiler *c, size_t from)
{
    uint32_t string;
    const char *text;
    size_t length;
    if (!code_is_text(c, from, &string, &text, &length)) {
        emit(c, OP_PRINT, 0, 0);
        return;
    }
    c->tables[TABLE_CODE].count = from;
    emit(c, OP_TEXT, 0, string);
}

static void break_statement(struct compiler *c)
{
    leave_loop(c, false);
}

static void continue_statement(struct compiler *c)
{
    leave_loop(c, true);
}

static void statement(struct compiler *c)
{
    static const struct {
        const char *name;
        void (*compile)(struct compiler *);
    } known[] = {
        {"for", for_statement},     {"if", if_statement},
        {"set", set_statement},     {"macro", macro_statement},
        {"call", call_statement},   {"generation", generation_statement},
        {"break", break_statement}, {"continue", continue_statement},
    };
    char shown[64];
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (take_name(c, known[i].name)) {
            known[i].compile(c);
            return;
        }
    if (c->at->kind == TOKEN_NAME)
        compile_fail(c, "tag %s is not supported here", token_show(c->at, shown));
    else
        compile_fail(c, "found %s, expected the name of a tag", token_show(c->at, shown));
}

/* Whether one of `ends` is next: its index, and the name is taken; else -1. */
static int take_end(struct compiler *c, const char *const *ends)
{
    for (int i = 0; ends[i]; i++)
        if (take_name(c, ends[i]))
            return i;
    return -1;
}

static void print_tag(struct compiler *c)
{
    char shown[64];
    size_t from = code_count(c);
    expression_tuple(c);
    if (!c->status && c->at->kind != TOKEN_PRINT_END)
        compile_fail(c, "found %s, expected '}}'", token_show(c->at, shown));
    print(c, from);
    c->at += !c->status;
}

/* Text and tags up to one of `ends` (a list that NULL ends); returns its index. At the end of the
 * template: -1, and an error if there are ends. */
static int body(struct compiler *c, const char *const *ends)
{
    int end = -1;
    if (!compile_enter(c))
        return -1;
    while (!c->status && end < 0 && c->at->kind != TOKEN_END) {
        const struct token *t = c->at++;
        if (t->kind == TOKEN_DATA)
            emit(c, OP_TEXT, 0, string_of(c, t->text, t->length));
        else if (t->kind == TOKEN_PRINT)
            print_tag(c);
        else if ((end = take_end(c, ends)) < 0) {
            statement(c);
            end_block(c);
        }
    }
    while (end < 0 && *ends && ends[1])
        ends++;
    if (end < 0 && *ends)
        compile_fail(c, "the template ends where {%% %s %%} is missing", *ends);
    compile_leave(c);
    return end;
}

/* ------------------------------------------------------------------------------------------ layout
 */

/* Every word of the source once, with a space before and behind. */
static void words(struct compiler *c)
{
    const char *s = c->tokens.source;
    const struct grown *g = &c->tables[TABLE_WORDS];
    table_append(c, TABLE_WORDS, " ");
    for (size_t i = 0; i < c->tokens.length && !c->status;) {
        char word[66] = " ";
        size_t n = strspn(s + i, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
        if (n && n <= 64) {
            memcpy(word + 1, s + i, n);
            word[n + 1] = ' ';
            if (!memmem(g->data, g->count, word, n + 2))
                for (size_t j = 1; j < n + 2; j++)
                    table_append(c, TABLE_WORDS, &word[j]);
        }
        i += n ? n : 1;
    }
}

static enum stele_status lay_out(struct compiler *c, uint8_t **out, size_t *length)
{
    static const uint32_t record_bytes[TEMPLATE_TABLES] = {sizeof(struct template_op),
                                                           sizeof(struct template_constant),
                                                           4,
                                                           sizeof(struct template_macro),
                                                           4,
                                                           4,
                                                           sizeof(struct template_string),
                                                           1,
                                                           1};
    struct template_header h = {.magic = TEMPLATE_MAGIC, .version = TEMPLATE_VERSION};
    uint64_t at = sizeof h;
    for (int i = 0; i < TEMPLATE_TABLES; i++) {
        h.tables[i] = (struct template_span){(uint32_t)at, (uint32_t)c->tables[i].count};
        at = round_up(at + (uint64_t)c->tables[i].count * record_bytes[i], 8);
    }
    if (at > TEMPLATE_BYTES_MAX)
        return stele_fail(c->err, STELE_INPUT, "%s: a program of %" PRIu64 " bytes is too long",
                          c->name, at);
    h.length = (uint32_t)at;
    *out = calloc(1, (size_t)at);
    if (!*out)
        return stele_fail(c->err, STELE_SYSTEM, "no memory for %" PRIu64 " bytes", at);
    memcpy(*out, &h, sizeof h);
    for (int i = 0; i < TEMPLATE_TABLES; i++)
        if (c->tables[i].count)
            memcpy(*out + h.tables[i].offset, c->tables[i].data,
                   c->tables[i].count * record_bytes[i]);
    *length = (size_t)at;
    return STELE_OK;
}

enum stele_status template_compile(uint8_t **out, size_t *length, const char *source, size_t bytes,
                                   const char *name, struct stele_error *err)
{
    static const char *const no_ends[] = {NULL};
    struct compiler c = {.name = name, .err = err};
    *out = NULL;
    *length = 0;
    if (bytes > SOURCE_MAX)
        return stele_fail(err, STELE_INPUT, "%s: a chat template of %zu bytes; at most %d are read",
                          name, bytes, SOURCE_MAX);
    enum stele_status status = template_lex(&c.tokens, source, bytes, name, err);
    if (status)
        return status;
    c.at = c.tokens.tokens;
    body(&c, no_ends);
    emit(&c, OP_END, 0, 0);
    words(&c);
    status = c.status ? c.status : lay_out(&c, out, length);
    while (c.scope_count)
        close_scope(&c);
    for (int i = 0; i < TEMPLATE_TABLES; i++)
        free(c.tables[i].data);
    template_tokens_free(&c.tokens);
    return status;
}
