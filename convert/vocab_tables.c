/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of a vocabulary: texts, lookup, merges, tries of added tokens. */
#include "vocab_draft.h"
#include "utf8.h"

#include <inttypes.h>
#include <stdlib.h>

/* Characters of a token whose own merges are tried out; a longer one is left to the merges at run
 * time. */
enum { REACH_MAX = 1024 };

struct token {
    const char *text; /* as the model spells it */
    size_t length;
    const char *shown; /* what it decodes to, where that is something else: a normalised added
                          token; or NULL */
    size_t shown_length;
    bool model, special;
};

struct model {
    struct draft *draft;
    struct stele_error *err;
    const json_t *vocab;
    struct token *tokens; /* [ids] */
    uint32_t ids;
};

/* The id of a token of the model, or VOCAB_NONE. Ids were checked when they were read. */
static uint32_t model_id(const json_t *vocab, const char *text, size_t length)
{
    const json_t *value = json_object_getn(vocab, text, length);
    return value ? (uint32_t)json_real_value(value) : VOCAB_NONE;
}

static enum stele_status read_ids(struct model *m, const struct draft_added *added,
                                  size_t added_count)
{
    struct draft *d = m->draft;
    const char *text;
    json_t *value;
    uint64_t id, most = 0;
    json_object_foreach((json_t *)(uintptr_t)m->vocab, text, value)
    {
        if (!json_whole(value, VOCAB_IDS_MAX - 2, &id))
            return stele_fail(m->err, STELE_INPUT,
                              "%s: model.vocab: \"%.100s\": the id is not a whole number up to %u",
                              d->path, text, VOCAB_IDS_MAX - 2);
        most = id + 1 > most ? id + 1 : most;
    }
    for (size_t i = 0; i < added_count; i++)
        most = (uint64_t)added[i].id + 1 > most ? (uint64_t)added[i].id + 1 : most;
    if (most > VOCAB_IDS_MAX - 1)
        return stele_fail(m->err, STELE_INPUT, "%s: %" PRIu64 " ids, more than %u", d->path, most,
                          VOCAB_IDS_MAX - 1);
    m->ids = (uint32_t)most;
    m->tokens = calloc(most + 1, sizeof *m->tokens);
    if (!m->tokens)
        return stele_fail(m->err, STELE_SYSTEM, "%s: no memory for %" PRIu64 " tokens", d->path,
                          most);
    return STELE_OK;
}

/* The library asks for what a token shows among the texts of the special ones. */
static bool is_special_text(const struct draft_added *added, size_t count, const char *text,
                            size_t length)
{
    for (size_t i = 0; i < count; i++)
        if (added[i].special && added[i].length == length &&
            !memcmp(added[i].content, text, length))
            return true;
    return false;
}

/* Puts every token in its place; two for one id are refused, since decoding could not tell which
 * was meant. */
static enum stele_status place_tokens(struct model *m, const struct draft_added *added,
                                      size_t added_count)
{
    const char *text;
    size_t length;
    json_t *value;
    json_object_keylen_foreach((json_t *)(uintptr_t)m->vocab, text, length, value)
    {
        struct token *t = &m->tokens[(uint32_t)json_real_value(value)];
        if (t->text)
            return stele_fail(m->err, STELE_INPUT,
                              "%s: model.vocab: \"%.100s\" and \"%.100s\" have one id",
                              m->draft->path, t->text, text);
        *t = (struct token){.text = text, .length = length, .model = true};
    }
    for (size_t i = 0; i < added_count; i++) {
        const struct draft_added *a = &added[i];
        struct token *t = &m->tokens[a->id];
        if (!t->text)
            *t = (struct token){.text = a->content, .length = a->length};
        else if (t->length != a->length || memcmp(t->text, a->content, t->length))
            return stele_fail(m->err, STELE_INPUT,
                              "%s: added token \"%.100s\" comes to have the id of \"%.100s\"",
                              m->draft->path, a->content, t->text);
        if (a->normal &&
            (a->normal_length != a->length || memcmp(a->normal, a->content, a->length))) {
            t->shown = a->normal;
            t->shown_length = a->normal_length;
        }
        t->special =
            t->shown ? is_special_text(added, added_count, t->shown, t->shown_length) : a->special;
    }
    return STELE_OK;
}

/* The bytes that a byte-level token stands for, into `out` (as long as the token); false, and
 * nothing to be used, where it has a character outside the alphabet. */
static bool token_bytes(const char *text, size_t text_length, char *out, size_t *length)
{
    *length = 0;
    for (size_t at = 0; at < text_length;) {
        int byte = alphabet_byte(utf8_next(text, text_length, &at));
        if (byte < 0)
            return false;
        out[(*length)++] = (char)byte;
    }
    return true;
}

/* True if merging what the characters of a token begin as gives that token again. */
static bool reached(const struct model *m, const struct token *t, uint32_t id)
{
    const struct draft_table *table = &m->draft->tables[VOCAB_MERGES];
    const struct vocab_merge *merges = (const void *)table->data;
    uint32_t slots = (uint32_t)(table->length / sizeof *merges), ids[REACH_MAX], rank;
    size_t count = 0;
    for (size_t at = 0; at < t->length; count++) {
        size_t from = at;
        utf8_next(t->text, t->length, &at);
        if (count == REACH_MAX ||
            (ids[count] = model_id(m->vocab, t->text + from, at - from)) == VOCAB_NONE)
            return false;
    }
    while (count > 1) {
        size_t best = count;
        uint32_t best_rank = UINT32_MAX, best_into = VOCAB_NONE;
        for (size_t i = 0; i + 1 < count; i++) {
            uint32_t into = vocab_merge_find(merges, slots, ids[i], ids[i + 1], &rank);
            if (into != VOCAB_NONE && rank < best_rank) {
                best = i;
                best_rank = rank;
                best_into = into;
            }
        }
        if (best == count)
            return false;
        ids[best] = best_into;
        memmove(ids + best + 1, ids + best + 2, (count - best - 2) * sizeof *ids);
        count--;
    }
    return count == 1 && ids[0] == id;
}

/* An empty open-addressed table of 32-bit words, all ones. */
static enum stele_status put_empty(struct draft *d, enum vocab_table table, size_t bytes,
                                   struct stele_error *err)
{
    uint8_t *ones = malloc(bytes + 1);
    if (!ones)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu bytes", d->path, bytes);
    memset(ones, 0xff, bytes);
    enum stele_status status = draft_put(d, table, ones, bytes, err);
    free(ones);
    return status;
}

static void lookup_insert(struct draft *d, const char *text, size_t length, uint32_t id)
{
    uint32_t *lookup = (void *)d->tables[VOCAB_LOOKUP].data;
    uint32_t slots = (uint32_t)(d->tables[VOCAB_LOOKUP].length / sizeof *lookup);
    uint64_t hash = vocab_text_hash(text, length);
    uint32_t slot = vocab_slot(hash, slots);
    while (lookup[slot] != VOCAB_NONE)
        slot = slot + 1 == slots ? 0 : slot + 1;
    lookup[slot] = (uint32_t)(hash & 0x7ff) << 21 | id;
}

/* Texts, and the lookup of those that one piece becomes. */
static enum stele_status put_tokens(struct model *m)
{
    struct draft *d = m->draft;
    bool raw = d->header.flags & VOCAB_RAW, all = d->header.flags & VOCAB_IGNORE_MERGES;
    enum stele_status status = STELE_OK;
    char *bytes = NULL;
    size_t longest = 0, length, found = 0;
    for (uint32_t id = 0; id < m->ids; id++) {
        const struct token *t = &m->tokens[id];
        longest = t->length > longest ? t->length : longest;
        longest = t->shown_length > longest ? t->shown_length : longest;
    }
    bool *whole = calloc(m->ids + 1u, 1);
    if (!whole || !(bytes = malloc(longest + 1))) {
        status = stele_fail(m->err, STELE_SYSTEM, "%s: no memory for its tokens", d->path);
        goto done;
    }
    for (uint32_t id = 0; id <= m->ids && !status; id++) {
        const struct token *t = &m->tokens[id];
        if (d->tables[VOCAB_TEXTS].length > TOKEN_OFFSET) {
            status =
                stele_fail(m->err, STELE_INPUT, "%s: its tokens are longer than 256 MiB", d->path);
            break;
        }
        uint32_t entry = (uint32_t)d->tables[VOCAB_TEXTS].length | (t->text ? TOKEN_PRESENT : 0) |
                         (t->special ? TOKEN_SPECIAL : 0);
        status = draft_put(d, VOCAB_TOKENS, &entry, sizeof entry, m->err);
        if (status || !t->text)
            continue;
        const char *text = t->shown ? t->shown : t->text;
        size_t text_length = t->shown ? t->shown_length : t->length;
        bool mapped = raw && token_bytes(text, text_length, bytes, &length);
        whole[id] = t->model && t->length && (mapped || !raw) && (all || reached(m, t, id));
        if (whole[id] && t->shown) {
            /* pieces would be compared with what it shows: left to the merges, where there are any
             */
            if (all || utf8_length((unsigned char)*t->text) == t->length)
                status = stele_fail(
                    m->err, STELE_INPUT,
                    "%s: added token \"%.100s\" is a token of the model, too, and normalizes to "
                    "another "
                    "text, which is not supported with ignore_merges or for one character",
                    d->path, t->text);
            whole[id] = false;
        }
        found += whole[id];
        if (!status)
            status = draft_put(d, VOCAB_TEXTS, mapped ? bytes : text, mapped ? length : text_length,
                               m->err);
    }
    if (!status)
        status = put_empty(d, VOCAB_LOOKUP, (found + found * 3 / 7 + 1) * 4, m->err);
    const uint32_t *entries = (const void *)d->tables[VOCAB_TOKENS].data;
    for (uint32_t id = 0; id < m->ids && !status; id++) {
        uint32_t begin = entries[id] & TOKEN_OFFSET, end = entries[id + 1] & TOKEN_OFFSET;
        if (whole[id])
            lookup_insert(d, (const char *)d->tables[VOCAB_TEXTS].data + begin, end - begin, id);
    }
done:
    free(bytes);
    free(whole);
    return status;
}

/* Both halves of a merge: ["a", "b"] or "a b". */
static bool merge_halves(const json_t *merge, const char *half[2], size_t length[2])
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        for (size_t i = 0; i < 2; i++) {
            const json_t *text = json_array_get(merge, i);
            if (!json_is_string(text))
                return false;
            half[i] = json_string_value(text);
            length[i] = json_string_length(text);
        }
        return true;
    }
    if (!json_is_string(merge))
        return false;
    const char *text = json_string_value(merge);
    size_t all = json_string_length(merge);
    const char *space = memchr(text, ' ', all);
    if (!space || memchr(space + 1, ' ', all - (size_t)(space + 1 - text)))
        return false;
    half[0] = text;
    length[0] = (size_t)(space - text);
    half[1] = space + 1;
    length[1] = all - length[0] - 1;
    return true;
}

/* The later of two merges of the same pair counts, as in the library. */
static void merge_insert(struct draft *d, uint32_t left, uint32_t right, uint32_t rank,
                         uint32_t into)
{
    struct vocab_merge *merges = (void *)d->tables[VOCAB_MERGES].data;
    uint32_t slots = (uint32_t)(d->tables[VOCAB_MERGES].length / sizeof *merges);
    struct vocab_merge m = {
        .pair = left | right << 21, .rank = right >> 11 | rank << 10, .into = into};
    uint32_t slot = vocab_slot(vocab_pair_hash(left, right), slots);
    while (merges[slot].into != VOCAB_NONE &&
           (merges[slot].pair != m.pair || (merges[slot].rank & 0x3ff) != (m.rank & 0x3ff)))
        slot = slot + 1 == slots ? 0 : slot + 1;
    merges[slot] = m;
}

static enum stele_status put_merge(struct model *m, const json_t *merge, size_t index,
                                   uint32_t rank, char **joined, size_t *room)
{
    struct draft *d = m->draft;
    const char *half[2];
    size_t length[2];
    if (!merge_halves(merge, half, length))
        return stele_fail(m->err, STELE_INPUT,
                          "%s: model.merges[%zu]: neither \"a b\" nor [\"a\", \"b\"]", d->path,
                          index);
    size_t both = length[0] + length[1];
    if (both > *room) {
        char *more = realloc(*joined, both * 2);
        if (!more)
            return stele_fail(m->err, STELE_SYSTEM, "%s: no memory for a merge of %zu bytes",
                              d->path, both);
        *joined = more;
        *room = both * 2;
    }
    if (both) {
        memcpy(*joined, half[0], length[0]);
        memcpy(*joined + length[0], half[1], length[1]);
    }
    uint32_t left = model_id(m->vocab, half[0], length[0]),
             right = model_id(m->vocab, half[1], length[1]);
    uint32_t into = both ? model_id(m->vocab, *joined, both) : VOCAB_NONE;
    if (left == VOCAB_NONE || right == VOCAB_NONE || into == VOCAB_NONE)
        return stele_fail(m->err, STELE_INPUT,
                          "%s: model.merges[%zu]: \"%.60s\" and \"%.60s\": a half, or both joined, "
                          "is no token of the "
                          "vocabulary",
                          d->path, index, json_is_array(merge) ? half[0] : "", half[1]);
    merge_insert(d, left, right, rank, into);
    return STELE_OK;
}

static enum stele_status put_merges(struct model *m, const json_t *merges)
{
    struct draft *d = m->draft;
    size_t count = json_array_size(merges), room = 0;
    if (count > VOCAB_MERGES_MAX)
        return stele_fail(m->err, STELE_INPUT, "%s: %zu merges, more than %u", d->path, count,
                          VOCAB_MERGES_MAX);
    enum stele_status status =
        put_empty(d, VOCAB_MERGES, (count + count / 3 + 1) * sizeof(struct vocab_merge), m->err);
    char *joined = NULL;
    uint32_t rank = 0;
    for (size_t i = 0; i < count && !status; i++) {
        const json_t *merge = json_array_get(merges, i);
        if (json_is_string(merge) && !strncmp(json_string_value(merge), "#version", 8))
            continue; /* the first line of a merges.txt */
        status = put_merge(m, merge, i, rank++, &joined, &room);
    }
    free(joined);
    return status;
}

/* True if a text has the mark behind another character. */
static bool has_mark_inside(const char *text, size_t length, const char *mark, size_t mark_length)
{
    bool other = false;
    for (size_t at = 0; at < length;) {
        size_t from = at;
        utf8_next(text, length, &at);
        bool is_mark = at - from == mark_length && !memcmp(text + from, mark, mark_length);
        if (is_mark && other)
            return true;
        other = !is_mark;
    }
    return false;
}

/* Texts that are not split into words come as one long piece. Where no merge makes a token with a
 * word's mark inside, what lies on the two sides of "x" and "\u2581" never joins, and each word can
 * be merged by itself. */
static enum stele_status put_mark(struct model *m)
{
    static const char mark[] = "\xe2\x96\x81"; /* U+2581, which stands for a space */
    struct draft *d = m->draft;
    size_t length = sizeof mark - 1;
    if ((d->header.flags & VOCAB_RAW) || model_id(m->vocab, mark, length) == VOCAB_NONE)
        return STELE_OK;
    const struct vocab_merge *merges = (const void *)d->tables[VOCAB_MERGES].data;
    for (size_t i = 0; i < draft_count(d, VOCAB_MERGES, sizeof *merges); i++) {
        if (merges[i].into == VOCAB_NONE)
            continue;
        const struct token *t = &m->tokens[merges[i].into];
        if (has_mark_inside(t->text, t->length, mark, length))
            return STELE_OK;
    }
    return draft_string(d, mark, length, &d->header.mark, m->err);
}

/* What bytes begin as, and what they fall back to. */
static enum stele_status put_bytes(struct model *m, bool byte_fallback)
{
    struct draft *d = m->draft;
    bool raw = d->header.flags & VOCAB_RAW;
    enum stele_status status = STELE_OK;
    for (unsigned b = 0; b < 256 && !status; b++) {
        char text[8];
        uint32_t id = VOCAB_NONE;
        if (raw || b < 0x80)
            id = model_id(m->vocab, text, utf8_put(text, raw ? alphabet_char((uint8_t)b) : b));
        status = draft_put(d, VOCAB_UNITS, &id, sizeof id, m->err);
        if (status || !byte_fallback)
            continue;
        snprintf(text, sizeof text, "<0x%02X>", b);
        id = model_id(m->vocab, text, 6);
        status = draft_put(d, VOCAB_BYTES, &id, sizeof id, m->err);
    }
    return status;
}

enum stele_status draft_model(struct draft *d, const json_t *vocab, const json_t *merges,
                              bool byte_fallback, const struct draft_added *added,
                              size_t added_count, struct stele_error *err)
{
    struct model m = {.draft = d, .err = err, .vocab = vocab};
    enum stele_status status = read_ids(&m, added, added_count);
    if (!status)
        status = place_tokens(&m, added, added_count);
    if (!status)
        status = put_merges(&m, merges);
    if (!status)
        status = put_tokens(&m);
    if (!status)
        status = put_bytes(&m, byte_fallback);
    if (!status)
        status = put_mark(&m);
    d->header.ids = m.ids;
    free(m.tokens);
    return status;
}

/* --------------------------------------------------------------------------------------- tries */

/* A word of a trie; words are sorted by their bytes, so that those below a node lie side by side.
 */
struct word {
    const char *text;
    size_t length;
    uint32_t added; /* index in VOCAB_ADDED; of equal words the least counts */
};

static int compare_words(const void *a, const void *b)
{
    const struct word *x = a, *y = b;
    size_t n = x->length < y->length ? x->length : y->length;
    int order = memcmp(x->text, y->text, n);
    if (order)
        return order;
    if (x->length != y->length)
        return x->length < y->length ? -1 : 1;
    return (x->added > y->added) - (x->added < y->added);
}

/* A node that is still to be written: the words [first, last) share their first `depth` bytes. */
struct span {
    size_t first, last, depth;
};

/* Writes the trie breadth first, so that the children of a node have numbers in a row and its edges
 * end where the next node's begin. */
static enum stele_status put_trie(struct draft *d, enum vocab_table nodes, enum vocab_table edges,
                                  struct word *words, size_t count, struct stele_error *err)
{
    if (!count)
        return STELE_OK;
    qsort(words, count, sizeof *words, compare_words);
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += words[i].length;
    if (bytes >= 1u << 24)
        return stele_fail(err, STELE_INPUT, "%s: its added tokens are longer than 16 MiB", d->path);
    struct span *queue = malloc((bytes + 1) * sizeof *queue);
    if (!queue)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for its added tokens", d->path);
    size_t head = 0, tail = 1;
    enum stele_status status = STELE_OK;
    queue[0] = (struct span){0, count, 0};
    while (head < tail && !status) {
        struct span s = queue[head++];
        struct vocab_node node = {.edges = (uint32_t)draft_count(d, edges, 4), .added = VOCAB_NONE};
        if (words[s.first].length == s.depth)
            node.added = words[s.first].added;
        while (s.first < s.last && words[s.first].length == s.depth)
            s.first++;
        status = draft_put(d, nodes, &node, sizeof node, err);
        while (s.first < s.last && !status) {
            size_t end = s.first;
            unsigned char byte = (unsigned char)words[s.first].text[s.depth];
            while (end < s.last && (unsigned char)words[end].text[s.depth] == byte)
                end++;
            uint32_t edge = (uint32_t)byte << 24 | (uint32_t)tail;
            queue[tail++] = (struct span){s.first, end, s.depth + 1};
            status = draft_put(d, edges, &edge, sizeof edge, err);
            s.first = end;
        }
    }
    free(queue);
    struct vocab_node sentinel = {.edges = (uint32_t)draft_count(d, edges, 4), .added = VOCAB_NONE};
    return status ? status : draft_put(d, nodes, &sentinel, sizeof sentinel, err);
}

enum stele_status draft_tries(struct draft *d, const struct draft_added *added, size_t count,
                              struct stele_error *err)
{
    struct word *words = calloc(count + 1, sizeof *words);
    if (!words)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for its added tokens", d->path);
    enum stele_status status = STELE_OK;
    for (size_t i = 0; i < count && !status; i++) {
        struct vocab_added record = {.id = added[i].id, .flags = added[i].flags};
        status = draft_put(d, VOCAB_ADDED, &record, sizeof record, err);
    }
    for (int normalized = 0; normalized < 2 && !status; normalized++) {
        size_t n = 0;
        for (size_t i = 0; i < count; i++) {
            if (added[i].normalized != normalized)
                continue;
            bool changed = added[i].normal != NULL;
            words[n++] =
                (struct word){changed ? added[i].normal : added[i].content,
                              changed ? added[i].normal_length : added[i].length, (uint32_t)i};
        }
        status = normalized ? put_trie(d, VOCAB_NORMAL, VOCAB_NORMAL_EDGES, words, n, err)
                            : put_trie(d, VOCAB_TRIE, VOCAB_TRIE_EDGES, words, n, err);
    }
    free(words);
    return status;
}
