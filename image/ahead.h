/* SPDX-License-Identifier: Apache-2.0 */
/* A thread that brings bytes of an image into memory, front to back, while others compute with them. */
#ifndef IMAGE_AHEAD_H
#define IMAGE_AHEAD_H

#include "image.h"

struct ahead;

/* Begins to read `length` bytes from `offset` on. NULL, and nothing begins, where they are in memory already (some
 * pages of them are looked at: a constant number of system calls) or there is no thread to be had: reading ahead is
 * never needed. */
struct ahead *ahead_start(const struct image *image, uint64_t offset, uint64_t length);

/* Ends the reading, be it done or not, and frees it; NULL is allowed. The image must still be open. */
void ahead_stop(struct ahead *ahead);

#endif
