/* SPDX-License-Identifier: Apache-2.0 */
/* A model family: reads a config and emits a plan. One file each in this folder, one line each in families.c. */
#ifndef CONVERT_FAMILY_H
#define CONVERT_FAMILY_H

#include "config.h"
#include "emit.h"

struct family {
    const char *architecture; /* as config.json's `architectures` spells it */

    /* Reads what it knows of the config, emits slots, tensors and ops, sets emitter->vocabulary and context. Errors go to
     * config->status and emitter->status. */
    void (*emit)(struct config *config, struct emitter *emitter);

    /* Keys that change nothing in this family, NULL behind the last; or no table. What changes nothing in any family
     * stands in config.c. */
    const char *const *neutral;
};

/* The family of that architecture, or NULL. */
const struct family *family_find(const char *architecture);

/* Marks the family's neutral keys as known and lets it emit. */
void family_emit(const struct family *family, struct config *config, struct emitter *emitter);

/* The names of all, ", " between them, for sentences. */
void family_names(char *text, size_t size);

/* rope.c: the inverse frequencies of `pairs` pairs that the config's RoPE fields describe, as transformers computes them
 * in binary32. A type or a field that is not known is refused. Returns the index of the rope. */
uint32_t emit_rope_of(struct config *config, struct emitter *emitter, struct config_rope rope, uint32_t pairs);
uint32_t emit_config_rope(struct config *config, struct emitter *emitter, double theta_absent, uint32_t pairs);

#endif
