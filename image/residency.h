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
