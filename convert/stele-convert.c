/* SPDX-License-Identifier: Apache-2.0 */
/* `stele convert`: options, progress, exit code. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "convert.h"
#include "cpus.h"
#include "descriptors.h"
#include "options.h"

enum { THREADS_MAX = 256 };

static const char usage[] =
    "usage: stele convert SRC -o IMAGE [options]\n"
    "\n"
    "Compiles a checkpoint in Hugging Face layout (config.json, model.safetensors or a sharded index, tokenizer.json,\n"
    "tokenizer_config.json, generation_config.json) into a memory image. The same input gives the same bytes, on any\n"
    "machine and with any number of threads. The image appears at its place only when it is complete.\n"
    "\n"
    "options:\n"
    "  -o IMAGE                the file to write\n"
    "  --weights TYPE          f32, bf16, f16, q8 or q4 (default: the source's type); q4 keeps embedding and head in q8\n"
    "  -f                      replace IMAGE if it exists\n"
    "  --threads N             default: the CPUs this process may use\n"
    "  --no-template           leave the model's chat template out: text then goes in as it is\n"
    "  --ignore-key NAME       go on though config.json has this key, which stele does not know; may be repeated\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage, 3 input\n";

struct progress {
    struct timespec begin, last;
    bool terminal;
};

static double seconds(const struct timespec *from, const struct timespec *to)
{
    return (double)(to->tv_sec - from->tv_sec) + 1e-9 * (double)(to->tv_nsec - from->tv_nsec);
}

/* One line that is written over, five times a second, on a terminal only. */
static void show_progress(void *context, uint64_t done, uint64_t total)
{
    struct progress *p = context;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!p->terminal || seconds(&p->last, &now) < 0.2 || !done)
        return;
    p->last = now;
    double spent = seconds(&p->begin, &now), rate = (double)done / spent;
    fprintf(stderr, "\r%3.0f %%  %.0f MB/s  %.0f s left \033[K", 100.0 * (double)done / (double)total, rate / 1e6,
            ((double)total - (double)done) / rate);
}

static enum stele_status read_options(struct convert_options *o, const char **ignored, int argc, char **argv,
                                      struct stele_error *err)
{
    const struct program_option options[] = {
        {"output", 'o', TAKES_TEXT, &o->target, 0, 0, 0},
        {"weights", 0, TAKES_TYPE, &o->weights, 0, 0, 0},
        {"force", 'f', TAKES_NOTHING, &o->replace, 0, 0, 0},
        {"threads", 0, TAKES_COUNT, TO_NUMBER(o->threads), 1, THREADS_MAX},
        {"ignore-key", 0, TAKES_KEYS, ignored, 0, 0, 0},
        {"no-template", 0, TAKES_NOTHING, &o->no_template, 0, 0, 0},
        {0},
    };
    enum stele_status status = options_read(options, "convert", usage, argc, argv, err);
    if (status == STELE_OK)
        status = options_operand(&o->source, "SRC", "convert", argc, argv, err);
    if (status == STELE_OK && !o->target)
        status = stele_fail(err, STELE_USAGE, "no target is named; -o IMAGE does");
    return status;
}

/* A source file became shorter under the mapping, or its disk fails. The image has no name yet, so nothing is left. */
static void on_sigbus(int number)
{
    static const char text[] = "stele convert: a source file was cut short or cannot be read; nothing was written\n";
    (void)number;
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(STELE_DAMAGED);
}

int main(int argc, char **argv)
{
    hold_standard_descriptors();
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error with a sentence */
    signal(SIGBUS, on_sigbus);
    const char *ignored[IGNORED_MAX] = {NULL};
    struct stele_error err = {0};
    struct progress progress = {.terminal = isatty(STDERR_FILENO)};
    struct convert_options options = {.verb = "convert",
                                      .weights = -1,
                                      .threads = cpus_threads(THREADS_MAX),
                                      .ignored_keys = ignored,
                                      .progress = show_progress,
                                      .context = &progress};
    clock_gettime(CLOCK_MONOTONIC, &progress.begin);
    enum stele_status status = read_options(&options, ignored, argc, argv, &err);
    if (status == STELE_OK)
        status = convert_checkpoint(&options, &err);
    if (progress.terminal)
        fputs("\r\033[K", stderr);
    if (status != STELE_OK)
        fprintf(stderr, "stele convert: %s\n", err.text);
    return (int)status;
}
