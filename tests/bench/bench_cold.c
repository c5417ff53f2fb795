/* SPDX-License-Identifier: Apache-2.0 */
/* How fast a file that is not in memory can be read into it: the bound of a cold start.
 *
 *   bench_cold FILE [drop]     drop: only takes it out of the page cache
 *
 * Reads FILE by each of the methods below, once each, dropped before (synced, then POSIX_FADV_DONTNEED); mincore must find
 * none of it. Prints {"METHOD_ms": …, …, "fastest_ms": …, "dropped": 1}; "dropped" is 0, and what was measured means nothing,
 * where some of it stays in memory: another process maps it, or the file system keeps it.
 *
 * Every method looks at each page: in a virtual machine whose host takes free memory back, that is where a page costs most. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum { PAGE = 4096, PIECE = 2 << 20, THREADS_MAX = 4 };

/* One reading of the file; threads take pieces as they come. */
struct reading {
    const struct method *method;
    const uint8_t *bytes;
    size_t length;
    int fd;
    _Atomic size_t next;
};

static void touch(const struct reading *r, size_t at, size_t n, uint8_t *buffer)
{
    (void)buffer;
    for (size_t i = 0; i < n; i += PAGE)
        (void)*(const volatile uint8_t *)(r->bytes + at + i);
}

static void populate(const struct reading *r, size_t at, size_t n, uint8_t *buffer)
{
    madvise((void *)(uintptr_t)(r->bytes + at), n, MADV_POPULATE_READ);
    touch(r, at, n, buffer);
}

static void copy(const struct reading *r, size_t at, size_t n, uint8_t *buffer)
{
    for (ssize_t got; n && (got = pread(r->fd, buffer, n, (off_t)at)) > 0; n -= (size_t)got)
        at += (size_t)got;
}

static const struct method {
    const char *name;
    void (*read)(const struct reading *r, size_t at, size_t n, uint8_t *buffer);
    size_t threads;
    bool large; /* the mapping is told to come in large pages */
} methods[] = {
    {"touch", touch, 1, false},
    {"touch_large_2", touch, 2, true},
    {"populate", populate, 1, false},
    {"populate_large", populate, 1, true},
    {"populate_large_2", populate, 2, true},
    {"read", copy, 1, false},
    {"read_4", copy, 4, false},
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "bench_cold: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *reader(void *context)
{
    struct reading *r = context;
    uint8_t *buffer = malloc(PIECE);
    if (!buffer)
        fail("buffer");
    for (size_t at; (at = atomic_fetch_add(&r->next, PIECE)) < r->length;)
        r->method->read(r, at, r->length - at < PIECE ? r->length - at : PIECE, buffer);
    free(buffer);
    return NULL;
}

/* False: some of it is still in memory. */
static bool drop(int fd, const uint8_t *bytes, size_t length)
{
    size_t pages = (length + PAGE - 1) / PAGE, found = 0;
    unsigned char *resident = malloc(pages);
    if (!resident || fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) ||
        mincore((void *)(uintptr_t)bytes, length, resident))
        fail("drop");
    for (size_t i = 0; i < pages; i++)
        found += resident[i] & 1;
    free(resident);
    return !found;
}

/* Maps the file and drops it. False: it was not dropped. */
static bool open_cold(struct reading *r, const char *path)
{
    struct stat st;
    r->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0 || fstat(r->fd, &st))
        fail(path);
    r->length = (size_t)st.st_size;
    r->bytes = mmap(NULL, r->length, PROT_READ, MAP_SHARED, r->fd, 0);
    if (r->bytes == MAP_FAILED)
        fail(path);
    return drop(r->fd, r->bytes, r->length);
}

static void close_file(struct reading *r)
{
    munmap((void *)(uintptr_t)r->bytes, r->length);
    close(r->fd);
}

static double read_all(struct reading *r)
{
    pthread_t ids[THREADS_MAX];
    if (r->method->large)
        madvise((void *)(uintptr_t)r->bytes, r->length, MADV_HUGEPAGE);
    double begin = now_ms();
    for (size_t t = 1; t < r->method->threads; t++)
        if (pthread_create(&ids[t], NULL, reader, r))
            fail("thread");
    reader(r);
    for (size_t t = 1; t < r->method->threads; t++)
        pthread_join(ids[t], NULL);
    return now_ms() - begin;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3 || (argc == 3 && strcmp(argv[2], "drop"))) {
        fputs("usage: bench_cold FILE [drop]\n", stderr);
        return 2;
    }
    bool dropped = true;
    double fastest = 0;
    size_t count = argc == 3 ? 1 : sizeof methods / sizeof *methods;
    printf("{");
    for (size_t i = 0; dropped && i < count; i++) {
        struct reading r = {.method = &methods[i]};
        dropped = open_cold(&r, argv[1]);
        if (dropped && argc == 2) {
            double ms = read_all(&r);
            fastest = fastest > 0 && fastest < ms ? fastest : ms;
            printf("\"%s_ms\": %.1f, ", methods[i].name, ms);
        }
        close_file(&r);
    }
    printf("\"fastest_ms\": %.1f, \"dropped\": %d}\n", fastest, dropped);
    return 0;
}
