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

struct arrival_map;
struct image_writer;

/* Begins an image that will be at `path`. `expected_bytes` are reserved on the disk at once, so that a full one is
 * noticed before the work; 0 reserves nothing. An existing target is refused (STELE_USAGE) unless `replace`. */
enum stele_status image_begin(struct image_writer **out, const char *path, bool replace, uint64_t expected_bytes,
                              struct stele_error *err);

/* The same, but the file being written has the name `partial` and stays there when the writer gives up, so that a later
 * process goes on with it. It is opened as it is, or made; nothing is reserved or cut off. */
enum stele_status image_resume(struct image_writer **out, const char *path, bool replace, const char *partial,
                               struct stele_error *err);

/* Reserves the first `bytes` of the file on the disk. */
enum stele_status image_reserve(struct image_writer *w, uint64_t bytes, struct stele_error *err);

/* The file being written. Its first two pages are free until image_finish. */
int image_descriptor(const struct image_writer *w);

/* Begins the next section, at a multiple of `align` (a power of two, at least 64). */
enum stele_status image_begin_section(struct image_writer *w, enum section_kind kind, uint64_t align,
                                      struct stele_error *err);

/* Appends bytes to the section begun last. */
enum stele_status image_append(struct image_writer *w, const void *bytes, uint64_t length, struct stele_error *err);

/* A whole section at once. */
enum stele_status image_write_section(struct image_writer *w, enum section_kind kind, const void *bytes, uint64_t length,
                                      struct stele_error *err);

/* Begins a section of `length` bytes that come in any order, by image_place. */
enum stele_status image_begin_placed(struct image_writer *w, enum section_kind kind, uint64_t align, uint64_t length,
                                     struct stele_error *err);

/* Writes bytes of that section, `offset` bytes behind its begin; NULL: they are there already, or are zeros of a hole. Each
 * byte is placed once; a chunk that is complete is read back for its digest. Any number of threads. */
enum stele_status image_place(struct image_writer *w, const void *bytes, uint64_t length, uint64_t offset,
                              struct stele_error *err);

/* Tells who listens at `channel` (arrival.h; -1: nobody) of the image: all sections before the placed one are written, and
 * what is missing of that one is counted by `map`. */
enum stele_status image_announce(struct image_writer *w, int channel, const struct arrival_map *map, struct stele_error *err);

/* The digests of the weights' chunks as a section. Call it behind the weights. */
enum stele_status image_write_digests(struct image_writer *w, struct stele_error *err);

/* Writes header and table, syncs, and puts the file at its place. The writer is freed in any case. */
enum stele_status image_finish(struct image_writer *w, struct stele_error *err);

/* Gives up: nothing stays behind. NULL is allowed. */
void image_abandon(struct image_writer *w);

#endif
