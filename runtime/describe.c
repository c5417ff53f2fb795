/* SPDX-License-Identifier: Apache-2.0 */
/* What an image holds, as text: gathers the facts, has a form written of them. */
#include "describe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void add_attention(struct facts *f, const struct plan_attention *op)
{
    const struct plan_state *kv = &f->plan.states[op->kv];
    for (size_t i = 0; i < f->kind_count; i++) {
        struct attention_kind *k = &f->kinds[i];
        if (k->heads == op->heads && k->kv_heads == kv->heads && k->head_dim == kv->head_dim &&
            k->window == kv->window) {
            k->layers++;
            return;
        }
    }
    if (f->kind_count < ATTENTION_KINDS_MAX)
        f->kinds[f->kind_count++] =
            (struct attention_kind){1, op->heads, kv->heads, kv->head_dim, kv->window};
}

static void count_plan(struct facts *f)
{
    for (uint32_t i = 0; i < f->plan.tensor_count; i++) {
        const struct image_tensor *t = &f->plan.tensors[i];
        f->parameters += t->rows * t->columns * t->count;
        if (t->layout == LAYOUT_VECTOR) {
            f->vectors.tensors++;
            f->vectors.bytes += t->bytes;
        } else {
            f->matrices[t->type].tensors += t->count;
            f->matrices[t->type].bytes += t->bytes * t->count;
        }
    }
    for (uint32_t i = 0; i < f->plan.counts.states; i++)
        f->kv_numbers += f->plan.states[i].position_numbers;
    for (uint32_t i = 0; i < f->plan.counts.ops; i++)
        if (f->plan.ops[i].code == PLAN_ATTENTION)
            add_attention(f, &f->plan.ops[i].attention);
}

static enum stele_status open_plan(struct facts *f, struct stele_error *err)
{
    const uint8_t *weights;
    enum stele_status status = plan_load(&f->plan, &f->plan_memory, &weights, f->image, err);
    if (status == STELE_OK)
        count_plan(f);
    return status;
}

static enum stele_status open_vocab(struct facts *f, struct stele_error *err)
{
    uint64_t bytes;
    const uint8_t *section = image_section(f->image, SECTION_TOKENIZER, &bytes);
    f->has_text = section != NULL;
    enum stele_status status = section ? vocab_open(&f->vocab, section, bytes, err) : STELE_OK;
    if (!section || status != STELE_OK)
        return status;
    const struct vocab_pattern *patterns = vocab_records(&f->vocab, VOCAB_PATTERNS);
    for (uint32_t i = 0; i < vocab_count(&f->vocab, VOCAB_PATTERNS); i++)
        f->host_patterns += patterns[i].kind == PATTERN_ONIGURUMA;
    return STELE_OK;
}

static enum stele_status open_templates(struct facts *f, struct stele_error *err)
{
    uint64_t bytes;
    const uint8_t *section = image_section(f->image, SECTION_TEMPLATES, &bytes);
    return section ? template_set_open(&f->templates, section, bytes, err) : STELE_OK;
}

static enum stele_status gather(struct facts *f, const struct stele_image *image,
                                struct stele_error *err)
{
    f->image = (const struct image *)image;
    enum stele_status status = open_plan(f, err);
    if (status == STELE_OK)
        status = open_vocab(f, err);
    if (status == STELE_OK)
        status = open_templates(f, err);
    f->sampling = stele_default_sampling(image);
    f->stops = stele_stop_ids(image, &f->stop_count);
    f->provenance = (const char *)image_section(f->image, SECTION_PROVENANCE, &f->provenance_bytes);
    return status;
}

/* ---- operands ---- */

float describe_number(uint32_t word)
{
    float number;
    memcpy(&number, &word, sizeof number);
    return number;
}

bool describe_none(enum plan_kind kind, uint32_t word)
{
    return word == PLAN_NONE &&
           (kind == KIND_SLOT_OR_NONE || kind == KIND_VECTOR_OR_NONE || kind == KIND_ROPE_OR_NONE);
}

const char *describe_activation(uint32_t activation)
{
    static const char *const names[] = {"none", "silu_gate", "gelu_gate", "clamped_gate"};
    static_assert(sizeof names / sizeof *names == ACTIVATIONS, "a name for each");
    return names[activation];
}

/* ---- the forms ---- */

enum stele_status stele_image_describe(const struct stele_image *image, enum stele_description form, char **text,
                                       size_t *bytes, struct stele_error *err)
{
    static void (*const forms[])(const struct facts *) = {
        [STELE_DESCRIBE_JSON] = describe_json,
        [STELE_DESCRIBE_SUMMARY] = describe_summary,
        [STELE_DESCRIBE_PLAN] = describe_plan,
        [STELE_DESCRIBE_TENSORS] = describe_tensors,
        [STELE_DESCRIBE_RESIDENCY] = describe_residency,
    };
    struct facts f = {0};
    *text = NULL;
    *bytes = 0;
    if ((size_t)form >= sizeof forms / sizeof *forms)
        return stele_fail(err, STELE_USAGE, "no form %d of a description", (int)form);
    enum stele_status status = STELE_OK;
    if (form == STELE_DESCRIBE_RESIDENCY) /* before anything is touched */
        status = image_residency(&f.residency, (const struct image *)image, err);
    if (status == STELE_OK)
        status = gather(&f, image, err);
    if (status == STELE_OK && !(f.to = open_memstream(text, bytes)))
        status = stele_fail(err, STELE_SYSTEM, "no memory for a description");
    if (status == STELE_OK) {
        forms[form](&f);
        bool failed = ferror(f.to);
        if (fclose(f.to) || failed) {
            free(*text);
            *text = NULL;
            *bytes = 0;
            status = stele_fail(err, STELE_SYSTEM, "no memory for a description");
        }
    }
    residency_free(&f.residency);
    free(f.plan_memory);
    return status;
}
