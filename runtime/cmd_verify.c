/* SPDX-License-Identifier: Apache-2.0 */
/* `stele verify`: every byte of an image against the digests in it. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "guard.h"
#include "image.h"
#include "stele.h"

static const struct cmd_option options[] = {{0}};

static enum stele_status verify(const char *path, struct stele_error *err)
{
    struct stele_image *image;
    enum stele_status status = stele_image_open(&image, path, err);
    if (status != STELE_OK)
        return status;
    guard_image(image, "verify");
    status = stele_image_verify(image, err);
    if (status == STELE_OK)
        status = stele_image_unchanged(image, err);
    if (status == STELE_OK) {
        char identity[33], line[48];
        digest_text(identity, &((const struct image *)image)->header.identity);
        int n = snprintf(line, sizeof line, ": ok %s\n", identity);
        if (!cmd_write_text(STDOUT_FILENO, path, strlen(path), false, err) || !cmd_write(line, (size_t)n, err))
            status = err->status;
    }
    stele_image_close(image);
    return status;
}

int cmd_verify(int argc, char **argv)
{
    struct stele_error err = {0};
    const char *operand;
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, &operand, 1, &count, &err);
    if (status == STELE_OK && !count)
        status = stele_fail(&err, STELE_USAGE, "no IMAGE is named; `stele help verify` says more");
    if (status == STELE_OK)
        status = verify(operand, &err);
    return status == STELE_OK ? STELE_OK : cmd_fail("verify", &err);
}

const struct verb verb_verify = {
    .name = "verify",
    .synopsis = "IMAGE",
    .about = "Reads the whole image and compares every byte with the digests in it. Prints\n"
             "\"IMAGE: ok IDENTITY\", or says which section and chunk is damaged (exit 4).",
    .run = cmd_verify,
    .options = options,
};
