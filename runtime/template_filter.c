/* SPDX-License-Identifier: Apache-2.0 */
/* Filters and tests of templates, as Jinja has them with autoescape off; tojson as transformers has
 * it. What Jinja does lazily is done at once, but a generator can still be gone over only once. */
#include <inttypes.h>
#include <stdlib.h>

#include "space.h"
#include "template.h"
#include "template_object.h"

static bool given(const struct value *v)
{
    return v->kind != VALUE_ABSENT;
}

static bool flag(const struct value *v)
{
    return given(v) && value_truth(v);
}

static bool usable(struct heap *h, const struct value *v)
{
    return v->kind != VALUE_UNDEFINED || v->flag != WHY_UNSAFE || heap_fail_undefined(h, v);
}

/* ------------------------------------------------------------------------------------------- texts
 */

/* str() of an argument that stands for a text. */
static bool as_text(struct heap *h, const struct value *v, const char *otherwise, struct value *out)
{
    if (!given(v)) {
        *out = value_text(otherwise, strlen(otherwise), ORIGIN_TEMPLATE);
        return true;
    }
    return usable(h, v) && value_str(h, v, out);
}

static bool join_filter(struct heap *h, const struct value *v, const struct value *a,
                        struct value *out)
{
    const struct value *items;
    struct value glue, item;
    uint32_t count;
    if (!as_text(h, &a[0], "", &glue) || !value_iterate(h, v, &items, &count) ||
        !heap_spend(h, count / 4))
        return false;
    size_t start = h->out_length;
    for (uint32_t i = 0; i < count; i++) {
        item = items[i];
        if (given(&a[1]) && !object_item(h, &items[i], &a[1], &item))
            return false;
        if ((i && !out_text(h, &glue)) || !usable(h, &item) || !out_str(h, &item))
            return false;
    }
    return out_take(h, start, out);
}

static bool spaces(struct heap *h, const struct value *width, int64_t otherwise, struct value *out)
{
    size_t start = h->out_length;
    int64_t n = otherwise;
    if (width->kind == VALUE_TEXT) {
        *out = *width;
        return true;
    }
    if (given(width) && !value_is_whole(width, &n))
        return heap_fail(h, FAILURE_TYPE, "indents by a value of type '%s'", value_type(width));
    for (int64_t i = 0; i < n; i++)
        if (!heap_spend(h, 1) || !out_bytes(h, " ", 1, ORIGIN_TEMPLATE))
            return false;
    return out_take(h, start, out);
}

static bool indent_filter(struct heap *h, const struct value *v, const struct value *a,
                          struct value *out)
{
    struct value by, text, lines;
    if (v->kind != VALUE_TEXT)
        return v->kind == VALUE_UNDEFINED
                   ? heap_fail_undefined(h, v)
                   : heap_fail(h, v->kind == VALUE_LIST ? FAILURE_VALUE : FAILURE_TYPE,
                               "indents a value of type '%s'", value_type(v));
    if (!spaces(h, &a[0], 4, &by))
        return false;
    size_t start = h->out_length;
    if (!out_text(h, v) || !out_bytes(h, "\n", 1, ORIGIN_TEMPLATE) || !out_take(h, start, &text) ||
        !text_lines(h, &text, &lines))
        return false;
    for (uint32_t i = 0; i < lines.count; i++) {
        const struct value *line = &lines.items[i];
        bool indented = i ? line->count || flag(&a[2]) : flag(&a[1]);
        if ((i && !out_bytes(h, "\n", 1, ORIGIN_TEMPLATE)) || (indented && !out_text(h, &by)) ||
            !out_text(h, line))
            return false;
    }
    if (!out_take(h, start, out))
        return false;
    out->flag = v->flag;
    return true;
}

static bool replace_filter(struct heap *h, const struct value *v, const struct value *a,
                           struct value *out)
{
    struct value text, old, new;
    int64_t most = -1;
    if (given(&a[2]) && a[2].kind != VALUE_NONE && !value_is_whole(&a[2], &most))
        return heap_fail(h, FAILURE_TYPE, "replaces '%s' times", value_type(&a[2]));
    if (!as_text(h, v, "", &text) || !as_text(h, &a[0], "", &old) || !as_text(h, &a[1], "", &new) ||
        !text_replace(h, &text, &old, &new, most, out))
        return false;
    out->flag = 0;
    return true;
}

static bool json_filter(struct heap *h, const struct value *v, const struct value *a,
                        struct value *out)
{
    struct json_style s = {.ensure_ascii = flag(&a[0]), .sort_keys = flag(&a[3])};
    size_t start = h->out_length;
    s.indented = given(&a[1]) && a[1].kind != VALUE_NONE;
    s.comma = value_text(s.indented ? "," : ", ", s.indented ? 1 : 2, ORIGIN_TEMPLATE);
    s.colon = value_text(": ", 2, ORIGIN_TEMPLATE);
    if (given(&a[2]) && a[2].kind != VALUE_NONE) {
        if (!value_is_sequence(&a[2]) || a[2].count != 2 || a[2].items[0].kind != VALUE_TEXT ||
            a[2].items[1].kind != VALUE_TEXT)
            return heap_fail(h, FAILURE_TYPE, "separators of JSON that are no two texts");
        s.comma = a[2].items[0];
        s.colon = a[2].items[1];
    }
    if (s.indented && !spaces(h, &a[1], 0, &s.indent))
        return false;
    return out_json(h, v, &s) && out_take(h, start, out);
}

/* ----------------------------------------------------------------------------------------- numbers
 */

/* Python's int() of a text; false where it is none, no failure. */
static bool parse_int(struct heap *h, const struct value *v, int64_t base, struct value *out)
{
    size_t from = space_skip(v->text, v->count, 0), to = space_trim(v->text, from, v->count), n = 0;
    char *digits = heap_alloc(h, to - from + 1, 1);
    bool sign = from < to && (v->text[from] == '-' || v->text[from] == '+');
    if (!digits)
        return false;
    if (sign && v->text[from] == '-')
        digits[n++] = '-';
    from += sign;
    if (base == 16 && to - from > 2 && v->text[from] == '0' && (v->text[from + 1] | 0x20) == 'x')
        from += 2;
    size_t first = from;
    for (; from < to; from++) {
        char c = v->text[from];
        if (c == '_' && from > first && from + 1 < to && v->text[from - 1] != '_')
            continue;
        if (!(c >= '0' && c <= '9') && !(base == 16 && (c | 0x20) >= 'a' && (c | 0x20) <= 'f'))
            return false;
        digits[n++] = c;
    }
    if (from == first)
        return false;
    digits[n] = '\0';
    if (base == 10) {
        size_t zeros =
            *digits == '-'; /* value_digits keeps long ones as they are: no zeros in front */
        while (zeros + 1 < n && digits[zeros] == '0')
            memmove(digits + zeros, digits + zeros + 1, n-- - zeros - 1);
        *out = value_digits(digits, n);
    } else
        *out = value_int(strtoll(digits, NULL, (int)base));
    return true;
}

static bool parse_float(struct heap *h, const struct value *v, double *out)
{
    size_t from = space_skip(v->text, v->count, 0), to = space_trim(v->text, from, v->count);
    char *text = heap_alloc(h, to - from + 1, 1), *end;
    if (!text || from == to || memchr(v->text + from, 'x', to - from))
        return false;
    memcpy(text, v->text + from, to - from);
    text[to - from] = '\0';
    *out = strtod(text, &end);
    return (size_t)(end - text) == to - from;
}

static bool int_filter(struct heap *h, const struct value *v, const struct value *a,
                       struct value *out)
{
    int64_t base = 10, whole;
    double real;
    bool is_real = v->kind == VALUE_FLOAT;
    if (v->kind == VALUE_UNDEFINED)
        return heap_fail_undefined(h, v);
    if (given(&a[1]) && (!value_is_whole(&a[1], &base) || (base != 10 && base != 16)))
        return heap_fail(h, FAILURE_UNSUPPORTED, "the filter 'int' with that base");
    *out = given(&a[0]) ? a[0] : value_int(0);
    if (value_is_whole(v, &whole))
        *out = value_int(whole);
    else if (v->kind == VALUE_BIG)
        *out = *v;
    else if (v->kind == VALUE_TEXT && !parse_int(h, v, base, out))
        is_real = parse_float(h, v, &real);
    if (is_real) {
        real = v->kind == VALUE_FLOAT ? v->real : real;
        if (real > -9e18 && real < 9e18)
            *out = value_int((int64_t)real);
        else if (real == real && real > -1e300 && real < 1e300)
            return heap_fail(h, FAILURE_UNSUPPORTED, "the filter 'int' of so large a float");
    }
    out->origin = v->origin;
    return !h->failure;
}

static bool float_filter(struct heap *h, const struct value *v, const struct value *a,
                         struct value *out)
{
    struct value one = value_float(1);
    double real;
    *out = given(&a[0]) ? a[0] : value_float(0);
    if (value_is_number(v))
        return value_binary(h, OPERATOR_MUL, v, &one, out);
    if (v->kind == VALUE_TEXT && parse_float(h, v, &real))
        *out = value_float(real);
    return !h->failure && (v->kind != VALUE_UNDEFINED || heap_fail_undefined(h, v));
}

static bool abs_filter(struct heap *h, const struct value *v, struct value *out)
{
    struct value zero = value_int(0);
    if (!value_is_number(v))
        return heap_fail(h, FAILURE_TYPE, "the filter 'abs' of a value of type '%s'",
                         value_type(v));
    return value_negate(h, v, value_compare_numbers(v, &zero) == -1, out);
}

/* ------------------------------------------------------------------------------------- collections
 */

static bool first_or_last(struct heap *h, const struct value *v, bool last, struct value *out)
{
    const struct value *items;
    uint32_t count;
    if (last && v->kind == VALUE_GENERATOR)
        return heap_fail(h, FAILURE_TYPE, "the last item of a generator");
    if (!value_iterate(h, v, &items, &count))
        return false;
    *out = count ? items[last ? count - 1 : 0]
                 : value_undefined(WHY_EMPTY, last ? "last" : "first", last ? 4 : 5, NULL);
    return true;
}

static bool items_filter(struct heap *h, const struct value *v, struct value *out)
{
    struct arguments none = {0};
    struct value method, view;
    if (v->kind == VALUE_UNDEFINED)
        return usable(h, v) && value_generator(h, NULL, 0, out);
    if (v->kind != VALUE_DICT)
        return value_generator_broken(h, value_type(v), out);
    return object_field(h, v, "items", 5, &method) && method_call(h, method.method, &none, &view) &&
           value_generator(h, view.items, view.count, out);
}

/* "a.b.0" of a value, as Jinja's attribute arguments have it. */
static bool attribute_of(struct heap *h, const struct value *v, const struct value *attribute,
                         struct value *out)
{
    *out = *v;
    if (attribute->kind != VALUE_TEXT)
        return object_item(h, v, attribute, out);
    for (size_t from = 0; from <= attribute->count;) {
        const char *dot = memchr(attribute->text + from, '.', attribute->count - from);
        size_t to = dot ? (size_t)(dot - attribute->text) : attribute->count;
        struct value key = text_part(attribute, from, to), in = *out;
        bool digits = to > from && to - from < 10;
        int64_t index = 0;
        for (size_t i = from; i < to && digits; i++) {
            digits = attribute->text[i] >= '0' && attribute->text[i] <= '9';
            index = index * 10 + (attribute->text[i] - '0');
        }
        if (digits)
            key = value_int(index);
        if (!object_item(h, &in, &key, out))
            return false;
        from = to + 1;
    }
    return true;
}

/* What is compared in sorting: an attribute, and texts in lower case unless asked otherwise. */
static bool sort_keys(struct heap *h, const struct value *items, uint32_t count,
                      const struct value *attribute, bool case_sensitive, struct value **keys)
{
    if (!(*keys = heap_alloc(h, count, sizeof **keys)))
        return false;
    if (given(attribute) && attribute->kind == VALUE_TEXT && attribute->count &&
        memchr(attribute->text, ',', attribute->count))
        return heap_fail(h, FAILURE_UNSUPPORTED, "sorts by several attributes");
    for (uint32_t i = 0; i < count; i++) {
        struct value *key = *keys + i;
        *key = items[i];
        if (given(attribute) && attribute->kind != VALUE_NONE &&
            !attribute_of(h, &items[i], attribute, key))
            return false;
        if (key->kind == VALUE_TEXT && !case_sensitive && !text_case(h, key, CASE_LOWER, key))
            return false;
    }
    return true;
}

static bool ordered(struct heap *h, const struct value *items, uint32_t count,
                    const struct value *keys, bool reverse, struct value *out)
{
    uint32_t *order = value_order(h, keys, count, reverse);
    struct value *list = heap_alloc(h, count, sizeof *list);
    if (!order || !list)
        return false;
    for (uint32_t i = 0; i < count; i++)
        list[i] = items[order[i]];
    *out = value_list(VALUE_LIST, list, count);
    return true;
}

static bool sort_filter(struct heap *h, const struct value *v, const struct value *a,
                        struct value *out)
{
    const struct value *items;
    struct value *keys;
    uint32_t count;
    return value_iterate(h, v, &items, &count) &&
           sort_keys(h, items, count, &a[2], flag(&a[1]), &keys) &&
           ordered(h, items, count, keys, flag(&a[0]), out);
}

static bool dictsort_filter(struct heap *h, const struct value *v, const struct value *a,
                            struct value *out)
{
    struct value pairs, *keys, which = value_int(0);
    if (v->kind == VALUE_UNDEFINED)
        return heap_fail_undefined(h, v);
    if (v->kind != VALUE_DICT)
        return heap_fail(h, FAILURE_VALUE, "the filter 'dictsort' of a value of type '%s'",
                         value_type(v));
    if (given(&a[1]) && value_is_text(&a[1], "value"))
        which = value_int(1);
    else if (given(&a[1]) && !value_is_text(&a[1], "key"))
        return heap_fail(h, FAILURE_VALUE, "the filter 'dictsort' goes by 'key' or 'value'");
    if (!items_filter(h, v, &pairs))
        return false;
    const struct generator *g = pairs.generator;
    return sort_keys(h, g->items, g->count, &which, flag(&a[0]), &keys) &&
           ordered(h, g->items, g->count, keys, flag(&a[2]), out);
}

static bool unique_filter(struct heap *h, const struct value *v, const struct value *a,
                          struct value *out)
{
    const struct value *items;
    struct value *keys, *list;
    uint32_t count, n = 0;
    if (!value_iterate(h, v, &items, &count) ||
        !sort_keys(h, items, count, &a[1], flag(&a[0]), &keys) ||
        !(list = heap_alloc(h, count, sizeof *list)))
        return false;
    for (uint32_t i = 0; i < count; i++) {
        bool known = false;
        for (uint32_t j = 0; j < n && !known; j++)
            if (!value_equal(h, &keys[j], &keys[i], &known))
                return false;
        if (!known) {
            keys[n] = keys[i];
            list[n++] = items[i];
        }
    }
    return value_generator(h, list, n, out);
}

static bool reverse_filter(struct heap *h, const struct value *v, struct value *out)
{
    struct value bounds[3] = {value_none(), value_none(), value_int(-1)};
    const struct value *items;
    struct value all;
    uint32_t count;
    if (v->kind == VALUE_TEXT)
        return object_slice(h, v, bounds, out);
    if (!value_iterate(h, v, &items, &count))
        return false;
    all = value_list(VALUE_LIST, items, count);
    return object_slice(h, &all, bounds, &all) && value_generator(h, all.items, all.count, out);
}

static bool list_filter(struct heap *h, const struct value *v, struct value *out)
{
    const struct value *items;
    uint32_t count;
    if (!value_iterate(h, v, &items, &count))
        return false;
    *out = value_list(VALUE_LIST, items, count);
    out->origin = v->origin;
    return true;
}

/* What map, select and their kin go over. *done: they are through, with *out; Jinja does not look
 * at what is false, and fails over what cannot be gone over only when it gets there. */
static bool lazily(struct heap *h, const struct value *v, const struct value **items,
                   uint32_t *count, struct value *out, bool *done)
{
    *done = true;
    if (!value_truth(v))
        return value_generator(h, NULL, 0, out);
    if (value_is_number(v) || v->kind == VALUE_NAMESPACE || v->kind == VALUE_MACRO ||
        v->kind == VALUE_FUNCTION || v->kind == VALUE_METHOD)
        return value_generator_broken(h, value_type(v), out);
    *done = false;
    return value_iterate(h, v, items, count);
}

static bool map_filter(struct heap *h, uint32_t inner, const struct value *v, const struct value *a,
                       uint32_t count, bool attribute, struct value *out)
{
    const struct value *items;
    uint32_t n;
    bool done;
    if (inner == FILTER_MAP || inner == FILTER_MAP_ATTRIBUTE ||
        (inner >= FILTER_REJECT && inner <= FILTER_REJECTATTR) || inner == FILTER_SELECT ||
        inner == FILTER_SELECTATTR)
        return heap_fail(h, FAILURE_PROGRAM, "maps filter %" PRIu32, inner);
    if (!lazily(h, v, &items, &n, out, &done) || done)
        return done && !h->failure;
    struct value *list = heap_alloc(h, n, sizeof *list);
    if (!list)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        if (!attribute) {
            if (!filter_apply(h, inner, 0, &items[i], a, count, &list[i]))
                return false;
            continue;
        }
        if (!attribute_of(h, &items[i], &a[0], &list[i]))
            return false;
        if (list[i].kind == VALUE_UNDEFINED && given(&a[1]))
            list[i] = a[1];
    }
    return value_generator(h, list, n, out);
}

static bool select_filter(struct heap *h, uint32_t id, uint32_t test, const struct value *v,
                          const struct value *a, uint32_t count, struct value *out)
{
    bool by_attribute = id == FILTER_SELECTATTR || id == FILTER_REJECTATTR;
    bool wanted = id == FILTER_SELECT || id == FILTER_SELECTATTR, is, done;
    const struct value *items;
    uint32_t n, kept = 0;
    if (!lazily(h, v, &items, &n, out, &done) || done)
        return done && !h->failure;
    struct value *list = heap_alloc(h, n, sizeof *list);
    if (!list || (by_attribute && !count))
        return heap_fail(h, FAILURE_PROGRAM, "selects by no attribute");
    for (uint32_t i = 0; i < n; i++) {
        struct value item = items[i];
        if (by_attribute && !attribute_of(h, &items[i], &a[0], &item))
            return false;
        if (!test_apply(h, test, &item, a + by_attribute, count - by_attribute, &is))
            return false;
        if (is == wanted)
            list[kept++] = items[i];
    }
    return value_generator(h, list, kept, out);
}

/* -------------------------------------------------------------------------------------- by number
 */

static bool text_filter(struct heap *h, uint32_t id, const struct value *v, const struct value *a,
                        struct value *out)
{
    struct value text;
    if (!as_text(h, v, "", &text))
        return false;
    switch (id) {
    case FILTER_CAPITALIZE:
        return text_case(h, &text, CASE_CAPITALIZE, out);
    case FILTER_LOWER:
        return text_case(h, &text, CASE_LOWER, out);
    case FILTER_TITLE:
        return text_case(h, &text, CASE_TITLE_FILTER, out);
    case FILTER_UPPER:
        return text_case(h, &text, CASE_UPPER, out);
    case FILTER_TRIM:
        return text_strip(h, &text, &a[0], true, true, out);
    case FILTER_ESCAPE:
        *out = text;
        return text.flag & TEXT_SAFE ? true : text_escape(h, &text, out);
    case FILTER_SAFE:
        *out = text;
        out->flag = TEXT_SAFE;
        return true;
    default: /* FILTER_STRING */
        *out = text;
        return true;
    }
}

bool filter_apply(struct heap *h, uint32_t id, uint32_t inner, const struct value *v,
                  const struct value *arguments, uint32_t count, struct value *out)
{
    struct value a[4] = {{.kind = VALUE_ABSENT},
                         {.kind = VALUE_ABSENT},
                         {.kind = VALUE_ABSENT},
                         {.kind = VALUE_ABSENT}};
    uint32_t length;
    if (!heap_spend(h, 1))
        return false;
    for (uint32_t i = 0; i < count && i < 4; i++)
        a[i] = arguments[i];
    switch (id) {
    case FILTER_ABS:
        return abs_filter(h, v, out);
    case FILTER_CAPITALIZE:
    case FILTER_ESCAPE:
    case FILTER_LOWER:
    case FILTER_SAFE:
    case FILTER_STRING:
    case FILTER_TITLE:
    case FILTER_TRIM:
    case FILTER_UPPER:
        return text_filter(h, id, v, a, out);
    case FILTER_DEFAULT:
        *out = *v;
        if (v->kind == VALUE_UNDEFINED || (flag(&a[1]) && !value_truth(v)))
            *out = given(&a[0]) ? a[0] : value_text("", 0, ORIGIN_TEMPLATE);
        return true;
    case FILTER_DICTSORT:
        return dictsort_filter(h, v, a, out);
    case FILTER_FIRST:
    case FILTER_LAST:
        return first_or_last(h, v, id == FILTER_LAST, out);
    case FILTER_FLOAT:
        return float_filter(h, v, a, out);
    case FILTER_INDENT:
        return indent_filter(h, v, a, out);
    case FILTER_INT:
        return int_filter(h, v, a, out);
    case FILTER_ITEMS:
        return items_filter(h, v, out);
    case FILTER_JOIN:
        return join_filter(h, v, a, out);
    case FILTER_LENGTH:
        if (!value_length(h, v, &length))
            return false;
        *out = value_int(length);
        return true;
    case FILTER_LIST:
        return list_filter(h, v, out);
    case FILTER_MAP:
    case FILTER_MAP_ATTRIBUTE:
        return map_filter(h, inner, v, id == FILTER_MAP ? arguments : a, count,
                          id == FILTER_MAP_ATTRIBUTE, out);
    case FILTER_REJECT:
    case FILTER_REJECTATTR:
    case FILTER_SELECT:
    case FILTER_SELECTATTR:
        return select_filter(h, id, inner, v, arguments, count, out);
    case FILTER_REPLACE:
        return replace_filter(h, v, a, out);
    case FILTER_REVERSE:
        return reverse_filter(h, v, out);
    case FILTER_SORT:
        return sort_filter(h, v, a, out);
    case FILTER_TOJSON:
        return json_filter(h, v, a, out);
    case FILTER_UNIQUE:
        return unique_filter(h, v, a, out);
    default:
        return heap_fail(h, FAILURE_PROGRAM, "there is no filter %" PRIu32, id);
    }
}

/* ------------------------------------------------------------------------------------------- tests
 */

static bool remainder_is(struct heap *h, const struct value *v, const struct value *by,
                         int64_t want, bool *out)
{
    struct value rest, wanted = value_int(want);
    if (!value_binary(h, OPERATOR_MOD, v, by, &rest))
        return false;
    return value_equal(h, &rest, &wanted, out);
}

static bool case_is(struct heap *h, const struct value *v, enum text_case which, bool *out)
{
    struct value text, other;
    bool cased;
    if (!as_text(h, v, "", &text) || !text_case(h, &text, which, &other) ||
        !value_equal(h, &text, &other, out) ||
        !text_case(h, &text, which == CASE_UPPER ? CASE_LOWER : CASE_UPPER, &other) ||
        !value_equal(h, &text, &other, &cased))
        return false;
    *out = *out && !cased; /* it has a letter that has two cases */
    return true;
}

static bool identical(const struct value *a, const struct value *b)
{
    if (a->kind != b->kind)
        return false;
    return a->kind == VALUE_NONE ||
           (a->kind == VALUE_BOOL ? a->truth == b->truth : a->whole == b->whole);
}

static bool iterable(const struct value *v)
{
    return v->kind == VALUE_UNDEFINED || v->kind == VALUE_TEXT || v->kind == VALUE_DICT ||
           v->kind == VALUE_RANGE || v->kind == VALUE_GENERATOR || v->kind == VALUE_LOOP ||
           value_is_sequence(v);
}

bool test_apply(struct heap *h, uint32_t id, const struct value *v, const struct value *arguments,
                uint32_t count, bool *out)
{
    struct value a = count ? arguments[0] : (struct value){.kind = VALUE_UNDEFINED},
                 two = value_int(2);
    if (!heap_spend(h, 1))
        return false;
    switch (id) {
    case TEST_TRUTH:
        *out = value_truth(v);
        return true;
    case TEST_BOOLEAN:
        *out = v->kind == VALUE_BOOL;
        return true;
    case TEST_CALLABLE:
        *out = v->kind == VALUE_MACRO || v->kind == VALUE_FUNCTION || v->kind == VALUE_METHOD ||
               v->kind == VALUE_UNDEFINED; /* Jinja's Undefined has __call__ */
        return true;
    case TEST_DEFINED:
        *out = v->kind != VALUE_UNDEFINED;
        return true;
    case TEST_UNDEFINED:
        *out = v->kind == VALUE_UNDEFINED;
        return true;
    case TEST_DIVISIBLEBY:
        return remainder_is(h, v, &a, 0, out);
    case TEST_EVEN:
        return remainder_is(h, v, &two, 0, out);
    case TEST_ODD:
        return remainder_is(h, v, &two, 1, out);
    case TEST_EQ:
        return value_equal(h, v, &a, out);
    case TEST_NE:
        if (!value_equal(h, v, &a, out))
            return false;
        *out = !*out;
        return true;
    case TEST_LT:
        return value_ordered(h, OPERATOR_LT, v, &a, out);
    case TEST_GT:
        return value_ordered(h, OPERATOR_GT, v, &a, out);
    case TEST_LE:
        return value_ordered(h, OPERATOR_LE, v, &a, out);
    case TEST_GE:
        return value_ordered(h, OPERATOR_GE, v, &a, out);
    case TEST_FALSE:
    case TEST_TRUE:
        *out = v->kind == VALUE_BOOL && v->truth == (id == TEST_TRUE);
        return true;
    case TEST_FLOAT:
        *out = v->kind == VALUE_FLOAT;
        return true;
    case TEST_INTEGER:
        *out = v->kind == VALUE_INT || v->kind == VALUE_BIG;
        return true;
    case TEST_NUMBER:
        *out = value_is_number(v);
        return true;
    case TEST_IN:
        return value_in(h, v, &a, out);
    case TEST_ITERABLE:
        *out = iterable(v);
        return true;
    case TEST_SEQUENCE:
        *out = v->kind == VALUE_UNDEFINED || v->kind == VALUE_TEXT || v->kind == VALUE_DICT ||
               v->kind == VALUE_LIST || v->kind == VALUE_TUPLE || v->kind == VALUE_RANGE;
        return true;
    case TEST_LOWER:
    case TEST_UPPER:
        return case_is(h, v, id == TEST_LOWER ? CASE_LOWER : CASE_UPPER, out);
    case TEST_MAPPING:
        *out = v->kind == VALUE_DICT;
        return true;
    case TEST_NONE:
        *out = v->kind == VALUE_NONE;
        return true;
    case TEST_SAMEAS:
        *out = identical(v, &a);
        return true;
    case TEST_STRING:
        *out = v->kind == VALUE_TEXT;
        return true;
    case TEST_ESCAPED:
        *out = v->kind == VALUE_TEXT && v->flag & TEXT_SAFE;
        return true;
    default:
        return heap_fail(h, FAILURE_PROGRAM, "there is no test %" PRIu32, id);
    }
}
