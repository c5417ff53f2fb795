/* SPDX-License-Identifier: Apache-2.0 */
#include "stop.h"

#include <stdlib.h>
#include <string.h>

enum stele_status stop_push(struct stop_search *s, const char *text, size_t bytes, struct stele_error *err)
{
    if (bytes > s->room - s->bytes) {
        size_t room = 2 * s->room + bytes + 64;
        char *more = realloc(s->held, room);
        if (!more)
            return stele_fail(err, STELE_SYSTEM, "no memory for %zu bytes of text", room);
        s->held = more;
        s->room = room;
    }
    if (bytes)
        memcpy(s->held + s->bytes, text, bytes);
    s->bytes += bytes;
    return STELE_OK;
}

size_t stop_ready(const struct stop_search *s, bool end, bool *found)
{
    size_t ready = s->bytes;
    *found = false;
    for (size_t i = 0; i < s->count; i++) {
        size_t n = strlen(s->stops[i]);
        for (size_t at = 0; at < s->bytes && at <= ready; at++) {
            size_t rest = s->bytes - at, common = n < rest ? n : rest;
            if (memcmp(s->held + at, s->stops[i], common) || (common < n && end))
                continue;
            *found = common == n || (*found && at == ready);
            ready = at;
        }
    }
    return ready;
}

void stop_drop(struct stop_search *s, size_t bytes)
{
    if (bytes)
        memmove(s->held, s->held + bytes, s->bytes - bytes);
    s->bytes -= bytes;
}

void stop_close(struct stop_search *s)
{
    free(s->held);
    *s = (struct stop_search){0};
}
