/* SPDX-License-Identifier: Apache-2.0 */
/* White space as Python's str.isspace() has it: what chat templates strip. */
#ifndef IMAGE_SPACE_H
#define IMAGE_SPACE_H

#include "utf8.h"

static inline bool space_is(uint32_t c)
{
    if (c < 0x80)
        return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Where the white space that begins at `at` ends. */
static inline size_t space_skip(const char *text, size_t length, size_t at)
{
    while (at < length) {
        size_t next = at;
        if (!space_is(utf8_next(text, length, &next)))
            break;
        at = next;
    }
    return at;
}

/* Where the white space that ends at `end` begins. */
static inline size_t space_trim(const char *text, size_t from, size_t end)
{
    while (end > from) {
        size_t before = utf8_before(text, end), at = before;
        if (before < from || !space_is(utf8_next(text, end, &at)) || at != end)
            break;
        end = before;
    }
    return end;
}

#endif
