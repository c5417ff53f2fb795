/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-tokenisation: cutting a stretch of text into the pieces within which merges happen.
 *
 * The stages of the section are levels of a loop in a loop: each cuts what the one before gave, or
 * rewrites it, and the pieces of the last come out one at a time; nothing is collected. */
#ifndef RUNTIME_PRETOKEN_H
#define RUNTIME_PRETOKEN_H

#include "buffer.h"
#include "pattern.h"

enum { PRETOKEN_STAGES_MAX = 16 };

/* Text on its way through the stages. */
struct span {
    const char *text;
    size_t length;
    bool at_start; /* it begins where the text as it came begins */
};

/* A part of a level's text: a match of its pattern, or what lies between two. */
struct part {
    size_t start, stop;
    bool match;
};

struct level {
    struct vocab_stage stage;
    struct matcher matcher; /* of STAGE_SPLIT */
    const char *mark;       /* of STAGE_METASPACE [mark_length] */
    size_t mark_length;
    struct text_buffer rewritten;
    /* the text at hand */
    struct span span;
    size_t done;            /* parts up to here were taken */
    struct part next, held; /* a match found behind a gap; a part that may yet grow */
    bool has_next, has_held, before_match, given;
};

struct pretoken {
    struct level levels[PRETOKEN_STAGES_MAX];
    int count, depth;
    struct span whole; /* without stages: the text, until it is given out */
};

/* Prepares the stages of a section; compiles their patterns. */
enum stele_status pretoken_open(struct pretoken *out, const struct vocab *v,
                                struct stele_error *err);
void pretoken_close(struct pretoken *p);

/* Begins with a text, which must stay until its last piece is out. */
enum stele_status pretoken_start(struct pretoken *p, const char *text, size_t length, bool at_start,
                                 struct stele_error *err);

/* The next piece, never an empty one; *more is false where there is none. It stays valid until the
 * next call. */
enum stele_status pretoken_next(struct pretoken *p, const char **piece, size_t *length, bool *more,
                                struct stele_error *err);

#endif
