/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint compiled into an image: the one call behind `stele convert`. */
#ifndef CONVERT_CONVERT_H
#define CONVERT_CONVERT_H

#include "error.h"
#include "pack.h"
#include "types.h"

struct convert_options {
    const char *source;              /* directory in Hugging Face layout */
    const char *target;              /* the image */
    int weights;                     /* enum tensor_type; -1: the source's type */
    bool replace;                    /* an existing target */
    size_t threads;
    bool no_template;                /* leave the chat template out */
    const char *const *ignored_keys; /* of config.json; NULL behind the last */
    pack_progress *progress;
    void *context;
};

/* STELE_OK: the image lies complete at the target. Else nothing there has changed. */
enum stele_status convert_checkpoint(const struct convert_options *options, struct stele_error *err);

#endif
