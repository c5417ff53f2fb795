/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded, it counts what a program allocates and writes the number to the file STELE_COUNT_MALLOCS at its exit:
 * tests/end_to_end/test_laws.py. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static atomic_ulong calls;

void *malloc(size_t n)
{
    calls++;
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    calls++;
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    calls++;
    return __libc_realloc(p, n);
}

__attribute__((destructor)) static void write_count(void)
{
    char text[32];
    const char *path = getenv("STELE_COUNT_MALLOCS");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    if (fd >= 0 && write(fd, text, (size_t)snprintf(text, sizeof text, "%lu\n", calls)) > 0)
        close(fd);
}
