/* SPDX-License-Identifier: Apache-2.0 */
#include "vocab_draft.h"

#include <stdlib.h>

enum stele_status draft_put(struct draft *d, enum vocab_table table, const void *bytes,
                            size_t length, struct stele_error *err)
{
    struct draft_table *t = &d->tables[table];
    if (length > t->capacity - t->length) {
        size_t capacity = t->length + length + t->capacity / 2 + 64;
        uint8_t *data = realloc(t->data, capacity);
        if (!data)
            return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu bytes", d->path, capacity);
        t->data = data;
        t->capacity = capacity;
    }
    if (length)
        memcpy(t->data + t->length, bytes, length);
    t->length += length;
    return STELE_OK;
}

enum stele_status draft_string(struct draft *d, const char *text, size_t length,
                               struct vocab_string *out, struct stele_error *err)
{
    size_t offset = d->tables[VOCAB_STRINGS].length;
    if (length > UINT32_MAX - offset)
        return stele_fail(err, STELE_INPUT, "%s: its strings are longer than 4 GiB", d->path);
    *out = (struct vocab_string){.offset = (uint32_t)offset, .length = (uint32_t)length};
    return draft_put(d, VOCAB_STRINGS, text, length, err);
}

/* Bytes of a record, to turn lengths into counts. */
static uint32_t record_bytes(enum vocab_table table)
{
    static const uint32_t other[VOCAB_TABLES] = {
        [VOCAB_TEXTS] = 1,
        [VOCAB_STRINGS] = 1,
        [VOCAB_PAGES] = 2,
        [VOCAB_MERGES] = sizeof(struct vocab_merge),
        [VOCAB_ADDED] = sizeof(struct vocab_added),
        [VOCAB_TRIE] = sizeof(struct vocab_node),
        [VOCAB_NORMAL] = sizeof(struct vocab_node),
        [VOCAB_NORMALIZERS] = sizeof(struct vocab_step),
        [VOCAB_DECODERS] = sizeof(struct vocab_step),
        [VOCAB_STAGES] = sizeof(struct vocab_stage),
        [VOCAB_PATTERNS] = sizeof(struct vocab_pattern),
        [VOCAB_CODE] = sizeof(struct vocab_instr),
    };
    return other[table] ? other[table] : 4;
}

/* The small tables come first, so that a short text touches few pages; the vocabulary lies behind
 * them. */
static enum vocab_table nth_table(unsigned n)
{
    return (enum vocab_table)((n + VOCAB_UNITS) % VOCAB_TABLES);
}

enum stele_status draft_assemble(struct draft *d, uint8_t **out, size_t *length,
                                 struct stele_error *err)
{
    struct vocab_header header = d->header;
    header.magic = VOCAB_MAGIC;
    header.version = VOCAB_VERSION;
    uint64_t at = sizeof header;
    for (unsigned n = 0; n < VOCAB_TABLES; n++) {
        enum vocab_table i = nth_table(n);
        if (at + d->tables[i].length > UINT32_MAX - 4)
            return stele_fail(err, STELE_INPUT, "%s: its tables are longer than 4 GiB", d->path);
        header.tables[i].offset = (uint32_t)at;
        header.tables[i].count = (uint32_t)(d->tables[i].length / record_bytes(i));
        at = round_up(at + d->tables[i].length, 4);
    }
    *out = calloc(at, 1);
    if (!*out)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu bytes", d->path, (size_t)at);
    *length = at;
    memcpy(*out, &header, sizeof header);
    for (int i = 0; i < VOCAB_TABLES; i++)
        if (d->tables[i].length)
            memcpy(*out + header.tables[i].offset, d->tables[i].data, d->tables[i].length);
    return STELE_OK;
}

void draft_free(struct draft *d)
{
    for (int i = 0; i < VOCAB_TABLES; i++)
        free(d->tables[i].data);
    free(d->classes);
    *d = (struct draft){0};
}
