/* SPDX-License-Identifier: Apache-2.0 */
#include "family.h"

#include <stdio.h>
#include <string.h>

extern const struct family family_llama, family_mistral, family_mixtral, family_qwen2, family_qwen3, family_qwen2_moe,
    family_qwen3_moe, family_gemma2, family_gemma3, family_granite, family_olmo2, family_olmo3, family_phi3,
    family_smollm3, family_gpt_oss;

static const struct family *const families[] = {
    &family_llama,
    &family_mistral,
    &family_mixtral,
    &family_qwen2,
    &family_qwen3,
    &family_qwen2_moe,
    &family_qwen3_moe,
    &family_gemma2,
    &family_gemma3,
    &family_granite,
    &family_olmo2,
    &family_olmo3,
    &family_phi3,
    &family_smollm3,
    &family_gpt_oss,
};

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
