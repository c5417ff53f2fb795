/* SPDX-License-Identifier: Apache-2.0 */
#include "family.h"

#include <stdio.h>
#include <string.h>

/* One line each; a file of this folder defines family_NAME. */
#define FAMILIES(family) \
    family(llama) \
    family(mistral) \
    family(mixtral) \
    family(qwen2) \
    family(qwen3) \
    family(qwen2_moe) \
    family(qwen3_moe) \
    family(gemma2) \
    family(gemma3) \
    family(granite) \
    family(olmo2) \
    family(olmo3) \
    family(phi3) \
    family(smollm3) \
    family(exaone4) \
    family(gpt_oss)

#define DECLARED(name) extern const struct family family_##name;
#define LISTED(name) &family_##name,

FAMILIES(DECLARED)
static const struct family *const families[] = {FAMILIES(LISTED)};

const struct family *family_find(const char *architecture)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (!strcmp(families[i]->architecture, architecture))
            return families[i];
    return NULL;
}

void family_emit(const struct family *family, struct config *config, struct emitter *emitter)
{
    if (family->neutral)
        config_known(config, family->neutral);
    family->emit(config, emitter);
}

void family_names(char *text, size_t size)
{
    size_t at = 0;
    for (size_t i = 0; i < sizeof families / sizeof *families && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, "%s%s", i ? ", " : "", families[i]->architecture);
}
