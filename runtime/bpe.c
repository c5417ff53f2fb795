/* SPDX-License-Identifier: Apache-2.0 */
/* Most pieces are one lookup. The others begin as one id for each byte or character, and the pair
 * of the least rank is merged, the leftmost of equals first, until no pair merges: by looking
 * through a few pairs again and again, or with a heap where there are many, so that a long piece
 * takes O(n log n). */
#include "bpe.h"
#include "utf8.h"

#include <assert.h>

enum {
    SCAN_MAX = 48
}; /* ids up to which looking through them is faster than a heap (measured: 40 to 60) */

#define NOWHERE UINT32_MAX

enum stele_status bpe_open(struct bpe *out, const struct vocab *v, struct stele_error *err)
{
    *out = (struct bpe){
        .vocab = v,
        .units = vocab_records(v, VOCAB_UNITS),
        .bytes = vocab_count(v, VOCAB_BYTES) ? vocab_records(v, VOCAB_BYTES) : NULL,
        .merges = vocab_records(v, VOCAB_MERGES),
        .slots = vocab_count(v, VOCAB_MERGES),
        .flags = v->header.flags,
        .unknown = v->header.unknown,
    };
    if (!vocab_string(v, v->header.mark, &out->mark, &out->mark_length))
        return stele_fail(err, STELE_INPUT, "tokenizer section: the mark of words lies outside");
    return STELE_OK;
}

void bpe_free(struct bpe *b)
{
    free(b->begin.ids);
    free(b->symbols);
    free(b->heap);
    *b = (struct bpe){0};
}

static uint32_t merge_of(const struct bpe *b, uint32_t left, uint32_t right, uint32_t *rank)
{
    return vocab_merge_find(b->merges, b->slots, left, right, rank);
}

/* --------------------------------------------------------------------------- what ids to begin */

/* A character without a token falls back to its bytes, all or none, or is
 * unknown. An unknown one waits, since the next may join it; the bytes of a fallback overtake it,
 * as they do in the library. */

static bool fall_back(const struct bpe *b, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!b->bytes || b->bytes[(unsigned char)bytes[i]] == VOCAB_NONE)
            return false;
    return true;
}

static enum stele_status begin_without_token(struct bpe *b, const char *bytes, size_t n,
                                             bool *unknown, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    if (fall_back(b, bytes, n)) {
        for (size_t i = 0; i < n && !status; i++)
            status = id_append(&b->begin, b->bytes[(unsigned char)bytes[i]], err);
        return status;
    }
    if (b->flags & VOCAB_UNKNOWN_ABSENT)
        return stele_fail(err, STELE_INPUT,
                          "the text has characters without a token, and the tokenizer's unk_token "
                          "is not in its vocabulary");
    if (b->unknown == VOCAB_NONE)
        return STELE_OK;
    if (*unknown && !(b->flags & VOCAB_FUSE_UNKNOWN))
        status = id_append(&b->begin, b->unknown, err);
    *unknown = true;
    return status;
}

static enum stele_status begin_as(struct bpe *b, const char *piece, size_t length,
                                  struct stele_error *err)
{
    const bool raw = b->flags & VOCAB_RAW;
    bool unknown = false;
    enum stele_status status = STELE_OK;
    b->begin.count = 0;
    for (size_t at = 0; at < length && !status;) {
        unsigned char byte = (unsigned char)piece[at];
        size_t n = raw ? 1 : utf8_length(byte);
        if (n > length - at)
            n = length - at;
        uint32_t id = n == 1 ? b->units[byte] : vocab_lookup(b->vocab, piece + at, n);
        if (id != VOCAB_NONE) {
            if (unknown)
                status = id_append(&b->begin, b->unknown, err);
            unknown = false;
            if (!status)
                status = id_append(&b->begin, id, err);
        } else if (raw) {
            char spelled[4];
            status = begin_without_token(b, spelled, utf8_put(spelled, alphabet_char(byte)),
                                         &unknown, err);
        } else
            status = begin_without_token(b, piece + at, n, &unknown, err);
        at += n;
    }
    return unknown && !status ? id_append(&b->begin, b->unknown, err) : status;
}

/* --------------------------------------------------------------------------------- few symbols */

static size_t merge_few(const struct bpe *b, uint32_t *ids, size_t count)
{
    uint32_t ranks[SCAN_MAX], into[SCAN_MAX]; /* of each id with the next */
    for (size_t i = 0; i + 1 < count; i++)
        if ((into[i] = merge_of(b, ids[i], ids[i + 1], &ranks[i])) == VOCAB_NONE)
            ranks[i] = UINT32_MAX;
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == UINT32_MAX)
            break;
        ids[best] = into[best];
        size_t rest = count - best - 2;
        memmove(ids + best + 1, ids + best + 2, rest * sizeof *ids);
        if (rest) {
            memmove(ranks + best + 1, ranks + best + 2, (rest - 1) * sizeof *ranks);
            memmove(into + best + 1, into + best + 2, (rest - 1) * sizeof *into);
        }
        count--;
        for (size_t i = best ? best - 1 : best; i <= best && i + 1 < count; i++)
            if ((into[i] = merge_of(b, ids[i], ids[i + 1], &ranks[i])) == VOCAB_NONE)
                ranks[i] = UINT32_MAX;
    }
    return count;
}

/* -------------------------------------------------------------------------------- many symbols */

/* The heap holds each pair that could merge when it came about. Pairs that are gone
 * are found out when they come up: a half has gone, or the pair has another rank. */

static void heap_sink(uint64_t *heap, size_t count, size_t at)
{
    uint64_t value = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[at] = heap[child];
    }
    heap[at] = value;
}

static void heap_push(struct bpe *b, uint64_t value)
{
    size_t at = b->heap_count++;
    while (at && b->heap[(at - 1) / 2] > value) {
        b->heap[at] = b->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    b->heap[at] = value;
}

static uint64_t heap_pop(struct bpe *b)
{
    uint64_t least = b->heap[0];
    b->heap[0] = b->heap[--b->heap_count];
    if (b->heap_count)
        heap_sink(b->heap, b->heap_count, 0);
    return least;
}

/* A merge takes one entry away and brings two at most, so 2n entries are enough. */
static enum stele_status reserve_symbols(struct bpe *b, size_t count, struct stele_error *err)
{
    if (count <= b->symbols_capacity)
        return STELE_OK;
    free(b->symbols);
    free(b->heap);
    b->symbols_capacity = 0;
    b->symbols = malloc(count * sizeof *b->symbols);
    b->heap = malloc(2 * count * sizeof *b->heap);
    if (!b->symbols || !b->heap)
        return stele_fail(err, STELE_SYSTEM, "no memory for a piece of text of %zu characters",
                          count);
    b->symbols_capacity = count;
    return STELE_OK;
}

static void push_pair(struct bpe *b, uint32_t left, uint32_t right)
{
    uint32_t rank;
    if (merge_of(b, b->symbols[left].id, b->symbols[right].id, &rank) != VOCAB_NONE)
        heap_push(b, (uint64_t)rank << 32 | left);
}

static enum stele_status merge_many(struct bpe *b, struct stele_error *err)
{
    size_t count = b->begin.count;
    enum stele_status status = reserve_symbols(b, count, err);
    if (status)
        return status;
    struct bpe_symbol *symbols = b->symbols;
    b->heap_count = 0;
    for (size_t i = 0; i < count; i++)
        symbols[i] = (struct bpe_symbol){b->begin.ids[i], i ? (uint32_t)i - 1 : NOWHERE,
                                         i + 1 < count ? (uint32_t)i + 1 : NOWHERE};
    for (size_t i = 0; i + 1 < count; i++) {
        uint32_t rank;
        if (merge_of(b, symbols[i].id, symbols[i + 1].id, &rank) != VOCAB_NONE)
            b->heap[b->heap_count++] = (uint64_t)rank << 32 | i;
    }
    for (size_t i = b->heap_count / 2; i-- > 0;)
        heap_sink(b->heap, b->heap_count, i);
    while (b->heap_count) {
        uint64_t top = heap_pop(b);
        struct bpe_symbol *left = &symbols[(uint32_t)top];
        uint32_t rank = 0, right = left->after;
        if (left->id == VOCAB_NONE || right == NOWHERE)
            continue;
        uint32_t into = merge_of(b, left->id, symbols[right].id, &rank);
        if (into == VOCAB_NONE || rank != top >> 32)
            continue;
        left->id = into;
        left->after = symbols[right].after;
        symbols[right].id = VOCAB_NONE; /* gone */
        if (left->after != NOWHERE) {
            symbols[left->after].before = (uint32_t)top;
            push_pair(b, (uint32_t)top, left->after);
        }
        if (left->before != NOWHERE)
            push_pair(b, left->before, (uint32_t)top);
    }
    size_t kept = 0;
    for (uint32_t i = 0; i != NOWHERE; i = symbols[i].after)
        b->begin.ids[kept++] = symbols[i].id;
    b->begin.count = kept;
    return STELE_OK;
}

/* A piece, or a word of one. */
static enum stele_status encode_word(struct bpe *b, const char *word, size_t length,
                                     struct id_buffer *out, struct stele_error *err)
{
    uint32_t whole = vocab_lookup(b->vocab, word, length);
    if (whole != VOCAB_NONE)
        return id_append(out, whole, err);
    enum stele_status status = begin_as(b, word, length, err);
    if (status)
        return status;
    if (b->begin.count <= SCAN_MAX)
        b->begin.count = merge_few(b, b->begin.ids, b->begin.count);
    else
        status = merge_many(b, err);
    for (size_t i = 0; i < b->begin.count && !status; i++)
        status = id_append(out, b->begin.ids[i], err);
    return status;
}

/* Bytes up to the next mark that has another character before it: all, where there is none. */
static size_t word_length(const struct bpe *b, const char *text, size_t length)
{
    const size_t n = b->mark_length;
    size_t at = 0;
    while (length - at >= n && !memcmp(text + at, b->mark, n)) /* marks at the start */
        at += n;
    const char *next = memmem(text + at, length - at, b->mark, n);
    return next ? (size_t)(next - text) : length;
}

static enum stele_status encode_words(struct bpe *b, const char *piece, size_t length,
                                      struct id_buffer *out, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    for (size_t n; length && !status; piece += n, length -= n) {
        n = word_length(b, piece, length);
        status = encode_word(b, piece, n, out, err);
    }
    return status;
}

enum stele_status bpe_encode(struct bpe *b, const char *piece, size_t length, struct id_buffer *out,
                             struct stele_error *err)
{
    if (!length)
        return STELE_OK;
    if (!b->mark_length)
        return encode_word(b, piece, length, out, err);
    if (b->flags & VOCAB_IGNORE_MERGES) { /* a token of several words comes before its words */
        uint32_t whole = vocab_lookup(b->vocab, piece, length);
        if (whole != VOCAB_NONE)
            return id_append(out, whole, err);
    }
    return encode_words(b, piece, length, out, err);
}
