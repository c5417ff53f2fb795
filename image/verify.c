/* SPDX-License-Identifier: Apache-2.0 */
/* Compares every byte of an image with what its table says of it. */
#include "image.h"

#include <inttypes.h>
#include <string.h>
#include <stdlib.h>

static void found(struct image_watch *watch, const char *section, uint64_t offset, uint64_t bytes)
{
    watch->section = section;
    watch->offset = offset;
    watch->bytes = bytes;
}

static void tell(const struct image *image, const struct image_watch *watch, uint64_t done)
{
    if (watch->progress)
        watch->progress(watch->context, done, image->length);
}

static enum stele_status check_zero(const struct image *image, uint64_t from, uint64_t to, struct image_watch *watch,
                                    struct stele_error *err)
{
    for (uint64_t i = from; i < to; i++)
        if (image->bytes[i]) {
            found(watch, NULL, i, 1);
            return stele_fail(err, STELE_DAMAGED,
                              "%s: byte %" PRIu64 " between sections is not zero; damaged, copy it again", image->name, i);
        }
    return STELE_OK;
}

/* The digests of the weights' chunks as the image keeps them, or NULL: they name the chunk that is damaged. */
static const struct image_digest *kept_digests(const struct image *image, size_t chunks)
{
    uint64_t bytes;
    const uint8_t *kept = image_section(image, SECTION_DIGESTS, &bytes);
    return bytes == chunks * sizeof(struct image_digest) ? (const struct image_digest *)kept : NULL;
}

static enum stele_status check_section(const struct image *image, const struct image_section *s, struct image_watch *watch,
                                       struct stele_error *err)
{
    const uint8_t *from = image->bytes + s->offset;
    size_t chunks = (size_t)((s->bytes + IMAGE_CHUNK - 1) / IMAGE_CHUNK);
    const struct image_digest *kept = s->kind == SECTION_WEIGHTS ? kept_digests(image, chunks) : NULL;
    struct image_digest *digests = malloc((chunks + 1) * sizeof *digests);
    if (!digests)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu digests", image->name, chunks);
    size_t damaged = SIZE_MAX;
    for (size_t i = 0; i < chunks; i++) {
        uint64_t rest = s->bytes - (uint64_t)i * IMAGE_CHUNK;
        digests[i] = digest_chunk(from + (uint64_t)i * IMAGE_CHUNK, rest < IMAGE_CHUNK ? (size_t)rest : IMAGE_CHUNK);
        if (damaged == SIZE_MAX && kept && memcmp(&kept[i], &digests[i], sizeof *digests))
            damaged = i;
        tell(image, watch, s->offset + (uint64_t)i * IMAGE_CHUNK + (rest < IMAGE_CHUNK ? rest : IMAGE_CHUNK));
    }
    struct image_digest whole = digest_of_digests(digests, chunks);
    free(digests);
    bool same = !memcmp(&whole, &s->digest, sizeof whole);
    if (same && damaged == SIZE_MAX)
        return STELE_OK;
    if (damaged == SIZE_MAX) {
        found(watch, section_name(s->kind), s->offset, s->bytes);
        return stele_fail(err, STELE_DAMAGED,
                          "%s: section %s: its %" PRIu64 " bytes from %" PRIu64
                          " do not have their digest; damaged, copy it again",
                          image->name, section_name(s->kind), s->bytes, s->offset);
    }
    uint64_t before = (uint64_t)damaged * IMAGE_CHUNK, rest = s->bytes - before;
    found(watch, section_name(s->kind), s->offset + before, rest < IMAGE_CHUNK ? rest : IMAGE_CHUNK);
    return stele_fail(err, STELE_DAMAGED,
                      "%s: section %s: chunk %zu (2 MiB from byte %" PRIu64
                      " of the file) does not have its digest; damaged, copy it again",
                      image->name, section_name(s->kind), damaged, s->offset + before);
}

/* Page 0 behind the header and page 1 behind the table are zero: the check sum is taken over zeros, not over them. */
static enum stele_status check_pages(const struct image *image, struct image_watch *watch, struct stele_error *err)
{
    uint64_t table_end = IMAGE_PAGE + image->header.sections * sizeof(struct image_section);
    enum stele_status status = check_zero(image, sizeof(struct image_header), IMAGE_PAGE, watch, err);
    if (status == STELE_OK)
        status = check_zero(image, table_end, 2 * IMAGE_PAGE, watch, err);
    if (status != STELE_OK)
        return status;
    struct image_digest identity = image_identity(&image->header, image->sections);
    if (!memcmp(&identity, &image->header.identity, sizeof identity))
        return STELE_OK;
    found(watch, NULL, 0, table_end);
    return stele_fail(err, STELE_DAMAGED, "%s: its identity is not that of its sections; damaged, copy it again",
                      image->name);
}

enum stele_status image_verify(const struct image *image, struct image_watch *watch, struct stele_error *err)
{
    if (image->arrival)
        return stele_fail(err, STELE_USAGE, "%s: it is arriving; open it again when it is there", image->name);
    enum stele_status status = check_pages(image, watch, err);
    uint64_t end = 2 * IMAGE_PAGE;
    for (uint32_t i = 0; status == STELE_OK && i < image->header.sections; i++) {
        const struct image_section *s = &image->sections[i];
        status = check_zero(image, end, s->offset, watch, err);
        if (status == STELE_OK)
            status = check_section(image, s, watch, err);
        end = s->offset + s->bytes;
    }
    if (status == STELE_OK)
        status = check_zero(image, end, image->length, watch, err);
    return status;
}
