/* SPDX-License-Identifier: Apache-2.0 */
/* `stele kld`: how far a model's predictions are from those of a reference, such as the same model
 * before rounding. Both run side by side, so no file of logits is needed.
 *
 * The numbers judge, they are no answer of a model: sums are in binary64, with the C library's exp
 * and log. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "windows.h"

enum { JUDGED = 0, REFERENCE = 1 };

static struct windows_settings set;
static const char *reference;

static const struct cmd_option options[] = {
    {"--reference", OPTION_TEXT, &reference, "IMAGE", "what IMAGE is compared with", 0, 0, NULL},
    WINDOWS_OPTIONS(set),
    {0},
};

struct tally {
    double *divergences; /* [scored], ascending at the end */
    size_t count, same_top;
    double losses[WINDOWS_MODELS_MAX];
};

static uint32_t top_of(const float *row, uint32_t n)
{
    uint32_t top = 0;
    for (uint32_t i = 1; i < n; i++)
        top = row[i] > row[top] ? i : top;
    return top;
}

/* Sum of p ln(p / q), p and q being the softmax of two rows whose largest logits are given. */
static double divergence(const float *p, float p_largest, const float *q, float q_largest,
                         uint32_t n)
{
    double p_sum = 0, q_sum = 0, weighted = 0;
    for (uint32_t i = 0; i < n; i++) {
        double above = (double)p[i] - (double)p_largest, other = (double)q[i] - (double)q_largest,
               e = exp(above);
        p_sum += e;
        q_sum += exp(other);
        weighted += e * (above - other);
    }
    double result = weighted / p_sum - (log(p_sum) - log(q_sum));
    return result > 0 ? result : 0; /* below only by rounding */
}

static void add_row(void *context, const struct windows *w, const float *const *rows, uint32_t id)
{
    struct tally *t = context;
    uint32_t tops[WINDOWS_MODELS_MAX];
    for (size_t i = 0; i < w->model_count; i++) {
        tops[i] = top_of(rows[i], w->vocabulary);
        t->losses[i] += windows_loss(w, i, rows[i], id);
    }
    t->same_top += tops[JUDGED] == tops[REFERENCE];
    t->divergences[t->count++] =
        divergence(rows[REFERENCE], rows[REFERENCE][tops[REFERENCE]], rows[JUDGED],
                   rows[JUDGED][tops[JUDGED]], w->vocabulary);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The least divergence that at least `share` of all do not exceed. */
static double quantile(const struct tally *t, double share)
{
    size_t rank = (size_t)ceil(share * (double)t->count);
    return t->divergences[rank ? rank - 1 : 0];
}

static void print(const struct windows *w, struct tally *t)
{
    double n = (double)t->count, sum = 0;
    for (size_t i = 0; i < t->count; i++)
        sum += t->divergences[i];
    qsort(t->divergences, t->count, sizeof *t->divergences, ascending);
    double mean = sum / n, p90 = quantile(t, 0.9), p99 = quantile(t, 0.99),
           largest = quantile(t, 1);
    double same = (double)t->same_top / n, own = exp(t->losses[JUDGED] / n),
           other = exp(t->losses[REFERENCE] / n);
    double ratio = exp((t->losses[JUDGED] - t->losses[REFERENCE]) / n);
    if (set.json) {
        printf(
            "{\"mean\": %.9g, \"p90\": %.9g, \"p99\": %.9g, \"largest\": %.9g, \"same_top\": %.9g, "
            "\"perplexity\": %.9g, \"reference_perplexity\": %.9g, \"perplexity_ratio\": %.9g, ",
            mean, p90, p99, largest, same, own, other, ratio);
        windows_describe_json(stdout, w);
        puts("}");
        return;
    }
    printf("KL divergence     mean %.6g, 90 %% below %.6g, 99 %% below %.6g, largest %.6g nats\n",
           mean, p90, p99, largest);
    printf("same top token    %.3f %% of %zu\n", 100 * same, t->count);
    printf("perplexity        %.6f against %.6f: ratio %.6f\n", own, other, ratio);
    fputs("definition        sum of p ln(p / q), p by the reference, q by the image, after what "
          "each id's window has\n"
          "                  before it; ",
          stdout);
    windows_describe(stdout, w);
    putchar('\n');
}

static enum stele_status compare(struct windows *w, struct stele_error *err)
{
    struct tally t = {.divergences = malloc(w->scored * sizeof *t.divergences)};
    if (!t.divergences)
        return stele_fail(err, STELE_SYSTEM, "no memory for %zu numbers", w->scored);
    enum stele_status status = windows_walk(w, add_row, &t, err);
    if (status == STELE_OK)
        print(w, &t);
    free(t.divergences);
    return status;
}

static int run(int argc, char **argv)
{
    struct stele_error err = {0};
    struct windows w = {0};
    const char *operands[2] = {NULL};
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, operands, 2, &count, &err);
    if (status == STELE_OK && (count < 2 || !reference))
        status = stele_fail(&err, STELE_USAGE, "no %s is named; `stele help kld` says more",
                            !count      ? "IMAGE"
                            : count < 2 ? "FILE"
                                        : "--reference IMAGE");
    const char *paths[] = {[JUDGED] = operands[0], [REFERENCE] = reference};
    if (status == STELE_OK)
        status = windows_open(&w, "kld", paths, 2, operands[1], &set, &err);
    if (status == STELE_OK)
        status = compare(&w, &err);
    windows_close(&w);
    return status == STELE_OK ? STELE_OK : cmd_fail("kld", &err);
}

const struct verb verb_kld = {
    .name = "kld",
    .synopsis = "IMAGE --reference IMAGE FILE [options]",
    .about =
        "Measures how far the predictions of an image are from those of a reference, over the "
        "text\n"
        "in FILE (\"-\": standard input): the Kullback-Leibler divergence at each id that "
        "perplexity\n"
        "would score, its mean, the values that 90 % and 99 % of the ids do not exceed, the "
        "largest;\n"
        "how often both have the same likeliest token; and the ratio of their perplexities. Both\n"
        "images must have the same vocabulary.",
    .run = run,
    .options = options,
};
