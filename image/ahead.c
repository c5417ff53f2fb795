/* SPDX-License-Identifier: Apache-2.0 */
#include "ahead.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum {
    SAMPLES = 8, /* pages that are looked at */
    PIECE = 2 << 20,
    STACK_BYTES = 64 << 10,
};

struct ahead {
    const uint8_t *from, *to;
    _Atomic bool over;
    pthread_t thread;
};

static void *read_ahead(void *context)
{
    struct ahead *a = context;
    for (const uint8_t *at = a->from; at < a->to && !atomic_load(&a->over); at += PIECE) {
        size_t rest = (size_t)(a->to - at);
        if (madvise((void *)(uintptr_t)at, rest < PIECE ? rest : PIECE, MADV_POPULATE_READ))
            break; /* who computes with these bytes meets what is wrong with them, and says so */
    }
    return NULL;
}

static bool in_memory(const uint8_t *from, uint64_t length, size_t page)
{
    for (uint64_t i = 0; i < SAMPLES; i++) {
        unsigned char resident;
        const uint8_t *at = from + length / SAMPLES * i / page * page;
        if (mincore((void *)(uintptr_t)at, 1, &resident) || !(resident & 1))
            return false;
    }
    return true;
}

struct ahead *ahead_start(const struct image *image, uint64_t offset, uint64_t length)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const uint8_t *from = image->bytes + offset / page * page, *to = image->bytes + offset + length;
    if (!length || in_memory(from, length, page))
        return NULL;
    struct ahead *a = malloc(sizeof *a);
    pthread_attr_t attributes;
    if (!a || pthread_attr_init(&attributes)) {
        free(a);
        return NULL;
    }
    *a = (struct ahead){.from = from, .to = to};
    pthread_attr_setstacksize(&attributes, STACK_BYTES > PTHREAD_STACK_MIN ? STACK_BYTES : PTHREAD_STACK_MIN);
    int failed = pthread_create(&a->thread, &attributes, read_ahead, a);
    pthread_attr_destroy(&attributes);
    if (!failed)
        return a;
    free(a);
    return NULL;
}

void ahead_stop(struct ahead *ahead)
{
    if (!ahead)
        return;
    atomic_store(&ahead->over, true);
    pthread_join(ahead->thread, NULL);
    free(ahead);
}
