/* SPDX-License-Identifier: Apache-2.0 */
/* Where an image came from, as JSON text: names, sizes and digests of the source files, converter version, options. No
 * path and no time, so that the same input gives the same bytes. It is no part of the image's identity. */
#ifndef CONVERT_PROVENANCE_H
#define CONVERT_PROVENANCE_H

#include "convert.h"
#include "json.h"
#include "safetensors.h"

/* *out is malloc'ed text. Reads every source file once for its digest (XXH3-128). */
enum stele_status provenance_build(char **out, const struct convert_options *options,
                                   const struct checkpoint *checkpoint, struct stele_error *err);

/* Its parts, for who has the weights from elsewhere. The list of the small files in `directory`: names, sizes, digests;
 * NULL: no memory. The text over a list of all files (NULL: no memory for it) and an object that says where they are from
 * (NULL: nothing is said). */
json_t *provenance_small_files(const char *directory);
enum stele_status provenance_text(char **out, const struct convert_options *options, json_t *files, json_t *origin,
                                  struct stele_error *err);

#endif
