/* SPDX-License-Identifier: Apache-2.0 */
#include "sizes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compile.h"
#include "convert.h"
#include "provenance.h"

/* ---- the outline ---- */

struct outline {
    const struct sizes_source *source;
    struct stele_error *err;
    bool folder;
    struct compiled made;
    size_t provenance_length; /* 0 where the sources are not there */
};

static bool exists(const struct outline *o, const char *name)
{
    char *path = compile_file(o->source->path, name);
    free(path);
    return path != NULL;
}

static enum stele_status read_config(struct outline *o)
{
    struct stat st;
    if (stat(o->source->path, &st))
        return stele_fail(o->err, STELE_SYSTEM, "%s: %s", o->source->path, strerror(errno));
    o->folder = S_ISDIR(st.st_mode);
    char *path = o->folder ? compile_file(o->source->path, "config.json") : strdup(o->source->path);
    if (!path)
        return stele_fail(o->err, STELE_INPUT, "%s: there is no config.json", o->source->path);
    enum stele_status status = compile_config(&o->made, path, o->source->ignored_keys, o->err);
    free(path);
    return status;
}

/* The type that a config alone says its tensors have. */
static enum stele_status made_up_type(const struct outline *o, enum source_type *type)
{
    static const struct {
        const char *name;
        enum source_type type;
    } types[] = {{"float32", SOURCE_F32}, {"float16", SOURCE_F16}, {"bfloat16", SOURCE_BF16}};
    const char *name = json_string_value(json_object_get(o->made.root, "dtype"));
    if (!name)
        name = json_string_value(json_object_get(o->made.root, "torch_dtype"));
    for (size_t i = 0; name && i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, name)) {
            *type = types[i].type;
            return STELE_OK;
        }
    *type = SOURCE_F32;
    if (o->source->weights >= 0)
        return STELE_OK;
    return stele_fail(
        o->err, STELE_USAGE,
        "config.json does not say of which type the weights are; --weights TYPE does");
}

/* Tensors where the folder has them, else none. */
static enum stele_status open_tensors(struct outline *o)
{
    o->made.emitter = (struct emitter){.weights = o->source->weights, .err = o->err};
    if (!exists(o, "model.safetensors") && !exists(o, "model.safetensors.index.json"))
        return made_up_type(o, &o->made.emitter.made_up_type);
    o->made.emitter.source = &o->made.checkpoint;
    return checkpoint_open(&o->made.checkpoint, o->source->path, o->err);
}

static enum stele_status compile(struct outline *o)
{
    enum stele_status status = read_config(o);
    if (status == STELE_OK)
        status = open_tensors(o);
    if (status == STELE_OK)
        status = compile_plan(&o->made, o->source->path, o->err);
    return status == STELE_OK && o->folder ? compile_text(&o->made, o->source->path, o->source->no_template, o->err)
                                           : status;
}

/* How long the provenance will be. It is made of weights of no bytes, which saves reading them:
 * their digests are as long, and what their lengths lack in digits is added. */
static enum stele_status measure_provenance(struct outline *o)
{
    struct convert_options options = {.source = o->source->path,
                                      .weights = o->source->weights,
                                      .ignored_keys = o->source->ignored_keys,
                                      .no_template = o->source->no_template};
    struct checkpoint empty = o->made.checkpoint;
    char *text = NULL;
    if (!o->made.emitter.source)
        return STELE_OK;
    empty.files = calloc(empty.file_count + 1, sizeof *empty.files);
    if (!empty.files)
        return stele_fail(o->err, STELE_SYSTEM, "no memory for the provenance");
    for (size_t i = 0; i < empty.file_count; i++) {
        empty.files[i] = (struct source_file){.name = o->made.checkpoint.files[i].name,
                                              .bytes = o->made.checkpoint.files[i].bytes};
        o->provenance_length +=
            (size_t)snprintf(NULL, 0, "%" PRIu64, o->made.checkpoint.files[i].length) - strlen("0");
    }
    enum stele_status status = provenance_build(&text, &options, &empty, o->err);
    if (status == STELE_OK)
        o->provenance_length += strlen(text);
    free(text);
    free(empty.files);
    return status;
}

/* The sections in the converter's order, those without bytes as holes, and header and table before
 * them. Ids of end of text stay below a page. */
static bool write_outline(int fd, const struct outline *o)
{
    uint64_t weights = o->made.emitter.weights_bytes, chunks = (weights + IMAGE_CHUNK - 1) / IMAGE_CHUNK,
             at = 2 * IMAGE_PAGE;
    const struct {
        enum section_kind kind;
        const void *bytes;
        uint64_t length, align;
    } parts[] = {
        {SECTION_PLAN, o->made.plan, o->made.plan_length, IMAGE_ALIGN},
        {SECTION_TENSORS, o->made.tensors, o->made.tensors_length, IMAGE_ALIGN},
        {SECTION_TOKENIZER, o->made.vocabulary, o->made.vocabulary_length, IMAGE_ALIGN},
        {SECTION_TEMPLATES, o->made.templates, o->made.templates_length, IMAGE_ALIGN},
        {SECTION_DEFAULTS, NULL, sizeof(struct image_defaults), IMAGE_ALIGN},
        {SECTION_WEIGHTS, NULL, weights, weights_align(weights)},
        {SECTION_DIGESTS, NULL, chunks * sizeof(struct image_digest), IMAGE_ALIGN},
        {SECTION_PROVENANCE, NULL, o->provenance_length, IMAGE_ALIGN},
    };
    struct image_header header = {
        .magic = IMAGE_MAGIC, .version = IMAGE_VERSION, .numerics = NUMERICS_VERSION};
    struct image_section sections[IMAGE_SECTIONS_MAX] = {{0}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if ((parts[i].kind == SECTION_TOKENIZER && !o->made.vocabulary) || (parts[i].kind == SECTION_TEMPLATES && !o->made.templates))
            continue;
        at = round_up(at, parts[i].align);
        sections[header.sections] = (struct image_section){.id = header.sections,
                                                           .kind = (uint32_t)parts[i].kind,
                                                           .offset = at,
                                                           .bytes = parts[i].length};
        header.sections++;
        if (parts[i].bytes &&
            pwrite(fd, parts[i].bytes, parts[i].length, (off_t)at) != (ssize_t)parts[i].length)
            return false;
        at += parts[i].length;
    }
    header.file_bytes = at;
    header.check = image_check(&header, sections);
    return pwrite(fd, &header, sizeof header, 0) == sizeof header &&
           pwrite(fd, sections, sizeof sections, IMAGE_PAGE) == sizeof sections &&
           !ftruncate(fd, (off_t)header.file_bytes);
}

enum stele_status sizes_outline(int *fd, bool *text_known, const struct sizes_source *source,
                                struct stele_error *err)
{
    struct outline o = {.source = source, .err = err};
    *fd = -1;
    enum stele_status status = compile(&o);
    if (status == STELE_OK)
        status = measure_provenance(&o);
    if (status == STELE_OK) {
        *fd = memfd_create("stele-sizes", MFD_CLOEXEC);
        if (*fd < 0 || !write_outline(*fd, &o))
            status = stele_fail(err, STELE_SYSTEM, "%s: no memory for its outline: %s",
                                source->path, strerror(errno));
    }
    *text_known = o.made.vocabulary || o.made.emitter.source;
    if (status != STELE_OK && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    compile_close(&o.made);
    return status;
}

/* ---- counting ---- */

enum role { ROLE_LAYERS, ROLE_EMBEDDING, ROLE_EXPERTS, ROLE_HEAD };

/* What the tensors are for; a tied matrix is the head. */
static void find_roles(const struct plan *plan, enum role *roles)
{
    for (uint32_t i = 0; i < plan->counts.ops; i++) {
        const struct plan_op *op = &plan->ops[i];
        const struct plan_form *form = &plan_forms[op->code];
        if (op->code == PLAN_EMBED)
            roles[op->embed.table] = ROLE_EMBEDDING;
        for (size_t a = 0; form->args[a].name; a++)
            if (form->args[a].kind == KIND_BANK)
                roles[op->args[a]] = ROLE_EXPERTS;
    }
    roles[plan->ops[plan->counts.ops - 1].logits.head] = ROLE_HEAD;
}

/* Bytes of weights that an op reads for one row: of a table one row, of experts those chosen. */
static uint64_t read_by(const struct plan *plan, const struct plan_op *op)
{
    const struct plan_form *form = &plan_forms[op->code];
    uint64_t bytes = 0;
    for (size_t a = 0; form->args[a].name; a++) {
        enum plan_kind kind = form->args[a].kind;
        bool vector =
            kind == KIND_VECTOR || (kind == KIND_VECTOR_OR_NONE && op->args[a] != PLAN_NONE);
        if (!vector && kind != KIND_MATRIX && kind != KIND_BANK)
            continue;
        const struct image_tensor *t = &plan->tensors[op->args[a]];
        if (kind == KIND_BANK)
            bytes += t->bytes * op->experts.top;
        else if (op->code == PLAN_EXPERTS) /* biases of all experts */
            bytes += t->bytes / plan->tensors[op->experts.up].count * op->experts.top;
        else
            bytes += op->code == PLAN_EMBED ? t->bytes / t->rows : t->bytes;
    }
    return bytes;
}

static enum stele_status open_plan(struct plan *plan, void **owned, const struct image *image,
                                   struct stele_error *err)
{
    const uint8_t *weights;
    return plan_load(plan, owned, &weights, image, err);
}

enum stele_status sizes_count(struct sizes *out, const struct image *image, struct stele_error *err)
{
    struct plan plan;
    void *owned = NULL;
    *out = (struct sizes){.file = image->length};
    enum stele_status status = open_plan(&plan, &owned, image, err);
    if (status != STELE_OK)
        return status;
    enum role *roles = calloc(plan.tensor_count + (size_t)1, sizeof *roles);
    if (!roles) {
        free(owned);
        return stele_fail(err, STELE_SYSTEM, "no memory for %u tensors", plan.tensor_count);
    }
    find_roles(&plan, roles);
    uint64_t *const parts[] = {[ROLE_LAYERS] = &out->layers,
                               [ROLE_EMBEDDING] = &out->embedding,
                               [ROLE_EXPERTS] = &out->experts,
                               [ROLE_HEAD] = &out->head};
    for (uint32_t i = 0; i < plan.tensor_count; i++)
        *parts[roles[i]] += plan.tensors[i].bytes * plan.tensors[i].count;
    image_section(image, SECTION_TOKENIZER, &out->tokenizer);
    uint64_t named = out->embedding + out->layers + out->experts + out->head + out->tokenizer;
    out->rest = named < out->file ? out->file - named : 0;
    for (uint32_t i = 0; i < plan.counts.ops; i++)
        out->read += read_by(&plan, &plan.ops[i]);
    for (uint32_t i = 0; i < plan.counts.states; i++)
        out->position_numbers += plan.states[i].position_numbers;
    free(roles);
    free(owned);
    return STELE_OK;
}

enum stele_status sizes_kv_read(uint64_t *numbers, uint64_t positions, const struct image *image,
                                struct stele_error *err)
{
    struct plan plan;
    void *owned = NULL;
    *numbers = 0;
    enum stele_status status = open_plan(&plan, &owned, image, err);
    for (uint32_t i = 0; status == STELE_OK && i < plan.counts.states; i++) {
        const struct plan_state *s = &plan.states[i];
        *numbers +=
            s->position_numbers * (s->window && s->window < positions ? s->window : positions);
    }
    free(owned);
    return status;
}
