/* SPDX-License-Identifier: Apache-2.0 */
/* Where an image came from, as JSON text: names, sizes and digests of the source files, converter version, options. No
 * path and no time, so that the same input gives the same bytes. It is no part of the image's identity. */
#ifndef CONVERT_PROVENANCE_H
#define CONVERT_PROVENANCE_H

#include "convert.h"
#include "safetensors.h"

/* *out is malloc'ed text. Reads every source file once for its digest (XXH3-128). */
enum stele_status provenance_build(char **out, const struct convert_options *options,
                                   const struct checkpoint *checkpoint, struct stele_error *err);

#endif
