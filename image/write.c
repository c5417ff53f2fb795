/* SPDX-License-Identifier: Apache-2.0 */
#include "write.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "arrival.h"
#include "image.h"
#include "residency.h"

struct image_writer {
    char *path;      /* the target, links followed */
    char *temporary; /* name of the file being written; NULL while it has none */
    bool placed;        /* a section came in pieces, in any order */
    bool replace, keep; /* keep: the temporary was named by the caller and outlives this process */
    int fd;
    uint64_t at;     /* bytes of the image so far */
    /* The file is written by whole chunks of IMAGE_CHUNK bytes at multiples of it: so the page cache holds it in pages of
     * that size where the kernel has such, and who maps the new image finds it in a few entries instead of thousands. */
    uint8_t *buffer;                 /* [IMAGE_CHUNK], of the chunk under way; zeros where nothing was appended */
    uint64_t buffer_at, from, to;    /* its place in the file; the part of it that is to be written */
    struct image_header header;
    struct image_section sections[IMAGE_SECTIONS_MAX];
    XXH3_state_t *chunk; /* over the bytes of the chunk that is not full yet */
    uint64_t chunk_bytes;
    struct image_digest *digests; /* of the full chunks of the section begun last */
    size_t digest_count, digest_room;
    atomic_uint *missing;         /* of a placed section: bytes of each chunk that are not there yet */
    struct image_digest *weights; /* those of the weights, once these are complete */
    size_t weight_chunks;
};

static enum stele_status failed(const struct image_writer *w, struct stele_error *err)
{
    return stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", w->path, strerror(errno));
}

static enum stele_status write_at(struct image_writer *w, const void *bytes, uint64_t length, uint64_t at,
                                  struct stele_error *err)
{
    const uint8_t *from = bytes;
    while (length) {
        ssize_t n = pwrite(w->fd, from, length, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return failed(w, err);
        from += n;
        at += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return STELE_OK;
}

/* Writes the chunk under way. */
static enum stele_status flush(struct image_writer *w, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    if (w->to)
        status = write_at(w, w->buffer + w->from, w->to - w->from, w->buffer_at + w->from, err);
    memset(w->buffer, 0, IMAGE_CHUNK);
    w->from = w->to = 0;
    return status;
}

/* Puts bytes at w->at, behind everything before. */
static enum stele_status put(struct image_writer *w, const uint8_t *bytes, uint64_t length, struct stele_error *err)
{
    while (length) {
        uint64_t in = w->at % IMAGE_CHUNK, n = IMAGE_CHUNK - in < length ? IMAGE_CHUNK - in : length;
        if (w->to && w->buffer_at != w->at - in) {
            enum stele_status status = flush(w, err);
            if (status != STELE_OK)
                return status;
        }
        if (!w->to)
            w->from = in;
        w->buffer_at = w->at - in;
        memcpy(w->buffer + in, bytes, n);
        w->to = in + n;
        w->at += n;
        bytes += n;
        length -= n;
    }
    return STELE_OK;
}

/* A file without a name beside the target, or one with a name that cannot be taken. */
static enum stele_status open_temporary(struct image_writer *w, struct stele_error *err)
{
    char *copy = strdup(w->path);
    if (!copy)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", w->path);
    w->fd = open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    free(copy);
    if (w->fd >= 0)
        return STELE_OK;
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
        return failed(w, err);
    if (asprintf(&w->temporary, "%s.%ld.part", w->path, (long)getpid()) < 0) {
        w->temporary = NULL;
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", w->path);
    }
    w->fd = open(w->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return w->fd >= 0 ? STELE_OK : failed(w, err);
}

/* The target must not be there, or may be replaced and is a regular file. */
static enum stele_status check_target(struct image_writer *w, const char *path, bool replace, struct stele_error *err)
{
    struct stat st;
    bool exists = !stat(path, &st);
    if (!exists && !lstat(path, &st))
        return stele_fail(err, STELE_USAGE, "%s: a symbolic link to nothing", path);
    w->path = exists ? realpath(path, NULL) : strdup(path);
    if (!w->path)
        return stele_fail(err, STELE_SYSTEM, "%s: %s", path, strerror(errno));
    if (exists && !S_ISREG(st.st_mode)) {
        if (S_ISDIR(st.st_mode))
            return stele_fail(err, STELE_USAGE, "%s: is a directory; name a file for the image", path);
        return stele_fail(err, STELE_USAGE, "%s: not a regular file; an image can only be mapped from one", path);
    }
    if (exists && !replace)
        return stele_fail(err, STELE_USAGE, "%s: exists; -f replaces it", path);
    return STELE_OK;
}

static enum stele_status writer_new(struct image_writer **out, const char *path, bool replace, struct stele_error *err)
{
    struct image_writer *w = *out = calloc(1, sizeof *w);
    if (w)
        w->fd = -1;
    if (!w || !(w->chunk = XXH3_createState()) || !(w->buffer = calloc(1, IMAGE_CHUNK))) {
        image_abandon(w);
        *out = NULL;
        return stele_fail(err, STELE_SYSTEM, "%s: no memory to write it", path);
    }
    w->replace = replace;
    w->at = 2 * IMAGE_PAGE;
    memcpy(w->header.magic, IMAGE_MAGIC, sizeof w->header.magic);
    w->header.version = IMAGE_VERSION;
    w->header.numerics = NUMERICS_VERSION;
    return check_target(w, path, replace, err);
}

/* Hands the writer to the caller, or gives it up. */
static enum stele_status begun(struct image_writer **out, enum stele_status status)
{
    if (status != STELE_OK) {
        image_abandon(*out);
        *out = NULL;
    }
    return status;
}

enum stele_status image_begin(struct image_writer **out, const char *path, bool replace, uint64_t expected_bytes,
                              struct stele_error *err)
{
    enum stele_status status = writer_new(out, path, replace, err);
    if (status == STELE_OK)
        status = open_temporary(*out, err);
    if (status == STELE_OK && expected_bytes)
        status = image_reserve(*out, expected_bytes, err);
    return begun(out, status);
}

enum stele_status image_resume(struct image_writer **out, const char *path, bool replace, const char *partial,
                               struct stele_error *err)
{
    enum stele_status status = writer_new(out, path, replace, err);
    struct image_writer *w = *out;
    if (status == STELE_OK && !(w->temporary = strdup(partial)))
        status = stele_fail(err, STELE_SYSTEM, "%s: no memory to write it", path);
    if (status == STELE_OK) {
        w->keep = true;
        w->fd = open(partial, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (w->fd < 0)
            status = stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", partial, strerror(errno));
    }
    return begun(out, status);
}

enum stele_status image_reserve(struct image_writer *w, uint64_t bytes, struct stele_error *err)
{
    if (!fallocate(w->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) || errno == EOPNOTSUPP)
        return STELE_OK;
    return stele_fail(err, STELE_SYSTEM, "%s: cannot reserve the %" PRIu64 " bytes of the image: %s", w->path, bytes,
                      strerror(errno));
}

int image_descriptor(const struct image_writer *w)
{
    return w->fd;
}

static enum stele_status end_chunk(struct image_writer *w, struct stele_error *err)
{
    if (w->digest_count == w->digest_room) {
        size_t room = w->digest_room * 2 + 16;
        struct image_digest *more = realloc(w->digests, room * sizeof *more);
        if (!more)
            return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu digests", w->path, room);
        w->digests = more;
        w->digest_room = room;
    }
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, XXH3_128bits_digest(w->chunk));
    memcpy(w->digests[w->digest_count++].bytes, bytes.digest, sizeof bytes.digest);
    XXH3_128bits_reset(w->chunk);
    w->chunk_bytes = 0;
    return STELE_OK;
}

/* Ends the section begun last, if there is one. */
static enum stele_status end_section(struct image_writer *w, struct stele_error *err)
{
    if (!w->header.sections)
        return STELE_OK;
    struct image_section *s = &w->sections[w->header.sections - 1];
    for (size_t i = 0; w->missing && i < w->digest_count; i++)
        assert(!w->missing[i]);
    free(w->missing);
    w->missing = NULL;
    if (w->chunk_bytes) {
        enum stele_status status = end_chunk(w, err);
        if (status != STELE_OK)
            return status;
    }
    s->bytes = w->at - s->offset;
    s->digest = digest_of_digests(w->digests, w->digest_count);
    if (s->kind == SECTION_WEIGHTS) {
        w->weights = w->digests;
        w->weight_chunks = w->digest_count;
        w->digests = NULL;
        w->digest_room = 0;
    }
    w->digest_count = 0;
    return STELE_OK;
}

enum stele_status image_begin_section(struct image_writer *w, enum section_kind kind, uint64_t align,
                                      struct stele_error *err)
{
    enum stele_status status = end_section(w, err);
    if (status != STELE_OK)
        return status;
    assert(w->header.sections < IMAGE_SECTIONS_MAX && align >= IMAGE_ALIGN);
    w->at = round_up(w->at, align); /* what is skipped is a hole, zeros to a reader */
    w->sections[w->header.sections] =
        (struct image_section){.id = w->header.sections, .kind = (uint32_t)kind, .offset = w->at};
    w->header.sections++;
    XXH3_128bits_reset(w->chunk);
    w->chunk_bytes = 0;
    return STELE_OK;
}

enum stele_status image_begin_placed(struct image_writer *w, enum section_kind kind, uint64_t align, uint64_t length,
                                     struct stele_error *err)
{
    enum stele_status status = image_begin_section(w, kind, align, err);
    if (status == STELE_OK)
        status = flush(w, err); /* what is placed goes past the buffer, which must not cover it later */
    if (status != STELE_OK)
        return status;
    w->placed = true;
    w->digest_count = (size_t)((length + IMAGE_CHUNK - 1) / IMAGE_CHUNK);
    struct image_digest *digests = realloc(w->digests, (w->digest_count + 1) * sizeof *digests);
    w->digests = digests ? digests : w->digests;
    w->digest_room = digests ? w->digest_count + 1 : w->digest_room;
    w->missing = calloc(w->digest_count + 1, sizeof *w->missing);
    if (!digests || !w->missing)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu digests", w->path, w->digest_count);
    for (size_t i = 0; i < w->digest_count; i++)
        w->missing[i] = (unsigned)(length - i * IMAGE_CHUNK < IMAGE_CHUNK ? length - i * IMAGE_CHUNK : IMAGE_CHUNK);
    w->at += length;
    return STELE_OK;
}

enum stele_status image_announce(struct image_writer *w, int channel, const struct arrival_map *map, struct stele_error *err)
{
    struct image_header header = w->header;
    struct image_section sections[IMAGE_SECTIONS_MAX], *last = &sections[header.sections - 1];
    struct stat st;
    if (channel < 0)
        return STELE_OK;
    if (fstat(w->fd, &st) || ((uint64_t)st.st_size < w->at && ftruncate(w->fd, (off_t)w->at)))
        return failed(w, err);
    memcpy(sections, w->sections, sizeof sections);
    last->bytes = w->at - last->offset;
    header.file_bytes = w->at;
    header.check = image_check(&header, sections);
    arrival_begun(channel, w->fd, map, last->offset, &header, sections);
    return STELE_OK;
}

/* The digest of a chunk of a placed section, all of whose bytes are in the file. */
static enum stele_status digest_placed(struct image_writer *w, size_t chunk, struct stele_error *err)
{
    const struct image_section *s = &w->sections[w->header.sections - 1];
    uint64_t at = s->offset + chunk * IMAGE_CHUNK, end = w->at - at < IMAGE_CHUNK ? w->at : at + IMAGE_CHUNK;
    XXH3_state_t *state = XXH3_createState();
    XXH128_canonical_t digest;
    uint8_t piece[32 << 10]; /* of a cache's size, and no new pages for each chunk */
    if (!state)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for a chunk", w->path);
    XXH3_128bits_reset(state);
    while (at < end) {
        size_t want = end - at < sizeof piece ? (size_t)(end - at) : sizeof piece;
        ssize_t got = pread(w->fd, piece, want, (off_t)at);
        if (got < 0 && errno != EINTR) {
            XXH3_freeState(state);
            return stele_fail(err, STELE_SYSTEM, "%s: cannot read it back: %s", w->path, strerror(errno));
        }
        if (!got) { /* what lies beyond the end of the file is a hole that will be there */
            memset(piece, 0, want);
            got = (ssize_t)want;
        }
        XXH3_128bits_update(state, piece, got > 0 ? (size_t)got : 0);
        at += got > 0 ? (uint64_t)got : 0;
    }
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
    memcpy(w->digests[chunk].bytes, digest.digest, sizeof digest.digest);
    XXH3_freeState(state);
    return STELE_OK;
}

enum stele_status image_place(struct image_writer *w, const void *bytes, uint64_t length, uint64_t offset,
                              struct stele_error *err)
{
    const struct image_section *s = &w->sections[w->header.sections - 1];
    assert(w->missing && length <= w->at - s->offset && offset <= w->at - s->offset - length);
    enum stele_status status = bytes ? write_at(w, bytes, length, s->offset + offset, err) : STELE_OK;
    while (status == STELE_OK && length) {
        uint64_t room = IMAGE_CHUNK - offset % IMAGE_CHUNK, n = length < room ? length : room;
        size_t chunk = (size_t)(offset / IMAGE_CHUNK);
        unsigned before = atomic_fetch_sub(&w->missing[chunk], (unsigned)n);
        assert(before >= n);
        if (before == n)
            status = digest_placed(w, chunk, err);
        offset += n;
        length -= n;
    }
    return status;
}

enum stele_status image_append(struct image_writer *w, const void *bytes, uint64_t length, struct stele_error *err)
{
    enum stele_status status = put(w, bytes, length, err);
    const uint8_t *from = bytes;
    while (status == STELE_OK && length) {
        uint64_t n = IMAGE_CHUNK - w->chunk_bytes < length ? IMAGE_CHUNK - w->chunk_bytes : length;
        XXH3_128bits_update(w->chunk, from, n);
        w->chunk_bytes += n;
        from += n;
        length -= n;
        if (w->chunk_bytes == IMAGE_CHUNK)
            status = end_chunk(w, err);
    }
    return status;
}

enum stele_status image_write_section(struct image_writer *w, enum section_kind kind, const void *bytes, uint64_t length,
                                      struct stele_error *err)
{
    enum stele_status status = image_begin_section(w, kind, IMAGE_ALIGN, err);
    return status == STELE_OK ? image_append(w, bytes, length, err) : status;
}

enum stele_status image_write_digests(struct image_writer *w, struct stele_error *err)
{
    enum stele_status status = image_begin_section(w, SECTION_DIGESTS, IMAGE_ALIGN, err);
    return status == STELE_OK ? image_append(w, w->weights, w->weight_chunks * sizeof *w->weights, err) : status;
}

/* Syncs the directory that holds `path`, so that the new name survives a loss of power. */
static void sync_directory(const char *path)
{
    char *copy = strdup(path);
    int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd); /* some file systems refuse; the file itself is safe */
        close(fd);
    }
    free(copy);
}

static enum stele_status exists_now(const struct image_writer *w, struct stele_error *err)
{
    return stele_fail(err, STELE_USAGE, "%s: exists; -f replaces it", w->path);
}

/* Gives the file its name: where nothing may be replaced by a link, which refuses to; else beside the target first, then
 * renamed over it. */
static enum stele_status place(struct image_writer *w, struct stele_error *err)
{
    if (!w->temporary) {
        char from[64];
        snprintf(from, sizeof from, "/proc/self/fd/%d", w->fd);
        if (!w->replace) {
            if (linkat(AT_FDCWD, from, AT_FDCWD, w->path, AT_SYMLINK_FOLLOW))
                return errno == EEXIST ? exists_now(w, err) : failed(w, err);
            sync_directory(w->path);
            return STELE_OK;
        }
        if (asprintf(&w->temporary, "%s.%ld.part", w->path, (long)getpid()) < 0) {
            w->temporary = NULL;
            return stele_fail(err, STELE_SYSTEM, "%s: no memory", w->path);
        }
        unlink(w->temporary); /* left by a process of this number that was killed between link and rename */
        if (linkat(AT_FDCWD, from, AT_FDCWD, w->temporary, AT_SYMLINK_FOLLOW)) {
            enum stele_status status = failed(w, err);
            free(w->temporary);
            w->temporary = NULL;
            return status;
        }
    }
    if (renameat2(AT_FDCWD, w->temporary, AT_FDCWD, w->path, w->replace ? 0 : RENAME_NOREPLACE) &&
        (w->replace || errno != EINVAL || rename(w->temporary, w->path))) /* EINVAL: the file system lacks the flag */
        return errno == EEXIST ? exists_now(w, err) : failed(w, err);
    free(w->temporary);
    w->temporary = NULL;
    sync_directory(w->path);
    return STELE_OK;
}

static enum stele_status write_header(struct image_writer *w, struct stele_error *err)
{
    uint8_t pages[2 * IMAGE_PAGE] = {0};
    w->header.file_bytes = w->at;
    w->header.identity = image_identity(&w->header, w->sections);
    w->header.check = image_check(&w->header, w->sections);
    memcpy(pages, &w->header, sizeof w->header);
    memcpy(pages + IMAGE_PAGE, w->sections, w->header.sections * sizeof *w->sections);
    return write_at(w, pages, sizeof pages, 0, err);
}

/* Small writes leave small pages in the page cache: what was placed in pieces is dropped and read once, so that whoever
 * maps the image finds it in large ones, as what was appended is. Nothing is lost where that cannot be. */
static void enlarge_pages(const struct image_writer *w)
{
    struct stele_error ignored;
    void *bytes = mmap(NULL, w->at, PROT_READ, MAP_SHARED, w->fd, 0);
    if (bytes == MAP_FAILED)
        return;
    struct image image = {.name = w->path, .fd = w->fd, .bytes = bytes, .length = w->at};
    image_warm(&image, true, NULL, NULL, &ignored);
    munmap(bytes, w->at);
}

enum stele_status image_finish(struct image_writer *w, struct stele_error *err)
{
    enum stele_status status = end_section(w, err);
    if (status == STELE_OK)
        status = flush(w, err);
    if (status == STELE_OK && w->keep && fdatasync(w->fd)) /* header and table take the place of what a kept file goes on by */
        status = failed(w, err);
    if (status == STELE_OK)
        status = write_header(w, err);
    if (status == STELE_OK && (ftruncate(w->fd, (off_t)w->at) || fsync(w->fd)))
        status = failed(w, err);
    if (status == STELE_OK)
        status = place(w, err);
    if (status == STELE_OK && w->placed)
        enlarge_pages(w);
    image_abandon(w);
    return status;
}

void image_abandon(struct image_writer *w)
{
    if (!w)
        return;
    if (w->temporary && !w->keep)
        unlink(w->temporary);
    if (w->fd >= 0)
        close(w->fd);
    XXH3_freeState(w->chunk);
    free(w->buffer);
    free(w->temporary);
    free(w->digests);
    free(w->missing);
    free(w->weights);
    free(w->path);
    free(w);
}
