/* SPDX-License-Identifier: Apache-2.0 */
#include "vocab_component.h"

enum { SEQUENCE_DEPTH_MAX = 8 };

enum stele_status malformed(struct builder *b, const char *place, const char *field,
                            const json_t *value)
{
    char shown[64];
    return stele_fail(b->err, STELE_INPUT, "%s: %s: %s is %s, which is not supported",
                      b->draft.path, place, field, json_show(value, shown));
}

enum stele_status get_bool(struct builder *b, const char *place, const json_t *json,
                           const char *field, bool absent, bool *out)
{
    const json_t *value = json_object_get(json, field);
    *out = json_is_boolean(value) ? json_is_true(value) : absent;
    if (!value || json_is_null(value) || json_is_boolean(value))
        return STELE_OK;
    return malformed(b, place, field, value);
}

enum stele_status get_string(struct builder *b, const char *place, const json_t *json,
                             const char *field, const char **text, size_t *length)
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

enum stele_status put_string(struct builder *b, const char *place, const json_t *json,
                             const char *field, struct vocab_string *out)
{
    const char *text = "";
    size_t length = 0;
    enum stele_status status = get_string(b, place, json, field, &text, &length);
    return status ? status : draft_string(&b->draft, text, length, out, b->err);
}

enum stele_status get_pattern(struct builder *b, const char *place, const json_t *json, bool *regex,
                              const char **text, size_t *length)
{
    const json_t *pattern = json_object_get(json, "pattern");
    *regex = json_object_get(pattern, "Regex") != NULL;
    enum stele_status status =
        get_string(b, place, pattern, *regex ? "Regex" : "String", text, length);
    if (!status && !*length)
        return stele_fail(b->err, STELE_INPUT, "%s: %s: an empty pattern is not supported",
                          b->draft.path, place);
    return status;
}

enum stele_status get_scheme(struct builder *b, const char *place, const json_t *json,
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
                return malformed(b, place, "add_prefix_space",
                                 json_object_get(json, "add_prefix_space"));
            return STELE_OK;
        }
    return status ? status : malformed(b, place, "prepend_scheme", value);
}

static enum stele_status compile(struct builder *b, const struct kind *kind, const json_t *json,
                                 int depth)
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
    return stele_fail(b->err, STELE_INPUT, "%s: %s: the component %s is not supported",
                      b->draft.path, kind->place, type);
}

enum stele_status component_compile(struct builder *b, const struct kind *kind, const json_t *json)
{
    return compile(b, kind, json, 0);
}
