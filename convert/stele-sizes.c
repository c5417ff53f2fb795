/* SPDX-License-Identifier: Apache-2.0 */
/* `stele sizes`: what a model needs, and how fast this machine can be at most. Memory of a process
 * is asked of a session, opened on the image or on its outline (sizes.h), so there is no second
 * formula for it. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "descriptors.h"
#include "options.h"
#include "pool.h"
#include "sizes.h"
#include "stele.h"

/* Beside keys, values and scratch: stacks, tables, libraries, a row of logits. */
static const uint64_t OTHER_BYTES = 4 << 20;

static const char usage[] =
    "usage: stele sizes CONFIG|IMAGE|DIR [options]\n"
    "\n"
    "Counts what a model needs, of a config.json alone, of a checkpoint's folder (its weights and "
    "its tokenizer count if\n"
    "they are there) or of an image: the image's bytes by part, keys and values, scratch, the most "
    "memory that a process\n"
    "makes its own, and the tokens per second that no program can exceed here, since each token "
    "reads the weights once:\n"
    "for that the machine's rate of reading memory is measured, which takes a moment.\n"
    "\n"
    "options:\n"
    "  --context N             positions of a sequence (default: what the model was trained for)\n"
    "  --parallel N            sequences at the same time (default 1)\n"
    "  --weights TYPE          f32, bf16, f16, q8 or q4 (default: the source's type), as in stele "
    "convert\n"
    "  --kv f32|f16            keys and values (default f32 for f32 images, else f16)\n"
    "  --chunk N               tokens of a step at most (default 512)\n"
    "  --threads N             default: the CPUs this process may use\n"
    "  --ignore-key NAME       go on though config.json has this key, which stele does not know; "
    "may be repeated\n"
    "  --no-template           without the model's chat template, as in stele convert\n"
    "  --json                  one JSON object\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage, 3 input, 4 damaged\n";

struct settings {
    struct sizes_source source;
    struct stele_options session;
    bool json;
};

/* ---- options ---- */

static enum stele_status read_kv(enum stele_kv *out, const char *value, struct stele_error *err)
{
    if (value && strcmp(value, "f32") && strcmp(value, "f16"))
        return options_wrong("sizes", "--kv takes f32 or f16, not", value, err);
    *out = !value ? STELE_KV_DEFAULT : !strcmp(value, "f32") ? STELE_KV_F32 : STELE_KV_F16;
    return STELE_OK;
}

static enum stele_status read_options(struct settings *s, const char **ignored, int argc, char **argv,
                                      struct stele_error *err)
{
    const char *kv = NULL;
    const struct program_option options[] = {
        {"context", 0, TAKES_COUNT, TO_NUMBER(s->session.context), 1, UINT32_MAX},
        {"parallel", 0, TAKES_COUNT, TO_NUMBER(s->session.sequences), 1, 4096},
        {"weights", 0, TAKES_TYPE, &s->source.weights, 0, 0, 0},
        {"kv", 0, TAKES_TEXT, &kv, 0, 0, 0},
        {"chunk", 0, TAKES_COUNT, TO_NUMBER(s->session.chunk), 1, 65536},
        {"threads", 0, TAKES_COUNT, TO_NUMBER(s->session.threads), 1, 256},
        {"ignore-key", 0, TAKES_KEYS, ignored, 0, 0, 0},
        {"no-template", 0, TAKES_NOTHING, &s->source.no_template, 0, 0, 0},
        {"json", 0, TAKES_NOTHING, &s->json, 0, 0, 0},
        {0},
    };
    enum stele_status status = options_read(options, "sizes", usage, argc, argv, err);
    if (status == STELE_OK)
        status = read_kv(&s->session.kv, kv, err);
    return status == STELE_OK ? options_operand(&s->source.path, "CONFIG, IMAGE or DIR", "sizes", argc, argv, err)
                              : status;
}

/* ---- how fast memory is read ---- */

enum {
    BUFFER_BYTES = 256 << 20, /* beyond the caches of most machines */
    PIECE_BYTES = 1 << 20,    /* what a thread takes at a time */
    PIECE_WORDS = PIECE_BYTES / sizeof(uint64_t),
    SUMS = 8,
};

struct reading {
    const uint64_t *words;
    uint64_t sums[256]; /* [threads]: so that the reading is not left out */
};

static void read_pieces(void *context, size_t from, size_t to, size_t thread)
{
    struct reading *r = context;
    uint64_t sums[SUMS] = {0};
    for (size_t i = from * PIECE_WORDS; i < to * PIECE_WORDS; i += SUMS)
        for (size_t j = 0; j < SUMS; j++)
            sums[j] += r->words[i + j];
    for (size_t j = 0; j < SUMS; j++)
        r->sums[thread] += sums[j];
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Bytes per second of the best of several passes over anonymous memory; 0 where there is none to be
 * had. */
static double measure_bandwidth(size_t threads)
{
    struct reading reading = {0};
    void *words = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    struct pool *pool = words == MAP_FAILED ? NULL : pool_open(threads);
    double best = 0, begin = now();
    reading.words = words;
    for (int pass = 0; pool && (pass < 4 || now() - begin < 0.1); pass++) {
        double from = now();
        pool_run(pool, BUFFER_BYTES / PIECE_BYTES, read_pieces, &reading);
        double rate = BUFFER_BYTES / (now() - from);
        best = rate > best ? rate : best;
    }
    pool_close(pool);
    if (words != MAP_FAILED)
        munmap(words, BUFFER_BYTES);
    return best;
}

/* ---- the answer ---- */

struct answer {
    struct sizes sizes;
    struct stele_session_info session;
    uint64_t kv_position; /* bytes of keys and values of a position */
    uint64_t kv_read;     /* those that a token at the end of the context reads */
    uint64_t sequences;
    uint64_t own;     /* bytes that a process makes its own, at most */
    uint64_t gpu;     /* bytes that --device cuda takes of the GPU's memory */
    double bandwidth; /* bytes per second; 0: not known */
    bool text_known;
};

static double tokens_per_s(const struct answer *a, uint64_t kv_read)
{
    return a->bandwidth / (double)(a->sizes.read + kv_read);
}

/* Whether the weights that a token reads may stay in the caches, so that memory is no bound. */
static bool fits_caches(const struct answer *a)
{
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return a->sizes.read <= (bytes > 0 ? (uint64_t)bytes : 32 << 20);
}

static void print_json(const struct answer *a)
{
    const struct sizes *z = &a->sizes;
    printf("{\"image_bytes\": %" PRIu64 ", \"embedding_bytes\": %" PRIu64
           ", \"layers_bytes\": %" PRIu64 ", \"experts_bytes\": %" PRIu64
           ", \"head_bytes\": %" PRIu64,
           z->file, z->embedding, z->layers, z->experts, z->head);
    if (a->text_known)
        printf(", \"tokenizer_bytes\": %" PRIu64, z->tokenizer);
    else
        printf(", \"tokenizer_bytes\": null");
    printf(", \"rest_bytes\": %" PRIu64 ", \"context\": %" PRIu32 ", \"parallel\": %" PRIu64
           ", \"chunk\": %" PRIu32 ", \"threads\": %" PRIu32
           ", \"kv\": \"%s\", \"kv_token_bytes\": %" PRIu64 ", \"kv_bytes\": %" PRIu64
           ", \"scratch_bytes\": %" PRIu64 ", \"own_bytes\": %" PRIu64 ", \"gpu_scratch_bytes\": %" PRIu64 ", \"gpu_bytes\": %" PRIu64 ", \"read_bytes\": %" PRIu64
           ", \"kv_read_bytes\": %" PRIu64,
           z->rest, a->session.context, a->sequences, a->session.chunk, a->session.threads,
           a->session.kv, a->kv_position, a->session.kv_bytes, a->session.scratch_bytes, a->own,
           a->session.gpu_scratch_bytes, a->gpu,
           z->read, a->kv_read);
    if (a->bandwidth > 0)
        printf(", \"bandwidth_bytes_per_s\": %.4g, \"tokens_per_s_empty\": %.4g, "
               "\"tokens_per_s_full\": %.4g}\n",
               a->bandwidth, tokens_per_s(a, 0), tokens_per_s(a, a->kv_read));
    else
        puts(", \"bandwidth_bytes_per_s\": null, \"tokens_per_s_empty\": null, "
             "\"tokens_per_s_full\": null}");
}

/* A line: what, how many bytes, and what to know of it. */
static void print_bytes(const char *what, uint64_t bytes, const char *note)
{
    static const struct {
        double size;
        const char *name;
    } units[] = {{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}};
    size_t u = 0;
    if (!bytes) {
        printf("%-18s%15d            %s\n", what, 0, note);
        return;
    }
    while (u < 3 && (double)bytes < units[u].size)
        u++;
    printf("%-18s%15" PRIu64 "  %6.1f %s%s%s\n", what, bytes, (double)bytes / units[u].size,
           units[u].name, *note ? "  " : "", note);
}

static void print_text(const struct answer *a)
{
    const struct sizes *z = &a->sizes;
    char note[160];
    print_bytes("image", z->file,
                a->text_known ? ""
                              : "without tokenizer and provenance, which a config does not tell");
    print_bytes("  embedding", z->embedding, z->embedding ? "" : "it is the head's matrix");
    print_bytes("  layers", z->layers, "");
    if (z->experts)
        print_bytes("  experts", z->experts, "");
    print_bytes("  head", z->head, "");
    if (a->text_known)
        print_bytes("  tokenizer", z->tokenizer, z->tokenizer ? "" : "there is none");
    print_bytes("  rest", z->rest, "header, plan, defaults, digests, provenance, padding");
    snprintf(note, sizeof note, "%s, %" PRIu64 " for a token; %" PRIu64 " x %" PRIu32 " tokens",
             a->session.kv, a->kv_position, a->sequences, a->session.context);
    print_bytes("keys and values", a->session.kv_bytes, note);
    snprintf(note, sizeof note, "steps of %" PRIu32 " tokens at most, %" PRIu32 " threads",
             a->session.chunk, a->session.threads);
    print_bytes("scratch", a->session.scratch_bytes, note);
    print_bytes("own memory", a->own,
                "at most: keys and values, scratch and 4 MiB; the image is shared");
    snprintf(note, sizeof note, "weights without the embedding's rows, keys and values, scratch of %" PRIu64 "; see --vram",
             a->session.gpu_scratch_bytes);
    print_bytes("on a GPU", a->gpu, note);
    print_bytes("read for a token", z->read, "of the image, where nothing is before it");
    snprintf(note, sizeof note, "with a full context: %" PRIu64 " of keys and values too",
             a->kv_read);
    print_bytes("", z->read + a->kv_read, note);
    if (a->bandwidth > 0)
        printf("speed             at most %.1f tokens/s, with a full context %.1f: %" PRIu32
               " threads read %.1f GB/s\n"
               "                  just now, from %d MiB of memory, the best of several passes%s\n",
               tokens_per_s(a, 0), tokens_per_s(a, a->kv_read), a->session.threads,
               a->bandwidth / 1e9, BUFFER_BYTES >> 20,
               fits_caches(a)
                   ? ";\n                  what fits into the caches, as this may, can be faster"
                   : "");
    else
        puts("speed             not known: there is no memory to measure the rate of reading with");
}

static enum stele_status answer(const struct settings *s, const struct stele_image *image,
                                bool text_known, struct stele_error *err)
{
    struct stele_session *session;
    struct answer a = {.text_known = text_known,
                       .sequences = s->session.sequences ? s->session.sequences : 1};
    const struct image *inner = (const struct image *)image;
    uint64_t numbers = 0;
    enum stele_status status = sizes_count(&a.sizes, inner, err);
    if (status == STELE_OK)
        status = stele_session_open(&session, image, &s->session, err);
    if (status != STELE_OK)
        return status;
    a.session = stele_session_info(session);
    stele_session_close(session);
    status = sizes_kv_read(&numbers, a.session.context, inner, err);
    if (status != STELE_OK)
        return status;
    uint64_t number_bytes = !strcmp(a.session.kv, "f16") ? 2 : 4;
    a.kv_position = a.sizes.position_numbers * number_bytes;
    a.kv_read = numbers * number_bytes;
    a.gpu = a.sizes.layers + a.sizes.experts + a.sizes.head + a.session.kv_bytes + a.session.gpu_scratch_bytes;
    a.own = a.session.kv_bytes + a.session.scratch_bytes + OTHER_BYTES;
    a.bandwidth = measure_bandwidth(a.session.threads);
    if (s->json)
        print_json(&a);
    else
        print_text(&a);
    return STELE_OK;
}

/* Whether the file begins as an image does. */
static bool is_image(const char *path)
{
    uint8_t magic[8] = {0};
    FILE *f = fopen(path, "re");
    bool is = f && fread(magic, 1, sizeof magic, f) == sizeof magic &&
              !memcmp(magic, IMAGE_MAGIC, sizeof magic);
    if (f)
        fclose(f);
    return is;
}

static enum stele_status sizes(const struct settings *s, struct stele_error *err)
{
    char path[64];
    int fd = -1;
    bool text_known = true;
    enum stele_status status = STELE_OK;
    struct stele_image *image = NULL;
    if (is_image(s->source.path)) {
        if (s->source.weights >= 0)
            return stele_fail(err, STELE_USAGE,
                              "%s: an image has its weights' type; --weights is for checkpoints",
                              s->source.path);
        status = stele_image_open(&image, s->source.path, err);
    } else {
        status = sizes_outline(&fd, &text_known, &s->source, err);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        struct stele_error why;
        if (status == STELE_OK && (status = stele_image_open(&image, path, &why)) != STELE_OK)
            stele_fail(err, status, "%s: its outline: %s", s->source.path, why.text);
    }
    if (status == STELE_OK)
        status = answer(s, image, text_known, err);
    stele_image_close(image);
    if (fd >= 0)
        close(fd);
    return status;
}

/* A source file became shorter while it was mapped, or cannot be read. */
static void on_sigbus(int number)
{
    static const char text[] = "stele sizes: the file was cut short or cannot be read\n";
    (void)number;
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(STELE_DAMAGED);
}

int main(int argc, char **argv)
{
    hold_standard_descriptors();
    signal(SIGBUS, on_sigbus);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error with a sentence */
    const char *ignored[IGNORED_MAX] = {NULL};
    struct stele_error err = {0};
    struct settings settings = {.source = {.weights = -1, .ignored_keys = ignored}};
    settings.session.kernels = getenv("STELE_KERNELS");
    enum stele_status status = read_options(&settings, ignored, argc, argv, &err);
    if (status == STELE_OK)
        status = sizes(&settings, &err);
    if (status == STELE_OK && (fflush(stdout) || ferror(stdout)))
        status = stele_fail(&err, STELE_SYSTEM, "standard output: %s", strerror(errno));
    if (status != STELE_OK)
        fprintf(stderr, "stele sizes: %s\n", err.text);
    return (int)status;
}
