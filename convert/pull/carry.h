/* SPDX-License-Identifier: Apache-2.0 */
/* A finished image, plain or packed, fetched into a file: frames are unpacked and written while others arrive. */
#ifndef CONVERT_PULL_CARRY_H
#define CONVERT_PULL_CARRY_H

#include "journal.h"
#include "packed.h"
#include "intake.h"

struct carry {
    struct remote *remote;
    struct packed_index index; /* of a plain image: its chunks */
    bool packed;
};

/* Looks at the file's begin, and a packed one's end. STELE_INPUT: it is no image. carry_close frees what is owned. */
enum stele_status carry_open(struct carry *out, struct http *http, struct remote *remote, struct stele_error *err);
void carry_close(struct carry *carry);

/* Fetches it into the file `fd` of that path, from journal->at on, keeps the journal in the file's first two pages,
 * which are written last, and checks every byte against the image's digests. */
enum stele_status carry_image(const struct carry *carry, const struct stream_options *options, int fd, const char *path,
                              struct journal *journal, struct stream_stats *stats, struct stele_error *err);

#endif
