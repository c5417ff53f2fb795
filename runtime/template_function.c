/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that templates call: range, dict, namespace, raise_exception, strftime_now. */
#include <inttypes.h>

#include "template.h"
#include "template_object.h"

/* Puts or changes an entry of what is being made. */
static bool put(struct heap *h, struct namespace *space, struct value name,
                const struct value *value)
{
    if (!heap_spend(h, space->count / 16))
        return false;
    for (uint32_t i = 0; i < space->count; i++) {
        bool is;
        if (!value_equal(h, &space->entries[i].key, &name, &is))
            return false;
        if (is) {
            space->entries[i].value = *value;
            return true;
        }
    }
    if (space->count == space->capacity) {
        uint32_t capacity = space->capacity * 2 + 8;
        struct entry *entries = heap_alloc(h, capacity, sizeof *entries);
        if (!entries)
            return false;
        if (space->count)
            memcpy(entries, space->entries, space->count * sizeof *entries);
        space->entries = entries;
        space->capacity = capacity;
    }
    space->entries[space->count++] = (struct entry){name, *value};
    return true;
}

bool namespace_set(struct heap *h, struct namespace *space, struct value name,
                   const struct value *value)
{
    if (name.kind == VALUE_TEXT && name.count && *name.text == '_')
        return heap_fail(h, FAILURE_SECURITY, "a namespace holds no name that begins with '_'");
    return put(h, space, name, value);
}

/* What dict() and namespace() are given: a mapping or pairs, and names. */
static bool collect(struct heap *h, const struct arguments *a, struct namespace *space,
                    bool guarded)
{
    bool (*set)(struct heap *, struct namespace *, struct value, const struct value *) =
        guarded ? namespace_set : put;
    const struct value *items, *pair;
    uint32_t count, two;
    if (a->count > 1)
        return heap_fail(h, FAILURE_TYPE, "dict() was given %" PRIu32 " arguments", a->count);
    if (a->count && a->items[0].kind == VALUE_DICT) {
        for (uint32_t i = 0; i < a->items[0].count; i++)
            if (!set(h, space, a->items[0].entries[i].key, &a->items[0].entries[i].value))
                return false;
    } else if (a->count) {
        if (!value_iterate(h, &a->items[0], &items, &count))
            return false;
        for (uint32_t i = 0; i < count; i++) {
            if (!value_iterate(h, &items[i], &pair, &two))
                return false;
            if (two != 2)
                return heap_fail(h, FAILURE_VALUE, "dict() of what is no pair");
            if (!set(h, space, pair[0], &pair[1]))
                return false;
        }
    }
    for (uint32_t i = 0; i < a->named_count; i++)
        if (!set(h, space, a->names[i], &a->named[i]))
            return false;
    return true;
}

static bool make_range(struct heap *h, const struct arguments *a, struct value *out)
{
    enum { RANGE_MAX = 100000 };
    struct range *r = heap_alloc(h, 1, sizeof *r);
    int64_t n[3] = {0, 0, 1};
    uint32_t length;
    if (!r)
        return false;
    if (!a->count || a->count > 3 || a->named_count)
        return heap_fail(h, FAILURE_TYPE, "range() was given %" PRIu32 " arguments", a->count);
    for (uint32_t i = 0; i < a->count; i++)
        if (a->items[i].kind == VALUE_UNDEFINED)
            return heap_fail(h, FAILURE_TYPE, "range() was given something undefined");
        else if (!want_whole(h, &a->items[i], &n[i]))
            return false;
    *r = a->count == 1 ? (struct range){0, n[0], 1} : (struct range){n[0], n[1], n[2]};
    if (!r->step)
        return heap_fail(h, FAILURE_VALUE, "range() with step 0");
    *out = (struct value){.kind = VALUE_RANGE, .range = r};
    const int64_t far = (int64_t)1 << 60;
    if (r->start > far || r->start < -far || r->stop > far || r->stop < -far)
        return heap_fail(h, FAILURE_VALUE, "range() of more than %d numbers", RANGE_MAX);
    __int128 span = r->step > 0 ? (__int128)r->stop - r->start : (__int128)r->start - r->stop;
    if (span > 0 && span / (r->step > 0 ? r->step : -(__int128)r->step) > RANGE_MAX)
        return heap_fail(h, FAILURE_VALUE, "range() of more than %d numbers", RANGE_MAX);
    if (!value_length(h, out, &length))
        return false;
    return length <= RANGE_MAX ||
           heap_fail(h, FAILURE_VALUE, "range() of more than %d numbers", RANGE_MAX);
}

static bool raise_exception(struct heap *h, const struct value *message)
{
    size_t start = h->out_length;
    struct value text;
    if (!out_str(h, message) || !out_take(h, start, &text))
        return false;
    h->message = heap_alloc(h, text.count + 1, 1);
    if (!h->message)
        return false;
    if (text.count)
        memcpy(h->message, text.text, text.count);
    h->message[text.count] = '\0';
    h->message_bytes = text.count;
    return heap_fail(h, FAILURE_RAISED, "%s",
                     *h->message ? h->message : "the chat template refuses this and does not say why");
}

enum { FORMAT_MAX = 1024, TIME_MAX = 4096 };

/* The format as libc is to have it: of a time without a zone, as Python's; a point at the end, so
 * that no result is empty. False where it is too long. */
static bool libc_format(const struct value *format, char out[FORMAT_MAX])
{
    size_t n = 0;
    if (format->count && memchr(format->text, '\0', format->count))
        return false;
    for (size_t i = 0; i < format->count; i++) {
        char next = i + 1 < format->count ? format->text[i + 1] : 0;
        if (n + 8 > FORMAT_MAX)
            return false;
        if (format->text[i] != '%' || (next != 'z' && next != 'Z' && next != 'f' && next != '%')) {
            out[n++] = format->text[i];
            continue;
        }
        i++;
        memcpy(out + n, next == 'f' ? "000000" : "%%", next == 'f' ? 6 : 2);
        n += next == 'f' ? 6 : next == '%' ? 2 : 0;
    }
    memcpy(out + n, ".", 2);
    return true;
}

static bool format_time(struct heap *h, const struct value *format, const struct tm *now,
                        struct value *out)
{
    char text[TIME_MAX], own[FORMAT_MAX];
    if (format->kind != VALUE_TEXT)
        return heap_fail(h, FAILURE_TYPE, "strftime_now() was given a '%s'", value_type(format));
    if (!libc_format(format, own))
        return heap_fail(h, FAILURE_VALUE, "a date format of %" PRIu32 " bytes", format->count);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t n = strftime(text, sizeof text, own, now); /* never more than `text` has room for */
#pragma GCC diagnostic pop
    if (!n)
        return heap_fail(h, FAILURE_UNSUPPORTED, "a date of more than %d bytes", TIME_MAX);
    size_t start = h->out_length;
    return out_bytes(h, text, n - 1, format->origin) && out_take(h, start, out);
}

bool function_call(struct heap *h, uint32_t function, const struct arguments *a,
                   const struct tm *now, struct value *out)
{
    struct namespace *space;
    switch (function) {
    case FUNCTION_RAISE_EXCEPTION:
    case FUNCTION_STRFTIME_NOW: {
        bool raise = function == FUNCTION_RAISE_EXCEPTION;
        const struct value *argument = a->count ? a->items : a->named;
        if (a->count + a->named_count != 1 ||
            (a->named_count && !value_is_text(a->names, raise ? "message" : "format")))
            return heap_fail(h, FAILURE_TYPE, "%s() takes one argument",
                             raise ? "raise_exception" : "strftime_now");
        return raise ? raise_exception(h, argument) : format_time(h, argument, now, out);
    }
    case FUNCTION_NAMESPACE:
    case FUNCTION_DICT:
        if (!(space = heap_alloc(h, 1, sizeof *space)))
            return false;
        *space = (struct namespace){0};
        if (!collect(h, a, space, function == FUNCTION_NAMESPACE))
            return false;
        *out = function == FUNCTION_NAMESPACE
                   ? (struct value){.kind = VALUE_NAMESPACE, .space = space}
                   : (struct value){
                         .kind = VALUE_DICT, .count = space->count, .entries = space->entries};
        return true;
    case FUNCTION_RANGE:
        return make_range(h, a, out);
    default:
        return heap_fail(h, FAILURE_UNSUPPORTED, "calls a function that is not supported");
    }
}
