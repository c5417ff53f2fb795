/* SPDX-License-Identifier: Apache-2.0 */
/* What a model needs, counted before anything is converted or even downloaded.
 *
 *     sizes_outline    config.json or checkpoint -> an image in memory whose weights are a hole
 *     sizes_count      image, or outline -> numbers
 *
 * The outline goes through the converter's own families and is laid out as the converter lays out
 * the file, so the numbers are those of the image that `stele convert` would write; and a session
 * opened on it reserves what one on that image would. */
#ifndef CONVERT_SIZES_H
#define CONVERT_SIZES_H

#include "error.h"
#include "image.h"
#include "types.h"

struct sizes_source {
    const char *path; /* config.json, or a folder with one, whose weights and tokenizer may lack */
    int weights;      /* enum tensor_type; -1: the source's, which a config alone must name */
    const char *const *ignored_keys; /* of config.json; NULL behind the last; may be NULL */
    bool no_template;                /* as the converter's option */
};

/* *fd is a file in memory with the outline of an image, which is the caller's. What its sections do
 * not need for counting (weights, defaults, digests, provenance) is a hole. *text_known: whether
 * there is a tokenizer, and which, is known; it is not of a config alone. */
enum stele_status sizes_outline(int *fd, bool *text_known, const struct sizes_source *source,
                                struct stele_error *err);

/* Bytes of the file, of its parts, and those that the decoding of one token reads. */
struct sizes {
    uint64_t file;
    uint64_t embedding; /* 0 where the head's matrix is used */
    uint64_t layers;    /* without experts; the last norm too */
    uint64_t experts;
    uint64_t head;
    uint64_t tokenizer;
    uint64_t rest;             /* header, plan, defaults, digests, provenance, padding */
    uint64_t read;             /* of weights, for one token: of experts only those chosen */
    uint64_t position_numbers; /* keys and values of one position */
};
enum stele_status sizes_count(struct sizes *out, const struct image *image,
                              struct stele_error *err);

/* Numbers of keys and values that a token at the end of `positions` reads: a layer with a window,
 * that many at most. */
enum stele_status sizes_kv_read(uint64_t *numbers, uint64_t positions, const struct image *image,
                                struct stele_error *err);

#endif
