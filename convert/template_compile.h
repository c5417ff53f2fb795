/* SPDX-License-Identifier: Apache-2.0 */
/* A model's chat template, Jinja text, compiled into the program that image/template.h describes.
 */
#ifndef CONVERT_TEMPLATE_COMPILE_H
#define CONVERT_TEMPLATE_COMPILE_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Compiles `bytes` bytes of Jinja with what transformers sets: trim_blocks, lstrip_blocks, loop
 * controls, the `generation` block. STELE_OK: *out is malloc'ed, the caller frees it. STELE_INPUT:
 * *out is NULL, and err names the construct that is malformed or not supported, with its line;
 * `name` stands for the template in the sentence. */
enum stele_status template_compile(uint8_t **out, size_t *length, const char *source, size_t bytes,
                                   const char *name, struct stele_error *err);

#endif
