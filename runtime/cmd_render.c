/* SPDX-License-Identifier: Apache-2.0 */
/* `stele render`: a conversation as the model reads it. */
#include <string.h>
#include <unistd.h>

#include "cmd_chat.h"
#include "guard.h"

static bool raw_bytes;

static const struct cmd_option options[] = {
    CMD_CHAT_OPTIONS,
    {"--raw-bytes", OPTION_FLAG, &raw_bytes, NULL, "do not escape control bytes on a terminal", 0, 0, NULL},
    {0},
};

const struct verb verb_render = {
    .name = "render",
    .synopsis = "IMAGE [options] [PROMPT|-]",
    .about = "Writes the text that the model's chat template makes of a conversation, and adds no newline: what `stele run`\n"
             "has the model continue. The prompt is a user's message, the last one.",
    .run = cmd_render,
    .options = options,
};

static enum stele_status render(const struct stele_image *image, const char *operand, struct stele_error *err)
{
    struct stele_rendered r;
    bool applies;
    enum stele_status status = cmd_chat_applies(image, &applies, err);
    if (status == STELE_OK && !applies)
        status = stele_fail(err, STELE_USAGE, "the model has no chat template");
    if (status != STELE_OK)
        return status;
    status = cmd_chat_render(image, operand, &r, err);
    if (status == STELE_OK && !cmd_write_text(STDOUT_FILENO, r.text, r.bytes, raw_bytes, err))
        status = err->status;
    stele_rendered_free(&r);
    return status == STELE_OK ? stele_image_unchanged(image, err) : status;
}

int cmd_render(int argc, char **argv)
{
    struct stele_error err = {0};
    struct stele_image *image = NULL;
    const char *operands[2];
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, operands, 2, &count, &err);
    if (status == STELE_OK && !count)
        status = stele_fail(&err, STELE_USAGE, "no IMAGE is named; `stele help render` says more");
    if (status == STELE_OK)
        status = stele_image_open(&image, operands[0], &err);
    if (status == STELE_OK) {
        guard_image(image, "render");
        status = render(image, count > 1 ? operands[1] : NULL, &err);
    }
    stele_image_close(image);
    return status == STELE_OK ? STELE_OK : cmd_fail("render", &err);
}
