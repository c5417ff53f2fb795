/* SPDX-License-Identifier: Apache-2.0 */
/* Python's numbers. Whole ones are computed in 128 bits, which is more than any template needs;
 * what does not fit is an error, never another number. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "template.h"
#include "value.h"

typedef __int128 wide;

enum { DIGITS_MAX = 37 }; /* of a number that is computed with */

bool value_is_number(const struct value *v)
{
    return v->kind == VALUE_BOOL || v->kind == VALUE_INT || v->kind == VALUE_BIG ||
           v->kind == VALUE_FLOAT;
}

bool value_is_whole(const struct value *v, int64_t *out)
{
    if (v->kind != VALUE_BOOL && v->kind != VALUE_INT)
        return false;
    *out = v->kind == VALUE_BOOL ? v->truth : v->whole;
    return true;
}

/* Of a number that is no float; false where it has too many digits. */
static bool to_wide(const struct value *v, wide *out)
{
    int64_t whole;
    *out = 0;
    if (value_is_whole(v, &whole)) {
        *out = whole;
        return true;
    }
    uint32_t sign = v->count && *v->text == '-';
    if (v->count - sign > DIGITS_MAX)
        return false;
    for (uint32_t i = sign; i < v->count; i++)
        *out = *out * 10 + (v->text[i] - '0');
    *out = sign ? -*out : *out;
    return true;
}

static double to_double(const struct value *v)
{
    char digits[400];
    int64_t whole;
    if (v->kind == VALUE_FLOAT)
        return v->real;
    if (value_is_whole(v, &whole))
        return (double)whole;
    size_t n = v->count < sizeof digits - 1 ? v->count : sizeof digits - 1;
    memcpy(digits, v->text, n);
    digits[n] = '\0';
    return strtod(digits, NULL);
}

struct value value_digits(const char *digits, size_t bytes)
{
    struct value v = value_text(digits, bytes, ORIGIN_TEMPLATE);
    wide w;
    v.kind = VALUE_BIG;
    if (to_wide(&v, &w) && w >= INT64_MIN && w <= INT64_MAX)
        return value_int((int64_t)w);
    return v;
}

static bool from_wide(struct heap *h, wide w, struct value *out)
{
    char digits[48], *text;
    size_t n = sizeof digits;
    if (w >= INT64_MIN && w <= INT64_MAX) {
        *out = value_int((int64_t)w);
        return true;
    }
    bool minus = w < 0;
    unsigned __int128 rest = minus ? -(unsigned __int128)w : (unsigned __int128)w;
    for (; rest; rest /= 10)
        digits[--n] = (char)('0' + (int)(rest % 10));
    if (minus)
        digits[--n] = '-';
    if (!(text = heap_alloc(h, sizeof digits - n, 1)))
        return false;
    memcpy(text, digits + n, sizeof digits - n);
    *out = value_text(text, sizeof digits - n, ORIGIN_TEMPLATE);
    out->kind = VALUE_BIG;
    return true;
}

/* A whole number and a float, exactly: -1, 0, 1; 2 for nan. */
static int compare_mixed(wide a, double b)
{
    const double far = 0x1p126;
    if (b != b)
        return 2;
    if (b >= far || b <= -far)
        return b > 0 ? -1 : 1;
    wide whole = (wide)b;
    if (a != whole)
        return a < whole ? -1 : 1;
    double rest = b - (double)whole;
    return rest > 0 ? -1 : rest < 0;
}

int value_compare_numbers(const struct value *a, const struct value *b)
{
    wide x, y;
    if (a->kind != VALUE_FLOAT && b->kind != VALUE_FLOAT) {
        if (to_wide(a, &x) && to_wide(b, &y))
            return x < y ? -1 : x > y;
        bool minus_a = a->kind == VALUE_BIG ? *a->text == '-' : to_double(a) < 0;
        bool minus_b = b->kind == VALUE_BIG ? *b->text == '-' : to_double(b) < 0;
        if (minus_a != minus_b)
            return minus_a ? -1 : 1;
        if (a->kind != b->kind) /* the one beyond 64 bits is the larger one */
            return (a->kind == VALUE_BIG) == !minus_a ? 1 : -1;
        int order = a->count != b->count ? (a->count < b->count ? -1 : 1)
                                         : memcmp(a->text, b->text, a->count);
        order = order < 0 ? -1 : order > 0;
        return minus_a ? -order : order;
    }
    if (a->kind != VALUE_FLOAT && to_wide(a, &x))
        return compare_mixed(x, b->real);
    if (b->kind != VALUE_FLOAT && to_wide(b, &y)) {
        int order = compare_mixed(y, a->real);
        return order == 2 ? 2 : -order;
    }
    double p = to_double(a), q = to_double(b);
    return p < q ? -1 : p > q ? 1 : p == q ? 0 : 2;
}

/* ------------------------------------------------------------------------------------- operators
 */

static wide floor_divide(wide a, wide b)
{
    wide q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

static bool power_whole(struct heap *h, wide a, wide b, struct value *out)
{
    wide result = 1;
    for (; b; b--)
        if (__builtin_mul_overflow(result, a, &result) || b > 4096)
            return heap_fail(h, FAILURE_UNSUPPORTED, "a number of more than 127 bits");
    return from_wide(h, result, out);
}

static bool binary_whole(struct heap *h, unsigned op, wide a, wide b, struct value *out)
{
    wide r = 0;
    bool over = false;
    switch (op) {
    case OPERATOR_ADD:
        over = __builtin_add_overflow(a, b, &r);
        break;
    case OPERATOR_SUB:
        over = __builtin_sub_overflow(a, b, &r);
        break;
    case OPERATOR_MUL:
        over = __builtin_mul_overflow(a, b, &r);
        break;
    case OPERATOR_POW:
        if (b >= 0 && b > 4096 && (a > 1 || a < -1))
            return heap_fail(h, FAILURE_UNSUPPORTED, "a number of more than 127 bits");
        if (b >= 0 && a >= -1 && a <= 1) {
            *out = value_int(b == 0 ? 1 : a == -1 ? (b % 2 ? -1 : 1) : (int64_t)a);
            return true;
        }
        if (b >= 0)
            return power_whole(h, a, b, out);
        if (!a)
            return heap_fail(h, FAILURE_VALUE, "0 to a negative power");
        *out = value_float(pow((double)a, (double)b));
        return true;
    default:
        if (!b)
            return heap_fail(h, FAILURE_VALUE, "division by zero");
        if (op == OPERATOR_DIV) {
            *out = value_float((double)a / (double)b);
            return true;
        }
        r = floor_divide(a, b);
        r = op == OPERATOR_MOD ? a - r * b : r;
    }
    if (over)
        return heap_fail(h, FAILURE_UNSUPPORTED, "a number of more than 127 bits");
    return from_wide(h, r, out);
}

/* The whole number that `quotient`, off by its rounding, stands for; a zero has the sign of `sign`. As Python has it. */
static double nearest_whole(double quotient, double sign)
{
    double whole = floor(quotient);
    if (quotient == 0)
        return copysign(0.0, sign);
    return quotient - whole > 0.5 ? whole + 1 : whole;
}

static bool binary_float(struct heap *h, unsigned op, double a, double b, struct value *out)
{
    double r, rest;
    switch (op) {
    case OPERATOR_ADD:
        r = a + b;
        break;
    case OPERATOR_SUB:
        r = a - b;
        break;
    case OPERATOR_MUL:
        r = a * b;
        break;
    case OPERATOR_POW:
        r = pow(a, b);
        break;
    default:
        if (b == 0)
            return heap_fail(h, FAILURE_VALUE, "float division by zero");
        r = a / b;
        if (op == OPERATOR_DIV)
            break;
        rest = fmod(a, b);
        if (rest != 0 && (rest < 0) != (b < 0))
            rest += b;
        r = op == OPERATOR_MOD ? (rest != 0 ? rest : copysign(0.0, b)) : nearest_whole((a - rest) / b, a / b);
    }
    *out = value_float(r);
    return true;
}

static bool add_texts(struct heap *h, const struct value *a, const struct value *b,
                      struct value *out)
{
    struct value left = *a, right = *b;
    size_t start = h->out_length;
    bool safe = (a->flag | b->flag) & TEXT_SAFE;
    if (safe && !(a->flag & TEXT_SAFE) && !text_escape(h, a, &left))
        return false;
    if (safe && !(b->flag & TEXT_SAFE) && !text_escape(h, b, &right))
        return false;
    if (!out_text(h, &left) || !out_text(h, &right) || !out_take(h, start, out))
        return false;
    out->flag = safe ? TEXT_SAFE : 0;
    return true;
}

static bool add_lists(struct heap *h, const struct value *a, const struct value *b,
                      struct value *out)
{
    struct value *items = heap_alloc(h, (size_t)a->count + b->count, sizeof *items);
    if (!items || !heap_spend(h, ((uint64_t)a->count + b->count) / 4))
        return false;
    if (a->count)
        memcpy(items, a->items, a->count * sizeof *items);
    if (b->count)
        memcpy(items + a->count, b->items, b->count * sizeof *items);
    *out = value_list(a->kind, items, (size_t)a->count + b->count);
    out->origin = a->origin | b->origin;
    return true;
}

/* A text or list, `times` times. */
static bool repeat(struct heap *h, const struct value *v, int64_t times, struct value *out)
{
    uint64_t total;
    struct value *items;
    size_t start = h->out_length;
    if (times < 0)
        times = 0;
    if (__builtin_mul_overflow((uint64_t)times, (uint64_t)v->count, &total) || total > UINT32_MAX)
        return heap_fail(h, FAILURE_LIMIT, "repeats a value too often");
    if (v->kind == VALUE_TEXT) {
        for (int64_t i = 0; i < times && v->count; i++)
            if (!heap_spend(h, 1) || !out_text(h, v))
                return false;
        return out_take(h, start, out);
    }
    if (!(items = heap_alloc(h, total, sizeof *items)) || !heap_spend(h, total / 4))
        return false;
    for (uint64_t i = 0; i < total; i++)
        items[i] = v->items[i % v->count];
    *out = value_list(v->kind, items, total);
    out->origin = v->origin;
    return true;
}

static bool repeatable(const struct value *v)
{
    return v->kind == VALUE_TEXT || v->kind == VALUE_LIST || v->kind == VALUE_TUPLE;
}

static bool binary_numbers(struct heap *h, unsigned op, const struct value *a,
                           const struct value *b, struct value *out)
{
    wide x, y;
    if (a->kind == VALUE_FLOAT || b->kind == VALUE_FLOAT)
        return binary_float(h, op, to_double(a), to_double(b), out);
    if (!to_wide(a, &x) || !to_wide(b, &y))
        return heap_fail(h, FAILURE_UNSUPPORTED, "computes with a number of more than %d digits",
                         DIGITS_MAX);
    return binary_whole(h, op, x, y, out);
}

bool value_binary(struct heap *h, unsigned op, const struct value *a, const struct value *b,
                  struct value *out)
{
    static const char *const signs[] = {
        [OPERATOR_ADD] = "+",  [OPERATOR_SUB] = "-", [OPERATOR_MUL] = "*",
        [OPERATOR_DIV] = "/",  [OPERATOR_MOD] = "%", [OPERATOR_FLOORDIV] = "//",
        [OPERATOR_POW] = "**",
    };
    int64_t times;
    if (a->kind == VALUE_TEXT && op == OPERATOR_MOD)
        return heap_fail(h, FAILURE_UNSUPPORTED, "formatting a text by '%%' is not supported");
    if (a->kind == VALUE_UNDEFINED || b->kind == VALUE_UNDEFINED)
        return heap_fail_undefined(h, a->kind == VALUE_UNDEFINED ? a : b);
    if (value_is_number(a) && value_is_number(b)) {
        if (!binary_numbers(h, op, a, b, out))
            return false;
        out->origin = a->origin | b->origin;
        return true;
    }
    if (op == OPERATOR_ADD && a->kind == VALUE_TEXT && b->kind == VALUE_TEXT)
        return add_texts(h, a, b, out);
    if (op == OPERATOR_ADD && (a->kind == VALUE_LIST || a->kind == VALUE_TUPLE) &&
        a->kind == b->kind)
        return add_lists(h, a, b, out);
    if (op == OPERATOR_MUL && repeatable(a) && value_is_whole(b, &times))
        return repeat(h, a, times, out);
    if (op == OPERATOR_MUL && repeatable(b) && value_is_whole(a, &times))
        return repeat(h, b, times, out);
    return heap_fail(h, FAILURE_TYPE, "'%s' between '%s' and '%s'", signs[op], value_type(a),
                     value_type(b));
}

bool value_negate(struct heap *h, const struct value *a, bool minus, struct value *out)
{
    wide w;
    if (a->kind == VALUE_UNDEFINED)
        return heap_fail_undefined(h, a);
    if (!value_is_number(a))
        return heap_fail(h, FAILURE_TYPE, "'%s' before a value of type '%s'", minus ? "-" : "+",
                         value_type(a));
    if (a->kind == VALUE_FLOAT)
        *out = value_float(minus ? -a->real : a->real);
    else if (!to_wide(a, &w))
        return heap_fail(h, FAILURE_UNSUPPORTED, "computes with a number of more than %d digits",
                         DIGITS_MAX);
    else if (!from_wide(h, minus ? -w : w, out))
        return false;
    out->origin = a->origin;
    return true;
}

/* ---------------------------------------------------------------------------------------- printing
 */

/* The shortest digits that read back; an exponent from 1e16 on and below 1e-4, else a point. */
size_t value_float_text(double real, char text[40])
{
    char digits[40], *e;
    if (real != real)
        return (size_t)snprintf(text, 40, "nan");
    if (real > 1.7976931348623157e308 || real < -1.7976931348623157e308)
        return (size_t)snprintf(text, 40, real > 0 ? "inf" : "-inf");
    for (int precision = 0; precision < 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, real);
        if (strtod(digits, NULL) == real)
            break;
    }
    char *mantissa = digits, *out = text;
    if (*mantissa == '-')
        *out++ = *mantissa++;
    e = strchr(mantissa, 'e');
    int exponent = atoi(e + 1);
    char figures[24];
    size_t n = 0;
    for (char *p = mantissa; p < e; p++)
        if (*p != '.')
            figures[n++] = *p;
    while (n > 1 && figures[n - 1] == '0')
        n--;
    if (exponent < -4 || exponent >= 16) {
        *out++ = figures[0];
        if (n > 1) {
            *out++ = '.';
            memcpy(out, figures + 1, n - 1);
            out += n - 1;
        }
        out += snprintf(out, 8, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
        return (size_t)(out - text);
    }
    if (exponent < 0) {
        *out++ = '0';
        *out++ = '.';
        for (int i = -1; i > exponent; i--)
            *out++ = '0';
    }
    for (int i = 0; i < (int)n || i <= exponent; i++) {
        *out++ = i < (int)n ? figures[i] : '0';
        if (i == exponent)
            *out++ = '.';
    }
    if (out[-1] == '.')
        *out++ = '0';
    return (size_t)(out - text);
}
