/* SPDX-License-Identifier: Apache-2.0 */
#include "template_object.h"

#include "utf8.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- attributes ---- */

/* What would change a value: the sandbox hands out something undefined that fails when used. */
static const struct {
    uint8_t kind;
    const char *name;
} unsafe[] = {
    {VALUE_DICT, "clear"},      {VALUE_DICT, "pop"},    {VALUE_DICT, "popitem"},
    {VALUE_DICT, "setdefault"}, {VALUE_DICT, "update"}, {VALUE_LIST, "append"},
    {VALUE_LIST, "clear"},      {VALUE_LIST, "extend"}, {VALUE_LIST, "insert"},
    {VALUE_LIST, "pop"},        {VALUE_LIST, "remove"}, {VALUE_LIST, "reverse"},
    {VALUE_LIST, "sort"},
};

static bool same(const char *name, const char *text, size_t bytes)
{
    return strlen(name) == bytes && !memcmp(name, text, bytes);
}

static const char *owner_name(const struct value *o)
{
    static const char *const names[] = {
        [VALUE_NONE] = "None",          [VALUE_BOOL] = "bool object",
        [VALUE_INT] = "int object",     [VALUE_BIG] = "int object",
        [VALUE_FLOAT] = "float object", [VALUE_TEXT] = "str object",
        [VALUE_LIST] = "list object",   [VALUE_TUPLE] = "tuple object",
        [VALUE_DICT] = "dict object",   [VALUE_NAMESPACE] = "namespace object",
    };
    const char *name = o->kind < COUNT(names) ? names[o->kind] : NULL;
    return name ? name : value_type(o);
}

static bool loop_field(const struct loop *l, const char *name, size_t bytes, struct value *out)
{
    struct value none = value_undefined(WHY_EMPTY, "such", 4, NULL);
    int64_t index = l->index;
    if (same("index", name, bytes))
        *out = value_int(index + 1);
    else if (same("index0", name, bytes))
        *out = value_int(index);
    else if (same("first", name, bytes))
        *out = value_bool(index == 0);
    else if (same("last", name, bytes))
        *out = value_bool(index + 1 == l->count);
    else if (same("length", name, bytes))
        *out = value_int(l->count);
    else if (same("revindex", name, bytes))
        *out = value_int(l->count - index);
    else if (same("revindex0", name, bytes))
        *out = value_int(l->count - index - 1);
    else if (same("previtem", name, bytes))
        *out = l->index > 0 && l->index <= l->count ? l->items[l->index - 1] : none;
    else if (same("nextitem", name, bytes))
        *out = l->index + 1 < l->count ? l->items[l->index + 1] : none;
    else if (same("depth", name, bytes))
        *out = value_int(1);
    else if (same("depth0", name, bytes))
        *out = value_int(0);
    else
        return false;
    return true;
}

/* Python's own attribute of `o`, or one that the sandbox withholds. *found says whether. */
static bool own_field(struct heap *h, const struct value *o, const char *name, size_t bytes,
                      struct value *out, bool *found)
{
    *found = true;
    if (bytes > 4 && !memcmp(name, "__", 2)) {
        *out = value_undefined(WHY_UNSAFE, name, bytes, owner_name(o));
        return true;
    }
    for (size_t i = 0; i < COUNT(unsafe); i++)
        if (unsafe[i].kind == o->kind && same(unsafe[i].name, name, bytes)) {
            *out = value_undefined(WHY_UNSAFE, name, bytes, owner_name(o));
            return true;
        }
    uint32_t id;
    if (method_find(&id, o->kind, name, bytes)) {
        struct method *m = heap_alloc(h, 1, sizeof *m);
        if (!m)
            return false;
        *m = (struct method){*o, id};
        *out = (struct value){.kind = VALUE_METHOD, .method = m};
        return true;
    }
    if (o->kind == VALUE_LOOP && loop_field(o->loop, name, bytes, out))
        return true;
    if (o->kind == VALUE_MACRO && same("name", name, bytes)) {
        *out = value_text(o->macro->name, o->macro->name_bytes, ORIGIN_TEMPLATE);
        return true;
    }
    *found = false;
    return true;
}

bool object_field(struct heap *h, const struct value *o, const char *name, size_t bytes,
                  struct value *out)
{
    const struct value *v;
    bool found;
    if (o->kind == VALUE_UNDEFINED)
        return heap_fail_undefined(h, o);
    if (o->kind != VALUE_NAMESPACE) {
        if (!own_field(h, o, name, bytes, out, &found))
            return false;
        if (found)
            return true;
    }
    if ((o->kind == VALUE_DICT || o->kind == VALUE_NAMESPACE) &&
        (v = value_find_text(h, o, name, bytes))) {
        *out = *v;
        return true;
    }
    *out = value_undefined(WHY_ATTRIBUTE, name, bytes, owner_name(o));
    return !h->failure;
}

/* ---- items, slices ---- */

static bool item_at(struct heap *h, const struct value *o, int64_t index, struct value *out)
{
    uint32_t length;
    if (!value_length(h, o, &length))
        return false;
    if (index < 0)
        index += length;
    if (index < 0 || index >= length) {
        *out = value_undefined(WHY_ELEMENT, "", 0, owner_name(o));
        return true;
    }
    if (o->kind == VALUE_TEXT) {
        size_t from = text_offset(o, (size_t)index), to = from;
        utf8_next(o->text, o->count, &to);
        *out = text_part(o, from, to);
        return heap_spend(h, from / 64);
    }
    *out = o->kind == VALUE_RANGE ? value_int(o->range->start + index * o->range->step)
                                  : o->items[index];
    return true;
}

bool object_item(struct heap *h, const struct value *o, const struct value *key, struct value *out)
{
    const struct value *v;
    int64_t index;
    bool found;
    if (o->kind == VALUE_UNDEFINED)
        return heap_fail_undefined(h, o);
    if (o->kind == VALUE_DICT) {
        if ((v = value_find(h, o, key))) {
            *out = *v;
            return true;
        }
        if (h->failure)
            return false;
    } else if ((o->kind == VALUE_TEXT || o->kind == VALUE_LIST || o->kind == VALUE_TUPLE ||
                o->kind == VALUE_RANGE) &&
               value_is_whole(key, &index))
        return item_at(h, o, index, out);
    if (key->kind == VALUE_TEXT && o->kind == VALUE_NAMESPACE)
        return object_field(h, o, key->text, key->count, out);
    if (key->kind == VALUE_TEXT) {
        if (!own_field(h, o, key->text, key->count, out, &found))
            return false;
        if (found)
            return true;
    }
    bool named = key->kind == VALUE_TEXT;
    *out = value_undefined(named ? WHY_ATTRIBUTE : WHY_ELEMENT, named ? key->text : "",
                           named ? key->count : 0, owner_name(o));
    return true;
}

/* A bound of a slice; `given` is false for none. */
static bool bound(struct heap *h, const struct value *v, int64_t *out, bool *given)
{
    *given = v->kind != VALUE_NONE && v->kind != VALUE_ABSENT;
    if (!*given || value_is_whole(v, out))
        return true;
    if (v->kind == VALUE_BIG) {
        *out = *v->text == '-' ? INT64_MIN / 2 : INT64_MAX / 2;
        return true;
    }
    return heap_fail(h, FAILURE_TYPE, "a slice with a bound of type '%s'", value_type(v));
}

static int64_t clamp(int64_t v, int64_t low, int64_t high)
{
    return v < low ? low : v > high ? high : v;
}

static bool stepped(struct heap *h, const struct value *o, int64_t start, int64_t step,
                    uint32_t count, struct value *out)
{
    const struct value *items;
    uint32_t length;
    if (!value_iterate(h, o, &items, &length))
        return false;
    struct value *kept = heap_alloc(h, count, sizeof *kept);
    if (!kept || !heap_spend(h, count / 4))
        return false;
    for (uint32_t i = 0; i < count; i++)
        kept[i] = items[start + (int64_t)i * step];
    if (o->kind != VALUE_TEXT) {
        *out = value_list(o->kind == VALUE_TUPLE ? VALUE_TUPLE : VALUE_LIST, kept, count);
        out->origin = o->origin;
        return true;
    }
    size_t begin = h->out_length;
    for (uint32_t i = 0; i < count; i++)
        if (!out_text(h, &kept[i]))
            return false;
    if (!out_take(h, begin, out))
        return false;
    out->flag = o->flag;
    return true;
}

bool object_slice(struct heap *h, const struct value *o, const struct value bounds[3],
                  struct value *out)
{
    int64_t start = 0, stop = 0, step = 1;
    bool has_start, has_stop, has_step;
    uint32_t length;
    if (o->kind == VALUE_UNDEFINED)
        return heap_fail_undefined(h, o);
    if (o->kind != VALUE_TEXT && o->kind != VALUE_LIST && o->kind != VALUE_TUPLE &&
        o->kind != VALUE_RANGE)
        return heap_fail(h, FAILURE_TYPE, "a slice of a value of type '%s'", value_type(o));
    if (!bound(h, &bounds[0], &start, &has_start) || !bound(h, &bounds[1], &stop, &has_stop) ||
        !bound(h, &bounds[2], &step, &has_step) || !value_length(h, o, &length))
        return false;
    if (has_step && !step)
        return heap_fail(h, FAILURE_VALUE, "a slice with step 0");
    step = clamp(step, -(int64_t)UINT32_MAX, UINT32_MAX);
    int64_t n = length, low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    start = !has_start ? (step < 0 ? high : low) : clamp(start < 0 ? start + n : start, low, high);
    stop = !has_stop ? (step < 0 ? low : high) : clamp(stop < 0 ? stop + n : stop, low, high);
    int64_t span = step < 0 ? start - stop : stop - start, stride = step < 0 ? -step : step;
    uint32_t count = span <= 0 ? 0 : (uint32_t)((span + stride - 1) / stride);
    if (step != 1 || o->kind == VALUE_RANGE)
        return stepped(h, o, start, step, count, out);
    if (o->kind != VALUE_TEXT) {
        *out = value_list(o->kind, count ? o->items + start : NULL, count);
        out->origin = o->origin;
        return true;
    }
    size_t from = text_offset(o, (size_t)start), to = from;
    for (uint32_t i = 0; i < count; i++)
        utf8_next(o->text, o->count, &to);
    *out = text_part(o, from, to);
    return heap_spend(h, to / 64);
}
