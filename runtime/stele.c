/* SPDX-License-Identifier: Apache-2.0 */
/* The command: finds the verb, prints help, runs the programs that are verbs of their own (stele-convert). */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "descriptors.h"
#include "guard.h"
#include "stele.h"

extern const struct verb verb_run, verb_choose, verb_render, verb_tokenize, verb_logprobs, verb_inspect, verb_verify, verb_warm, verb_perplexity, verb_kld,
    verb_devices;

const struct verb *const verbs[] = {
    &verb_run,
    &verb_choose,
    &verb_render,
    &verb_tokenize,
    &verb_logprobs,
    &verb_inspect,
    &verb_verify,
    &verb_warm,
    &verb_perplexity,
    &verb_kld,
    &verb_devices,
    NULL,
};

/* Verbs that are programs beside this one; they print their own help. */
static const struct {
    const char *name, *program, *synopsis;
} programs[] = {
    {"convert", "convert", "SRC -o IMAGE [--weights f32|bf16|f16|q8|q4] [-f] [--threads N] [--ignore-key NAME]..."},
    {"pull", "pull", "REF [-o IMAGE] [--weights f32|bf16|f16|q8|q4] [-f] [--connections N] [--memory SIZE] [--stats]"},
    {"ls", "pull", "[--json]"},
    {"rm", "pull", "REF|IDENTITY..."},
    {"gc", "pull", "[-n]"},
    {"pack", "pull", "IMAGE -o FILE [-f] [--threads N]"},
    {"unpack", "pull", "FILE -o IMAGE [-f] [--threads N]"},
    {"push", "pull", "IMAGE s3://BUCKET/KEY [--part SIZE] [--connections N]"},
    {"compare", "compare", "IMAGE DIR|FILE [--bound X]"},
    {"sizes", "sizes", "CONFIG|IMAGE|DIR [--context N] [--parallel N] [--weights TYPE]"},
};

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; verbs[i]; i++)
        if (!strcmp(verbs[i]->name, name))
            return verbs[i];
    return NULL;
}

static void print_verbs(FILE *to)
{
    fputs("usage: stele VERB ...\n\n", to);
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        fprintf(to, "  stele %s %s\n", programs[i].name, programs[i].synopsis);
    for (size_t i = 0; verbs[i]; i++)
        fprintf(to, "  stele %s %s\n", verbs[i]->name, verbs[i]->synopsis);
    fputs("\n  stele help VERB    what it does and its options\n  stele --version\n", to);
}

static void print_help(const struct verb *verb)
{
    printf("usage: stele %s %s\n\n%s\n", verb->name, verb->synopsis, verb->about);
    if (verb->options && verb->options->name)
        puts("\noptions:");
    for (const struct cmd_option *o = verb->options; o && o->name; o++) {
        const char *value = o->kind == OPTION_CHOICE && !o->value ? o->words : o->value;
        int n = printf("  %s%s%s", o->name, value ? " " : "", value ? value : "");
        printf("%*s%s\n", n < 26 ? 26 - n : 2, "", o->help);
    }
    puts("\nexit codes: 0 done, 1 system, 2 usage, 3 input, 4 damaged, 5 context full, 6 unreachable");
}

static int no_verb(const char *name)
{
    struct stele_error err;
    stele_fail(&err, STELE_USAGE, "no verb \"%s\"; `stele help` lists them", name);
    fprintf(stderr, "stele: %s\n", err.text);
    return STELE_USAGE;
}

static int help(const char *name)
{
    if (!name) {
        print_verbs(stdout);
        return STELE_OK;
    }
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        if (!strcmp(name, programs[i].name)) {
            char verb[32], option[] = "--help"; /* a program of several verbs goes by argv[0] */
            snprintf(verb, sizeof verb, "%s", name);
            char *argv[] = {verb, option, NULL};
            cmd_become(programs[i].program, argv);
            return STELE_SYSTEM;
        }
    const struct verb *verb = find_verb(name);
    if (!verb)
        return no_verb(name);
    print_help(verb);
    return STELE_OK;
}

/* Answers that were left in stdio's buffer must not be lost in silence. */
static int finish(int code)
{
    if ((fflush(stdout) || ferror(stdout)) && code == STELE_OK) {
        fprintf(stderr, "stele: standard output: %s\n", strerror(errno));
        return STELE_SYSTEM;
    }
    return code;
}

int main(int argc, char **argv)
{
    guard_mark_start();
    /* One growth of the heap for all that a run allocates, whatever the model's size: system calls before the first op
     * are then the same for every model. Address space only; pages become memory when they are touched. */
    mallopt(M_TOP_PAD, 4 << 20);
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    hold_standard_descriptors();
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error with a sentence */
    if (argc < 2) {
        print_verbs(stderr);
        return STELE_USAGE;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("stele %s\n", stele_version());
        return finish(STELE_OK);
    }
    if (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
        return finish(help(argc > 2 ? argv[2] : NULL));
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        if (!strcmp(argv[1], programs[i].name)) {
            cmd_become(programs[i].program, argv + 1);
            return STELE_SYSTEM;
        }
    const struct verb *verb = find_verb(argv[1]);
    if (!verb)
        return no_verb(argv[1]);
    if (argc > 2 && (!strcmp(argv[2], "--help") || !strcmp(argv[2], "-h")))
        return finish(help(argv[1]));
    return finish(verb->run(argc - 1, argv + 1));
}
