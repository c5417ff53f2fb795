/* SPDX-License-Identifier: Apache-2.0 */
/* Sampling defaults and ids of end of text: generation_config.json; without it config.json's eos_token_id and the
 * tokenizer's. What generation_config.json asks for and stele lacks is refused by name. */
#ifndef CONVERT_DEFAULTS_H
#define CONVERT_DEFAULTS_H

#include "error.h"
#include "format.h"
#include "json.h"

/* The section "defaults" (format.h), malloc'ed. `directory` holds the checkpoint, `config` is its parsed config.json;
 * `tokenizer_eos` is the id of the tokenizer's eos_token, or UINT32_MAX. Ids at or above `vocabulary` are refused. */
enum stele_status defaults_build(void **out, size_t *length, const char *directory, const json_t *config,
                                 uint32_t tokenizer_eos, uint32_t vocabulary, struct stele_error *err);

#endif
