/* SPDX-License-Identifier: Apache-2.0 */
/* Patterns: from a regular expression in Ruby's syntax to a program of ours (vocab.h, CODE_*).
 *
 * The subset is what the patterns of popular models are written in: alternatives of sequences of
 * characters and sets, with quantifiers on single characters and `?` on groups, (?i:...) over
 * ASCII, a character looked ahead at, and `$`. Within it the program means exactly what Oniguruma
 * makes of the text; whatever lies outside makes the parser give up
 * ("unfit"), and the expression goes to Oniguruma itself. Giving up is always right, so each
 * construct that is not wholly understood does. */
#include "vocab_draft.h"
#include "utf8.h"

#include <oniguruma.h>
#include <stdlib.h>

enum { DEPTH_MAX = 16, BRANCHES_MAX = 64 };

struct parser {
    struct draft *draft;
    struct stele_error *err;
    enum stele_status status; /* of the machine (no memory); an unfit expression is no error */
    const char *text;
    size_t length, at;
    unsigned count, depth;
    bool fold;           /* inside (?i: */
    uint32_t before;     /* the character before, where it and the next could fold together ("ss" is
                            U+00DF): see parse_item */
    struct charset *set; /* of the item at hand */
    struct vocab_instr code[CODE_MAX];
};

static bool parse_alternatives(struct parser *p);

static bool at_end(const struct parser *p)
{
    return p->at >= p->length;
}

static char peek(const struct parser *p)
{
    return at_end(p) ? '\0' : p->text[p->at];
}

static bool accept(struct parser *p, const char *word)
{
    size_t n = strlen(word);
    if (p->length - p->at < n || memcmp(p->text + p->at, word, n))
        return false;
    p->at += n;
    return true;
}

static bool emit(struct parser *p, struct vocab_instr instr)
{
    if (p->count == CODE_MAX)
        return false;
    p->code[p->count++] = instr;
    return true;
}

/* The class bit of the set at hand. */
static bool class_of_set(struct parser *p, uint32_t *bit)
{
    p->status = draft_class(p->draft, p->set, bit, p->err);
    return !p->status && *bit;
}

static bool is_ascii_letter(uint32_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Adds one character, and what it folds to. Beyond ASCII, folding is Oniguruma's business. */
static bool add_char(struct parser *p, uint32_t c)
{
    charset_add(p->set, c, c);
    if (!p->fold)
        return true;
    if (c >= 0x80)
        return false;
    if (is_ascii_letter(c))
        charset_add(p->set, c ^ 0x20, c ^ 0x20);
    if ((c | 0x20) == 's')
        charset_add(p->set, 0x17f, 0x17f);
    if ((c | 0x20) == 'k')
        charset_add(p->set, 0x212a, 0x212a);
    return true;
}

/* Adds a property, or what lies outside it, to the set at hand. */
static bool add_named(struct parser *p, const char *name, size_t length, bool inverted)
{
    struct charset *s = calloc(1, sizeof *s);
    if (!s) {
        p->status = stele_fail(p->err, STELE_SYSTEM, "no memory for a set of characters");
        return false;
    }
    charset_add_property(s, name, length);
    if (inverted)
        charset_invert(s);
    for (size_t i = 0; i < VOCAB_CODEPOINTS / 64; i++)
        p->set->bits[i] |= s->bits[i];
    free(s);
    return true;
}

/* \p{NAME} and \P{NAME}, behind the p. */
static bool parse_property(struct parser *p, bool inverted)
{
    static const char *const known[] = {"L",  "M",  "N",  "P",  "S",  "Z",  "Lu", "Ll", "Lt", "Lm",
                                        "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
                                        "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Han"};
    if (!accept(p, "{"))
        return false;
    const char *name = p->text + p->at;
    const char *end = memchr(name, '}', p->length - p->at);
    bool is_known = false;
    for (size_t i = 0; end && i < sizeof known / sizeof *known; i++)
        is_known |= strlen(known[i]) == (size_t)(end - name) &&
                    !memcmp(known[i], name, (size_t)(end - name));
    if (!is_known)
        return false;
    p->at += (size_t)(end - name) + 1;
    return add_named(p, name, (size_t)(end - name), inverted);
}

static bool parse_hex(struct parser *p, unsigned digits, uint32_t *c)
{
    *c = 0;
    for (unsigned i = 0; i < digits; i++) {
        char h = peek(p);
        uint32_t v = h >= '0' && h <= '9' ? (uint32_t)(h - '0') : (uint32_t)((h | 0x20) - 'a' + 10);
        if (v > 15)
            return false;
        *c = *c << 4 | v;
        p->at++;
    }
    return *c < 0xd800 || *c > 0xdfff;
}

/* What stands behind a backslash: a class is added to the set (*single false), a character returned
 * in *c. */
static bool parse_escape(struct parser *p, bool *single, uint32_t *c)
{
    static const char letters[] = "nrtfvae", means[] = "\n\r\t\f\v\a\033";
    char e = peek(p);
    p->at++;
    *single = false;
    switch (e) {
    case 'p':
    case 'P':
        return parse_property(p, e == 'P');
    case 's':
    case 'S':
        return add_named(p, "White_Space", strlen("White_Space"), e == 'S');
    case 'd':
    case 'D':
        return add_named(p, "Nd", 2, e == 'D');
    case 'u':
        *single = true;
        return parse_hex(p, 4, c);
    default:
        break;
    }
    *single = true;
    const char *letter = e ? strchr(letters, e) : NULL;
    *c = letter ? (unsigned char)means[letter - letters] : (unsigned char)e;
    bool punctuation =
        e > ' ' && e < 0x7f && !is_ascii_letter((unsigned char)e) && !(e >= '0' && e <= '9');
    return letter || punctuation;
}

/* A character of a set or a range of them, or a class. */
static bool parse_set_item(struct parser *p)
{
    bool single = true;
    uint32_t c = 0, last;
    if (accept(p, "\\")) {
        if (at_end(p) || !parse_escape(p, &single, &c))
            return false;
    } else if (peek(p) == '[' || (p->at + 1 < p->length && !memcmp(p->text + p->at, "&&", 2)))
        return false; /* a set in a set, an intersection, a POSIX bracket */
    else
        c = utf8_next(p->text, p->length, &p->at);
    bool range = peek(p) == '-' && p->at + 1 < p->length && p->text[p->at + 1] != ']';
    if (!range)
        return single ? add_char(p, c) : true;
    p->at++;
    bool last_single = true;
    if (!single || p->fold)
        return false;
    if (accept(p, "\\")) {
        if (at_end(p) || !parse_escape(p, &last_single, &last))
            return false;
    } else if (peek(p) == '[' || peek(p) == '-')
        return false;
    else
        last = utf8_next(p->text, p->length, &p->at);
    if (!last_single || last < c)
        return false;
    charset_add(p->set, c, last);
    return true;
}

/* [...], behind the bracket. */
static bool parse_set(struct parser *p)
{
    bool inverted = accept(p, "^");
    if (peek(p) == ']' || (inverted && p->fold))
        return false;
    while (!at_end(p) && peek(p) != ']')
        if (!parse_set_item(p))
            return false;
    if (!accept(p, "]"))
        return false;
    if (inverted)
        charset_invert(p->set);
    return true;
}

/* Characters of ASCII that begin or end a pair which one other character folds to: ss, ff, fi, fl,
 * st. */
static bool may_fold_together(uint32_t before, uint32_t c)
{
    before |= 0x20;
    c |= 0x20;
    return (before == 's' && (c == 's' || c == 't')) ||
           (before == 'f' && (c == 'f' || c == 'i' || c == 'l'));
}

/* One character or set, into p->set; *c is the character, or 0. */
static bool parse_item(struct parser *p, uint32_t *c)
{
    memset(p->set, 0, sizeof *p->set);
    bool single = true;
    *c = 0;
    if (accept(p, "[")) {
        /* a set that folds stands for any of its characters in the question of pairs */
        const char *from = p->text + p->at;
        if (!parse_set(p))
            return false;
        if (p->fold && p->before)
            return false;
        *c = p->fold && (memchr(from, 's', (size_t)(p->text + p->at - from)) ||
                         memchr(from, 'f', (size_t)(p->text + p->at - from)))
                 ? '?'
                 : 0;
        return true;
    }
    if (accept(p, "\\")) {
        if (at_end(p) || !parse_escape(p, &single, c))
            return false;
        return single ? add_char(p, *c) : true;
    }
    if (strchr("^.*+?{}()|]", peek(p)))
        return false;
    *c = utf8_next(p->text, p->length, &p->at);
    if (p->fold && (p->before == '?' || may_fold_together(p->before, *c)))
        return false;
    return add_char(p, *c);
}

static bool parse_number(struct parser *p, uint32_t *n)
{
    size_t from = p->at;
    *n = 0;
    while (peek(p) >= '0' && peek(p) <= '9' && *n < 1000)
        *n = *n * 10 + (uint32_t)(p->text[p->at++] - '0');
    return p->at > from && *n < 1000;
}

/* {n}, {n,}, {,m}, {n,m}, behind the brace. */
static bool parse_interval(struct parser *p, struct vocab_instr *run)
{
    uint32_t min = 0, max;
    bool has_min = parse_number(p, &min);
    max = min;
    if (accept(p, ",")) {
        max = RUN_UNBOUNDED;
        bool has_max = peek(p) != '}' && parse_number(p, &max);
        if (!has_min && !has_max)
            return false;
    } else if (!has_min)
        return false;
    if (!accept(p, "}") || max < min || max == 0 || peek(p) == '?')
        return false;
    run->min = (uint16_t)min;
    run->max = (uint16_t)max;
    if (peek(p) != '+')
        return true;
    /* in Ruby {1,3}+ is not possessive: it is one or more times one to three, as many as there are
     */
    p->at++;
    run->max = RUN_UNBOUNDED;
    return min <= 1 && peek(p) != '+' && peek(p) != '*' && peek(p) != '?' && peek(p) != '{';
}

static bool parse_quantifier(struct parser *p, struct vocab_instr *run)
{
    run->min = run->max = 1;
    if (accept(p, "{"))
        return parse_interval(p, run);
    if (at_end(p) || !strchr("?*+", peek(p)))
        return true;
    char q = p->text[p->at++];
    run->min = q == '+';
    run->max = q == '?' ? 1 : RUN_UNBOUNDED;
    if (accept(p, "+"))
        run->flags = CODE_POSSESSIVE;
    return at_end(p) || !strchr("?*+{", peek(p));
}

/* (?=X) and (?!X), behind the sign; X is one character or set. */
static bool parse_ahead(struct parser *p, bool negative)
{
    uint32_t c, bit;
    if (p->fold || at_end(p) || !parse_item(p, &c) || !accept(p, ")") || !class_of_set(p, &bit))
        return false;
    return emit(p,
                (struct vocab_instr){.op = negative ? CODE_NOT_AHEAD : CODE_AHEAD, .classes = bit});
}

/* A group, behind its parenthesis; it may be optional. */
static bool parse_group(struct parser *p)
{
    bool fold = p->fold;
    if (accept(p, "?i:"))
        p->fold = true;
    else if (!accept(p, "?:") && peek(p) == '?')
        return false;
    unsigned begin = p->count;
    p->before = 0;
    if (!emit(p, (struct vocab_instr){.op = CODE_TRY}) || !parse_alternatives(p) || !accept(p, ")"))
        return false;
    p->fold = fold;
    p->before = 0;
    bool optional = accept(p, "?");
    if (!at_end(p) && strchr("?*+{", peek(p)))
        return false;
    if (optional)
        p->code[begin].next = (uint16_t)p->count;
    else /* the same as going on: no choice was to be made */
        p->code[begin] = (struct vocab_instr){.op = CODE_JUMP, .next = (uint16_t)(begin + 1)};
    return true;
}

static bool parse_sequence(struct parser *p)
{
    while (!at_end(p) && peek(p) != '|' && peek(p) != ')') {
        if (accept(p, "(?!") || accept(p, "(?=")) {
            if (!parse_ahead(p, p->text[p->at - 1] == '!'))
                return false;
        } else if (accept(p, "(")) {
            if (!parse_group(p))
                return false;
        } else if (accept(p, "$")) {
            if (!emit(p, (struct vocab_instr){.op = CODE_LINE_END}))
                return false;
        } else {
            struct vocab_instr run = {.op = CODE_RUN};
            uint32_t c;
            if (!parse_item(p, &c) || !parse_quantifier(p, &run) ||
                !class_of_set(p, &run.classes) || !emit(p, run))
                return false;
            p->before = p->fold ? c : 0;
        }
    }
    return true;
}

/* True if another alternative of this group follows the one that begins here. */
static bool more_alternatives(const struct parser *p)
{
    int depth = 0;
    bool in_set = false;
    for (size_t i = p->at; i < p->length; i++) {
        char c = p->text[i];
        if (c == '\\')
            i++;
        else if (in_set)
            in_set = c != ']';
        else if (c == '[')
            in_set = true;
        else if (c == '(')
            depth++;
        else if (c == ')' && depth-- == 0)
            return false;
        else if (c == '|' && depth == 0)
            return true;
    }
    return false;
}

/* a|b|c:  TRY 1f; a; JUMP end;  1: TRY 2f; b; JUMP end;  2: c;  end: */
static bool parse_alternatives(struct parser *p)
{
    unsigned jumps[BRANCHES_MAX], jump_count = 0;
    bool fits = ++p->depth < DEPTH_MAX;
    while (fits) {
        p->before = 0;
        bool more = more_alternatives(p);
        unsigned try = p->count;
        if (more && !emit(p, (struct vocab_instr){.op = CODE_TRY}))
            return false;
        if (!parse_sequence(p))
            return false;
        if (!more)
            break;
        if (jump_count == BRANCHES_MAX || !accept(p, "|") ||
            !emit(p, (struct vocab_instr){.op = CODE_JUMP}))
            return false;
        jumps[jump_count++] = p->count - 1;
        p->code[try].next = (uint16_t)p->count;
    }
    for (unsigned i = 0; i < jump_count; i++)
        p->code[jumps[i]].next = (uint16_t)p->count;
    p->depth--;
    return fits;
}

/* What may come first from each instruction on, and whether the end can be reached without a
 * character. Jumps only go forward, so one pass from the end suffices. */
static void find_first(struct parser *p, uint32_t *first, bool *empty)
{
    uint32_t firsts[CODE_MAX];
    bool empties[CODE_MAX];
    for (unsigned i = p->count; i-- > 0;) {
        struct vocab_instr *c = &p->code[i];
        firsts[i] = 0;
        empties[i] = c->op == CODE_MATCH;
        if (c->op == CODE_RUN) {
            firsts[i] = c->classes | (c->min ? 0 : firsts[i + 1]);
            empties[i] = !c->min && empties[i + 1];
        } else if (c->op == CODE_JUMP) {
            firsts[i] = firsts[c->next];
            empties[i] = empties[c->next];
        } else if (c->op != CODE_MATCH) {
            firsts[i] = firsts[i + 1];
            empties[i] = empties[i + 1];
        }
        if (c->op == CODE_TRY) {
            c->classes = empties[i + 1] ? 0 : firsts[i + 1];
            firsts[i] |= firsts[c->next];
            empties[i] |= empties[c->next];
        }
    }
    *first = firsts[0];
    *empty = empties[0];
}

/* A run that only the end follows is never asked to be shorter. */
static void mark_last_runs(struct parser *p)
{
    for (unsigned i = 0; i + 1 < p->count; i++) {
        unsigned next = i + 1;
        while (p->code[next].op == CODE_JUMP)
            next = p->code[next].next;
        if (p->code[i].op == CODE_RUN && p->code[next].op == CODE_MATCH)
            p->code[i].flags = CODE_POSSESSIVE;
    }
}

/* True if the expression became a program: p->code, p->count and *first. */
static bool parse(struct parser *p, uint32_t *first)
{
    bool empty;
    if (!parse_alternatives(p) || !at_end(p) || !emit(p, (struct vocab_instr){.op = CODE_MATCH}))
        return false;
    mark_last_runs(p);
    find_first(p, first, &empty);
    return !empty;
}

static enum stele_status put_pattern(struct draft *d, const struct vocab_pattern *pattern,
                                     uint32_t *index, struct stele_error *err)
{
    *index = (uint32_t)draft_count(d, VOCAB_PATTERNS, sizeof *pattern);
    return draft_put(d, VOCAB_PATTERNS, pattern, sizeof *pattern, err);
}

static enum stele_status put_program(struct draft *d, const struct vocab_instr *code,
                                     unsigned count, uint32_t first, uint32_t *index,
                                     struct stele_error *err)
{
    struct vocab_pattern pattern = {.kind = PATTERN_PROGRAM,
                                    .code = (uint32_t)draft_count(d, VOCAB_CODE, sizeof *code),
                                    .count = count,
                                    .first = first};
    enum stele_status status = draft_put(d, VOCAB_CODE, code, count * sizeof *code, err);
    return status ? status : put_pattern(d, &pattern, index, err);
}

/* [:alpha:] and its like: the host's Oniguruma and the library's differ in what they hold. */
static bool has_posix_bracket(const char *regex, size_t length)
{
    for (size_t i = 0; i + 1 < length; i++) {
        if (regex[i] == '\\') {
            i++;
            continue;
        }
        if (regex[i] != '[' || regex[i + 1] != ':')
            continue;
        size_t end = i + 2;
        while (end < length && (is_ascii_letter((unsigned char)regex[end]) || regex[end] == '^'))
            end++;
        if (end + 1 < length && end > i + 2 && regex[end] == ':' && regex[end + 1] == ']')
            return true;
    }
    return false;
}

static enum stele_status put_oniguruma(struct draft *d, const char *where, const char *regex,
                                       size_t length, uint32_t *index, struct stele_error *err)
{
    if (has_posix_bracket(regex, length))
        return stele_fail(err, STELE_INPUT,
                          "%s: %s: pattern %.*s: POSIX brackets are not supported (two versions of "
                          "Oniguruma differ in "
                          "what they hold)",
                          d->path, where, (int)length, regex);
    OnigEncoding utf8 = ONIG_ENCODING_UTF8;
    onig_initialize(&utf8, 1);
    regex_t *compiled = NULL;
    OnigErrorInfo info;
    const unsigned char *bytes = (const unsigned char *)regex;
    int code = onig_new(&compiled, bytes, bytes + length, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                        ONIG_SYNTAX_RUBY, &info);
    if (code != ONIG_NORMAL) {
        unsigned char why[ONIG_MAX_ERROR_MESSAGE_LEN];
        onig_error_code_to_str(why, code, &info);
        return stele_fail(err, STELE_INPUT, "%s: %s: pattern %.*s: %s", d->path, where, (int)length,
                          regex, (char *)why);
    }
    onig_free(compiled);
    struct vocab_pattern pattern = {.kind = PATTERN_ONIGURUMA};
    enum stele_status status = draft_string(d, regex, length, &pattern.text, err);
    return status ? status : put_pattern(d, &pattern, index, err);
}

enum stele_status draft_regex(struct draft *d, const char *where, const char *regex, size_t length,
                              uint32_t *index, struct stele_error *err)
{
    struct parser *p = calloc(1, sizeof *p);
    struct charset *set = calloc(1, sizeof *set);
    enum stele_status status = STELE_OK;
    unsigned class_count = d->class_count;
    uint32_t first = 0;
    if (!p || !set) {
        status = stele_fail(err, STELE_SYSTEM, "no memory for a pattern");
        goto done;
    }
    *p = (struct parser){.draft = d, .err = err, .text = regex, .length = length, .set = set};
    bool fits = parse(p, &first);
    status = p->status;
    if (!status && fits)
        status = put_program(d, p->code, p->count, first, index, err);
    else if (!status) {
        /* take back the classes that only the attempt asked for */
        for (uint32_t c = 0; d->classes && c < VOCAB_CODEPOINTS && d->class_count > class_count;
             c++)
            d->classes[c] &= (uint32_t)((1ull << class_count) - 1);
        d->class_count = class_count;
        status = put_oniguruma(d, where, regex, length, index, err);
    }
done:
    free(set);
    free(p);
    return status;
}

enum stele_status draft_literal(struct draft *d, const char *where, const char *text, size_t length,
                                uint32_t *index, struct stele_error *err)
{
    struct vocab_pattern pattern = {.kind = PATTERN_LITERAL};
    if (!length)
        return stele_fail(err, STELE_INPUT, "%s: %s: an empty pattern is not supported", d->path,
                          where);
    enum stele_status status = draft_string(d, text, length, &pattern.text, err);
    return status ? status : put_pattern(d, &pattern, index, err);
}

enum stele_status draft_one_of(struct draft *d, const char *property, uint32_t *index,
                               struct stele_error *err)
{
    uint32_t bit;
    enum stele_status status = draft_property(d, property, &bit, err);
    const struct vocab_instr code[] = {
        {.op = CODE_RUN, .flags = CODE_POSSESSIVE, .classes = bit, .min = 1, .max = 1},
        {.op = CODE_MATCH},
    };
    return status ? status : put_program(d, code, 2, bit, index, err);
}

enum stele_status draft_runs_of(struct draft *d, const char *property, const char *other,
                                uint32_t *index, struct stele_error *err)
{
    uint32_t bit, other_bit = 0;
    enum stele_status status = draft_property(d, property, &bit, err);
    if (!status && other)
        status = draft_property(d, other, &other_bit, err);
    const struct vocab_instr code[] = {
        {.op = CODE_TRY, .next = 3, .classes = bit},
        {.op = CODE_RUN, .flags = CODE_POSSESSIVE, .classes = bit, .min = 1, .max = RUN_UNBOUNDED},
        {.op = CODE_JUMP, .next = 4},
        {.op = CODE_RUN,
         .flags = CODE_POSSESSIVE,
         .classes = other_bit,
         .min = 1,
         .max = RUN_UNBOUNDED},
        {.op = CODE_MATCH},
    };
    return status ? status : put_program(d, code, 5, bit | other_bit, index, err);
}
