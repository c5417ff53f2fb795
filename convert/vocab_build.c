/* SPDX-License-Identifier: Apache-2.0 */
/* From tokenizer.json to the tokenizer section: walks the components and hands each to the file that compiles it.
 *
 * Each component has a row in a table with its name and a function; what has none is refused by name. `truncation` and
 * `padding` are left alone: transformers sets both anew on every call. */
#include "vocab_build.h"
#include "normalize.h"
#include "utf8.h"
#include "vocab_draft.h"

#include <stdlib.h>

enum { SEQUENCE_DEPTH_MAX = 8, TEMPLATE_MAX = 1024 };

/* What the post-processors so far make of a text: ids and TEMPLATE_TEXT, in parts. The library hands the parts on, and a
 * template over two parts is its form for pairs. */
struct template {
    uint32_t ids[TEMPLATE_MAX];
    size_t count;
    size_t ends[TEMPLATE_MAX]; /* where each part ends in `ids` */
    size_t part_count;
};

struct builder {
    struct draft draft;
    struct stele_error *err;
    const json_t *root;
    struct draft_added *added; /* [added_count]: special ones first, as the library orders them */
    size_t added_count;
    struct template template;
    bool fused; /* decoders so far have made one token of all */
};

/* A kind of component: its place in the JSON, the list that its Sequence has, and what it may be. */
struct component {
    const char *name;
    enum stele_status (*compile)(struct builder *b, const json_t *json);
};

struct kind {
    const char *place, *list;
    const struct component *components; /* ends with a NULL name */
};

/* ---------------------------------------------------------------------------------------------------- reading fields */

static enum stele_status malformed(struct builder *b, const char *place, const char *field, const json_t *value)
{
    char shown[64];
    return stele_fail(b->err, STELE_INPUT, "%s: %s: %s is %s, which is not supported", b->draft.path, place, field,
                      json_show(value, shown));
}

/* A boolean, or `absent` where the field is not there or null. */
static enum stele_status get_bool(struct builder *b, const char *place, const json_t *json, const char *field,
                                  bool absent, bool *out)
{
    const json_t *value = json_object_get(json, field);
    *out = json_is_boolean(value) ? json_is_true(value) : absent;
    if (!value || json_is_null(value) || json_is_boolean(value))
        return STELE_OK;
    return malformed(b, place, field, value);
}

static enum stele_status get_string(struct builder *b, const char *place, const json_t *json, const char *field,
                                    const char **text, size_t *length)
{
    const json_t *value = json_object_get(json, field);
    *text = "";
    *length = 0;
    if (!json_is_string(value))
        return malformed(b, place, field, value);
    *text = json_string_value(value);
    *length = json_string_length(value);
    return STELE_OK;
}

static enum stele_status put_string(struct builder *b, const char *place, const json_t *json, const char *field,
                                    struct vocab_string *out)
{
    const char *text = "";
    size_t length = 0;
    enum stele_status status = get_string(b, place, json, field, &text, &length);
    return status ? status : draft_string(&b->draft, text, length, out, b->err);
}

/* {"String": text} or {"Regex": text}. */
static enum stele_status get_pattern(struct builder *b, const char *place, const json_t *json, bool *regex,
                                     const char **text, size_t *length)
{
    const json_t *pattern = json_object_get(json, "pattern");
    *regex = json_object_get(pattern, "Regex") != NULL;
    enum stele_status status = get_string(b, place, pattern, *regex ? "Regex" : "String", text, length);
    if (!status && !*length)
        return stele_fail(b->err, STELE_INPUT, "%s: %s: an empty pattern is not supported", b->draft.path, place);
    return status;
}

/* -------------------------------------------------------------------------------------------------- components at all */

static enum stele_status compile(struct builder *b, const struct kind *kind, const json_t *json, int depth)
{
    if (!json || json_is_null(json))
        return STELE_OK;
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type)
        return malformed(b, kind->place, "type", json_object_get(json, "type"));
    if (!strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(json, kind->list), *item;
        enum stele_status status = STELE_OK;
        size_t i;
        if (!json_is_array(list) || depth == SEQUENCE_DEPTH_MAX)
            return malformed(b, kind->place, kind->list, list);
        json_array_foreach((json_t *)(uintptr_t)list, i, item)
        {
            if (!status)
                status = json_is_null(item) ? malformed(b, kind->place, kind->list, item)
                                            : compile(b, kind, item, depth + 1);
        }
        return status;
    }
    for (const struct component *c = kind->components; c->name; c++)
        if (!strcmp(c->name, type))
            return c->compile(b, json);
    return stele_fail(b->err, STELE_INPUT, "%s: %s: the component %s is not supported", b->draft.path, kind->place, type);
}

/* ----------------------------------------------------------------------------------------------------- normalizers */

#define NORMALIZER "normalizer"

static enum stele_status put_normalizer(struct builder *b, const struct vocab_step *step)
{
    if (draft_count(&b->draft, VOCAB_NORMALIZERS, sizeof *step) == NORMALIZE_STEPS_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: more than %d normalizers", b->draft.path, NORMALIZE_STEPS_MAX);
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

static const struct kind NORMALIZERS = {
    NORMALIZER, "normalizers",
    (const struct component[]){
        {"Prepend", normalizer_prepend},
        {"Replace", normalizer_replace},
        {"NFC", normalizer_nfc},
        {"NFD", normalizer_nfd},
        {"Strip", normalizer_strip},
        {NULL, NULL},
    }};

/* -------------------------------------------------------------------------------------------------- pre-tokenizers */

#define PRE "pre_tokenizer"

/* The pattern that ByteLevel has of its own: GPT-2's. */
static const char BYTE_LEVEL_PATTERN[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static enum stele_status put_stage(struct builder *b, struct vocab_stage stage)
{
    if (draft_count(&b->draft, VOCAB_STAGES, sizeof stage) == 16)
        return stele_fail(b->err, STELE_INPUT, "%s: more than 16 pre-tokenizers", b->draft.path);
    return draft_put(&b->draft, VOCAB_STAGES, &stage, sizeof stage, b->err);
}

static enum stele_status put_split(struct builder *b, uint32_t pattern, enum split_behavior behavior, bool inverted)
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
        status = draft_regex(&b->draft, place, BYTE_LEVEL_PATTERN, sizeof BYTE_LEVEL_PATTERN - 1, &pattern, b->err);
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
    enum stele_status status = get_bool(b, PRE " Digits", json, "individual_digits", false, &individual);
    if (!status)
        status = draft_one_of(&b->draft, "Numeric", &pattern, b->err);
    return status ? status : put_split(b, pattern, individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false);
}

/* `always`, `first` or `never`; files of an older library have add_prefix_space instead. */
static enum stele_status get_scheme(struct builder *b, const char *place, const json_t *json,
                                    enum metaspace_scheme *out)
{
    static const char *const names[] = {
        [METASPACE_ALWAYS] = "always", [METASPACE_FIRST] = "first", [METASPACE_NEVER] = "never"};
    const json_t *value = json_object_get(json, "prepend_scheme");
    bool prefix;
    enum stele_status status = get_bool(b, place, json, "add_prefix_space", true, &prefix);
    if (!status && !value) {
        *out = prefix ? METASPACE_ALWAYS : METASPACE_NEVER;
        return STELE_OK;
    }
    for (int i = 0; !status && json_is_string(value) && i < 3; i++)
        if (!strcmp(names[i], json_string_value(value))) {
            *out = (enum metaspace_scheme)i;
            if (!prefix && i != METASPACE_NEVER)
                return malformed(b, place, "add_prefix_space", json_object_get(json, "add_prefix_space"));
            return STELE_OK;
        }
    return status ? status : malformed(b, place, "prepend_scheme", value);
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

static const struct kind PRE_TOKENIZERS = {
    PRE, "pretokenizers",
    (const struct component[]){
        {"ByteLevel", pre_byte_level},
        {"Split", pre_split},
        {"Digits", pre_digits},
        {"Metaspace", pre_metaspace},
        {"Whitespace", pre_whitespace},
        {"WhitespaceSplit", pre_whitespace_split},
        {"Punctuation", pre_punctuation},
        {NULL, NULL},
    }};

/* -------------------------------------------------------------------------------------------------- post-processors */

#define POST "post_processor"

static enum stele_status post_byte_level(struct builder *b, const json_t *json)
{
    (void)b, (void)json; /* it only moves offsets, which stele does not have */
    return STELE_OK;
}

/* Appends a part to a template under way. */
static enum stele_status template_put(struct builder *b, struct template *made, const uint32_t *ids, size_t n)
{
    if (n > TEMPLATE_MAX - made->count || made->part_count == TEMPLATE_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: " POST ": its templates make more than %d ids", b->draft.path,
                          TEMPLATE_MAX);
    memcpy(made->ids + made->count, ids, n * sizeof *ids);
    made->count += n;
    made->ends[made->part_count++] = made->count;
    return STELE_OK;
}

/* {"SpecialToken": {"id": name}}: the ids that special_tokens has for the name. */
static enum stele_status template_special(struct builder *b, const json_t *json, const char *name,
                                          struct template *made)
{
    const char *place = POST " TemplateProcessing";
    const json_t *list = json_object_get(json_object_get(json_object_get(json, "special_tokens"), name), "ids");
    uint32_t ids[TEMPLATE_MAX];
    if (!json_is_array(list) || json_array_size(list) > TEMPLATE_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: %s: special_tokens has no ids for \"%.100s\"", b->draft.path, place,
                          name);
    for (size_t i = 0; i < json_array_size(list); i++) {
        uint64_t id;
        if (!json_whole(json_array_get(list, i), VOCAB_IDS_MAX - 2, &id))
            return malformed(b, place, "an id", json_array_get(list, i));
        ids[i] = (uint32_t)id;
    }
    return template_put(b, made, ids, json_array_size(list));
}

/* {"Sequence": {"id": "A"}}: the first part so far; "B" is the second, where there are two. */
static enum stele_status template_piece(struct builder *b, const json_t *json, const json_t *piece,
                                        struct template *made)
{
    const json_t *special = json_object_get(piece, "SpecialToken");
    const char *name = json_string_value(json_object_get(special, "id"));
    if (name)
        return template_special(b, json, name, made);
    const char *which = json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
    size_t part = which && !strcmp(which, "B");
    if (!which || (strcmp(which, "A") && strcmp(which, "B")) || part >= b->template.part_count)
        return malformed(b, POST " TemplateProcessing", "a piece", piece);
    size_t begin = part ? b->template.ends[part - 1] : 0;
    return template_put(b, made, b->template.ids + begin, b->template.ends[part] - begin);
}

static enum stele_status post_template(struct builder *b, const json_t *json)
{
    const char *place = POST " TemplateProcessing", *form = b->template.part_count == 1 ? "single" : "pair";
    const json_t *pieces = json_object_get(json, form);
    if (b->template.part_count > 2)
        return stele_fail(b->err, STELE_INPUT, "%s: %s: after another template that makes %zu parts it is not supported",
                          b->draft.path, place, b->template.part_count);
    if (!json_is_array(pieces))
        return malformed(b, place, form, pieces);
    struct template *made = calloc(1, sizeof *made);
    enum stele_status status = made ? STELE_OK : stele_fail(b->err, STELE_SYSTEM, "%s: no memory", b->draft.path);
    for (size_t i = 0; i < json_array_size(pieces) && !status; i++)
        status = template_piece(b, json, json_array_get(pieces, i), made);
    if (!status)
        b->template = *made;
    free(made);
    return status;
}

static const struct kind POST_PROCESSORS = {
    POST, "processors",
    (const struct component[]){
        {"ByteLevel", post_byte_level},
        {"TemplateProcessing", post_template},
        {NULL, NULL},
    }};

static enum stele_status put_template(struct builder *b)
{
    const struct template *t = &b->template;
    if (t->count == 1 && t->ids[0] == TEMPLATE_TEXT)
        return STELE_OK;
    for (size_t i = 0; i < t->count; i++)
        if (t->ids[i] != TEMPLATE_TEXT && t->ids[i] >= b->draft.header.ids)
            return stele_fail(b->err, STELE_INPUT, "%s: " POST ": id %u is beyond the vocabulary", b->draft.path,
                              t->ids[i]);
    return draft_put(&b->draft, VOCAB_TEMPLATE, t->ids, t->count * sizeof *t->ids, b->err);
}

/* --------------------------------------------------------------------------------------------------------- decoders */

#define DECODER "decoder"

static enum stele_status put_decoder(struct builder *b, const struct vocab_step *step)
{
    if (draft_count(&b->draft, VOCAB_DECODERS, sizeof *step) == 16)
        return stele_fail(b->err, STELE_INPUT, "%s: more than 16 decoders", b->draft.path);
    return draft_put(&b->draft, VOCAB_DECODERS, step, sizeof *step, b->err);
}

/* For what looks at tokens as wholes: a text that was made one token comes in parts. */
static enum stele_status before_fuse(struct builder *b, const char *name)
{
    if (b->fused)
        return stele_fail(b->err, STELE_INPUT, "%s: " DECODER ": %s behind Fuse or ByteLevel is not supported",
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
        return stele_fail(b->err, STELE_INPUT, "%s: %s: a Regex is not supported here", b->draft.path, place);
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

static const struct kind DECODERS = {
    DECODER, "decoders",
    (const struct component[]){
        {"ByteLevel", decoder_byte_level},
        {"Replace", decoder_replace},
        {"ByteFallback", decoder_byte_fallback},
        {"Fuse", decoder_fuse},
        {"Strip", decoder_strip},
        {"Metaspace", decoder_metaspace},
        {NULL, NULL},
    }};

static enum stele_status compile_decoders(struct builder *b)
{
    const json_t *json = json_object_get(b->root, "decoder");
    if (json && !json_is_null(json))
        return compile(b, &DECODERS, json, 0);
    struct vocab_step join = {.op = STEP_JOIN}; /* without a decoder the library joins tokens by spaces */
    enum stele_status status = draft_string(&b->draft, " ", 1, &join.a, b->err);
    return status ? status : put_decoder(b, &join);
}

/* Where pieces end as byte-level ones, and ids begin as such, neither has to be spelled in the alphabet: texts are
 * bytes. That is the rule; the exception keeps the alphabet. */
static void prefer_raw(struct draft *d)
{
    struct draft_table *stages = &d->tables[VOCAB_STAGES], *decoders = &d->tables[VOCAB_DECODERS];
    const struct vocab_stage *last = (const void *)(stages->data + stages->length - sizeof *last);
    struct vocab_step *steps = (void *)decoders->data;
    if (!stages->length || last->op != STAGE_ALPHABET || decoders->length != 2 * sizeof *steps ||
        steps[0].op != STEP_ALPHABET || steps[1].op != STEP_LOSSY)
        return;
    stages->length -= sizeof *last;
    steps[0] = steps[1];
    decoders->length -= sizeof *steps;
    d->header.flags |= VOCAB_RAW;
}

/* ----------------------------------------------------------------------------------------------------- added tokens */

static bool is_added(const struct builder *b, const char *content, size_t length)
{
    for (size_t i = 0; i < b->added_count; i++)
        if (b->added[i].length == length && !memcmp(b->added[i].content, content, length))
            return true;
    return false;
}

static enum stele_status read_added_token(struct builder *b, const json_t *json, struct draft_added *out)
{
    static const struct {
        const char *name;
        uint32_t flag;
    } flags[] = {{"lstrip", ADDED_LSTRIP}, {"rstrip", ADDED_RSTRIP}, {"single_word", ADDED_SINGLE_WORD}};
    enum stele_status status = get_string(b, "added_tokens", json, "content", &out->content, &out->length);
    for (size_t i = 0; i < 3 && !status; i++) {
        bool on;
        status = get_bool(b, "added_tokens", json, flags[i].name, false, &on);
        out->flags |= on ? flags[i].flag : 0;
    }
    if (!status)
        status = get_bool(b, "added_tokens", json, "normalized", false, &out->normalized);
    if (!status)
        status = get_bool(b, "added_tokens", json, "special", false, &out->special);
    return status;
}

/* The library does not obey the ids of the file: a token that the vocabulary has keeps that id, the others are numbered
 * on from its size. Of two with the same text the first counts. */
static enum stele_status number_added(struct builder *b, const json_t *list, const json_t *vocab)
{
    uint64_t size = json_object_size(vocab), fresh = size, id;
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct draft_added token = {0};
        enum stele_status status = read_added_token(b, json_array_get(list, i), &token);
        if (status)
            return status;
        if (!token.length || is_added(b, token.content, token.length))
            continue;
        const json_t *known = json_object_getn(vocab, token.content, token.length);
        if (known && !json_whole(known, VOCAB_IDS_MAX - 2, &id))
            return malformed(b, "model.vocab", token.content, known);
        if (!known)
            id = fresh;
        if (id >= fresh)
            fresh = id + 1;
        if (id > VOCAB_IDS_MAX - 2)
            return stele_fail(b->err, STELE_INPUT, "%s: more than %u ids", b->draft.path, VOCAB_IDS_MAX - 2);
        token.id = (uint32_t)id;
        b->added[b->added_count++] = token;
    }
    return STELE_OK;
}

static enum stele_status read_added(struct builder *b, const json_t *vocab)
{
    const json_t *list = json_object_get(b->root, "added_tokens");
    size_t n = json_array_size(list);
    if (list && !json_is_array(list) && !json_is_null(list))
        return malformed(b, "added_tokens", "the list", list);
    b->added = calloc(n + 1, sizeof *b->added);
    struct draft_added *sorted = calloc(n + 1, sizeof *sorted);
    enum stele_status status = STELE_OK;
    if (!b->added || !sorted)
        status = stele_fail(b->err, STELE_SYSTEM, "%s: no memory for %zu added tokens", b->draft.path, n);
    if (!status)
        status = number_added(b, list, vocab);
    uint32_t flags = 0;
    size_t count = 0;
    for (int special = 1; special >= 0 && !status; special--)
        for (size_t i = 0; i < b->added_count; i++)
            if (b->added[i].special == special) {
                flags |= b->added[i].flags;
                sorted[count++] = b->added[i];
            }
    if (!status)
        memcpy(b->added, sorted, count * sizeof *sorted);
    free(sorted);
    if (!status && (flags & (ADDED_LSTRIP | ADDED_RSTRIP)))
        status = draft_property(&b->draft, "White_Space", &b->draft.header.space, b->err);
    if (!status && (flags & ADDED_SINGLE_WORD))
        status = draft_property(&b->draft, "Word", &b->draft.header.word, b->err);
    return status;
}

/* A section that can normalise, with an empty vocabulary. */
static enum stele_status assemble_without_model(struct draft *d, uint8_t **out, size_t *length, struct stele_error *err)
{
    static const uint32_t zero[256];
    enum stele_status status = draft_put(d, VOCAB_TOKENS, zero, sizeof *zero, err);
    if (!status)
        status = draft_put(d, VOCAB_UNITS, zero, sizeof zero, err);
    if (!status)
        status = draft_assemble(d, out, length, err);
    d->tables[VOCAB_TOKENS].length = d->tables[VOCAB_UNITS].length = 0;
    return status;
}

/* Tokens that are sought in normalised text are normalised themselves: by the runtime's normaliser, before there is a
 * vocabulary. The library then decodes them as what they have become, too. */
static enum stele_status normalize_added(struct builder *b)
{
    if (!b->draft.tables[VOCAB_NORMALIZERS].length || !b->added_count)
        return STELE_OK;
    uint8_t *section = NULL;
    size_t length;
    struct vocab vocab;
    struct normalizer n = {0};
    enum stele_status status = assemble_without_model(&b->draft, &section, &length, b->err);
    if (!status)
        status = vocab_open(&vocab, section, length, b->err);
    n.vocab = &vocab;
    for (size_t i = 0; i < b->added_count && !status; i++) {
        struct draft_added *a = &b->added[i];
        const char *text;
        size_t bytes;
        if (!a->normalized)
            continue;
        status = normalizer_run(&n, a->content, a->length, &text, &bytes, b->err);
        if (!status && !bytes)
            status = stele_fail(b->err, STELE_INPUT, "%s: added token \"%.100s\": the normalizer leaves nothing of it",
                                b->draft.path, a->content);
        if (!status && !(a->normal = malloc(bytes)))
            status = stele_fail(b->err, STELE_SYSTEM, "%s: no memory for an added token", b->draft.path);
        if (status)
            break;
        memcpy(a->normal, text, bytes);
        a->normal_length = bytes;
    }
    normalizer_free(&n);
    free(section);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------ model */

/* What stele has no counterpart for, unless it is null, "" or 0. */
static enum stele_status refuse_unless_neutral(struct builder *b, const json_t *model, const char *field)
{
    const json_t *value = json_object_get(model, field);
    bool neutral = !value || json_is_null(value) || (json_is_string(value) && !json_string_length(value)) ||
                   (json_is_real(value) && json_real_value(value) == 0);
    return neutral ? STELE_OK : malformed(b, "model", field, value);
}

/* What kind of model it is, and that stele has all of it: before the other components, since it says most. */
static enum stele_status check_model(struct builder *b, const json_t *model)
{
    static const char *const refused[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *type = json_object_get(model, "type");
    const json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    if (type ? !json_is_string(type) || strcmp(json_string_value(type), "BPE") : !merges)
        return stele_fail(b->err, STELE_INPUT, "%s: model: the component %s is not supported", b->draft.path,
                          json_is_string(type) ? json_string_value(type) : "without a type");
    if (!json_is_object(vocab))
        return malformed(b, "model", "vocab", vocab);
    if (!json_is_array(merges))
        return malformed(b, "model", "merges", merges);
    enum stele_status status = STELE_OK;
    for (size_t i = 0; i < 3 && !status; i++)
        status = refuse_unless_neutral(b, model, refused[i]);
    return status;
}

static enum stele_status find_unknown(struct builder *b, const json_t *model)
{
    const json_t *unknown = json_object_get(model, "unk_token");
    b->draft.header.unknown = VOCAB_NONE;
    if (!unknown || json_is_null(unknown))
        return STELE_OK;
    if (!json_is_string(unknown))
        return malformed(b, "model", "unk_token", unknown);
    const json_t *id = json_object_getn(json_object_get(model, "vocab"), json_string_value(unknown),
                                        json_string_length(unknown));
    if (id)
        b->draft.header.unknown = (uint32_t)json_real_value(id);
    else
        b->draft.header.flags |= VOCAB_UNKNOWN_ABSENT;
    return STELE_OK;
}

static enum stele_status compile_model(struct builder *b, const json_t *model)
{
    struct draft *d = &b->draft;
    bool byte_fallback = false, fuse = false, ignore = false;
    enum stele_status status = get_bool(b, "model", model, "byte_fallback", false, &byte_fallback);
    if (!status)
        status = get_bool(b, "model", model, "fuse_unk", false, &fuse);
    if (!status)
        status = get_bool(b, "model", model, "ignore_merges", false, &ignore);
    d->header.flags |= (fuse ? VOCAB_FUSE_UNKNOWN : 0) | (ignore ? VOCAB_IGNORE_MERGES : 0);
    if (!status)
        status = draft_model(d, json_object_get(model, "vocab"), json_object_get(model, "merges"), byte_fallback,
                             b->added, b->added_count, b->err);
    return status ? status : find_unknown(b, model);
}

/* -------------------------------------------------------------------------------------------------------- the whole */

static enum stele_status build(struct builder *b, uint8_t **out, size_t *length)
{
    const json_t *model = json_object_get(b->root, "model");
    enum stele_status status = check_model(b, model);
    if (!status)
        status = compile(b, &NORMALIZERS, json_object_get(b->root, "normalizer"), 0);
    if (!status)
        status = compile(b, &PRE_TOKENIZERS, json_object_get(b->root, "pre_tokenizer"), 0);
    if (!status)
        status = compile_decoders(b);
    if (status)
        return status;
    prefer_raw(&b->draft);
    status = read_added(b, json_object_get(model, "vocab"));
    if (!status)
        status = draft_ranges(&b->draft, b->err);
    if (!status)
        status = normalize_added(b);
    if (!status)
        status = compile_model(b, model);
    b->template = (struct template){.ids = {TEMPLATE_TEXT}, .count = 1, .ends = {1}, .part_count = 1};
    if (!status)
        status = compile(b, &POST_PROCESSORS, json_object_get(b->root, "post_processor"), 0);
    if (!status)
        status = put_template(b);
    if (!status)
        status = draft_tries(&b->draft, b->added, b->added_count, b->err);
    return status ? status : draft_assemble(&b->draft, out, length, b->err);
}

enum stele_status vocab_build(uint8_t **out, size_t *length, const char *path, const char *config_path,
                              struct stele_error *err)
{
    (void)config_path;
    *out = NULL;
    *length = 0;
    json_t *root;
    enum stele_status status = json_read_file(&root, path, err);
    if (status)
        return status;
    struct builder *b = calloc(1, sizeof *b);
    if (!b) {
        json_decref(root);
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", path);
    }
    b->draft.path = path;
    b->err = err;
    b->root = root;
    status = build(b, out, length);
    for (size_t i = 0; i < b->added_count; i++)
        free(b->added[i].normal);
    free(b->added);
    draft_free(&b->draft);
    free(b);
    json_decref(root);
    return status;
}

uint32_t vocab_id_count(const uint8_t *section, size_t length)
{
    struct vocab v;
    return vocab_open(&v, section, length, NULL) ? 0 : v.header.ids;
}

uint32_t vocab_id_of_token(const uint8_t *section, size_t length, const char *text, size_t bytes)
{
    struct vocab v;
    if (vocab_open(&v, section, length, NULL))
        return VOCAB_NONE;
    for (uint32_t id = 0; id < v.header.ids; id++) {
        const char *token;
        size_t token_length, at = 0, matched = 0;
        uint32_t flags;
        if (!vocab_token(&v, id, &token, &token_length, &flags))
            continue;
        if (token_length == bytes && !memcmp(token, text, bytes))
            return id;
        if (!(v.header.flags & VOCAB_RAW))
            continue;
        while (at < bytes && matched < token_length &&
               alphabet_byte(utf8_next(text, bytes, &at)) == (unsigned char)token[matched])
            matched++;
        if (at == bytes && matched == token_length)
            return id;
    }
    return VOCAB_NONE;
}
