/* SPDX-License-Identifier: Apache-2.0 */
/* Stop texts: sought across tokens; what might be the beginning of one is held back until it is known not to be. */
#ifndef RUNTIME_STOP_H
#define RUNTIME_STOP_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

struct stop_search {
    const char *const *stops;
    size_t count;
    char *held; /* text that was not handed on yet */
    size_t bytes, room;
};

/* Appends text. */
enum stele_status stop_push(struct stop_search *s, const char *text, size_t bytes, struct stele_error *err);

/* How many bytes of `held` can be handed on; *found: a stop text follows them. `end`: no more text comes, so nothing needs
 * to be held back. Call stop_drop() with the result before the next push. */
size_t stop_ready(const struct stop_search *s, bool end, bool *found);
void stop_drop(struct stop_search *s, size_t bytes);

void stop_close(struct stop_search *s);

#endif
