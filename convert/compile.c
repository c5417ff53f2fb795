/* SPDX-License-Identifier: Apache-2.0 */
#include "compile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "plan.h"
#include "template_build.h"
#include "vocab_build.h"

char *compile_file(const char *directory, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        return NULL;
    if (!access(path, F_OK))
        return path;
    free(path);
    return NULL;
}

static enum stele_status choose_family(struct compiled *c, struct stele_error *err)
{
    const char *name = json_string_value(json_array_get(json_object_get(c->root, "architectures"), 0));
    char names[512];
    if (!name)
        return stele_fail(err, STELE_INPUT, "config.json: `architectures` names none");
    c->family = family_find(name);
    if (c->family)
        return STELE_OK;
    family_names(names, sizeof names);
    return stele_fail(err, STELE_INPUT, "config.json: architecture %s is not supported; stele knows %s", name, names);
}

enum stele_status compile_config(struct compiled *c, const char *path, const char *const *ignored_keys,
                                 struct stele_error *err)
{
    enum stele_status status = json_read_file(&c->root, path, err);
    if (status == STELE_OK)
        status = config_open(&c->config, c->root, "config.json", ignored_keys, err);
    if (status == STELE_OK)
        status = choose_family(c, err);
    return status == STELE_OK ? config_check_quantised(&c->config, false) : status;
}

enum stele_status compile_plan(struct compiled *c, const char *target, struct stele_error *err)
{
    struct plan plan;
    family_emit(c->family, &c->config, &c->emitter);
    enum stele_status status = config_check_quantised(&c->config, true);
    if (status == STELE_OK)
        status = config_finish(&c->config);
    if (status == STELE_OK)
        status = emit_finish(&c->emitter);
    if (status == STELE_OK)
        status = emit_plan(&c->emitter, &c->plan, &c->plan_length, &c->tensors, &c->tensors_length);
    if (status == STELE_OK) /* what the runtime will check */
        status = plan_open(&plan, c->plan, c->plan_length, c->tensors, c->tensors_length, c->emitter.weights_bytes,
                           target, err);
    return status;
}

/* tokenizer_config.json, where there is one. */
static enum stele_status read_tokenizer_config(struct compiled *c, const char *path, struct stele_error *err)
{
    enum stele_status status = path ? json_read_file(&c->tokenizer_config, path, err) : STELE_OK;
    if (status == STELE_OK && path && !json_is_object(c->tokenizer_config))
        status = stele_fail(err, STELE_INPUT, "%s: not an object", path);
    return status;
}

enum stele_status compile_text(struct compiled *c, const char *directory, bool no_template, struct stele_error *err)
{
    char *tokenizer = compile_file(directory, "tokenizer.json");
    char *tokenizer_config = compile_file(directory, "tokenizer_config.json");
    enum stele_status status = read_tokenizer_config(c, tokenizer_config, err);
    if (status == STELE_OK && tokenizer)
        status = vocab_build(&c->vocabulary, &c->vocabulary_length, tokenizer, tokenizer_config, err);
    if (status == STELE_OK && tokenizer && !no_template)
        status = template_build(&c->templates, &c->templates_length, directory, c->tokenizer_config, err);
    free(tokenizer);
    free(tokenizer_config);
    return status;
}

void compile_close(struct compiled *c)
{
    free(c->templates);
    free(c->vocabulary);
    free(c->tensors);
    free(c->plan);
    emit_close(&c->emitter);
    checkpoint_close(&c->checkpoint);
    config_close(&c->config);
    json_decref(c->tokenizer_config);
    json_decref(c->root);
}
