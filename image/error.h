/* SPDX-License-Identifier: Apache-2.0 */
/* Status and error of every call that can fail, in all rooms; part of the public surface (stele.h).
 *
 * A function that can fail returns an `enum stele_status` and fills the caller's `struct stele_error` with one sentence:
 * what was wrong, where, and what to do if that is known. An error is made once, where the facts are known, and handed
 * up unchanged. Bytes of a stranger (names, text) are escaped in the sentence. */
#ifndef STELE_ERROR_H
#define STELE_ERROR_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Part of the public surface: what else the library has is hidden. */
#define STELE_API __attribute__((visibility("default")))

/* The values are the exit codes of the command (DESIGN.md, law 7). */
enum stele_status {
    STELE_OK = 0,
    STELE_SYSTEM = 1,      /* I/O, disk full, no memory, permission */
    STELE_USAGE = 2,       /* the call is wrong: option, range, prompt longer than the context */
    STELE_INPUT = 3,       /* malformed or not supported input, named */
    STELE_DAMAGED = 4,     /* checksum, identity or digest differ; changed or truncated while mapped */
    STELE_FULL = 5,        /* the context is full; what was generated so far is kept */
    STELE_UNREACHABLE = 6, /* a remote source cannot be reached or refuses */
};

struct stele_error {
    enum stele_status status;
    char text[1024]; /* one sentence, no newline, NUL-terminated; cut with "..." where it would not fit */
};

/* Fills *err (which may be NULL) and returns `status`. Control bytes that arguments bring in are escaped as \xNN.
 * errno is left as it was. */
STELE_API enum stele_status stele_fail(struct stele_error *err, enum stele_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif

#endif
