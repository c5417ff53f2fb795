/* SPDX-License-Identifier: Apache-2.0 */
#include "family.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* transformers: 1 / theta ** (arange(0, n, 2).float() / n), each step in binary32. The power is taken in binary64 and
 * rounded once, which is what a good binary32 power gives. */
static void default_frequencies(float *out, double theta, uint32_t pairs)
{
    for (uint32_t i = 0; i < pairs; i++) {
        float exponent = (float)(2 * i) / (float)(2 * pairs);
        out[i] = 1.0f / (float)pow(theta, (double)exponent);
    }
}

/* Fields of the rope object that the type reads; any other that says something is refused. */
static void check_fields(struct config *c, const struct config_rope *rope, const char *const *fields)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)rope->value, key, value) {
        bool known = json_is_null(value);
        for (size_t i = 0; fields[i] && !known; i++)
            known = !strcmp(fields[i], key);
        if (!known)
            config_refuse(c, key, "this field of the RoPE parameters is not supported");
    }
}

uint32_t emit_config_rope(struct config *c, struct emitter *e, double theta_absent, uint32_t pairs)
{
    static const char *const plain[] = {"rope_type", "type", "rope_theta", NULL};
    struct config_rope rope = config_rope(c, theta_absent);
    if (strcmp(rope.type, "default"))
        config_refuse(c, json_object_get(c->root, "rope_parameters") ? "rope_parameters" : "rope_scaling",
                      "this type of RoPE scaling is not supported");
    if (!(rope.theta > 0 && rope.theta < 1e12))
        config_refuse(c, "rope_theta", "it must be positive");
    if (rope.value)
        check_fields(c, &rope, plain);
    float *frequencies = calloc(pairs, sizeof *frequencies);
    if (!frequencies || c->status != STELE_OK) {
        if (!frequencies && e->status == STELE_OK)
            e->status = stele_fail(e->err, STELE_SYSTEM, "no memory for RoPE");
        free(frequencies);
        return 0;
    }
    default_frequencies(frequencies, rope.theta, pairs);
    uint32_t index = emit_rope(e, frequencies, pairs, 1.0f);
    free(frequencies);
    return index;
}
