/* SPDX-License-Identifier: Apache-2.0 */
/* Two sessions, each in a thread of its own, over one image, at once: tests/end_to_end/test_library.py.
 *
 *     two_threads IMAGE
 *
 * Each thread continues the same ids a few times over, one with one thread of the library's and in small chunks, the other
 * with two. All must draw the same ids from the same bits: "ROUNDS rounds alike", exit 0. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <stele.h>

enum { PROMPT = 40, DRAWN = 24, ROUNDS = 6 };

struct worker {
    const struct stele_image *image;
    struct stele_options options;
    uint32_t ids[ROUNDS][DRAWN];
    size_t counts[ROUNDS];
    float *logits; /* [vocabulary], of the prompt's last id */
    struct stele_error err;
    enum stele_status status;
    pthread_t thread;
    int round;
};

static bool take(void *context, const uint32_t *ids, size_t count, const char *text, size_t bytes)
{
    struct worker *w = context;
    (void)text, (void)bytes;
    for (size_t i = 0; i < count; i++)
        w->ids[w->round][w->counts[w->round]++] = ids[i];
    return true;
}

static enum stele_status score(struct worker *w, struct stele_session *session, const uint32_t *prompt)
{
    struct stele_session_info info = stele_session_info(session);
    enum stele_status status = STELE_OK;
    for (uint32_t at = 0, n; at < PROMPT && status == STELE_OK; at += n) {
        n = PROMPT - at < info.chunk ? PROMPT - at : info.chunk;
        struct stele_slice slice = {.first = at, .count = n, .logits_from = n - 1, .ids = prompt + at};
        status = stele_step(session, &slice, 1, &w->err);
    }
    w->logits = malloc(info.vocabulary * sizeof *w->logits);
    return status == STELE_OK ? stele_logits(session, 0, 1, w->logits, &w->err) : status;
}

static void *work(void *argument)
{
    struct worker *w = argument;
    struct stele_session *session;
    uint32_t prompt[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = 3 + 7 * i % 50;
    w->status = stele_session_open(&session, w->image, &w->options, &w->err);
    for (w->round = 0; w->round < ROUNDS && w->status == STELE_OK; w->round++) {
        struct stele_generation g = {.prompt = prompt, .prompt_count = PROMPT, .tokens_max = DRAWN, .deliver = take, .context = w};
        struct stele_result result;
        g.sampling.temperature = 1;
        g.sampling.seed = (uint64_t)w->round;
        w->status = stele_generate(session, &g, &result, &w->err);
    }
    if (w->status == STELE_OK)
        w->status = score(w, session, prompt);
    stele_session_close(session);
    return NULL;
}

int main(int argc, char **argv)
{
    static struct worker workers[2];
    struct stele_error err;
    struct stele_image *image;
    if (argc != 2 || stele_image_open(&image, argv[1], &err) != STELE_OK)
        return 2;
    for (int i = 0; i < 2; i++) {
        workers[i].image = image;
        workers[i].options = (struct stele_options){.threads = 1 + (uint32_t)i, .chunk = i ? 0 : 7};
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(workers[i].thread, NULL);
    for (int i = 0; i < 2; i++)
        if (workers[i].status != STELE_OK) {
            fprintf(stderr, "two_threads: %s\n", workers[i].err.text);
            return (int)workers[i].status;
        }
    bool same = !memcmp(workers[0].ids, workers[1].ids, sizeof workers[0].ids) && workers[0].counts[0] > 1 &&
                !memcmp(workers[0].logits, workers[1].logits, stele_image_info(image).vocabulary * sizeof(float));
    printf(same ? "%d rounds alike\n" : "%d rounds, not alike\n", ROUNDS);
    for (int i = 0; i < 2; i++)
        free(workers[i].logits);
    stele_image_close(image);
    return same ? 0 : 1;
}
