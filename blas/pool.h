/* SPDX-License-Identifier: Apache-2.0 */
/* A team of threads that works on one list of items at a time, the caller being thread 0. Threads start at the first run
 * that has something for them, so a program that never needs them pays nothing.
 *
 * Each thread has a share of the items, the same in every run with the same number of items, so that it touches the same
 * part of the image in every step. A share is cut into parts, and who is done with its own takes parts of the others':
 * a thread that the system does not run just now holds nobody up. */
#ifndef BLAS_POOL_H
#define BLAS_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pool;

/* Items [from, to) on behalf of a run; `thread` is below the pool's threads and nobody else's at this time. */
typedef void pool_work(void *context, size_t from, size_t to, size_t thread);

/* A pool of `threads` >= 1, the caller included; NULL where there is no memory. */
struct pool *pool_open(size_t threads);

/* Ends the threads. NULL is allowed. No run may be under way. */
void pool_close(struct pool *pool);

/* Does the work on items [0, n) and returns when all of it is done. One run at a time, always by the same thread. */
void pool_run(struct pool *pool, size_t n, pool_work *work, void *context);

/* The threads of a run; fewer than asked for where the system did not give them. */
size_t pool_threads(const struct pool *pool);

#endif
