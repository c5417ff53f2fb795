/* SPDX-License-Identifier: Apache-2.0 */
/* A team of threads that runs one function at a time, the caller being thread 0. Threads start at the first run, so a
 * program that never needs them pays nothing. Between runs they spin for a moment, then sleep. */
#ifndef BLAS_POOL_H
#define BLAS_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pool;

/* A pool of `threads` >= 1, the caller included; NULL where there is no memory. */
struct pool *pool_open(size_t threads);

/* Ends the threads. NULL is allowed. No run may be under way. */
void pool_close(struct pool *pool);

/* Runs work(context, thread, threads) on every thread and returns when all are done. Where the system gives fewer threads
 * than asked for, `threads` is what there is. One run at a time. */
void pool_run(struct pool *pool, void (*work)(void *context, size_t thread, size_t threads), void *context);

/* The threads that a run will have. */
size_t pool_threads(const struct pool *pool);

/* The part [*from, *to) of n items that is thread's own; the same for every run with the same n. */
static inline void pool_share(size_t n, size_t thread, size_t threads, size_t *from, size_t *to)
{
    *from = (size_t)((uint64_t)n * thread / threads);
    *to = (size_t)((uint64_t)n * (thread + 1) / threads);
}

#endif
