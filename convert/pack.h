/* SPDX-License-Identifier: Apache-2.0 */
/* Writes the weights of an image: reads source rows, rounds them, lays them into panels, appends them in order. */
#ifndef CONVERT_PACK_H
#define CONVERT_PACK_H

#include "emit.h"
#include "write.h"

/* What is wrong with a tensor: set by the first thread that finds it in the lowest panel. */
struct fault {
    uint64_t panel; /* UINT64_MAX: none */
    const char *what;
    const struct source_tensor *tensor;
    uint64_t row;
    bool number; /* of a vector: `row` counts numbers */
};

/* Lays panel `panel` (16 rows of a part; 16 numbers of a vector) of a recipe, in a bank that of its expert (of a bank's
 * biases: of the set), to out[pack_panel_bytes()]. `row` has room for pack_row_numbers() floats. Any number of threads. */
void pack_panel(const struct recipe *r, size_t expert, uint64_t panel, uint8_t *out, float *row, struct fault *fault);
uint64_t pack_panel_bytes(const struct recipe *r);
size_t pack_row_numbers(size_t columns); /* K, and the scales of its halves of groups */

/* STELE_OK where there is no fault, else STELE_INPUT and its sentence. */
enum stele_status pack_fault(const struct fault *fault, struct stele_error *err);

/* Called now and then with the bytes of weights written so far. */
typedef void pack_progress(void *context, uint64_t done, uint64_t total);

/* Appends all recipes of the emitter to the section that was begun. The bytes do not depend on `threads`. Private memory:
 * a few panels a thread. A weight that is not finite, or too large for its type, is STELE_INPUT naming the tensor. */
enum stele_status pack_weights(struct emitter *e, struct image_writer *writer, size_t threads, pack_progress *progress,
                               void *context);

#endif
