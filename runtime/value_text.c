/* SPDX-License-Identifier: Apache-2.0 */
/* Python's methods of text, origins kept. Offsets are bytes; templates count characters. */
#include <utf8proc.h>

#include "space.h"
#include "value.h"

#include "value_unicode.inc"

#define COUNT(a) (sizeof(a) / sizeof *(a))

struct value text_part(const struct value *text, size_t from, size_t to)
{
    struct value part = *text;
    part.text = text->text ? text->text + from : NULL;
    part.count = (uint32_t)(to - from);
    part.origins = text->origins ? text->origins + from : NULL;
    return part;
}

static enum value_origin origin_at(const struct value *text, size_t at)
{
    return text->origins ? text->origins[at] : text->origin;
}

uint32_t text_characters(const struct value *text)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < text->count; i++)
        n += ((unsigned char)text->text[i] & 0xc0) != 0x80;
    return n;
}

size_t text_offset(const struct value *text, size_t index)
{
    size_t at = 0;
    while (index-- && at < text->count)
        utf8_next(text->text, text->count, &at);
    return at;
}

bool text_printable(uint32_t c)
{
    size_t low = 0, high = COUNT(unprintable);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > unprintable[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low == COUNT(unprintable) || c < unprintable[low].first;
}

/* ----------------------------------------------------------------------------------------- finding
 */

/* Whether the character at `at` of `text` is one of `set`'s. */
static bool one_of(const struct value *text, size_t at, size_t next, const struct value *set)
{
    for (size_t i = 0, j = 0; i < set->count; i = j) {
        utf8_next(set->text, set->count, &j);
        if (j - i == next - at && !memcmp(set->text + i, text->text + at, j - i))
            return true;
    }
    return false;
}

bool text_strip(struct heap *h, const struct value *text, const struct value *characters, bool left,
                bool right, struct value *out)
{
    size_t from = 0, to = text->count;
    bool spaces = characters->kind != VALUE_TEXT;
    if (spaces && characters->kind != VALUE_ABSENT && characters->kind != VALUE_NONE)
        return heap_fail(h, FAILURE_TYPE, "strips characters of type '%s'", value_type(characters));
    while (left && from < to) {
        size_t next = from;
        uint32_t c = utf8_next(text->text, to, &next);
        if (spaces ? !space_is(c) : !one_of(text, from, next, characters))
            break;
        from = next;
    }
    while (right && from < to) {
        size_t before = utf8_before(text->text, to), next = before;
        uint32_t c = utf8_next(text->text, to, &next);
        if (spaces ? !space_is(c) : !one_of(text, before, to, characters))
            break;
        to = before;
    }
    *out = text_part(text, from, to);
    return heap_spend(h, (text->count - (to - from)) / 8);
}

size_t text_find(const struct value *text, size_t from, const struct value *what)
{
    if (!what->count)
        return from <= text->count ? from : SIZE_MAX;
    if (from > text->count)
        return SIZE_MAX;
    const char *at = memmem(text->text + from, text->count - from, what->text, what->count);
    return at ? (size_t)(at - text->text) : SIZE_MAX;
}

size_t text_find_last(struct heap *h, const struct value *text, size_t end,
                      const struct value *what)
{
    if (!what->count)
        return end;
    for (size_t at = end; at >= what->count; at--) {
        const char *from = text->text + at - what->count;
        if (*from != *what->text)
            continue;
        if (!heap_spend(h, what->count / 64))
            break;
        if (!memcmp(from, what->text, what->count))
            return at - what->count;
    }
    return SIZE_MAX;
}

bool text_replace(struct heap *h, const struct value *text, const struct value *old,
                  const struct value *new, int64_t most, struct value *out)
{
    size_t start = h->out_length, done = 0, at = 0;
    for (int64_t n = 0; most < 0 || n < most; n++) {
        size_t found = text_find(text, at, old);
        if (found == SIZE_MAX || !heap_spend(h, 1))
            break;
        if (!out_part(h, text, done, found) || !out_text(h, new))
            return false;
        done = at = found + old->count;
        if (!old->count) { /* an empty one stands before each character, and at the end */
            if (at == text->count)
                break;
            utf8_next(text->text, text->count, &at);
        }
    }
    if (!heap_spend(h, text->count / 64) || !out_part(h, text, done, text->count) ||
        !out_take(h, start, out))
        return false;
    out->flag = text->flag;
    return true;
}

/* ----------------------------------------------------------------------------------------
 * splitting */

/* A list while it grows; the old arrays stay in the heap. */
struct parts {
    struct value *items;
    uint32_t count, capacity;
};

static bool add(struct heap *h, struct parts *p, struct value v)
{
    if (p->count == p->capacity) {
        uint32_t capacity = p->capacity * 2 + 8;
        struct value *items = heap_alloc(h, capacity, sizeof *items);
        if (!items || !heap_spend(h, p->count / 4 + 1))
            return false;
        if (p->count)
            memcpy(items, p->items, p->count * sizeof *items);
        p->items = items;
        p->capacity = capacity;
    }
    p->items[p->count++] = v;
    return true;
}

static bool split_spaces(struct heap *h, const struct value *text, int64_t most, struct parts *p)
{
    size_t at = space_skip(text->text, text->count, 0);
    while (at < text->count) {
        size_t end = at;
        if (most >= 0 && p->count == most)
            return add(h, p, text_part(text, at, text->count));
        while (end < text->count) {
            size_t next = end;
            if (space_is(utf8_next(text->text, text->count, &next)))
                break;
            end = next;
        }
        if (!add(h, p, text_part(text, at, end)))
            return false;
        at = space_skip(text->text, text->count, end);
    }
    return true;
}

/* From the right: found backwards, then turned round. */
static bool split_right(struct heap *h, const struct value *text, const struct value *separator,
                        int64_t most, struct parts *p)
{
    size_t end = text->count;
    while (most < 0 || p->count < most) {
        size_t found = text_find_last(h, text, end, separator);
        if (found == SIZE_MAX)
            break;
        if (!heap_spend(h, (end - found) / 8) ||
            !add(h, p, text_part(text, found + separator->count, end)))
            return false;
        end = found;
    }
    if (h->failure || !add(h, p, text_part(text, 0, end)))
        return false;
    for (uint32_t i = 0; i < p->count / 2; i++) {
        struct value v = p->items[i];
        p->items[i] = p->items[p->count - 1 - i];
        p->items[p->count - 1 - i] = v;
    }
    return true;
}

static bool split_left(struct heap *h, const struct value *text, const struct value *separator,
                       int64_t most, struct parts *p)
{
    size_t at = 0;
    while (most < 0 || p->count < most) {
        size_t found = text_find(text, at, separator);
        if (found == SIZE_MAX)
            break;
        if (!add(h, p, text_part(text, at, found)))
            return false;
        at = found + separator->count;
    }
    return add(h, p, text_part(text, at, text->count));
}

bool text_split(struct heap *h, const struct value *text, const struct value *separator,
                int64_t most, bool from_right, struct value *out)
{
    struct parts p = {0};
    bool done;
    if (!heap_spend(h, 1 + text->count / 64))
        return false;
    if (separator->kind == VALUE_ABSENT || separator->kind == VALUE_NONE) {
        if (from_right && most >= 0)
            return heap_fail(h, FAILURE_UNSUPPORTED, "rsplit of white space with a limit");
        done = split_spaces(h, text, most, &p);
    } else if (separator->kind != VALUE_TEXT)
        return heap_fail(h, FAILURE_TYPE, "splits at a value of type '%s'", value_type(separator));
    else if (!separator->count)
        return heap_fail(h, FAILURE_VALUE, "splits at an empty text");
    else
        done = from_right ? split_right(h, text, separator, most, &p)
                          : split_left(h, text, separator, most, &p);
    *out = value_list(VALUE_LIST, p.items, p.count);
    out->origin = text->origin;
    return done;
}

static bool ends_line(uint32_t c)
{
    return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

bool text_lines(struct heap *h, const struct value *text, struct value *out)
{
    struct parts p = {0};
    size_t from = 0;
    if (!heap_spend(h, 1 + text->count / 16))
        return false;
    for (size_t at = 0, next = 0; at < text->count; at = next) {
        uint32_t c = utf8_next(text->text, text->count, &next);
        if (!ends_line(c))
            continue;
        if (!add(h, &p, text_part(text, from, at)))
            return false;
        next += c == '\r' && next < text->count && text->text[next] == '\n';
        from = next;
    }
    if (from < text->count && !add(h, &p, text_part(text, from, text->count)))
        return false;
    *out = value_list(VALUE_LIST, p.items, p.count);
    return true;
}

/* ---------------------------------------------------------------------------------------------
 * case */

static bool cased(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

/* Whether a sigma at `at` ends a word: a cased letter before it, none behind it. */
static bool final_sigma(const struct value *text, size_t at, size_t next)
{
    if (!at || next > text->count)
        return false;
    size_t before = utf8_before(text->text, at), skip = before;
    uint32_t left = utf8_next(text->text, text->count, &skip);
    if (next == text->count)
        return cased(left);
    return cased(left) && !cased(utf8_next(text->text, text->count, &next));
}

/* The character in another case: one to three. */
static size_t change(const struct value *text, size_t at, size_t next, uint32_t c, bool upper,
                     bool title, uint32_t to[3])
{
    if (c < 0x80) {
        bool letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
        to[0] = !letter ? c : upper || title ? c & ~0x20u : c | 0x20u;
        return 1;
    }
    if (!upper && !title) {
        if (c == 0x130) {
            to[0] = 'i';
            to[1] = 0x307;
            return 2;
        }
        to[0] = c == 0x3a3 && final_sigma(text, at, next)
                    ? 0x3c2
                    : (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
        return 1;
    }
    for (size_t i = 0; upper && i < COUNT(long_upper); i++)
        if (long_upper[i].from == c) {
            memcpy(to, long_upper[i].to, sizeof long_upper[i].to);
            return to[2] ? 3 : 2;
        }
    for (size_t i = 0; title && i < COUNT(long_title); i++)
        if (long_title[i].from == c) {
            memcpy(to, long_title[i].to, sizeof long_title[i].to);
            return to[2] ? 3 : 2;
        }
    to[0] = (uint32_t)(title ? utf8proc_totitle((utf8proc_int32_t)c)
                             : utf8proc_toupper((utf8proc_int32_t)c));
    return 1;
}

bool text_case(struct heap *h, const struct value *text, enum text_case which, struct value *out)
{
    size_t start = h->out_length, word = 0;
    bool begin = true; /* of a word */
    if (!heap_spend(h, 1 + text->count / 8))
        return false;
    for (size_t at = 0, next = 0; at < text->count; at = next) {
        uint32_t c = utf8_next(text->text, text->count, &next), to[3] = {0};
        bool filter = which == CASE_TITLE_FILTER;
        bool title = begin && (which == CASE_TITLE || which == CASE_CAPITALIZE);
        struct value rest = text_part(text, filter ? word : 0, text->count);
        size_t n = change(&rest, at - (filter ? word : 0), next - (filter ? word : 0), c,
                          which == CASE_UPPER || (filter && begin), title, to);
        for (size_t i = 0; i < n; i++) {
            char bytes[4];
            if (!out_bytes(h, bytes, utf8_put(bytes, to[i]), origin_at(text, at)))
                return false;
        }
        if (begin && filter) /* Jinja lowers a word without its first letter */
            word = next;
        begin = which == CASE_TITLE ? !cased(c)
                : filter            ? space_is(c) || (c && c < 0x80 && strchr("-({[<", (int)c))
                                    : false;
    }
    if (!out_take(h, start, out))
        return false;
    out->flag = text->flag;
    return true;
}

bool text_escape(struct heap *h, const struct value *text, struct value *out)
{
    static const char from[] = "&<>\"'";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    size_t start = h->out_length, done = 0;
    for (size_t at = 0; at < text->count; at++) {
        const char *mark = text->text[at] ? strchr(from, text->text[at]) : NULL;
        if (!mark)
            continue;
        if (!out_part(h, text, done, at) ||
            !out_bytes(h, to[mark - from], strlen(to[mark - from]), origin_at(text, at)))
            return false;
        done = at + 1;
    }
    if (!out_part(h, text, done, text->count) || !out_take(h, start, out))
        return false;
    out->flag = TEXT_SAFE;
    return true;
}
