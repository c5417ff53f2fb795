/* SPDX-License-Identifier: Apache-2.0 */
/* An image that is computed from while it is written.
 *
 *     reader                                  writer
 *     a pair of sockets; starts it   ---->
 *     image_arrive                   <----    arrival_begun: header, section table, the file, the map of what is missing
 *     image_await: a piece           <----    arrival_more, again and again
 *     image_await_whole              <----    arrival_whole: all is laid, and every digest matched
 *     image_await_over               <----    arrival_over: it lies at its place; or a status and the sentence
 *
 * The file has no image's magic until it is whole, so nobody else takes it for one: header and table come through the
 * socket, which nobody holds but the two. The map is memory that both have: bytes of each piece that are not laid yet, a
 * piece being what may come by itself, a matrix say. It is read before each op; words are waited for only where something is
 * missing. */
#ifndef IMAGE_ARRIVAL_H
#define IMAGE_ARRIVAL_H

#include <stdatomic.h>

#include "error.h"
#include "format.h"
#include "types.h"

struct arrival;
struct image;

struct arrival_piece {
    uint64_t at; /* its begin, counted from that of the map; it ends where the next one begins */
    _Atomic uint64_t missing;
};

struct arrival_map {
    int fd;
    size_t count;
    struct arrival_piece *pieces; /* [count + 1], the last one the end; NULL: there is no map */
};

/* A map of pieces that begin at at[0] = 0 < at[1] < ... < at[count] = the end, all missing. */
enum stele_status arrival_map_open(struct arrival_map *out, const uint64_t *at, size_t count, struct stele_error *err);
void arrival_map_close(struct arrival_map *map); /* all zero, or closed, is allowed */

/* Bytes from `at` on are laid. Any number of threads, each byte once. */
void arrival_laid(const struct arrival_map *map, uint64_t at, uint64_t bytes);

/* What a writer says; channel -1: nobody listens. A reader that is gone changes nothing. */

/* The sections as far as they are decided; the others than the weights are laid. `first`: place in the file of the map's
 * begin. The file is as long as header->file_bytes says, or longer. */
void arrival_begun(int channel, int file, const struct arrival_map *map, uint64_t first,
                   const struct image_header *header, const struct image_section *sections);
void arrival_more(int channel);
void arrival_whole(int channel);
void arrival_over(int channel, const struct stele_error *err); /* err->status STELE_OK: done */

/* What a reader asks. */

/* Waits until the writer has begun, and maps what it writes; `channel` is the image's, or is closed. *out NULL with
 * STELE_OK: it was done without any writing. What the writer ended with is returned here and by the calls below. */
enum stele_status image_arrive(struct image **out, const char *name, int channel, struct stele_error *err);

/* Waits for bytes of the mapping. STELE_OK at once for an image that does not arrive; so do the others. Any thread. */
enum stele_status image_await(const struct image *image, const void *from, uint64_t bytes, struct stele_error *err);
enum stele_status image_await_whole(const struct image *image, struct stele_error *err);
enum stele_status image_await_over(const struct image *image, struct stele_error *err);

void arrival_close(struct arrival *arrival); /* image_close calls it */

#endif
