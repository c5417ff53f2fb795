/* SPDX-License-Identifier: Apache-2.0 */
/* A packed image: zstd in frames that stand alone, so that packing, unpacking and fetching run side by side.
 *
 *     skippable frame 0x184D2A50   24 bytes: "STELEzst", version (u32), 0 (u32), bytes of the image (u64)
 *     zstd frames                  one for each 2 MiB of the image: its first byte is a width w of 1, 2 or 4; then come
 *                                  the bytes 0, w, 2w, ... of the piece, then 1, w + 1, ..., and so on; what is left
 *                                  over at the end stands as it is
 *     skippable frame 0x184D2A5E   the seek table of zstd's seekable format, without checksums
 *
 * Numbers are little-endian. Floats are split so because their high bytes are much alike and their low ones are not.
 * The image's own digests say whether what came out is what went in. */
#ifndef CONVERT_PULL_PACKED_H
#define CONVERT_PULL_PACKED_H

#include <zstd.h>

#include "error.h"
#include "format.h"
#include "types.h"

enum { PACKED_HEAD = 32, PACKED_FOOT = 9 };

struct packed_frame {
    uint64_t at;     /* in the packed file */
    uint32_t length; /* packed */
    uint32_t bytes;  /* of the image: a chunk, the last one fewer */
};

struct packed_index {
    uint64_t image_bytes;
    struct packed_frame *frames;
    size_t count;
};

/* Room that a packed chunk may need, and that a piece on its way needs. */
size_t packed_room(void);
size_t packed_scratch(void);

/* Packs a chunk of n bytes; the length of what lies at `out`, 0 where zstd failed. */
size_t packed_encode(ZSTD_CCtx *context, uint8_t *out, const uint8_t *chunk, size_t n, unsigned width,
                     uint8_t *scratch);

/* Unpacks into exactly n bytes; false where the frame is damaged. */
bool packed_decode(ZSTD_DCtx *context, uint8_t *chunk, size_t n, const uint8_t *frame, size_t length, uint8_t *scratch);

void packed_write_head(uint8_t out[PACKED_HEAD], uint64_t image_bytes);

/* The seek table as malloc'ed bytes; NULL: no memory. */
uint8_t *packed_write_table(const struct packed_frame *frames, size_t count, size_t *length);

/* How long the seek table is that ends a file with these last PACKED_FOOT bytes; 0: there is none. */
uint64_t packed_table_length(const uint8_t foot[PACKED_FOOT]);

/* Reads head and table of a packed file of `file_bytes`. STELE_INPUT, naming the file: they are malformed. */
enum stele_status packed_read(struct packed_index *out, const uint8_t head[PACKED_HEAD], const uint8_t *table,
                              uint64_t table_length, uint64_t file_bytes, const char *name, struct stele_error *err);

#endif
