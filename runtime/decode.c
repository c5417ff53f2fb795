/* SPDX-License-Identifier: Apache-2.0 */
#include "decode.h"
#include "utf8.h"

#include <inttypes.h>

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* Hands bytes on to step `to`; `ends` says that they end a token. The last step's go to the text.
 */
static enum stele_status hand_on(struct decoder *d, int to, const char *text, size_t length,
                                 bool ends, struct stele_error *err);

/* The byte that a token of the form <0xNN> stands for, or -1. Rust's number parser also takes a
 * plus sign. */
static int fallback_byte(const char *text, size_t length)
{
    if (length != 6 || memcmp(text, "<0x", 3) || text[5] != '>')
        return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = text[i], lower = (char)(c | 0x20);
        if (i == 3 && c == '+')
            continue;
        if (c >= '0' && c <= '9')
            value = value * 16 + (c - '0');
        else if (lower >= 'a' && lower <= 'f')
            value = value * 16 + (lower - 'a' + 10);
        else
            return -1;
    }
    return value;
}

/* A run of byte tokens has ended: its characters, or U+FFFD for each byte if the run as a whole is
 * no UTF-8. */
static enum stele_status end_run(struct decoder *d, int at, struct stele_error *err)
{
    struct text_buffer *run = &d->steps[at].held;
    size_t count = run->length;
    if (!count)
        return STELE_OK;
    enum stele_status status = STELE_OK;
    if (utf8_valid(run->data, count) == count)
        status = hand_on(d, at + 1, run->data, count, true, err);
    else
        for (size_t i = 0; i < count && !status; i++)
            status = hand_on(d, at + 1, REPLACEMENT, 3, true, err);
    run->length = 0;
    return status;
}

static enum stele_status byte_fallback(struct decoder *d, int at, const char *text, size_t length,
                                       struct stele_error *err)
{
    int byte = fallback_byte(text, length);
    if (byte >= 0) {
        char c = (char)byte;
        return text_append(&d->steps[at].held, &c, 1, err);
    }
    enum stele_status status = end_run(d, at, err);
    return status ? status : hand_on(d, at + 1, text, length, true, err);
}

/* How many bytes at the end of `text` might begin `a`. */
static size_t begins_at_end(const char *text, size_t length, const char *a, size_t a_length)
{
    size_t n = a_length - 1 < length ? a_length - 1 : length;
    while (n && memcmp(text + length - n, a, n))
        n--;
    return n;
}

/* Appends `text` to s->made with each a replaced by b. */
static enum stele_status replace_all(struct decode_step *s, const char *text, size_t length,
                                     const char *b, size_t b_length, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    while (!status) {
        const char *found = length ? memmem(text, length, s->a, s->a_length) : NULL;
        size_t before = found ? (size_t)(found - text) : length;
        status = text_append(&s->made, text, before, err);
        if (!found)
            break;
        if (!status)
            status = text_append(&s->made, b, b_length, err);
        text += before + s->a_length;
        length -= before + s->a_length;
    }
    return status;
}

/* A token may come in parts (behind Fuse): what might begin a match is held until the next part. */
static enum stele_status replace(struct decoder *d, int at, const char *text, size_t length,
                                 bool ends, struct stele_error *err)
{
    struct decode_step *s = &d->steps[at];
    s->made.length = 0;
    if (ends && !s->held.length) {
        enum stele_status status = replace_all(s, text, length, s->b, s->b_length, err);
        return status ? status : hand_on(d, at + 1, s->made.data, s->made.length, true, err);
    }
    enum stele_status status = text_append(&s->held, text, length, err);
    size_t sure = 0; /* behind the last match, nothing of it may begin another; before it, nothing
                        is left over */
    for (const char *found; sure < s->held.length;
         sure = (size_t)(found - s->held.data) + s->a_length)
        if (!(found = memmem(s->held.data + sure, s->held.length - sure, s->a, s->a_length)))
            break;
    size_t rest = s->held.length - sure;
    size_t keep = ends ? 0 : begins_at_end(s->held.data + sure, rest, s->a, s->a_length);
    if (!status)
        status = replace_all(s, s->held.data, s->held.length - keep, s->b, s->b_length, err);
    if (keep)
        memmove(s->held.data, s->held.data + s->held.length - keep, keep);
    s->held.length = keep;
    return status ? status : hand_on(d, at + 1, s->made.data, s->made.length, ends, err);
}

static enum stele_status metaspace(struct decoder *d, int at, const char *text, size_t length,
                                   bool ends, struct stele_error *err)
{
    struct decode_step *s = &d->steps[at];
    bool drop = !s->tokens && s->step.start;
    s->made.length = 0;
    enum stele_status status = replace_all(s, text, length, " ", drop ? 0 : 1, err);
    s->tokens += ends;
    return status ? status : hand_on(d, at + 1, s->made.data, s->made.length, ends, err);
}

/* Up to `start` characters go where a token begins, up to `stop` where it ends; the latter are held
 * until that is known. */
static enum stele_status strip(struct decoder *d, int at, const char *text, size_t length,
                               bool ends, struct stele_error *err)
{
    struct decode_step *s = &d->steps[at];
    enum stele_status status = STELE_OK;
    s->made.length = 0;
    for (size_t i = 0, n; i < length && !status; i += n) {
        n = utf8_length((unsigned char)text[i]);
        if (n > length - i)
            n = length - i;
        bool same = n == s->a_length && !memcmp(text + i, s->a, n);
        if (same && !s->inside && s->stripped < s->step.start) {
            s->stripped++;
            continue;
        }
        s->inside = true;
        s->trailing += same;
        size_t certain = !same ? s->trailing : s->trailing > s->step.stop;
        for (; certain && !status; certain--, s->trailing--)
            status = text_append(&s->made, s->a, s->a_length, err);
        if (!same && !status)
            status = text_append(&s->made, text + i, n, err);
    }
    if (ends) {
        s->inside = false;
        s->stripped = s->trailing = 0;
    }
    return status ? status : hand_on(d, at + 1, s->made.data, s->made.length, ends, err);
}

/* The bytes of a token's characters; a token with a character outside the alphabet stands for
 * itself. */
static enum stele_status spell_back(struct decoder *d, int at, const char *text, size_t length,
                                    struct stele_error *err)
{
    struct text_buffer *bytes = &d->steps[at].held;
    enum stele_status status = STELE_OK;
    bytes->length = 0;
    for (size_t i = 0; i < length && !status;) {
        int byte = alphabet_byte(utf8_next(text, length, &i));
        char c = (char)byte;
        if (byte < 0)
            return hand_on(d, at + 1, text, length, true, err);
        status = text_append(bytes, &c, 1, err);
    }
    return status ? status : hand_on(d, at + 1, bytes->data, bytes->length, true, err);
}

/* What is whole goes on, each longest part of a broken character as one U+FFFD; a part at the end
 * is held. */
static enum stele_status lossy(struct decoder *d, int at, const char *text, size_t length,
                               struct stele_error *err)
{
    struct text_buffer *held = &d->steps[at].held;
    enum stele_status status = STELE_OK;
    bool was_held = held->length;
    if (was_held) {
        status = text_append(held, text, length, err);
        text = held->data;
        length = held->length;
    }
    size_t i = 0;
    while (i < length && !status) {
        size_t good = utf8_valid(text + i, length - i);
        status = hand_on(d, at + 1, text + i, good, false, err);
        i += good;
        if (i == length || status)
            break;
        bool whole;
        size_t part = utf8_part((const unsigned char *)text + i, length - i, &whole);
        /* a part that a further byte could complete ends with the bytes, and its first byte asks
         * for more */
        unsigned char lead = (unsigned char)text[i];
        if (i + part == length && lead >= 0xc2 && lead <= 0xf4)
            break;
        status = hand_on(d, at + 1, REPLACEMENT, 3, false, err);
        i += part;
    }
    if (status)
        return status;
    if (!was_held)
        return text_append(held, text + i, length - i, err);
    memmove(held->data, text + i, length - i);
    held->length = length - i;
    return STELE_OK;
}

static enum stele_status hand_on(struct decoder *d, int to, const char *text, size_t length,
                                 bool ends, struct stele_error *err)
{
    if (to == d->count)
        return text_append(&d->text, text, length, err);
    struct decode_step *s = &d->steps[to];
    enum stele_status status = STELE_OK;
    switch (s->step.op) {
    case STEP_JOIN:
        s->made.length = 0;
        if (s->tokens++)
            status = text_append(&s->made, s->a, s->a_length, err);
        if (!status)
            status = text_append(&s->made, text, length, err);
        return status ? status : hand_on(d, to + 1, s->made.data, s->made.length, ends, err);
    case STEP_REPLACE:
        return replace(d, to, text, length, ends, err);
    case STEP_METASPACE:
        return metaspace(d, to, text, length, ends, err);
    case STEP_BYTE_FALLBACK:
        return byte_fallback(d, to, text, length, err);
    case STEP_FUSE:
        return hand_on(d, to + 1, text, length, false, err);
    case STEP_STRIP:
        return strip(d, to, text, length, ends, err);
    case STEP_ALPHABET:
        return spell_back(d, to, text, length, err);
    default:
        return lossy(d, to, text, length, err);
    }
}

/* Steps that want tokens whole must stand before those that hand them on in parts. */
static enum stele_status check_steps(const struct decoder *d, struct stele_error *err)
{
    bool parts = false;
    for (int i = 0; i < d->count; i++) {
        const struct decode_step *s = &d->steps[i];
        uint16_t op = s->step.op;
        bool whole = op == STEP_JOIN || op == STEP_BYTE_FALLBACK || op == STEP_ALPHABET;
        bool wants_a = op == STEP_REPLACE || op == STEP_METASPACE || op == STEP_STRIP;
        bool known = op == STEP_REPLACE || (op >= STEP_JOIN && op <= STEP_LOSSY);
        if (!known || (whole && parts) || (wants_a && !s->a_length))
            return stele_fail(err, STELE_INPUT,
                              "tokenizer section: decoder %d is malformed or out of place", i);
        parts |= op == STEP_FUSE || op == STEP_LOSSY;
    }
    return STELE_OK;
}

enum stele_status decoder_open(struct decoder *out, const struct vocab *v, bool skip_special,
                               struct stele_error *err)
{
    *out = (struct decoder){.vocab = v, .skip_special = skip_special};
    uint32_t count = vocab_count(v, VOCAB_DECODERS);
    if (count > DECODE_STEPS_MAX)
        return stele_fail(err, STELE_INPUT, "tokenizer section: %" PRIu32 " decoders, more than %d",
                          count, DECODE_STEPS_MAX);
    out->count = (int)count;
    for (uint32_t i = 0; i < count; i++) {
        struct decode_step *s = &out->steps[i];
        s->step = ((const struct vocab_step *)vocab_records(v, VOCAB_DECODERS))[i];
        if (!vocab_string(v, s->step.a, &s->a, &s->a_length) ||
            !vocab_string(v, s->step.b, &s->b, &s->b_length))
            return stele_fail(err, STELE_INPUT,
                              "tokenizer section: decoder %" PRIu32 ": a string lies outside", i);
    }
    return check_steps(out, err);
}

void decoder_free(struct decoder *d)
{
    for (int i = 0; i < d->count; i++) {
        free(d->steps[i].held.data);
        free(d->steps[i].made.data);
    }
    free(d->text.data);
    *d = (struct decoder){0};
}

enum stele_status decoder_push(struct decoder *d, uint32_t id, struct stele_error *err)
{
    const char *text;
    size_t length;
    uint32_t flags;
    if (!vocab_token(d->vocab, id, &text, &length, &flags) ||
        (d->skip_special && (flags & TOKEN_SPECIAL)))
        return STELE_OK;
    return hand_on(d, 0, text, length, true, err);
}

enum stele_status decoder_end(struct decoder *d, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    for (int i = 0; i < d->count && !status; i++) {
        struct decode_step *s = &d->steps[i];
        if (s->step.op == STEP_BYTE_FALLBACK)
            status = end_run(d, i, err);
        else if (s->step.op == STEP_FUSE)
            status = hand_on(d, i + 1, NULL, 0, true, err);
        else if (s->step.op == STEP_LOSSY) {
            bool rest = s->held.length;
            s->held.length = 0;
            status = hand_on(d, i + 1, REPLACEMENT, rest ? 3 : 0, true, err);
        }
    }
    return status;
}

enum stele_status decode_piece(const struct vocab *v, uint32_t id, struct text_buffer *out,
                               struct stele_error *err)
{
    const char *text;
    size_t length;
    uint32_t flags;
    if (!vocab_token(v, id, &text, &length, &flags))
        return STELE_OK;
    struct decoder d;
    enum stele_status status = decoder_open(&d, v, false, err);
    for (int i = 0; i < d.count && !status; i++) { /* only the steps that look at one token */
        uint16_t op = d.steps[i].step.op;
        int byte = op == STEP_BYTE_FALLBACK ? fallback_byte(text, length) : -1;
        if (byte >= 0) {
            char c = (char)byte;
            decoder_free(&d);
            return text_append(out, &c, 1, err);
        }
        if (op == STEP_METASPACE)
            d.steps[i].step.start = 0;
        if (op == STEP_JOIN || op == STEP_BYTE_FALLBACK || op == STEP_STRIP || op == STEP_LOSSY)
            d.steps[i].step.op = STEP_FUSE;
    }
    if (!status)
        status = hand_on(&d, 0, text, length, true, err);
    if (!status)
        status = decoder_end(&d, err);
    if (!status)
        status = text_append(out, d.text.data, d.text.length, err);
    decoder_free(&d);
    return status;
}
