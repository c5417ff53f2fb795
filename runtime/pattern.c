/* SPDX-License-Identifier: Apache-2.0 */
#include "pattern.h"
#include "utf8.h"

#include <inttypes.h>
#include <oniguruma.h>
#include <pthread.h>

#define NO_STOP SIZE_MAX

void classes_open(struct classes *out, const struct vocab *v)
{
    *out = (struct classes){
        .ascii = vocab_records(v, VOCAB_ASCII),
        .pages = vocab_records(v, VOCAB_PAGES),
        .ranges = vocab_records(v, VOCAB_RANGES),
        .sets = vocab_records(v, VOCAB_SETS),
        .range_count = vocab_count(v, VOCAB_RANGES),
        .set_count = vocab_count(v, VOCAB_SETS),
    };
}

uint32_t classes_beyond_ascii(const struct classes *c, uint32_t character)
{
    if (character >= VOCAB_CODEPOINTS)
        return 0;
    uint32_t low = c->pages[character >> 12], high = c->pages[(character >> 12) + 1] + 1u;
    if (high > c->range_count)
        high = c->range_count;
    if (low >= high)
        return 0;
    while (high - low > 1) { /* the last range that begins at or before the character */
        uint32_t middle = low + (high - low) / 2;
        if ((c->ranges[middle] & 0x1fffff) <= character)
            low = middle;
        else
            high = middle;
    }
    uint32_t set = c->ranges[low] >> 21;
    return set < c->set_count ? c->sets[set] : 0;
}

uint32_t classes_next(const struct classes *c, const char *text, size_t length, size_t *at)
{
    unsigned char byte = (unsigned char)text[*at];
    if (byte < 0x80) {
        *at += 1;
        return c->ascii[byte];
    }
    return classes_beyond_ascii(c, utf8_next(text, length, at));
}

/* ------------------------------------------------------------------------------------ programs */

/* A choice to come back to: where the other way goes on. A run that may be shortened goes on one
 * character earlier, until it is at its least. */
struct choice {
    size_t at, least;
    uint32_t next;
};

/* The classes of the character at a place, kept since several instructions ask for them in turn. */
struct look {
    size_t at, next; /* next: behind the character */
    uint32_t bits;   /* 0 at the end of the text */
};

static inline uint32_t look_at(struct look *l, const struct matcher *m, size_t at)
{
    if (l->at == at)
        return l->bits;
    l->at = l->next = at;
    l->bits = at < m->length ? classes_next(&m->classes, m->text, m->length, &l->next) : 0;
    return l->bits;
}

/* As many characters of a run as there are; returns whether they suffice. *least: where the
 * shortest that do end. */
static inline bool take_run(const struct matcher *m, const struct vocab_instr *run,
                            struct look *look, size_t *at, size_t *least)
{
    uint32_t n = 0, max = run->max == RUN_UNBOUNDED ? UINT32_MAX : run->max;
    *least = *at;
    while (n < max && (look_at(look, m, *at) & run->classes)) {
        *at = look->next;
        if (++n == run->min)
            *least = *at;
    }
    return n >= run->min;
}

/* Runs the program at `at`; returns where the match ends, or NO_STOP. Jumps only go forward, so
 * that there are no more choices at a time than instructions. */
static size_t run_program(const struct matcher *m, size_t at, struct look look)
{
    struct choice choices[CODE_MAX];
    size_t choice_count = 0, least;
    uint32_t pc = 0;
    for (;;) {
        const struct vocab_instr *c = &m->code[pc++];
        bool fails = false;
        switch (c->op) {
        case CODE_MATCH:
            return at;
        case CODE_RUN:
            fails = !take_run(m, c, &look, &at, &least);
            if (!fails && at > least && !(c->flags & CODE_POSSESSIVE))
                choices[choice_count++] = (struct choice){at, least, pc};
            break;
        case CODE_TRY:
            if (c->classes && !(look_at(&look, m, at) & c->classes))
                pc = c->next;
            else
                choices[choice_count++] = (struct choice){at, NO_STOP, c->next};
            break;
        case CODE_JUMP:
            pc = c->next;
            break;
        case CODE_AHEAD:
            fails = !(look_at(&look, m, at) & c->classes);
            break;
        case CODE_NOT_AHEAD:
            fails = look_at(&look, m, at) & c->classes;
            break;
        default: /* CODE_LINE_END */
            fails = at < m->length && m->text[at] != '\n';
            break;
        }
        if (!fails)
            continue;
        if (!choice_count)
            return NO_STOP;
        struct choice *last = &choices[choice_count - 1]; /* another way from there */
        pc = last->next;
        if (last->least != NO_STOP)
            last->at = utf8_before(m->text, last->at);
        at = last->at;
        if (last->least == NO_STOP || at <= last->least)
            choice_count--;
    }
}

static bool find_program(const struct matcher *m, size_t *start, size_t *stop)
{
    struct look look = {.at = NO_STOP};
    for (size_t at = m->from; at < m->length; at = look.next) {
        if (!(look_at(&look, m, at) & m->first))
            continue;
        size_t end = run_program(m, at, look);
        if (end != NO_STOP) {
            *start = at;
            *stop = end;
            return true;
        }
    }
    return false;
}

static bool find_literal(const struct matcher *m, size_t *start, size_t *stop)
{
    const char *at = memmem(m->text + m->from, m->length - m->from, m->literal, m->literal_length);
    if (!at)
        return false;
    *start = (size_t)(at - m->text);
    *stop = *start + m->literal_length;
    return true;
}

/* ----------------------------------------------------------------------------------- Oniguruma */

static void initialize_oniguruma(void)
{
    OnigEncoding utf8 = ONIG_ENCODING_UTF8;
    onig_initialize(&utf8, 1);
}

enum stele_status matcher_open_regex(struct matcher *out, const char *regex, size_t length,
                                     struct stele_error *err)
{
    *out = (struct matcher){.kind = PATTERN_ONIGURUMA};
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, initialize_oniguruma);
    const unsigned char *bytes = (const unsigned char *)regex;
    regex_t *compiled = NULL;
    OnigErrorInfo info;
    int code = utf8_valid(regex, length) == length
                   ? onig_new(&compiled, bytes, bytes + length, ONIG_OPTION_NONE,
                              ONIG_ENCODING_UTF8, ONIG_SYNTAX_RUBY, &info)
                   : ONIGERR_INVALID_CODE_POINT_VALUE;
    if (code != ONIG_NORMAL) {
        unsigned char why[ONIG_MAX_ERROR_MESSAGE_LEN];
        onig_error_code_to_str(why, code, &info);
        return stele_fail(err, code == ONIGERR_MEMORY ? STELE_SYSTEM : STELE_INPUT,
                          "tokenizer section: pattern %.*s: %s", (int)(length < 200 ? length : 200),
                          regex, (char *)why);
    }
    out->regex = compiled;
    out->region = onig_region_new();
    return out->region ? STELE_OK : stele_fail(err, STELE_SYSTEM, "no memory for a pattern");
}

static enum stele_status find_oniguruma(struct matcher *m, bool *found, size_t *start, size_t *stop,
                                        struct stele_error *err)
{
    const unsigned char *text = (const unsigned char *)m->text, *end = text + m->length;
    OnigRegion *region = m->region;
    int at = onig_search(m->regex, text, end, text + m->from, end, region, ONIG_OPTION_NONE);
    *found = at >= 0;
    if (*found) {
        *start = (size_t)region->beg[0];
        *stop = (size_t)region->end[0];
    } else if (at != ONIG_MISMATCH) {
        unsigned char why[ONIG_MAX_ERROR_MESSAGE_LEN];
        onig_error_code_to_str(why, at);
        return stele_fail(err, at == ONIGERR_MEMORY ? STELE_SYSTEM : STELE_INPUT,
                          "the tokenizer's split pattern fails on this text: %s", (char *)why);
    }
    return STELE_OK;
}

/* ------------------------------------------------------------------------------------- matcher */

/* What run_program relies on: known instructions, jumps forward, an end. */
static enum stele_status check_program(const struct matcher *m, struct stele_error *err)
{
    for (uint32_t i = 0; i < m->count; i++) {
        const struct vocab_instr *c = &m->code[i];
        bool jumps = c->op == CODE_TRY || c->op == CODE_JUMP, last = i + 1 == m->count;
        if (c->op < CODE_MATCH || c->op > CODE_LINE_END ||
            (jumps && (c->next <= i || c->next >= m->count)) || (last && c->op != CODE_MATCH))
            return stele_fail(
                err, STELE_INPUT,
                "tokenizer section: instruction %" PRIu32 " of a pattern is malformed", i);
    }
    return STELE_OK;
}

enum stele_status matcher_open(struct matcher *out, const struct vocab *v, uint32_t pattern,
                               struct stele_error *err)
{
    *out = (struct matcher){0};
    if (pattern >= vocab_count(v, VOCAB_PATTERNS))
        return stele_fail(err, STELE_INPUT, "tokenizer section: there is no pattern %" PRIu32,
                          pattern);
    struct vocab_pattern p =
        ((const struct vocab_pattern *)vocab_records(v, VOCAB_PATTERNS))[pattern];
    uint32_t room = vocab_count(v, VOCAB_CODE);
    out->kind = p.kind;
    if (p.kind == PATTERN_PROGRAM) {
        if (!p.count || p.count > CODE_MAX || p.code > room || p.count > room - p.code)
            return stele_fail(err, STELE_INPUT,
                              "tokenizer section: pattern %" PRIu32 " does not lie in its table",
                              pattern);
        classes_open(&out->classes, v);
        out->code = (const struct vocab_instr *)vocab_records(v, VOCAB_CODE) + p.code;
        out->count = p.count;
        out->first = p.first;
        return check_program(out, err);
    }
    if (!vocab_string(v, p.text, &out->literal, &out->literal_length))
        return stele_fail(err, STELE_INPUT,
                          "tokenizer section: pattern %" PRIu32 " does not lie in its table",
                          pattern);
    if (p.kind == PATTERN_LITERAL && out->literal_length)
        return STELE_OK;
    if (p.kind == PATTERN_ONIGURUMA)
        return matcher_open_regex(out, out->literal, out->literal_length, err);
    return stele_fail(err, STELE_INPUT,
                      "tokenizer section: pattern %" PRIu32 " is of an unknown kind", pattern);
}

void matcher_close(struct matcher *m)
{
    if (m->region)
        onig_region_free(m->region, 1);
    if (m->regex)
        onig_free(m->regex);
    *m = (struct matcher){0};
}

void matcher_start(struct matcher *m, const char *text, size_t length)
{
    m->text = text;
    m->length = length;
    m->from = 0;
    m->last_stop = NO_STOP;
}

enum stele_status matcher_next(struct matcher *m, bool *found, size_t *start, size_t *stop,
                               struct stele_error *err)
{
    *found = false;
    while (m->from <= m->length) {
        enum stele_status status = STELE_OK;
        if (m->kind == PATTERN_PROGRAM)
            *found = find_program(m, start, stop);
        else if (m->kind == PATTERN_LITERAL)
            *found = find_literal(m, start, stop);
        else
            status = find_oniguruma(m, found, start, stop, err);
        if (status || !*found)
            return status;
        if (*start != *stop || *stop != m->last_stop) {
            m->from = m->last_stop = *stop;
            return STELE_OK;
        }
        m->from += m->from < m->length ? utf8_length((unsigned char)m->text[m->from]) : 1;
        *found = false;
    }
    return STELE_OK;
}
