/* SPDX-License-Identifier: Apache-2.0 */
/* Tells a model's thinking from its answer: what it writes first, between the marks that its makers gave it. */
#ifndef RUNTIME_THINKING_H
#define RUNTIME_THINKING_H

#include "buffer.h"

struct mark {
    const char *text;
    size_t bytes;
};

enum thinking_state {
    THINKING_START,  /* nothing but white space was written: a mark may come */
    THINKING_INSIDE,
    THINKING_NEXT,   /* behind a mark of the next message: thinking may begin again */
    THINKING_GAP,    /* behind the marks: the white space before the answer is no part of it */
    THINKING_ANSWER,
};

/* All zero: there are no marks, and everything is the answer. */
struct thinking {
    struct mark begin, done;
    struct mark next; /* between the messages that a model thinks in; of length 0: it thinks in one */
    enum thinking_state state;
    struct text_buffer held, special; /* what is not certain yet; whether a byte is of a special token, which marks may be
                                       * made of, and which nobody sees */
    struct text_buffer thoughts, answer; /* what has become certain since the last push */
};

/* Takes a token's text, and looks what that makes certain. `end`: nothing follows. */
enum stele_status thinking_push(struct thinking *t, const char *text, size_t bytes, bool special, bool end,
                                struct stele_error *err);
void thinking_close(struct thinking *t);

#endif
