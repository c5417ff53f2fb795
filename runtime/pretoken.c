/* SPDX-License-Identifier: Apache-2.0 */
#include "pretoken.h"
#include "utf8.h"

#include <inttypes.h>

/* --------------------------------------------------------------------------------------- split */

/* The next match, or what lies before it. */
static enum stele_status next_part(struct level *l, struct part *part, bool *more,
                                   struct stele_error *err)
{
    *more = true;
    if (!l->has_next) {
        struct part *m = &l->next;
        m->match = true;
        enum stele_status status =
            matcher_next(&l->matcher, &l->has_next, &m->start, &m->stop, err);
        if (status)
            return status;
        size_t until = l->has_next ? m->start : l->span.length;
        if (until != l->done) {
            *part = (struct part){l->done, until, false};
            l->done = until;
            return STELE_OK;
        }
    }
    *more = l->has_next;
    if (l->has_next) {
        *part = l->next;
        l->done = part->stop;
        l->has_next = false;
    }
    return STELE_OK;
}

/* Takes a part into account. True if *out is to be given out; what may yet grow is held. */
static bool take_part(struct level *l, struct part part, struct part *out)
{
    bool before = l->before_match, held = l->has_held;
    l->before_match = part.match;
    switch (l->stage.behavior) {
    case SPLIT_REMOVED:
        *out = part;
        return !part.match;
    case SPLIT_MERGED_WITH_PREVIOUS:
        if (held && part.match && !before) {
            l->held.stop = part.stop;
            return false;
        }
        break;
    case SPLIT_MERGED_WITH_NEXT:
        if (held && before && !part.match) {
            *out = (struct part){l->held.start, part.stop, false};
            l->has_held = false;
            return true;
        }
        break;
    case SPLIT_CONTIGUOUS:
        if (held && part.match == before) {
            l->held.stop = part.stop;
            return false;
        }
        break;
    default:
        *out = part;
        return true;
    }
    *out = l->held;
    l->held = part;
    l->has_held = true;
    return held;
}

static enum stele_status next_split(struct level *l, struct span *out, bool *more,
                                    struct stele_error *err)
{
    struct part part, give = {0};
    bool ready = false;
    while (!ready) {
        enum stele_status status = next_part(l, &part, more, err);
        if (status)
            return status;
        if (*more) {
            part.match ^= l->stage.flag & 1;
            ready = take_part(l, part, &give);
        } else if (l->has_held) {
            give = l->held;
            l->has_held = false;
            *more = ready = true;
        } else
            return STELE_OK;
        ready = ready && give.stop > give.start;
    }
    *out = (struct span){l->span.text + give.start, give.stop - give.start,
                         l->span.at_start && !give.start};
    return STELE_OK;
}

/* ------------------------------------------------------------------------------------- rewrite */

static enum stele_status prefix_space(struct level *l, struct stele_error *err)
{
    if (l->span.length && *l->span.text == ' ')
        return STELE_OK;
    enum stele_status status = text_append(&l->rewritten, " ", 1, err);
    if (!status)
        status = text_append(&l->rewritten, l->span.text, l->span.length, err);
    l->span.text = l->rewritten.data;
    l->span.length = l->rewritten.length;
    return status;
}

static enum stele_status metaspace(struct level *l, struct stele_error *err)
{
    const char *text = l->span.text, *end = text + l->span.length, *mark = l->mark;
    const size_t mark_length = l->mark_length;
    bool starts =
        (*text == ' ' || (l->span.length >= mark_length && !memcmp(text, mark, mark_length)));
    bool wanted =
        l->stage.flag == METASPACE_ALWAYS || (l->stage.flag == METASPACE_FIRST && l->span.at_start);
    enum stele_status status = STELE_OK;
    if (wanted && !starts)
        status = text_append(&l->rewritten, mark, mark_length, err);
    while (!status) {
        const char *space = memchr(text, ' ', (size_t)(end - text));
        status = text_append(&l->rewritten, text, (size_t)((space ? space : end) - text), err);
        if (!space)
            break;
        if (!status)
            status = text_append(&l->rewritten, mark, mark_length, err);
        text = space + 1;
    }
    l->span.text = l->rewritten.data;
    l->span.length = l->rewritten.length;
    return status;
}

static enum stele_status spell_bytes(struct level *l, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    for (size_t i = 0; i < l->span.length && !status; i++) {
        char spelled[4];
        status = text_append(&l->rewritten, spelled,
                             utf8_put(spelled, alphabet_char((uint8_t)l->span.text[i])), err);
    }
    l->span.text = l->rewritten.data;
    l->span.length = l->rewritten.length;
    return status;
}

/* -------------------------------------------------------------------------------------- levels */

/* Gives a level a text. */
static enum stele_status level_start(struct level *l, struct span span, struct stele_error *err)
{
    l->span = span;
    l->done = 0;
    l->has_next = l->has_held = l->before_match = l->given = false;
    l->rewritten.length = 0;
    switch (l->stage.op) {
    case STAGE_SPLIT:
        matcher_start(&l->matcher, span.text, span.length);
        return STELE_OK;
    case STAGE_PREFIX_SPACE:
        return prefix_space(l, err);
    case STAGE_METASPACE:
        return metaspace(l, err);
    default:
        return spell_bytes(l, err);
    }
}

static enum stele_status level_next(struct level *l, struct span *out, bool *more,
                                    struct stele_error *err)
{
    if (l->stage.op == STAGE_SPLIT)
        return next_split(l, out, more, err);
    *more = !l->given && l->span.length;
    l->given = true;
    *out = l->span;
    return STELE_OK;
}

static enum stele_status level_open(struct level *l, const struct vocab *v, struct stele_error *err)
{
    if (l->stage.op < STAGE_SPLIT || l->stage.op > STAGE_ALPHABET ||
        l->stage.behavior >= SPLIT_BEHAVIORS)
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: a pre-tokenizer is of an unknown kind");
    if (l->stage.op == STAGE_SPLIT)
        return matcher_open(&l->matcher, v, l->stage.pattern, err);
    if (l->stage.op == STAGE_METASPACE &&
        (!vocab_string(v, l->stage.a, &l->mark, &l->mark_length) || !l->mark_length))
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: a pre-tokenizer's string lies outside");
    return STELE_OK;
}

enum stele_status pretoken_open(struct pretoken *out, const struct vocab *v,
                                struct stele_error *err)
{
    *out = (struct pretoken){.depth = -1};
    uint32_t count = vocab_count(v, VOCAB_STAGES);
    if (count > PRETOKEN_STAGES_MAX)
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: %" PRIu32 " pre-tokenizers, more than %d", count,
                          PRETOKEN_STAGES_MAX);
    enum stele_status status = STELE_OK;
    for (uint32_t i = 0; i < count && !status; i++) {
        out->levels[i].stage = ((const struct vocab_stage *)vocab_records(v, VOCAB_STAGES))[i];
        out->count++;
        status = level_open(&out->levels[i], v, err);
    }
    if (status)
        pretoken_close(out);
    return status;
}

void pretoken_close(struct pretoken *p)
{
    for (int i = 0; i < p->count; i++) {
        matcher_close(&p->levels[i].matcher);
        free(p->levels[i].rewritten.data);
    }
    *p = (struct pretoken){.depth = -1};
}

enum stele_status pretoken_start(struct pretoken *p, const char *text, size_t length, bool at_start,
                                 struct stele_error *err)
{
    struct span span = {text, length, at_start};
    p->whole = span;
    p->depth = -1;
    if (!p->count || !length)
        return STELE_OK;
    p->depth = 0;
    return level_start(&p->levels[0], span, err);
}

enum stele_status pretoken_next(struct pretoken *p, const char **piece, size_t *length, bool *more,
                                struct stele_error *err)
{
    struct span span = p->whole;
    enum stele_status status = STELE_OK;
    *more = !p->count && span.length;
    p->whole.length = 0;
    while (p->depth >= 0) {
        status = level_next(&p->levels[p->depth], &span, more, err);
        if (status)
            return status;
        if (!*more)
            p->depth--;
        else if (p->depth + 1 == p->count)
            break;
        else if ((status = level_start(&p->levels[++p->depth], span, err)))
            return status;
    }
    *piece = span.text;
    *length = span.length;
    return STELE_OK;
}
