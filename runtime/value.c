/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "template.h"
#include "utf8.h"
#include "value.h"

enum { CHUNK_BYTES = 64 * 1024, DEPTH_MAX = 200 };

/* -------------------------------------------------------------------------------------------- heap
 */

struct heap_chunk {
    struct heap_chunk *next;
    size_t bytes;
};

void heap_open(struct heap *h, const struct heap_limits *limits, struct stele_error *err)
{
    *h = (struct heap){.limits = *limits, .err = err};
}

void heap_close(struct heap *h)
{
    for (struct heap_chunk *c = h->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(h->out);
    free(h->out_origins);
    *h = (struct heap){0};
}

void *heap_alloc(struct heap *h, size_t count, size_t size)
{
    size_t bytes;
    if (h->failure)
        return NULL;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > h->limits.memory_bytes ||
        h->used > h->limits.memory_bytes - bytes) {
        heap_fail(h, FAILURE_LIMIT, "needs more than %zu bytes of memory", h->limits.memory_bytes);
        return NULL;
    }
    bytes = bytes ? (bytes + 7) & ~(size_t)7 : 8;
    if (bytes > h->chunk_left) {
        size_t room = bytes > CHUNK_BYTES / 4 ? bytes : CHUNK_BYTES;
        struct heap_chunk *c = malloc(sizeof *c + room);
        if (!c) {
            heap_fail(h, FAILURE_MEMORY, "no memory for %zu bytes", room);
            return NULL;
        }
        *c = (struct heap_chunk){h->chunks, room};
        h->chunks = c;
        if (room == bytes) { /* a large one has a chunk to itself, the current one goes on */
            h->used += bytes;
            return c + 1;
        }
        h->chunk_at = (char *)(c + 1);
        h->chunk_left = room;
    }
    void *p = h->chunk_at;
    h->chunk_at += bytes;
    h->chunk_left -= bytes;
    h->used += bytes;
    return p;
}

bool heap_spend(struct heap *h, uint64_t steps)
{
    if (h->failure)
        return false;
    if (steps > h->limits.steps - h->steps)
        return heap_fail(h, FAILURE_LIMIT, "takes more than %" PRIu64 " steps", h->limits.steps);
    h->steps += steps;
    return true;
}

bool heap_fail(struct heap *h, enum failure failure, const char *format, ...)
{
    char text[800];
    va_list args;
    enum stele_status status = failure == FAILURE_MEMORY    ? STELE_SYSTEM
                               : failure == FAILURE_REFUSED ? STELE_USAGE
                                                            : STELE_INPUT;
    if (h->failure)
        return false;
    h->failure = failure;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (failure == FAILURE_RAISED || !h->line)
        stele_fail(h->err, status, "%s", text);
    else
        stele_fail(h->err, status, "chat template, line %" PRIu32 ": %s", h->line, text);
    return false;
}

bool heap_fail_undefined(struct heap *h, const struct value *v)
{
    int n = v->count < 100 ? (int)v->count : 100;
    const char *name = v->text ? v->text : "";
    switch (v->flag) {
    case WHY_UNSAFE:
        return heap_fail(h, FAILURE_SECURITY, "access to '%.*s' of '%s' is not allowed", n, name,
                         v->owner);
    case WHY_ATTRIBUTE:
        return heap_fail(h, FAILURE_UNDEFINED, "'%s' has no '%.*s'", v->owner, n, name);
    case WHY_ELEMENT:
        return heap_fail(h, FAILURE_UNDEFINED, "'%s' has no such element", v->owner);
    case WHY_ELSE:
        return heap_fail(h, FAILURE_UNDEFINED, "an 'if' without 'else' gave nothing");
    case WHY_EMPTY:
        return heap_fail(h, FAILURE_UNDEFINED, "there is no %.*s item", n, name);
    case WHY_PARAMETER:
        return heap_fail(h, FAILURE_UNDEFINED, "parameter '%.*s' was not given", n, name);
    default:
        return heap_fail(h, FAILURE_UNDEFINED, "'%.*s' is undefined", n, name);
    }
}

/* ------------------------------------------------------------------------------------------ asking
 */

bool value_generator(struct heap *h, const struct value *items, size_t count, struct value *out)
{
    struct generator *g = heap_alloc(h, 1, sizeof *g);
    if (!g)
        return false;
    *g = (struct generator){.items = items, .count = (uint32_t)count};
    *out = (struct value){.kind = VALUE_GENERATOR, .generator = g};
    return true;
}

bool value_generator_broken(struct heap *h, const char *type, struct value *out)
{
    if (!value_generator(h, NULL, 0, out))
        return false;
    out->generator->broken = type;
    return true;
}

const char *value_type(const struct value *v)
{
    static const char *const names[] = {
        [VALUE_ABSENT] = "nothing",
        [VALUE_UNDEFINED] = "Undefined",
        [VALUE_NONE] = "NoneType",
        [VALUE_BOOL] = "bool",
        [VALUE_INT] = "int",
        [VALUE_BIG] = "int",
        [VALUE_FLOAT] = "float",
        [VALUE_TEXT] = "str",
        [VALUE_LIST] = "list",
        [VALUE_TUPLE] = "tuple",
        [VALUE_VIEW] = "dict_view",
        [VALUE_GENERATOR] = "generator",
        [VALUE_RANGE] = "range",
        [VALUE_DICT] = "dict",
        [VALUE_NAMESPACE] = "namespace",
        [VALUE_MACRO] = "Macro",
        [VALUE_FUNCTION] = "function",
        [VALUE_METHOD] = "method",
        [VALUE_LOOP] = "LoopContext",
    };
    return names[v->kind];
}

static int64_t range_length(const struct range *r)
{
    __int128 span = r->step > 0 ? (__int128)r->stop - r->start : (__int128)r->start - r->stop;
    __int128 step = r->step > 0 ? r->step : -(__int128)r->step;
    return span <= 0 ? 0 : (int64_t)((span + step - 1) / step);
}

bool value_truth(const struct value *v)
{
    switch (v->kind) {
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return false;
    case VALUE_BOOL:
        return v->truth;
    case VALUE_INT:
        return v->whole != 0;
    case VALUE_FLOAT:
        return v->real < 0 || v->real > 0 || v->real != v->real;
    case VALUE_TEXT:
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_VIEW:
    case VALUE_DICT:
        return v->count != 0;
    case VALUE_RANGE:
        return range_length(v->range) != 0;
    default:
        return true;
    }
}

static bool equal(struct heap *h, const struct value *a, const struct value *b, int depth,
                  bool *out);

static bool equal_dicts(struct heap *h, const struct value *a, const struct value *b, int depth,
                        bool *out)
{
    *out = a->count == b->count;
    for (uint32_t i = 0; i < a->count && *out; i++) {
        const struct value *other = value_find(h, b, &a->entries[i].key);
        if (h->failure)
            return false;
        if (!other)
            *out = false;
        else if (!equal(h, &a->entries[i].value, other, depth + 1, out))
            return false;
    }
    return true;
}

static bool equal_items(struct heap *h, const struct value *a, const struct value *b, int depth,
                        bool *out)
{
    *out = a->count == b->count;
    for (uint32_t i = 0; i < a->count && *out; i++)
        if (!equal(h, &a->items[i], &b->items[i], depth + 1, out))
            return false;
    return true;
}

static bool equal(struct heap *h, const struct value *a, const struct value *b, int depth,
                  bool *out)
{
    *out = false;
    if (!heap_spend(h, 1 + (a->kind == VALUE_TEXT && b->kind == VALUE_TEXT ? a->count / 64 : 0)))
        return false;
    if (depth == DEPTH_MAX)
        return heap_fail(h, FAILURE_LIMIT, "compares values of more than %d levels", DEPTH_MAX);
    if (value_is_number(a) && value_is_number(b)) {
        *out = value_compare_numbers(a, b) == 0;
        return true;
    }
    if (a->kind != b->kind)
        return true;
    switch (a->kind) {
    case VALUE_TEXT:
        *out = a->count == b->count && (!a->count || !memcmp(a->text, b->text, a->count));
        return true;
    case VALUE_LIST:
    case VALUE_TUPLE:
        return equal_items(h, a, b, depth, out);
    case VALUE_DICT:
        return equal_dicts(h, a, b, depth, out);
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        *out = true;
        return true;
    case VALUE_FUNCTION:
        *out = a->count == b->count;
        return true;
    default:
        *out = a->items == b->items; /* the same object */
        return true;
    }
}

bool value_equal(struct heap *h, const struct value *a, const struct value *b, bool *out)
{
    return equal(h, a, b, 0, out);
}

static int compare_texts(const struct value *a, const struct value *b)
{
    uint32_t n = a->count < b->count ? a->count : b->count;
    int order = n ? memcmp(a->text, b->text, n) : 0; /* bytes of UTF-8 have the characters' order */
    return order ? order : a->count < b->count ? -1 : a->count > b->count;
}

/* Whether an order (-1, 0, 1; 2: none) is what the operator asks for. */
static bool fits(unsigned op, int order)
{
    return op == OPERATOR_LT   ? order == -1
           : op == OPERATOR_LE ? order == -1 || order == 0
           : op == OPERATOR_GT ? order == 1
                               : order == 0 || order == 1;
}

static int sign(int64_t n)
{
    return n < 0 ? -1 : n > 0;
}

bool value_ordered(struct heap *h, unsigned op, const struct value *a, const struct value *b,
                   bool *out)
{
    static const char *const signs[] = {"<", "<=", ">", ">="};
    *out = false;
    if (!heap_spend(h, 1 + (a->kind == VALUE_TEXT ? a->count / 64 : 0)))
        return false;
    if (a->kind == VALUE_UNDEFINED || b->kind == VALUE_UNDEFINED)
        return heap_fail_undefined(h, a->kind == VALUE_UNDEFINED ? a : b);
    if ((a->kind == VALUE_LIST || a->kind == VALUE_TUPLE) && a->kind == b->kind) {
        for (uint32_t i = 0; i < a->count && i < b->count; i++) {
            const struct value *x = &a->items[i], *y = &b->items[i];
            bool same;
            if (!value_equal(h, x, y, &same))
                return false;
            if (same)
                continue;
            if (value_is_sequence(x) || value_is_sequence(y)) /* no template does that */
                return heap_fail(h, FAILURE_UNSUPPORTED, "orders lists of lists");
            return value_ordered(h, op, x, y, out);
        }
        *out = fits(op, sign((int64_t)a->count - b->count));
    } else if (value_is_number(a) && value_is_number(b))
        *out = fits(op, value_compare_numbers(a, b));
    else if (a->kind == VALUE_TEXT && b->kind == VALUE_TEXT)
        *out = fits(op, sign(compare_texts(a, b)));
    else
        return heap_fail(h, FAILURE_TYPE, "'%s' between '%s' and '%s'",
                         signs[(op - OPERATOR_LT) % 4], value_type(a), value_type(b));
    return true;
}

bool value_in(struct heap *h, const struct value *item, const struct value *in, bool *out)
{
    const struct value *items;
    uint32_t count;
    *out = false;
    if (in->kind == VALUE_TEXT) {
        if (item->kind != VALUE_TEXT)
            return heap_fail(h, FAILURE_TYPE, "'in' a text asks for a text, not for '%s'",
                             value_type(item));
        *out = text_find(in, 0, item) != SIZE_MAX;
        return heap_spend(h, 1 + in->count / 64);
    }
    if (in->kind == VALUE_DICT) {
        if (item->kind == VALUE_LIST || item->kind == VALUE_DICT)
            return heap_fail(h, FAILURE_TYPE, "'%s' cannot be a key", value_type(item));
        *out = value_find(h, in, item) != NULL;
        return !h->failure;
    }
    if (in->kind != VALUE_UNDEFINED && in->kind != VALUE_RANGE && in->kind != VALUE_GENERATOR &&
        !value_is_sequence(in))
        return heap_fail(h, FAILURE_TYPE, "'in' a value of type '%s'", value_type(in));
    if (in->kind == VALUE_UNDEFINED && in->flag == WHY_UNSAFE)
        return heap_fail_undefined(h, in);
    if (!value_iterate(h, in, &items, &count))
        return false;
    for (uint32_t i = 0; i < count && !*out; i++)
        if (!value_equal(h, item, &items[i], out))
            return false;
    return true;
}

bool value_length(struct heap *h, const struct value *v, uint32_t *out)
{
    switch (v->kind) {
    case VALUE_UNDEFINED:
        *out = 0;
        return v->flag != WHY_UNSAFE || heap_fail_undefined(h, v);
    case VALUE_TEXT:
        *out = text_characters(v);
        return heap_spend(h, v->count / 64);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_VIEW:
    case VALUE_DICT:
        *out = v->count;
        return true;
    case VALUE_RANGE:
        *out = (uint32_t)range_length(v->range);
        return true;
    default:
        return heap_fail(h, FAILURE_TYPE, "length of a value of type '%s'", value_type(v));
    }
}

/* The characters of a text, a value each. */
static bool characters(struct heap *h, const struct value *v, const struct value **items,
                       uint32_t *count)
{
    uint32_t n = text_characters(v);
    struct value *list = heap_alloc(h, n, sizeof *list);
    if (!list || !heap_spend(h, n / 8))
        return false;
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        size_t next = at;
        utf8_next(v->text, v->count, &next);
        list[i] = text_part(v, at, next);
        at = next;
    }
    *items = list;
    *count = n;
    return true;
}

bool value_iterate(struct heap *h, const struct value *v, const struct value **items,
                   uint32_t *count)
{
    struct value *list;
    *items = NULL;
    *count = 0;
    switch (v->kind) {
    case VALUE_UNDEFINED:
        return v->flag != WHY_UNSAFE || heap_fail_undefined(h, v);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_VIEW:
        *items = v->items;
        *count = v->count;
        return true;
    case VALUE_GENERATOR:
        if (v->generator->broken)
            return heap_fail(h, FAILURE_TYPE, "a value of type '%s' cannot be gone over",
                             v->generator->broken);
        if (!v->generator->used) {
            *items = v->generator->items;
            *count = v->generator->count;
        }
        v->generator->used = true;
        return true;
    case VALUE_TEXT:
        return characters(h, v, items, count);
    case VALUE_DICT:
        if (!(list = heap_alloc(h, v->count, sizeof *list)))
            return false;
        for (uint32_t i = 0; i < v->count; i++)
            list[i] = v->entries[i].key;
        *items = list;
        *count = v->count;
        return true;
    case VALUE_RANGE:
        *count = (uint32_t)range_length(v->range);
        if (!(list = heap_alloc(h, *count, sizeof *list)))
            return false;
        for (uint32_t i = 0; i < *count; i++)
            list[i] = value_int(v->range->start + (int64_t)i * v->range->step);
        *items = list;
        return true;
    default:
        return heap_fail(h, FAILURE_TYPE, "a value of type '%s' cannot be gone over",
                         value_type(v));
    }
}

const struct value *value_find(struct heap *h, const struct value *dict, const struct value *key)
{
    bool same;
    if (key->kind == VALUE_TEXT)
        return value_find_text(h, dict, key->text, key->count);
    if (dict->kind != VALUE_DICT)
        return NULL;
    for (uint32_t i = 0; i < dict->count; i++) {
        if (!value_equal(h, &dict->entries[i].key, key, &same))
            return NULL;
        if (same)
            return &dict->entries[i].value;
    }
    return NULL;
}

const struct value *value_find_text(struct heap *h, const struct value *dict, const char *key,
                                    size_t bytes)
{
    const struct entry *entries = dict->kind == VALUE_DICT        ? dict->entries
                                  : dict->kind == VALUE_NAMESPACE ? dict->space->entries
                                                                  : NULL;
    uint32_t count = dict->kind == VALUE_DICT ? dict->count : entries ? dict->space->count : 0;
    if (!heap_spend(h, count / 16))
        return NULL;
    for (uint32_t i = 0; i < count; i++) {
        const struct value *k = &entries[i].key;
        if (k->kind == VALUE_TEXT && k->count == bytes && heap_spend(h, bytes / 64) &&
            (!bytes || !memcmp(k->text, key, bytes)))
            return &entries[i].value;
    }
    return NULL;
}

/* --------------------------------------------------------------------------------------- ordering
 */

/* Merges the ordered order[from, middle) and order[middle, to). */
static bool merge(struct heap *h, const struct value *keys, bool reverse, uint32_t *order,
                  uint32_t *spare, uint32_t from, uint32_t middle, uint32_t to)
{
    uint32_t a = from, b = middle, n = from;
    while (a < middle && b < to) {
        const struct value *left = &keys[order[a]], *right = &keys[order[b]];
        bool later;
        if (!value_ordered(h, OPERATOR_LT, reverse ? left : right, reverse ? right : left, &later))
            return false;
        spare[n++] = later ? order[b++] : order[a++];
    }
    while (a < middle)
        spare[n++] = order[a++];
    while (b < to)
        spare[n++] = order[b++];
    memcpy(order + from, spare + from, (to - from) * sizeof *order);
    return true;
}

uint32_t *value_order(struct heap *h, const struct value *keys, uint32_t count, bool reverse)
{
    uint32_t *order = heap_alloc(h, count, sizeof *order),
             *spare = heap_alloc(h, count, sizeof *spare);
    if (!order || !spare)
        return NULL;
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    for (uint64_t width = 1; width < count; width *= 2)
        for (uint64_t from = 0; from + width < count; from += 2 * width) {
            uint64_t to = from + 2 * width < count ? from + 2 * width : count;
            if (!merge(h, keys, reverse, order, spare, (uint32_t)from, (uint32_t)(from + width),
                       (uint32_t)to))
                return NULL;
        }
    return order;
}
