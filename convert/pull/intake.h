/* SPDX-License-Identifier: Apache-2.0 */
/* Packs weights while they arrive: panels are laid as soon as their rows are there, in the order of the source's files,
 * and written where they belong; the files' digests are computed on the way. */
#ifndef CONVERT_PULL_INTAKE_H
#define CONVERT_PULL_INTAKE_H

#include "emit.h"
#include "journal.h"
#include "window.h"
#include "write.h"

struct stream_options {
    struct http *http;
    struct remote *files; /* of the checkpoint, in its order */
    size_t file_count;
    size_t threads;
    uint64_t memory, chunk;
    unsigned connections;
    /* Called now and then: bytes of the stream that are packed, all, requests on their way. */
    void (*progress)(void *context, uint64_t done, uint64_t total, unsigned active);
    void (*whole)(void *context); /* of a finished image: as in convert.h */
    void *context;
    int channel; /* of who computes from what arrives (arrival.h); -1: nobody */
};

struct stream_stats {
    struct window_stats window;
    uint64_t resumed; /* bytes that an earlier pull had packed */
    uint64_t total;
    double seconds;
};

/* Writes the weights as a section of `writer`, from journal->at on, and keeps the journal. A digest that differs is
 * STELE_DAMAGED naming the file. */
enum stele_status stream_weights(const struct stream_options *options, struct emitter *emitter,
                                 struct image_writer *writer, uint64_t align, struct journal *journal,
                                 struct stream_stats *stats, struct stele_error *err);

#endif
