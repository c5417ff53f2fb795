/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer section while it is being made; what the files vocab_*.c share.
 *
 * A draft has a growing buffer for each table. vocab_build.c walks tokenizer.json, vocab_pattern.c
 * compiles patterns, vocab_classes.c numbers the classes of characters that they ask for,
 * vocab_tables.c makes the hash tables and tries, and vocab_assemble joins the buffers. */
#ifndef CONVERT_VOCAB_DRAFT_H
#define CONVERT_VOCAB_DRAFT_H

#include "json.h"
#include "vocab.h"

struct draft_table {
    uint8_t *data;
    size_t length, capacity; /* bytes */
};

struct draft {
    const char *path; /* of tokenizer.json, for sentences */
    struct vocab_header header;
    struct draft_table tables[VOCAB_TABLES];
    uint32_t *classes; /* [VOCAB_CODEPOINTS]: the classes of each character, a bit each; NULL until
                          one is needed */
    unsigned class_count;
};

/* Appends to a table; STELE_SYSTEM where there is no memory. */
enum stele_status draft_put(struct draft *d, enum vocab_table table, const void *bytes,
                            size_t length, struct stele_error *err);

/* Appends a string to VOCAB_STRINGS. */
enum stele_status draft_string(struct draft *d, const char *text, size_t length,
                               struct vocab_string *out, struct stele_error *err);

/* Joins the tables into one section; *out is malloc'ed. May be called more than once. */
enum stele_status draft_assemble(struct draft *d, uint8_t **out, size_t *length,
                                 struct stele_error *err);

void draft_free(struct draft *d);

static inline size_t draft_count(const struct draft *d, enum vocab_table table, size_t size)
{
    return d->tables[table].length / size;
}

/* ----------------------------------------------------------------------------- vocab_classes.c */

/* A set of characters. 136 KiB: one at a time, on the heap. */
struct charset {
    uint64_t bits[VOCAB_CODEPOINTS / 64];
};

void charset_add(struct charset *s, uint32_t first, uint32_t last);
void charset_invert(struct charset *s);

/* Adds what a property's name stands for: a general category (L, Lu, ...), or White_Space, Han, or
 * one of the library's own ideas: Word (Rust's \w), Neither (word nor space; for an empty set),
 * Numeric (Rust's is_numeric), Punctuation (that of Unicode 8), Young (not in Unicode 9). False for
 * a name that is none of these. */
bool charset_add_property(struct charset *s, const char *name, size_t length);

/* The class bit of a set, which it shares with an equal one; 0 in *bit where all 32 are taken. */
enum stele_status draft_class(struct draft *d, const struct charset *s, uint32_t *bit,
                              struct stele_error *err);

/* The class bit of a property that must exist. */
enum stele_status draft_property(struct draft *d, const char *name, uint32_t *bit,
                                 struct stele_error *err);

/* Makes VOCAB_ASCII, VOCAB_PAGES, VOCAB_RANGES and VOCAB_SETS, when all classes are known. */
enum stele_status draft_ranges(struct draft *d, struct stele_error *err);

/* ----------------------------------------------------------------------------- vocab_pattern.c */

/* Compiles a regular expression of Ruby's syntax and appends it to VOCAB_PATTERNS: to a program of
 * ours where it says only what such a program can, else for Oniguruma. STELE_INPUT where Oniguruma
 * refuses it or would read it otherwise than the library does; `where` names the component. */
enum stele_status draft_regex(struct draft *d, const char *where, const char *regex, size_t length,
                              uint32_t *index, struct stele_error *err);
enum stele_status draft_literal(struct draft *d, const char *where, const char *text, size_t length,
                                uint32_t *index, struct stele_error *err);
/* A pattern that matches any one character of a property. */
enum stele_status draft_one_of(struct draft *d, const char *property, uint32_t *index,
                               struct stele_error *err);
/* A pattern that matches runs of one property, or else runs of another (which may be NULL). */
enum stele_status draft_runs_of(struct draft *d, const char *property, const char *other,
                                uint32_t *index, struct stele_error *err);

/* ------------------------------------------------------------------------------ vocab_tables.c */

struct draft_added {
    const char *content;
    size_t length;
    char *normal; /* malloc'ed: the content as the normaliser has it, or NULL */
    size_t normal_length;
    uint32_t id, flags;
    bool special, normalized;
};

/* Makes VOCAB_TOKENS, VOCAB_TEXTS, VOCAB_LOOKUP, VOCAB_MERGES, VOCAB_UNITS and VOCAB_BYTES from the
 * model's vocabulary and merges (JSON) and the added tokens. */
enum stele_status draft_model(struct draft *d, const json_t *vocab, const json_t *merges,
                              bool byte_fallback, const struct draft_added *added,
                              size_t added_count, struct stele_error *err);

/* Makes VOCAB_ADDED and both tries. */
enum stele_status draft_tries(struct draft *d, const struct draft_added *added, size_t count,
                              struct stele_error *err);

#endif
