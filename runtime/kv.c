/* SPDX-License-Identifier: Apache-2.0 */
#include "kv.h"

#include <stdlib.h>

#include "panel.h"

enum stele_status kv_open(struct kv_tables *out, uint32_t sequences, uint32_t context, struct stele_error *err)
{
    *out = (struct kv_tables){.sequences = sequences, .blocks_each = (context + KV_BLOCK - 1) / KV_BLOCK};
    out->tables = malloc((size_t)sequences * out->blocks_each * sizeof *out->tables);
    out->used = calloc(sequences, sizeof *out->used);
    if (out->tables && out->used)
        return STELE_OK;
    kv_close(out);
    return stele_fail(err, STELE_SYSTEM, "no memory for the block tables of %u sequences", sequences);
}

void kv_close(struct kv_tables *kv)
{
    free(kv->tables);
    free(kv->used);
    *kv = (struct kv_tables){0};
}

void kv_grow(struct kv_tables *kv, uint32_t sequence, uint32_t positions)
{
    uint32_t need = (positions + KV_BLOCK - 1) / KV_BLOCK;
    while (kv->used[sequence] < need)
        kv->tables[(size_t)sequence * kv->blocks_each + kv->used[sequence]++] = kv->next++;
}

const uint32_t *kv_table(const struct kv_tables *kv, uint32_t sequence)
{
    return kv->tables + (size_t)sequence * kv->blocks_each;
}
