/* SPDX-License-Identifier: Apache-2.0 */
#include "thinking.h"

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Hands on the first `bytes` of what is held, special tokens left out; `to` NULL drops them. */
static enum stele_status hand_on(struct thinking *t, size_t bytes, struct text_buffer *to, struct stele_error *err)
{
    for (size_t i = 0; to && i < bytes; i++) {
        enum stele_status status = t->special.data[i] ? STELE_OK : text_append(to, t->held.data + i, 1, err);
        if (status != STELE_OK)
            return status;
    }
    t->held.length -= bytes;
    t->special.length -= bytes;
    if (bytes) {
        memmove(t->held.data, t->held.data + bytes, t->held.length);
        memmove(t->special.data, t->special.data + bytes, t->special.length);
    }
    return STELE_OK;
}

/* Whether the mark stands at `at` in what is held; *part: its beginning does, and the text ends there. */
static bool mark_at(const struct thinking *t, const struct mark *m, size_t at, bool *part)
{
    size_t rest = t->held.length - at, common = rest < m->bytes ? rest : m->bytes;
    bool same = m->bytes && (!common || !memcmp(t->held.data + at, m->text, common));
    *part = same && common < m->bytes;
    return same && common == m->bytes;
}

static size_t skip_space(const struct thinking *t)
{
    size_t at = 0;
    while (at < t->held.length && is_space(t->held.data[at]))
        at++;
    return at;
}

/* Each looks at what is held in one state, hands on what it can and says in *more whether the next state has something to
 * look at. */

static enum stele_status at_start(struct thinking *t, bool end, bool *more, struct stele_error *err)
{
    bool part_of_begin, part_of_done;
    size_t at = skip_space(t);
    bool begins = mark_at(t, &t->begin, at, &part_of_begin), done = mark_at(t, &t->done, at, &part_of_done);
    if (!begins && !done && (at == t->held.length || part_of_begin || part_of_done) && !end)
        return STELE_OK;
    *more = true;
    t->state = begins ? THINKING_INSIDE : done ? THINKING_GAP : THINKING_ANSWER;
    return hand_on(t, begins ? at + t->begin.bytes : done ? at + t->done.bytes : 0, NULL, err);
}

static enum stele_status inside(struct thinking *t, bool end, bool *more, struct stele_error *err)
{
    bool done = false, next = false, part_of_done = false, part_of_next = false;
    size_t at = 0;
    for (; at < t->held.length; at++) {
        done = mark_at(t, &t->done, at, &part_of_done);
        next = mark_at(t, &t->next, at, &part_of_next);
        if (done || next || ((part_of_done || part_of_next) && !end))
            break;
    }
    enum stele_status status = hand_on(t, at, &t->thoughts, err);
    if (status != STELE_OK || !(done || next))
        return status;
    *more = true;
    t->state = done ? THINKING_GAP : THINKING_NEXT;
    return hand_on(t, done ? t->done.bytes : t->next.bytes, NULL, err);
}

static enum stele_status at_next(struct thinking *t, bool end, bool *more, struct stele_error *err)
{
    bool part, begins = mark_at(t, &t->begin, 0, &part);
    if (part && !end)
        return STELE_OK;
    *more = true;
    t->state = THINKING_INSIDE;
    return hand_on(t, begins ? t->begin.bytes : 0, NULL, err);
}

static enum stele_status in_gap(struct thinking *t, bool *more, struct stele_error *err)
{
    size_t at = skip_space(t);
    *more = at < t->held.length;
    t->state = *more ? THINKING_ANSWER : THINKING_GAP;
    return hand_on(t, at, NULL, err);
}

enum stele_status thinking_push(struct thinking *t, const char *text, size_t bytes, bool special, bool end,
                                struct stele_error *err)
{
    enum stele_status status = text_append(&t->held, text, bytes, err);
    if (status == STELE_OK)
        status = text_reserve(&t->special, bytes, err);
    if (status != STELE_OK)
        return status;
    if (bytes)
        memset(t->special.data + t->special.length, special, bytes);
    t->special.length += bytes;
    t->thoughts.length = t->answer.length = 0;
    if (!t->begin.bytes)
        t->state = THINKING_ANSWER;
    for (bool more = true; more && status == STELE_OK;) {
        more = false;
        switch (t->state) {
        case THINKING_START:
            status = at_start(t, end, &more, err);
            break;
        case THINKING_INSIDE:
            status = inside(t, end, &more, err);
            break;
        case THINKING_NEXT:
            status = at_next(t, end, &more, err);
            break;
        case THINKING_GAP:
            status = in_gap(t, &more, err);
            break;
        case THINKING_ANSWER:
            status = hand_on(t, t->held.length, &t->answer, err);
            break;
        }
    }
    return status;
}

void thinking_close(struct thinking *t)
{
    free(t->held.data);
    free(t->special.data);
    free(t->thoughts.data);
    free(t->answer.data);
    *t = (struct thinking){0};
}
