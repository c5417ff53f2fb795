/* SPDX-License-Identifier: Apache-2.0 */
#include "convert.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compile.h"
#include "defaults.h"
#include "image.h"
#include "provenance.h"
#include "vocab_build.h"
#include "write.h"

/* All that a conversion holds; everything starts as zero, so that closing is always safe. */
struct conversion {
    const struct convert_options *options;
    struct stele_error *err;
    struct compiled made;
    void *defaults;
    size_t defaults_length;
    char *provenance;
    struct image_writer *writer;
};

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
    enum stele_status status = STELE_OK;
    if (access(path, F_OK) && errno == ENOENT)
        status = stele_fail(v->err, STELE_INPUT, "%s: there is no config.json; a checkpoint in Hugging Face layout is needed",
                            v->options->source);
    if (status == STELE_OK)
        status = compile_config(&v->made, path, v->options->ignored_keys, v->err);
    free(path);
    return status;
}

/* How the weights arrive; NULL: they lie in the source directory. */
static const struct convert_arrival *arriving(const struct conversion *v)
{
    return v->options->arrival && v->options->arrival->open ? v->options->arrival : NULL;
}

/* The id of the eos_token that tokenizer_config.json names, as text or as an added token; UINT32_MAX where none is. */
static uint32_t tokenizer_eos(const struct compiled *c)
{
    const json_t *token = json_object_get(c->tokenizer_config, "eos_token");
    const char *text = json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
    return text && c->vocabulary ? vocab_id_of_token(c->vocabulary, c->vocabulary_length, text, strlen(text)) : UINT32_MAX;
}

/* Config and tensors into a plan, text into tables. */
static enum stele_status compile(struct conversion *v)
{
    const struct convert_options *o = v->options;
    const struct convert_arrival *arrival = arriving(v);
    struct compiled *c = &v->made;
    enum stele_status status = read_config(v);
    if (status == STELE_OK)
        status = arrival ? arrival->open(arrival->context, &c->checkpoint, v->err)
                         : checkpoint_open(&c->checkpoint, o->source, v->err);
    if (status != STELE_OK)
        return status;
    c->emitter = (struct emitter){.source = &c->checkpoint, .weights = o->weights, .err = v->err};
    status = compile_plan(c, o->target, v->err);
    if (status == STELE_OK)
        status = compile_text(c, o->source, o->no_template, v->err);
    if (status == STELE_OK)
        status = defaults_build(&v->defaults, &v->defaults_length, o->source, c->root, tokenizer_eos(c),
                                c->emitter.vocabulary, v->err);
    return status;
}

static void report_unused(const struct conversion *v)
{
    size_t unused = 0;
    const char *first = NULL;
    for (size_t i = 0; i < v->made.checkpoint.tensor_count; i++)
        if (!v->made.checkpoint.tensors[i].used) {
            first = first ? first : v->made.checkpoint.tensors[i].name;
            unused++;
        }
    struct stele_error text; /* escapes the name */
    if (!unused)
        return;
    stele_fail(&text, STELE_OK, "%zu tensors are not part of the model and left out, the first is %s", unused, first);
    fprintf(stderr, "stele %s: %s\n", v->options->verb, text.text);
}

static enum stele_status write_weights(struct conversion *v)
{
    uint64_t align = weights_align(v->made.emitter.weights_bytes);
    const struct convert_arrival *arrival = arriving(v);
    if (arrival)
        return arrival->weights(arrival->context, &v->made.emitter, v->writer, align, v->err);
    enum stele_status status = image_begin_section(v->writer, SECTION_WEIGHTS, align, v->err);
    if (status == STELE_OK)
        status = pack_weights(&v->made.emitter, v->writer, v->options->threads, v->options->progress,
                              v->options->context);
    return status;
}

/* Begins the image and writes the sections before the weights. */
static enum stele_status begin_image(struct conversion *v)
{
    const struct convert_arrival *arrival = arriving(v);
    const struct convert_section sections[] = {
        {SECTION_PLAN, v->made.plan, v->made.plan_length},
        {SECTION_TENSORS, v->made.tensors, v->made.tensors_length},
        {SECTION_TOKENIZER, v->made.vocabulary, v->made.vocabulary_length},
        {SECTION_TEMPLATES, v->made.templates, v->made.templates_length},
        {SECTION_DEFAULTS, v->defaults, v->defaults_length},
    };
    size_t n = sizeof sections / sizeof *sections;
    uint64_t expected = v->made.emitter.weights_bytes;
    for (size_t i = 0; i < n; i++)
        expected += sections[i].length;
    enum stele_status status =
        arrival ? arrival->begin(arrival->context, &v->writer, sections, n, v->made.emitter.weights_bytes, v->err)
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
        status = arrival ? arrival->provenance(arrival->context, &v->provenance, v->options, &v->made.checkpoint, v->err)
                         : provenance_build(&v->provenance, v->options, &v->made.checkpoint, v->err);
    if (status == STELE_OK)
        status = image_write_section(v->writer, SECTION_PROVENANCE, v->provenance, strlen(v->provenance), v->err);
    if (status == STELE_OK && !arriving(v))
        status = checkpoint_unchanged(&v->made.checkpoint, v->err);
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
        status = write_image(&v);
    if (status == STELE_OK)
        report_unused(&v);
    image_abandon(v.writer);
    free(v.provenance);
    free(v.defaults);
    compile_close(&v.made);
    return status;
}
