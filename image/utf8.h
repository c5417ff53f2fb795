/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8, a character at a time. Text is checked once where it comes in (utf8_valid); after that
 * utf8_next trusts it to the extent that it never reads beyond the end. */
#ifndef IMAGE_UTF8_H
#define IMAGE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Bytes of the character that begins with `lead`; 1 for a byte that begins none. */
static inline size_t utf8_length(unsigned char lead)
{
    return lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* The character at text[*at] (at < length), *at moved behind it. */
static inline uint32_t utf8_next(const char *text, size_t length, size_t *at)
{
    const unsigned char *p = (const unsigned char *)text + *at;
    size_t n = utf8_length(*p);
    if (n == 1 || n > length - *at) {
        *at += 1;
        return *p;
    }
    *at += n;
    if (n == 2)
        return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    if (n == 3)
        return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

/* Where the character before `at` (at > 0) begins. */
static inline size_t utf8_before(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

/* Writes a character, and returns how many bytes that took. */
static inline size_t utf8_put(char out[4], uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* The whole character at the start of `p`, or the longest part of one, as Unicode's "maximal
 * subpart" has it: returns its bytes, and *whole says which. `n` is at least 1. A part that reaches
 * the end of the bytes may yet be completed. */
static inline size_t utf8_part(const unsigned char *p, size_t n, bool *whole)
{
    *whole = p[0] < 0x80;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return 1;
    size_t length = utf8_length(p[0]);
    unsigned char low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < length; i++) {
        if (i == n || p[i] < low || p[i] > high)
            return i;
        low = 0x80;
        high = 0xbf;
    }
    *whole = true;
    return length;
}

/* Bytes of `text` before the first one that is not UTF-8; `length` where all are. */
static inline size_t utf8_valid(const char *text, size_t length)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t at = 0;
    while (at < length) {
        uint64_t eight;
        if (length - at >= 8 && (memcpy(&eight, p + at, 8), !(eight & 0x8080808080808080u))) {
            at += 8;
            continue;
        }
        bool whole;
        size_t n = utf8_part(p + at, length - at, &whole);
        if (!whole)
            return at;
        at += n;
    }
    return at;
}

#endif
