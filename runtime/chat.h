/* SPDX-License-Identifier: Apache-2.0 */
/* A conversation through a chat template: what transformers' apply_chat_template does before and
 * after the template runs (version 5.24; shared/chat/FEATURES.md, traps 1 to 3). */
#ifndef RUNTIME_CHAT_H
#define RUNTIME_CHAT_H

#include "template_run.h"

/* Values live in the heap that renders. VALUE_ABSENT (all zero) is what was not given. */
struct chat_request {
    struct value messages;  /* a list of mappings, one at least */
    struct value tools;     /* a list of mappings; also taken from `arguments` */
    struct value documents; /* the same */
    struct value arguments; /* a mapping: add_generation_prompt, continue_final_message (true, or
                             * the name of a field), and whatever the template reads */
    const struct template_variable
        *tokens; /* bos_token and its kin: those that the tokenizer has */
    size_t token_count;
    const struct tm *now;
};

/* Renders into h->out, as template_run does. False: h->failure and the heap's error say why;
 * FAILURE_REFUSED (STELE_USAGE) is a call that fits no template.
 *
 * Texts of messages, tools, documents and arguments are content, those of tokens the template's. A
 * message's role is the template's where it is one that templates know (chat.c): some make tokens of
 * roles ("<|" + role + "|>"). */
bool chat_render(struct heap *h, const struct template_program *program,
                 const struct chat_request *request);

#endif
