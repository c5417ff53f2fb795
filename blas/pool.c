/* SPDX-License-Identifier: Apache-2.0 */
/* Invariants:
 * 1. `turn` grows by one for each run; a worker that has seen turn t works once for it, then adds one to `done`.
 * 2. `work` and `context` are written before `turn` grows and not again until `done` has all workers.
 * 3. Only the caller's thread starts, runs and ends. */
#include "pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SPINS = 2000,              /* looks at `turn` before sleeping: some tens of microseconds, the gap between two ops */
    STACK_BYTES = 256 << 10,
};

struct worker {
    struct pool *pool;
    pthread_t thread;
    size_t index;
};

struct pool {
    _Alignas(64) _Atomic uint32_t turn;
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic uint32_t done;
    _Alignas(64) void (*work)(void *context, size_t thread, size_t threads);
    void *context;
    bool closing;
    bool started;
    size_t asked;   /* threads that the caller wanted */
    size_t threads; /* threads there are */
    struct worker *workers; /* [asked - 1] */
};

static void futex(_Atomic uint32_t *word, int op, uint32_t value)
{
    syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Returns the turn that follows `seen`. */
static uint32_t wait_turn(struct pool *pool, uint32_t seen)
{
    for (int i = 0; i < SPINS; i++) {
        uint32_t turn = atomic_load_explicit(&pool->turn, memory_order_acquire);
        if (turn != seen)
            return turn;
        pause_cpu();
    }
    atomic_fetch_add(&pool->sleepers, 1);
    uint32_t turn;
    while ((turn = atomic_load(&pool->turn)) == seen)
        futex(&pool->turn, FUTEX_WAIT, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
    return turn;
}

static void *worker_main(void *argument)
{
    struct worker *self = argument;
    struct pool *pool = self->pool;
    for (uint32_t seen = 0;;) {
        seen = wait_turn(pool, seen);
        if (pool->closing)
            return NULL;
        pool->work(pool->context, self->index, pool->threads);
        if (atomic_fetch_add_explicit(&pool->done, 1, memory_order_acq_rel) + 2 == pool->threads)
            futex(&pool->done, FUTEX_WAKE, 1);
    }
}

struct pool *pool_open(size_t threads)
{
    struct pool *pool = aligned_alloc(64, sizeof *pool);
    if (!pool)
        return NULL;
    *pool = (struct pool){.asked = threads, .threads = threads};
    if (threads > 1 && !(pool->workers = calloc(threads - 1, sizeof *pool->workers))) {
        free(pool);
        return NULL;
    }
    return pool;
}

/* Starts as many workers as the system gives. */
static void start(struct pool *pool)
{
    pool->started = true;
    pool->threads = 1;
    pthread_attr_t attributes;
    if (pool->asked == 1 || pthread_attr_init(&attributes))
        return;
    pthread_attr_setstacksize(&attributes, STACK_BYTES > PTHREAD_STACK_MIN ? STACK_BYTES : PTHREAD_STACK_MIN);
    for (size_t i = 0; i + 1 < pool->asked; i++) {
        struct worker *w = &pool->workers[i];
        *w = (struct worker){.pool = pool, .index = i + 1};
        if (pthread_create(&w->thread, &attributes, worker_main, w))
            break;
        pool->threads++;
    }
    pthread_attr_destroy(&attributes);
}

static void publish(struct pool *pool)
{
    atomic_fetch_add(&pool->turn, 1);
    if (atomic_load(&pool->sleepers))
        futex(&pool->turn, FUTEX_WAKE, INT_MAX);
}

void pool_run(struct pool *pool, void (*work)(void *context, size_t thread, size_t threads), void *context)
{
    if (!pool->started)
        start(pool);
    if (pool->threads == 1) {
        work(context, 0, 1);
        return;
    }
    pool->work = work;
    pool->context = context;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    publish(pool);
    work(context, 0, pool->threads);
    uint32_t done;
    for (int i = 0; (done = atomic_load_explicit(&pool->done, memory_order_acquire)) + 1 < pool->threads; i++)
        if (i < SPINS)
            pause_cpu();
        else
            futex(&pool->done, FUTEX_WAIT, done);
}

void pool_close(struct pool *pool)
{
    if (!pool)
        return;
    pool->closing = true;
    if (pool->started)
        publish(pool);
    for (size_t i = 0; pool->started && i + 1 < pool->threads; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    free(pool);
}

size_t pool_threads(const struct pool *pool)
{
    return pool->threads;
}
