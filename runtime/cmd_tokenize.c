/* SPDX-License-Identifier: Apache-2.0 */
/* `stele tokenize`: ids of a text, and back. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd_chat.h"
#include "guard.h"

static struct {
    bool decode, skip_special, raw_bytes;
} set;

static const struct cmd_option options[] = {
    CMD_CHAT_OPTIONS,
    CMD_RAW_OPTIONS,
    {"--decode", OPTION_FLAG, &set.decode, NULL, "the other way: ids (\"1 2 3\") in, text out", 0,
     0, NULL},
    {"--skip-special", OPTION_FLAG, &set.skip_special, NULL,
     "with --decode: leave special tokens out", 0, 0, NULL},
    {"--raw-bytes", OPTION_FLAG, &set.raw_bytes, NULL,
     "with --decode: do not escape control bytes on a terminal", 0, 0, NULL},
    {0},
};

const struct verb verb_tokenize = {
    .name = "tokenize",
    .synopsis = "IMAGE [options] [TEXT|-]",
    .about =
        "Writes the ids of the text on one line, those that the model's tokenizer adds among\n"
        "them. The text is the argument, or standard input where there is none or it is \"-\".\n"
        "With --messages or --system it is a conversation, and the ids are those of what the model's chat\n"
        "template makes of it. With --decode it writes the text of ids, every token of it, and adds no newline.",
    .run = cmd_tokenize,
    .options = options,
};

static void print_ids(const uint32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        printf("%s%" PRIu32, i ? " " : "", ids[i]);
    putchar('\n'); /* main sees to what is left in stdio's buffer */
}

static enum stele_status encode(const struct stele_image *image, const char *text, size_t bytes,
                                struct stele_error *err)
{
    uint32_t *ids;
    size_t count;
    unsigned flags = (cmd_chat.bare ? STELE_TEXT_BARE : 0u) | (cmd_chat.plain ? STELE_TEXT_PLAIN : 0u);
    enum stele_status status = stele_tokenize(image, text, bytes, flags, &ids, &count, err);
    if (status != STELE_OK)
        return status;
    print_ids(ids, count);
    free(ids);
    return STELE_OK;
}

static enum stele_status encode_chat(const struct stele_image *image, const char *operand,
                                     struct stele_error *err)
{
    struct stele_rendered rendered;
    uint32_t *ids = NULL;
    size_t count = 0;
    enum stele_status status = cmd_chat_render(image, operand, &rendered, err);
    if (status == STELE_OK)
        status = stele_tokenize_rendered(image, &rendered, cmd_chat.trust_content, &ids, &count, err);
    if (status == STELE_OK)
        print_ids(ids, count);
    free(ids);
    stele_rendered_free(&rendered);
    return status;
}

/* Ids that are neither a row of the model nor a token. */
static enum stele_status check_ids(const struct stele_image *image, const uint32_t *ids,
                                   size_t count, struct stele_error *err)
{
    struct stele_image_info info = stele_image_info(image);
    uint32_t most = info.vocabulary > info.tokens ? info.vocabulary : info.tokens;
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= most)
            return stele_fail(err, STELE_USAGE, "id %" PRIu32 ": the model has %" PRIu32 " ids",
                              ids[i], most);
    return STELE_OK;
}

static enum stele_status decode(const struct stele_image *image, const char *text, size_t bytes,
                                struct stele_error *err)
{
    char *copy = strndup(text, bytes), *out = NULL; /* standard input has no NUL behind it */
    uint32_t *ids = NULL;
    size_t count, length = 0;
    enum stele_status status = STELE_OK;
    if (!copy)
        status = stele_fail(err, STELE_SYSTEM, "no memory for %zu bytes of ids", bytes);
    else if (strlen(copy) != bytes)
        status = stele_fail(err, STELE_USAGE, "byte %zu of the ids is NUL", strlen(copy));
    if (status == STELE_OK)
        status = cmd_ids(copy, &ids, &count, err);
    if (status == STELE_OK)
        status = check_ids(image, ids, count, err);
    if (status == STELE_OK)
        status = stele_detokenize(image, ids, count, set.skip_special, &out, &length, err);
    if (status == STELE_OK && !cmd_write_text(STDOUT_FILENO, out, length, set.raw_bytes, err))
        status = err->status;
    free(out);
    free(ids);
    free(copy);
    return status;
}

static enum stele_status check_set(size_t operands, struct stele_error *err)
{
    if (!operands)
        return stele_fail(err, STELE_USAGE, "no IMAGE is named; `stele help tokenize` says more");
    if (set.decode && (cmd_chat.bare || cmd_chat.plain || cmd_chat_asked()))
        return stele_fail(err, STELE_USAGE, "--decode reads ids, and another option is about text");
    if (set.skip_special && !set.decode)
        return stele_fail(err, STELE_USAGE,
                          "--skip-special goes with --decode; --bare leaves out what is added");
    return STELE_OK;
}

static enum stele_status tokenize(const struct stele_image *image, const char *operand,
                                  struct stele_error *err)
{
    if (!stele_has_text(image))
        return stele_fail(err, STELE_INPUT,
                          "%s: its checkpoint had no tokenizer; the image knows ids only",
                          stele_image_name(image));
    bool chat;
    cmd_chat.raw = cmd_chat.raw || !cmd_chat_asked();
    enum stele_status status = cmd_chat_applies(image, &chat, err);
    if (status != STELE_OK || chat)
        return status != STELE_OK ? status : encode_chat(image, operand, err);
    const char *text;
    size_t bytes;
    char *owned;
    status =
        cmd_text(operand, set.decode ? "ids" : "text", &text, &bytes, &owned, err);
    if (status == STELE_OK)
        status = set.decode ? decode(image, text, bytes, err) : encode(image, text, bytes, err);
    free(owned);
    return status;
}

int cmd_tokenize(int argc, char **argv)
{
    struct stele_error err = {0};
    struct stele_image *image = NULL;
    const char *operands[2];
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, operands, 2, &count, &err);
    if (status == STELE_OK)
        status = check_set(count, &err);
    if (status == STELE_OK)
        status = stele_image_open(&image, operands[0], &err);
    if (status == STELE_OK) {
        guard_image(image, "tokenize");
        status = tokenize(image, count > 1 ? operands[1] : NULL, &err);
        if (status == STELE_OK)
            status = stele_image_unchanged(image, &err);
    }
    stele_image_close(image);
    return status == STELE_OK ? STELE_OK : cmd_fail("tokenize", &err);
}
