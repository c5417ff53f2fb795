/* SPDX-License-Identifier: Apache-2.0 */
/* Reading JSON files of strangers, by jansson, with what published checkpoints need (DECISIONS: "Sources"):
 * integers beyond 64 bits, NUL in strings, Python's Infinity and NaN; duplicate keys are refused.
 *
 * All numbers come back as reals; json_whole() turns one into a checked integer. */
#ifndef CONVERT_JSON_H
#define CONVERT_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "error.h"

/* Reads the whole file. STELE_OK: *out is a new reference that the caller gives back by json_decref. A file that is
 * absent is STELE_SYSTEM with errno ENOENT; malformed JSON is STELE_INPUT naming file, line and column. */
enum stele_status json_read_file(json_t **out, const char *path, struct stele_error *err);

/* The same for `length` bytes in memory; `name` stands for the file in sentences. */
enum stele_status json_read_bytes(json_t **out, const char *bytes, size_t length, const char *name,
                                  struct stele_error *err);

/* True, and the value in *out, if `value` is a whole number from 0 to `most` (at most 2^53). */
bool json_whole(const json_t *value, uint64_t most, uint64_t *out);

/* A short description of a value for sentences: `"text"`, `12`, `true`, `[...]`, `{...}`; written into `text`. */
const char *json_show(const json_t *value, char text[64]);

#endif
