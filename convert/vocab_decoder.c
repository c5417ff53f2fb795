/* SPDX-License-Identifier: Apache-2.0 */
/* Decoders: steps that tokens go through on their way to text. */
#include "vocab_component.h"
#include "utf8.h"

#define DECODER "decoder"

static enum stele_status put_decoder(struct builder *b, const struct vocab_step *step)
{
    if (draft_count(&b->draft, VOCAB_DECODERS, sizeof *step) == STEPS_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: more than %d decoders", b->draft.path,
                          STEPS_MAX);
    return draft_put(&b->draft, VOCAB_DECODERS, step, sizeof *step, b->err);
}

/* For what looks at tokens as wholes: a text that was made one token comes in parts. */
static enum stele_status before_fuse(struct builder *b, const char *name)
{
    if (b->fused)
        return stele_fail(b->err, STELE_INPUT,
                          "%s: " DECODER ": %s behind Fuse or ByteLevel is not supported",
                          b->draft.path, name);
    return STELE_OK;
}

static enum stele_status decoder_byte_level(struct builder *b, const json_t *json)
{
    (void)json;
    enum stele_status status = before_fuse(b, "ByteLevel");
    if (!status)
        status = put_decoder(b, &(struct vocab_step){.op = STEP_ALPHABET});
    b->fused = true;
    return status ? status : put_decoder(b, &(struct vocab_step){.op = STEP_LOSSY});
}

static enum stele_status decoder_replace(struct builder *b, const json_t *json)
{
    const char *place = DECODER " Replace", *text;
    size_t length;
    bool regex;
    struct vocab_step step = {.op = STEP_REPLACE};
    enum stele_status status = get_pattern(b, place, json, &regex, &text, &length);
    if (!status && regex)
        return stele_fail(b->err, STELE_INPUT, "%s: %s: a Regex is not supported here",
                          b->draft.path, place);
    if (!status)
        status = draft_string(&b->draft, text, length, &step.a, b->err);
    if (!status)
        status = put_string(b, place, json, "content", &step.b);
    return status ? status : put_decoder(b, &step);
}

static enum stele_status decoder_byte_fallback(struct builder *b, const json_t *json)
{
    (void)json;
    enum stele_status status = before_fuse(b, "ByteFallback");
    return status ? status : put_decoder(b, &(struct vocab_step){.op = STEP_BYTE_FALLBACK});
}

static enum stele_status decoder_fuse(struct builder *b, const json_t *json)
{
    (void)json;
    b->fused = true;
    return put_decoder(b, &(struct vocab_step){.op = STEP_FUSE});
}

static enum stele_status decoder_strip(struct builder *b, const json_t *json)
{
    const char *place = DECODER " Strip", *text = "";
    size_t length = 0;
    uint64_t start = 0, stop = 0;
    struct vocab_step step = {.op = STEP_STRIP};
    enum stele_status status = get_string(b, place, json, "content", &text, &length);
    if (!status && (!length || length != utf8_length((unsigned char)*text)))
        return malformed(b, place, "content", json_object_get(json, "content"));
    if (!status && !json_whole(json_object_get(json, "start"), UINT16_MAX, &start))
        return malformed(b, place, "start", json_object_get(json, "start"));
    if (!status && !json_whole(json_object_get(json, "stop"), UINT16_MAX, &stop))
        return malformed(b, place, "stop", json_object_get(json, "stop"));
    if (!status)
        status = draft_string(&b->draft, text, length, &step.a, b->err);
    if (status)
        return status;
    step.start = (uint16_t)start;
    step.stop = (uint16_t)stop;
    return put_decoder(b, &step);
}

static enum stele_status decoder_metaspace(struct builder *b, const json_t *json)
{
    const char *place = DECODER " Metaspace";
    enum metaspace_scheme scheme = METASPACE_ALWAYS;
    struct vocab_step step = {.op = STEP_METASPACE};
    enum stele_status status = put_string(b, place, json, "replacement", &step.a);
    if (!status)
        status = get_scheme(b, place, json, &scheme);
    if (!status && !step.a.length)
        return malformed(b, place, "replacement", json_object_get(json, "replacement"));
    step.start = scheme != METASPACE_NEVER;
    return status ? status : put_decoder(b, &step);
}

static const struct component components[] = {
    {"ByteLevel", decoder_byte_level},
    {"Replace", decoder_replace},
    {"ByteFallback", decoder_byte_fallback},
    {"Fuse", decoder_fuse},
    {"Strip", decoder_strip},
    {"Metaspace", decoder_metaspace},
    {NULL, NULL},
};

const struct kind decoders = {DECODER, "decoders", components};
