/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of some remote files, one behind the other, as a stream that passes through a window of fixed size.
 *
 *        0            tail             ready              next                 total
 *        |  given back  |  there, needed  |  on its way     |  not asked for yet   |
 *                       |<------- at most the window's size ------->|
 *
 * A thread of its own asks for pieces in order, several at once, as soon as they fit behind `tail` (window_release),
 * and lays what arrives at its place (struct source_window); `ready` is the end of what is there without a hole. A file
 * whose server has no ranges is one piece, stopped and taken up as there is room.
 *
 * Early pieces are the exception to the order: tensors that are needed while others before them in the file are read.
 * They come when the stream reaches `before`, into memory of their own, and are laid into the window in their turn;
 * nothing is fetched twice. */
#ifndef CONVERT_PULL_WINDOW_H
#define CONVERT_PULL_WINDOW_H

#include "http.h"
#include "safetensors.h"

struct early {
    uint64_t before; /* position where it begins to be needed */
    uint64_t at, length;
    uint8_t *bytes; /* window.c's */
};

struct window_options {
    struct remote *files;
    size_t file_count;
    struct early *early; /* ascending */
    size_t early_count;
    uint64_t from;   /* position to begin at */
    uint64_t memory; /* bytes in flight at most */
    uint64_t chunk;  /* bytes of a request */
    unsigned connections;
};

struct window_stats {
    uint64_t fetched; /* bytes */
    double full_s;    /* time that the window was full, or everything was there, so that packing decided */
    double dry_s;     /* time that the packer waited, so that the link did */
};

struct window;

/* The size that the ring would have with these options; STELE_USAGE where `memory` is too small for `span` bytes at a
 * time beside the early pieces. */
enum stele_status window_size(const struct window_options *options, uint64_t span, uint64_t *size,
                              struct stele_error *err);

/* Begins to fetch. `http` is the window's own until window_close. */
enum stele_status window_open(struct window **out, struct http *http, const struct window_options *options,
                              uint64_t size, struct stele_error *err);
void window_close(struct window *window);

const struct source_window *window_bytes(const struct window *window);

/* Waits until more than the bytes before `have` are there; *ready is then their end. */
enum stele_status window_wait(struct window *window, uint64_t have, uint64_t *ready, struct stele_error *err);

/* Waits for an early piece: its bytes, which stay until the stream was released beyond it. */
enum stele_status window_early(struct window *window, size_t index, const uint8_t **bytes, struct stele_error *err);

/* Bytes before `tail` are no longer needed. */
void window_release(struct window *window, uint64_t tail);

struct window_stats window_stats(struct window *window);

/* How many requests are on their way. */
unsigned window_active(struct window *window);

#endif
