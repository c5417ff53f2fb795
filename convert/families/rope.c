/* SPDX-License-Identifier: Apache-2.0 */
/* Inverse frequencies of RoPE, as transformers' modeling_rope_utils.py computes them: in binary32, step by step. */
#include "family.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PI 3.14159265358979323846

struct rope_reader {
    struct config *config;
    struct config_rope rope;
    const char *key; /* under which the fields stand, for sentences */
    uint32_t pairs;
    float *waves;       /* [pairs]: theta ** (2 i / n), in binary32 */
    float *frequencies; /* [pairs]: 1 / waves to begin with */
    float magnitude;
    float *long_frequencies; /* [pairs] */
    float long_magnitude;
    uint32_t long_above; /* positions; 0: one set only */
};

/* A positive number of the rope object; `absent` 0: it must be there. */
static double field(struct rope_reader *r, const char *name, double absent)
{
    const json_t *value = json_object_get(r->rope.value, name);
    if (json_is_real(value) && json_real_value(value) > 0)
        return json_real_value(value);
    if ((value && !json_is_null(value)) || absent == 0)
        config_refuse(r->config, r->key, name);
    return absent == 0 ? 1 : absent;
}

/* Positions of the stretched model. Classes have other defaults, so the key must be there where it counts. */
static double all_positions(struct rope_reader *r)
{
    return (double)config_need_count(r->config, "max_position_embeddings", UINT32_MAX);
}

/* Positions that the model was trained for before its RoPE was stretched. */
static double original_positions(struct rope_reader *r)
{
    const json_t *original = json_object_get(r->rope.value, "original_max_position_embeddings");
    return original && !json_is_null(original) ? field(r, "original_max_position_embeddings", 0) : all_positions(r);
}

static void rope_default(struct rope_reader *r)
{
    (void)r;
}

static void rope_linear(struct rope_reader *r)
{
    float factor = (float)field(r, "factor", 0);
    for (uint32_t i = 0; i < r->pairs; i++)
        r->frequencies[i] = r->frequencies[i] / factor;
}

/* Long waves are stretched, short ones kept, those between blended (Llama 3.1). */
static void rope_llama3(struct rope_reader *r)
{
    float factor = (float)field(r, "factor", 0), low = (float)field(r, "low_freq_factor", 0),
          high = (float)field(r, "high_freq_factor", 0), original = (float)field(r, "original_max_position_embeddings", 0);
    for (uint32_t i = 0; i < r->pairs; i++) {
        float f = r->frequencies[i], wave = (float)(2 * PI) / f;
        float smooth = (original / wave - low) / (high - low);
        if (wave > original / low)
            r->frequencies[i] = f / factor;
        else if (!(wave < original / high))
            r->frequencies[i] = (1 - smooth) * f / factor + smooth * f;
    }
}

/* The dimension at which a wave turns `turns` times within the original positions (YaRN, Peng et al. 2023, eq. 23). */
static double yarn_dimension(const struct rope_reader *r, double turns, double original)
{
    return 2.0 * r->pairs * log(original / (turns * 2 * PI)) / (2 * log(r->rope.theta));
}

static double yarn_magnitude(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static void rope_yarn(struct rope_reader *r)
{
    double factor = field(r, "factor", 0), original = original_positions(r);
    const json_t *truncate = json_object_get(r->rope.value, "truncate");
    double low = yarn_dimension(r, field(r, "beta_fast", 32), original);
    double high = yarn_dimension(r, field(r, "beta_slow", 1), original);
    if (!json_is_false(truncate)) {
        low = floor(low);
        high = ceil(high);
    }
    low = low < 0 ? 0 : low;
    high = high > 2.0 * r->pairs - 1 ? 2.0 * r->pairs - 1 : high;
    high = low == high ? high + 0.001 : high;
    for (uint32_t i = 0; i < r->pairs; i++) {
        float ramp = ((float)i - (float)low) / (float)(high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        float kept = 1 - ramp, plain = r->frequencies[i];
        r->frequencies[i] = 1.0f / ((float)factor * r->waves[i]) * (1 - kept) + plain * kept;
    }
    double mscale = 0, all = 0;
    if (json_is_real(json_object_get(r->rope.value, "mscale")) && json_is_real(json_object_get(r->rope.value, "mscale_all_dim"))) {
        mscale = json_real_value(json_object_get(r->rope.value, "mscale"));
        all = json_real_value(json_object_get(r->rope.value, "mscale_all_dim"));
    }
    double magnitude = mscale != 0 && all != 0 ? yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all)
                                               : yarn_magnitude(factor, 1);
    r->magnitude = (float)field(r, "attention_factor", magnitude);
}

/* Each frequency divided by its factor. False, and refused, where the list is not one positive number for each pair. */
static bool divide_by_list(struct rope_reader *r, const char *name, float *frequencies)
{
    const json_t *list = json_object_get(r->rope.value, name);
    bool good = json_is_array(list) && json_array_size(list) == r->pairs;
    for (uint32_t i = 0; good && i < r->pairs; i++) {
        double factor = json_number_value(json_array_get(list, i));
        good = factor > 0;
        frequencies[i] = 1.0f / ((float)factor * r->waves[i]);
    }
    if (!good)
        config_refuse(r->config, r->key, name);
    return good;
}

/* Short factors up to the original length, long ones for contexts above it (LongRoPE, as Phi-3 has it). */
static void rope_longrope(struct rope_reader *r)
{
    double original = r->rope.original ? r->rope.original : original_positions(r);
    if (!divide_by_list(r, "short_factor", r->frequencies) || !divide_by_list(r, "long_factor", r->long_frequencies))
        return;
    bool given = json_is_real(json_object_get(r->rope.value, "factor"));
    double factor = given ? field(r, "factor", 0) : all_positions(r) / original;
    double magnitude = factor <= 1 ? 1 : sqrt(1 + log(factor) / log(original));
    r->magnitude = r->long_magnitude = (float)field(r, "attention_factor", magnitude);
    r->long_above = (uint32_t)original;
}

/* `dynamic` changes nothing within the trained length, and a longer context is refused when a session is opened. */
static void rope_dynamic(struct rope_reader *r)
{
    field(r, "factor", 0);
}

/* The types, and the fields that each reads besides its name and theta. */
static const struct {
    const char *name;
    void (*apply)(struct rope_reader *r);
    const char *fields[9];
} types[] = {
    {"default", rope_default, {NULL}},
    {"linear", rope_linear, {"factor", NULL}},
    {"llama3",
     rope_llama3,
     {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", NULL}},
    {"yarn",
     rope_yarn,
     {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim",
      "attention_factor", NULL}},
    {"longrope",
     rope_longrope,
     {"short_factor", "long_factor", "factor", "original_max_position_embeddings", "attention_factor", NULL}},
    {"dynamic", rope_dynamic, {"factor", "original_max_position_embeddings", NULL}},
};

/* Fields of the rope object that the type does not read and that say something are refused. */
static void check_fields(struct rope_reader *r, const char *const *fields)
{
    static const char *const always[] = {"rope_type", "type", "rope_theta"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)r->rope.value, key, value) {
        bool known = json_is_null(value);
        if (!strcmp(key, "partial_rotary_factor"))
            known = known || r->rope.part_read || json_number_value(value) == 1;
        for (size_t i = 0; i < sizeof always / sizeof *always; i++)
            known = known || !strcmp(always[i], key);
        for (size_t i = 0; fields[i]; i++)
            known = known || !strcmp(fields[i], key);
        if (!known) {
            char why[128];
            snprintf(why, sizeof why, "its field %.60s is not one of this type's", key);
            config_refuse(r->config, r->key, why);
        }
    }
}

/* The exponent in binary32, the power rounded once, which is what a good binary32 power gives. */
static void plain_frequencies(struct rope_reader *r)
{
    for (uint32_t i = 0; i < r->pairs; i++) {
        float exponent = (float)(2 * i) / (float)(2 * r->pairs);
        r->waves[i] = (float)pow(r->rope.theta, (double)exponent);
        r->frequencies[i] = 1.0f / r->waves[i];
    }
}

static void apply_type(struct rope_reader *r)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, r->rope.type)) {
            if (r->rope.value)
                check_fields(r, types[i].fields);
            types[i].apply(r);
            return;
        }
    char why[128];
    snprintf(why, sizeof why, "RoPE of type \"%.60s\" is not supported", r->rope.type);
    config_refuse(r->config, r->key, why);
}

uint32_t emit_rope_of(struct config *c, struct emitter *e, struct config_rope rope, uint32_t pairs)
{
    struct rope_reader r = {.config = c, .rope = rope, .pairs = pairs, .magnitude = 1};
    r.key = json_object_get(c->root, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    if (!(rope.theta > 1 && rope.theta < 1e12))
        config_refuse(c, "rope_theta", "a number above 1 is needed");
    r.frequencies = calloc(3 * (size_t)pairs + 1, sizeof *r.frequencies);
    r.long_frequencies = r.frequencies + pairs;
    r.waves = r.long_frequencies + pairs;
    if (!r.frequencies) {
        c->status = c->status == STELE_OK ? stele_fail(c->err, STELE_SYSTEM, "no memory for RoPE") : c->status;
        return 0;
    }
    plain_frequencies(&r);
    apply_type(&r);
    uint32_t index = c->status == STELE_OK ? emit_rope(e, r.frequencies, pairs, r.magnitude) : 0;
    if (c->status == STELE_OK && r.long_above)
        emit_long_rope(e, index, r.long_above, r.long_frequencies, r.long_magnitude);
    free(r.frequencies);
    return index;
}

uint32_t emit_config_rope(struct config *c, struct emitter *e, double theta_absent, uint32_t pairs)
{
    return emit_rope_of(c, e, config_rope(c, theta_absent), pairs);
}
