/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RUNTIME_LIBRARY_H
#define RUNTIME_LIBRARY_H

#include "image.h"
#include "tokenizer.h"

/* The section "defaults" against FORMAT.md; STELE_INPUT names what is out of range. An image without one is fine. */
enum stele_status library_check_defaults(const struct image *image, struct stele_error *err);

/* STELE_INPUT: the image has no vocabulary. */
enum stele_status library_open_tokenizer(struct tokenizer *out, const struct image *image, struct stele_error *err);

enum stele_status library_check_reserved(const char *what, const uint64_t *words, size_t n, struct stele_error *err);

/* STELE_USAGE: a reserved word of the caller's struct is not zero. */
#define LIBRARY_CHECK_RESERVED(type, of, err)                                                                             \
    library_check_reserved(#type, (of)->reserved, sizeof (of)->reserved / sizeof *(of)->reserved, err)

#endif
