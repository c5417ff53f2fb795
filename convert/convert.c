/* SPDX-License-Identifier: Apache-2.0 */
#include "convert.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "defaults.h"
#include "emit.h"
#include "families/family.h"
#include "image.h"
#include "json.h"
#include "provenance.h"
#include "safetensors.h"
#include "template_build.h"
#include "vocab_build.h"
#include "write.h"

/* Weights of this size and more begin at a multiple of 2 MiB, so that huge pages can map them; for smaller ones the
 * padding would cost more than it gains. */
static const uint64_t ALIGN_FROM_BYTES = 64 << 20;

/* All that a conversion holds; everything starts as zero, so that closing is always safe. */
struct conversion {
    const struct convert_options *options;
    struct stele_error *err;
    json_t *root; /* config.json */
    json_t *tokenizer_config; /* NULL: there is none */
    struct config config;
    struct checkpoint checkpoint;
    struct emitter emitter;
    void *plan, *tensors, *defaults;
    size_t plan_length, tensors_length, defaults_length;
    uint8_t *vocabulary; /* NULL: no tokenizer */
    size_t vocabulary_length;
    uint8_t *templates; /* NULL: no chat template, or it is not wanted */
    size_t templates_length;
    char *provenance;
    struct image_writer *writer;
};

/* DIRECTORY/NAME, malloc'ed, or NULL where there is no such file (or no memory). */
static char *existing(const char *directory, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        return NULL;
    if (!access(path, F_OK))
        return path;
    free(path);
    return NULL;
}

static enum stele_status check_source(const struct convert_options *o, struct stele_error *err)
{
    struct stat st;
    if (stat(o->source, &st))
        return stele_fail(err, STELE_SYSTEM, "%s: %s", o->source, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return stele_fail(err, STELE_INPUT, "%s: not a directory; a checkpoint in Hugging Face layout is needed", o->source);
    if (!o->replace && !access(o->target, F_OK))
        return stele_fail(err, STELE_USAGE, "%s: exists; -f replaces it", o->target);
    return STELE_OK;
}

static enum stele_status read_config(struct conversion *v)
{
    char *path;
    if (asprintf(&path, "%s/config.json", v->options->source) < 0)
        return stele_fail(v->err, STELE_SYSTEM, "%s: no memory", v->options->source);
    enum stele_status status = json_read_file(&v->root, path, v->err);
    if (status == STELE_SYSTEM && errno == ENOENT)
        status = stele_fail(v->err, STELE_INPUT, "%s: there is no config.json; a checkpoint in Hugging Face layout is needed",
                            v->options->source);
    free(path);
    return status == STELE_OK ? config_open(&v->config, v->root, "config.json", v->options->ignored_keys, v->err) : status;
}

static enum stele_status choose_family(struct conversion *v, const struct family **family)
{
    const json_t *list = json_object_get(v->root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    char names[512];
    if (!name)
        return stele_fail(v->err, STELE_INPUT, "config.json: `architectures` names none");
    *family = family_find(name);
    if (*family)
        return STELE_OK;
    family_names(names, sizeof names);
    return stele_fail(v->err, STELE_INPUT, "config.json: architecture %s is not supported; stele knows %s", name, names);
}

/* How the weights arrive; NULL: they lie in the source directory. */
static const struct convert_arrival *arriving(const struct conversion *v)
{
    return v->options->arrival && v->options->arrival->open ? v->options->arrival : NULL;
}

/* Config and tensors into a plan. */
static enum stele_status compile(struct conversion *v)
{
    const struct family *family;
    enum stele_status status = read_config(v);
    if (status == STELE_OK)
        status = choose_family(v, &family);
    if (status == STELE_OK)
        status = config_check_quantised(&v->config, false);
    const struct convert_arrival *arrival = arriving(v);
    if (status == STELE_OK)
        status = arrival ? arrival->open(arrival->context, &v->checkpoint, v->err)
                         : checkpoint_open(&v->checkpoint, v->options->source, v->err);
    if (status != STELE_OK)
        return status;
    v->emitter = (struct emitter){.source = &v->checkpoint, .weights = v->options->weights, .err = v->err};
    family_emit(family, &v->config, &v->emitter);
    status = config_check_quantised(&v->config, true);
    if (status == STELE_OK)
        status = config_finish(&v->config);
    if (status == STELE_OK)
        status = emit_finish(&v->emitter);
    if (status == STELE_OK)
        status = emit_plan(&v->emitter, &v->plan, &v->plan_length, &v->tensors, &v->tensors_length);
    struct plan plan;
    if (status == STELE_OK) /* what the runtime will check */
        status = plan_open(&plan, v->plan, v->plan_length, v->tensors, v->tensors_length, v->emitter.weights_bytes,
                           v->options->target, v->err);
    return status;
}

static void report_unused(const struct conversion *v)
{
    size_t unused = 0;
    const char *first = NULL;
    for (size_t i = 0; i < v->checkpoint.tensor_count; i++)
        if (!v->checkpoint.tensors[i].used) {
            first = first ? first : v->checkpoint.tensors[i].name;
            unused++;
        }
    struct stele_error text; /* escapes the name */
    if (!unused)
        return;
    stele_fail(&text, STELE_OK, "%zu tensors are not part of the model and left out, the first is %s", unused, first);
    fprintf(stderr, "stele %s: %s\n", v->options->verb, text.text);
}

/* The id of the eos_token that tokenizer_config.json names, as text or as an added token; UINT32_MAX where none is. */
static uint32_t tokenizer_eos(const struct conversion *v)
{
    const json_t *token = json_object_get(v->tokenizer_config, "eos_token");
    const char *text = json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
    return text && v->vocabulary ? vocab_id_of_token(v->vocabulary, v->vocabulary_length, text, strlen(text)) : UINT32_MAX;
}

/* tokenizer_config.json, where there is one. */
static enum stele_status read_tokenizer_config(struct conversion *v, const char *path)
{
    enum stele_status status = path ? json_read_file(&v->tokenizer_config, path, v->err) : STELE_OK;
    if (status == STELE_OK && path && !json_is_object(v->tokenizer_config))
        status = stele_fail(v->err, STELE_INPUT, "%s: not an object", path);
    return status;
}

static enum stele_status compile_text(struct conversion *v)
{
    char *tokenizer = existing(v->options->source, "tokenizer.json");
    char *tokenizer_config = existing(v->options->source, "tokenizer_config.json");
    enum stele_status status = read_tokenizer_config(v, tokenizer_config);
    if (status == STELE_OK && tokenizer)
        status = vocab_build(&v->vocabulary, &v->vocabulary_length, tokenizer, tokenizer_config, v->err);
    if (status == STELE_OK && tokenizer && !v->options->no_template)
        status = template_build(&v->templates, &v->templates_length, v->options->source, v->tokenizer_config, v->err);
    if (status == STELE_OK)
        status = defaults_build(&v->defaults, &v->defaults_length, v->options->source, v->root, tokenizer_eos(v),
                                v->emitter.vocabulary, v->err);
    free(tokenizer);
    free(tokenizer_config);
    return status;
}

static enum stele_status write_weights(struct conversion *v)
{
    uint64_t align = v->emitter.weights_bytes >= ALIGN_FROM_BYTES ? IMAGE_CHUNK : IMAGE_PAGE;
    const struct convert_arrival *arrival = arriving(v);
    if (arrival)
        return arrival->weights(arrival->context, &v->emitter, v->writer, align, v->err);
    enum stele_status status = image_begin_section(v->writer, SECTION_WEIGHTS, align, v->err);
    if (status == STELE_OK)
        status = pack_weights(&v->emitter, v->writer, v->options->threads, v->options->progress, v->options->context);
    return status;
}

/* Begins the image and writes the sections before the weights. */
static enum stele_status begin_image(struct conversion *v)
{
    const struct convert_arrival *arrival = arriving(v);
    const struct convert_section sections[] = {
        {SECTION_PLAN, v->plan, v->plan_length},
        {SECTION_TENSORS, v->tensors, v->tensors_length},
        {SECTION_TOKENIZER, v->vocabulary, v->vocabulary_length},
        {SECTION_TEMPLATES, v->templates, v->templates_length},
        {SECTION_DEFAULTS, v->defaults, v->defaults_length},
    };
    size_t n = sizeof sections / sizeof *sections;
    uint64_t expected = v->emitter.weights_bytes;
    for (size_t i = 0; i < n; i++)
        expected += sections[i].length;
    enum stele_status status =
        arrival ? arrival->begin(arrival->context, &v->writer, sections, n, v->emitter.weights_bytes, v->err)
                : image_begin(&v->writer, v->options->target, v->options->replace, expected, v->err);
    for (size_t i = 0; status == STELE_OK && i < n; i++)
        if (sections[i].bytes)
            status = image_write_section(v->writer, sections[i].kind, sections[i].bytes, sections[i].length, v->err);
    return status;
}

static enum stele_status write_image(struct conversion *v)
{
    const struct convert_arrival *arrival = v->options->arrival;
    enum stele_status status = begin_image(v);
    if (status == STELE_OK)
        status = write_weights(v);
    if (status == STELE_OK)
        status = image_write_digests(v->writer, v->err);
    if (status == STELE_OK)
        status = arrival ? arrival->provenance(arrival->context, &v->provenance, v->options, &v->checkpoint, v->err)
                         : provenance_build(&v->provenance, v->options, &v->checkpoint, v->err);
    if (status == STELE_OK)
        status = image_write_section(v->writer, SECTION_PROVENANCE, v->provenance, strlen(v->provenance), v->err);
    if (status == STELE_OK && !arriving(v))
        status = checkpoint_unchanged(&v->checkpoint, v->err);
    if (status != STELE_OK)
        return status;
    if (arrival && arrival->whole)
        arrival->whole(arrival->context);
    struct image_writer *writer = v->writer;
    v->writer = NULL;
    return image_finish(writer, v->err);
}

enum stele_status convert_checkpoint(const struct convert_options *options, struct stele_error *err)
{
    struct conversion v = {.options = options, .err = err};
    enum stele_status status = check_source(options, err);
    if (status == STELE_OK)
        status = compile(&v);
    if (status == STELE_OK)
        status = compile_text(&v);
    if (status == STELE_OK)
        status = write_image(&v);
    if (status == STELE_OK)
        report_unused(&v);
    image_abandon(v.writer);
    free(v.provenance);
    free(v.templates);
    free(v.vocabulary);
    free(v.defaults);
    free(v.tensors);
    free(v.plan);
    emit_close(&v.emitter);
    checkpoint_close(&v.checkpoint);
    config_close(&v.config);
    json_decref(v.tokenizer_config);
    json_decref(v.root);
    return status;
}
