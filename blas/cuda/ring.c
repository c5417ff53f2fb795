/* SPDX-License-Identifier: Apache-2.0 */
/* The way of weights where nothing of the image can be pinned: pieces of the file are read by threads into pinned
 * buffers, which are used in turn, and copied from there.
 *
 *     ring_bring   waits for a buffer -> read_file, in parts -> copy -> the buffer is free when the copy is done
 *
 * The file is read from the page cache; of a cold one, what is needed only once is read past it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu.h"
#include "pool.h"

#ifndef CUDA_RING_BYTES
#define CUDA_RING_BYTES (16ull << 20)
#endif

enum { BUFFERS = 4, READERS = 4, READ_BYTES = 1 << 20, PAGE = 4096, SAMPLES = 64 };

struct ring {
    const struct blas_weights *file;
    uint8_t *buffers[BUFFERS]; /* CUDA_RING_BYTES, and a page before and behind for what is not aligned */
    cu_event unused[BUFFERS];
    size_t next;
    struct pool *readers;
    int direct; /* a descriptor that reads past the page cache; -1: the file is in it, or cannot be read so */
};

/* Bytes of the file, whole pages but at its end. */
struct reading {
    const struct ring *ring;
    uint8_t *to;
    uint64_t from, bytes;
    bool once;
    int failed; /* errno; -1: the file ends */
};

/* Whether most of the file is not in the page cache: some pages of it are asked for. Once for all of it, since reading
 * what is there of a file makes the kernel read ahead what is not. */
static bool is_cold(const struct blas_weights *file)
{
    size_t resident = 0;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        unsigned char page;
        if (mincore((void *)(uintptr_t)(file->bytes + file->length / SAMPLES * i / PAGE * PAGE), PAGE, &page))
            return false;
        resident += page & 1;
    }
    return resident < SAMPLES / 2;
}

static void read_parts(void *context, size_t from, size_t to, size_t thread)
{
    struct reading *r = context;
    (void)thread;
    for (size_t part = from; part < to; part++) {
        uint64_t at = part * READ_BYTES, end = at + READ_BYTES < r->bytes ? at + READ_BYTES : r->bytes;
        if (r->once && r->ring->direct >= 0) {
            ssize_t n = pread(r->ring->direct, r->to + at, round_up(end - at, PAGE), (off_t)(r->from + at));
            at += n > 0 ? (uint64_t)n : 0; /* what is left, an error too, comes the other way */
        }
        while (at < end) {
            ssize_t n = pread(r->ring->file->fd, r->to + at, end - at, (off_t)(r->from + at));
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0) {
                __atomic_store_n(&r->failed, n < 0 ? errno : -1, __ATOMIC_RELAXED);
                return;
            }
            at += (uint64_t)n;
        }
    }
}

/* Reads bytes of the file into a buffer of the ring; returns where they are in it. */
static uint8_t *read_file(struct gpu *gpu, struct ring *ring, uint8_t *to, uint64_t from, uint64_t bytes,
                          bool once)
{
    const uint64_t before = from % PAGE;
    struct reading r = {ring, to, from - before, before + bytes, once, 0};
    pool_run(ring->readers, (size_t)((r.bytes + READ_BYTES - 1) / READ_BYTES), read_parts, &r);
    if (r.failed < 0)
        gpu->status =
            stele_fail(&gpu->error, STELE_DAMAGED, "%s: the file was cut short while it was in use", ring->file->name);
    else if (r.failed)
        gpu->status =
            stele_fail(&gpu->error, STELE_SYSTEM, "%s: cannot be read: %s", ring->file->name, strerror(r.failed));
    return to + before;
}

struct ring *ring_open(struct gpu *gpu, const struct blas_weights *file)
{
    struct ring *ring = calloc(1, sizeof *ring);
    char path[64];
    if (ring) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", file->fd);
        ring->file = file;
        ring->direct = is_cold(file) ? open(path, O_RDONLY | O_DIRECT | O_CLOEXEC) : -1;
        ring->readers = pool_open(READERS);
    }
    if (!ring || !ring->readers)
        gpu->status = stele_fail(&gpu->error, STELE_SYSTEM, "no memory for threads that read the image");
    for (size_t i = 0; i < BUFFERS && gpu->status == STELE_OK; i++) {
        GPU(gpu, host_alloc, "reserving pinned memory", (void **)&ring->buffers[i], CUDA_RING_BYTES + 2 * PAGE, 0);
        GPU(gpu, event_create, "making an event", &ring->unused[i], CU_EVENT_NO_TIMING);
    }
    return ring;
}

void ring_close(struct gpu *gpu, struct ring *ring)
{
    if (!ring)
        return;
    for (size_t i = 0; i < BUFFERS; i++) {
        if (ring->buffers[i])
            gpu->driver->host_free(ring->buffers[i]);
        if (ring->unused[i])
            gpu->driver->event_destroy(ring->unused[i]);
    }
    pool_close(ring->readers);
    if (ring->direct >= 0)
        close(ring->direct);
    free(ring);
}

/* A buffer is free when the copy out of it is done: an event that was never recorded counts as done. */
void ring_bring(struct gpu *gpu, struct ring *ring, uint64_t from, uint64_t length, cu_pointer to, bool once)
{
    for (uint64_t at = 0, n; at < length && gpu->status == STELE_OK; at += n) {
        const size_t i = ring->next++ % BUFFERS;
        n = length - at < CUDA_RING_BYTES ? length - at : CUDA_RING_BYTES;
        if (!GPU(gpu, event_wait, "copying weights", ring->unused[i]))
            return;
        const uint8_t *bytes = read_file(gpu, ring, ring->buffers[i], from + at, n, once);
        GPU(gpu, copy_in, "copying weights", to + at, bytes, n, gpu->transfer);
        GPU(gpu, event_record, "copying weights", ring->unused[i], gpu->transfer);
    }
}
