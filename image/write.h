/* SPDX-License-Identifier: Apache-2.0 */
/* Writes an image from front to back. Nothing is seen at the target until image_finish: the file grows without a name
 * (O_TMPFILE; a named temporary beside the target where the file system lacks that), is synced, and then takes the
 * target's place. A symbolic link is followed first; a target that is no regular file is refused, since an image can only
 * be mapped from one. */
#ifndef IMAGE_WRITE_H
#define IMAGE_WRITE_H

#include "error.h"
#include "format.h"
#include "types.h"

struct image_writer;

/* Begins an image that will be at `path`. `expected_bytes` are reserved on the disk at once, so that a full one is
 * noticed before the work; 0 reserves nothing. An existing target is refused (STELE_USAGE) unless `replace`. */
enum stele_status image_begin(struct image_writer **out, const char *path, bool replace, uint64_t expected_bytes,
                              struct stele_error *err);

/* Begins the next section, at a multiple of `align` (a power of two, at least 64). */
enum stele_status image_begin_section(struct image_writer *w, enum section_kind kind, uint64_t align,
                                      struct stele_error *err);

/* Appends bytes to the section begun last. */
enum stele_status image_append(struct image_writer *w, const void *bytes, uint64_t length, struct stele_error *err);

/* A whole section at once. */
enum stele_status image_write_section(struct image_writer *w, enum section_kind kind, const void *bytes, uint64_t length,
                                      struct stele_error *err);

/* The digests of the weights' chunks as a section. Call it behind the weights. */
enum stele_status image_write_digests(struct image_writer *w, struct stele_error *err);

/* Writes header and table, syncs, and puts the file at its place. The writer is freed in any case. */
enum stele_status image_finish(struct image_writer *w, struct stele_error *err);

/* Gives up: nothing stays behind. NULL is allowed. */
void image_abandon(struct image_writer *w);

#endif
