/* SPDX-License-Identifier: Apache-2.0 */
/* A model from elsewhere straight into an image: the call behind `stele pull`. */
#ifndef CONVERT_PULL_PULL_H
#define CONVERT_PULL_PULL_H

#include "error.h"
#include "intake.h"
#include "types.h"

struct pull_options {
    const char *reference;
    const char *target;              /* NULL: the store, which is asked first unless `replace` */
    int weights;                     /* enum tensor_type; -1: the source's type */
    bool replace;                    /* an existing target */
    bool no_template;                /* leave the chat template out */
    const char *const *ignored_keys; /* of config.json; NULL behind the last */
    size_t threads;
    uint64_t memory, chunk;
    unsigned connections, timeout_s;
    void (*progress)(void *context, uint64_t done, uint64_t total, unsigned active);
    /* Everything is laid, every digest matched; the image is then synced and takes its place. */
    void (*whole)(void *context);
    void *context;
    int channel; /* of who computes from what arrives (arrival.h); -1: nobody */
};

struct pull_result {
    char *path;  /* of the image; malloc'ed */
    bool reused; /* the store had it */
    struct stream_stats stream;
    uint64_t retries; /* requests that were tried again */
};

/* STELE_OK: the image lies complete at result->path. Else nothing at the target has changed, and what was fetched is
 * kept where the same call goes on with it, unless it was damaged. */
enum stele_status pull(const struct pull_options *options, struct pull_result *result, struct stele_error *err);

#endif
