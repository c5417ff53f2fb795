/* SPDX-License-Identifier: Apache-2.0 */
/* A file that appears at its place when it is complete, or not at all. */
#ifndef CONVERT_PULL_PLACED_H
#define CONVERT_PULL_PLACED_H

#include "error.h"
#include "types.h"

struct placed {
    const char *path; /* of the target; the caller's */
    char *temporary; /* the name that it has before its own */
    bool named;      /* the file is there; else it has no name yet */
    bool replace;
    int fd;
};

/* Opens a file beside `path`, in which `expected` bytes are reserved. An existing target is STELE_USAGE unless
 * `replace`. */
enum stele_status placed_open(struct placed *out, const char *path, bool replace, uint64_t expected,
                              struct stele_error *err);

/* Writes bytes at `at`. Any number of threads. */
enum stele_status placed_write(const struct placed *placed, const void *bytes, uint64_t length, uint64_t at,
                               struct stele_error *err);

/* Syncs the file and gives it its name. */
enum stele_status placed_finish(struct placed *placed, struct stele_error *err);

/* Removes what is not finished. All zero, or finished, is allowed. */
void placed_close(struct placed *placed);

#endif
