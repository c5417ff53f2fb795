/* SPDX-License-Identifier: Apache-2.0 */
/* Where the weights are. Those that fit are kept in the device's memory and come once, in plan order, on a stream of
 * their own; compute goes on behind them, waiting for each where it first needs it. The others stay on the host and are
 * read over the bus in every step. The mapping itself is what both read, by one of these ways:
 *
 *     host      the device follows the host's page tables: the mapping's own addresses
 *     register  slices of the mapping are pinned, read-only
 *     remap     the file is in memory (tmpfs, hugetlbfs): a second, shared mapping is pinned, a writable one, since the
 *               driver asks for that where it cannot pin read-only; nothing writes to it
 *     ring      the file is read into pinned buffers used in turn (ring.c)
 *
 * A private mapping is never pinned: that would copy every page.
 *
 *     weights_open     register, remap: pins all that is needed, so that what fails, fails here; host, register, remap:
 *                      begins every copy
 *     weights_at       ring: brings what is not there; all: makes compute wait for what is on its way
 *     weights_settle   unpins what only brought weights, gives the ring back */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "gpu.h"

#ifndef CUDA_SLICE_BYTES
#define CUDA_SLICE_BYTES (1ull << 30) /* pinned at once; the driver has a limit of 64 GiB */
#define CUDA_SMALL_BYTES (64ull << 10) /* kept whatever the limit is */
#endif

enum { STAGES = 4, TMPFS = 0x01021994, HUGETLBFS = (int)0x958458f6u };

const char *const reach_names[REACHES] = {"host", "register", "remap", "ring"};

struct place {
    const uint8_t *host;
    uint64_t length;
    cu_pointer device; /* its address; 0: it comes anew in every step */
    cu_event arrived;  /* in the device's memory; NULL where it is not kept */
    bool kept, coming, waited;
};

struct slice {
    bool pinned, stays;
    cu_pointer device;
};

/* Memory for a place that comes anew in every step. */
struct stage {
    cu_pointer memory;
    cu_event arrived, used;
    bool busy; /* since the last release */
};

struct weights {
    struct blas_weights given;
    enum reach reach;
    struct place *places; /* [given.count], in plan order */
    uint32_t *sorted;     /* [given.count]: places by address */
    cu_pointer memory;
    uint64_t kept_bytes, stage_bytes;
    const uint8_t *mapping; /* that is pinned or read by the device: the image's, or the second one */
    struct slice *slices;
    size_t slice_count;
    struct ring *ring; /* NULL: none, or not any more */
    struct stage stages[STAGES];
    size_t stage_next;
    bool settled, streams;
    cu_event begun, ended; /* of the copies of what is kept, with times */
    bool copying;
    double upload;
};

/* ---- ways ---- */

static bool attribute(const struct gpu *gpu, int which)
{
    int value = 0;
    return !gpu->driver->device_attribute(&value, which, gpu->device) && value;
}

/* A writable descriptor of the file; -1: it cannot be had. */
static int open_again(int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

bool reach_possible(const struct gpu *gpu, enum reach reach, const struct blas_weights *weights, const char **why)
{
    struct statfs fs;
    int fd;
    switch (reach) {
    case REACH_HOST:
        *why = "the device does not follow the host's page tables (attribute 100 is 0)";
        return attribute(gpu, CU_HOST_PAGE_TABLES);
    case REACH_REGISTER:
        *why = "the driver does not pin read-only memory here (attribute 113 is 0)";
        return attribute(gpu, CU_READ_ONLY_REGISTER);
    case REACH_REMAP:
        *why = "the image is on no file system in memory (tmpfs, hugetlbfs)";
        if (fstatfs(weights->fd, &fs) ||
            ((uint32_t)fs.f_type != (uint32_t)TMPFS && (uint32_t)fs.f_type != (uint32_t)HUGETLBFS))
            return false;
        *why = "the image may not be opened for writing, which pinning it takes here";
        fd = open_again(weights->fd);
        if (fd >= 0)
            close(fd);
        return fd >= 0;
    case REACH_RING:
    case REACHES:
        break;
    }
    return true;
}

/* ---- what is kept ---- */

static int by_address(const void *a, const void *b, void *spans)
{
    const struct blas_span *all = spans;
    const uint8_t *x = all[*(const uint32_t *)a].bytes, *y = all[*(const uint32_t *)b].bytes;
    return x < y ? -1 : x > y;
}

static bool allocate(struct weights *w)
{
    size_t n = w->given.count;
    w->slice_count = (size_t)((w->given.length + CUDA_SLICE_BYTES - 1) / CUDA_SLICE_BYTES);
    w->places = calloc(n + 1, sizeof *w->places);
    w->sorted = calloc(n + 1, sizeof *w->sorted);
    w->slices = calloc(w->slice_count + 1, sizeof *w->slices);
    if (!w->places || !w->sorted || !w->slices)
        return false;
    for (size_t i = 0; i < n; i++) {
        w->places[i].host = w->given.spans[i].bytes;
        w->places[i].length = w->given.spans[i].length;
        w->sorted[i] = (uint32_t)i;
    }
    qsort_r(w->sorted, n, sizeof *w->sorted, by_address, (void *)(uintptr_t)w->given.spans);
    return true;
}

static uint64_t padded(uint64_t bytes)
{
    return round_up(bytes, 256);
}

/* Which places are kept: small ones, then those that fit, in plan order. With a ring the others need stages. */
static bool choose(struct gpu *gpu, struct weights *w, uint64_t room, uint64_t limit)
{
    uint64_t all = 0, small = 0, largest = 0;
    for (size_t i = 0; i < w->given.count; i++) {
        struct place *p = &w->places[i];
        p->kept = p->length < CUDA_SMALL_BYTES;
        all += padded(p->length);
        small += p->kept ? padded(p->length) : 0;
        largest = padded(p->length) > largest ? padded(p->length) : largest;
    }
    const bool whole = all <= room && all <= limit;
    w->streams = false;
    w->stage_bytes = whole || w->reach != REACH_RING ? 0 : largest;
    if (!whole && small + STAGES * w->stage_bytes > room) {
        gpu->status =
            stele_fail(&gpu->error, STELE_SYSTEM,
                       "out of memory on the GPU: weights need %" PRIu64 " bytes at least, %" PRIu64 " are free",
                       small + STAGES * w->stage_bytes, room);
        return false;
    }
    uint64_t left = (room - STAGES * w->stage_bytes < limit ? room - STAGES * w->stage_bytes : limit);
    w->kept_bytes = small;
    for (size_t i = 0; i < w->given.count; i++) {
        struct place *p = &w->places[i];
        if (!p->kept && w->kept_bytes + padded(p->length) <= left) {
            p->kept = true;
            w->kept_bytes += padded(p->length);
        }
        w->streams = w->streams || (!p->kept && w->reach == REACH_RING);
    }
    return true;
}

/* Chooses, and takes memory for what is kept: for less where another process has taken of the room meanwhile. */
static bool take_kept(struct gpu *gpu, struct weights *w, uint64_t room, uint64_t limit)
{
    for (;; room /= 2) {
        if (!choose(gpu, w, room, limit))
            return false;
        cu_result result = w->kept_bytes ? gpu->driver->memory_alloc(&w->memory, w->kept_bytes) : 0;
        if (result != CU_OUT_OF_MEMORY)
            return gpu_ok(gpu, result, "reserving memory for weights");
    }
}

static void take_memory(struct gpu *gpu, struct weights *w)
{
    uint64_t at = 0;
    GPU(gpu, event_create, "making an event", &w->begun, CU_EVENT_TIMING);
    GPU(gpu, event_create, "making an event", &w->ended, CU_EVENT_TIMING);
    for (size_t i = 0; i < w->given.count; i++)
        if (w->places[i].kept) {
            w->places[i].device = w->memory + at;
            at += padded(w->places[i].length);
            GPU(gpu, event_create, "making an event", &w->places[i].arrived, CU_EVENT_NO_TIMING);
        }
    for (size_t i = 0; w->streams && i < STAGES; i++) {
        w->stages[i].memory = gpu_alloc(gpu, w->stage_bytes, "weights that do not fit");
        GPU(gpu, event_create, "making an event", &w->stages[i].arrived, CU_EVENT_NO_TIMING);
        GPU(gpu, event_create, "making an event", &w->stages[i].used, CU_EVENT_NO_TIMING);
    }
}

/* ---- pinned slices ---- */

static bool map_again(struct gpu *gpu, struct weights *w)
{
    int fd = open_again(w->given.fd);
    void *p = fd < 0 ? MAP_FAILED : mmap(NULL, w->given.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        gpu->status = stele_fail(&gpu->error, STELE_SYSTEM, "%s: cannot be mapped a second time: %s", w->given.name,
                                 strerror(errno));
    else
        w->mapping = p;
    if (fd >= 0)
        close(fd);
    return p != MAP_FAILED;
}

static bool pin(struct gpu *gpu, struct weights *w, size_t index)
{
    struct slice *s = &w->slices[index];
    const uint64_t from = index * CUDA_SLICE_BYTES, rest = round_up(w->given.length, 4096) - from;
    const uint64_t bytes = rest < CUDA_SLICE_BYTES ? rest : CUDA_SLICE_BYTES;
    void *at = (void *)(uintptr_t)(w->mapping + from);
    const unsigned flags =
        w->reach == REACH_REGISTER ? CU_REGISTER_DEVICEMAP | CU_REGISTER_READ_ONLY : CU_REGISTER_DEVICEMAP;
    s->pinned = s->pinned || GPU(gpu, host_register, "pinning the image", at, bytes, flags);
    return s->pinned && GPU(gpu, host_pointer, "asking where the image is", &s->device, at, 0);
}

/* Pins the slices of a place. One that stays on the host must be in one piece for the device. */
static bool pin_place(struct gpu *gpu, struct weights *w, struct place *p)
{
    const uint64_t from = (uint64_t)(p->host - w->given.bytes), to = from + p->length;
    for (size_t i = (size_t)(from / CUDA_SLICE_BYTES); i * CUDA_SLICE_BYTES < to; i++) {
        if (!pin(gpu, w, i))
            return false;
        w->slices[i].stays = w->slices[i].stays || !p->kept;
        if (!p->kept && i * CUDA_SLICE_BYTES > from &&
            w->slices[i].device != w->slices[i - 1].device + CUDA_SLICE_BYTES) {
            gpu->status = stele_fail(&gpu->error, STELE_SYSTEM, "pinned slices of the image lie apart");
            return false;
        }
    }
    if (!p->kept)
        p->device = w->slices[from / CUDA_SLICE_BYTES].device + from % CUDA_SLICE_BYTES;
    return true;
}

/* ---- bringing ---- */

/* Around each copy of a place that is kept. */
static void begin_copy(struct gpu *gpu, struct weights *w)
{
    if (!w->copying)
        GPU(gpu, event_record, "copying weights", w->begun, gpu->transfer);
    w->copying = true;
}

static void end_copy(struct gpu *gpu, struct weights *w, struct place *p)
{
    GPU(gpu, event_record, "copying weights", p->arrived, gpu->transfer);
    GPU(gpu, event_record, "copying weights", w->ended, gpu->transfer);
    p->coming = true;
}

/* Copies a place whose bytes the driver reads where they are: slice by slice, as they are pinned. */
static void copy_place(struct gpu *gpu, struct weights *w, struct place *p)
{
    const uint64_t from = (uint64_t)(p->host - w->given.bytes), to = from + p->length;
    begin_copy(gpu, w);
    for (uint64_t at = from, next; at < to; at = next) {
        next = (at / CUDA_SLICE_BYTES + 1) * CUDA_SLICE_BYTES;
        next = next < to ? next : to;
        GPU(gpu, copy_in, "copying weights", p->device + (at - from), w->mapping + at, next - at, gpu->transfer);
    }
    end_copy(gpu, w, p);
}

/* ---- opening and closing ---- */

static void begin(struct gpu *gpu, struct weights *w, bool *refused)
{
    if (w->reach == REACH_RING) {
        w->ring = ring_open(gpu, &w->given);
        return;
    }
    w->mapping = w->given.bytes;
    if (w->reach == REACH_REMAP && !map_again(gpu, w)) {
        *refused = true;
        return;
    }
    for (size_t i = 0; i < w->given.count && gpu->status == STELE_OK; i++) {
        struct place *p = &w->places[i];
        if (w->reach == REACH_HOST && !p->kept)
            p->device = (cu_pointer)(uintptr_t)p->host;
        else if (w->reach != REACH_HOST && !pin_place(gpu, w, p)) {
            *refused = true;
            return;
        }
        if (p->kept)
            copy_place(gpu, w, p);
    }
}

struct weights *weights_open(struct gpu *gpu, const struct blas_weights *weights, enum reach reach, uint64_t room,
                             uint64_t limit, bool *refused)
{
    *refused = false;
    struct weights *w = calloc(1, sizeof *w);
    if (w)
        *w = (struct weights){.given = *weights, .reach = reach};
    if (!w || !allocate(w))
        gpu->status = stele_fail(&gpu->error, STELE_SYSTEM, "no memory for %zu tensors", weights->count);
    else if (take_kept(gpu, w, room, limit)) {
        take_memory(gpu, w);
        if (gpu->status == STELE_OK)
            begin(gpu, w, refused);
    }
    if (gpu->status == STELE_OK)
        return w;
    weights_close(gpu, w);
    return NULL;
}

static void unpin(struct gpu *gpu, struct weights *w, bool all)
{
    for (size_t i = 0; i < w->slice_count; i++)
        if (w->slices[i].pinned && (all || !w->slices[i].stays)) {
            gpu->driver->host_unregister((void *)(uintptr_t)(w->mapping + i * CUDA_SLICE_BYTES));
            w->slices[i].pinned = false;
        }
}

void weights_close(struct gpu *gpu, struct weights *w)
{
    if (!w)
        return;
    gpu->driver->stream_wait(gpu->transfer); /* nothing is copied out of what goes now */
    if (w->slices)
        unpin(gpu, w, true);
    if (w->mapping && w->mapping != w->given.bytes)
        munmap((void *)(uintptr_t)w->mapping, w->given.length);
    ring_close(gpu, w->ring);
    for (size_t i = 0; w->places && i < w->given.count; i++)
        if (w->places[i].arrived)
            gpu->driver->event_destroy(w->places[i].arrived);
    for (size_t i = 0; i < STAGES; i++) {
        gpu_free(gpu, &w->stages[i].memory);
        if (w->stages[i].arrived)
            gpu->driver->event_destroy(w->stages[i].arrived);
        if (w->stages[i].used)
            gpu->driver->event_destroy(w->stages[i].used);
    }
    if (w->begun)
        gpu->driver->event_destroy(w->begun);
    if (w->ended)
        gpu->driver->event_destroy(w->ended);
    gpu_free(gpu, &w->memory);
    free(w->slices);
    free(w->sorted);
    free(w->places);
    free(w);
}

/* ---- in a step ---- */

static struct place *find(struct weights *w, const uint8_t *host)
{
    size_t low = 0, high = w->given.count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (w->places[w->sorted[middle]].host <= host)
            low = middle;
        else
            high = middle;
    }
    return &w->places[w->sorted[low]];
}

/* A place that comes anew: into the stage that was used longest ago. */
static cu_pointer stage_place(struct gpu *gpu, struct weights *w, const struct place *p)
{
    struct stage *s = &w->stages[w->stage_next++ % STAGES];
    s->busy = true;
    GPU(gpu, stream_wait_event, "copying weights", gpu->transfer, s->used, 0);
    ring_bring(gpu, w->ring, (uint64_t)(p->host - w->given.bytes), p->length, s->memory, false);
    GPU(gpu, event_record, "copying weights", s->arrived, gpu->transfer);
    GPU(gpu, stream_wait_event, "copying weights", gpu->compute, s->arrived, 0);
    return s->memory;
}

const void *weights_at(struct gpu *gpu, struct weights *w, const void *host)
{
    if (!host || gpu->status != STELE_OK)
        return NULL;
    struct place *p = find(w, host);
    const uint64_t within = (uint64_t)((const uint8_t *)host - p->host);
    if (!p->device)
        return gpu_address(stage_place(gpu, w, p) + within);
    if (p->kept && !p->coming) {
        begin_copy(gpu, w);
        ring_bring(gpu, w->ring, (uint64_t)(p->host - w->given.bytes), p->length, p->device, true);
        end_copy(gpu, w, p);
    }
    if (p->kept && !p->waited) {
        GPU(gpu, stream_wait_event, "copying weights", gpu->compute, p->arrived, 0);
        p->waited = true;
    }
    return gpu_address(p->device + within);
}

void weights_release(struct gpu *gpu, struct weights *w)
{
    for (size_t i = 0; w->streams && i < STAGES; i++)
        if (w->stages[i].busy) {
            GPU(gpu, event_record, "copying weights", w->stages[i].used, gpu->compute);
            w->stages[i].busy = false;
        }
}

void weights_settle(struct gpu *gpu, struct weights *w)
{
    for (size_t i = 0; i < w->given.count; i++)
        if (w->places[i].kept && !w->places[i].coming)
            return;
    if (w->settled || !GPU(gpu, stream_wait, "copying weights", gpu->transfer))
        return;
    for (size_t i = 0; i < w->given.count; i++)
        w->places[i].waited = true;
    float ms = 0;
    if (w->copying && GPU(gpu, event_elapsed, "copying weights", &ms, w->begun, w->ended))
        w->upload = 1e-3 * (double)ms;
    unpin(gpu, w, false);
    if (!w->streams) {
        ring_close(gpu, w->ring);
        w->ring = NULL;
    }
    w->settled = true;
}

bool weights_settled(const struct weights *w)
{
    return w->settled && !w->streams;
}

uint64_t weights_kept(const struct weights *w)
{
    return w->kept_bytes;
}

double weights_upload(const struct weights *w)
{
    return w->upload;
}
