/* SPDX-License-Identifier: Apache-2.0 */
/* Conversations of stele.h: from JSON and texts to what the model's template makes of them, and to ids. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "image.h"
#include "library.h"
#include "stele.h"
#include "template_set.h"
#include "utf8.h"

/* A rendering; everything starts as zero, so that closing is always safe. */
struct rendering {
    const struct stele_chat *chat;
    struct stele_error *err;
    struct template_set set;
    struct heap heap;
    struct chat_request request;
    struct template_variable tokens[TEMPLATE_SET_MAX];
};

static enum stele_status open_set(struct rendering *r, const struct image *image)
{
    uint64_t bytes;
    const uint8_t *section = image_section(image, SECTION_TEMPLATES, &bytes);
    if (!section)
        return stele_fail(r->err, STELE_USAGE, "%s: the model has no chat template; text goes in as it is, by --raw",
                          image->name);
    return template_set_open(&r->set, section, bytes, r->err);
}

/* ---- the request ---- */

static struct value text_value(const char *text, size_t bytes)
{
    return value_text(text, bytes, ORIGIN_CONTENT);
}

static struct value field(struct heap *h, const struct value *object, const char *name)
{
    const struct value *found = value_find_text(h, object, name, strlen(name));
    return found ? *found : (struct value){.kind = VALUE_ABSENT};
}

/* What the JSON says: messages, and tools and documents where it is an object. */
static enum stele_status read_json(struct rendering *r)
{
    const struct stele_chat *c = r->chat;
    const char *name = c->json_name ? c->json_name : "messages";
    struct value v;
    if (!c->json)
        return STELE_OK;
    enum stele_status status = value_json(&r->heap, c->json, c->json_bytes, name, &v);
    if (status != STELE_OK)
        return status;
    if (v.kind == VALUE_DICT) {
        r->request.tools = field(&r->heap, &v, "tools");
        r->request.documents = field(&r->heap, &v, "documents");
        v = field(&r->heap, &v, "messages");
    }
    if (v.kind != VALUE_LIST)
        return stele_fail(r->err, STELE_USAGE, "%s: neither a list of messages nor an object with one", name);
    r->request.messages = v;
    return STELE_OK;
}

/* {"role": role, "content": text} */
static bool plain_message(struct heap *h, const char *role, const char *text, size_t bytes, struct value *out)
{
    struct entry *entries = heap_alloc(h, 2, sizeof *entries);
    if (!entries)
        return false;
    entries[0] = (struct entry){text_value("role", 4), text_value(role, strlen(role))};
    entries[1] = (struct entry){text_value("content", 7), text_value(text, bytes)};
    *out = (struct value){.kind = VALUE_DICT, .origin = ORIGIN_CONTENT, .count = 2, .entries = entries};
    return true;
}

static bool is_system(struct heap *h, const struct value *message)
{
    if (message->kind != VALUE_DICT)
        return false;
    struct value role = field(h, message, "role");
    return value_is_text(&role, "system");
}

static enum stele_status check_text(struct rendering *r, const char *text, size_t bytes, const char *what)
{
    size_t good = text ? utf8_valid(text, bytes) : bytes;
    return good == bytes ? STELE_OK
                         : stele_fail(r->err, STELE_INPUT, "the %s is not UTF-8: byte 0x%02x at offset %zu", what,
                                      (unsigned char)text[good], good);
}

/* The messages of the JSON with those that came as texts around them. */
static enum stele_status gather_messages(struct rendering *r)
{
    const struct stele_chat *c = r->chat;
    const struct value *given = &r->request.messages;
    enum stele_status status = check_text(r, c->system, c->system_bytes, "system message");
    if (status == STELE_OK)
        status = check_text(r, c->user, c->user_bytes, "prompt");
    if (status != STELE_OK)
        return status;
    if (c->system && given->count && is_system(&r->heap, &given->items[0]))
        return stele_fail(r->err, STELE_USAGE, "the messages begin with a system message, and another is given");
    struct value *list = heap_alloc(&r->heap, (size_t)given->count + 2, sizeof *list);
    uint32_t n = 0;
    if (!list || (c->system && !plain_message(&r->heap, "system", c->system, c->system_bytes, &list[n++])))
        return r->err->status;
    if (given->count)
        memcpy(list + n, given->items, given->count * sizeof *list);
    n += given->count;
    if (c->user && !plain_message(&r->heap, "user", c->user, c->user_bytes, &list[n++]))
        return r->err->status;
    r->request.messages = value_list(VALUE_LIST, list, n);
    r->request.messages.origin = ORIGIN_CONTENT;
    return STELE_OK;
}

/* "NAME=JSON" into an entry. */
static enum stele_status read_argument(struct rendering *r, const char *argument, struct entry *out)
{
    const char *equals = strchr(argument, '=');
    if (!equals || equals == argument)
        return stele_fail(r->err, STELE_USAGE, "template argument \"%.100s\": it is not NAME=JSON", argument);
    struct stele_error why = {0};
    struct stele_error *own = r->heap.err;
    r->heap.err = &why;
    enum stele_status status = value_json(&r->heap, equals + 1, strlen(equals + 1), "value", &out->value);
    r->heap.err = own;
    if (status == STELE_INPUT)
        return stele_fail(r->err, STELE_USAGE, "template argument \"%.100s\": behind = is no JSON (a text has quotes): %s",
                          argument, why.text);
    out->key = text_value(argument, (size_t)(equals - argument));
    return status == STELE_OK ? status : stele_fail(r->err, status, "%s", why.text);
}

static enum stele_status gather_arguments(struct rendering *r)
{
    const struct stele_chat *c = r->chat;
    struct entry *entries = heap_alloc(&r->heap, c->argument_count + 1, sizeof *entries);
    uint32_t n = 0;
    bool prompt = true; /* add_generation_prompt, unless it is said or something is continued */
    enum stele_status status = entries ? STELE_OK : r->err->status;
    for (; n < c->argument_count && status == STELE_OK; n++) {
        status = read_argument(r, c->arguments[n], &entries[n]);
        if (status != STELE_OK)
            return status;
        for (uint32_t i = 0; i < n; i++)
            if (entries[i].key.count == entries[n].key.count &&
                !memcmp(entries[i].key.text, entries[n].key.text, entries[n].key.count))
                return stele_fail(r->err, STELE_USAGE, "template argument \"%.100s\": the name is given twice",
                                  c->arguments[n]);
        if (value_is_text(&entries[n].key, "add_generation_prompt") ||
            (value_is_text(&entries[n].key, "continue_final_message") && value_truth(&entries[n].value)))
            prompt = false;
    }
    if (status == STELE_OK && prompt)
        entries[n++] = (struct entry){text_value("add_generation_prompt", strlen("add_generation_prompt")),
                                      value_bool(true)};
    r->request.arguments = (struct value){.kind = VALUE_DICT, .origin = ORIGIN_CONTENT, .count = n, .entries = entries};
    return status;
}

static void gather_tokens(struct rendering *r)
{
    const struct template_set *s = &r->set;
    for (uint32_t i = 0; i < s->header.tokens; i++) {
        struct template_set_text name = s->tokens[i].name, text = s->tokens[i].text;
        r->tokens[i] = (struct template_variable){
            template_set_text(s, name), name.length,
            value_text(template_set_text(s, text), text.length, ORIGIN_TEMPLATE)};
    }
    r->request.tokens = r->tokens;
    r->request.token_count = s->header.tokens;
}

/* ---- rendering ---- */

static enum stele_status choose_template(struct rendering *r, struct template_program *program)
{
    const struct template_set *s = &r->set;
    const char *asked = r->chat->template_name;
    struct value tools = r->request.tools;
    if (tools.kind == VALUE_ABSENT)
        tools = field(&r->heap, &r->request.arguments, "tools");
    bool tool_use = tools.kind != VALUE_ABSENT && tools.kind != VALUE_NONE;
    uint32_t found = asked ? template_set_find(s, asked) : tool_use ? template_set_find(s, "tool_use") : s->header.templates;
    if (!asked && found == s->header.templates)
        found = template_set_find(s, "default");
    if (found < s->header.templates)
        return template_set_program(s, found, program, r->err);
    char names[256] = "";
    for (uint32_t i = 0; i < s->header.templates; i++) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%.*s", i ? ", " : "", (int)s->templates[i].name.length,
                 template_set_text(s, s->templates[i].name));
    }
    return stele_fail(r->err, STELE_USAGE, "the model has no chat template \"%s\"; it has %s", asked ? asked : "default",
                      names);
}

/* Whether the template's own text ends with the mark that begins thinking, white space aside. */
static bool ends_in_thinking(const struct rendering *r)
{
    const struct heap *h = &r->heap;
    struct template_set_text mark = r->set.header.think;
    size_t end = h->out_length;
    const char *text = template_set_text(&r->set, mark);
    while (mark.length && strchr(" \t\r\n", text[mark.length - 1]))
        mark.length--; /* as the text's own end */
    while (end && strchr(" \t\r\n", h->out[end - 1]))
        end--;
    if (!mark.length || end < mark.length || memcmp(h->out + end - mark.length, text, mark.length))
        return false;
    return !memchr(h->out_origins + end - mark.length, ORIGIN_CONTENT, mark.length);
}

static enum stele_status copy_out(const struct rendering *r, struct stele_rendered *out)
{
    const struct heap *h = &r->heap;
    out->text = malloc(h->out_length + 1);
    out->content = malloc(h->out_length + 1);
    if (!out->text || !out->content) {
        stele_rendered_free(out);
        return stele_fail(r->err, STELE_SYSTEM, "no memory for %zu bytes of text", h->out_length);
    }
    out->bytes = h->out_length;
    out->thinking = ends_in_thinking(r);
    if (out->bytes) {
        memcpy(out->text, h->out, out->bytes);
        memcpy(out->content, h->out_origins, out->bytes);
    }
    return STELE_OK;
}

enum stele_status stele_render(struct stele_rendered *out, const struct stele_image *image, const struct stele_chat *chat,
                               struct stele_error *err)
{
    struct stele_error unasked;
    struct rendering r = {.chat = chat, .err = err ? err : &unasked};
    struct template_program program;
    struct heap_limits limits = template_limits();
    struct tm now;
    time_t seconds = time(NULL);
    *out = (struct stele_rendered){0};
    enum stele_status status = LIBRARY_CHECK_RESERVED(stele_chat, chat, err);
    if (status == STELE_OK)
        status = open_set(&r, (const struct image *)image);
    if (status != STELE_OK)
        return status;
    heap_open(&r.heap, &limits, r.err);
    r.request.now = chat->now ? chat->now : localtime_r(&seconds, &now);
    gather_tokens(&r);
    status = read_json(&r);
    if (status == STELE_OK)
        status = gather_messages(&r);
    if (status == STELE_OK)
        status = gather_arguments(&r);
    if (status == STELE_OK)
        status = choose_template(&r, &program);
    if (status == STELE_OK)
        status = chat_render(&r.heap, &program, &r.request) ? copy_out(&r, out) : r.err->status;
    heap_close(&r.heap);
    return status;
}

void stele_rendered_free(struct stele_rendered *rendered)
{
    free(rendered->text);
    free(rendered->content);
    *rendered = (struct stele_rendered){0};
}

enum stele_status stele_tokenize_rendered(const struct stele_image *image, const struct stele_rendered *rendered,
                                          bool trust_content, uint32_t **ids, size_t *count, struct stele_error *err)
{
    struct tokenizer t;
    *ids = NULL;
    *count = 0;
    enum stele_status status = library_open_tokenizer(&t, (const struct image *)image, err);
    return status == STELE_OK ? tokenizer_encode(&t, rendered->text, trust_content ? NULL : rendered->content,
                                                 rendered->bytes, TOKENIZER_BARE, ids, count, err)
                              : status;
}
