/* SPDX-License-Identifier: Apache-2.0 */
/* `stele perplexity`: how well a model predicts a text. */
#include <inttypes.h>
#include <math.h>

#include "windows.h"

static struct windows_settings set;

static const struct cmd_option options[] = {WINDOWS_OPTIONS(set), {0}};

static void add_loss(void *sum, const struct windows *w, const float *const *rows, uint32_t id)
{
    *(double *)sum += windows_loss(w, 0, rows[0], id);
}

static void print(const struct windows *w, double mean)
{
    if (set.json) {
        printf("{\"perplexity\": %.9g, \"mean_nll\": %.9g, ", exp(mean), mean);
        windows_describe_json(stdout, w);
        puts("}");
        return;
    }
    printf("perplexity  %.6f\n", exp(mean));
    printf("mean nll    %.7f nats over %zu scored ids of %zu\n", mean, w->scored, w->id_count);
    fputs("definition  exp of the mean of -ln p(id | what its window has before it); ", stdout);
    windows_describe(stdout, w);
    putchar('\n');
}

static int run(int argc, char **argv)
{
    struct stele_error err = {0};
    struct windows w = {0};
    const char *operands[2] = {NULL};
    size_t count;
    double sum = 0;
    enum stele_status status = cmd_options(options, argc, argv, operands, 2, &count, &err);
    if (status == STELE_OK && count < 2)
        status = stele_fail(&err, STELE_USAGE, "no %s is named; `stele help perplexity` says more",
                            count ? "FILE" : "IMAGE");
    if (status == STELE_OK)
        status = windows_open(&w, "perplexity", operands, 1, operands[1], &set, &err);
    if (status == STELE_OK)
        status = windows_walk(&w, add_loss, &sum, &err);
    if (status == STELE_OK)
        print(&w, sum / (double)w.scored);
    windows_close(&w);
    return status == STELE_OK ? STELE_OK : cmd_fail("perplexity", &err);
}

const struct verb verb_perplexity = {
    .name = "perplexity",
    .synopsis = "IMAGE FILE [options]",
    .about =
        "Measures how well the model predicts the text in FILE (\"-\": standard input). The text "
        "is\n"
        "tokenised whole, without special tokens, and cut in windows. Each id is scored once, by\n"
        "what stands before it in its window; an id with nothing before it is not scored. With a\n"
        "stride below the window's length, ids that an earlier window held are context only.\n"
        "Prints exp of the mean negative log-likelihood, and the definition that it follows.",
    .run = run,
    .options = options,
};
