/* SPDX-License-Identifier: Apache-2.0 */
/* How fast a mapped file can be read: the bound of a decode step over an image.
 *
 *   bench_stream FILE [THREADS [PASSES]]
 *
 * Maps FILE as stele does, touches each page once with one thread, reads all of it PASSES times
 * with all threads, and unmaps it. Prints {"bytes": …, "touch_ms": …, "read_gb_s": …, "unmap_ms":
 * …, "threads": …}; read_gb_s is the median of the passes. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../memory_stream.h"

enum { THREADS_MAX = 256, PASSES_MAX = 99, LINE = 64, CHUNK_LINES = (256 << 10) / LINE };

/* Threads take chunks as they come, so that one that is not run just now holds nobody up, as in a
 * decode step. */
struct reading {
    const uint8_t *from;
    size_t lines;
    pthread_barrier_t barrier;
    int passes;
    _Atomic size_t next; /* line that nobody has taken yet */
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void *reader(void *context)
{
    struct reading *r = context;
    for (int pass = 0; pass < r->passes; pass++) {
        pthread_barrier_wait(&r->barrier);
        for (size_t i; (i = atomic_fetch_add(&r->next, CHUNK_LINES)) < r->lines;)
            stream_read(r->from + i * LINE, (r->lines - i < CHUNK_LINES ? r->lines - i : CHUNK_LINES) * LINE);
        pthread_barrier_wait(&r->barrier);
    }
    return NULL;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* GB/s, the median of the passes. */
static double read_all(const uint8_t *bytes, size_t length, size_t threads, int passes)
{
    static struct reading reading;
    pthread_t ids[THREADS_MAX];
    double rates[PASSES_MAX];
    reading.from = bytes;
    reading.lines = length / (2 * LINE) * 2;
    reading.passes = passes;
    pthread_barrier_init(&reading.barrier, NULL, (unsigned)threads + 1);
    for (size_t t = 0; t < threads; t++)
        if (pthread_create(&ids[t], NULL, reader, &reading))
            exit(1);
    for (int pass = 0; pass < passes; pass++) {
        reading.next = 0;
        double begin = now_ms();
        pthread_barrier_wait(&reading.barrier);
        pthread_barrier_wait(&reading.barrier);
        rates[pass] = (double)(reading.lines * LINE) / (now_ms() - begin) / 1e6;
    }
    for (size_t t = 0; t < threads; t++)
        pthread_join(ids[t], NULL);
    qsort(rates, (size_t)passes, sizeof *rates, ascending);
    return rates[passes / 2];
}

int main(int argc, char **argv)
{
    cpu_set_t set;
    size_t threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    int passes = argc > 3 ? atoi(argv[3]) : 5,
        fd = argc > 1 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
    struct stat st;
    if (!threads)
        threads = sched_getaffinity(0, sizeof set, &set) ? 1 : (size_t)CPU_COUNT(&set);
    if (fd < 0 || fstat(fd, &st) || threads > THREADS_MAX || passes < 1 || passes > PASSES_MAX) {
        fputs("usage: bench_stream FILE [THREADS [PASSES]]\n", stderr);
        return 2;
    }
    size_t length = (size_t)st.st_size;
    const uint8_t *bytes = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED)
        return 1;
    uint64_t sum = 0;
    double begin = now_ms();
    for (size_t i = 0; i < length; i += 4096)
        sum += *(const volatile uint8_t *)(bytes + i);
    double touched = now_ms();
    double rate = read_all(bytes, length, threads, passes);
    double before = now_ms();
    munmap((void *)(uintptr_t)bytes, length);
    double after = now_ms();
    printf("{\"bytes\": %zu, \"touch_ms\": %.3f, \"read_gb_s\": %.2f, \"unmap_ms\": %.3f, "
           "\"threads\": %zu, \"sum\": %u}\n",
           length, touched - begin, rate, after - before, threads, (unsigned)(sum & 0xff));
    return 0;
}
