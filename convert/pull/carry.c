/* SPDX-License-Identifier: Apache-2.0 */
#include "carry.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "arrival.h"
#include "image.h"
#include "pool.h"

enum { STEP_FRAMES = 16, TABLE_BYTES_MAX = 1 << 30 };

/* ---- what it is ---- */

static enum stele_status fetch_part(struct http *http, struct remote *remote, uint64_t from, uint64_t length,
                                    uint8_t **out, struct stele_error *err)
{
    struct fetch fetch = {.remote = remote, .from = from, .most = length};
    enum stele_status status = http_fetch(http, &fetch, 1, TABLE_BYTES_MAX, err);
    if (status == STELE_OK && fetch.length != length)
        status = stele_fail(err, STELE_DAMAGED, "%s: it is shorter than its server says", remote->name);
    if (status == STELE_OK)
        *out = fetch.bytes;
    else
        free(fetch.bytes);
    return status;
}

static enum stele_status open_packed(struct carry *c, struct http *http, const uint8_t *head, struct stele_error *err)
{
    uint8_t *foot = NULL, *table = NULL;
    const uint64_t length = c->remote->length;
    if (c->remote->rangeless)
        return stele_fail(err, STELE_INPUT,
                          "%s: its server serves no ranges, which a packed image needs; fetch the file and use "
                          "`stele unpack`",
                          c->remote->name);
    enum stele_status status = fetch_part(http, c->remote, length - PACKED_FOOT, PACKED_FOOT, &foot, err);
    uint64_t table_length = status == STELE_OK ? packed_table_length(foot) : 0;
    if (status == STELE_OK && (!table_length || table_length > length - PACKED_HEAD || table_length > TABLE_BYTES_MAX))
        status = stele_fail(err, STELE_DAMAGED, "%s: it does not end in its seek table; cut short?", c->remote->name);
    if (status == STELE_OK)
        status = fetch_part(http, c->remote, length - table_length, table_length, &table, err);
    if (status == STELE_OK)
        status = packed_read(&c->index, head, table, table_length, length, c->remote->name, err);
    free(foot);
    free(table);
    return status;
}

static enum stele_status open_plain(struct carry *c, struct stele_error *err)
{
    uint64_t length = c->remote->length;
    size_t count = (size_t)((length + IMAGE_CHUNK - 1) / IMAGE_CHUNK);
    c->index =
        (struct packed_index){.image_bytes = length, .frames = calloc(count, sizeof *c->index.frames), .count = count};
    if (!c->index.frames)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu chunks", c->remote->name, count);
    for (size_t i = 0; i < count; i++) {
        uint64_t at = (uint64_t)i * IMAGE_CHUNK;
        uint32_t n = (uint32_t)(length - at < IMAGE_CHUNK ? length - at : IMAGE_CHUNK);
        c->index.frames[i] = (struct packed_frame){.at = at, .length = n, .bytes = n};
    }
    return STELE_OK;
}

enum stele_status carry_open(struct carry *out, struct http *http, struct remote *remote, struct stele_error *err)
{
    *out = (struct carry){.remote = remote};
    struct fetch head = {.remote = remote, .most = PACKED_HEAD};
    enum stele_status status = http_fetch(http, &head, 1, TABLE_BYTES_MAX, err);
    if (status != STELE_OK)
        return status;
    if (remote->length == UINT64_MAX)
        status = stele_fail(err, STELE_UNREACHABLE, "%s: its server does not say how long it is", remote->name);
    else if (head.length == PACKED_HEAD && remote->length > 2 * IMAGE_PAGE && !memcmp(head.bytes, IMAGE_MAGIC, 8))
        status = open_plain(out, err);
    else if (head.length == PACKED_HEAD && remote->length > PACKED_HEAD + PACKED_FOOT &&
             !memcmp(head.bytes + 8, "STELEzst", 8)) {
        out->packed = true;
        status = open_packed(out, http, head.bytes, err);
    } else
        status = stele_fail(err, STELE_INPUT, "%s: neither an image nor a packed one", remote->name);
    free(head.bytes);
    return status;
}

void carry_close(struct carry *c)
{
    free(c->index.frames);
    *c = (struct carry){0};
}

/* ---- fetching ---- */

struct carrier {
    const struct carry *carry;
    const struct stream_options *options;
    const char *path;
    struct window *window;
    struct pool *pool;
    int fd;
    size_t first;               /* frame of the step */
    uint8_t *chunks, *scratch;  /* [threads][IMAGE_CHUNK], [threads][packed_scratch] */
    ZSTD_DCtx **unpackers;      /* [threads] */
    struct stele_error *errors; /* [threads] */
    union {
        uint8_t bytes[2 * IMAGE_PAGE];
        struct image_header header;
    } head;
    struct arrival_map map; /* its pieces are the frames */
    bool announced;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Unpacks a frame and writes it, but for the first two pages, which are kept. */
static enum stele_status lay_frame(struct carrier *c, size_t index, const uint8_t *bytes, size_t thread,
                                   struct stele_error *err)
{
    const struct packed_frame *f = &c->carry->index.frames[index];
    uint64_t at = (uint64_t)index * IMAGE_CHUNK, n = f->bytes;
    if (c->carry->packed) {
        uint8_t *chunk = c->chunks + thread * IMAGE_CHUNK;
        if (!packed_decode(c->unpackers[thread], chunk, n, bytes, f->length, c->scratch + thread * packed_scratch()))
            return stele_fail(err, STELE_DAMAGED, "%s: frame %zu is damaged; nothing was kept", c->carry->remote->name,
                              index);
        bytes = chunk;
    }
    if (!index) {
        uint64_t keep = n < sizeof c->head ? n : sizeof c->head;
        memcpy(c->head.bytes, bytes, keep);
        bytes += keep;
        at += keep;
        n -= keep;
    }
    while (n) {
        ssize_t done = pwrite(c->fd, bytes, n, (off_t)at);
        if (done < 0 && errno != EINTR)
            return stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", c->path, strerror(errno));
        done = done < 0 ? 0 : done;
        bytes += done;
        at += (uint64_t)done;
        n -= (uint64_t)done;
    }
    arrival_laid(&c->map, (uint64_t)index * IMAGE_CHUNK, f->bytes);
    return STELE_OK;
}

/* Frames that hold all sections but the weights and what lies behind them, which nobody computes from; SIZE_MAX where the
 * table is none. */
static size_t frames_before_weights(const struct carrier *c)
{
    struct image_section sections[IMAGE_SECTIONS_MAX];
    uint64_t end = 0;
    if (c->head.header.sections > IMAGE_SECTIONS_MAX)
        return SIZE_MAX;
    memcpy(sections, c->head.bytes + IMAGE_PAGE, sizeof sections);
    for (uint32_t i = 0; i < c->head.header.sections; i++) {
        const struct image_section *s = &sections[i];
        if (s->offset > c->carry->index.image_bytes || s->bytes > c->carry->index.image_bytes - s->offset)
            return SIZE_MAX;
        bool awaited = s->kind == SECTION_WEIGHTS || s->kind == SECTION_DIGESTS || s->kind == SECTION_PROVENANCE;
        end = !awaited && s->offset + s->bytes > end ? s->offset + s->bytes : end;
    }
    return (size_t)((end + IMAGE_CHUNK - 1) / IMAGE_CHUNK);
}

/* Tells who listens what has come. */
static enum stele_status announce(struct carrier *c, struct stele_error *err)
{
    const uint64_t length = c->carry->index.image_bytes;
    if (c->options->channel < 0)
        return STELE_OK;
    if (!c->announced && c->first >= frames_before_weights(c) && c->head.header.file_bytes == length) {
        if (ftruncate(c->fd, (off_t)length))
            return stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", c->path, strerror(errno));
        arrival_begun(c->options->channel, c->fd, &c->map, 0, &c->head.header,
                      (const struct image_section *)(c->head.bytes + IMAGE_PAGE));
        c->announced = true;
    }
    if (c->announced)
        arrival_more(c->options->channel);
    return STELE_OK;
}

static void lay_frames(void *context, size_t from, size_t to, size_t thread)
{
    struct carrier *c = context;
    const struct source_window *w = window_bytes(c->window);
    for (size_t i = from; i < to && c->errors[thread].status == STELE_OK; i++)
        lay_frame(c, c->first + i, w->bytes + c->carry->index.frames[c->first + i].at % w->size, thread,
                  &c->errors[thread]);
}

/* The first frame by itself, where an earlier pull went beyond it. */
static enum stele_status fetch_head(struct carrier *c, struct stele_error *err)
{
    const struct packed_frame *f = &c->carry->index.frames[0];
    uint8_t *bytes;
    enum stele_status status = fetch_part(c->options->http, c->carry->remote, f->at, f->length, &bytes, err);
    if (status == STELE_OK) {
        status = lay_frame(c, 0, bytes, 0, err);
        free(bytes);
    }
    return status;
}

static enum stele_status lay_all(struct carrier *c, struct journal *journal, struct stele_error *err)
{
    const struct packed_frame *frames = c->carry->index.frames;
    const size_t count = c->carry->index.count;
    uint64_t end = frames[count - 1].at + frames[count - 1].length, ready = 0;
    enum stele_status status = STELE_OK;
    while (c->first < count && frames[c->first].at < journal->at)
        if (c->first++)
            arrival_laid(&c->map, (uint64_t)(c->first - 1) * IMAGE_CHUNK, IMAGE_CHUNK);
    if (c->first)
        status = announce(c, err);
    while (status == STELE_OK && c->first < count) {
        status = window_wait(c->window, frames[c->first].at + frames[c->first].length - 1, &ready, err);
        if (status != STELE_OK)
            break;
        size_t n = 0;
        while (n < STEP_FRAMES && c->first + n < count &&
               frames[c->first + n].at + frames[c->first + n].length <= ready)
            n++;
        pool_run(c->pool, n, lay_frames, c);
        for (size_t t = 0; status == STELE_OK && t < c->options->threads; t++)
            if (c->errors[t].status != STELE_OK) {
                *err = c->errors[t];
                status = err->status;
            }
        c->first += n;
        journal->at = c->first < count ? frames[c->first].at : end;
        window_release(c->window, journal->at);
        if (status == STELE_OK && !journal_write(journal, c->fd, journal->at - journal->synced >= (uint64_t)1 << 30))
            status = stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", c->path, strerror(errno));
        if (status == STELE_OK)
            status = announce(c, err);
        c->options->progress(c->options->context, journal->at, end, window_active(c->window));
    }
    return status;
}

/* The first pages, which make it an image; then every byte by its digests. */
static enum stele_status seal(struct carrier *c, struct stele_error *err)
{
    struct image *image;
    uint64_t length = c->carry->index.image_bytes;
    if (pwrite(c->fd, &c->head, sizeof c->head, 0) != (ssize_t)sizeof c->head || ftruncate(c->fd, (off_t)length))
        return stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", c->path, strerror(errno));
    enum stele_status status = image_open(&image, c->path, err);
    if (status != STELE_OK)
        return status;
    status = image_verify(image, &(struct image_watch){0}, err);
    image_close(image);
    if (status != STELE_OK)
        return status;
    c->options->whole(c->options->context);
    return fsync(c->fd) ? stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", c->path, strerror(errno)) : STELE_OK;
}

static bool open_carrier(struct carrier *c)
{
    size_t threads = c->options->threads;
    c->pool = pool_open(threads);
    c->chunks = malloc(threads * IMAGE_CHUNK);
    c->scratch = malloc(threads * packed_scratch());
    c->unpackers = calloc(threads, sizeof(ZSTD_DCtx *));
    c->errors = calloc(threads, sizeof *c->errors);
    bool done = c->pool && c->chunks && c->scratch && c->unpackers && c->errors;
    for (size_t t = 0; done && t < threads; t++)
        done = (c->unpackers[t] = ZSTD_createDCtx()) != NULL;
    size_t count = c->carry->index.count;
    uint64_t *at = malloc((count + 1) * sizeof *at);
    for (size_t i = 0; at && i <= count; i++)
        at[i] = i < count ? (uint64_t)i * IMAGE_CHUNK : c->carry->index.image_bytes;
    struct stele_error ignored;
    done = done && at && arrival_map_open(&c->map, at, count, &ignored) == STELE_OK;
    free(at);
    return done;
}

static void close_carrier(struct carrier *c)
{
    window_close(c->window);
    pool_close(c->pool);
    for (size_t t = 0; c->unpackers && t < c->options->threads; t++)
        ZSTD_freeDCtx(c->unpackers[t]);
    free(c->chunks);
    free(c->scratch);
    free(c->unpackers);
    free(c->errors);
    arrival_map_close(&c->map);
}

enum stele_status carry_image(const struct carry *carry, const struct stream_options *options, int fd, const char *path,
                              struct journal *journal, struct stream_stats *stats, struct stele_error *err)
{
    struct carrier c = {.carry = carry, .options = options, .path = path, .fd = fd};
    struct window_options window = {
        .files = carry->remote,
        .file_count = 1,
        .from = journal->at > carry->index.frames[0].at ? journal->at : carry->index.frames[0].at,
        .memory = options->memory,
        .chunk = options->chunk,
        .connections = options->connections,
    };
    uint64_t size;
    double begin = now();
    *stats = (struct stream_stats){.resumed = journal->at, .total = carry->remote->length};
    enum stele_status status =
        open_carrier(&c) ? STELE_OK : stele_fail(err, STELE_SYSTEM, "no memory to fetch an image");
    if (status == STELE_OK && journal->at > carry->index.frames[0].at)
        status = fetch_head(&c, err);
    if (status == STELE_OK)
        status = window_size(&window, packed_room(), &size, err);
    if (status == STELE_OK)
        status = window_open(&c.window, options->http, &window, size, err);
    if (status == STELE_OK)
        status = lay_all(&c, journal, err);
    if (c.window)
        stats->window = window_stats(c.window);
    if (status == STELE_OK)
        status = seal(&c, err);
    stats->seconds = now() - begin;
    close_carrier(&c);
    return status;
}
