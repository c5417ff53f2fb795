/* SPDX-License-Identifier: Apache-2.0 */
/* Growing buffers of bytes and of ids. All zero is an empty one; a failed call leaves it as it was.
 */
#ifndef RUNTIME_BUFFER_H
#define RUNTIME_BUFFER_H

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "types.h"

struct text_buffer {
    char *data;
    size_t length, capacity;
};

struct id_buffer {
    uint32_t *ids;
    size_t count, capacity;
};

/* Room for `more` bytes behind what is there. */
static inline enum stele_status text_reserve(struct text_buffer *b, size_t more,
                                             struct stele_error *err)
{
    if (more <= b->capacity - b->length)
        return STELE_OK;
    size_t capacity = b->capacity + b->capacity / 2 + 64;
    if (capacity - b->length < more)
        capacity = more < SIZE_MAX / 2 ? b->length + more : SIZE_MAX;
    char *data = realloc(b->data, capacity);
    if (!data)
        return stele_fail(err, STELE_SYSTEM, "no memory for %zu bytes of text", capacity);
    b->data = data;
    b->capacity = capacity;
    return STELE_OK;
}

static inline enum stele_status text_append(struct text_buffer *b, const char *bytes, size_t length,
                                            struct stele_error *err)
{
    if (!length)
        return STELE_OK;
    enum stele_status status = text_reserve(b, length, err);
    if (status)
        return status;
    memcpy(b->data + b->length, bytes, length);
    b->length += length;
    return STELE_OK;
}

static inline enum stele_status id_append(struct id_buffer *b, uint32_t id, struct stele_error *err)
{
    if (b->count == b->capacity) {
        size_t capacity = b->capacity + b->capacity / 2 + 16;
        uint32_t *ids = realloc(b->ids, capacity * sizeof *ids);
        if (!ids)
            return stele_fail(err, STELE_SYSTEM, "no memory for %zu ids", capacity);
        b->ids = ids;
        b->capacity = capacity;
    }
    b->ids[b->count++] = id;
    return STELE_OK;
}

#endif
