/* SPDX-License-Identifier: Apache-2.0 */
/* `stele inspect`: what an image holds, for people or as one JSON object. */
#include <stdlib.h>

#include "cmd.h"
#include "guard.h"
#include "stele.h"

static struct {
    bool plan, tensors, residency, json;
} set;

static const struct cmd_option options[] = {
    {"--plan", OPTION_FLAG, &set.plan, NULL,
     "the ops with their operands, then slots, states and ropes", 0, 0, NULL},
    {"--tensors", OPTION_FLAG, &set.tensors, NULL, "the tensors, one a line", 0, 0, NULL},
    {"--residency", OPTION_FLAG, &set.residency, NULL,
     "which part is in memory, drawn; no weight is read", 0, 0, NULL},
    {"--json", OPTION_FLAG, &set.json, NULL, "all of it as one JSON object", 0, 0, NULL},
    {0},
};

const struct verb verb_inspect = {
    .name = "inspect",
    .synopsis = "IMAGE [--plan|--tensors|--residency|--json]",
    .about = "Prints what the image is: identity, sections, the model's shape, its defaults and "
             "where it\n"
             "came from.",
    .run = cmd_inspect,
    .options = options,
};

static enum stele_status inspect(const struct stele_image *image, struct stele_error *err)
{
    enum stele_description form = set.json      ? STELE_DESCRIBE_JSON
                                  : set.plan    ? STELE_DESCRIBE_PLAN
                                  : set.tensors ? STELE_DESCRIBE_TENSORS
                                  : set.residency ? STELE_DESCRIBE_RESIDENCY
                                                  : STELE_DESCRIBE_SUMMARY;
    char *text;
    size_t bytes;
    enum stele_status status = stele_image_describe(image, form, &text, &bytes, err);
    if (status == STELE_OK && !cmd_write(text, bytes, err))
        status = err->status;
    free(text);
    return status == STELE_OK ? stele_image_unchanged(image, err) : status;
}

int cmd_inspect(int argc, char **argv)
{
    struct stele_error err = {0};
    struct stele_image *image = NULL;
    const char *operand;
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, &operand, 1, &count, &err);
    if (status == STELE_OK && !count)
        status = stele_fail(&err, STELE_USAGE, "no IMAGE is named; `stele help inspect` says more");
    if (status == STELE_OK && set.plan + set.tensors + set.residency + set.json > 1)
        status = stele_fail(&err, STELE_USAGE, "--plan, --tensors, --residency and --json exclude each other");
    if (status == STELE_OK)
        status = stele_image_open(&image, operand, &err);
    if (status == STELE_OK) {
        guard_image(image, "inspect");
        status = inspect(image, &err);
    }
    stele_image_close(image);
    return status == STELE_OK ? STELE_OK : cmd_fail("inspect", &err);
}
