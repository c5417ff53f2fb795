/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "chat.h"
#include "space.h"

#define TAG "CONTINUE_FINAL_MESSAGE_TAG "

static const char *const reasoning_fields[] = {"reasoning_content", "thinking", "reasoning"};

enum { REASONING_FIELDS = 3, VARIABLES_FIXED = 4 };

static struct value plain_text(const char *text)
{
    return value_text(text, strlen(text), ORIGIN_CONTENT);
}

/* ---------------------------------------------------------------------------------------- messages
 */

static bool plain_word(const struct value *v)
{
    for (uint32_t i = 0; i < v->count; i++) {
        char c = v->text[i], low = c | 0x20;
        if (!((c >= '0' && c <= '9') || (low >= 'a' && low <= 'z') || c == '_'))
            return false;
    }
    return true;
}

/* Whether a role is one that templates know. Some make tokens of roles ("<|" + role + "|>"), so one of another word is
 * content: "end" would be the token <|end|>. */
static bool known_role(const struct value *v)
{
    static const char *const roles[] = {"assistant", "context",     "developer", "environment", "function",     "ipython",
                                        "model",     "observation", "system",    "tool",        "tool_results", "user"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (value_is_text(v, roles[i]))
            return true;
    return false;
}

static struct entry *entry_named(const struct value *dict, struct entry *entries, const char *name)
{
    for (uint32_t i = 0; i < dict->count; i++)
        if (value_is_text(&entries[i].key, name))
            return &entries[i];
    return NULL;
}

/* A message as the template sees it: without what is null; reasoning under both its names. */
static bool message(struct heap *h, const struct value *in, struct value *out)
{
    struct entry *entries = heap_alloc(h, (size_t)in->count + 2, sizeof *entries), *e;
    struct value made = {.kind = VALUE_DICT, .origin = in->origin};
    const struct value *reasoning = NULL;
    if (!entries)
        return false;
    for (int i = 0; i < REASONING_FIELDS && !reasoning; i++) {
        reasoning = value_find_text(h, in, reasoning_fields[i], strlen(reasoning_fields[i]));
        if (reasoning && reasoning->kind == VALUE_NONE)
            reasoning = NULL;
    }
    if (reasoning)
        entries[made.count++] = (struct entry){plain_text("thinking"), *reasoning};
    for (uint32_t i = 0; i < in->count; i++) {
        if (in->entries[i].value.kind == VALUE_NONE)
            continue;
        if (reasoning && value_is_text(&in->entries[i].key, "thinking"))
            entries[0].value = in->entries[i].value;
        else
            entries[made.count++] = in->entries[i];
    }
    if (reasoning && (e = entry_named(&made, entries, "reasoning_content")))
        e->value = *reasoning;
    else if (reasoning)
        entries[made.count++] = (struct entry){plain_text("reasoning_content"), *reasoning};
    e = entry_named(&made, entries, "role");
    if (e && e->value.kind == VALUE_TEXT && known_role(&e->value))
        e->value.origin = ORIGIN_TEMPLATE;
    made.entries = entries;
    *out = made;
    return !h->failure;
}

/* The messages, *last being the last one of them. */
static bool conversation(struct heap *h, const struct value *in, struct value *out,
                         struct value **last)
{
    if (in->kind != VALUE_LIST)
        return heap_fail(h, FAILURE_REFUSED, "the messages are no list");
    if (!in->count)
        return heap_fail(h, FAILURE_REFUSED, "there is no message");
    struct value *list = heap_alloc(h, in->count, sizeof *list);
    if (!list)
        return false;
    for (uint32_t i = 0; i < in->count; i++) {
        if (in->items[i].kind != VALUE_DICT)
            return heap_fail(h, FAILURE_REFUSED, "message %" PRIu32 " is no mapping", i + 1);
        if (!message(h, &in->items[i], &list[i]))
            return false;
    }
    *out = value_list(VALUE_LIST, list, in->count);
    out->origin = in->origin;
    *last = &list[in->count - 1];
    return true;
}

/* Tools or documents: none, or a list of mappings. */
static bool mappings(struct heap *h, const struct value *in, const char *name, struct value *out)
{
    *out = in->kind == VALUE_ABSENT ? value_none() : *in;
    if (out->kind == VALUE_NONE)
        return true;
    if (in->kind != VALUE_LIST)
        return heap_fail(h, FAILURE_REFUSED, "the %s are no list", name);
    for (uint32_t i = 0; i < in->count; i++)
        if (in->items[i].kind != VALUE_DICT)
            return heap_fail(h, FAILURE_REFUSED, "number %" PRIu32 " of the %s is no mapping",
                             i + 1, name);
    return true;
}

/* -------------------------------------------------------------------------- continuing the last
 * one */

/* Whether the template's source speaks of a field. */
static bool speaks_of(const struct template_program *p, const struct value *field)
{
    return plain_word(field) && memmem(template_records(p, TABLE_WORDS),
                                       template_count(p, TABLE_WORDS), field->text, field->count);
}

static bool tagged(struct heap *h, const struct value *text, struct value *out)
{
    size_t start = h->out_length;
    if (text->kind != VALUE_TEXT)
        return heap_fail(h, FAILURE_REFUSED,
                         "continue_final_message: what is to be continued is no text");
    return out_text(h, text) && out_bytes(h, TAG, strlen(TAG), ORIGIN_CONTENT) &&
           out_take(h, start, out);
}

/* The last part that has a text gets the tag; *final is that text. */
static bool tag_parts(struct heap *h, struct value *parts, struct value *final)
{
    struct value *list = heap_alloc(h, parts->count, sizeof *list);
    if (!list)
        return false;
    if (parts->count)
        memcpy(list, parts->items, parts->count * sizeof *list);
    for (uint32_t i = parts->count; i-- > 0;) {
        if (list[i].kind != VALUE_DICT || !value_find_text(h, &list[i], "text", 4))
            continue;
        struct entry *entries = heap_alloc(h, list[i].count, sizeof *entries), *e;
        if (!entries)
            return false;
        memcpy(entries, list[i].entries, list[i].count * sizeof *entries);
        e = entry_named(&list[i], entries, "text");
        *final = e->value;
        list[i].entries = entries;
        parts->items = list;
        return tagged(h, final, &e->value);
    }
    return heap_fail(h, FAILURE_REFUSED,
                     "continue_final_message: no part of the last message has a text");
}

static bool same_text(const struct value *a, const struct value *b)
{
    return a->count == b->count && (!a->count || !memcmp(a->text, b->text, a->count));
}

static bool is_reasoning(const struct value *name)
{
    for (int i = 0; i < REASONING_FIELDS; i++)
        if (value_is_text(name, reasoning_fields[i]))
            return true;
    return false;
}

/* Whether what is to be continued (`final`, the value of `field`) stands under the entry's name:
 * under its own, and reasoning under each of its names. */
static bool continued(struct heap *h, const struct entry *e, const struct value *field,
                      const struct value *final, bool *out)
{
    *out = same_text(&e->key, field);
    if (*out || !is_reasoning(field) || !is_reasoning(&e->key))
        return true;
    return value_equal(h, &e->value, final, out);
}

/* Puts the tag behind the text of `field` in `last`, a message; *final is the text as it was. */
static bool tag_last(struct heap *h, const struct template_program *p, struct value *last,
                     const struct value *field, struct value *final)
{
    struct entry *entries = heap_alloc(h, last->count, sizeof *entries);
    const struct value *found = value_find_text(h, last, field->text, field->count);
    int n = field->count < 100 ? (int)field->count : 100;
    bool known = false, is;
    if (!entries)
        return false;
    if (!found)
        return heap_fail(h, FAILURE_REFUSED,
                         "continue_final_message: the last message has no '%.*s'", n, field->text);
    memcpy(entries, last->entries, last->count * sizeof *entries);
    struct value before = *found;
    *final = before;
    for (uint32_t i = 0; i < last->count; i++) {
        if (!continued(h, &last->entries[i], field, &before, &is))
            return false;
        known = known || (is && speaks_of(p, &entries[i].key));
        if (is && before.kind != VALUE_LIST && !tagged(h, &before, &entries[i].value))
            return false;
        if (is && before.kind == VALUE_LIST && same_text(&entries[i].key, field) &&
            !tag_parts(h, &entries[i].value, final))
            return false;
    }
    last->entries = entries;
    return known || heap_fail(h, FAILURE_REFUSED,
                              "continue_final_message: the template does not know the field '%.*s'",
                              n, field->text);
}

/* Where the last tag without its blank begins in what was written; SIZE_MAX where there is none. */
static size_t last_tag(const struct heap *h)
{
    const size_t tag = strlen(TAG) - 1;
    for (size_t end = h->out_length; end >= tag; end--)
        if (!memcmp(h->out + end - tag, TAG, tag))
            return end - tag;
    return SIZE_MAX;
}

/* Cuts what was written at the last tag. */
static bool cut(struct heap *h, const struct value *final)
{
    size_t from = space_skip(final->text, final->count, 0), at = last_tag(h), end;
    size_t to = space_trim(final->text, from, final->count);
    struct value written = value_text(h->out, h->out_length, ORIGIN_TEMPLATE);
    struct value stripped = text_part(final, from, to);
    if (at == SIZE_MAX || text_find(&written, 0, &stripped) == SIZE_MAX)
        return heap_fail(h, FAILURE_REFUSED,
                         "continue_final_message: the template does not write the "
                         "text of the last message");
    end = at + strlen(TAG) - 1;
    bool whole = end < h->out_length && h->out[end] == ' '; /* else the template trims */
    h->out_length = whole ? at : space_trim(h->out, 0, at);
    return true;
}

/* -------------------------------------------------------------------------------------- rendering
 */

bool chat_render(struct heap *h, const struct template_program *program,
                 const struct chat_request *request)
{
    static const char *const own[VARIABLES_FIXED] = {"messages", "tools", "documents",
                                                     "add_generation_prompt"};
    const struct value *arguments = &request->arguments;
    struct value tools = request->tools, documents = request->documents,
                 field = {.kind = VALUE_ABSENT};
    struct value fixed[VARIABLES_FIXED], final = {.kind = VALUE_ABSENT}, *last = NULL;
    bool prompt = false;
    fixed[3] = value_bool(false);
    if (arguments->kind != VALUE_ABSENT && arguments->kind != VALUE_DICT)
        return heap_fail(h, FAILURE_REFUSED, "the template's arguments are no mapping");
    size_t count = request->token_count, most = count + VARIABLES_FIXED + arguments->count;
    struct template_variable *variables = heap_alloc(h, most, sizeof *variables);
    if (!variables)
        return false;
    if (count)
        memcpy(variables, request->tokens, count * sizeof *variables);
    for (uint32_t i = 0; i < arguments->count; i++) {
        const struct entry *e = &arguments->entries[i];
        if (value_is_text(&e->key, "messages"))
            return heap_fail(h, FAILURE_REFUSED, "the template's arguments hold messages");
        if (value_is_text(&e->key, "continue_final_message")) {
            if (value_truth(&e->value))
                field = e->value.kind == VALUE_TEXT ? e->value : plain_text("content");
        } else if (value_is_text(&e->key, "add_generation_prompt")) {
            fixed[3] = e->value;
            prompt = value_truth(&e->value);
        } else if (value_is_text(&e->key, "tools"))
            tools = tools.kind == VALUE_ABSENT ? e->value : tools;
        else if (value_is_text(&e->key, "documents"))
            documents = documents.kind == VALUE_ABSENT ? e->value : documents;
        else
            variables[count++] = (struct template_variable){e->key.text, e->key.count, e->value};
    }
    if (prompt && field.kind != VALUE_ABSENT)
        return heap_fail(h, FAILURE_REFUSED,
                         "continue_final_message and add_generation_prompt exclude each other");
    if (!conversation(h, &request->messages, &fixed[0], &last) ||
        !mappings(h, &tools, "tools", &fixed[1]) ||
        !mappings(h, &documents, "documents", &fixed[2]))
        return false;
    if (field.kind != VALUE_ABSENT && !tag_last(h, program, last, &field, &final))
        return false;
    for (int i = 0; i < VARIABLES_FIXED; i++)
        variables[count++] = (struct template_variable){own[i], strlen(own[i]), fixed[i]};
    return template_run(h, program, variables, count, request->now) &&
           (field.kind == VALUE_ABSENT || cut(h, &final));
}
