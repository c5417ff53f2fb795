/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "template.h"

/* Bytes of a record of each table. */
static const uint32_t record_bytes[TEMPLATE_TABLES] = {
    [TABLE_CODE] = sizeof(struct template_op),
    [TABLE_CONSTANTS] = sizeof(struct template_constant),
    [TABLE_NAMES] = 4,
    [TABLE_MACROS] = sizeof(struct template_macro),
    [TABLE_PARAMETERS] = 4,
    [TABLE_KEYWORDS] = 4,
    [TABLE_STRINGS] = sizeof(struct template_string),
    [TABLE_BYTES] = 1,
    [TABLE_WORDS] = 1,
};

enum stele_status template_open(struct template_program *out, const uint8_t *bytes, uint64_t length,
                                struct stele_error *err)
{
    struct template_header h;
    if (length < sizeof h)
        return stele_fail(err, STELE_INPUT,
                          "chat template: %" PRIu64 " bytes are fewer than its header", length);
    memcpy(&h, bytes, sizeof h);
    if (h.magic != TEMPLATE_MAGIC)
        return stele_fail(err, STELE_INPUT, "chat template: does not begin with its magic");
    if (h.version != TEMPLATE_VERSION)
        return stele_fail(err, STELE_INPUT,
                          "chat template: version %" PRIu32 ", this program knows %u", h.version,
                          TEMPLATE_VERSION);
    if (h.flags)
        return stele_fail(err, STELE_INPUT, "chat template: unknown flags 0x%" PRIx32, h.flags);
    if (h.length > length || h.length > TEMPLATE_BYTES_MAX)
        return stele_fail(err, STELE_INPUT,
                          "chat template: length %" PRIu32 " where there are %" PRIu64 " bytes",
                          h.length, length);
    for (int i = 0; i < TEMPLATE_TABLES; i++) {
        struct template_span s = h.tables[i];
        if (s.offset % 8 || s.offset > h.length ||
            s.count > (h.length - s.offset) / record_bytes[i])
            return stele_fail(err, STELE_INPUT,
                              "chat template: table %d of %" PRIu32 " records at %" PRIu32
                              " lies beyond its end at %" PRIu32,
                              i, s.count, s.offset, h.length);
    }
    *out = (struct template_program){.base = bytes, .header = h};
    return STELE_OK;
}
