/* SPDX-License-Identifier: Apache-2.0 */
#include "kv.h"

#include <stdlib.h>
#include <string.h>

#include "panel.h"

enum stele_status kv_open(struct kv_tables *out, uint32_t sequences, uint32_t context, struct stele_error *err)
{
    *out = (struct kv_tables){.sequences = sequences, .blocks_each = (context + KV_BLOCK - 1) / KV_BLOCK};
    out->tables = malloc((size_t)sequences * out->blocks_each * sizeof *out->tables);
    out->used = calloc(sequences, sizeof *out->used);
    out->borrowed = calloc(sequences, sizeof *out->borrowed);
    out->length = calloc(sequences, sizeof *out->length);
    out->reach = calloc(sequences, sizeof *out->reach);
    if (out->tables && out->used && out->borrowed && out->length && out->reach)
        return STELE_OK;
    kv_close(out);
    return stele_fail(err, STELE_SYSTEM, "no memory for the block tables of %u sequences", sequences);
}

void kv_close(struct kv_tables *kv)
{
    free(kv->tables);
    free(kv->used);
    free(kv->borrowed);
    free(kv->length);
    free(kv->reach);
    *kv = (struct kv_tables){0};
}

/* Whether another sequence reads one of this one's own blocks [from, to). */
static bool is_read(const struct kv_tables *kv, uint32_t sequence, uint32_t from, uint32_t to)
{
    for (uint32_t other = 0; other < kv->sequences; other++)
        for (uint32_t b = from; other != sequence && b < to && b < kv->borrowed[other]; b++)
            if (kv_table(kv, other)[b] == kv_own(kv, sequence, b))
                return true;
    return false;
}

static void own_until(struct kv_tables *kv, uint32_t sequence, uint32_t blocks)
{
    for (uint32_t b = kv->used[sequence]; b < blocks; b++)
        kv->tables[(size_t)sequence * kv->blocks_each + b] = kv_own(kv, sequence, b);
    if (kv->used[sequence] < blocks)
        kv->used[sequence] = blocks;
}

bool kv_write(struct kv_tables *kv, uint32_t sequence, uint32_t first, uint32_t count, const char **why)
{
    uint32_t from = first / KV_BLOCK, to = (first + count + KV_BLOCK - 1) / KV_BLOCK;
    *why = first > kv->length[sequence]   ? "come behind some that were not computed"
           : from < kv->borrowed[sequence] ? "are read from the sequence that it branched off"
           : is_read(kv, sequence, from, to) ? "are read by a branch"
                                             : NULL;
    if (*why)
        return false;
    own_until(kv, sequence, to);
    kv->length[sequence] = first + count;
    if (!first || kv->reach[sequence] < first + count)
        kv->reach[sequence] = first + count;
    return true;
}

bool kv_branch(struct kv_tables *kv, uint32_t to, uint32_t from, uint32_t positions, const char **why)
{
    uint32_t whole = positions / KV_BLOCK, blocks = (positions + KV_BLOCK - 1) / KV_BLOCK;
    *why = positions > kv->length[from]  ? "were not all computed"
           : is_read(kv, to, whole, blocks) ? "would be copied to where a branch reads"
                                            : NULL;
    if (*why)
        return false;
    memcpy(kv->tables + (size_t)to * kv->blocks_each, kv_table(kv, from), whole * sizeof *kv->tables);
    kv->used[to] = kv->borrowed[to] = whole;
    kv->length[to] = positions;
    kv->reach[to] = positions ? kv->reach[from] : 0;
    own_until(kv, to, blocks);
    return true;
}
