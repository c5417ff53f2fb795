/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Keys of any model's config.json that change nothing about the logits of a text: those of transformers'
 * PretrainedConfig that concern training, generation (generation_config.json has the say), files or output, and keys seen
 * in public configs. */
static const char *const neutral_keys[] = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
    "embd_pdrop",
    "dtype",
    "torch_dtype",
    "initializer_range",
    "id2label",
    "label2id",
    "is_llama_config",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "transformers_version",
    "transformers.js_config",
    "unsloth_version",
    "unsloth_fixed",
    "use_cache",
    "vocab_size", /* checked against the embedding's rows */
    /* generation defaults that old configs hold; generation_config.json decides */
    "do_sample",
    "early_stopping",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "diversity_penalty",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "begin_suppress_tokens",
    "suppress_tokens",
    "bad_words_ids",
    "remove_invalid_values",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "chunk_size_feed_forward",
    "finetuning_task",
    "prefix",
    "tf_legacy_loss",
    "torchscript",
    "use_bfloat16",
    NULL,
};

enum stele_status config_open(struct config *out, const json_t *root, const char *path, const char *const *ignored,
                              struct stele_error *err)
{
    *out = (struct config){.path = path, .root = root, .known = json_object(), .ignored = ignored, .err = err};
    if (!out->known)
        return out->status = stele_fail(err, STELE_SYSTEM, "%s: no memory", path);
    if (!json_is_object(root))
        return out->status = stele_fail(err, STELE_INPUT, "%s: not an object", path);
    config_known(out, neutral_keys);
    return out->status;
}

void config_close(struct config *c)
{
    json_decref(c->known);
    c->known = NULL;
}

static void mark(struct config *c, const char *key)
{
    if (json_object_set_new(c->known, key, json_true()) && c->status == STELE_OK)
        c->status = stele_fail(c->err, STELE_SYSTEM, "%s: no memory", c->path);
}

void config_known(struct config *c, const char *const *keys)
{
    for (; *keys; keys++)
        mark(c, *keys);
}

const json_t *config_value(struct config *c, const char *key)
{
    mark(c, key);
    const json_t *value = json_object_get(c->root, key);
    return c->status != STELE_OK || json_is_null(value) ? NULL : value;
}

static void wrong(struct config *c, const char *key, const json_t *value, const char *want)
{
    char text[64];
    if (c->status == STELE_OK)
        c->status = stele_fail(c->err, STELE_INPUT, "%s: %s is %s: %s is needed", c->path, key, json_show(value, text),
                               want);
}

uint64_t config_count(struct config *c, const char *key, uint64_t absent, uint64_t most)
{
    const json_t *value = config_value(c, key);
    uint64_t count;
    char want[64];
    if (!value)
        return absent;
    if (json_whole(value, most, &count) && count)
        return count;
    snprintf(want, sizeof want, "a whole number from 1 to %" PRIu64, most);
    wrong(c, key, value, want);
    return absent;
}

uint64_t config_need_count(struct config *c, const char *key, uint64_t most)
{
    uint64_t count = config_count(c, key, 0, most);
    if (!count && c->status == STELE_OK)
        c->status = stele_fail(c->err, STELE_INPUT, "%s: %s is missing", c->path, key);
    return count ? count : 1; /* a size that divides, until somebody looks at the status */
}

double config_number(struct config *c, const char *key, double absent)
{
    const json_t *value = config_value(c, key);
    if (!value)
        return absent;
    if (json_is_real(value) && fabs(json_real_value(value)) <= 3.4e38) /* it becomes a binary32 */
        return json_real_value(value);
    wrong(c, key, value, "a number");
    return absent;
}

bool config_flag(struct config *c, const char *key, bool absent)
{
    const json_t *value = config_value(c, key);
    if (!value)
        return absent;
    if (!json_is_boolean(value))
        wrong(c, key, value, "true or false");
    return json_is_true(value);
}

const char *config_text(struct config *c, const char *key, const char *absent)
{
    const json_t *value = config_value(c, key);
    if (!value)
        return absent;
    if (json_is_string(value))
        return json_string_value(value);
    wrong(c, key, value, "a string");
    return absent;
}

void config_refuse(struct config *c, const char *key, const char *why)
{
    char text[64];
    if (c->status == STELE_OK)
        c->status = stele_fail(c->err, STELE_INPUT, "%s: %s is %s: %s", c->path, key,
                               json_show(json_object_get(c->root, key), text), why);
}

/* rope_type, or type as older files spell it. */
static const char *type_of(struct config *c, const json_t *scaling)
{
    const json_t *type = json_object_get(scaling, "rope_type");
    type = type ? type : json_object_get(scaling, "type");
    if (!type || json_is_null(type))
        return "default";
    if (json_is_string(type))
        return json_string_value(type);
    wrong(c, "rope_type", type, "a string");
    return "default";
}

struct config_rope config_rope_object(struct config *c, const json_t *object, double theta_absent)
{
    struct config_rope rope = {.theta = theta_absent, .type = "default", .value = object};
    if (!json_is_object(object)) {
        wrong(c, "rope_parameters or rope_scaling", object, "an object");
        rope.value = NULL;
        return rope;
    }
    const json_t *theta = json_object_get(object, "rope_theta");
    rope.type = type_of(c, object);
    if (json_is_real(theta))
        rope.theta = json_real_value(theta);
    else if (theta && !json_is_null(theta))
        wrong(c, "rope_theta", theta, "a number");
    return rope;
}

struct config_rope config_rope(struct config *c, double theta_absent)
{
    double theta = config_number(c, "rope_theta", theta_absent);
    const json_t *parameters = config_value(c, "rope_parameters"), *scaling = config_value(c, "rope_scaling");
    const json_t *object = parameters ? parameters : scaling;
    if (parameters && scaling && !json_equal(parameters, scaling))
        config_refuse(c, "rope_scaling", "rope_parameters says something else");
    return object ? config_rope_object(c, object, theta) : (struct config_rope){.theta = theta, .type = "default"};
}

enum stele_status config_check_quantised(struct config *c, bool emitted)
{
    const json_t *quantised = json_object_get(c->root, "quantization_config");
    const char *method = json_string_value(json_object_get(quantised, "quant_method"));
    bool known = !emitted || json_object_get(c->known, "quantization_config");
    if (!quantised || json_is_null(quantised) || (method && !strcmp(method, "mxfp4") && known))
        return STELE_OK;
    return c->status = stele_fail(c->err, STELE_INPUT, "%s: quantization_config: quantised checkpoints are not supported",
                                  c->path);
}

static bool says_nothing(const json_t *value)
{
    return json_is_null(value) || json_is_false(value) || (json_is_number(value) && json_number_value(value) == 0) ||
           (json_is_string(value) && !json_string_length(value)) || (json_is_array(value) && !json_array_size(value)) ||
           (json_is_object(value) && !json_object_size(value));
}

static bool is_ignored(const struct config *c, const char *key)
{
    for (size_t i = 0; c->ignored && c->ignored[i]; i++)
        if (!strcmp(c->ignored[i], key))
            return true;
    return false;
}

/* A line on stderr; the key is a stranger's, so it is escaped as in an error. */
static void note(const char *path, const char *key)
{
    struct stele_error text;
    stele_fail(&text, STELE_OK, "%s: %s is not known to stele and ignored", path, key);
    fprintf(stderr, "stele: %s\n", text.text);
}

enum stele_status config_finish(struct config *c)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)c->root, key, value) {
        if (c->status != STELE_OK)
            break;
        if (json_object_get(c->known, key))
            continue;
        if (says_nothing(value) || is_ignored(c, key))
            note(c->path, key);
        else {
            char text[64];
            c->status = stele_fail(c->err, STELE_INPUT,
                                   "%s: %s is %s: stele does not know what this changes; --ignore-key %s goes on without it",
                                   c->path, key, json_show(value, text), key);
        }
    }
    return c->status;
}
