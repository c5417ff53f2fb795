/* SPDX-License-Identifier: Apache-2.0 */
#include "defaults.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STOPS_MAX = 256 };

/* Fields of GenerationConfig that would change what is generated and that stele lacks, each with the value that changes
 * nothing. Another value is refused. */
static const struct {
    const char *key;
    double neutral;
} lacking[] = {
    {"num_beams", 1},
    {"num_beam_groups", 1},
    {"diversity_penalty", 0},
    {"length_penalty", 1},
    {"encoder_repetition_penalty", 1},
    {"no_repeat_ngram_size", 0},
    {"encoder_no_repeat_ngram_size", 0},
    {"typical_p", 1},
    {"epsilon_cutoff", 0},
    {"eta_cutoff", 0},
    {"penalty_alpha", 0},
    {"min_length", 0},
    {"min_new_tokens", 0},
    {"guidance_scale", 1},
    {"top_h", 0},
    {"forced_bos_token_id", -1},
    {"forced_eos_token_id", -1},
    {"bad_words_ids", -1},
    {"force_words_ids", -1},
    {"suppress_tokens", -1},
    {"begin_suppress_tokens", -1},
    {"sequence_bias", -1},
    {"exponential_decay_length_penalty", -1},
    {"dola_layers", -1},
    {"stop_strings", -1},
    {"watermarking_config", -1},
    {"constraints", -1},
};

/* Fields that change nothing about what is drawn, and those that are read elsewhere in this file. */
static const char *const known[] = {
    "_from_model_config", "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "bos_token_id",
    "cache_config", "cache_implementation", "compile_config", "decoder_start_token_id", "disable_compile", "do_sample",
    "early_stopping", "eos_token_id", "is_assistant", "max_length", "max_matching_ngram_size", "max_new_tokens", "max_time",
    "min_p", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_logits", "output_scores", "pad_token_id", "prefill_chunk_size",
    "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits", "repetition_penalty",
    "return_dict_in_generate", "return_legacy_cache", "target_lookbehind", "temperature", "token_healing", "top_k", "top_p",
    "transformers_version", "use_cache", "use_model_defaults", "language", "task", "chat_format", "trust_remote_code",
};

struct reader {
    const char *path;
    const json_t *root;
    struct stele_error *err;
    enum stele_status status;
};

static void refuse(struct reader *r, const char *key, const char *why)
{
    char text[64];
    if (r->status == STELE_OK)
        r->status = stele_fail(r->err, STELE_INPUT, "%s: %s is %s: %s", r->path, key,
                               json_show(json_object_get(r->root, key), text), why);
}

/* The number at `key`, `absent` where there is none. */
static float number(struct reader *r, const char *key, float absent, double low, double high)
{
    const json_t *value = json_object_get(r->root, key);
    if (!value || json_is_null(value))
        return absent;
    double x = json_number_value(value);
    if (!json_is_number(value) || !(x >= low && x <= high)) {
        refuse(r, key, "out of range");
        return absent;
    }
    return (float)x;
}

static uint64_t whole(struct reader *r, const char *key, uint64_t most)
{
    const json_t *value = json_object_get(r->root, key);
    uint64_t n = 0;
    if (value && !json_is_null(value) && !json_whole(value, most, &n))
        refuse(r, key, "a whole number is needed");
    return n;
}

static bool is_known(const char *key)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i], key))
            return true;
    for (size_t i = 0; i < sizeof lacking / sizeof *lacking; i++)
        if (!strcmp(lacking[i].key, key))
            return true;
    return false;
}

/* Keys that no one knows are refused unless they say nothing. */
static void check_unknown(struct reader *r)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)r->root, key, value) {
        bool silent = json_is_null(value) || json_is_false(value) || (json_is_number(value) && json_number_value(value) == 0);
        if (!silent && !is_known(key))
            refuse(r, key, "stele does not know what this changes; remove it from the file to go on");
    }
}

static void check_lacking(struct reader *r)
{
    for (size_t i = 0; i < sizeof lacking / sizeof *lacking; i++) {
        const json_t *value = json_object_get(r->root, lacking[i].key);
        bool neutral = !value || json_is_null(value) || json_is_false(value) ||
                       (json_is_number(value) && json_number_value(value) == lacking[i].neutral) ||
                       (json_is_array(value) && !json_array_size(value));
        if (!neutral)
            refuse(r, lacking[i].key, "stele does not have this way of generating; remove it from the file to go on");
    }
}

static void add_stop(struct reader *r, const json_t *value, uint32_t *stops, uint32_t *count, uint32_t vocabulary)
{
    uint64_t id;
    if (!json_whole(value, UINT32_MAX, &id)) {
        refuse(r, "eos_token_id", "an id or a list of ids is needed");
        return;
    }
    if (id >= vocabulary) {
        refuse(r, "eos_token_id", "it holds an id that the vocabulary has not");
        return;
    }
    for (uint32_t i = 0; i < *count; i++)
        if (stops[i] == id)
            return;
    if (*count == STOPS_MAX)
        refuse(r, "eos_token_id", "too many ids");
    else
        stops[(*count)++] = (uint32_t)id;
}

static uint32_t read_stops(struct reader *r, uint32_t *stops, uint32_t vocabulary)
{
    uint32_t count = 0;
    const json_t *value = json_object_get(r->root, "eos_token_id");
    if (json_is_array(value))
        for (size_t i = 0; i < json_array_size(value); i++)
            add_stop(r, json_array_get(value, i), stops, &count, vocabulary);
    else if (value && !json_is_null(value))
        add_stop(r, value, stops, &count, vocabulary);
    return count;
}

static void read_sampling(struct reader *r, struct image_defaults *d)
{
    const json_t *sample = json_object_get(r->root, "do_sample");
    if (sample && !json_is_null(sample) && !json_is_boolean(sample))
        refuse(r, "do_sample", "true or false is needed");
    d->temperature = json_is_true(sample) ? number(r, "temperature", 1, 0, 1e6) : 0;
    d->top_k = (uint32_t)whole(r, "top_k", INT32_MAX);
    d->top_p = number(r, "top_p", 0, 0, 1);
    d->min_p = number(r, "min_p", 0, 0, 1);
    d->repeat_penalty = number(r, "repetition_penalty", 0, 0x1p-20, 0x1p20);
    const json_t *top_p = json_object_get(r->root, "top_p");
    if (json_is_number(top_p) && d->top_p == 0)
        d->top_p = FLT_MIN; /* keeps one: not "off" */
    d->top_p = d->top_p == 1 ? 0 : d->top_p;
    d->repeat_penalty = d->repeat_penalty == 1 ? 0 : d->repeat_penalty;
    check_lacking(r);
    check_unknown(r);
}

enum stele_status defaults_build(void **out, size_t *length, const char *directory, const json_t *config,
                                 uint32_t tokenizer_eos, uint32_t vocabulary, struct stele_error *err)
{
    *out = NULL;
    char *path;
    if (asprintf(&path, "%s/generation_config.json", directory) < 0)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", directory);
    json_t *root = NULL;
    struct image_defaults d = {0};
    uint32_t stops[STOPS_MAX];
    struct reader r = {.path = path, .err = err, .status = json_read_file(&root, path, err)};
    bool absent = r.status == STELE_SYSTEM && errno == ENOENT;
    if (absent)
        r.status = STELE_OK;
    r.root = root;
    if (r.status == STELE_OK && !absent && !json_is_object(root))
        r.status = stele_fail(err, STELE_INPUT, "%s: not an object", path);
    if (r.status == STELE_OK && !absent) {
        read_sampling(&r, &d);
        d.stops = read_stops(&r, stops, vocabulary);
    }
    if (r.status == STELE_OK && !d.stops) {
        r.root = config;
        r.path = "config.json";
        d.stops = read_stops(&r, stops, vocabulary);
    }
    if (r.status == STELE_OK && !d.stops && tokenizer_eos < vocabulary)
        stops[d.stops++] = tokenizer_eos;
    *length = sizeof d + d.stops * sizeof *stops;
    if (r.status == STELE_OK && !(*out = malloc(*length)))
        r.status = stele_fail(err, STELE_SYSTEM, "no memory for the defaults");
    if (r.status == STELE_OK) {
        memcpy(*out, &d, sizeof d);
        memcpy((char *)*out + sizeof d, stops, d.stops * sizeof *stops);
    }
    json_decref(root);
    free(path);
    return r.status;
}
