/* SPDX-License-Identifier: Apache-2.0 */
/* The section "templates": a model's chat templates, compiled (template.h), with the tokens that they are shown and the
 * marks that the model puts around its thinking. FORMAT-template.md describes it byte for byte.
 *
 * It comes from a stranger: template_set_open checks every record once, so that what its functions give lies inside. */
#ifndef IMAGE_TEMPLATE_SET_H
#define IMAGE_TEMPLATE_SET_H

#include "template.h"

enum { TEMPLATE_SET_MAX = 64 }; /* templates, and tokens */

/* UTF-8 in the section. Eight bytes. */
struct template_set_text {
    uint32_t offset, length; /* from the start of the section */
};
static_assert(sizeof(struct template_set_text) == 8, "FORMAT-template.md: 8 bytes");

/* 32 bytes at the start; then `templates` records, then `tokens` records. */
struct template_set_header {
    uint32_t templates;                         /*  0 one at least */
    uint32_t tokens;                            /*  4 */
    struct template_set_text think, think_done; /*  8, 16 of length 0: the model has no such marks */
    struct template_set_text think_next;        /* 24 of length 0: what the model thinks is one message */
};
static_assert(sizeof(struct template_set_header) == 32, "FORMAT-template.md: 32 bytes");

struct template_set_template {
    struct template_set_text name;    /*  0 "default", "tool_use", ... */
    uint32_t offset, length;          /*  8 the program: at a multiple of 8 from the start of the section */
};
static_assert(sizeof(struct template_set_template) == 16, "FORMAT-template.md: 16 bytes");

/* A token that the tokenizer has a name for, and templates a variable: bos_token and its kin. */
struct template_set_token {
    struct template_set_text name, text;
};
static_assert(sizeof(struct template_set_token) == 16, "FORMAT-template.md: 16 bytes");

/* A checked view, valid as long as the mapping. */
struct template_set {
    const uint8_t *base;
    struct template_set_header header;
    const struct template_set_template *templates;
    const struct template_set_token *tokens;
};

enum stele_status template_set_open(struct template_set *out, const uint8_t *section, uint64_t length,
                                    struct stele_error *err);

static inline const char *template_set_text(const struct template_set *s, struct template_set_text text)
{
    return (const char *)s->base + text.offset;
}

/* Index of the template of this name; s->header.templates where there is none. */
uint32_t template_set_find(const struct template_set *s, const char *name);

/* The program of template `index`, opened. */
enum stele_status template_set_program(const struct template_set *s, uint32_t index, struct template_program *out,
                                       struct stele_error *err);

#endif
