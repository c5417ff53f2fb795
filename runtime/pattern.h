/* SPDX-License-Identifier: Apache-2.0 */
/* Patterns of a tokenizer section: programs of ours over its classes of characters, literals, and
 * what Oniguruma runs. A matcher belongs to one thread; it keeps a view into the section. */
#ifndef RUNTIME_PATTERN_H
#define RUNTIME_PATTERN_H

#include "vocab.h"

/* The classes of characters, where they are mapped. */
struct classes {
    const uint32_t *ascii;  /* [128] */
    const uint16_t *pages;  /* [VOCAB_PAGES_COUNT] */
    const uint32_t *ranges; /* [range_count] */
    const uint32_t *sets;   /* [set_count] */
    uint32_t range_count, set_count;
};

void classes_open(struct classes *out, const struct vocab *v);

/* The class bits of a character beyond ASCII. */
uint32_t classes_beyond_ascii(const struct classes *c, uint32_t character);

/* The class bits of the character at text[*at] (at < length), *at moved behind it. */
uint32_t classes_next(const struct classes *c, const char *text, size_t length, size_t *at);

struct matcher {
    enum pattern_kind kind;
    struct classes classes;
    const struct vocab_instr *code; /* [count], checked by matcher_open */
    uint32_t count, first;
    const char *literal; /* [literal_length] */
    size_t literal_length;
    void *regex, *region; /* Oniguruma's */
    /* the search at hand */
    const char *text;
    size_t length, from, last_stop;
};

/* Checks and prepares a pattern; compiles an expression for Oniguruma. */
enum stele_status matcher_open(struct matcher *out, const struct vocab *v, uint32_t pattern,
                               struct stele_error *err);
void matcher_close(struct matcher *m);

/* A matcher for an expression that Oniguruma runs. */
enum stele_status matcher_open_regex(struct matcher *out, const char *regex, size_t length,
                                     struct stele_error *err);

/* Begins a search of `text`, which must stay until it ends. */
void matcher_start(struct matcher *m, const char *text, size_t length);

/* The next match, from the left, without overlaps; an empty one never right behind another. *found
 * says if there is one. STELE_INPUT where Oniguruma gives up (its limit on retries). */
enum stele_status matcher_next(struct matcher *m, bool *found, size_t *start, size_t *stop,
                               struct stele_error *err);

#endif
