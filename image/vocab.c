/* SPDX-License-Identifier: Apache-2.0 */
#include "vocab.h"

#include <inttypes.h>

/* Bytes of a record of each table, and how many records the table must have where that is fixed. */
static const struct {
    const char *name;
    uint32_t size, exactly;
    bool or_none;
} TABLES[VOCAB_TABLES] = {
    [VOCAB_TOKENS] = {"tokens", 4, 0, false},
    [VOCAB_TEXTS] = {"texts", 1, 0, false},
    [VOCAB_LOOKUP] = {"lookup", 4, 0, false},
    [VOCAB_MERGES] = {"merges", sizeof(struct vocab_merge), 0, false},
    [VOCAB_UNITS] = {"units", 4, 256, false},
    [VOCAB_BYTES] = {"bytes", 4, 256, true},
    [VOCAB_ADDED] = {"added", sizeof(struct vocab_added), 0, false},
    [VOCAB_TRIE] = {"trie", sizeof(struct vocab_node), 0, false},
    [VOCAB_TRIE_EDGES] = {"trie edges", 4, 0, false},
    [VOCAB_NORMAL] = {"normal trie", sizeof(struct vocab_node), 0, false},
    [VOCAB_NORMAL_EDGES] = {"normal trie edges", 4, 0, false},
    [VOCAB_ASCII] = {"ascii", 4, 128, false},
    [VOCAB_PAGES] = {"pages", 2, VOCAB_PAGES_COUNT, false},
    [VOCAB_RANGES] = {"ranges", 4, 0, false},
    [VOCAB_SETS] = {"sets", 4, 0, false},
    [VOCAB_NORMALIZERS] = {"normalizers", sizeof(struct vocab_step), 0, false},
    [VOCAB_STAGES] = {"stages", sizeof(struct vocab_stage), 0, false},
    [VOCAB_PATTERNS] = {"patterns", sizeof(struct vocab_pattern), 0, false},
    [VOCAB_CODE] = {"code", sizeof(struct vocab_instr), 0, false},
    [VOCAB_TEMPLATE] = {"template", 4, 0, false},
    [VOCAB_DECODERS] = {"decoders", sizeof(struct vocab_step), 0, false},
    [VOCAB_STRINGS] = {"strings", 1, 0, false},
};

static enum stele_status check_table(const struct vocab_header *h, int i, uint64_t length,
                                     struct stele_error *err)
{
    struct vocab_span span = h->tables[i];
    uint64_t bytes = (uint64_t)span.count * TABLES[i].size;
    if (span.offset % 4 || span.offset > length || bytes > length - span.offset)
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: table %s: %" PRIu32 " records at %" PRIu32
                          " do not lie in its %" PRIu64
                          " bytes; the image is damaged or not made by stele",
                          TABLES[i].name, span.count, span.offset, length);
    uint32_t exactly = i == VOCAB_TOKENS ? h->ids + 1 : TABLES[i].exactly;
    if (exactly && span.count != exactly && !(TABLES[i].or_none && !span.count))
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: table %s has %" PRIu32 " records, not %" PRIu32,
                          TABLES[i].name, span.count, exactly);
    return STELE_OK;
}

enum stele_status vocab_open(struct vocab *out, const uint8_t *section, uint64_t length,
                             struct stele_error *err)
{
    *out = (struct vocab){0};
    struct vocab_header h;
    if (length < sizeof h)
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: %" PRIu64 " bytes, shorter than its header", length);
    assert((uintptr_t)section % 4 == 0);
    memcpy(&h, section, sizeof h);
    if (h.magic != VOCAB_MAGIC)
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: begins with %08" PRIx32 ", which is no tokenizer",
                          h.magic);
    if (h.version != VOCAB_VERSION)
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: version %" PRIu32 "; this stele reads version %u",
                          h.version, VOCAB_VERSION);
    if (h.flags & ~(uint32_t)VOCAB_FLAGS)
        return stele_fail(err, STELE_INPUT, "tokenizer section: unknown flags %08" PRIx32, h.flags);
    if (h.ids > VOCAB_IDS_MAX)
        return stele_fail(err, STELE_INPUT, "tokenizer section: %" PRIu32 " ids, more than %u",
                          h.ids, VOCAB_IDS_MAX);
    for (int i = 0; i < VOCAB_TABLES; i++) {
        enum stele_status status = check_table(&h, i, length, err);
        if (status)
            return status;
    }
    *out = (struct vocab){.base = section, .header = h};
    return STELE_OK;
}

bool vocab_token(const struct vocab *v, uint32_t id, const char **text, size_t *length,
                 uint32_t *flags)
{
    if (id >= v->header.ids)
        return false;
    const uint32_t *tokens = vocab_records(v, VOCAB_TOKENS);
    uint32_t entry = tokens[id], begin = entry & TOKEN_OFFSET, end = tokens[id + 1] & TOKEN_OFFSET;
    if (!(entry & TOKEN_PRESENT) || begin > end || end > vocab_count(v, VOCAB_TEXTS))
        return false;
    *text = (const char *)vocab_records(v, VOCAB_TEXTS) + begin;
    *length = end - begin;
    *flags = entry & ~TOKEN_OFFSET;
    return true;
}

uint32_t vocab_lookup(const struct vocab *v, const char *text, size_t length)
{
    const uint32_t *lookup = vocab_records(v, VOCAB_LOOKUP);
    uint32_t slots = vocab_count(v, VOCAB_LOOKUP);
    if (!slots)
        return VOCAB_NONE;
    uint64_t hash = vocab_text_hash(text, length);
    uint32_t tag = (uint32_t)(hash & 0x7ff) << 21, slot = vocab_slot(hash, slots);
    for (uint32_t probes = 0; probes < slots; probes++) {
        uint32_t entry = lookup[slot];
        if (entry == VOCAB_NONE)
            break;
        const char *other;
        size_t other_length;
        uint32_t flags;
        if ((entry & ~LOOKUP_ID) == tag &&
            vocab_token(v, entry & LOOKUP_ID, &other, &other_length, &flags) &&
            other_length == length && !memcmp(other, text, length))
            return entry & LOOKUP_ID;
        if (++slot == slots)
            slot = 0;
    }
    return VOCAB_NONE;
}
