/* SPDX-License-Identifier: Apache-2.0 */
/* `stele pull`: options, progress, exit code; and the other verbs of this program, which is told by argv[0] what it is.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "arrival.h"
#include "cpus.h"
#include "descriptors.h"
#include "format.h"
#include "options.h"
#include "parcel.h"
#include "pull.h"
#include "push.h"
#include "shelf.h"
#include "store.h"

static const char usage[] =
    "usage: stele pull REF [-o IMAGE] [options]\n"
    "\n"
    "Compiles a checkpoint into a memory image while it arrives: no copy of the checkpoint touches the disk, and\n"
    "the image is the one that `stele convert` makes of the same files. REF is\n"
    "  hf:ORG/NAME[@REVISION]    a model of a hub: HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what they\n"
    "                            mean to the hub's own client, and a snapshot in its local cache is used\n"
    "  s3://BUCKET/PREFIX        an object store: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,\n"
    "                            AWS_REGION, AWS_ENDPOINT_URL, or AWS_PROFILE in ~/.aws/credentials and ~/.aws/config\n"
    "  https://HOST/FOLDER       a folder with config.json beside its model.safetensors or its shards, or one\n"
    "                            .safetensors\n"
    "  https://..., s3://...     with .stele or .stele.zst at its end: a finished image, plain or packed by\n"
    "                            `stele pack`\n"
    "\n"
    "Without -o the image goes to the store ($STELE_HOME, else $XDG_DATA_HOME/stele or ~/.local/share/stele), its\n"
    "path is written to standard output, and `stele run REF` finds it there; one that the store has of the same\n"
    "source, by the same converter and with the same options, is not fetched again. REF#WEIGHTS is short for\n"
    "--weights.\n"
    "\n"
    "A pull that was cut off, by whatever, goes on where it was when it is called again; what came until then\n"
    "lies in IMAGE.part or in the store. Digests that the source states are computed on the way and must match.\n"
    "\n"
    "options:\n"
    "  -o IMAGE                the file to write (default: the store)\n"
    "  --weights TYPE          f32, bf16, f16, q8 or q4 (default: the source's type); q4 keeps embedding and\n"
    "                          head in q8\n"
    "  -f                      replace IMAGE if it exists; fetch what the store has anew\n"
    "  --connections N         requests at a time, 1 to 250 (default 16)\n"
    "  --chunk SIZE            bytes of a request (default 8M)\n"
    "  --memory SIZE           bytes on their way at most (default 256M)\n"
    "  --timeout SECONDS       of silence until a request is tried again (default 30)\n"
    "  --threads N             default: the CPUs this process may use\n"
    "  --no-template           leave the model's chat template out: text then goes in as it is\n"
    "  --ignore-key NAME       go on though config.json has this key, which stele does not know; may be repeated\n"
    "  --stats                 bytes, times and rates as one JSON object on stderr\n"
    "  --arrival N             tell who reads from the socket that is descriptor N what has arrived: `stele run REF`\n"
    "                          starts a pull so, and computes meanwhile\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage, 3 input, 4 damaged, 6 unreachable or refused\n";

struct progress {
    struct timespec begin, last;
    uint64_t first; /* bytes that were there at the first call */
    bool terminal, begun;
    int channel;
};

static double seconds(const struct timespec *from, const struct timespec *to)
{
    return (double)(to->tv_sec - from->tv_sec) + 1e-9 * (double)(to->tv_nsec - from->tv_nsec);
}

/* One line that is written over, five times a second, on a terminal only. */
static void show_progress(void *context, uint64_t done, uint64_t total, unsigned active)
{
    struct progress *p = context;
    struct timespec now;
    if (!p->terminal)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!p->begun) {
        p->begun = true;
        p->begin = now;
        p->first = done;
    }
    if (seconds(&p->last, &now) < 0.2)
        return;
    p->last = now;
    double spent = seconds(&p->begin, &now), rate = spent > 0 ? (double)(done - p->first) / spent : 0;
    fprintf(stderr, "\r%.2f of %.2f GB  %.0f MB/s  %.0f s left  %u connections \033[K", (double)done / 1e9,
            (double)total / 1e9, rate / 1e6, rate > 0 ? (double)(total - done) / rate : 0, active);
}

static void clear_progress(const struct progress *p)
{
    if (p->terminal)
        fputs("\r\033[K", stderr);
}

/* Who computes meanwhile may go on, to the end of its answer; and even if it ends early, the image gets its place. */
static void on_whole(void *context)
{
    struct progress *p = context;
    if (p->channel < 0)
        return;
    clear_progress(p);
    arrival_whole(p->channel);
    prctl(PR_SET_PDEATHSIG, 0);
}

static void print_stats(const struct pull_result *r)
{
    const struct stream_stats *s = &r->stream;
    fprintf(stderr,
            "{\"bytes\": %" PRIu64 ", \"fetched_bytes\": %" PRIu64 ", \"resumed_bytes\": %" PRIu64
            ", \"retries\": %" PRIu64
            ", \"stream_s\": %.3f, \"bytes_per_s\": %.0f, \"waited_for_link_s\": %.3f, \"waited_for_packing_s\": %.3f, "
            "\"limit\": \"%s\", \"reused\": %s}\n",
            s->total, s->window.fetched, s->resumed, r->retries, s->seconds,
            s->seconds > 0 ? (double)s->window.fetched / s->seconds : 0, s->window.dry_s, s->window.full_s,
            s->window.full_s > s->window.dry_s ? "cpu" : "link", r->reused ? "true" : "false");
}

/* Cuts #WEIGHTS off a reference. */
static enum stele_status take_weights(struct pull_options *o, char *reference, struct stele_error *err)
{
    const char *word = store_weights(reference);
    int weights = word && strcmp(word, "source") ? options_type(word) : -1;
    if (word && weights < 0 && strcmp(word, "source"))
        return options_wrong("pull", "behind # there may be f32, bf16, f16, q8, q4 or source, not", word, err);
    if (word && o->weights >= 0 && o->weights != weights)
        return options_wrong("pull", "--weights names another type than", reference, err);
    o->weights = word ? weights : o->weights;
    reference[strcspn(reference, "#")] = '\0';
    return STELE_OK;
}

static enum stele_status read_options(struct pull_options *o, const char **ignored, bool *stats, int argc, char **argv,
                                      struct stele_error *err)
{
    const struct program_option options[] = {
        {"output", 'o', TAKES_TEXT, &o->target, 0, 0, 0},
        {"weights", 0, TAKES_TYPE, &o->weights, 0, 0, 0},
        {"force", 'f', TAKES_NOTHING, &o->replace, 0, 0, 0},
        {"connections", 0, TAKES_COUNT, TO_NUMBER(o->connections), 1, 250},
        {"chunk", 0, TAKES_SIZE, TO_NUMBER(o->chunk), 4096, 1 << 30},
        {"memory", 0, TAKES_SIZE, TO_NUMBER(o->memory), 1 << 20, (uint64_t)1 << 40},
        {"timeout", 0, TAKES_COUNT, TO_NUMBER(o->timeout_s), 1, 3600},
        {"threads", 0, TAKES_COUNT, TO_NUMBER(o->threads), 1, 256},
        {"ignore-key", 0, TAKES_KEYS, ignored, 0, 0, 0},
        {"no-template", 0, TAKES_NOTHING, &o->no_template, 0, 0, 0},
        {"stats", 0, TAKES_NOTHING, stats, 0, 0, 0},
        {"arrival", 0, TAKES_COUNT, TO_NUMBER(o->channel), 3, 1 << 20},
        {0},
    };
    enum stele_status status = options_read(options, "pull", usage, argc, argv, err);
    if (status == STELE_OK)
        status = options_operand(&o->reference, "REF", "pull", argc, argv, err);
    if (status != STELE_OK)
        return status;
    if (!store_is_reference(o->reference))
        return options_wrong("pull", "a reference begins with hf:, s3:// or https://, unlike", o->reference, err);
    for (const char *c = o->reference; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return options_wrong("pull", "there is a control byte in", o->reference, err);
    return take_weights(o, argv[optind], err);
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} verbs[] = {
    {"ls", shelf_ls},      {"rm", shelf_rm},          {"gc", shelf_gc},
    {"pack", parcel_pack}, {"unpack", parcel_unpack}, {"push", push},
};

int main(int argc, char **argv)
{
    hold_standard_descriptors();
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error with a sentence */
    signal(SIGPIPE, SIG_IGN); /* a connection that ends is one too */
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (!strcmp(argv[0], verbs[i].name))
            return verbs[i].run(argc, argv);
    const char *ignored[IGNORED_MAX] = {NULL};
    struct stele_error err = {0};
    struct progress progress = {.terminal = isatty(STDERR_FILENO), .channel = -1};
    struct pull_result result = {0};
    bool stats = false;
    struct pull_options options = {.weights = -1,
                                   .ignored_keys = ignored,
                                   .threads = cpus_threads(256),
                                   .memory = 256 << 20,
                                   .chunk = 8 << 20,
                                   .connections = 16,
                                   .timeout_s = 30,
                                   .progress = show_progress,
                                   .whole = on_whole,
                                   .context = &progress,
                                   .channel = -1};
    enum stele_status status = read_options(&options, ignored, &stats, argc, argv, &err);
    progress.channel = options.channel;
    if (status == STELE_OK)
        status = pull(&options, &result, &err);
    clear_progress(&progress);
    err.status = status;
    arrival_over(options.channel, &err);
    if (status != STELE_OK && options.channel < 0)
        fprintf(stderr, "stele pull: %s\n", err.text);
    if (stats)
        print_stats(&result);
    if (status == STELE_OK && !options.target && options.channel < 0 && (puts(result.path) < 0 || fflush(stdout))) {
        fprintf(stderr, "stele pull: standard output: %s\n", strerror(errno));
        status = STELE_SYSTEM;
    }
    free(result.path);
    return (int)status;
}
