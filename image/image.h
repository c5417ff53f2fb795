/* SPDX-License-Identifier: Apache-2.0 */
/* An image as it is mapped: open, sections, identity, verify. FORMAT.md is the specification. */
#ifndef IMAGE_IMAGE_H
#define IMAGE_IMAGE_H

#include <time.h>

#include "error.h"
#include "format.h"
#include "types.h"

struct arrival;

struct image {
    char *name;            /* the path it was opened by */
    const uint8_t *bytes;  /* the whole file, PROT_READ, MAP_SHARED */
    uint64_t length;
    int fd;                /* kept: who wants to know whether the file changed asks by it */
    struct timespec mtime, ctime;
    struct image_header header;                          /* a copy, checked */
    struct image_section sections[IMAGE_SECTIONS_MAX];   /* likewise */
    struct arrival *arrival; /* its writer is at work (arrival.h); NULL: it is whole */
};

/* Maps the image at `path` read-only and checks header and section table against the file; touches no section. A constant
 * number of system calls. STELE_OK: *out owns mapping and descriptor until image_close; views into it live as long.
 * Else *out is NULL and err->text one sentence. Any number of threads may use one image. */
enum stele_status image_open(struct image **out, const char *path, struct stele_error *err);

/* The same of an open file whose first two pages are not written yet: header and section table are given, and checked
 * alike. Takes the descriptor in any case. */
enum stele_status image_adopt(struct image **out, const char *name, int fd, const struct image_header *header,
                              const struct image_section *sections, struct stele_error *err);

void image_close(struct image *image);

/* The section of `kind`; NULL, and 0 bytes, where there is none. */
const uint8_t *image_section(const struct image *image, enum section_kind kind, uint64_t *bytes);

/* The same, for a section that must be there: STELE_INPUT names it. */
enum stele_status image_require(const struct image *image, enum section_kind kind, const uint8_t **out, uint64_t *bytes,
                                struct stele_error *err);

const char *section_name(uint32_t kind);

/* STELE_OK if size and mtime are still those of the opening; else STELE_DAMAGED. For an image that arrives, waits until it
 * is over, and asks whether what lies there is what was computed from. */
enum stele_status image_unchanged(const struct image *image, struct stele_error *err);

/* How far a verification is, and what it found. */
struct image_watch {
    void (*progress)(void *context, uint64_t done, uint64_t bytes); /* after each chunk or section; NULL: not told */
    void *context;
    const char *section;    /* out, where STELE_DAMAGED is returned: NULL where the damage is in no section, */
    uint64_t offset, bytes; /* and which bytes of the file are not all as they should be */
};

/* Reads every byte and compares it with its digest, bytes between sections with zero, the identity with the table.
 * STELE_DAMAGED names section, chunk and offset of the first difference. */
enum stele_status image_verify(const struct image *image, struct image_watch *watch, struct stele_error *err);

/* identity.c: digests. */
struct image_digest digest_chunk(const void *bytes, size_t length);

/* The digest of a section: over the digests of its chunks. */
struct image_digest digest_of_digests(const struct image_digest *chunks, size_t n);

/* The identity of what header and section table state (FORMAT.md, "Identity"), and the check over both pages. Fields of
 * the header that depend on these are taken as zero. */
struct image_digest image_identity(const struct image_header *header, const struct image_section *sections);
uint64_t image_check(const struct image_header *header, const struct image_section *sections);

/* 32 hexadecimal digits and NUL. */
void digest_text(char text[33], const struct image_digest *digest);

#endif
