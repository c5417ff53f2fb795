/* SPDX-License-Identifier: Apache-2.0 */
/* Writes the weights of an image: reads source rows, rounds them, lays them into panels, appends them in order. */
#ifndef CONVERT_PACK_H
#define CONVERT_PACK_H

#include "emit.h"
#include "write.h"

/* Called now and then with the bytes of weights written so far. */
typedef void pack_progress(void *context, uint64_t done, uint64_t total);

/* Appends all recipes of the emitter to the section that was begun. The bytes do not depend on `threads`. Private memory:
 * a few panels a thread. A weight that is not finite, or too large for its type, is STELE_INPUT naming the tensor. */
enum stele_status pack_weights(struct emitter *e, struct image_writer *writer, size_t threads, pack_progress *progress,
                               void *context);

#endif
