/* SPDX-License-Identifier: Apache-2.0 */
/* Invariants:
 * 1. `turn` grows by one for each run. A share's claim word holds the turn that it belongs to and the next part that
 *    nobody has claimed; parts are claimed by adding one to it, never for another turn than its own.
 * 2. work, context, n and parts are written before `turn` grows, and not again until `done` has counted every part. So who
 *    has claimed a part may read them, and who comes too late for a turn claims nothing.
 * 3. Only the caller's thread starts, runs and ends.
 *
 * Waiting goes through three states. The gap between two ops is a few microseconds: a thread first looks at the word again
 * and again. If that was not enough, the thread that it waits for may be one that the system does not run just now, because
 * other programs want the core that this one is looking from: then it hands the core on between looks, which costs nothing
 * where nobody wants it. (Sleeping there instead makes a convoy: who wakes a thread is pushed aside by it, on every op.
 * Four processes of two threads on two cores, a model of 145 MB, over one alone: 1.16; without handing on 1.12, with 30
 * looks of it 1.13, without and with ten times the looks before 1.01. Beside programs that never sleep: all the same.)
 * Only where no work comes at all does it sleep. */
#include "pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SPINS = 200,  /* looks at a word, a pause between them: some microseconds */
    YIELDS = 300, /* looks after that, the core handed on between them: some hundred microseconds at least */
    STACK_BYTES = 256 << 10,
    PARTS = 8, /* of a share, at most */
};

struct share {
    _Alignas(64) _Atomic uint64_t claim; /* turn << 32 | next part */
    struct pool *pool;
    pthread_t thread;
    size_t index;
};

struct pool {
    _Alignas(64) _Atomic uint32_t turn;
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic uint32_t done; /* parts of this turn */
    _Alignas(64) pool_work *work;
    void *context;
    size_t n;
    uint32_t parts; /* of each share */
    _Atomic bool closing;
    bool started;
    size_t asked, threads; /* wanted; there are */
    struct share *shares;  /* [asked] */
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

/* Waits for *word to be another number than `value`. False: it is time to sleep. */
static bool awaits(_Atomic uint32_t *word, uint32_t value)
{
    for (int i = 0; i < SPINS + YIELDS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != value)
            return true;
        if (i < SPINS)
            pause_cpu();
        else
            sched_yield();
    }
    return false;
}

/* Returns the turn that follows `seen`. */
static uint32_t wait_turn(struct pool *pool, uint32_t seen)
{
    if (!awaits(&pool->turn, seen)) {
        atomic_fetch_add(&pool->sleepers, 1);
        while (atomic_load(&pool->turn) == seen)
            futex(&pool->turn, FUTEX_WAIT, seen);
        atomic_fetch_sub(&pool->sleepers, 1);
    }
    return atomic_load(&pool->turn);
}

/* Claims the next part of a share for a turn; false where there is none left, or the turn is over. */
static bool claim_part(struct share *share, uint32_t turn, uint32_t parts, uint32_t *part)
{
    uint64_t word = atomic_load_explicit(&share->claim, memory_order_acquire);
    while ((uint32_t)(word >> 32) == turn && (uint32_t)word < parts)
        if (atomic_compare_exchange_weak_explicit(&share->claim, &word, word + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *part = (uint32_t)word;
            return true;
        }
    return false;
}

/* Works on parts of a turn, the own share's first, until none is left. */
static void work_parts(struct pool *pool, size_t self, uint32_t turn)
{
    uint32_t part;
    for (size_t i = 0; i < pool->threads; i++) {
        size_t s = (self + i) % pool->threads;
        while (claim_part(&pool->shares[s], turn, PARTS, &part)) {
            uint64_t all = pool->threads * pool->parts, index = s * pool->parts + part;
            if (part < pool->parts)
                pool->work(pool->context, (size_t)(pool->n * index / all), (size_t)(pool->n * (index + 1) / all), self);
            if (atomic_fetch_add_explicit(&pool->done, 1, memory_order_acq_rel) + 1 == pool->threads * PARTS)
                futex(&pool->done, FUTEX_WAKE, 1);
        }
    }
}

static void *worker_main(void *argument)
{
    struct share *self = argument;
    struct pool *pool = self->pool;
    for (uint32_t seen = 0;;) {
        seen = wait_turn(pool, seen);
        if (atomic_load(&pool->closing))
            return NULL;
        work_parts(pool, self->index, seen);
    }
}

struct pool *pool_open(size_t threads)
{
    struct pool *pool = aligned_alloc(64, sizeof *pool);
    if (!pool)
        return NULL;
    *pool = (struct pool){.asked = threads, .threads = threads, .shares = aligned_alloc(64, threads * sizeof *pool->shares)};
    if (!pool->shares) {
        free(pool);
        return NULL;
    }
    for (size_t i = 0; i < threads; i++)
        pool->shares[i] = (struct share){.pool = pool, .index = i};
    return pool;
}

/* Starts as many workers as the system gives. */
static void start(struct pool *pool)
{
    size_t threads = 1;
    pthread_attr_t attributes;
    pool->started = true;
    if (pthread_attr_init(&attributes)) {
        pool->threads = 1;
        return;
    }
    pthread_attr_setstacksize(&attributes, STACK_BYTES > PTHREAD_STACK_MIN ? STACK_BYTES : PTHREAD_STACK_MIN);
    while (threads < pool->asked &&
           !pthread_create(&pool->shares[threads].thread, &attributes, worker_main, &pool->shares[threads]))
        threads++;
    pool->threads = threads; /* no worker looks at it before the first turn */
    pthread_attr_destroy(&attributes);
}

static void publish(struct pool *pool)
{
    atomic_fetch_add(&pool->turn, 1);
    if (atomic_load(&pool->sleepers))
        futex(&pool->turn, FUTEX_WAKE, INT_MAX);
}

void pool_run(struct pool *pool, size_t n, pool_work *work, void *context)
{
    if (!pool->started && pool->asked > 1 && n > 1)
        start(pool);
    if (pool->threads == 1 || n <= 1) {
        if (n)
            work(context, 0, n, 0);
        return;
    }
    uint32_t turn = atomic_load_explicit(&pool->turn, memory_order_relaxed) + 1, done;
    size_t each = (n + pool->threads - 1) / pool->threads, all = pool->threads * PARTS;
    pool->work = work;
    pool->context = context;
    pool->n = n;
    pool->parts = each < PARTS ? (uint32_t)each : PARTS;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    for (size_t i = 0; i < pool->threads; i++)
        atomic_store_explicit(&pool->shares[i].claim, (uint64_t)turn << 32, memory_order_release);
    publish(pool);
    work_parts(pool, 0, turn);
    while ((done = atomic_load_explicit(&pool->done, memory_order_acquire)) < all)
        if (!awaits(&pool->done, done))
            futex(&pool->done, FUTEX_WAIT, done);
}

void pool_close(struct pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->closing, true);
    if (pool->started)
        publish(pool);
    for (size_t i = 1; pool->started && i < pool->threads; i++)
        pthread_join(pool->shares[i].thread, NULL);
    free(pool->shares);
    free(pool);
}

size_t pool_threads(const struct pool *pool)
{
    return pool->threads;
}
