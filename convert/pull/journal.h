/* SPDX-License-Identifier: Apache-2.0 */
/* How far a begun image is: a record in the first two pages of the file being written, which header and section table
 * take when the image is complete. Records go to the two pages in turn, so that one is always whole. */
#ifndef CONVERT_PULL_JOURNAL_H
#define CONVERT_PULL_JOURNAL_H

#define OPENSSL_SUPPRESS_DEPRECATED /* SHA256_CTX is the only form of a running digest that can be kept */
#include <openssl/sha.h>

#include "format.h"
#include "types.h"

struct journal {
    char magic[8];
    uint64_t turn;              /* the greater one counts */
    struct image_digest source; /* of all that decides the image's bytes: files, plan, options, converter */
    char boot[40];              /* of the kernel: what was written before a loss of power may be lost */
    uint64_t synced;            /* position that is safe on the disk */
    uint64_t at;                /* position in the stream before which all is packed and written */
    SHA256_CTX sha_synced, sha; /* over the bytes of the file that lies there, as far as they are before it */
    uint64_t check;             /* XXH3-64 of all before */
};

/* A record that begins. */
void journal_begin(struct journal *journal, const struct image_digest *source);

/* The record of the file, if there is one of this source; positions of another boot are those that are safe. False:
 * there is none, and *other says whether there is one of another source. */
bool journal_read(struct journal *out, int fd, const struct image_digest *source, bool *other);

/* Writes the record; `sync` waits until everything before is on the disk. False: errno says why not. */
bool journal_write(struct journal *journal, int fd, bool sync);

#endif
