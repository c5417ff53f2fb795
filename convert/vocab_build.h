/* SPDX-License-Identifier: Apache-2.0 */
/* Compiles a tokenizer.json into the tokenizer section of an image (image/vocab.h). */
#ifndef CONVERT_VOCAB_BUILD_H
#define CONVERT_VOCAB_BUILD_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* *out is malloc'ed, *length bytes, the same for the same file; the caller frees it. NULL on
 * failure: STELE_INPUT names the file and the component, or the place in the JSON, that is
 * malformed or not supported. `config_path`, tokenizer_config.json, may be NULL and changes nothing
 * today: the text is read as the `tokenizers` library reads it, from tokenizer.json alone. */
enum stele_status vocab_build(uint8_t **out, size_t *length, const char *path,
                              const char *config_path, struct stele_error *err);

/* The id of a token as tokenizer.json spells it (`</s>`, `<|endoftext|>`), in a section that
 * vocab_build made; UINT32_MAX where it has none. Looks at every token: for the converter's few
 * questions. */
uint32_t vocab_id_of_token(const uint8_t *section, size_t length, const char *text, size_t bytes);

/* Number of ids of a section: the greatest plus one. */
uint32_t vocab_id_count(const uint8_t *section, size_t length);

#endif
