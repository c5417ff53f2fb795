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
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { THREADS_MAX = 256, PASSES_MAX = 99, LINE = 64 };

typedef uint64_t line __attribute__((vector_size(LINE)));

struct share {
    const line *from;
    size_t lines;
    pthread_barrier_t *barrier;
    int passes;
    uint64_t sum; /* so that the reads are not left out */
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

#if defined(__x86_64__)
#define WIDE __attribute__((target("avx2")))
#else
#define WIDE
#endif

/* Four streams of lines are in flight; what they hold is combined, which costs nothing beside the
 * reading. */
WIDE static uint64_t read_lines(const line *p, size_t n)
{
    line a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 4 <= n; i += 4) {
        a |= p[i];
        b |= p[i + 1];
        c |= p[i + 2];
        d |= p[i + 3];
    }
    a |= b | c | d;
    return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

static void *reader(void *context)
{
    struct share *s = context;
    for (int pass = 0; pass < s->passes; pass++) {
        pthread_barrier_wait(s->barrier);
        s->sum += read_lines(s->from, s->lines);
        pthread_barrier_wait(s->barrier);
    }
    return NULL;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* GB/s, the median of the passes. */
static double read_all(const uint8_t *bytes, size_t length, size_t threads, int passes,
                       uint64_t *sum)
{
    static struct share shares[THREADS_MAX];
    pthread_t ids[THREADS_MAX];
    pthread_barrier_t barrier;
    double rates[PASSES_MAX];
    size_t lines = length / LINE, each = lines / threads;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1);
    for (size_t t = 0; t < threads; t++) {
        shares[t] = (struct share){(const line *)(const void *)bytes + t * each,
                                   t + 1 < threads ? each : lines - t * each, &barrier, passes, 0};
        if (pthread_create(&ids[t], NULL, reader, &shares[t]))
            exit(1);
    }
    for (int pass = 0; pass < passes; pass++) {
        pthread_barrier_wait(&barrier);
        double begin = now_ms();
        pthread_barrier_wait(&barrier);
        rates[pass] = (double)(lines * LINE) / (now_ms() - begin) / 1e6;
    }
    for (size_t t = 0; t < threads; t++) {
        pthread_join(ids[t], NULL);
        *sum += shares[t].sum;
    }
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
    double rate = read_all(bytes, length, threads, passes, &sum);
    double before = now_ms();
    munmap((void *)(uintptr_t)bytes, length);
    double after = now_ms();
    printf("{\"bytes\": %zu, \"touch_ms\": %.3f, \"read_gb_s\": %.2f, \"unmap_ms\": %.3f, "
           "\"threads\": %zu, \"sum\": %u}\n",
           length, touched - begin, rate, after - before, threads, (unsigned)(sum & 0xff));
    return 0;
}
