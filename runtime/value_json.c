/* SPDX-License-Identifier: Apache-2.0 */
/* JSON into values. Not by jansson: it has one type for 1 and 1.0 or else 64 bits for whole
 * numbers, where templates print both as Python does, and a library that is linked costs system
 * calls at every start, also of runs that read no messages. */
#include <inttypes.h>
#include <stdlib.h>

#include "utf8.h"
#include "value.h"

enum { JSON_DEPTH_MAX = 192, JSON_KEYS_COMPARED = 16 };

struct reader {
    struct heap *h;
    const char *s, *name;
    size_t length, at;
    struct value *stack; /* items of all lists and mappings that are open, malloc'ed */
    size_t count, capacity;
    enum stele_status status;
};

/* Notes an error at `at`; the first one stays. Returns false. */
static bool fail(struct reader *r, const char *what)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < r->at && i < r->length; i++) {
        column = r->s[i] == '\n' ? 1 : column + 1;
        line += r->s[i] == '\n';
    }
    if (!r->status && !r->h->failure)
        r->status = stele_fail(r->h->err, STELE_INPUT, "%s: line %zu, column %zu: %s", r->name,
                               line, column, what);
    return false;
}

static bool push(struct reader *r, struct value v)
{
    if (r->count == r->capacity) {
        size_t capacity = r->capacity * 2 + 256;
        struct value *stack = realloc(r->stack, capacity * sizeof *stack);
        if (!stack)
            return heap_fail(r->h, FAILURE_MEMORY, "no memory for %zu values", capacity);
        r->stack = stack;
        r->capacity = capacity;
    }
    r->stack[r->count++] = v;
    return true;
}

static void skip_space(struct reader *r)
{
    while (r->at < r->length && r->s[r->at] && strchr(" \t\r\n", r->s[r->at]))
        r->at++;
}

static bool take(struct reader *r, const char *text)
{
    size_t n = strlen(text);
    if (n > r->length - r->at || memcmp(r->s + r->at, text, n))
        return false;
    r->at += n;
    return true;
}

static bool hex4(struct reader *r, size_t at, uint32_t *out)
{
    *out = 0;
    for (size_t i = at; i < at + 4; i++) {
        char c = i < r->length ? r->s[i] : 0, low = c | 0x20;
        if (!((c >= '0' && c <= '9') || (low >= 'a' && low <= 'f')))
            return false;
        *out = *out << 4 | (uint32_t)(c <= '9' ? c - '0' : low - 'a' + 10);
    }
    return true;
}

/* The escape at `at` ('\\'), put into `out`. */
static bool escape(struct reader *r, char *out, size_t *n)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char e = r->at + 1 < r->length ? r->s[r->at + 1] : 0;
    const char *simple = e ? strchr(from, e) : NULL;
    uint32_t c, low;
    if (simple) {
        out[(*n)++] = to[simple - from];
        r->at += 2;
        return true;
    }
    if (e != 'u' || !hex4(r, r->at + 2, &c))
        return fail(r, "an escape that JSON does not know");
    r->at += 6;
    if (c >= 0xd800 && c < 0xe000) {
        if (c >= 0xdc00 || !take(r, "\\u") || !hex4(r, r->at, &low) || low < 0xdc00 || low > 0xdfff)
            return fail(r, "half of a surrogate pair");
        r->at += 4;
        c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
    }
    *n += utf8_put(out + *n, c);
    return true;
}

/* After the opening quote. */
static bool string(struct reader *r, struct value *out)
{
    size_t begin = r->at, n = 0;
    const char *s = r->s;
    while (r->at < r->length && s[r->at] != '"' && s[r->at] != '\\' &&
           (unsigned char)s[r->at] >= 0x20)
        r->at++;
    if (r->at < r->length && s[r->at] == '"') {
        *out = value_text(s + begin, r->at++ - begin, ORIGIN_CONTENT);
        return true;
    }
    size_t end = r->at;
    while (end < r->length && s[end] != '"')
        end += s[end] == '\\' ? 2 : 1;
    if (end >= r->length)
        return fail(r, "a string without an end");
    char *text = heap_alloc(r->h, end - begin, 1); /* no escape is shorter than what it means */
    if (!text)
        return false;
    for (r->at = begin; s[r->at] != '"';) {
        if ((unsigned char)s[r->at] < 0x20)
            return fail(r, "a control character in a string");
        if (s[r->at] != '\\')
            text[n++] = s[r->at++];
        else if (!escape(r, text, &n))
            return false;
    }
    r->at++;
    *out = value_text(text, n, ORIGIN_CONTENT);
    return true;
}

static size_t digits(struct reader *r)
{
    size_t begin = r->at;
    while (r->at < r->length && r->s[r->at] >= '0' && r->s[r->at] <= '9')
        r->at++;
    return r->at - begin;
}

static bool number(struct reader *r, struct value *out)
{
    size_t begin = r->at, first;
    bool real = false;
    take(r, "-");
    first = r->at;
    if (!digits(r) || (r->s[first] == '0' && r->at > first + 1))
        return fail(r, "no JSON value");
    if (take(r, ".")) {
        real = true;
        if (!digits(r))
            return fail(r, "a number without digits behind its point");
    }
    if (take(r, "e") || take(r, "E")) {
        real = true;
        if (!take(r, "+"))
            take(r, "-");
        if (!digits(r))
            return fail(r, "a number without digits in its exponent");
    }
    if (real) {
        char *text = heap_alloc(r->h, r->at - begin + 1, 1);
        if (!text)
            return false;
        memcpy(text, r->s + begin, r->at - begin);
        text[r->at - begin] = '\0';
        *out = value_float(strtod(text, NULL));
    } else
        *out = value_digits(r->s + begin, r->at - begin);
    return true;
}

static bool read(struct reader *r, int depth, struct value *out);

static bool list(struct reader *r, int depth, struct value *out)
{
    size_t begin = r->count;
    struct value item;
    skip_space(r);
    if (!take(r, "]"))
        do {
            if (!read(r, depth + 1, &item) || !push(r, item))
                return false;
            skip_space(r);
            if (take(r, "]"))
                break;
            if (!take(r, ","))
                return fail(r, "expected ',' or ']'");
        } while (true);
    size_t count = r->count - begin;
    struct value *items = heap_alloc(r->h, count, sizeof *items);
    if (!items)
        return false;
    if (count)
        memcpy(items, r->stack + begin, count * sizeof *items);
    r->count = begin;
    *out = value_list(VALUE_LIST, items, count);
    return true;
}

static int by_text(const void *a, const void *b)
{
    const struct value *x = *(const struct value *const *)a, *y = *(const struct value *const *)b;
    uint32_t n = x->count < y->count ? x->count : y->count;
    int order = n ? memcmp(x->text, y->text, n) : 0;
    return order ? order : x->count < y->count ? -1 : x->count > y->count;
}

/* Whether a key comes twice. Sorted where there are many, so that a stranger cannot make it slow.
 */
static bool keys_differ(struct reader *r, const struct entry *entries, size_t count)
{
    if (count <= JSON_KEYS_COMPARED) {
        for (size_t i = 0; i < count; i++)
            for (size_t j = 0; j < i; j++)
                if (entries[i].key.count == entries[j].key.count && entries[i].key.count &&
                    !memcmp(entries[i].key.text, entries[j].key.text, entries[i].key.count))
                    return fail(r, "a key that comes twice in the mapping that ends here");
        return true;
    }
    const struct value **keys = heap_alloc(r->h, count, sizeof *keys);
    if (!keys)
        return false;
    for (size_t i = 0; i < count; i++)
        keys[i] = &entries[i].key;
    qsort(keys, count, sizeof *keys, by_text);
    for (size_t i = 1; i < count; i++)
        if (!by_text(&keys[i - 1], &keys[i]))
            return fail(r, "a key that comes twice in the mapping that ends here");
    return true;
}

static bool mapping(struct reader *r, int depth, struct value *out)
{
    size_t begin = r->count;
    struct value key, item;
    skip_space(r);
    if (!take(r, "}"))
        do {
            skip_space(r);
            if (!take(r, "\""))
                return fail(r, "expected a key in quotes");
            if (!string(r, &key) || !push(r, key))
                return false;
            skip_space(r);
            if (!take(r, ":"))
                return fail(r, "expected ':'");
            if (!read(r, depth + 1, &item) || !push(r, item))
                return false;
            skip_space(r);
            if (take(r, "}"))
                break;
            if (!take(r, ","))
                return fail(r, "expected ',' or '}'");
        } while (true);
    size_t count = (r->count - begin) / 2;
    struct entry *entries = heap_alloc(r->h, count, sizeof *entries);
    if (!entries)
        return false;
    if (count) /* an entry is a key and a value, side by side */
        memcpy(entries, r->stack + begin, count * sizeof *entries);
    r->count = begin;
    *out = (struct value){.kind = VALUE_DICT, .count = (uint32_t)count, .entries = entries};
    return keys_differ(r, entries, count);
}

static bool read(struct reader *r, int depth, struct value *out)
{
    skip_space(r);
    if (depth == JSON_DEPTH_MAX)
        return fail(r, "too many values inside one another");
    bool done = true;
    if (take(r, "\""))
        return string(r, out);
    if (take(r, "["))
        done = list(r, depth, out);
    else if (take(r, "{"))
        done = mapping(r, depth, out);
    else if (take(r, "true") || take(r, "false"))
        *out = value_bool(r->s[r->at - 2] == 'u');
    else if (take(r, "null"))
        *out = value_none();
    else if (take(r, "NaN"))
        *out = value_float(strtod("nan", NULL));
    else if (take(r, "Infinity"))
        *out = value_float(strtod("inf", NULL));
    else if (take(r, "-Infinity"))
        *out = value_float(strtod("-inf", NULL));
    else
        done = number(r, out);
    if (done)
        out->origin = ORIGIN_CONTENT;
    return done;
}

enum stele_status value_json(struct heap *h, const char *json, size_t bytes, const char *name,
                             struct value *out)
{
    struct reader r = {.h = h, .s = json, .name = name, .length = bytes};
    size_t bad = utf8_valid(json, bytes);
    if (bad != bytes)
        return stele_fail(h->err, STELE_INPUT, "%s: byte %zu is not UTF-8", name, bad);
    if (bytes > UINT32_MAX)
        return stele_fail(h->err, STELE_INPUT, "%s: %zu bytes are too many", name, bytes);
    if (bytes >= 3 && !memcmp(json, "\xef\xbb\xbf", 3))
        r.at = 3;
    bool done = read(&r, 0, out);
    skip_space(&r);
    if (done && r.at < r.length)
        fail(&r, "something behind the value");
    free(r.stack);
    if (h->failure)
        return h->failure == FAILURE_MEMORY ? STELE_SYSTEM : STELE_INPUT;
    return r.status;
}
