/* SPDX-License-Identifier: Apache-2.0 */
/* `stele warm`: an image into memory before anyone waits for it. */
#include <stdio.h>
#include <unistd.h>

#include "cmd.h"
#include "guard.h"
#include "stele.h"

static struct {
    bool anew;
} set;

static const struct cmd_option options[] = {
    {"--anew", OPTION_FLAG, &set.anew, NULL,
     "drop it from memory first, where no process uses it: small pages become large ones", 0, 0, NULL},
    {0},
};

const struct verb verb_warm = {
    .name = "warm",
    .synopsis = "IMAGE [--anew]",
    .about = "Reads the whole image into the page cache, from front to back as a model reads it, and leaves it there in\n"
             "pages as large as the kernel has them; the next run finds every page. Nothing is printed; `stele inspect\n"
             "--residency` shows what is in memory.",
    .run = cmd_warm,
    .options = options,
};

static void show_progress(void *last, uint64_t done, uint64_t bytes)
{
    double now = guard_now();
    if (now - *(double *)last < 0.2)
        return;
    *(double *)last = now;
    fprintf(stderr, "\r%3.0f %% \033[K", 100.0 * (double)done / (double)bytes);
}

static enum stele_status warm(const struct stele_image *image, struct stele_error *err)
{
    bool terminal = isatty(STDERR_FILENO);
    double last = guard_now();
    enum stele_status status = stele_image_warm(image, set.anew, terminal ? show_progress : NULL, &last, err);
    if (terminal)
        fputs("\r\033[K", stderr);
    return status == STELE_OK ? stele_image_unchanged(image, err) : status;
}

int cmd_warm(int argc, char **argv)
{
    struct stele_error err = {0};
    struct stele_image *image = NULL;
    const char *operand;
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, &operand, 1, &count, &err);
    if (status == STELE_OK && !count)
        status = stele_fail(&err, STELE_USAGE, "no IMAGE is named; `stele help warm` says more");
    if (status == STELE_OK)
        status = stele_image_open(&image, operand, &err);
    if (status == STELE_OK) {
        guard_image(image, "warm");
        status = warm(image, &err);
    }
    stele_image_close(image);
    return status == STELE_OK ? STELE_OK : cmd_fail("warm", &err);
}
