/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RUNTIME_LIBRARY_H
#define RUNTIME_LIBRARY_H

#include "image.h"
#include "tokenizer.h"

/* The section "defaults" against FORMAT.md; STELE_INPUT names what is out of range. An image without one is fine. */
enum stele_status library_check_defaults(const struct image *image, struct stele_error *err);

/* STELE_INPUT: the image has no vocabulary. */
enum stele_status library_open_tokenizer(struct tokenizer *out, const struct image *image, struct stele_error *err);

#endif
