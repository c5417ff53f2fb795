/* SPDX-License-Identifier: Apache-2.0 */
/* What values look like: Python's str() and repr(), and json.dumps as transformers' tojson calls
 * it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "template.h"
#include "utf8.h"
#include "value.h"

enum { PRINT_DEPTH_MAX = 200 };

/* ------------------------------------------------------------------------------------------ output
 */

static bool reserve(struct heap *h, size_t more)
{
    if (h->failure)
        return false;
    if (more > h->limits.output_bytes || h->out_length > h->limits.output_bytes - more)
        return heap_fail(h, FAILURE_LIMIT, "writes more than %zu bytes", h->limits.output_bytes);
    if (more <= h->out_capacity - h->out_length)
        return true;
    size_t capacity = h->out_capacity * 2 + more + 4096;
    char *out = realloc(h->out, capacity);
    if (out)
        h->out = out;
    uint8_t *origins = out ? realloc(h->out_origins, capacity) : NULL;
    if (!origins)
        return heap_fail(h, FAILURE_MEMORY, "no memory for %zu bytes of output", capacity);
    h->out_origins = origins;
    h->out_capacity = capacity;
    return true;
}

bool out_bytes(struct heap *h, const char *bytes, size_t length, enum value_origin origin)
{
    if (!reserve(h, length))
        return false;
    if (length) {
        memcpy(h->out + h->out_length, bytes, length);
        memset(h->out_origins + h->out_length, (int)origin, length);
    }
    h->out_length += length;
    return true;
}

bool out_part(struct heap *h, const struct value *text, size_t from, size_t to)
{
    if (!heap_spend(h, (to - from) / 64) ||
        !out_bytes(h, text->text ? text->text + from : "", to - from, text->origin))
        return false;
    if (text->origins && to > from)
        memcpy(h->out_origins + h->out_length - (to - from), text->origins + from, to - from);
    return true;
}

bool out_text(struct heap *h, const struct value *text)
{
    return out_part(h, text, 0, text->count);
}

bool out_take(struct heap *h, size_t start, struct value *out)
{
    size_t n = h->out_length - start;
    if (n > UINT32_MAX)
        return heap_fail(h, FAILURE_LIMIT, "makes a text of %zu bytes", n);
    char *text = heap_alloc(h, n, 1);
    if (!text)
        return false;
    if (n)
        memcpy(text, h->out + start, n);
    uint8_t first = n ? h->out_origins[start] : ORIGIN_TEMPLATE;
    *out = value_text(text, n, first);
    if (n && memchr(h->out_origins + start, !first, n)) {
        uint8_t *origins = heap_alloc(h, n, 1);
        if (!origins)
            return false;
        memcpy(origins, h->out_origins + start, n);
        out->origins = origins;
    }
    h->out_length = start;
    return true;
}

static bool word(struct heap *h, const char *text, enum value_origin origin)
{
    return out_bytes(h, text, strlen(text), origin);
}

/* ------------------------------------------------------------------------------------ str and repr
 */

/* Numbers, True, None, and whatever prints as its type and name. */
static bool plain(struct heap *h, const struct value *v)
{
    char text[40];
    switch (v->kind) {
    case VALUE_NONE:
        return word(h, "None", v->origin);
    case VALUE_BOOL:
        return word(h, v->truth ? "True" : "False", v->origin);
    case VALUE_INT:
        return out_bytes(h, text, (size_t)snprintf(text, sizeof text, "%" PRId64, v->whole),
                         v->origin);
    case VALUE_BIG:
        return out_bytes(h, v->text, v->count, v->origin);
    case VALUE_FLOAT:
        return out_bytes(h, text, value_float_text(v->real, text), v->origin);
    case VALUE_RANGE:
        snprintf(text, sizeof text, "range(%d, %d", (int)v->range->start, (int)v->range->stop);
        if (!word(h, text, v->origin))
            return false;
        snprintf(text, sizeof text, v->range->step == 1 ? ")" : ", %d)", (int)v->range->step);
        return word(h, text, v->origin);
    case VALUE_MACRO:
        return word(h, "<Macro '", v->origin) &&
               out_bytes(h, v->macro->name, v->macro->name_bytes, v->origin) &&
               word(h, "'>", v->origin);
    case VALUE_LOOP:
        snprintf(text, sizeof text, "<LoopContext %" PRIu32 "/%" PRIu32 ">", v->loop->index + 1,
                 v->loop->count);
        return word(h, text, v->origin);
    case VALUE_FUNCTION:
        return word(h, v->count == FUNCTION_SELF ? "<TemplateReference None>" : "<function>",
                    v->origin);
    default:
        snprintf(text, sizeof text, "<%s object>", value_type(v));
        return word(h, text, v->origin);
    }
}

/* How repr() spells a character that it does not print as it is; 0 where it does. */
static size_t escaped(uint32_t c, char quote, char text[16])
{
    if (c == '\\' || c == (unsigned char)quote)
        return (size_t)snprintf(text, 16, "\\%c", (int)c);
    if (c == '\n' || c == '\r' || c == '\t')
        return (size_t)snprintf(text, 16, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    if ((c >= 0x20 && c < 0x7f) || (c >= 0xa0 && text_printable(c)))
        return 0;
    return (size_t)snprintf(text, 16,
                            c < 0x100     ? "\\x%02" PRIx32
                            : c < 0x10000 ? "\\u%04" PRIx32
                                          : "\\U%08" PRIx32,
                            c);
}

static enum value_origin origin_at(const struct value *text, size_t at)
{
    return text->origins ? text->origins[at] : text->origin;
}

static bool repr_text(struct heap *h, const struct value *v)
{
    char text[16];
    bool single = v->count && memchr(v->text, '\'', v->count),
         twice = v->count && memchr(v->text, '"', v->count);
    char quote = single && !twice ? '"' : '\'';
    if (!out_bytes(h, &quote, 1, v->origin))
        return false;
    size_t done = 0;
    for (size_t at = 0, next = 0; at < v->count; at = next) {
        size_t n = escaped(utf8_next(v->text, v->count, &next), quote, text);
        if (!n)
            continue;
        if (!out_part(h, v, done, at) || !out_bytes(h, text, n, origin_at(v, at)))
            return false;
        done = next;
    }
    return out_part(h, v, done, v->count) && out_bytes(h, &quote, 1, v->origin);
}

static bool repr(struct heap *h, const struct value *v, int depth);

static bool repr_items(struct heap *h, const struct value *v, const char *open, const char *close,
                       int depth)
{
    if (!word(h, open, v->origin))
        return false;
    for (uint32_t i = 0; i < v->count; i++)
        if ((i && !word(h, ", ", v->origin)) || !repr(h, &v->items[i], depth + 1))
            return false;
    return word(h, close, v->origin);
}

static bool repr_entries(struct heap *h, const struct entry *entries, uint32_t count,
                         enum value_origin origin, int depth)
{
    if (!word(h, "{", origin))
        return false;
    for (uint32_t i = 0; i < count; i++)
        if ((i && !word(h, ", ", origin)) || !repr(h, &entries[i].key, depth + 1) ||
            !word(h, ": ", origin) || !repr(h, &entries[i].value, depth + 1))
            return false;
    return word(h, "}", origin);
}

static bool repr(struct heap *h, const struct value *v, int depth)
{
    static const char *const views[] = {"dict_items([", "dict_keys([", "dict_values(["};
    if (!heap_spend(h, 1))
        return false;
    if (depth == PRINT_DEPTH_MAX)
        return heap_fail(h, FAILURE_LIMIT, "prints a value of more than %d levels",
                         PRINT_DEPTH_MAX);
    switch (v->kind) {
    case VALUE_TEXT:
        if (v->flag & TEXT_SAFE)
            return word(h, "Markup(", v->origin) && repr_text(h, v) && word(h, ")", v->origin);
        return repr_text(h, v);
    case VALUE_UNDEFINED:
        return word(h, "Undefined", v->origin);
    case VALUE_LIST:
        return repr_items(h, v, "[", "]", depth);
    case VALUE_TUPLE:
        return repr_items(h, v, "(", v->count == 1 ? ",)" : ")", depth);
    case VALUE_VIEW:
        return repr_items(h, v, views[v->flag % 3], "])", depth);
    case VALUE_DICT:
        return repr_entries(h, v->entries, v->count, v->origin, depth);
    case VALUE_NAMESPACE:
        return word(h, "<Namespace ", v->origin) &&
               repr_entries(h, v->space->entries, v->space->count, v->origin, depth) &&
               word(h, ">", v->origin);
    default:
        return plain(h, v);
    }
}

bool out_repr(struct heap *h, const struct value *v)
{
    return repr(h, v, 0);
}

bool out_str(struct heap *h, const struct value *v)
{
    if (v->kind == VALUE_TEXT)
        return out_text(h, v);
    if (v->kind == VALUE_UNDEFINED)
        return true;
    return repr(h, v, 0);
}

bool value_str(struct heap *h, const struct value *v, struct value *out)
{
    size_t start = h->out_length;
    if (v->kind == VALUE_TEXT) {
        *out = *v;
        return true;
    }
    return out_str(h, v) && out_take(h, start, out);
}

/* ------------------------------------------------------------------------------------------- JSON
 */

static size_t json_escaped(uint32_t c, bool ascii, char text[16])
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *simple = c && c < 0x80 ? strchr(from, (int)c) : NULL;
    if (simple)
        return (size_t)snprintf(text, 16, "\\%c", to[simple - from]);
    if (c >= 0x20 && (c < 0x7f || !ascii))
        return 0;
    if (c < 0x10000)
        return (size_t)snprintf(text, 16, "\\u%04" PRIx32, c);
    c -= 0x10000;
    return (size_t)snprintf(text, 16, "\\u%04" PRIx32 "\\u%04" PRIx32, 0xd800 + (c >> 10),
                            0xdc00 + (c & 0x3ff));
}

static bool json_text(struct heap *h, const struct value *v, bool ascii)
{
    char text[16];
    size_t done = 0;
    if (!out_bytes(h, "\"", 1, v->origin))
        return false;
    for (size_t at = 0, next = 0; at < v->count; at = next) {
        size_t n = json_escaped(utf8_next(v->text, v->count, &next), ascii, text);
        if (!n)
            continue;
        if (!out_part(h, v, done, at) || !out_bytes(h, text, n, origin_at(v, at)))
            return false;
        done = next;
    }
    return out_part(h, v, done, v->count) && out_bytes(h, "\"", 1, v->origin);
}

static bool json_line(struct heap *h, const struct json_style *s, enum value_origin origin,
                      int depth)
{
    if (!s->indented)
        return true;
    if (!out_bytes(h, "\n", 1, origin))
        return false;
    for (int i = 0; i < depth; i++)
        if (!out_bytes(h, s->indent.text, s->indent.count, origin))
            return false;
    return true;
}

static bool json_plain(struct heap *h, const struct value *v)
{
    char text[40];
    size_t n;
    switch (v->kind) {
    case VALUE_NONE:
        return word(h, "null", v->origin);
    case VALUE_BOOL:
        return word(h, v->truth ? "true" : "false", v->origin);
    case VALUE_FLOAT:
        n = value_float_text(v->real, text);
        if (v->real != v->real)
            return word(h, "NaN", v->origin);
        if (text[n - 1] == 'f')
            return word(h, *text == '-' ? "-Infinity" : "Infinity", v->origin);
        return out_bytes(h, text, n, v->origin);
    default:
        return plain(h, v);
    }
}

static bool json_key(struct heap *h, const struct value *key, const struct json_style *s)
{
    if (key->kind == VALUE_TEXT)
        return json_text(h, key, s->ensure_ascii);
    if (key->kind != VALUE_NONE && !value_is_number(key))
        return heap_fail(h, FAILURE_TYPE, "a key of type '%s' in JSON", value_type(key));
    return word(h, "\"", key->origin) && json_plain(h, key) && word(h, "\"", key->origin);
}

static bool json(struct heap *h, const struct value *v, const struct json_style *s, int depth);

static bool json_entries(struct heap *h, const struct value *v, const struct json_style *s,
                         int depth)
{
    uint32_t *order = NULL;
    if (s->sort_keys) {
        struct value *keys = heap_alloc(h, v->count, sizeof *keys);
        for (uint32_t i = 0; keys && i < v->count; i++)
            keys[i] = v->entries[i].key;
        if (!keys || !(order = value_order(h, keys, v->count, false)))
            return false;
    }
    if (!word(h, "{", v->origin))
        return false;
    for (uint32_t i = 0; i < v->count; i++) {
        const struct entry *e = &v->entries[order ? order[i] : i];
        if ((i && !out_bytes(h, s->comma.text, s->comma.count, v->origin)) ||
            !json_line(h, s, v->origin, depth + 1) || !json_key(h, &e->key, s) ||
            !out_bytes(h, s->colon.text, s->colon.count, v->origin) ||
            !json(h, &e->value, s, depth + 1))
            return false;
    }
    return (!v->count || json_line(h, s, v->origin, depth)) && word(h, "}", v->origin);
}

static bool json(struct heap *h, const struct value *v, const struct json_style *s, int depth)
{
    if (!heap_spend(h, 1))
        return false;
    if (depth == PRINT_DEPTH_MAX)
        return heap_fail(h, FAILURE_LIMIT, "prints a value of more than %d levels",
                         PRINT_DEPTH_MAX);
    if (v->kind == VALUE_TEXT)
        return json_text(h, v, s->ensure_ascii);
    if (v->kind == VALUE_DICT)
        return json_entries(h, v, s, depth);
    if (v->kind == VALUE_NONE || value_is_number(v))
        return json_plain(h, v);
    if (v->kind != VALUE_LIST && v->kind != VALUE_TUPLE)
        return heap_fail(h, FAILURE_TYPE, "a value of type '%s' in JSON", value_type(v));
    if (!word(h, "[", v->origin))
        return false;
    for (uint32_t i = 0; i < v->count; i++)
        if ((i && !out_bytes(h, s->comma.text, s->comma.count, v->origin)) ||
            !json_line(h, s, v->origin, depth + 1) || !json(h, &v->items[i], s, depth + 1))
            return false;
    return (!v->count || json_line(h, s, v->origin, depth)) && word(h, "]", v->origin);
}

bool out_json(struct heap *h, const struct value *v, const struct json_style *style)
{
    return json(h, v, style, 0);
}
