/* SPDX-License-Identifier: Apache-2.0 */
/* `stele convert`: options, progress, exit code. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "convert.h"
#include "cpus.h"
#include "descriptors.h"

enum { OPTION_IGNORE = 256, OPTION_WEIGHTS, OPTION_THREADS, OPTION_NO_TEMPLATE, IGNORED_MAX = 64, THREADS_MAX = 256 };

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

static enum stele_status usage_error(struct stele_error *err, const char *what, const char *value)
{
    return stele_fail(err, STELE_USAGE, "%s %s; `stele help convert` lists the options", what, value);
}

static int weights_of(const char *name)
{
    for (int type = 0; type < TENSOR_TYPES; type++)
        if (type_offered((enum tensor_type)type) && !strcmp(name, type_name((enum tensor_type)type)))
            return type;
    return -1;
}

static enum stele_status read_options(struct convert_options *o, const char **ignored, int argc, char **argv,
                                      struct stele_error *err)
{
    static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                            {"weights", required_argument, NULL, OPTION_WEIGHTS},
                                            {"force", no_argument, NULL, 'f'},
                                            {"threads", required_argument, NULL, OPTION_THREADS},
                                            {"ignore-key", required_argument, NULL, OPTION_IGNORE},
                                            {"no-template", no_argument, NULL, OPTION_NO_TEMPLATE},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    size_t n = 0;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":o:fh", options, NULL)) != -1;)
        switch (c) {
        case 'o':
            o->target = optarg;
            break;
        case 'f':
            o->replace = true;
            break;
        case 'h':
            fputs(usage, stdout);
            exit(fflush(stdout) ? STELE_SYSTEM : STELE_OK);
        case OPTION_WEIGHTS:
            if ((o->weights = weights_of(optarg)) < 0)
                return usage_error(err, "--weights takes f32, bf16, f16, q8 or q4, not", optarg);
            break;
        case OPTION_THREADS: {
            char *end;
            unsigned long threads = strtoul(optarg, &end, 10);
            if (*optarg < '0' || *optarg > '9' || *end || !threads || threads > THREADS_MAX)
                return usage_error(err, "--threads takes a number from 1 to 256, not", optarg);
            o->threads = threads;
            break;
        }
        case OPTION_NO_TEMPLATE:
            o->no_template = true;
            break;
        case OPTION_IGNORE:
            if (n + 1 >= IGNORED_MAX)
                return usage_error(err, "too many --ignore-key, the last is", optarg);
            ignored[n++] = optarg;
            break;
        case ':':
            return usage_error(err, "a value is missing behind", argv[optind - 1]);
        default:
            return usage_error(err, "unknown option", argv[optind - 1]);
        }
    if (optind + 1 != argc)
        return optind == argc ? stele_fail(err, STELE_USAGE, "no SRC is named; `stele help convert` says more")
                              : usage_error(err, "one SRC is taken; there is also", argv[optind + 1]);
    o->source = argv[optind];
    return o->target ? STELE_OK : stele_fail(err, STELE_USAGE, "no target is named; -o IMAGE does");
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
