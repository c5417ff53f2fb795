/* SPDX-License-Identifier: Apache-2.0 */
/* From ids to text. A decoder takes ids one at a time and appends to its text what is certain; what
 * it holds back (unfinished characters, runs of bytes that a later byte may spoil, the beginning of
 * what is to be replaced) comes at the end. Whole texts and streams go the same way, so they cannot
 * differ. */
#ifndef RUNTIME_DECODE_H
#define RUNTIME_DECODE_H

#include "buffer.h"
#include "vocab.h"

enum { DECODE_STEPS_MAX = 16 };

/* A step and what it holds. */
struct decode_step {
    struct vocab_step step;
    const char *a, *b;
    size_t a_length, b_length;
    struct text_buffer held;   /* bytes that are not yet certain */
    struct text_buffer made;   /* what goes on, so that a token that came whole goes on whole */
    size_t stripped, trailing; /* of STEP_STRIP: characters taken at the start; held at the end */
    uint64_t tokens;           /* that have ended */
    bool inside;               /* of STEP_STRIP: past the start of the token */
};

struct decoder {
    const struct vocab *vocab;
    bool skip_special;
    int count;
    struct decode_step steps[DECODE_STEPS_MAX];
    struct text_buffer text;
};

enum stele_status decoder_open(struct decoder *out, const struct vocab *v, bool skip_special,
                               struct stele_error *err);
void decoder_free(struct decoder *d);

/* Appends what is certain to d->text, which the caller may empty at will. An id without a token
 * adds nothing. */
enum stele_status decoder_push(struct decoder *d, uint32_t id, struct stele_error *err);
enum stele_status decoder_end(struct decoder *d, struct stele_error *err);

/* The bytes that one token stands for, apart from its neighbours: appended to *out. */
enum stele_status decode_piece(const struct vocab *v, uint32_t id, struct text_buffer *out,
                               struct stele_error *err);

#endif
