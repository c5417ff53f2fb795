/* SPDX-License-Identifier: Apache-2.0 */
/* What an image is: a digest of everything in it but where it came from (FORMAT.md, "Identity"). */
#include "image.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

static struct image_digest canonical(XXH128_hash_t hash)
{
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, hash);
    struct image_digest digest;
    memcpy(digest.bytes, bytes.digest, sizeof digest.bytes);
    return digest;
}

struct image_digest digest_chunk(const void *bytes, size_t length)
{
    return canonical(XXH3_128bits(bytes, length));
}

struct image_digest digest_of_digests(const struct image_digest *chunks, size_t n)
{
    return canonical(XXH3_128bits(chunks, n * sizeof *chunks));
}

/* Page 0 with the fields that depend on everything else zeroed. */
static void header_page(uint8_t page[IMAGE_PAGE], const struct image_header *header)
{
    struct image_header copy = *header;
    copy.check = 0;
    memset(page, 0, IMAGE_PAGE);
    memcpy(page, &copy, sizeof copy);
}

struct image_digest image_identity(const struct image_header *header, const struct image_section *sections)
{
    uint8_t bytes[2 * IMAGE_PAGE];
    struct image_header bare = *header;
    memset(&bare.identity, 0, sizeof bare.identity);
    bare.sections = 0;
    bare.file_bytes = 0;
    header_page(bytes, &bare);
    size_t length = IMAGE_PAGE;
    for (uint32_t i = 0; i < header->sections; i++)
        if (sections[i].kind != SECTION_PROVENANCE) {
            memcpy(bytes + length, &sections[i], sizeof sections[i]);
            length += sizeof sections[i];
        }
    return digest_chunk(bytes, length);
}

uint64_t image_check(const struct image_header *header, const struct image_section *sections)
{
    uint8_t pages[2 * IMAGE_PAGE] = {0};
    header_page(pages, header);
    memcpy(pages + IMAGE_PAGE, sections, header->sections * sizeof *sections);
    return XXH3_64bits(pages, sizeof pages);
}

void digest_text(char text[33], const struct image_digest *digest)
{
    for (size_t i = 0; i < sizeof digest->bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", digest->bytes[i]);
}
