/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of a model on a GPU, timed through stele.h: one JSON object. scripts/gpu-check reads it.
 *
 *     bench_gpu IMAGE DEVICE PREFILL_TOKENS DECODE_STEPS
 *
 *     open_s, first_token_s   from the call that opens the session; first_token_s to the logits of one token
 *     map, vram_bytes, upload_s
 *     decode                  {sequences: seconds of a step, the median}; logits of all sequences are fetched
 *     prefill_s               of PREFILL_TOKENS in one step, the best of three */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stele.h"

enum { SEQUENCES = 32, STEPS_MAX = 4096, CONTEXT_BEFORE = 64 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(enum stele_status status, const struct stele_error *err)
{
    if (status == STELE_OK)
        return;
    fprintf(stderr, "bench_gpu: %s\n", err->text);
    exit((int)status);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of a step of one token for each of n sequences at position `at`. */
static double step(struct stele_session *s, uint32_t n, uint32_t at, uint32_t vocabulary, float *logits)
{
    struct stele_slice slices[SEQUENCES];
    struct stele_error err;
    uint32_t ids[SEQUENCES];
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = (i * 7919 + at * 104729) % vocabulary;
        slices[i] = (struct stele_slice){i, at, 1, 0, &ids[i]};
    }
    double begin = now();
    check(stele_step(s, slices, n, &err), &err);
    check(stele_logits(s, 0, n, logits, &err), &err);
    return now() - begin;
}

/* Seconds of a prefill of `count` tokens of sequence 0, without logits but for the last. */
static double prefill(struct stele_session *s, uint32_t sequence, uint32_t count, uint32_t vocabulary, float *logits)
{
    struct stele_error err;
    uint32_t *ids = malloc((count + 1) * sizeof *ids);
    if (!ids)
        exit(STELE_SYSTEM);
    for (uint32_t i = 0; i < count; i++)
        ids[i] = (i * 7919 + 13) % vocabulary;
    struct stele_slice slice = {sequence, 0, count, count - 1, ids};
    double begin = now();
    check(stele_step(s, &slice, 1, &err), &err);
    check(stele_logits(s, 0, 1, logits, &err), &err);
    free(ids);
    return now() - begin;
}

int main(int argc, char **argv)
{
    struct stele_image *image;
    struct stele_session *s;
    struct stele_error err;
    if (argc != 5) {
        fprintf(stderr, "usage: bench_gpu IMAGE DEVICE PREFILL_TOKENS DECODE_STEPS\n");
        return STELE_USAGE;
    }
    const uint32_t tokens = (uint32_t)atoi(argv[3]), steps = (uint32_t)atoi(argv[4]) % STEPS_MAX;
    const uint32_t longer = tokens > CONTEXT_BEFORE + steps ? tokens : CONTEXT_BEFORE + steps;
    struct stele_options o = {
        .device = argv[2], .sequences = SEQUENCES, .context = longer, .chunk = tokens > 512 ? tokens : 512};
    check(stele_image_open(&image, argv[1], &err), &err);
    double begin = now();
    check(stele_session_open(&s, image, &o, &err), &err);
    const double open_s = now() - begin;
    struct stele_session_info info = stele_session_info(s);
    float *logits = malloc((size_t)SEQUENCES * info.vocabulary * sizeof *logits);
    static double times[STEPS_MAX];
    if (!logits)
        return STELE_SYSTEM;
    step(s, 1, 0, info.vocabulary, logits);
    const double first_token_s = now() - begin;
    info = stele_session_info(s);
    printf("{\"device\": \"%s\", \"map\": \"%s\", \"vram_bytes\": %llu, \"upload_s\": %.6f, \"open_s\": %.6f, "
           "\"first_token_s\": %.6f, \"decode\": {",
           info.device, info.map ? info.map : "cpu", (unsigned long long)info.vram_bytes, info.upload, open_s,
           first_token_s);
    for (uint32_t n = 1; n <= SEQUENCES; n = n == 1 ? 8 : 4 * n) {
        for (uint32_t i = 0; i < n; i++)
            prefill(s, i, CONTEXT_BEFORE, info.vocabulary, logits);
        for (uint32_t i = 0; i < steps; i++)
            times[i] = step(s, n, CONTEXT_BEFORE + i, info.vocabulary, logits);
        qsort(times, steps, sizeof *times, compare);
        printf("%s\"%u\": %.9f", n > 1 ? ", " : "", n, times[steps / 2]);
    }
    double best = 1e30;
    for (int i = 0; i < 3; i++) {
        double t = prefill(s, 0, tokens, info.vocabulary, logits);
        best = t < best ? t : best;
    }
    printf("}, \"prefill_s\": %.6f}\n", best);
    free(logits);
    stele_session_close(s);
    stele_image_close(image);
    return STELE_OK;
}
