/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <utf8proc.h>

#include "space.h"
#include "template.h"
#include "template_object.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ------------------------------------------------------------------------------------ attributes
 */

enum method_id {
    TEXT_CAPITALIZE = 1,
    TEXT_COUNT,
    TEXT_ENDSWITH,
    TEXT_FIND,
    TEXT_INDEX,
    TEXT_ISALNUM,
    TEXT_ISALPHA,
    TEXT_ISDIGIT,
    TEXT_ISLOWER,
    TEXT_ISSPACE,
    TEXT_ISUPPER,
    TEXT_JOIN,
    TEXT_LOWER,
    TEXT_LSTRIP,
    TEXT_PARTITION,
    TEXT_REMOVEPREFIX,
    TEXT_REMOVESUFFIX,
    TEXT_REPLACE,
    TEXT_RFIND,
    TEXT_RSPLIT,
    TEXT_RSTRIP,
    TEXT_SPLIT,
    TEXT_SPLITLINES,
    TEXT_STARTSWITH,
    TEXT_STRIP,
    TEXT_TITLE,
    TEXT_UPPER,
    DICT_COPY,
    DICT_GET,
    DICT_ITEMS,
    DICT_KEYS,
    DICT_VALUES,
    DICT_FROMKEYS,
    LIST_COPY,
    LIST_COUNT,
    LIST_INDEX,
    LOOP_CHANGED,
    LOOP_CYCLE,
};

struct method_entry {
    uint8_t kind;        /* of the value that has it */
    uint8_t least, most; /* arguments */
    uint16_t id;
    const char *name;
};

/* clang-format off */
static const struct method_entry methods[] = {
    {VALUE_TEXT, 0, 0, TEXT_CAPITALIZE, "capitalize"}, {VALUE_TEXT, 1, 1, TEXT_COUNT, "count"},
    {VALUE_TEXT, 1, 1, TEXT_ENDSWITH, "endswith"},     {VALUE_TEXT, 1, 1, TEXT_FIND, "find"},
    {VALUE_TEXT, 1, 1, TEXT_INDEX, "index"},           {VALUE_TEXT, 0, 0, TEXT_ISDIGIT, "isdigit"},
    {VALUE_TEXT, 0, 0, TEXT_ISALNUM, "isalnum"},       {VALUE_TEXT, 0, 0, TEXT_ISALPHA, "isalpha"},
    {VALUE_TEXT, 0, 0, TEXT_ISLOWER, "islower"},       {VALUE_TEXT, 0, 0, TEXT_ISSPACE, "isspace"},
    {VALUE_TEXT, 0, 0, TEXT_ISUPPER, "isupper"},       {VALUE_TEXT, 1, 1, TEXT_JOIN, "join"},
    {VALUE_TEXT, 0, 0, TEXT_LOWER, "lower"},           {VALUE_TEXT, 0, 1, TEXT_LSTRIP, "lstrip"},
    {VALUE_TEXT, 1, 1, TEXT_PARTITION, "partition"},   {VALUE_TEXT, 1, 1, TEXT_REMOVEPREFIX, "removeprefix"},
    {VALUE_TEXT, 1, 1, TEXT_REMOVESUFFIX, "removesuffix"}, {VALUE_TEXT, 2, 3, TEXT_REPLACE, "replace"},
    {VALUE_TEXT, 1, 1, TEXT_RFIND, "rfind"},           {VALUE_TEXT, 0, 2, TEXT_RSPLIT, "rsplit"},
    {VALUE_TEXT, 0, 1, TEXT_RSTRIP, "rstrip"},         {VALUE_TEXT, 0, 2, TEXT_SPLIT, "split"},
    {VALUE_TEXT, 0, 0, TEXT_SPLITLINES, "splitlines"}, {VALUE_TEXT, 1, 1, TEXT_STARTSWITH, "startswith"},
    {VALUE_TEXT, 0, 1, TEXT_STRIP, "strip"},           {VALUE_TEXT, 0, 0, TEXT_TITLE, "title"},
    {VALUE_TEXT, 0, 0, TEXT_UPPER, "upper"},
    {VALUE_DICT, 0, 0, DICT_COPY, "copy"},             {VALUE_DICT, 1, 2, DICT_GET, "get"},
    {VALUE_DICT, 0, 0, DICT_ITEMS, "items"},           {VALUE_DICT, 0, 0, DICT_KEYS, "keys"},
    {VALUE_DICT, 0, 0, DICT_VALUES, "values"},         {VALUE_DICT, 1, 2, DICT_FROMKEYS, "fromkeys"},
    {VALUE_LIST, 0, 0, LIST_COPY, "copy"},             {VALUE_LIST, 1, 1, LIST_COUNT, "count"},
    {VALUE_LIST, 1, 1, LIST_INDEX, "index"},
    {VALUE_TUPLE, 1, 1, LIST_COUNT, "count"},          {VALUE_TUPLE, 1, 1, LIST_INDEX, "index"},
    {VALUE_LOOP, 1, 1, LOOP_CHANGED, "changed"},       {VALUE_LOOP, 1, 255, LOOP_CYCLE, "cycle"},
};
/* clang-format on */

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
    for (size_t i = 0; i < COUNT(methods); i++)
        if (methods[i].kind == o->kind && same(methods[i].name, name, bytes)) {
            struct method *m = heap_alloc(h, 1, sizeof *m);
            if (!m)
                return false;
            *m = (struct method){*o, (uint32_t)i};
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

/* ---------------------------------------------------------------------------------- items, slices
 */

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

/* ----------------------------------------------------------------------------------------- methods
 */

static bool want_text(struct heap *h, const struct value *v)
{
    if (v->kind == VALUE_UNDEFINED && v->flag == WHY_UNSAFE)
        return heap_fail_undefined(h, v);
    return v->kind == VALUE_TEXT ||
           heap_fail(h, FAILURE_TYPE, "a method of a text was given a '%s'", value_type(v));
}

static bool want_whole(struct heap *h, const struct value *v, int64_t *out)
{
    return value_is_whole(v, out) ||
           heap_fail(h, v->kind == VALUE_BIG ? FAILURE_VALUE : FAILURE_TYPE,
                     "a method was given a '%s' for a whole number", value_type(v));
}

static bool touches(const struct value *text, const struct value *what, bool end)
{
    return what->count <= text->count &&
           (!what->count ||
            !memcmp(text->text + (end ? text->count - what->count : 0), what->text, what->count));
}

static bool starts_or_ends(struct heap *h, const struct value *text, const struct value *what,
                           bool end, struct value *out)
{
    bool does = false;
    if (what->kind == VALUE_TUPLE) {
        for (uint32_t i = 0; i < what->count && !does; i++) {
            if (!want_text(h, &what->items[i]) || !heap_spend(h, 1 + what->items[i].count / 64))
                return false;
            does = touches(text, &what->items[i], end);
        }
    } else if (!want_text(h, what) || !heap_spend(h, 1 + what->count / 64))
        return false;
    else
        does = touches(text, what, end);
    *out = value_bool(does);
    return true;
}

static bool join(struct heap *h, const struct value *glue, const struct value *list,
                 struct value *out)
{
    const struct value *items;
    uint32_t count;
    size_t start = h->out_length;
    if (!value_iterate(h, list, &items, &count) || !heap_spend(h, count / 4))
        return false;
    for (uint32_t i = 0; i < count; i++) {
        if (items[i].kind != VALUE_TEXT)
            return heap_fail(h, FAILURE_TYPE, "joins a value of type '%s'", value_type(&items[i]));
        if ((i && !out_text(h, glue)) || !out_text(h, &items[i]))
            return false;
    }
    return out_take(h, start, out);
}

static int64_t character_index(const struct value *text, size_t offset)
{
    struct value before = text_part(text, 0, offset);
    return text_characters(&before);
}

static bool find(struct heap *h, const struct value *text, const struct value *what, bool last,
                 bool must, struct value *out)
{
    if (!want_text(h, what) || !heap_spend(h, 1 + text->count / 16))
        return false;
    size_t at = last ? text_find_last(h, text, text->count, what) : text_find(text, 0, what);
    if (at == SIZE_MAX && must && !h->failure)
        return heap_fail(h, FAILURE_VALUE, "index() of a text that is not there");
    *out = value_int(at == SIZE_MAX ? -1 : character_index(text, at));
    return !h->failure;
}

static bool count_text(struct heap *h, const struct value *text, const struct value *what,
                       struct value *out)
{
    int64_t n = 0;
    if (!want_text(h, what) || !heap_spend(h, 1 + text->count / 16))
        return false;
    if (!what->count)
        n = (int64_t)text_characters(text) + 1;
    else
        for (size_t at = 0; (at = text_find(text, at, what)) != SIZE_MAX; at += what->count)
            n++;
    *out = value_int(n);
    return true;
}

static bool partition(struct heap *h, const struct value *text, const struct value *what,
                      struct value *out)
{
    struct value *parts = heap_alloc(h, 3, sizeof *parts);
    if (!parts || !want_text(h, what))
        return false;
    if (!what->count)
        return heap_fail(h, FAILURE_VALUE, "splits at an empty text");
    size_t at = text_find(text, 0, what);
    bool found = at != SIZE_MAX;
    parts[0] = text_part(text, 0, found ? at : text->count);
    parts[1] = found ? text_part(text, at, at + what->count) : value_text("", 0, ORIGIN_TEMPLATE);
    parts[2] = found ? text_part(text, at + what->count, text->count) : parts[1];
    *out = value_list(VALUE_TUPLE, parts, 3);
    return true;
}

/* Python's isalnum(), isalpha(), isdigit(), isspace(), isupper() and islower(). */
static bool all_are(struct heap *h, const struct value *text, uint16_t id, struct value *out)
{
    bool all = text->count > 0, cased = false;
    if (!heap_spend(h, 1 + text->count / 8))
        return false;
    for (size_t at = 0; at < text->count && all;) {
        uint32_t c = utf8_next(text->text, text->count, &at);
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
        bool upper = k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LT,
             lower = k == UTF8PROC_CATEGORY_LL,
             letter = k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO,
             number = k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
        cased = cased || upper || lower;
        all = id == TEXT_ISALPHA   ? letter
              : id == TEXT_ISALNUM ? letter || number
              : id == TEXT_ISDIGIT
                  ? k == UTF8PROC_CATEGORY_ND || c == 0xb2 || c == 0xb3 || c == 0xb9
              : id == TEXT_ISSPACE ? space_is(c)
              : id == TEXT_ISUPPER ? !lower && k != UTF8PROC_CATEGORY_LT
                                   : !upper;
    }
    *out = value_bool(all && (cased || (id != TEXT_ISUPPER && id != TEXT_ISLOWER)));
    return true;
}

static bool text_method(struct heap *h, uint16_t id, const struct value *t, const struct value a[3],
                        struct value *out)
{
    int64_t most = -1;
    switch (id) {
    case TEXT_STRIP:
    case TEXT_LSTRIP:
    case TEXT_RSTRIP:
        return text_strip(h, t, &a[0], id != TEXT_RSTRIP, id != TEXT_LSTRIP, out);
    case TEXT_SPLIT:
    case TEXT_RSPLIT:
        if (a[1].kind != VALUE_ABSENT && !want_whole(h, &a[1], &most))
            return false;
        return text_split(h, t, &a[0], most, id == TEXT_RSPLIT, out);
    case TEXT_STARTSWITH:
    case TEXT_ENDSWITH:
        return starts_or_ends(h, t, &a[0], id == TEXT_ENDSWITH, out);
    case TEXT_REPLACE:
        if ((a[2].kind != VALUE_ABSENT && !want_whole(h, &a[2], &most)) || !want_text(h, &a[0]) ||
            !want_text(h, &a[1]))
            return false;
        return text_replace(h, t, &a[0], &a[1], most, out);
    case TEXT_UPPER:
        return text_case(h, t, CASE_UPPER, out);
    case TEXT_LOWER:
        return text_case(h, t, CASE_LOWER, out);
    case TEXT_TITLE:
        return text_case(h, t, CASE_TITLE, out);
    case TEXT_CAPITALIZE:
        return text_case(h, t, CASE_CAPITALIZE, out);
    case TEXT_JOIN:
        return join(h, t, &a[0], out);
    case TEXT_FIND:
    case TEXT_RFIND:
    case TEXT_INDEX:
        return find(h, t, &a[0], id == TEXT_RFIND, id == TEXT_INDEX, out);
    case TEXT_COUNT:
        return count_text(h, t, &a[0], out);
    case TEXT_PARTITION:
        return partition(h, t, &a[0], out);
    case TEXT_SPLITLINES:
        return text_lines(h, t, out);
    case TEXT_REMOVEPREFIX:
    case TEXT_REMOVESUFFIX:
        if (!want_text(h, &a[0]))
            return false;
        *out = *t;
        if (touches(t, &a[0], id == TEXT_REMOVESUFFIX))
            *out = id == TEXT_REMOVEPREFIX ? text_part(t, a[0].count, t->count)
                                           : text_part(t, 0, t->count - a[0].count);
        return true;
    default:
        return all_are(h, t, id, out);
    }
}

static bool dict_view(struct heap *h, const struct value *d, enum view_kind which,
                      struct value *out)
{
    struct value *items = heap_alloc(h, d->count, sizeof *items);
    struct value *pairs =
        which == VIEW_ITEMS ? heap_alloc(h, (size_t)d->count * 2, sizeof *pairs) : NULL;
    if (!items || (which == VIEW_ITEMS && !pairs) || !heap_spend(h, d->count / 4))
        return false;
    for (uint32_t i = 0; i < d->count; i++) {
        const struct entry *e = &d->entries[i];
        if (which != VIEW_ITEMS)
            items[i] = which == VIEW_KEYS ? e->key : e->value;
        else {
            pairs[2 * i] = e->key;
            pairs[2 * i + 1] = e->value;
            items[i] = value_list(VALUE_TUPLE, pairs + 2 * i, 2);
            items[i].origin = d->origin;
        }
    }
    *out = value_list(VALUE_VIEW, items, d->count);
    out->flag = (uint8_t)which;
    out->origin = d->origin;
    return true;
}

static bool dict_method(struct heap *h, uint16_t id, const struct value *d, const struct value a[3],
                        struct value *out)
{
    const struct value *v;
    switch (id) {
    case DICT_GET:
        if (a[0].kind == VALUE_LIST || a[0].kind == VALUE_DICT)
            return heap_fail(h, FAILURE_TYPE, "'%s' cannot be a key", value_type(&a[0]));
        v = value_find(h, d, &a[0]);
        *out = v ? *v : a[1].kind != VALUE_ABSENT ? a[1] : value_none();
        return !h->failure;
    case DICT_ITEMS:
        return dict_view(h, d, VIEW_ITEMS, out);
    case DICT_KEYS:
        return dict_view(h, d, VIEW_KEYS, out);
    case DICT_VALUES:
        return dict_view(h, d, VIEW_VALUES, out);
    case DICT_COPY:
        *out = *d;
        return true;
    default:
        return heap_fail(h, FAILURE_UNSUPPORTED, "fromkeys() is not supported");
    }
}

static bool list_method(struct heap *h, uint16_t id, const struct value *l, const struct value a[3],
                        struct value *out)
{
    int64_t n = 0;
    bool is;
    if (id == LIST_COPY) {
        *out = *l;
        return true;
    }
    for (uint32_t i = 0; i < l->count; i++) {
        if (!value_equal(h, &l->items[i], &a[0], &is))
            return false;
        if (is && id == LIST_INDEX) {
            *out = value_int(i);
            return true;
        }
        n += is;
    }
    if (id == LIST_INDEX)
        return heap_fail(h, FAILURE_VALUE, "index() of a value that is not there");
    *out = value_int(n);
    return true;
}

static bool loop_method(struct heap *h, uint16_t id, struct loop *l, const struct arguments *a,
                        struct value *out)
{
    bool is;
    if (id == LOOP_CYCLE) {
        *out = a->items[l->index % a->count];
        return true;
    }
    if (!value_equal(h, &l->changed, &a->items[0], &is))
        return false;
    *out = value_bool(l->changed.kind == VALUE_ABSENT || !is);
    l->changed = a->items[0];
    return true;
}

bool object_call(struct heap *h, const struct method *method, const struct arguments *a,
                 struct value *out)
{
    const struct method_entry *m = &methods[method->id % COUNT(methods)];
    struct value given[3] = {
        {.kind = VALUE_ABSENT}, {.kind = VALUE_ABSENT}, {.kind = VALUE_ABSENT}};
    if (a->named_count || a->count < m->least || a->count > m->most)
        return heap_fail(h, FAILURE_TYPE, "%s() was given %" PRIu32 " arguments", m->name,
                         a->count + a->named_count);
    for (uint32_t i = 0; i < a->count && i < 3; i++)
        given[i] = a->items[i];
    switch (m->kind) {
    case VALUE_TEXT:
        return text_method(h, m->id, &method->self, given, out);
    case VALUE_DICT:
        return dict_method(h, m->id, &method->self, given, out);
    case VALUE_LOOP:
        return loop_method(h, m->id, method->self.loop, a, out);
    default:
        return list_method(h, m->id, &method->self, given, out);
    }
}

/* --------------------------------------------------------------------------------------- functions
 */

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
