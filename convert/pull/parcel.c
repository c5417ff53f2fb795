/* SPDX-License-Identifier: Apache-2.0 */
#include "parcel.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cpus.h"
#include "image.h"
#include "options.h"
#include "packed.h"
#include "placed.h"
#include "plan.h"
#include "pool.h"

enum { THREADS_MAX = 256, PER_THREAD = 4 /* chunks of a batch */ };

static const char pack_usage[] =
    "usage: stele pack IMAGE -o FILE [options]\n"
    "\n"
    "Packs an image for the way: zstd in frames of 2 MiB that stand alone, the bytes of floats sorted by their\n"
    "weight first. Its digests are checked before. `stele unpack` gives the image back, byte for byte; `stele\n"
    "pull` of an https address that ends in .stele.zst unpacks while it arrives.\n"
    "\n"
    "options:\n"
    "  -o FILE                 the file to write\n"
    "  -f                      replace FILE if it exists\n"
    "  --threads N             default: the CPUs this process may use\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage, 3 input, 4 damaged\n";

static const char unpack_usage[] =
    "usage: stele unpack FILE -o IMAGE [options]\n"
    "\n"
    "Gives the image back that `stele pack` packed, and checks every byte of it against its digests.\n"
    "\n"
    "options:\n"
    "  -o IMAGE                the file to write\n"
    "  -f                      replace IMAGE if it exists\n"
    "  --threads N             default: the CPUs this process may use\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage, 3 input, 4 damaged\n";

struct words {
    const char *verb, *usage, *source, *target;
    bool replace;
    size_t threads;
};

static enum stele_status read_words(struct words *w, int argc, char **argv, struct stele_error *err)
{
    const struct program_option options[] = {
        {"output", 'o', TAKES_TEXT, &w->target, 0, 0, 0},
        {"force", 'f', TAKES_NOTHING, &w->replace, 0, 0, 0},
        {"threads", 0, TAKES_COUNT, TO_NUMBER(w->threads), 1, THREADS_MAX},
        {0},
    };
    enum stele_status status = options_read(options, w->verb, w->usage, argc, argv, err);
    if (status == STELE_OK)
        status = options_operand(&w->source, "file", w->verb, argc, argv, err);
    if (status == STELE_OK && !w->target)
        status = stele_fail(err, STELE_USAGE, "no target is named; -o does");
    return status;
}

/* Chunks that threads work on at once. */
struct batch {
    const struct image *image;     /* packing */
    const struct packed_index *in; /* unpacking */
    const struct placed *out;      /* likewise: written by the threads */
    int fd;
    const char *name;
    uint8_t *widths;
    size_t first, count;
    uint8_t *rooms, *scratch, *chunks; /* [batch][packed_room], [threads][packed_scratch], [threads][IMAGE_CHUNK] */
    size_t *lengths;                   /* [batch] */
    ZSTD_CCtx **packers;               /* [threads] */
    ZSTD_DCtx **unpackers;
    size_t threads;
    struct pool *pool;
    struct stele_error *errors; /* [threads] */
};

static bool open_batch(struct batch *b, size_t threads)
{
    b->threads = threads;
    b->pool = pool_open(threads);
    b->rooms = malloc(threads * PER_THREAD * packed_room());
    b->scratch = malloc(threads * packed_scratch());
    b->chunks = malloc(threads * IMAGE_CHUNK);
    b->lengths = calloc(threads * PER_THREAD, sizeof *b->lengths);
    b->packers = calloc(threads, sizeof(ZSTD_CCtx *));
    b->unpackers = calloc(threads, sizeof(ZSTD_DCtx *));
    b->errors = calloc(threads, sizeof *b->errors);
    bool done = b->pool && b->rooms && b->scratch && b->chunks && b->lengths && b->packers && b->unpackers && b->errors;
    for (size_t t = 0; done && t < threads; t++)
        done = (b->packers[t] = ZSTD_createCCtx()) && (b->unpackers[t] = ZSTD_createDCtx());
    return done;
}

static void close_batch(struct batch *b)
{
    for (size_t t = 0; t < b->threads; t++) {
        if (b->packers)
            ZSTD_freeCCtx(b->packers[t]);
        if (b->unpackers)
            ZSTD_freeDCtx(b->unpackers[t]);
    }
    pool_close(b->pool);
    free(b->rooms);
    free(b->scratch);
    free(b->chunks);
    free(b->lengths);
    free(b->packers);
    free(b->unpackers);
    free(b->errors);
    free(b->widths);
}

/* The first thread's error, by number. */
static enum stele_status batch_status(const struct batch *b, struct stele_error *err)
{
    for (size_t t = 0; t < b->threads; t++)
        if (b->errors[t].status != STELE_OK) {
            *err = b->errors[t];
            return err->status;
        }
    return STELE_OK;
}

/* ---- pack ---- */

static unsigned width_of(uint32_t type)
{
    return type == TENSOR_F32 ? 4 : type == TENSOR_BF16 || type == TENSOR_F16 ? 2 : 1;
}

/* The width of each chunk of the file: that of the numbers which most of its bytes belong to. */
static enum stele_status find_widths(struct batch *b, size_t chunks, struct stele_error *err)
{
    struct plan plan;
    void *owned = NULL;
    const uint8_t *weights;
    uint32_t(*tally)[5] = calloc(chunks, sizeof *tally);
    b->widths = malloc(chunks);
    enum stele_status status = tally && b->widths ? plan_load(&plan, &owned, &weights, b->image, err)
                                                  : stele_fail(err, STELE_SYSTEM, "no memory for %zu chunks", chunks);
    for (uint32_t i = 0; status == STELE_OK && i < plan.tensor_count; i++) {
        const struct image_tensor *t = &plan.tensors[i];
        for (uint32_t e = 0; e < t->count; e++) {
            uint64_t at = (uint64_t)(weights - b->image->bytes) + t->offset + e * t->stride, end = at + t->bytes;
            for (; at < end; at = (at / IMAGE_CHUNK + 1) * IMAGE_CHUNK) {
                uint64_t room = (at / IMAGE_CHUNK + 1) * IMAGE_CHUNK - at;
                tally[at / IMAGE_CHUNK][width_of(t->type)] += (uint32_t)(end - at < room ? end - at : room);
            }
        }
    }
    for (size_t c = 0; status == STELE_OK && c < chunks; c++)
        b->widths[c] = tally[c][2] > tally[c][1] && tally[c][2] >= tally[c][4] ? 2 : tally[c][4] > tally[c][1] ? 4 : 1;
    free(owned);
    free(tally);
    return status;
}

static uint64_t chunk_bytes(const struct batch *b, size_t chunk)
{
    uint64_t at = (uint64_t)chunk * IMAGE_CHUNK;
    return b->image->length - at < IMAGE_CHUNK ? b->image->length - at : IMAGE_CHUNK;
}

static void pack_chunks(void *context, size_t from, size_t to, size_t thread)
{
    struct batch *b = context;
    for (size_t i = from; i < to; i++) {
        size_t c = b->first + i;
        b->lengths[i] =
            packed_encode(b->packers[thread], b->rooms + i * packed_room(), b->image->bytes + c * IMAGE_CHUNK,
                          chunk_bytes(b, c), b->widths[c], b->scratch + thread * packed_scratch());
        if (!b->lengths[i])
            stele_fail(&b->errors[thread], STELE_SYSTEM, "zstd cannot pack chunk %zu", c);
    }
}

static enum stele_status write_packed(struct batch *b, const struct placed *out, struct stele_error *err)
{
    uint8_t head[PACKED_HEAD];
    size_t chunks = (size_t)((b->image->length + IMAGE_CHUNK - 1) / IMAGE_CHUNK), length = 0;
    struct packed_frame *frames = calloc(chunks, sizeof *frames);
    uint64_t at = PACKED_HEAD;
    packed_write_head(head, b->image->length);
    enum stele_status status = frames ? placed_write(out, head, sizeof head, 0, err)
                                      : stele_fail(err, STELE_SYSTEM, "no memory for %zu chunks", chunks);
    for (b->first = 0; status == STELE_OK && b->first < chunks; b->first += b->count) {
        size_t most = b->threads * PER_THREAD;
        b->count = chunks - b->first < most ? chunks - b->first : most;
        pool_run(b->pool, b->count, pack_chunks, b);
        status = batch_status(b, err);
        for (size_t i = 0; status == STELE_OK && i < b->count; i++) {
            frames[b->first + i] = (struct packed_frame){
                .at = at, .length = (uint32_t)b->lengths[i], .bytes = (uint32_t)chunk_bytes(b, b->first + i)};
            status = placed_write(out, b->rooms + i * packed_room(), b->lengths[i], at, err);
            at += b->lengths[i];
        }
    }
    uint8_t *table = status == STELE_OK ? packed_write_table(frames, chunks, &length) : NULL;
    if (status == STELE_OK)
        status = table ? placed_write(out, table, length, at, err)
                       : stele_fail(err, STELE_SYSTEM, "no memory for the table");
    free(table);
    free(frames);
    return status;
}

static enum stele_status pack(const struct words *w, struct stele_error *err)
{
    struct image *image = NULL;
    struct batch b = {.fd = -1};
    struct placed out = {.fd = -1};
    enum stele_status status = image_open(&image, w->source, err);
    b.image = image;
    if (status == STELE_OK)
        status = placed_open(&out, w->target, w->replace, 0, err);
    if (status == STELE_OK)
        status = image_verify(image, &(struct image_watch){0}, err);
    if (status == STELE_OK && !open_batch(&b, w->threads))
        status = stele_fail(err, STELE_SYSTEM, "no memory to pack");
    if (status == STELE_OK)
        status = find_widths(&b, (size_t)((image->length + IMAGE_CHUNK - 1) / IMAGE_CHUNK), err);
    if (status == STELE_OK)
        status = write_packed(&b, &out, err);
    if (status == STELE_OK)
        status = image_unchanged(image, err);
    if (status == STELE_OK)
        status = placed_finish(&out, err);
    placed_close(&out);
    close_batch(&b);
    image_close(image);
    return status;
}

/* ---- unpack ---- */

static bool read_at(int fd, void *to, uint64_t length, uint64_t at)
{
    for (uint64_t n = 0; n < length;) {
        ssize_t got = pread(fd, (uint8_t *)to + n, length - n, (off_t)(at + n));
        if (!got || (got < 0 && errno != EINTR)) {
            errno = got ? errno : 0;
            return false;
        }
        n += got > 0 ? (uint64_t)got : 0;
    }
    return true;
}

static void unpack_chunks(void *context, size_t from, size_t to, size_t thread)
{
    struct batch *b = context;
    uint8_t *chunk = b->chunks + thread * IMAGE_CHUNK, *packed = b->rooms + thread * packed_room();
    for (size_t i = from; i < to && b->errors[thread].status == STELE_OK; i++) {
        const struct packed_frame *f = &b->in->frames[i];
        if (!read_at(b->fd, packed, f->length, f->at))
            stele_fail(&b->errors[thread], errno ? STELE_SYSTEM : STELE_DAMAGED, "%s: cannot read it: %s", b->name,
                       errno ? strerror(errno) : "it became shorter");
        else if (!packed_decode(b->unpackers[thread], chunk, f->bytes, packed, f->length,
                                b->scratch + thread * packed_scratch()))
            stele_fail(&b->errors[thread], STELE_DAMAGED, "%s: frame %zu is damaged; copy it again", b->name, i);
        else
            placed_write(b->out, chunk, f->bytes, i * (uint64_t)IMAGE_CHUNK, &b->errors[thread]);
    }
}

static enum stele_status read_index(struct packed_index *out, int fd, const char *name, struct stele_error *err)
{
    struct stat st;
    uint8_t head[PACKED_HEAD], foot[PACKED_FOOT];
    if (fd < 0 || fstat(fd, &st))
        return stele_fail(err, STELE_SYSTEM, "%s: %s", name, strerror(errno));
    uint64_t length = (uint64_t)st.st_size;
    if (!S_ISREG(st.st_mode) || length < PACKED_HEAD + 8 + PACKED_FOOT || !read_at(fd, head, sizeof head, 0) ||
        !read_at(fd, foot, sizeof foot, length - PACKED_FOOT))
        return stele_fail(err, STELE_INPUT, "%s: no packed image; `stele pack` makes one", name);
    uint64_t table_length = packed_table_length(foot);
    table_length = table_length > length - PACKED_HEAD ? 0 : table_length;
    uint8_t *table = malloc(table_length + 1);
    bool read = table && read_at(fd, table, table_length, length - table_length);
    enum stele_status status = read ? packed_read(out, head, table, table_length, length, name, err)
                                    : stele_fail(err, STELE_SYSTEM, "%s: cannot read its seek table", name);
    free(table);
    return status;
}

/* Every byte of what was unpacked, by the digests in it. */
static enum stele_status check_image(int fd, const char *source, struct stele_error *err)
{
    char path[64];
    struct image *image;
    struct stele_error why;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd); /* it has no other name yet */
    enum stele_status status = image_open(&image, path, &why);
    if (status == STELE_OK) {
        status = image_verify(image, &(struct image_watch){0}, &why);
        image_close(image);
    }
    return status == STELE_OK ? status : stele_fail(err, status, "%s: what it unpacks to: %s", source, why.text);
}

static enum stele_status unpack(const struct words *w, struct stele_error *err)
{
    struct packed_index index = {0};
    struct placed out = {.fd = -1};
    struct batch b = {
        .in = &index, .out = &out, .name = w->source, .fd = open(w->source, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    enum stele_status status = read_index(&index, b.fd, w->source, err);
    if (status == STELE_OK)
        status = placed_open(&out, w->target, w->replace, index.image_bytes, err);
    if (status == STELE_OK && !open_batch(&b, w->threads))
        status = stele_fail(err, STELE_SYSTEM, "no memory to unpack");
    if (status == STELE_OK) {
        pool_run(b.pool, index.count, unpack_chunks, &b);
        status = batch_status(&b, err);
    }
    if (status == STELE_OK)
        status = check_image(out.fd, w->source, err);
    if (status == STELE_OK)
        status = placed_finish(&out, err);
    placed_close(&out);
    close_batch(&b);
    if (b.fd >= 0)
        close(b.fd);
    free(index.frames);
    return status;
}

/* ---- both ---- */

static void on_sigbus(int number)
{
    static const char text[] = "stele pack: the image was cut short or cannot be read; nothing was written\n";
    (void)number;
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(STELE_DAMAGED);
}

static int run(struct words *w, enum stele_status (*work)(const struct words *, struct stele_error *), int argc,
               char **argv)
{
    struct stele_error err = {0};
    signal(SIGBUS, on_sigbus);
    w->threads = cpus_threads(THREADS_MAX);
    enum stele_status status = read_words(w, argc, argv, &err);
    struct stat source, target;
    if (status == STELE_OK && !stat(w->source, &source) && !stat(w->target, &target) && source.st_dev == target.st_dev &&
        source.st_ino == target.st_ino)
        status = stele_fail(&err, STELE_USAGE, "%s: is the file that is read; name another one", w->target);
    if (status == STELE_OK)
        status = work(w, &err);
    if (status != STELE_OK)
        fprintf(stderr, "stele %s: %s\n", w->verb, err.text);
    return (int)status;
}

int parcel_pack(int argc, char **argv)
{
    struct words w = {.verb = "pack", .usage = pack_usage};
    return run(&w, pack, argc, argv);
}

int parcel_unpack(int argc, char **argv)
{
    struct words w = {.verb = "unpack", .usage = unpack_usage};
    return run(&w, unpack, argc, argv);
}
