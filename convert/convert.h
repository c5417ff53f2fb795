/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint compiled into an image: the one call behind `stele convert`. */
#ifndef CONVERT_CONVERT_H
#define CONVERT_CONVERT_H

#include "error.h"
#include "pack.h"
#include "types.h"

struct convert_options;

struct convert_section {
    enum section_kind kind;
    const void *bytes;
    uint64_t length;
};

/* What differs where the weights are not files of the source directory but arrive while they are compiled. Without `open`
 * they are, and only the provenance is another. */
struct convert_arrival {
    /* Opens the checkpoint, whose small files lie in the source directory. */
    enum stele_status (*open)(void *context, struct checkpoint *out, struct stele_error *err);
    /* Begins the image. The sections before the weights are given, in order, so that a begun image can be told from that of
     * another source or another plan. */
    enum stele_status (*begin)(void *context, struct image_writer **out, const struct convert_section *sections, size_t count,
                               uint64_t weights_bytes, struct stele_error *err);
    /* Writes the weights, a section that begins at a multiple of `align`. */
    enum stele_status (*weights)(void *context, struct emitter *emitter, struct image_writer *writer, uint64_t align,
                                 struct stele_error *err);
    /* The provenance as malloc'ed text. */
    enum stele_status (*provenance)(void *context, char **out, const struct convert_options *options,
                                    const struct checkpoint *checkpoint, struct stele_error *err);
    /* Everything is laid, every digest matched: what is left is to sync the image and to give it its name. NULL is allowed.
     */
    void (*whole)(void *context);
    void *context;
};

struct convert_options {
    const char *verb;                /* for lines on stderr: "convert" */
    const char *source;              /* directory in Hugging Face layout */
    const char *target;              /* the image */
    int weights;                     /* enum tensor_type; -1: the source's type */
    bool replace;                    /* an existing target */
    size_t threads;
    bool no_template;                /* leave the chat template out */
    const char *const *ignored_keys; /* of config.json; NULL behind the last */
    pack_progress *progress;
    void *context;
    const struct convert_arrival *arrival; /* NULL: the weights lie in the source directory */
};

/* STELE_OK: the image lies complete at the target. Else nothing there has changed. */
enum stele_status convert_checkpoint(const struct convert_options *options, struct stele_error *err);

#endif
