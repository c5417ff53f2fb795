/* SPDX-License-Identifier: Apache-2.0 */
/* Which KV block holds which positions: blocks of 64 positions, a table for each sequence. The memory itself belongs to the
 * back end.
 *
 * Each sequence owns a block for each 64 positions of a full context, which costs nothing until it is touched. A branch
 * reads whole blocks of the sequence that it began with, so a common beginning lies in memory once. */
#ifndef RUNTIME_KV_H
#define RUNTIME_KV_H

#include "error.h"
#include "types.h"

struct kv_tables {
    uint32_t sequences;
    uint32_t blocks_each; /* blocks of a full context */
    uint32_t *tables;     /* [sequences][blocks_each]; untouched beyond `used` */
    uint32_t *used;       /* [sequences] */
    uint32_t *borrowed;   /* [sequences]: blocks at the front of the table that other sequences own */
    uint32_t *length;     /* [sequences]: positions that were computed */
    uint32_t *reach;      /* [sequences]: the most of them since the sequence began: what rings have */
};

enum stele_status kv_open(struct kv_tables *out, uint32_t sequences, uint32_t context, struct stele_error *err);
void kv_close(struct kv_tables *kv);

/* The sequence's own block for the 64 positions of `index`. */
static inline uint32_t kv_own(const struct kv_tables *kv, uint32_t sequence, uint32_t index)
{
    return sequence * kv->blocks_each + index;
}

/* Makes ready to write positions [first, first + count). Else *why is a sentence's end: positions that are another
 * sequence's, or that a branch still reads. */
bool kv_write(struct kv_tables *kv, uint32_t sequence, uint32_t first, uint32_t count, const char **why);

/* Makes `to` a branch of the first `positions` of `from`: it reads their whole blocks; the rest of them, in the block
 * positions / 64, is the caller's to copy. */
bool kv_branch(struct kv_tables *kv, uint32_t to, uint32_t from, uint32_t positions, const char **why);

static inline const uint32_t *kv_table(const struct kv_tables *kv, uint32_t sequence)
{
    return kv->tables + (size_t)sequence * kv->blocks_each;
}

#endif
