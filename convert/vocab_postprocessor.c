/* SPDX-License-Identifier: Apache-2.0 */
/* Post-processors: what stands around the ids of a text. */
#include "vocab_component.h"

#include <stdlib.h>

#define POST "post_processor"

static enum stele_status post_byte_level(struct builder *b, const json_t *json)
{
    (void)b, (void)json; /* it only moves offsets, which stele does not have */
    return STELE_OK;
}

/* Appends a part to a template under way. */
static enum stele_status template_put(struct builder *b, struct template *made, const uint32_t *ids,
                                      size_t n)
{
    if (n > TEMPLATE_MAX - made->count || made->part_count == TEMPLATE_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: " POST ": its templates make more than %d ids",
                          b->draft.path, TEMPLATE_MAX);
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
    const json_t *list =
        json_object_get(json_object_get(json_object_get(json, "special_tokens"), name), "ids");
    uint32_t ids[TEMPLATE_MAX];
    if (!json_is_array(list) || json_array_size(list) > TEMPLATE_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: %s: special_tokens has no ids for \"%.100s\"",
                          b->draft.path, place, name);
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
    const char *which =
        json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
    size_t part = which && !strcmp(which, "B");
    if (!which || (strcmp(which, "A") && strcmp(which, "B")) || part >= b->template.part_count)
        return malformed(b, POST " TemplateProcessing", "a piece", piece);
    size_t begin = part ? b->template.ends[part - 1] : 0;
    return template_put(b, made, b->template.ids + begin, b->template.ends[part] - begin);
}

static enum stele_status post_template(struct builder *b, const json_t *json)
{
    const char *place = POST " TemplateProcessing",
               *form = b->template.part_count == 1 ? "single" : "pair";
    const json_t *pieces = json_object_get(json, form);
    if (b->template.part_count > 2)
        return stele_fail(b->err, STELE_INPUT,
                          "%s: %s: after another template that makes %zu parts it is not supported",
                          b->draft.path, place, b->template.part_count);
    if (!json_is_array(pieces))
        return malformed(b, place, form, pieces);
    struct template *made = calloc(1, sizeof *made);
    enum stele_status status =
        made ? STELE_OK : stele_fail(b->err, STELE_SYSTEM, "%s: no memory", b->draft.path);
    for (size_t i = 0; i < json_array_size(pieces) && !status; i++)
        status = template_piece(b, json, json_array_get(pieces, i), made);
    if (!status)
        b->template = *made;
    free(made);
    return status;
}

static const struct component components[] = {
    {"ByteLevel", post_byte_level},
    {"TemplateProcessing", post_template},
    {NULL, NULL},
};

const struct kind post_processors = {POST, "processors", components};

enum stele_status template_finish(struct builder *b)
{
    const struct template *t = &b->template;
    if (t->count == 1 && t->ids[0] == TEMPLATE_TEXT)
        return STELE_OK;
    for (size_t i = 0; i < t->count; i++)
        if (t->ids[i] != TEMPLATE_TEXT && t->ids[i] >= b->draft.header.ids)
            return stele_fail(b->err, STELE_INPUT, "%s: " POST ": id %u is beyond the vocabulary",
                              b->draft.path, t->ids[i]);
    return draft_put(&b->draft, VOCAB_TEMPLATE, t->ids, t->count * sizeof *t->ids, b->err);
}
