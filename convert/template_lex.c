/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "space.h"
#include "template_lex.h"

enum { NESTING_MAX = 256 };

struct lexer {
    const char *name;
    const char *s; /* the source */
    size_t length, at;
    uint32_t line;
    bool line_start; /* what was read last ended a line */
    struct template_tokens *out;
    size_t capacity;
    struct stele_error *err;
    enum stele_status status;
};

/* Sets the status once; `at` goes to the end, so that every loop ends. */
#define FAIL(l, ...)                                                                               \
    do {                                                                                           \
        if (!(l)->status)                                                                          \
            (l)->status = stele_fail((l)->err, STELE_INPUT, __VA_ARGS__);                          \
        (l)->at = (l)->length;                                                                     \
    } while (0)

static uint32_t lines_of(const char *text, size_t length)
{
    uint32_t n = 0;
    for (size_t i = 0; i < length; i++)
        n += text[i] == '\n';
    return n;
}

static void push(struct lexer *l, enum token_kind kind, const char *text, size_t length)
{
    struct template_tokens *o = l->out;
    if (l->status)
        return;
    if (o->count == l->capacity) {
        size_t capacity = l->capacity * 2 + 256;
        struct token *tokens = realloc(o->tokens, capacity * sizeof *tokens);
        if (!tokens) {
            l->status = stele_fail(l->err, STELE_SYSTEM, "no memory for %zu words", capacity);
            l->at = l->length;
            return;
        }
        o->tokens = tokens;
        l->capacity = capacity;
    }
    o->tokens[o->count++] = (struct token){kind, l->line, text, length};
}

static void advance(struct lexer *l, size_t to)
{
    l->line += lines_of(l->s + l->at, to - l->at);
    l->line_start = to > l->at && l->s[to - 1] == '\n';
    l->at = to;
}

static bool looking_at(const struct lexer *l, size_t at, const char *what)
{
    size_t n = strlen(what);
    return n <= l->length - at && !memcmp(l->s + at, what, n);
}

static size_t skip_space(const struct lexer *l, size_t at)
{
    return space_skip(l->s, l->length, at);
}

/* Text from `at` to `end`, where a tag with this sign ('-', '+' or none) begins. */
static void push_text(struct lexer *l, size_t end, char sign, bool print)
{
    const char *s = l->s;
    size_t from = l->at, cut = end;
    if (sign == '-')
        cut = space_trim(s, from, end);
    else if (sign != '+' && !print) {
        size_t begin = end;
        while (begin > from && s[begin - 1] != '\n')
            begin--;
        if ((begin > from || l->line_start) && skip_space(l, begin) >= end)
            cut = begin;
    }
    if (cut > from)
        push(l, TOKEN_DATA, s + from, cut - from);
    if (!l->status)
        advance(l, end);
}

/* If the end of a block or comment stands at `at` (spelled `mark`, "%}" or "#}"): where what
 * follows it begins, its line break left out; else 0. */
static size_t block_end(const struct lexer *l, size_t at, const char *mark)
{
    if (at < l->length && l->s[at] == '-' && looking_at(l, at + 1, mark))
        return skip_space(l, at + 3);
    if (at < l->length && l->s[at] == '+' && looking_at(l, at + 1, mark))
        return at + 3;
    if (looking_at(l, at, mark))
        return at + 2 + (at + 2 < l->length && l->s[at + 2] == '\n');
    return 0;
}

static size_t print_end(const struct lexer *l, size_t at)
{
    if (at < l->length && l->s[at] == '-' && looking_at(l, at + 1, "}}"))
        return skip_space(l, at + 3);
    return looking_at(l, at, "}}") ? at + 2 : 0;
}

/* A tag {% word %} at `at`: where its name's end stands, and its first sign. Else 0. */
static size_t tag_word(const struct lexer *l, size_t at, const char *word, char *sign)
{
    if (!looking_at(l, at, "{%"))
        return 0;
    at += 2;
    *sign = 0;
    if (at < l->length && (l->s[at] == '-' || l->s[at] == '+'))
        *sign = l->s[at++];
    at = skip_space(l, at);
    if (!looking_at(l, at, word))
        return 0;
    return skip_space(l, at + strlen(word));
}

/* {% raw %} at `at`: where its text begins, a line break after it kept. Else 0. */
static size_t raw_begin(const struct lexer *l, size_t at, char *sign)
{
    size_t end = tag_word(l, at, "raw", sign);
    if (end && looking_at(l, end, "-%}"))
        return skip_space(l, end + 3);
    return end && looking_at(l, end, "%}") ? end + 2 : 0;
}

static void lex_raw(struct lexer *l, size_t begin)
{
    uint32_t line = l->line;
    advance(l, begin);
    for (size_t at = begin; at < l->length; at++) {
        char sign;
        size_t word = l->s[at] == '{' ? tag_word(l, at, "endraw", &sign) : 0;
        size_t end = word ? block_end(l, word, "%}") : 0;
        if (end) {
            push_text(l, at, sign, false);
            if (!l->status)
                advance(l, end);
            return;
        }
    }
    FAIL(l, "%s: line %" PRIu32 ": {%% raw %%} has no end", l->name, line);
}

static void lex_comment(struct lexer *l, size_t begin)
{
    for (size_t at = begin; at < l->length; at++) {
        size_t end = block_end(l, at, "#}");
        if (end) {
            advance(l, end);
            return;
        }
    }
    FAIL(l, "%s: line %" PRIu32 ": a comment has no end", l->name, l->line);
}

static bool name_character(uint32_t c)
{
    if (c < 0x80)
        return c == '_' || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NO);
}

static size_t name_end(const struct lexer *l, size_t at)
{
    while (at < l->length) {
        size_t next = at;
        if (!name_character(utf8_next(l->s, l->length, &next)))
            break;
        at = next;
    }
    return at;
}

static bool digit_of(char c, int base)
{
    if (base == 16 && ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'))
        return true;
    return c >= '0' && c < '0' + (base < 10 ? base : 10);
}

/* Digits, single underscores between them. */
static size_t digits_end(const struct lexer *l, size_t at, int base)
{
    while (at < l->length) {
        if (digit_of(l->s[at], base))
            at++;
        else if (l->s[at] == '_' && at + 1 < l->length && digit_of(l->s[at + 1], base))
            at += 2;
        else
            break;
    }
    return at;
}

/* Where a float that begins with the digits up to `whole` ends; `whole` where it is none. */
static size_t float_end(const struct lexer *l, size_t begin, size_t whole)
{
    size_t end = whole;
    if (begin && l->s[begin - 1] == '.')
        return whole;
    if (end + 1 < l->length && l->s[end] == '.' && digit_of(l->s[end + 1], 10))
        end = digits_end(l, end + 1, 10);
    if (end < l->length && (l->s[end] | 0x20) == 'e') {
        size_t sign = end + 1;
        if (sign < l->length && (l->s[sign] == '+' || l->s[sign] == '-'))
            sign++;
        if (sign < l->length && digit_of(l->s[sign], 10))
            end = digits_end(l, sign, 10);
    }
    return end;
}

static void lex_number(struct lexer *l)
{
    const char *s = l->s + l->at;
    size_t begin = l->at, end = digits_end(l, begin, 10), real = float_end(l, begin, end);
    char letter = begin + 1 < l->length ? s[1] | 0x20 : 0;
    int base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
    enum token_kind kind = TOKEN_INTEGER;
    if (real > end) {
        end = real;
        kind = TOKEN_FLOAT;
    } else if (*s == '0' && base != 10 && digits_end(l, begin + 2, base) > begin + 2)
        end = digits_end(l, begin + 2, base);
    else if (*s == '0')
        for (end = begin + 1; end < l->length && l->s[end] == '0';)
            end++; /* 007 is 00 and 7, as Jinja has it */
    push(l, kind, s, end - begin);
    if (!l->status)
        advance(l, end);
}

static void lex_string(struct lexer *l)
{
    char quote = l->s[l->at];
    size_t end = l->at + 1;
    while (end < l->length && l->s[end] != quote)
        end += l->s[end] == '\\' ? 2 : 1;
    if (end >= l->length) {
        FAIL(l, "%s: line %" PRIu32 ": a string has no end", l->name, l->line);
        return;
    }
    push(l, TOKEN_STRING, l->s + l->at, end + 1 - l->at);
    if (!l->status)
        advance(l, end + 1);
}

static bool lex_operator(struct lexer *l, char *open, int *nesting)
{
    static const char *const pairs[] = {"//", "**", "==", "!=", ">=", "<="};
    static const char singles[] = "+-/*%~[](){}<>=.:|,;";
    size_t n = 0;
    for (size_t i = 0; !n && i < sizeof pairs / sizeof *pairs; i++)
        n = looking_at(l, l->at, pairs[i]) ? 2 : 0;
    char c = l->s[l->at];
    if (!n && !(c && strchr(singles, c)))
        return false;
    n = n ? n : 1;
    if (n == 1 && strchr("([{", c)) {
        if (*nesting == NESTING_MAX) {
            FAIL(l, "%s: line %" PRIu32 ": more than %d open brackets", l->name, l->line,
                 NESTING_MAX);
            return true;
        }
        open[(*nesting)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (n == 1 && strchr(")]}", c)) {
        char want = *nesting ? open[--*nesting] : 0;
        if (want != c) {
            if (want)
                FAIL(l, "%s: line %" PRIu32 ": found '%c', expected '%c'", l->name, l->line, c,
                     want);
            else
                FAIL(l, "%s: line %" PRIu32 ": '%c' closes nothing", l->name, l->line, c);
            return true;
        }
    }
    push(l, TOKEN_OPERATOR, l->s + l->at, n);
    if (!l->status)
        advance(l, l->at + n);
    return true;
}

/* What stands in {{ }} or {% %}, its end included. */
static void lex_tag(struct lexer *l, bool print)
{
    char open[NESTING_MAX];
    int nesting = 0;
    uint32_t line = l->line;
    while (l->at < l->length) {
        size_t end = nesting ? 0 : print ? print_end(l, l->at) : block_end(l, l->at, "%}");
        if (end) {
            push(l, print ? TOKEN_PRINT_END : TOKEN_BLOCK_END, l->s + l->at, 2);
            if (!l->status)
                advance(l, end);
            return;
        }
        size_t space = skip_space(l, l->at), next = l->at;
        uint32_t c = utf8_next(l->s, l->length, &next);
        if (space > l->at)
            advance(l, space);
        else if (c >= '0' && c <= '9')
            lex_number(l);
        else if (name_character(c)) {
            size_t stop = name_end(l, l->at);
            push(l, TOKEN_NAME, l->s + l->at, stop - l->at);
            if (!l->status)
                advance(l, stop);
        } else if (c == '\'' || c == '"')
            lex_string(l);
        else if (!lex_operator(l, open, &nesting))
            FAIL(l, "%s: line %" PRIu32 ": a character that means nothing there: \"%.*s\"", l->name,
                 l->line, (int)(next - l->at), l->s + l->at);
    }
    FAIL(l, "%s: line %" PRIu32 ": the tag that begins there has no end", l->name, line);
}

/* The next tag of any kind from `at` on; the length where there is none. */
static size_t next_tag(const struct lexer *l, size_t at)
{
    for (; at + 1 < l->length; at++)
        if (l->s[at] == '{' && (l->s[at + 1] == '%' || l->s[at + 1] == '{' || l->s[at + 1] == '#'))
            return at;
    return l->length;
}

static void lex_template(struct lexer *l)
{
    while (l->at < l->length) {
        size_t tag = next_tag(l, l->at), text = l->at, raw;
        char kind, sign = 0;
        if (tag == l->length) {
            push(l, TOKEN_DATA, l->s + text, tag - text);
            if (!l->status)
                advance(l, tag);
            return;
        }
        if ((raw = raw_begin(l, tag, &sign))) {
            push_text(l, tag, sign, false);
            if (!l->status)
                lex_raw(l, raw);
            continue;
        }
        kind = l->s[tag + 1];
        size_t inside = tag + 2;
        sign =
            inside < l->length && (l->s[inside] == '-' || l->s[inside] == '+') ? l->s[inside] : 0;
        inside += sign != 0;
        push_text(l, tag, sign, kind == '{');
        if (l->status)
            return;
        if (kind == '#') {
            lex_comment(l, inside);
            continue;
        }
        push(l, kind == '{' ? TOKEN_PRINT : TOKEN_BLOCK, l->s + tag, 2);
        if (!l->status) {
            advance(l, inside);
            lex_tag(l, kind == '{');
        }
    }
}

/* A copy with \r\n and \r made \n, and without one line break at the end. */
static char *normal_lines(const char *source, size_t bytes, size_t *length)
{
    char *copy = malloc(bytes + 1);
    size_t n = 0;
    if (!copy)
        return NULL;
    for (size_t i = 0; i < bytes; i++) {
        if (source[i] == '\n' && i && source[i - 1] == '\r')
            continue;
        copy[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    n -= n && copy[n - 1] == '\n';
    copy[n] = '\0';
    *length = n;
    return copy;
}

enum stele_status template_lex(struct template_tokens *out, const char *source, size_t bytes,
                               const char *name, struct stele_error *err)
{
    *out = (struct template_tokens){0};
    size_t bad = utf8_valid(source, bytes);
    if (bad != bytes)
        return stele_fail(err, STELE_INPUT, "%s: byte %zu is not UTF-8", name, bad);
    out->source = normal_lines(source, bytes, &out->length);
    if (!out->source)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu bytes", name, bytes);
    struct lexer l = {.name = name,
                      .s = out->source,
                      .length = out->length,
                      .line = 1,
                      .line_start = true,
                      .out = out,
                      .err = err};
    lex_template(&l);
    push(&l, TOKEN_END, l.s + l.length, 0);
    if (l.status)
        template_tokens_free(out);
    return l.status;
}

void template_tokens_free(struct template_tokens *tokens)
{
    free(tokens->tokens);
    free(tokens->source);
    *tokens = (struct template_tokens){0};
}
