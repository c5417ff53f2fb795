/* SPDX-License-Identifier: Apache-2.0 */
/* Asks a model a question and prints what it answers, as `stele run -n 64` does.
 *
 *     cc generate.c -o generate $(pkg-config --cflags --libs stele)
 *     ./generate model.stele "Why is the sky blue?" */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <stele.h>

/* The ids that the model continues: the question in its chat template, where it has one. */
static enum stele_status read_question(const struct stele_image *image, const char *question,
                                       struct stele_generation *g, uint32_t **ids, struct stele_error *err)
{
    if (!stele_has_template(image))
        return stele_tokenize(image, question, strlen(question), 0, ids, &g->prompt_count, err);
    struct stele_chat chat = {.user = question, .user_bytes = strlen(question)};
    struct stele_rendered rendered;
    enum stele_status status = stele_render(&rendered, image, &chat, err);
    if (status == STELE_OK)
        status = stele_tokenize_rendered(image, &rendered, false, ids, &g->prompt_count, err);
    g->thinking = true; /* what it thinks before it answers is left out */
    g->thinking_begun = rendered.thinking;
    stele_rendered_free(&rendered);
    return status;
}

static bool print(void *context, const uint32_t *ids, size_t count, const char *text, size_t bytes)
{
    (void)context, (void)ids, (void)count;
    fwrite(text, 1, bytes, stdout);
    return fflush(stdout) == 0; /* false would end the generation */
}

int main(int argc, char **argv)
{
    struct stele_error err;
    struct stele_image *image = NULL;
    struct stele_session *session = NULL;
    struct stele_generation generation = {.tokens_max = 64, .text = true, .deliver = print};
    struct stele_result result;
    uint32_t *ids = NULL;
    if (argc != 3) {
        fprintf(stderr, "usage: generate IMAGE QUESTION\n");
        return STELE_USAGE;
    }
    enum stele_status status = stele_image_open(&image, argv[1], &err);
    if (status == STELE_OK)
        status = read_question(image, argv[2], &generation, &ids, &err);
    if (status == STELE_OK)
        status = stele_session_open(&session, image, NULL, &err);
    if (status == STELE_OK) {
        generation.prompt = ids;
        generation.sampling = stele_default_sampling(image);
        status = stele_generate(session, &generation, &result, &err);
        putchar('\n');
    }
    if (status == STELE_OK)
        status = stele_image_unchanged(image, &err); /* else the answer cannot be trusted */
    if (status != STELE_OK)
        fprintf(stderr, "generate: %s\n", err.text);
    free(ids);
    stele_session_close(session);
    stele_image_close(image);
    return (int)status;
}
