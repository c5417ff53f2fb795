/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-tokenizers: stages that cut a text into pieces. */
#include "vocab_component.h"
#include "utf8.h"

#define PRE "pre_tokenizer"

/* The pattern that ByteLevel has of its own: GPT-2's. */
static const char BYTE_LEVEL_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static enum stele_status put_stage(struct builder *b, struct vocab_stage stage)
{
    if (draft_count(&b->draft, VOCAB_STAGES, sizeof stage) == STEPS_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: more than %d pre-tokenizers", b->draft.path,
                          STEPS_MAX);
    return draft_put(&b->draft, VOCAB_STAGES, &stage, sizeof stage, b->err);
}

static enum stele_status put_split(struct builder *b, uint32_t pattern,
                                   enum split_behavior behavior, bool inverted)
{
    return put_stage(b, (struct vocab_stage){.op = STAGE_SPLIT,
                                             .behavior = (uint8_t)behavior,
                                             .flag = inverted,
                                             .pattern = pattern});
}

static enum stele_status get_behavior(struct builder *b, const char *place, const json_t *json,
                                      enum split_behavior *out)
{
    static const char *const names[SPLIT_BEHAVIORS] = {
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
        [SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const json_t *value = json_object_get(json, "behavior");
    for (int i = 0; json_is_string(value) && i < SPLIT_BEHAVIORS; i++)
        if (!strcmp(names[i], json_string_value(value))) {
            *out = (enum split_behavior)i;
            return STELE_OK;
        }
    return malformed(b, place, "behavior", value);
}

static enum stele_status pre_byte_level(struct builder *b, const json_t *json)
{
    const char *place = PRE " ByteLevel";
    bool prefix, regex;
    uint32_t pattern;
    enum stele_status status = get_bool(b, place, json, "add_prefix_space", true, &prefix);
    if (!status)
        status = get_bool(b, place, json, "use_regex", true, &regex);
    if (!status && prefix)
        status = put_stage(b, (struct vocab_stage){.op = STAGE_PREFIX_SPACE});
    if (!status && regex) {
        status = draft_regex(&b->draft, place, BYTE_LEVEL_PATTERN, sizeof BYTE_LEVEL_PATTERN - 1,
                             &pattern, b->err);
        if (!status)
            status = put_split(b, pattern, SPLIT_ISOLATED, false);
    }
    return status ? status : put_stage(b, (struct vocab_stage){.op = STAGE_ALPHABET});
}

static enum stele_status pre_split(struct builder *b, const json_t *json)
{
    const char *place = PRE " Split", *text;
    size_t length;
    bool regex, inverted;
    uint32_t pattern = 0;
    enum split_behavior behavior = SPLIT_ISOLATED;
    enum stele_status status = get_pattern(b, place, json, &regex, &text, &length);
    if (!status)
        status = regex ? draft_regex(&b->draft, place, text, length, &pattern, b->err)
                       : draft_literal(&b->draft, place, text, length, &pattern, b->err);
    if (!status)
        status = get_behavior(b, place, json, &behavior);
    if (!status)
        status = get_bool(b, place, json, "invert", false, &inverted);
    return status ? status : put_split(b, pattern, behavior, inverted);
}

static enum stele_status pre_digits(struct builder *b, const json_t *json)
{
    bool individual;
    uint32_t pattern;
    enum stele_status status =
        get_bool(b, PRE " Digits", json, "individual_digits", false, &individual);
    if (!status)
        status = draft_one_of(&b->draft, "Numeric", &pattern, b->err);
    return status ? status
                  : put_split(b, pattern, individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false);
}

/* Which piece comes first is a question of where it stood in the text as it came. That is plain as
 * long as nothing has rewritten the text; the library keeps a map of what has. */
static bool starts_are_known(const struct draft *d)
{
    const struct vocab_stage *stages = (const void *)d->tables[VOCAB_STAGES].data;
    for (size_t i = 0; i < draft_count(d, VOCAB_STAGES, sizeof *stages); i++)
        if (stages[i].op != STAGE_SPLIT)
            return false;
    return !d->tables[VOCAB_NORMALIZERS].length;
}

static enum stele_status pre_metaspace(struct builder *b, const json_t *json)
{
    const char *place = PRE " Metaspace", *mark = "";
    size_t length = 0;
    bool split = true;
    uint32_t pattern;
    enum metaspace_scheme scheme = METASPACE_ALWAYS;
    struct vocab_stage stage = {.op = STAGE_METASPACE};
    enum stele_status status = get_string(b, place, json, "replacement", &mark, &length);
    if (!status && (!length || length != utf8_length((unsigned char)*mark)))
        return malformed(b, place, "replacement", json_object_get(json, "replacement"));
    if (!status)
        status = get_scheme(b, place, json, &scheme);
    if (!status)
        status = get_bool(b, place, json, "split", true, &split);
    if (!status)
        status = draft_string(&b->draft, mark, length, &stage.a, b->err);
    stage.flag = (uint8_t)scheme;
    if (!status && scheme == METASPACE_FIRST && !starts_are_known(&b->draft))
        return stele_fail(
            b->err, STELE_INPUT,
            "%s: %s: prepend_scheme \"first\" behind a normalizer, ByteLevel or Metaspace "
            "is not supported",
            b->draft.path, place);
    if (!status)
        status = put_stage(b, stage);
    if (status || !split)
        return status;
    status = draft_literal(&b->draft, place, mark, length, &pattern, b->err);
    return status ? status : put_split(b, pattern, SPLIT_MERGED_WITH_NEXT, false);
}

/* \w+|[^\w\s]+, and what lies between goes. */
static enum stele_status pre_whitespace(struct builder *b, const json_t *json)
{
    (void)json;
    uint32_t pattern;
    enum stele_status status = draft_runs_of(&b->draft, "Word", "Neither", &pattern, b->err);
    return status ? status : put_split(b, pattern, SPLIT_REMOVED, true);
}

static enum stele_status pre_whitespace_split(struct builder *b, const json_t *json)
{
    (void)json;
    uint32_t pattern;
    enum stele_status status = draft_one_of(&b->draft, "White_Space", &pattern, b->err);
    return status ? status : put_split(b, pattern, SPLIT_REMOVED, false);
}

static enum stele_status pre_punctuation(struct builder *b, const json_t *json)
{
    uint32_t pattern;
    enum split_behavior behavior = SPLIT_ISOLATED;
    enum stele_status status = STELE_OK;
    if (json_object_get(json, "behavior"))
        status = get_behavior(b, PRE " Punctuation", json, &behavior);
    if (!status)
        status = draft_one_of(&b->draft, "Punctuation", &pattern, b->err);
    return status ? status : put_split(b, pattern, behavior, false);
}

static const struct component components[] = {
    {"ByteLevel", pre_byte_level},    {"Split", pre_split},
    {"Digits", pre_digits},           {"Metaspace", pre_metaspace},
    {"Whitespace", pre_whitespace},   {"WhitespaceSplit", pre_whitespace_split},
    {"Punctuation", pre_punctuation}, {NULL, NULL},
};

const struct kind pre_tokenizers = {PRE, "pretokenizers", components};
