/* SPDX-License-Identifier: Apache-2.0 */
/* `stele tokenize`: ids of a text, and back. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "guard.h"
#include "image.h"
#include "stele.h"
#include "tokenizer.h"

static struct {
    bool raw, bare, plain, decode, skip_special, raw_bytes;
} set;

static const struct cmd_option options[] = {
    {"--bare", OPTION_FLAG, &set.bare, NULL, "without what the tokenizer puts around a text (BOS)",
     0, 0, NULL},
    {"--plain", OPTION_FLAG, &set.plain, NULL, "added tokens spelled in the text are plain text", 0,
     0, NULL},
    {"--raw", OPTION_FLAG, &set.raw, NULL, "the text as it is, as always here; accepted as in run",
     0, 0, NULL},
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
        "With --decode it writes the text of ids, every token of it, and adds no newline.",
    .run = cmd_tokenize,
    .options = options,
};

static enum stele_status encode(const struct stele_image *image, const char *text, size_t bytes,
                                struct stele_error *err)
{
    uint32_t *ids;
    size_t count;
    unsigned flags = (set.bare ? STELE_TEXT_BARE : 0u) | (set.plain ? STELE_TEXT_PLAIN : 0u);
    enum stele_status status = stele_tokenize(image, text, bytes, flags, &ids, &count, err);
    if (status != STELE_OK)
        return status;
    for (size_t i = 0; i < count; i++)
        printf("%s%" PRIu32, i ? " " : "", ids[i]);
    putchar('\n');
    free(ids);
    return STELE_OK; /* main sees to what is left in stdio's buffer */
}

/* Ids that are neither a row of the model nor a token. */
static enum stele_status check_ids(const struct stele_image *image, const uint32_t *ids,
                                   size_t count, struct stele_error *err)
{
    const struct image *inner = (const struct image *)image;
    uint64_t bytes;
    const uint8_t *section = image_section(inner, SECTION_TOKENIZER, &bytes);
    struct tokenizer tokenizer;
    enum stele_status status = tokenizer_open(&tokenizer, section, bytes, err);
    if (status != STELE_OK)
        return status;
    struct plan_header plan = {0};
    section = image_section(inner, SECTION_PLAN, &bytes);
    if (section && bytes >= sizeof plan)
        memcpy(&plan, section, sizeof plan);
    uint32_t tokens = tokenizer_count(&tokenizer),
             most = plan.vocabulary > tokens ? plan.vocabulary : tokens;
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
    if (status == STELE_OK && !cmd_write_text(out, length, set.raw_bytes, err))
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
    if (set.decode && (set.bare || set.plain))
        return stele_fail(err, STELE_USAGE, "%s reads text; --decode reads ids",
                          set.bare ? "--bare" : "--plain");
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
                          ((const struct image *)image)->name);
    const char *text;
    size_t bytes;
    char *owned;
    enum stele_status status =
        cmd_text(operand, set.decode ? "ids" : "text", &text, &bytes, &owned, err);
    if (status == STELE_OK)
        status = set.decode ? decode(image, text, bytes, err) : encode(image, text, bytes, err);
    free(owned);
    return status == STELE_OK ? stele_image_unchanged(image, err) : status;
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
    }
    stele_image_close(image);
    return status == STELE_OK ? STELE_OK : cmd_fail("tokenize", &err);
}
