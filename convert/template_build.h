/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint's chat templates, compiled, with the tokens that they are shown: the section "templates"
 * (image/template_set.h). As transformers finds them: chat_template.jinja and additional_chat_templates/NAME.jinja, else
 * `chat_template` of tokenizer_config.json, a text or a list of named ones. */
#ifndef CONVERT_TEMPLATE_BUILD_H
#define CONVERT_TEMPLATE_BUILD_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "json.h"

/* *out is malloc'ed, *length bytes, the same for the same files; NULL where the model has no template, and on failure:
 * STELE_INPUT names the template and the line of what is malformed or not supported. `tokenizer_config` may be NULL. */
enum stele_status template_build(uint8_t **out, size_t *length, const char *directory, const json_t *tokenizer_config,
                                     struct stele_error *err);

#endif
