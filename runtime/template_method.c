/* SPDX-License-Identifier: Apache-2.0 */
/* Methods of values, as Python has them, as far as they change nothing. */
#include <inttypes.h>
#include <utf8proc.h>

#include "space.h"
#include "template_object.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

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

bool method_find(uint32_t *id, uint8_t kind, const char *name, size_t bytes)
{
    for (uint32_t i = 0; i < COUNT(methods); i++)
        if (methods[i].kind == kind && strlen(methods[i].name) == bytes && !memcmp(methods[i].name, name, bytes)) {
            *id = i;
            return true;
        }
    return false;
}

static bool want_text(struct heap *h, const struct value *v)
{
    if (v->kind == VALUE_UNDEFINED && v->flag == WHY_UNSAFE)
        return heap_fail_undefined(h, v);
    return v->kind == VALUE_TEXT ||
           heap_fail(h, FAILURE_TYPE, "a method of a text was given a '%s'", value_type(v));
}

bool want_whole(struct heap *h, const struct value *v, int64_t *out)
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

bool method_call(struct heap *h, const struct method *method, const struct arguments *a,
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
