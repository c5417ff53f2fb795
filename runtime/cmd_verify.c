/* SPDX-License-Identifier: Apache-2.0 */
/* `stele verify`: every byte of an image against the digests in it. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "guard.h"
#include "stele.h"

static const struct cmd_option options[] = {{0}};

static void show_progress(void *last, uint64_t done, uint64_t bytes)
{
    double now = guard_now();
    if (now - *(double *)last < 0.2)
        return;
    *(double *)last = now;
    fprintf(stderr, "\r%3.0f %% \033[K", 100.0 * (double)done / (double)bytes);
}

static enum stele_status verify(const char *path, struct stele_error *err)
{
    struct stele_image *image;
    enum stele_status status = stele_image_open(&image, path, err);
    if (status != STELE_OK)
        return status;
    guard_image(image, "verify");
    bool terminal = isatty(STDERR_FILENO);
    double last = guard_now();
    status = stele_image_verify_watched(image, terminal ? show_progress : NULL, &last, NULL, err);
    if (terminal)
        fputs("\r\033[K", stderr);
    if (status == STELE_OK)
        status = stele_image_unchanged(image, err);
    if (status == STELE_OK) {
        char line[48];
        int n = snprintf(line, sizeof line, ": ok %s\n", stele_image_info(image).identity);
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
