/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding: the text is cut at added tokens; each stretch between is normalised, cut at the added
 * tokens that are sought in normalised text, cut into pieces by the pre-tokenizers, and each piece
 * is byte-pair encoded. */
#include "tokenizer.h"
#include "bpe.h"
#include "decode.h"
#include "normalize.h"
#include "pretoken.h"
#include "utf8.h"

#include <inttypes.h>

/* A list of positions has 32 bits. */
#define TEXT_MAX ((size_t)1 << 30)

enum stele_status tokenizer_open(struct tokenizer *out, const uint8_t *section, uint64_t length,
                                 struct stele_error *err)
{
    return vocab_open(&out->vocab, section, length, err);
}

uint32_t tokenizer_count(const struct tokenizer *t)
{
    return t->vocab.header.ids;
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id)
{
    const char *text;
    size_t length;
    uint32_t flags;
    return vocab_token(&t->vocab, id, &text, &length, &flags) && (flags & TOKEN_SPECIAL);
}

/* -------------------------------------------------------------------------------- added tokens */

/* A trie of added tokens, where it is mapped. */
struct trie {
    const struct vocab_node *nodes;  /* [node_count], the last a sentinel */
    const uint32_t *edges;           /* [edge_count] */
    const struct vocab_added *added; /* [added_count] */
    uint32_t node_count, edge_count, added_count;
};

static struct trie trie_open(const struct vocab *v, enum vocab_table nodes, enum vocab_table edges)
{
    return (struct trie){
        .nodes = vocab_records(v, nodes),
        .edges = vocab_records(v, edges),
        .added = vocab_records(v, VOCAB_ADDED),
        .node_count = vocab_count(v, nodes) ? vocab_count(v, nodes) - 1 : 0,
        .edge_count = vocab_count(v, edges),
        .added_count = vocab_count(v, VOCAB_ADDED),
    };
}

/* The child of a node by a byte, or VOCAB_NONE. */
static uint32_t trie_child(const struct trie *t, uint32_t node, unsigned char byte)
{
    uint32_t low = t->nodes[node].edges, high = t->nodes[node + 1].edges;
    if (high > t->edge_count)
        high = t->edge_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, edge = t->edges[middle];
        if (edge >> 24 == byte)
            return (edge & 0xffffff) < t->node_count ? edge & 0xffffff : VOCAB_NONE;
        if (edge >> 24 < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return VOCAB_NONE;
}

/* The longest token that begins at `at` and touches no content, unless it is an ordinary one: its
 * index in `added`, its end in *stop; or VOCAB_NONE. */
static uint32_t trie_longest(const struct trie *t, const char *text, const uint8_t *content,
                             size_t length, size_t at, size_t *stop)
{
    uint32_t found = VOCAB_NONE, node = 0;
    bool touches = false;
    while (at < length && (node = trie_child(t, node, (unsigned char)text[at])) != VOCAB_NONE) {
        uint32_t added = t->nodes[node].added;
        touches = touches || (content && content[at]);
        at++;
        if (added < t->added_count && (!touches || (t->added[added].flags & ADDED_ORDINARY))) {
            found = added;
            *stop = at;
        }
    }
    return found;
}

uint32_t tokenizer_added_id(const struct tokenizer *t, const char *text, size_t bytes)
{
    static const enum vocab_table tables[2][2] = {{VOCAB_TRIE, VOCAB_TRIE_EDGES},
                                                  {VOCAB_NORMAL, VOCAB_NORMAL_EDGES}};
    for (int i = 0; i < 2; i++) {
        struct trie trie = trie_open(&t->vocab, tables[i][0], tables[i][1]);
        size_t stop = 0;
        uint32_t found = trie.node_count ? trie_longest(&trie, text, NULL, bytes, 0, &stop) : VOCAB_NONE;
        if (found != VOCAB_NONE && stop == bytes)
            return trie.added[found].id;
    }
    return VOCAB_NONE;
}

/* A stretch of text, and the added token that it is, or VOCAB_NONE. */
struct stretch {
    size_t start, stop;
    uint32_t id;
};

/* Goes through a text from one added token to the next. */
struct cutter {
    struct trie trie;
    bool begins[256]; /* bytes that a token begins with */
    struct classes classes;
    uint32_t space, word; /* class bits */
    const char *text;
    const uint8_t *content; /* NULL, or a byte for each of text */
    size_t length;
    size_t at;                   /* where the search goes on */
    size_t done;                 /* what was given out, and the space that a token took */
    size_t space_from, space_to; /* of space_end */
    struct stretch token;        /* found behind plain text */
    bool has_token;
};

static bool in_class(const struct cutter *c, size_t at, uint32_t bit)
{
    return classes_next(&c->classes, c->text, c->length, &at) & bit;
}

/* Where white space that begins at `at` ends. The last answer is kept: with tokens that are white
 * space themselves, a long run of it is asked about at each of its characters. */
static size_t space_end(struct cutter *c, size_t at)
{
    if (at >= c->space_from && at < c->space_to)
        return c->space_to;
    c->space_from = c->space_to = at;
    for (size_t next = at; c->space_to < c->length; c->space_to = next)
        if (!(classes_next(&c->classes, c->text, c->length, &next) & c->space))
            break;
    return c->space_to;
}

/* Applies a token's flags to a match; false where it stands inside a word. */
static bool accept_token(struct cutter *c, const struct vocab_added *added, struct stretch *s)
{
    if (added->flags & ADDED_SINGLE_WORD) {
        bool word_before = s->start > 0 && in_class(c, utf8_before(c->text, s->start), c->word);
        bool word_behind = s->stop < c->length && in_class(c, s->stop, c->word);
        if (word_before || word_behind)
            return false;
    }
    if (added->flags & ADDED_LSTRIP) {
        while (s->start > c->done) {
            size_t before = utf8_before(c->text, s->start);
            if (!in_class(c, before, c->space))
                break;
            s->start = before;
        }
        s->start = s->start > c->done ? s->start : c->done; /* spaces that another token took */
    }
    if (added->flags & ADDED_RSTRIP)
        s->stop = space_end(c, s->stop);
    s->id = added->id;
    return true;
}

/* The next stretch; false at the end. */
static bool cutter_next(struct cutter *c, struct stretch *out)
{
    while (!c->has_token && c->trie.node_count) {
        while (c->at < c->length && !c->begins[(unsigned char)c->text[c->at]])
            c->at++;
        if (c->at == c->length)
            break;
        struct stretch s = {.start = c->at};
        uint32_t found = trie_longest(&c->trie, c->text, c->content, c->length, c->at, &s.stop);
        if (found == VOCAB_NONE) {
            c->at++;
            continue;
        }
        c->at = s.stop;
        if (!accept_token(c, &c->trie.added[found], &s) || s.start >= s.stop)
            continue; /* nothing is left where an earlier token took it all as its space */
        c->token = s;
        c->has_token = true;
    }
    if (c->has_token) {
        if (c->done < c->token.start) {
            *out = (struct stretch){c->done, c->token.start, VOCAB_NONE};
            c->done = c->token.start;
            return true;
        }
        *out = c->token;
        c->done = c->token.stop;
        c->has_token = false;
        return true;
    }
    *out = (struct stretch){c->done, c->length, VOCAB_NONE};
    c->done = c->length;
    return out->start < out->stop;
}

/* -------------------------------------------------------------------------------------- encode */

struct encoder {
    const struct vocab *vocab;
    unsigned flags;
    struct normalizer normalizer;
    struct pretoken pretoken;
    struct bpe bpe;
    struct normalizer parts;          /* for parts of a stretch; what they make, and which of it */
    struct text_buffer marked, marks; /* is content */
    struct id_buffer out;
};

static struct cutter cutter_start(const struct encoder *e, bool normalized, const char *text,
                                  const uint8_t *content, size_t length)
{
    const struct vocab *v = e->vocab;
    struct cutter c = {.space = v->header.space,
                       .word = v->header.word,
                       .text = text,
                       .content = content,
                       .length = length};
    if (e->flags & TOKENIZER_PLAIN)
        return c;
    c.trie = normalized ? trie_open(v, VOCAB_NORMAL, VOCAB_NORMAL_EDGES)
                        : trie_open(v, VOCAB_TRIE, VOCAB_TRIE_EDGES);
    for (uint32_t i = 0; c.trie.node_count && i < c.trie.nodes[1].edges && i < c.trie.edge_count;
         i++)
        c.begins[c.trie.edges[i] >> 24] = true;
    classes_open(&c.classes, v);
    return c;
}

static enum stele_status encode_pieces(struct encoder *e, const char *text, size_t length,
                                       bool at_start, struct stele_error *err)
{
    enum stele_status status = pretoken_start(&e->pretoken, text, length, at_start, err);
    while (!status) {
        const char *piece;
        size_t piece_length;
        bool more;
        status = pretoken_next(&e->pretoken, &piece, &piece_length, &more, err);
        if (status || !more)
            break;
        status = bpe_encode(&e->bpe, piece, piece_length, &e->out, err);
    }
    return status;
}

static enum stele_status append_marks(struct text_buffer *b, uint8_t mark, size_t count,
                                      struct stele_error *err)
{
    size_t from = b->length;
    enum stele_status status = text_reserve(b, count, err);
    if (status)
        return status;
    memset(b->data + from, mark, count);
    b->length += count;
    return STELE_OK;
}

/* Which bytes of a normalised stretch are content, in e->marks. Each part of one origin is normalised
 * by itself; where that makes another text than the whole (a mark of the content changes the
 * template's letter before it), all of it counts as content. */
static enum stele_status mark_normalized(struct encoder *e, const char *text,
                                         const uint8_t *content, size_t length,
                                         const char *normalized, size_t normalized_length,
                                         struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    e->marked.length = e->marks.length = 0;
    for (size_t at = 0, end; at < length && !status; at = end) {
        const char *part;
        size_t part_length;
        for (end = at + 1; end < length && !content[end] == !content[at];)
            end++;
        e->parts.inside = at > 0;
        status = normalizer_run(&e->parts, text + at, end - at, &part, &part_length, err);
        if (!status)
            status = text_append(&e->marked, part, part_length, err);
        if (!status)
            status = append_marks(&e->marks, content[at], part_length, err);
    }
    if (!status && (e->marked.length != normalized_length ||
                    memcmp(e->marked.data, normalized, normalized_length))) {
        e->marks.length = 0;
        status = append_marks(&e->marks, 1, normalized_length, err);
    }
    return status;
}

/* A stretch between the added tokens of the text as it came. */
static enum stele_status encode_stretch(struct encoder *e, const char *text, const uint8_t *content,
                                        size_t length, bool at_start, struct stele_error *err)
{
    const char *normalized;
    size_t n;
    enum stele_status status = normalizer_run(&e->normalizer, text, length, &normalized, &n, err);
    if (!status && content && normalized != text && vocab_count(e->vocab, VOCAB_NORMAL)) {
        status = mark_normalized(e, text, content, length, normalized, n, err);
        content = (const uint8_t *)e->marks.data;
    }
    struct cutter c = cutter_start(e, true, normalized, content, n);
    for (struct stretch s; !status && cutter_next(&c, &s);)
        status = s.id != VOCAB_NONE ? id_append(&e->out, s.id, err)
                                    : encode_pieces(e, normalized + s.start, s.stop - s.start,
                                                    at_start && !s.start, err);
    return status;
}

static enum stele_status encode_text(struct encoder *e, const char *text, const uint8_t *content,
                                     size_t length, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    struct cutter c = cutter_start(e, false, text, content, length);
    for (struct stretch s; !status && cutter_next(&c, &s);)
        status = s.id != VOCAB_NONE
                     ? id_append(&e->out, s.id, err)
                     : encode_stretch(e, text + s.start, content ? content + s.start : NULL,
                                      s.stop - s.start, !s.start, err);
    return status;
}

/* What the post-processor puts around the ids of the text. */
static enum stele_status encode_whole(struct encoder *e, const char *text, const uint8_t *content,
                                      size_t length, struct stele_error *err)
{
    const uint32_t *template = vocab_records(e->vocab, VOCAB_TEMPLATE);
    uint32_t count = vocab_count(e->vocab, VOCAB_TEMPLATE);
    if ((e->flags & TOKENIZER_BARE) || !count)
        return encode_text(e, text, content, length, err);
    enum stele_status status = STELE_OK;
    for (uint32_t i = 0; i < count && !status; i++)
        status = template[i] == TEMPLATE_TEXT ? encode_text(e, text, content, length, err)
                                              : id_append(&e->out, template[i], err);
    return status;
}

static enum stele_status check_ids(const struct encoder *e, struct stele_error *err)
{
    for (size_t i = 0; i < e->out.count; i++)
        if (e->out.ids[i] >= e->vocab->header.ids)
            return stele_fail(err, STELE_INPUT,
                              "tokenizer section: a table gives id %" PRIu32 ", of %" PRIu32 " ids",
                              e->out.ids[i], e->vocab->header.ids);
    return STELE_OK;
}

enum stele_status tokenizer_encode(const struct tokenizer *t, const char *text,
                                   const uint8_t *content, size_t bytes, unsigned flags,
                                   uint32_t **ids, size_t *count, struct stele_error *err)
{
    *ids = NULL;
    *count = 0;
    if (bytes > TEXT_MAX)
        return stele_fail(err, STELE_INPUT,
                          "the text has %zu bytes, more than the %zu that stele encodes at once",
                          bytes, TEXT_MAX);
    size_t good = utf8_valid(text, bytes);
    if (good < bytes)
        return stele_fail(err, STELE_INPUT, "the text is not UTF-8: byte 0x%02x at offset %zu",
                          (unsigned char)text[good], good);
    struct encoder *e = calloc(1, sizeof *e);
    if (!e)
        return stele_fail(err, STELE_SYSTEM, "no memory to encode text");
    e->vocab = &t->vocab;
    e->flags = flags;
    e->normalizer.vocab = e->parts.vocab = &t->vocab;
    enum stele_status status = bpe_open(&e->bpe, &t->vocab, err);
    if (!status)
        status = pretoken_open(&e->pretoken, &t->vocab, err);
    if (!status)
        status = encode_whole(e, text, content, bytes, err);
    if (!status)
        status = check_ids(e, err);
    if (!status && e->out.count) {
        *ids = e->out.ids;
        *count = e->out.count;
        e->out.ids = NULL;
    }
    free(e->out.ids);
    free(e->marked.data);
    free(e->marks.data);
    bpe_free(&e->bpe);
    pretoken_close(&e->pretoken);
    normalizer_free(&e->normalizer);
    normalizer_free(&e->parts);
    free(e);
    return status;
}

/* -------------------------------------------------------------------------------------- decode */

/* Gives a buffer's bytes away, with a NUL behind them. */
static enum stele_status give_text(struct text_buffer *b, char **text, size_t *bytes,
                                   struct stele_error *err)
{
    *bytes = b->length;
    enum stele_status status = text_append(b, "", 1, err);
    if (status) {
        *bytes = 0;
        return status;
    }
    *text = b->data;
    *b = (struct text_buffer){0};
    return STELE_OK;
}

enum stele_status tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t count,
                                   bool skip_special, char **text, size_t *bytes,
                                   struct stele_error *err)
{
    *text = NULL;
    *bytes = 0;
    struct decoder d;
    enum stele_status status = decoder_open(&d, &t->vocab, skip_special, err);
    for (size_t i = 0; i < count && !status; i++)
        status = decoder_push(&d, ids[i], err);
    if (!status)
        status = decoder_end(&d, err);
    if (!status)
        status = give_text(&d.text, text, bytes, err);
    decoder_free(&d);
    return status;
}

enum stele_status tokenizer_piece(const struct tokenizer *t, uint32_t id, char **bytes,
                                  size_t *length, struct stele_error *err)
{
    *bytes = NULL;
    *length = 0;
    struct text_buffer b = {0};
    enum stele_status status = decode_piece(&t->vocab, id, &b, err);
    if (!status)
        status = give_text(&b, bytes, length, err);
    free(b.data);
    return status;
}

/* The prompt's ids go through the decoder like the others, and what they make certain is dropped.
 * What decode(prompt) has beyond that is `owed`: it is taken off the text that follows for as long
 * as the two agree; they part where the prompt ended in the middle of a character that the ids
 * complete. */
struct tokenizer_stream {
    struct decoder decoder;
    char *owed; /* malloc'ed: decode(prompt) */
    size_t owed_at, owed_length;
};

/* Leaves out what is owed, character by character. */
static void settle(struct tokenizer_stream *s, const char **text, size_t *bytes)
{
    *bytes = s->decoder.text.length;
    *text = *bytes ? s->decoder.text.data : "";
    while (*bytes && s->owed_at < s->owed_length) {
        size_t n = utf8_length((unsigned char)**text), left = s->owed_length - s->owed_at;
        if (n > *bytes || n > left || memcmp(*text, s->owed + s->owed_at, n)) {
            s->owed_at = s->owed_length;
            break;
        }
        s->owed_at += n;
        *text += n;
        *bytes -= n;
    }
}

enum stele_status tokenizer_stream_open(struct tokenizer_stream **out, const struct tokenizer *t,
                                        const uint32_t *prompt, size_t count,
                                        struct stele_error *err)
{
    *out = NULL;
    struct tokenizer_stream *s = calloc(1, sizeof *s);
    if (!s)
        return stele_fail(err, STELE_SYSTEM, "no memory to decode text");
    enum stele_status status =
        tokenizer_decode(t, prompt, count, true, &s->owed, &s->owed_length, err);
    if (!status)
        status = decoder_open(&s->decoder, &t->vocab, true, err);
    for (size_t i = 0; i < count && !status; i++)
        status = decoder_push(&s->decoder, prompt[i], err);
    if (status) {
        tokenizer_stream_free(s);
        return status;
    }
    assert(s->decoder.text.length <= s->owed_length);
    s->owed_at = s->decoder.text.length;
    *out = s;
    return STELE_OK;
}

enum stele_status tokenizer_stream_push(struct tokenizer_stream *s, uint32_t id, const char **text,
                                        size_t *bytes, struct stele_error *err)
{
    s->decoder.text.length = 0;
    enum stele_status status = decoder_push(&s->decoder, id, err);
    settle(s, text, bytes);
    return status;
}

enum stele_status tokenizer_stream_end(struct tokenizer_stream *s, const char **text, size_t *bytes,
                                       struct stele_error *err)
{
    s->decoder.text.length = 0;
    enum stele_status status = decoder_end(&s->decoder, err);
    settle(s, text, bytes);
    return status;
}

void tokenizer_stream_free(struct tokenizer_stream *s)
{
    if (!s)
        return;
    decoder_free(&s->decoder);
    free(s->owed);
    free(s);
}
