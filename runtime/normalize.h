/* SPDX-License-Identifier: Apache-2.0 */
/* Normalisation: what a tokenizer makes of a stretch of text before it looks for tokens. The
 * converter uses it too, on the added tokens that are sought in normalised text. */
#ifndef RUNTIME_NORMALIZE_H
#define RUNTIME_NORMALIZE_H

#include "buffer.h"
#include "pattern.h"

enum { NORMALIZE_STEPS_MAX = 16 };

/* For one thread; all zero but for `vocab` is a fresh one. Its buffers grow to the longest text. */
struct normalizer {
    const struct vocab *vocab;
    bool inside; /* the stretch follows another: nothing is put in front of it */
    struct matcher matchers[NORMALIZE_STEPS_MAX]; /* of the steps that have a pattern, opened when
                                                     first needed */
    struct text_buffer out, other;                /* what the last step made, and the one before */
    int32_t *characters;                          /* scratch of the normal forms */
    size_t characters_capacity;
};

/* Normalises UTF-8. *out stays valid until the next call, and is `text` itself where nothing
 * changed. */
enum stele_status normalizer_run(struct normalizer *n, const char *text, size_t length,
                                 const char **out, size_t *out_length, struct stele_error *err);

void normalizer_free(struct normalizer *n);

#endif
