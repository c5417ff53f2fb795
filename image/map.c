/* SPDX-License-Identifier: Apache-2.0 */
/* Opens an image: header and section table are checked against the file, no section is touched. */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arrival.h"

const char *section_name(uint32_t kind)
{
    static const char *const names[SECTION_KINDS] = {
        [SECTION_PLAN] = "plan",         [SECTION_TENSORS] = "tensors", [SECTION_TOKENIZER] = "tokenizer",
        [SECTION_DEFAULTS] = "defaults", [SECTION_WEIGHTS] = "weights", [SECTION_DIGESTS] = "digests",
        [SECTION_PROVENANCE] = "provenance", [SECTION_TEMPLATES] = "templates",
    };
    return kind < SECTION_KINDS && names[kind] ? names[kind] : "unknown section";
}

/* The sections must lie behind page 1, ascending, apart, and within the file; nothing is said of what is in them. */
static enum stele_status check_sections(const struct image *image, struct stele_error *err)
{
    uint64_t end = 2 * IMAGE_PAGE;
    uint32_t seen = 0;
    for (uint32_t i = 0; i < image->header.sections; i++) {
        const struct image_section *s = &image->sections[i];
        if (s->id != i)
            return stele_fail(err, STELE_INPUT, "%s: section %" PRIu32 ": its id is %" PRIu32, image->name, i, s->id);
        if ((!s->kind || s->kind >= SECTION_KINDS) && !(s->kind & (uint32_t)IMAGE_OPTIONAL))
            return stele_fail(err, STELE_INPUT,
                              "%s: section %" PRIu32 ": unknown kind %" PRIu32 "; made by a later stele?", image->name,
                              i, s->kind);
        if (s->kind < SECTION_KINDS && seen >> s->kind & 1)
            return stele_fail(err, STELE_INPUT, "%s: section %" PRIu32 ": a second %s", image->name, i,
                              section_name(s->kind));
        if (s->kind < SECTION_KINDS)
            seen |= 1u << s->kind;
        if (s->offset % (s->kind == SECTION_WEIGHTS ? IMAGE_PAGE : IMAGE_ALIGN) || s->offset < end)
            return stele_fail(err, STELE_INPUT,
                              "%s: section %" PRIu32 " (%s): begins at %" PRIu64
                              ", where no section can begin (the one before ends at %" PRIu64 ")",
                              image->name, i, section_name(s->kind), s->offset, end);
        if (s->offset > image->length || s->bytes > image->length - s->offset)
            return stele_fail(err, STELE_INPUT,
                              "%s: section %" PRIu32 " (%s): bytes %" PRIu64 " + %" PRIu64
                              " lie beyond the end at %" PRIu64,
                              image->name, i, section_name(s->kind), s->offset, s->bytes, image->length);
        end = s->offset + s->bytes;
    }
    return STELE_OK;
}

static enum stele_status check_header(struct image *image, const void *table, struct stele_error *err)
{
    const struct image_header *h = &image->header;
    size_t have = image->length < sizeof h->magic ? (size_t)image->length : sizeof h->magic;
    if (!memcmp(h->magic, IMAGE_MAGIC, have) && image->length < 2 * IMAGE_PAGE)
        return stele_fail(err, STELE_DAMAGED, "%s: %" PRIu64 " bytes are not even its header; cut short, copy it again",
                          image->name, image->length);
    if (image->length < 2 * IMAGE_PAGE || memcmp(h->magic, IMAGE_MAGIC, sizeof h->magic))
        return stele_fail(err, STELE_INPUT, "%s: not a stele image; `stele convert` makes one of a checkpoint",
                          image->name);
    if (h->version != IMAGE_VERSION)
        return stele_fail(err, STELE_INPUT,
                          "%s: an image of format version %" PRIu32 "; this stele reads version %d, convert it again",
                          image->name, h->version, IMAGE_VERSION);
    if (h->sections > IMAGE_SECTIONS_MAX)
        return stele_fail(err, STELE_INPUT, "%s: header: %" PRIu32 " sections, more than %d", image->name, h->sections,
                          IMAGE_SECTIONS_MAX);
    memcpy(image->sections, table, h->sections * sizeof *image->sections);
    if (h->check != image_check(h, image->sections))
        return stele_fail(err, STELE_DAMAGED, "%s: header and section table do not have their check sum; copy it again",
                          image->name);
    if (h->file_bytes != image->length)
        return stele_fail(err, STELE_DAMAGED,
                          "%s: %" PRIu64 " bytes long instead of %" PRIu64 "; cut short or damaged, copy it again",
                          image->name, image->length, h->file_bytes);
    if (h->reserved)
        return stele_fail(err, STELE_INPUT, "%s: header: the reserved field is %" PRIu32, image->name, h->reserved);
    if (h->numerics != NUMERICS_VERSION)
        return stele_fail(err, STELE_INPUT,
                          "%s: its answers follow numerics version %" PRIu32
                          ", which this stele does not compute (it knows %d); convert it again",
                          image->name, h->numerics, NUMERICS_VERSION);
    return check_sections(image, err);
}

/* Maps the file, or as much of it as `length` says. */
static enum stele_status map_file(struct image *image, uint64_t length, struct stele_error *err)
{
    struct stat st;
    if (image->fd < 0 || fstat(image->fd, &st))
        return stele_fail(err, STELE_SYSTEM, "%s: %s", image->name, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return stele_fail(err, STELE_INPUT, "%s: not a regular file, so it cannot be mapped", image->name);
    image->length = (uint64_t)st.st_size < length ? (uint64_t)st.st_size : length;
    image->mtime = st.st_mtim;
    image->ctime = st.st_ctim;
    if (!image->length)
        return stele_fail(err, STELE_INPUT, "%s: the file is empty", image->name);
    void *bytes = mmap(NULL, image->length, PROT_READ, MAP_SHARED, image->fd, 0);
    if (bytes == MAP_FAILED)
        return stele_fail(err, STELE_SYSTEM, "%s: cannot map its %" PRIu64 " bytes: %s", image->name, image->length,
                          strerror(errno));
    image->bytes = bytes;
    return STELE_OK;
}

/* An image without anything, or NULL. */
static struct image *image_new(const char *name, struct stele_error *err)
{
    struct image *image = calloc(1, sizeof *image);
    if (image && (image->name = strdup(name))) {
        image->fd = -1;
        return image;
    }
    free(image);
    stele_fail(err, STELE_SYSTEM, "%s: no memory to open it", name);
    return NULL;
}

/* Hands the image to the caller, or gives it up. */
static enum stele_status opened(struct image **out, struct image *image, enum stele_status status)
{
    if (status == STELE_OK)
        *out = image;
    else
        image_close(image);
    return status;
}

enum stele_status image_open(struct image **out, const char *path, struct stele_error *err)
{
    *out = NULL;
    struct image *image = image_new(path, err);
    if (!image)
        return STELE_SYSTEM;
    image->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    enum stele_status status = map_file(image, UINT64_MAX, err);
    uint8_t pages[2 * IMAGE_PAGE] = {0}; /* read, not mapped: of a file cut short now nobody awaits the signal yet */
    if (status == STELE_OK && pread(image->fd, pages, sizeof pages, 0) < 0)
        status = stele_fail(err, STELE_SYSTEM, "%s: cannot read its header: %s", image->name, strerror(errno));
    if (status == STELE_OK) {
        memcpy(&image->header, pages, sizeof image->header);
        status = check_header(image, pages + IMAGE_PAGE, err);
    }
    return opened(out, image, status);
}

enum stele_status image_adopt(struct image **out, const char *name, int fd, const struct image_header *header,
                              const struct image_section *sections, struct stele_error *err)
{
    *out = NULL;
    struct image *image = image_new(name, err);
    if (!image) {
        close(fd);
        return STELE_SYSTEM;
    }
    image->fd = fd;
    image->header = *header;
    enum stele_status status = map_file(image, header->file_bytes, err);
    if (status == STELE_OK)
        status = check_header(image, sections, err);
    return opened(out, image, status);
}

void image_close(struct image *image)
{
    if (!image)
        return;
    arrival_close(image->arrival);
    if (image->bytes)
        munmap((void *)(uintptr_t)image->bytes, image->length);
    if (image->fd >= 0)
        close(image->fd);
    free(image->name);
    free(image);
}

const uint8_t *image_section(const struct image *image, enum section_kind kind, uint64_t *bytes)
{
    for (uint32_t i = 0; i < image->header.sections; i++)
        if (image->sections[i].kind == (uint32_t)kind) {
            *bytes = image->sections[i].bytes;
            return image->bytes + image->sections[i].offset;
        }
    *bytes = 0;
    return NULL;
}

enum stele_status image_require(const struct image *image, enum section_kind kind, const uint8_t **out, uint64_t *bytes,
                                struct stele_error *err)
{
    *out = image_section(image, kind, bytes);
    if (*out)
        return STELE_OK;
    return stele_fail(err, STELE_INPUT, "%s: the image has no section \"%s\"", image->name, section_name(kind));
}

/* Whether the file is now an image whose sections are those that it arrived as. */
static bool became(const struct image *image)
{
    const struct image_header *h = (const struct image_header *)image->bytes;
    const size_t table = image->header.sections * sizeof *image->sections, undecided = sizeof(struct image_digest);
    return !memcmp(h->magic, IMAGE_MAGIC, sizeof h->magic) && h->sections >= image->header.sections && table &&
           !memcmp(image->bytes + IMAGE_PAGE, image->sections, table - undecided); /* the last one's digest */
}

enum stele_status image_unchanged(const struct image *image, struct stele_error *err)
{
    struct stat st;
    enum stele_status status = image_await_over(image, err);
    if (status != STELE_OK)
        return status;
    if (fstat(image->fd, &st))
        return stele_fail(err, STELE_SYSTEM, "%s: %s", image->name, strerror(errno));
    bool same = (uint64_t)st.st_size == image->length && st.st_mtim.tv_sec == image->mtime.tv_sec &&
                st.st_mtim.tv_nsec == image->mtime.tv_nsec;
    if (image->arrival)
        same = (uint64_t)st.st_size >= image->length && became(image);
    if (same)
        return STELE_OK;
    return stele_fail(err, STELE_DAMAGED, "%s: the file was changed while it was in use; the answer cannot be trusted",
                      image->name);
}
