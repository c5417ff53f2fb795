/* SPDX-License-Identifier: Apache-2.0 */
/* A chat template while it is compiled: the words that are left, and the tables that grow.
 *
 * Code is emitted while the text is read, in one pass. Jumps are relative, so a stretch of code
 * that jumps only within itself can be moved (`x if y else z` tests y first). An error is noted
 * once; after it the words are at their end, so that every loop ends, and what is emitted is
 * nobody's. */
#ifndef CONVERT_TEMPLATE_CODE_H
#define CONVERT_TEMPLATE_CODE_H

#include "template.h"
#include "template_lex.h"

struct grown {
    void *data;
    size_t count, capacity;
};

/* What `break` has to leave. */
enum scope_kind { SCOPE_LOOP, SCOPE_FRAME, SCOPE_CAPTURE, SCOPE_MACRO };
enum { SCOPES_MAX = 64 };

struct scope {
    enum scope_kind kind;
    size_t next;         /* SCOPE_LOOP: its OP_NEXT */
    struct grown breaks; /* SCOPE_LOOP: jumps that go to its end */
};

struct compiler {
    const char *name;
    const struct token *at; /* the word that is next */
    struct template_tokens tokens;
    struct grown tables[TEMPLATE_TABLES];
    struct scope scopes[SCOPES_MAX];
    int scope_count;
    struct scope no_scope;        /* what is opened after an error */
    int depth;                    /* of expressions and blocks that are being read */
    int branches;                 /* of `if` that are open */
    uint8_t seen[UINT16_MAX + 1]; /* names that the outermost level has read or set */
    uint32_t macro_flags; /* of the macro that is being read: which special names it speaks of */
    enum stele_status status;
    struct stele_error *err;
};

/* ---- words ---- */

/* Notes an error that names the template and the line of the next word. */
void compile_fail(struct compiler *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

bool at_operator(const struct compiler *c, const char *text);
bool at_name(const struct compiler *c, const char *text);
bool take_operator(struct compiler *c, const char *text); /* goes on if the next word is that */
bool take_name(struct compiler *c, const char *text);
void want_operator(struct compiler *c, const char *text); /* an error if it is not */
const struct token *want_name(struct compiler *c);        /* any name; never NULL */
const char *token_show(const struct token *t, char text[64]);

/* False, with the error noted, where nesting is too deep; else compile_leave undoes it. */
bool compile_enter(struct compiler *c);
void compile_leave(struct compiler *c);

/* ---- code ---- */

size_t code_count(const struct compiler *c);
struct template_op *code_at(struct compiler *c, size_t index);
/* Appends an instruction; returns its index. */
size_t emit(struct compiler *c, enum template_opcode op, size_t count, uint32_t operand);
/* The jump at `index` leads to the end of the code, or to `target`. */
void jump_here(struct compiler *c, size_t index);
void jump_to(struct compiler *c, size_t index, size_t target);
/* [from, middle) and [middle, end of the code) change places. */
void code_swap(struct compiler *c, size_t from, size_t middle);
/* Instructions from `from` on become those of the `count` stretches, in that order; a stretch is
 * [begin, end), and an empty one a CONSTANT_ABSENT. */
struct stretch {
    size_t begin, end;
};
void code_arrange(struct compiler *c, size_t from, const struct stretch *stretches, size_t count);

uint32_t string_of(struct compiler *c, const char *text, size_t length);
uint32_t name_of(struct compiler *c, const char *text, size_t length); /* in TABLE_NAMES */
/* Notes that the code here reads or sets a name: what is set first at the outermost level hides a
 * variable that is given (NAME_HIDDEN). */
void name_read(struct compiler *c, uint32_t name);
void name_set(struct compiler *c, uint32_t name);
uint32_t table_append(struct compiler *c, enum template_table table, const void *record);
uint32_t constant_of(struct compiler *c, struct template_constant k);
/* If [from, end of the code) is only a text constant: true, and its string. */
bool code_is_text(const struct compiler *c, size_t from, uint32_t *string, const char **text,
                  size_t *length);

/* ---- literals (template_literal.c) ---- */

void string_literal(struct compiler *c);
void number_literal(struct compiler *c);

/* ---- filters and tests (template_apply.c) ---- */

enum { ARGUMENTS_MAX = 64 };

struct argument {
    struct stretch code;
    const struct token *keyword; /* NULL: by position */
};

/* What stands in ( ), its "(" taken; returns how many. Code of all, in the order of the text. */
size_t arguments(struct compiler *c, struct argument list[ARGUMENTS_MAX]);
void apply_filter(struct compiler *c); /* behind "|" */
void filters(struct compiler *c);      /* all that follow a value: |name(...)|... */
void apply_test(struct compiler *c);   /* behind "is" */

#define COUNT(a) (sizeof(a) / sizeof *(a))

static inline bool same(const char *name, const char *text, size_t length)
{
    return length && strlen(name) == length && !memcmp(name, text, length);
}

/* ---- expressions (template_expression.c): the code leaves the value on the stack ---- */

void expression(struct compiler *c);       /* with `if` */
void expression_or(struct compiler *c);    /* without */
void expression_tuple(struct compiler *c); /* a, b is a tuple */
void expression_tuple_or(struct compiler *c);
void expression_call(struct compiler *c); /* a name with what is called, no filters */
void expression_operand(struct compiler *c); /* without a sign */

#endif
