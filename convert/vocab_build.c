/* SPDX-License-Identifier: Apache-2.0 */
/* From tokenizer.json to the tokenizer section: the components, the added tokens, the model.
 *
 * `truncation` and `padding` are left alone: transformers sets both anew on every call. */
#include "vocab_build.h"
#include "normalize.h"
#include "utf8.h"
#include "vocab_component.h"

#include <stdlib.h>
#include <utf8proc.h>

/* ------------------------------------------------------------------------------------ decoders */

static enum stele_status compile_decoders(struct builder *b)
{
    const json_t *json = json_object_get(b->root, "decoder");
    if (json && !json_is_null(json))
        return component_compile(b, &decoders, json);
    struct vocab_step join = {
        .op = STEP_JOIN}; /* without a decoder the library joins tokens by spaces */
    enum stele_status status = draft_string(&b->draft, " ", 1, &join.a, b->err);
    return status ? status : draft_put(&b->draft, VOCAB_DECODERS, &join, sizeof join, b->err);
}

/* Where pieces end as byte-level ones, and ids begin as such, neither has to be spelled in the
 * alphabet: texts are bytes. That is the rule; the exception keeps the alphabet. */
static void prefer_raw(struct draft *d)
{
    struct draft_table *stages = &d->tables[VOCAB_STAGES], *chain = &d->tables[VOCAB_DECODERS];
    const struct vocab_stage *all = (const void *)stages->data;
    struct vocab_step *steps = (void *)chain->data;
    size_t count = stages->length / sizeof *all;
    if (!count || all[count - 1].op != STAGE_ALPHABET || chain->length != 2 * sizeof *steps ||
        steps[0].op != STEP_ALPHABET || steps[1].op != STEP_LOSSY)
        return;
    stages->length -= sizeof *all;
    steps[0] = steps[1];
    chain->length -= sizeof *steps;
    d->header.flags |= VOCAB_RAW;
}

/* -------------------------------------------------------------------------------- added tokens */

static bool is_added(const struct builder *b, const char *content, size_t length)
{
    for (size_t i = 0; i < b->added_count; i++)
        if (b->added[i].length == length && !memcmp(b->added[i].content, content, length))
            return true;
    return false;
}

/* White space alone, or one character: vocabularies have such tokens for text, not for control. */
static bool is_ordinary(const char *content, size_t length)
{
    size_t at = 0, characters = 0, spaces = 0;
    for (; at < length; characters++) {
        uint32_t c = utf8_next(content, length, &at);
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
        spaces += (c >= '\t' && c <= '\r') || c == 0x85 || c == 0x2581 || k == UTF8PROC_CATEGORY_ZS ||
                  k == UTF8PROC_CATEGORY_ZL || k == UTF8PROC_CATEGORY_ZP;
    }
    return characters == 1 || spaces == characters;
}

static enum stele_status read_added_token(struct builder *b, const json_t *json,
                                          struct draft_added *out)
{
    static const struct {
        const char *name;
        uint32_t flag;
    } flags[] = {
        {"lstrip", ADDED_LSTRIP}, {"rstrip", ADDED_RSTRIP}, {"single_word", ADDED_SINGLE_WORD}};
    enum stele_status status =
        get_string(b, "added_tokens", json, "content", &out->content, &out->length);
    for (size_t i = 0; i < 3 && !status; i++) {
        bool on;
        status = get_bool(b, "added_tokens", json, flags[i].name, false, &on);
        out->flags |= on ? flags[i].flag : 0;
    }
    if (!status)
        status = get_bool(b, "added_tokens", json, "normalized", false, &out->normalized);
    if (!status)
        status = get_bool(b, "added_tokens", json, "special", false, &out->special);
    if (!status && !out->special && is_ordinary(out->content, out->length))
        out->flags |= ADDED_ORDINARY;
    return status;
}

/* The library does not obey the ids of the file: a token that the vocabulary has keeps that id, the
 * others are numbered on from its size, whatever ids lie beyond it. Of two with the same text the
 * first counts. */
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
            id = fresh++;
        if (id > VOCAB_IDS_MAX - 2)
            return stele_fail(b->err, STELE_INPUT, "%s: more than %u ids", b->draft.path,
                              VOCAB_IDS_MAX - 2);
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
        status = stele_fail(b->err, STELE_SYSTEM, "%s: no memory for %zu added tokens",
                            b->draft.path, n);
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
static enum stele_status assemble_without_model(struct draft *d, uint8_t **out, size_t *length,
                                                struct stele_error *err)
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

/* Tokens that are sought in normalised text are normalised themselves: by the runtime's normaliser,
 * before there is a vocabulary. The library then decodes them as what they have become, too. */
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
            status = stele_fail(b->err, STELE_INPUT,
                                "%s: added token \"%.100s\": the normalizer leaves nothing of it",
                                b->draft.path, a->content);
        if (!status && !(a->normal = malloc(bytes)))
            status =
                stele_fail(b->err, STELE_SYSTEM, "%s: no memory for an added token", b->draft.path);
        if (status)
            break;
        memcpy(a->normal, text, bytes);
        a->normal_length = bytes;
    }
    normalizer_free(&n);
    free(section);
    return status;
}

/* --------------------------------------------------------------------------------------- model */

/* What stele has no counterpart for, unless it is null, "" or 0. */
static enum stele_status refuse_unless_neutral(struct builder *b, const json_t *model,
                                               const char *field)
{
    const json_t *value = json_object_get(model, field);
    bool neutral = !value || json_is_null(value) ||
                   (json_is_string(value) && !json_string_length(value)) ||
                   (json_is_real(value) && json_real_value(value) == 0);
    return neutral ? STELE_OK : malformed(b, "model", field, value);
}

/* What kind of model it is, and that stele has all of it: before the other components, since it
 * says most. */
static enum stele_status check_model(struct builder *b, const json_t *model)
{
    static const char *const refused[] = {"dropout", "continuing_subword_prefix",
                                          "end_of_word_suffix"};
    const json_t *type = json_object_get(model, "type");
    const json_t *vocab = json_object_get(model, "vocab"),
                 *merges = json_object_get(model, "merges");
    if (type ? !json_is_string(type) || strcmp(json_string_value(type), "BPE") : !merges)
        return stele_fail(b->err, STELE_INPUT, "%s: model: the component %s is not supported",
                          b->draft.path,
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
        status = draft_model(d, json_object_get(model, "vocab"), json_object_get(model, "merges"),
                             byte_fallback, b->added, b->added_count, b->err);
    return status ? status : find_unknown(b, model);
}

/* ----------------------------------------------------------------------------------- the whole */

static enum stele_status build(struct builder *b, uint8_t **out, size_t *length)
{
    const json_t *model = json_object_get(b->root, "model");
    enum stele_status status = check_model(b, model);
    if (!status)
        status = component_compile(b, &normalizers, json_object_get(b->root, "normalizer"));
    if (!status)
        status = component_compile(b, &pre_tokenizers, json_object_get(b->root, "pre_tokenizer"));
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
    b->template =
        (struct template){.ids = {TEMPLATE_TEXT}, .count = 1, .ends = {1}, .part_count = 1};
    if (!status)
        status = component_compile(b, &post_processors, json_object_get(b->root, "post_processor"));
    if (!status)
        status = template_finish(b);
    if (!status)
        status = draft_tries(&b->draft, b->added, b->added_count, b->err);
    return status ? status : draft_assemble(&b->draft, out, length, b->err);
}

enum stele_status vocab_build(uint8_t **out, size_t *length, const char *path,
                              const char *config_path, struct stele_error *err)
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
