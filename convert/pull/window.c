/* SPDX-License-Identifier: Apache-2.0 */
#include "window.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { READ_MOST = 1 << 20 /* what curl hands over at once is less */ };

/* A part of the stream between tail and next, or an early piece. */
struct piece {
    struct window *window;
    struct transfer transfer;
    uint64_t at, length;
    struct early *early; /* what is copied instead of being fetched; NULL: it is fetched */
    bool begun, done;
};

struct window {
    struct window_options options;
    struct source_window ring;
    struct http *http;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows; the rest is the thread's own */
    pthread_cond_t changed;
    uint64_t tail, ready, total;
    double arrived; /* when all was there; 0 before */
    unsigned active;
    bool stop;
    enum stele_status status;
    struct stele_error err;
    struct window_stats stats;

    uint64_t next;
    struct piece *pieces; /* [room], a ring: those from first on, in order of the stream */
    size_t room, first, count;
    struct piece *early; /* [early_count] */
    size_t early_begun;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(struct window *w, enum stele_status status, const struct stele_error *err)
{
    pthread_mutex_lock(&w->lock);
    if (w->status == STELE_OK) {
        w->status = status;
        w->err = *err;
    }
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

/* ---- arriving ---- */

static uint8_t *ring_at(const struct window *w, uint64_t at)
{
    return (uint8_t *)(uintptr_t)w->ring.bytes + at % w->ring.size;
}

/* Moves `ready` over what the first pieces have, and forgets those that are complete. */
static void advance(struct window *w)
{
    uint64_t ready = w->ready;
    while (w->count) {
        struct piece *p = &w->pieces[w->first];
        ready = p->at + (p->early ? (p->done ? p->length : 0) : p->transfer.received);
        if (!p->done)
            break;
        http_forget(w->http, &p->transfer);
        w->first = (w->first + 1) % w->room;
        w->count--;
    }
    pthread_mutex_lock(&w->lock);
    if (ready > w->ready) {
        w->ready = ready;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
}

static bool take(struct transfer *t, const uint8_t *bytes, size_t n)
{
    struct piece *p = t->context;
    struct window *w = p->window;
    uint64_t at = p->at + t->received;
    pthread_mutex_lock(&w->lock);
    bool fits = at + n <= w->tail + w->ring.size;
    w->stats.fetched += fits ? n : 0;
    bool first = p == &w->pieces[w->first];
    pthread_mutex_unlock(&w->lock);
    if (!fits)
        return false;
    memcpy(ring_at(w, at), bytes, n);
    if (first) {
        pthread_mutex_lock(&w->lock);
        w->ready = at + n;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->lock);
    }
    return true;
}

static bool take_early(struct transfer *t, const uint8_t *bytes, size_t n)
{
    struct piece *p = t->context;
    memcpy(p->early->bytes + t->received, bytes, n);
    pthread_mutex_lock(&p->window->lock);
    p->window->stats.fetched += n;
    pthread_mutex_unlock(&p->window->lock);
    return true;
}

/* ---- asking ---- */

static void begin_transfer(struct window *w, struct piece *p, size_t file, uint64_t at_in_file,
                           bool (*taker)(struct transfer *, const uint8_t *, size_t))
{
    p->transfer = (struct transfer){
        .remote = &w->options.files[file], .from = at_in_file, .length = p->length, .take = taker, .context = p};
    p->begun = true;
    pthread_mutex_lock(&w->lock);
    w->active++;
    pthread_mutex_unlock(&w->lock);
    http_start(w->http, &p->transfer);
}

static size_t file_of(const struct window *w, uint64_t at, uint64_t *start)
{
    size_t f = 0;
    *start = 0;
    for (; at >= *start + w->options.files[f].length; f++)
        *start += w->options.files[f].length;
    return f;
}

/* Early pieces whose time has come. */
static void ask_early(struct window *w, uint64_t before)
{
    for (; w->early_begun < w->options.early_count && w->options.early[w->early_begun].before < before;
         w->early_begun++) {
        struct piece *p = &w->early[w->early_begun];
        struct early *e = &w->options.early[w->early_begun];
        uint64_t start;
        pthread_mutex_lock(&w->lock);
        *p = (struct piece){.window = w, .at = e->at, .length = e->length, .early = e};
        p->done = e->at < w->options.from; /* the pull that is resumed was beyond it */
        pthread_mutex_unlock(&w->lock);
        if (p->done)
            continue;
        e->bytes = malloc(e->length);
        if (!e->bytes) {
            struct stele_error err;
            fail(w, stele_fail(&err, STELE_SYSTEM, "no memory for %" PRIu64 " bytes of scales", e->length), &err);
            return;
        }
        size_t file = file_of(w, e->at, &start);
        begin_transfer(w, p, file, e->at - start, take_early);
    }
}

/* The early piece that covers `at`, or the end of what may be asked for before the next one begins. */
static struct piece *early_at(struct window *w, uint64_t at, uint64_t *end)
{
    for (size_t i = 0; i < w->options.early_count; i++) {
        const struct early *e = &w->options.early[i];
        if (e->at == at && e->at >= w->options.from)
            return &w->early[i];
        if (e->at > at) {
            *end = e->at < *end ? e->at : *end;
            break;
        }
    }
    return NULL;
}

/* Asks for the next piece if it fits; false where it does not, or there is none. */
static bool ask_next(struct window *w, uint64_t tail)
{
    uint64_t start;
    if (w->next == w->total || w->count == w->room)
        return false;
    size_t f = file_of(w, w->next, &start);
    const struct remote *file = &w->options.files[f];
    uint64_t end = start + file->length;
    struct piece *early = early_at(w, w->next, &end), *p = &w->pieces[(w->first + w->count) % w->room];
    *p = (struct piece){.window = w, .at = w->next, .length = end - w->next};
    if (early) {
        p->length = early->length;
        p->early = early->early;
    } else if (!file->rangeless && p->length > w->options.chunk)
        p->length = w->options.chunk;
    bool stream = !early && file->rangeless;
    if (stream ? w->count > 0 : p->at + p->length > tail + w->ring.size)
        return false;
    if (!early && w->active >= w->options.connections)
        return false;
    w->next += p->length;
    w->count++;
    ask_early(w, w->next);
    if (!early)
        begin_transfer(w, p, f, p->at - start, take);
    return true;
}

/* Lays early pieces that have arrived where their turn has come. */
static void lay_early(struct window *w)
{
    for (size_t i = 0; i < w->count; i++) {
        struct piece *p = &w->pieces[(w->first + i) % w->room];
        if (!p->early || p->done || !w->early[p->early - w->options.early].done)
            continue;
        memcpy(ring_at(w, p->at), p->early->bytes, p->length);
        p->done = true;
    }
}

static void free_early(struct window *w, uint64_t tail)
{
    for (size_t i = 0; i < w->early_begun; i++)
        if (w->options.early[i].at + w->options.early[i].length <= tail) {
            free(w->options.early[i].bytes);
            w->options.early[i].bytes = NULL;
        }
}

static void ended(struct window *w, struct transfer *t)
{
    struct piece *p = t->context;
    pthread_mutex_lock(&w->lock);
    w->active--;
    p->done = t->status == STELE_OK;
    if (p->early)
        pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (t->status != STELE_OK)
        fail(w, t->status, &t->err);
}

static void *run(void *context)
{
    struct window *w = context;
    struct stele_error err;
    for (;;) {
        pthread_mutex_lock(&w->lock);
        uint64_t tail = w->tail;
        bool over = w->stop || w->status != STELE_OK || w->ready == w->total;
        w->arrived = w->ready == w->total ? now() : 0;
        pthread_mutex_unlock(&w->lock);
        if (over)
            return NULL;
        free_early(w, tail);
        while (ask_next(w, tail))
            ;
        if (w->count && w->pieces[w->first].transfer.paused && w->ready + READ_MOST <= tail + w->ring.size)
            http_resume(&w->pieces[w->first].transfer);
        double before = now();
        bool full = w->next < w->total && w->active < w->options.connections;
        enum stele_status status = http_wait(w->http, 200, &err);
        if (status != STELE_OK)
            fail(w, status, &err);
        for (struct transfer *t; (t = http_ended(w->http));)
            ended(w, t);
        lay_early(w);
        advance(w);
        pthread_mutex_lock(&w->lock);
        w->stats.full_s += full && w->ready > w->tail ? now() - before : 0;
        pthread_mutex_unlock(&w->lock);
    }
}

/* ---- the packer's side ---- */

enum stele_status window_wait(struct window *w, uint64_t have, uint64_t *ready, struct stele_error *err)
{
    double before = now();
    pthread_mutex_lock(&w->lock);
    while (w->status == STELE_OK && w->ready <= have)
        pthread_cond_wait(&w->changed, &w->lock);
    *ready = w->ready;
    enum stele_status status = w->status;
    if (status != STELE_OK)
        *err = w->err;
    w->stats.dry_s += now() - before;
    pthread_mutex_unlock(&w->lock);
    return status;
}

enum stele_status window_early(struct window *w, size_t index, const uint8_t **bytes, struct stele_error *err)
{
    pthread_mutex_lock(&w->lock);
    while (w->status == STELE_OK && !w->early[index].done)
        pthread_cond_wait(&w->changed, &w->lock);
    *bytes = w->options.early[index].bytes;
    enum stele_status status = w->status;
    if (status != STELE_OK)
        *err = w->err;
    pthread_mutex_unlock(&w->lock);
    return status;
}

void window_release(struct window *w, uint64_t tail)
{
    pthread_mutex_lock(&w->lock);
    w->tail = tail;
    pthread_mutex_unlock(&w->lock);
    http_wake(w->http);
}

const struct source_window *window_bytes(const struct window *w)
{
    return &w->ring;
}

struct window_stats window_stats(struct window *w)
{
    pthread_mutex_lock(&w->lock);
    struct window_stats stats = w->stats;
    stats.full_s += w->arrived > 0 ? now() - w->arrived : 0;
    pthread_mutex_unlock(&w->lock);
    return stats;
}

unsigned window_active(struct window *w)
{
    pthread_mutex_lock(&w->lock);
    unsigned active = w->active;
    pthread_mutex_unlock(&w->lock);
    return active;
}

/* ---- opening ---- */

enum stele_status window_size(const struct window_options *o, uint64_t span, uint64_t *size, struct stele_error *err)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t early = 0;
    for (size_t i = 0; i < o->early_count; i++) /* two at most are there at once */
        early = 2 * o->early[i].length > early ? 2 * o->early[i].length : early;
    uint64_t piece = o->chunk;
    for (size_t i = 0; i < o->early_count; i++) /* and one is laid into the window whole */
        piece = o->early[i].length > piece ? o->early[i].length : piece;
    for (size_t i = 0; i < o->file_count; i++)
        piece = o->files[i].rangeless && piece < READ_MOST ? READ_MOST : piece;
    uint64_t least = span + piece;
    *size = o->memory / page * page;
    if (early + least <= *size) {
        *size -= early / page * page;
        return STELE_OK;
    }
    return stele_fail(err, STELE_USAGE, "this model needs --memory %" PRIu64 "M or more, or a smaller --chunk",
                      ((early + least) >> 20) + 1);
}

/* Memory that lies twice in a row, so that what wraps around is whole. */
static bool open_ring(struct source_window *ring, uint64_t size)
{
    int fd = memfd_create("stele-pull", MFD_CLOEXEC);
    uint8_t *bytes = MAP_FAILED;
    if (fd >= 0 && !ftruncate(fd, (off_t)size))
        bytes = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool done = bytes != MAP_FAILED;
    for (size_t i = 0; done && i < 2; i++)
        done = mmap(bytes + i * size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED;
    if (fd >= 0)
        close(fd);
    *ring = (struct source_window){.bytes = done ? bytes : NULL, .size = size};
    return done;
}

enum stele_status window_open(struct window **out, struct http *http, const struct window_options *options,
                              uint64_t size, struct stele_error *err)
{
    struct window *w = *out = calloc(1, sizeof *w);
    if (!w)
        return stele_fail(err, STELE_SYSTEM, "no memory to fetch");
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->options = *options;
    w->http = http;
    w->tail = w->ready = w->next = options->from;
    for (size_t i = 0; i < options->file_count; i++)
        w->total += options->files[i].length;
    w->room = options->connections + (size_t)(size / options->chunk) + options->early_count + 2;
    w->pieces = calloc(w->room, sizeof *w->pieces);
    w->early = calloc(options->early_count + 1, sizeof *w->early);
    enum stele_status status = STELE_OK;
    if (!w->pieces || !w->early || !open_ring(&w->ring, size))
        status =
            stele_fail(err, STELE_SYSTEM, "no memory for a window of %" PRIu64 " bytes: %s", size, strerror(errno));
    else if (pthread_create(&w->thread, NULL, run, w))
        status = stele_fail(err, STELE_SYSTEM, "cannot start a thread");
    if (status != STELE_OK) {
        w->http = NULL;
        window_close(w);
        *out = NULL;
    }
    return status;
}

void window_close(struct window *w)
{
    if (!w)
        return;
    if (w->http) {
        pthread_mutex_lock(&w->lock);
        w->stop = true;
        pthread_mutex_unlock(&w->lock);
        http_wake(w->http);
        pthread_join(w->thread, NULL);
        for (size_t i = 0; i < w->room; i++)
            http_forget(w->http, &w->pieces[i].transfer);
        for (size_t i = 0; i < w->early_begun; i++)
            http_forget(w->http, &w->early[i].transfer);
    }
    for (size_t i = 0; i < w->options.early_count; i++) {
        free(w->options.early[i].bytes);
        w->options.early[i].bytes = NULL;
    }
    if (w->ring.bytes)
        munmap((void *)(uintptr_t)w->ring.bytes, 2 * w->ring.size);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w->early);
    free(w->pieces);
    free(w);
}
