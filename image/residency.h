/* SPDX-License-Identifier: Apache-2.0 */
/* Which part of an image is in memory, and bringing it there. */
#ifndef IMAGE_RESIDENCY_H
#define IMAGE_RESIDENCY_H

#include "image.h"

struct residency {
    size_t page, pages;
    unsigned char *resident; /* [pages]: 1, the page is in memory */
    uint64_t large_bytes;    /* of those in memory, mapped by entries of 2 MiB */
};

/* From here on a page of these bytes that is not in memory comes with the 2 MiB around it, as one large page where the
 * file system has such, and the next 2 MiB are asked for; whatever the system reads ahead otherwise. One system call;
 * advice only, pages that are in memory stay as they are. */
void image_read_large(const struct image *image, uint64_t offset, uint64_t length);

/* Reads the whole image into the page cache, front to back, in a way that leaves large pages behind. `anew`: what is there is
 * dropped first, as far as no process has it mapped (pages that came in small stay small). `progress` (NULL is allowed) is
 * called as image_verify calls its own. */
enum stele_status image_warm(const struct image *image, bool anew, void (*progress)(void *context, uint64_t done, uint64_t bytes),
                             void *context, struct stele_error *err);

/* What is in memory; nothing is read. STELE_SYSTEM where the kernel does not say. residency_free frees *out. */
enum stele_status image_residency(struct residency *out, const struct image *image, struct stele_error *err);
void residency_free(struct residency *residency);

/* Bytes of a part of the image that are in memory. */
uint64_t residency_bytes(const struct residency *residency, uint64_t offset, uint64_t length);

#endif
