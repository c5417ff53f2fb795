/* SPDX-License-Identifier: Apache-2.0 */
#include "packed.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t HEAD_MAGIC = 0x184d2a50, TABLE_MAGIC = 0x184d2a5e, FOOT_MAGIC = 0x8f92eab1;
static const char NAME[8] = "STELEzst";
enum { VERSION = 1, LEVEL = 1, ENTRY = 8 };

static void put32(uint8_t *to, uint32_t value)
{
    memcpy(to, &value, 4);
}

static uint32_t get32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, 4);
    return value;
}

size_t packed_room(void)
{
    return ZSTD_compressBound(IMAGE_CHUNK + 1);
}

size_t packed_scratch(void)
{
    return IMAGE_CHUNK + 1;
}

/* ---- planes ---- */

static void split2(uint8_t *restrict out, const uint8_t *restrict in, size_t numbers)
{
    for (size_t i = 0; i < numbers; i++) {
        out[i] = in[2 * i];
        out[numbers + i] = in[2 * i + 1];
    }
}

static void join2(uint8_t *restrict out, const uint8_t *restrict in, size_t numbers)
{
    for (size_t i = 0; i < numbers; i++) {
        out[2 * i] = in[i];
        out[2 * i + 1] = in[numbers + i];
    }
}

static void split4(uint8_t *restrict out, const uint8_t *restrict in, size_t numbers)
{
    for (size_t plane = 0; plane < 4; plane++)
        for (size_t i = 0; i < numbers; i++)
            out[plane * numbers + i] = in[4 * i + plane];
}

static void join4(uint8_t *restrict out, const uint8_t *restrict in, size_t numbers)
{
    for (size_t i = 0; i < numbers; i++)
        for (size_t plane = 0; plane < 4; plane++)
            out[4 * i + plane] = in[plane * numbers + i];
}

size_t packed_encode(ZSTD_CCtx *context, uint8_t *out, const uint8_t *chunk, size_t n, unsigned width, uint8_t *scratch)
{
    size_t even = n / width * width;
    scratch[0] = (uint8_t)width;
    if (width == 2)
        split2(scratch + 1, chunk, n / 2);
    else if (width == 4)
        split4(scratch + 1, chunk, n / 4);
    else
        even = 0;
    memcpy(scratch + 1 + even, chunk + even, n - even);
    size_t length = ZSTD_compressCCtx(context, out, packed_room(), scratch, n + 1, LEVEL);
    return ZSTD_isError(length) ? 0 : length;
}

bool packed_decode(ZSTD_DCtx *context, uint8_t *chunk, size_t n, const uint8_t *frame, size_t length, uint8_t *scratch)
{
    if (n > IMAGE_CHUNK || ZSTD_decompressDCtx(context, scratch, n + 1, frame, length) != n + 1)
        return false;
    unsigned width = scratch[0];
    if (width != 1 && width != 2 && width != 4)
        return false;
    size_t even = width == 1 ? 0 : n / width * width;
    if (width == 2)
        join2(chunk, scratch + 1, n / 2);
    else if (width == 4)
        join4(chunk, scratch + 1, n / 4);
    memcpy(chunk + even, scratch + 1 + even, n - even);
    return true;
}

/* ---- head and table ---- */

void packed_write_head(uint8_t out[PACKED_HEAD], uint64_t image_bytes)
{
    memset(out, 0, PACKED_HEAD);
    put32(out, HEAD_MAGIC);
    put32(out + 4, PACKED_HEAD - 8);
    memcpy(out + 8, NAME, sizeof NAME);
    put32(out + 16, VERSION);
    memcpy(out + 24, &image_bytes, 8);
}

uint8_t *packed_write_table(const struct packed_frame *frames, size_t count, size_t *length)
{
    *length = 8 + count * ENTRY + PACKED_FOOT;
    uint8_t *out = malloc(*length), *to = out;
    if (!out)
        return NULL;
    put32(to, TABLE_MAGIC);
    put32(to + 4, (uint32_t)(*length - 8));
    to += 8;
    for (size_t i = 0; i < count; i++, to += ENTRY) {
        put32(to, frames[i].length);
        put32(to + 4, frames[i].bytes + 1);
    }
    put32(to, (uint32_t)count);
    to[4] = 0;
    put32(to + 5, FOOT_MAGIC);
    return out;
}

uint64_t packed_table_length(const uint8_t foot[PACKED_FOOT])
{
    return get32(foot + 5) == FOOT_MAGIC && !foot[4] ? 8 + (uint64_t)get32(foot) * ENTRY + PACKED_FOOT : 0;
}

enum stele_status packed_read(struct packed_index *out, const uint8_t head[PACKED_HEAD], const uint8_t *table,
                              uint64_t table_length, uint64_t file_bytes, const char *name, struct stele_error *err)
{
    *out = (struct packed_index){0};
    if (get32(head) != HEAD_MAGIC || get32(head + 4) != PACKED_HEAD - 8 || memcmp(head + 8, NAME, sizeof NAME) ||
        get32(head + 20))
        return stele_fail(err, STELE_INPUT, "%s: no packed image; `stele pack` makes one", name);
    if (get32(head + 16) != VERSION)
        return stele_fail(err, STELE_INPUT, "%s: a packed image of version %" PRIu32 ", and this stele knows %d", name,
                          get32(head + 16), VERSION);
    memcpy(&out->image_bytes, head + 24, 8);
    if (table_length < 8 + PACKED_FOOT || packed_table_length(table + table_length - PACKED_FOOT) != table_length ||
        get32(table) != TABLE_MAGIC || get32(table + 4) != table_length - 8)
        return stele_fail(err, STELE_DAMAGED, "%s: it does not end in its seek table; cut short?", name);
    size_t count = (size_t)((table_length - 8 - PACKED_FOOT) / ENTRY);
    out->frames = malloc((count + 1) * sizeof *out->frames);
    if (!out->frames)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for its %zu frames", name, count);
    uint64_t at = PACKED_HEAD, bytes = 0;
    bool good = true;
    for (; out->count < count && good; out->count++) {
        const uint8_t *entry = table + 8 + out->count * ENTRY;
        struct packed_frame *f = &out->frames[out->count];
        *f = (struct packed_frame){.at = at, .length = get32(entry), .bytes = get32(entry + 4) - 1};
        good = f->length && f->length <= packed_room() && f->bytes && f->bytes <= IMAGE_CHUNK &&
               (f->bytes == IMAGE_CHUNK || out->count + 1 == count);
        at += f->length;
        bytes += f->bytes;
    }
    if (good && at + table_length == file_bytes && bytes == out->image_bytes)
        return STELE_OK;
    free(out->frames);
    *out = (struct packed_index){0};
    return stele_fail(err, STELE_DAMAGED, "%s: its seek table does not describe it; cut short or damaged", name);
}
