/* SPDX-License-Identifier: Apache-2.0 */
/* What a checkpoint compiles to before its weights are packed: `stele convert` writes an image of it, `stele sizes` only
 * its outline. */
#ifndef CONVERT_COMPILE_H
#define CONVERT_COMPILE_H

#include <jansson.h>

#include "config.h"
#include "emit.h"
#include "families/family.h"
#include "safetensors.h"

/* Everything starts as zero, so that closing is always safe. */
struct compiled {
    json_t *root; /* config.json */
    const struct family *family;
    struct config config;
    struct checkpoint checkpoint;
    struct emitter emitter;
    void *plan, *tensors;
    size_t plan_length, tensors_length;
    json_t *tokenizer_config; /* NULL: there is none */
    uint8_t *vocabulary;      /* NULL: no tokenizer */
    size_t vocabulary_length;
    uint8_t *templates; /* NULL: no chat template, or it is not wanted */
    size_t templates_length;
};

/* Weights of this size and more begin at a multiple of 2 MiB, so that huge pages can map them; for smaller ones the
 * padding would cost more than it gains. */
static inline uint64_t weights_align(uint64_t bytes)
{
    return bytes >= 64 << 20 ? IMAGE_CHUNK : IMAGE_PAGE;
}

/* DIRECTORY/NAME, malloc'ed, or NULL where there is no such file (or no memory). */
char *compile_file(const char *directory, const char *name);

/* Reads the config, and chooses the family. */
enum stele_status compile_config(struct compiled *c, const char *path, const char *const *ignored_keys,
                                 struct stele_error *err);

/* Config and tensors into a plan, which is the one that the runtime will check. The emitter has its source, the type of
 * weights and err; `target` is what sentences call the image. */
enum stele_status compile_plan(struct compiled *c, const char *target, struct stele_error *err);

/* The tokenizer and the chat templates of a directory. */
enum stele_status compile_text(struct compiled *c, const char *directory, bool no_template, struct stele_error *err);

void compile_close(struct compiled *c);

#endif
