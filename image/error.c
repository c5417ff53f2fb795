/* SPDX-License-Identifier: Apache-2.0 */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Copies `from` with its control bytes escaped, so that a stranger's name can neither end the sentence nor steer a
 * terminal. Bytes from 0x80 on are UTF-8 as a rule and stay. */
static void copy_escaped(char *to, size_t size, const char *from)
{
    size_t n = 0;
    for (; *from; from++) {
        unsigned char c = (unsigned char)*from;
        if (n + 8 > size) {
            memcpy(to + n, "...", 3);
            n += 3;
            break;
        }
        if (c < 0x20 || c == 0x7f)
            n += (size_t)snprintf(to + n, size - n, "\\x%02x", c);
        else
            to[n++] = (char)c;
    }
    to[n] = '\0';
}

enum stele_status stele_fail(struct stele_error *err, enum stele_status status, const char *format, ...)
{
    if (!err)
        return status;
    int saved = errno;
    char raw[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(raw, sizeof raw, format, args);
    va_end(args);
    err->status = status;
    copy_escaped(err->text, sizeof err->text, raw);
    errno = saved;
    return status;
}
