/* SPDX-License-Identifier: Apache-2.0 */
/* Which KV block holds which positions: blocks of 64 positions, a table for each sequence, blocks taken as text grows.
 * The memory itself belongs to the back end. */
#ifndef RUNTIME_KV_H
#define RUNTIME_KV_H

#include "error.h"
#include "types.h"

struct kv_tables {
    uint32_t sequences;
    uint32_t blocks_each; /* blocks of a full context */
    uint32_t *tables;     /* [sequences][blocks_each]; untouched beyond `used` */
    uint32_t *used;       /* [sequences] */
    uint32_t next;        /* first block that nobody has taken yet */
};

enum stele_status kv_open(struct kv_tables *out, uint32_t sequences, uint32_t context, struct stele_error *err);
void kv_close(struct kv_tables *kv);

/* Takes blocks until the sequence holds `positions`. There are always enough: blocks_each for every sequence. */
void kv_grow(struct kv_tables *kv, uint32_t sequence, uint32_t positions);

const uint32_t *kv_table(const struct kv_tables *kv, uint32_t sequence);

#endif
