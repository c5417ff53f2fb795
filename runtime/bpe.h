/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-pair encoding of one piece of text, over the tables of the section. */
#ifndef RUNTIME_BPE_H
#define RUNTIME_BPE_H

#include "buffer.h"
#include "vocab.h"

/* A stretch of a long piece that has one id so far; the stretches of a piece are a list in an
 * array. */
struct bpe_symbol {
    uint32_t id, before, after;
};

/* For one thread; its memory grows to the longest piece: 28 bytes a character. */
struct bpe {
    const struct vocab *vocab;
    const uint32_t *units, *bytes; /* [256] each; bytes is NULL without byte fallback */
    const struct vocab_merge *merges;
    uint32_t slots, flags, unknown;
    const char *mark; /* [mark_length]: where a long piece may be cut */
    size_t mark_length;
    struct id_buffer begin; /* ids that the piece at hand begins as */
    struct bpe_symbol *symbols;
    uint64_t *heap; /* rank << 32 | position of the left half */
    size_t symbols_capacity, heap_capacity, heap_count;
};

enum stele_status bpe_open(struct bpe *out, const struct vocab *v, struct stele_error *err);

/* Appends the ids of a piece to *out. The piece is bytes where the vocabulary is raw, else UTF-8.
 */
enum stele_status bpe_encode(struct bpe *b, const char *piece, size_t length, struct id_buffer *out,
                             struct stele_error *err);

void bpe_free(struct bpe *b);

#endif
