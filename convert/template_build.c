/* SPDX-License-Identifier: Apache-2.0 */
#include "template_build.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "template_compile.h"
#include "template_set.h"

enum { SOURCE_BYTES_MAX = 4 << 20 };

/* Tokens that a tokenizer has a name for: PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES. */
static const char *const token_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

/* What models put around their thinking. A model has the marks whose end its templates speak of. `next` is for those whose
 * thoughts are messages: how one ends and the next begins. */
static const struct {
    const char *begin, *end, *next;
} thinking_marks[] = {
    {"<think>", "</think>", NULL}, /* DeepSeek-R1, Qwen3, SmolLM3, GLM, Granite, OLMo, Nemotron, LFM */
    {"[THINK]", "[/THINK]", NULL}, /* Mistral */
    {"<|START_THINKING|>", "<|END_THINKING|>", NULL}, /* Command */
    {"<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|><|start|>assistant"}, /* gpt-oss */
    {"<|channel>thought\n", "<channel|>", NULL}, /* Gemma 4 */
    {"<seed:think>", "</seed:think>", NULL},
};

struct template {
    char *name;
    uint8_t *program;
    size_t length;
};

struct token {
    const char *name, *text;
};

struct builder {
    const char *directory;
    const json_t *config; /* tokenizer_config.json; NULL: there is none */
    struct stele_error *err;
    struct template templates[TEMPLATE_SET_MAX];
    size_t template_count;
    struct token tokens[TEMPLATE_SET_MAX];
    size_t token_count;
    int marks; /* of thinking_marks, -1: none */
};

/* ---- reading ---- */

static enum stele_status add_template(struct builder *b, const char *name, const char *source, size_t bytes,
                                      const char *place)
{
    if (b->template_count == TEMPLATE_SET_MAX)
        return stele_fail(b->err, STELE_INPUT, "%s: there are more than %d templates", place, TEMPLATE_SET_MAX);
    for (size_t i = 0; i < b->template_count; i++)
        if (!strcmp(b->templates[i].name, name))
            return stele_fail(b->err, STELE_INPUT, "%s: two templates are called \"%s\"", place, name);
    struct template *t = &b->templates[b->template_count];
    t->name = strdup(name);
    if (!t->name)
        return stele_fail(b->err, STELE_SYSTEM, "no memory for chat templates");
    b->template_count++;
    for (size_t i = 0; i < sizeof thinking_marks / sizeof *thinking_marks && b->marks < 0; i++)
        if (memmem(source, bytes, thinking_marks[i].end, strlen(thinking_marks[i].end)))
            b->marks = (int)i;
    return template_compile(&t->program, &t->length, source, bytes, place, b->err);
}

/* The file's bytes, malloc'ed; NULL, and no failure, where it does not exist. */
static enum stele_status read_source(struct builder *b, const char *path, char **out, size_t *bytes)
{
    struct stat st;
    enum stele_status status = STELE_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    *out = NULL;
    if (fd < 0)
        return errno == ENOENT ? STELE_OK : stele_fail(b->err, STELE_SYSTEM, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > SOURCE_BYTES_MAX)
        status = stele_fail(b->err, STELE_INPUT, "%s: no file of at most %d bytes", path, SOURCE_BYTES_MAX);
    else if (!(*out = malloc((size_t)st.st_size + 1)))
        status = stele_fail(b->err, STELE_SYSTEM, "no memory for chat templates");
    else if (read(fd, *out, (size_t)st.st_size) != (ssize_t)st.st_size)
        status = stele_fail(b->err, STELE_SYSTEM, "%s: %s", path, errno ? strerror(errno) : "became shorter");
    *bytes = (size_t)st.st_size;
    close(fd);
    return status;
}

/* A file of its own. */
static enum stele_status add_file(struct builder *b, const char *name, const char *path)
{
    char *source;
    size_t bytes = 0;
    const char *slash = strrchr(path, '/');
    enum stele_status status = read_source(b, path, &source, &bytes);
    if (status == STELE_OK && source)
        status = add_template(b, name, source, bytes, slash + 1);
    free(source);
    return status;
}

static int is_jinja(const struct dirent *entry)
{
    size_t n = strlen(entry->d_name);
    return n > strlen(".jinja") && !strcmp(entry->d_name + n - strlen(".jinja"), ".jinja");
}

static enum stele_status add_folder(struct builder *b, const char *path)
{
    struct dirent **entries;
    enum stele_status status = STELE_OK;
    int n = scandir(path, &entries, is_jinja, alphasort);
    for (int i = 0; i < n; i++) {
        char file[PATH_MAX];
        char *name = entries[i]->d_name;
        if (snprintf(file, sizeof file, "%s/%s", path, name) >= (int)sizeof file)
            status = status ? status : stele_fail(b->err, STELE_INPUT, "%s: its path is too long", name);
        name[strlen(name) - strlen(".jinja")] = '\0';
        if (status == STELE_OK)
            status = add_file(b, name, file);
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
    return status;
}

static enum stele_status add_files(struct builder *b)
{
    char path[PATH_MAX];
    const char *const folder = "additional_chat_templates";
    if (snprintf(path, sizeof path, "%s/%s", b->directory, folder) >= (int)sizeof path)
        return stele_fail(b->err, STELE_INPUT, "%s: the path is too long", b->directory);
    snprintf(path, sizeof path, "%s/chat_template.jinja", b->directory);
    enum stele_status status = add_file(b, "default", path);
    if (status != STELE_OK)
        return status;
    snprintf(path, sizeof path, "%s/%s", b->directory, folder);
    return add_folder(b, path);
}

/* `chat_template` of tokenizer_config.json: a text, or a list of {"name", "template"}. */
static enum stele_status add_configured(struct builder *b)
{
    static const char place[] = "tokenizer_config.json: chat_template";
    const json_t *value = json_object_get(b->config, "chat_template"), *item;
    enum stele_status status = STELE_OK;
    size_t i;
    if (!value || json_is_null(value))
        return STELE_OK;
    if (json_is_string(value))
        return add_template(b, "default", json_string_value(value), json_string_length(value), place);
    if (!json_is_array(value))
        return stele_fail(b->err, STELE_INPUT, "%s is neither a text nor a list", place);
    json_array_foreach(value, i, item) {
        const json_t *name = json_object_get(item, "name"), *text = json_object_get(item, "template");
        char called[256];
        if (!json_is_string(name) || !json_is_string(text))
            return stele_fail(b->err, STELE_INPUT, "%s: item %zu has no name or no template", place, i);
        snprintf(called, sizeof called, "%s \"%s\"", place, json_string_value(name));
        if (status == STELE_OK)
            status = add_template(b, json_string_value(name), json_string_value(text), json_string_length(text), called);
    }
    return status;
}

/* The text of a token, which is a text or an object with one. NULL: it is neither. */
static const char *token_text(const json_t *value)
{
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

static enum stele_status add_token(struct builder *b, const char *name, const json_t *value)
{
    const char *text = token_text(value);
    if (!value || json_is_null(value))
        return STELE_OK;
    if (!text)
        return stele_fail(b->err, STELE_INPUT, "tokenizer_config.json: %s is no token", name);
    if (b->token_count == TEMPLATE_SET_MAX)
        return stele_fail(b->err, STELE_INPUT, "tokenizer_config.json: there are more than %d named tokens",
                          TEMPLATE_SET_MAX);
    b->tokens[b->token_count++] = (struct token){name, text};
    return STELE_OK;
}

static enum stele_status add_tokens(struct builder *b)
{
    enum stele_status status = STELE_OK;
    const char *name;
    json_t *value;
    for (size_t i = 0; i < sizeof token_names / sizeof *token_names && status == STELE_OK; i++)
        status = add_token(b, token_names[i], json_object_get(b->config, token_names[i]));
    json_t *extra = json_object_get(b->config, "extra_special_tokens"); /* of models for images, by name; else a list */
    json_object_foreach(extra, name, value)
        if (status == STELE_OK)
            status = add_token(b, name, value);
    return status;
}

/* ---- writing ---- */

/* Puts a text at *at, which moves behind it. */
static struct template_set_text put_text(uint8_t *section, uint64_t *at, const char *text)
{
    struct template_set_text put = {(uint32_t)*at, (uint32_t)strlen(text)};
    if (section)
        memcpy(section + *at, text, put.length);
    *at += put.length;
    return put;
}

/* Lays everything out; writes it where `section` is not NULL. The length. */
static uint64_t lay_out(const struct builder *b, uint8_t *section)
{
    struct template_set_header h = {.templates = (uint32_t)b->template_count, .tokens = (uint32_t)b->token_count};
    struct template_set_template templates[TEMPLATE_SET_MAX];
    struct template_set_token tokens[TEMPLATE_SET_MAX];
    size_t template_bytes = b->template_count * sizeof *templates, token_bytes = b->token_count * sizeof *tokens;
    uint64_t at = sizeof h + template_bytes + token_bytes;
    for (size_t i = 0; i < b->template_count; i++)
        templates[i].name = put_text(section, &at, b->templates[i].name);
    for (size_t i = 0; i < b->token_count; i++) {
        tokens[i].name = put_text(section, &at, b->tokens[i].name);
        tokens[i].text = put_text(section, &at, b->tokens[i].text);
    }
    if (b->marks >= 0) {
        h.think = put_text(section, &at, thinking_marks[b->marks].begin);
        h.think_done = put_text(section, &at, thinking_marks[b->marks].end);
        if (thinking_marks[b->marks].next)
            h.think_next = put_text(section, &at, thinking_marks[b->marks].next);
    }
    for (size_t i = 0; i < b->template_count; i++) {
        at = round_up(at, 8);
        templates[i].offset = (uint32_t)at;
        templates[i].length = (uint32_t)b->templates[i].length;
        if (section)
            memcpy(section + at, b->templates[i].program, b->templates[i].length);
        at += b->templates[i].length;
    }
    if (section) {
        memcpy(section, &h, sizeof h);
        memcpy(section + sizeof h, templates, template_bytes);
        memcpy(section + sizeof h + template_bytes, tokens, token_bytes);
    }
    return at;
}

static enum stele_status write_section(const struct builder *b, uint8_t **out, size_t *length)
{
    uint64_t bytes = lay_out(b, NULL);
    if (bytes > UINT32_MAX || !(*out = calloc(1, bytes)))
        return stele_fail(b->err, STELE_SYSTEM, "no memory for %zu chat templates", b->template_count);
    lay_out(b, *out);
    *length = bytes;
    return STELE_OK;
}

enum stele_status template_build(uint8_t **out, size_t *length, const char *directory, const json_t *tokenizer_config,
                                     struct stele_error *err)
{
    struct builder b = {.directory = directory, .config = tokenizer_config, .err = err, .marks = -1};
    *out = NULL;
    *length = 0;
    enum stele_status status = add_files(&b);
    if (status == STELE_OK && !b.template_count)
        status = add_configured(&b);
    if (status == STELE_OK && b.template_count)
        status = add_tokens(&b);
    if (status == STELE_OK && b.template_count)
        status = write_section(&b, out, length);
    for (size_t i = 0; i < b.template_count; i++) {
        free(b.templates[i].name);
        free(b.templates[i].program);
    }
    return status;
}
