/* SPDX-License-Identifier: Apache-2.0 */
/* Normalizers: steps that a stretch of text goes through. */
#include "vocab_component.h"

#define NORMALIZER "normalizer"

static enum stele_status put_normalizer(struct builder *b, const struct vocab_step *step)
{
    if (draft_count(&b->draft, VOCAB_NORMALIZERS, sizeof *step) == STEPS_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: more than %d normalizers", b->draft.path,
                          STEPS_MAX);
    return draft_put(&b->draft, VOCAB_NORMALIZERS, step, sizeof *step, b->err);
}

static enum stele_status normalizer_prepend(struct builder *b, const json_t *json)
{
    struct vocab_step step = {.op = STEP_PREPEND};
    enum stele_status status = put_string(b, NORMALIZER " Prepend", json, "prepend", &step.a);
    return status ? status : put_normalizer(b, &step);
}

static enum stele_status normalizer_replace(struct builder *b, const json_t *json)
{
    const char *place = NORMALIZER " Replace", *text;
    size_t length;
    bool regex;
    struct vocab_step step = {.op = STEP_REPLACE};
    enum stele_status status = get_pattern(b, place, json, &regex, &text, &length);
    if (!status && regex) {
        uint32_t pattern = 0;
        step.op = STEP_REPLACE_PATTERN;
        status = draft_regex(&b->draft, place, text, length, &pattern, b->err);
        step.pattern = (uint16_t)pattern;
    } else if (!status)
        status = draft_string(&b->draft, text, length, &step.a, b->err);
    if (!status)
        status = put_string(b, place, json, "content", &step.b);
    return status ? status : put_normalizer(b, &step);
}

static enum stele_status normal_form(struct builder *b, enum step_op op)
{
    struct vocab_step step = {.op = (uint16_t)op};
    enum stele_status status = draft_property(&b->draft, "Young", &b->draft.header.young, b->err);
    return status ? status : put_normalizer(b, &step);
}

static enum stele_status normalizer_nfc(struct builder *b, const json_t *json)
{
    (void)json;
    return normal_form(b, STEP_NFC);
}

static enum stele_status normalizer_nfd(struct builder *b, const json_t *json)
{
    (void)json;
    return normal_form(b, STEP_NFD);
}

static enum stele_status normalizer_strip(struct builder *b, const json_t *json)
{
    bool left, right;
    enum stele_status status = get_bool(b, NORMALIZER " Strip", json, "strip_left", true, &left);
    if (!status)
        status = get_bool(b, NORMALIZER " Strip", json, "strip_right", true, &right);
    if (!status)
        status = draft_property(&b->draft, "White_Space", &b->draft.header.space, b->err);
    if (status)
        return status;
    return put_normalizer(b, &(struct vocab_step){.op = STEP_TRIM, .start = left, .stop = right});
}

static const struct component components[] = {
    {"Prepend", normalizer_prepend}, {"Replace", normalizer_replace}, {"NFC", normalizer_nfc},
    {"NFD", normalizer_nfd},         {"Strip", normalizer_strip},     {NULL, NULL},
};

const struct kind normalizers = {NORMALIZER, "normalizers", components};
