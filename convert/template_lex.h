/* SPDX-License-Identifier: Apache-2.0 */
/* The words of a Jinja template, as Jinja's own lexer has them with trim_blocks and lstrip_blocks
 * on: text, tags, and what stands in tags. White space that tags eat is gone from the text. */
#ifndef CONVERT_TEMPLATE_LEX_H
#define CONVERT_TEMPLATE_LEX_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "types.h"

/* clang-format off */
enum token_kind {
    TOKEN_END,         /* of the template; always the last token */
    TOKEN_DATA,        /* text between tags */
    TOKEN_PRINT,       /* {{ */
    TOKEN_PRINT_END,   /* }} */
    TOKEN_BLOCK,       /* {% */
    TOKEN_BLOCK_END,   /* %} */
    TOKEN_NAME,
    TOKEN_STRING,      /* with its quotes, escapes as they were written */
    TOKEN_INTEGER,
    TOKEN_FLOAT,
    TOKEN_OPERATOR,    /* one or two characters */
};
/* clang-format on */

struct token {
    enum token_kind kind;
    uint32_t line;
    const char *text; /* in template_tokens.source */
    size_t length;
};

struct template_tokens {
    char *source; /* the template with its line breaks made \n, and without the last one */
    size_t length;
    struct token *tokens;
    size_t count;
};

/* STELE_OK: *out is to be given back by template_tokens_free. Else it is empty, and err names line
 * and character. `name` stands for the template in sentences. */
enum stele_status template_lex(struct template_tokens *out, const char *source, size_t bytes,
                               const char *name, struct stele_error *err);
void template_tokens_free(struct template_tokens *tokens);

#endif
