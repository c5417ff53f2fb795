/* SPDX-License-Identifier: Apache-2.0 */
/* Strings and numbers that a template spells. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "template_code.h"
#include "utf8.h"

enum { TEXT_MAX = 1 << 20 };

static int hex_digits(const char *s, size_t room, int n, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < n; i++) {
        if ((size_t)i >= room)
            return 0;
        char d = s[i] | 0x20;
        if (!((d >= '0' && d <= '9' && s[i] == d) || (d >= 'a' && d <= 'f')))
            return 0;
        *out = *out << 4 | (uint32_t)(d <= '9' ? d - '0' : d - 'a' + 10);
    }
    return n;
}

/* One escape at s[0] = '\\' into `out`; returns how many bytes of s it took, *put those of out. */
static size_t escape(struct compiler *c, const char *s, size_t room, char *out, size_t *put)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    char e = room > 1 ? s[1] : 0;
    const char *simple = e ? strchr(from, e) : NULL;
    uint32_t value = 0;
    size_t taken = 2;
    *put = 0;
    if (e == '\n')
        return 2;
    if (simple) {
        out[(*put)++] = to[simple - from];
        return 2;
    }
    if (e == 'x' || e == 'u' || e == 'U') {
        int digits = e == 'x' ? 2 : e == 'u' ? 4 : 8;
        if (!hex_digits(s + 2, room - 2, digits, &value) || value > 0x10ffff ||
            (value >= 0xd800 && value < 0xe000))
            compile_fail(c, "the escape \\%c in a string lacks digits or is no character", e);
        taken += (size_t)digits;
    } else if (e >= '0' && e <= '7') {
        for (taken = 1; taken < 4 && taken < room && s[taken] >= '0' && s[taken] <= '7'; taken++)
            value = value << 3 | (uint32_t)(s[taken] - '0');
    } else if (e == 'N') {
        compile_fail(c, "the escape \\N in a string is not supported");
        return 2;
    } else if ((unsigned char)e >=
               0x80) { /* Python sees \xe9 where \ stands before e with accent */
        size_t at = 1;
        value = utf8_next(s, room, &at);
        *put = (size_t)snprintf(out, 16,
                                value < 0x100     ? "\\x%02" PRIx32
                                : value < 0x10000 ? "\\u%04" PRIx32
                                                  : "\\U%08" PRIx32,
                                value);
        return at;
    } else { /* an unknown one keeps its backslash */
        out[(*put)++] = '\\';
        return 1;
    }
    *put = utf8_put(out, value);
    return taken;
}

/* Strings that stand side by side, joined. */
void string_literal(struct compiler *c)
{
    size_t room = 1, n = 0;
    for (const struct token *t = c->at; t->kind == TOKEN_STRING; t++)
        room += t->length * 4;
    char *text = malloc(room + 16);
    if (!text) {
        compile_fail(c, "no memory for a string of %zu bytes", room);
        return;
    }
    for (; c->at->kind == TOKEN_STRING; c->at++) {
        const char *s = c->at->text + 1;
        size_t length = c->at->length - 2;
        for (size_t i = 0; i < length && !c->status;) {
            size_t put = 1;
            if (s[i] == '\\')
                i += escape(c, s + i, length - i, text + n, &put);
            else
                text[n] = s[i++];
            n += put;
        }
        if (c->status)
            break;
    }
    struct template_constant k = {.kind = CONSTANT_TEXT, .string = string_of(c, text, n)};
    emit(c, OP_CONSTANT, 0, constant_of(c, k));
    free(text);
}

void number_literal(struct compiler *c)
{
    char digits[400];
    size_t n = 0;
    struct template_constant k = {.kind = CONSTANT_INT};
    for (size_t i = 0; i < c->at->length; i++)
        if (c->at->text[i] != '_' && n < sizeof digits - 1)
            digits[n++] = c->at->text[i];
    digits[n] = '\0';
    if (n == sizeof digits - 1) {
        compile_fail(c, "a number of more than %zu digits", n);
        return;
    }
    int base = n > 1 && *digits == '0' ? digits[1] | 0x20 : 0;
    base = base == 'x' ? 16 : base == 'o' ? 8 : base == 'b' ? 2 : 10;
    if (c->at->kind == TOKEN_FLOAT) {
        double value = strtod(digits, NULL);
        k.kind = CONSTANT_FLOAT;
        memcpy(&k.bits, &value, 8);
    } else {
        char *end;
        errno = 0;
        long long value = strtoll(base == 10 ? digits : digits + 2, &end, base);
        k.bits = (uint64_t)value;
        if (errno && base != 10)
            compile_fail(c, "the number %s is not supported", digits);
        else if (errno)
            k = (struct template_constant){.kind = CONSTANT_BIG, .string = string_of(c, digits, n)};
    }
    c->at++;
    emit(c, OP_CONSTANT, 0, constant_of(c, k));
}
