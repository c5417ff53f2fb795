/* SPDX-License-Identifier: Apache-2.0 */
/* The sampler against its definition, sorted out at length, bit for bit; against transformers'
 * meaning in binary64; and against the probabilities by chi-square. Inputs come from a seed that a
 * failure names. */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "sampler.h"
#include "../suite.h"

enum { ROUNDS = 1500, VOCABULARY_MAX = 5000, HISTORY_MAX = 60 };

/* ---- random cases: splitmix64 ---- */

struct rng {
    uint64_t state;
};

static uint64_t next(struct rng *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint32_t below(struct rng *r, uint32_t n)
{
    return (uint32_t)(next(r) % n);
}

static float unit(struct rng *r)
{
    return (float)(next(r) >> 40) * 0x1p-24f;
}

/* About normal, from twelve uniform numbers. */
static float normal(struct rng *r)
{
    float sum = -6;
    for (int i = 0; i < 12; i++)
        sum += unit(r);
    return sum;
}

struct draw_case {
    struct stele_sampling sampling;
    uint32_t vocabulary;
    float logits[VOCABULARY_MAX];
    uint32_t history[HISTORY_MAX];
    size_t count;
};

#define PICK(r, ...)                                                                               \
    ((const float[]){__VA_ARGS__}[below((r), sizeof((float[]){__VA_ARGS__}) / sizeof(float))])

/* Sizes, spreads, ties and filters of every kind; `extreme` adds numbers at the ends of binary32.
 */
static void make_case(struct draw_case *c, uint64_t seed, bool extreme)
{
    struct rng r = {seed};
    static const uint32_t sizes[] = {1, 2, 3, 63, 64, 65, 300, 512, 1000, VOCABULARY_MAX};
    c->vocabulary = sizes[below(&r, sizeof sizes / sizeof *sizes)];
    float spread = PICK(&r, 1e-3f, 0.5f, 2, 4, 10, 40);
    float step = PICK(&r, 0, 0, 0.25f, 1); /* rounds logits, so that many tie */
    for (uint32_t i = 0; i < c->vocabulary; i++) {
        float x = normal(&r) * spread;
        c->logits[i] = step > 0 ? roundf(x / step) * step : x;
        if (extreme && !below(&r, 8))
            c->logits[i] = PICK(&r, 0.0f, -0.0f, FLT_MAX, -FLT_MAX, 1e30f, 0x1p-149f, -0x1p-126f);
    }
    c->count = below(&r, HISTORY_MAX + 1);
    for (size_t i = 0; i < c->count; i++)
        c->history[i] = below(&r, c->vocabulary);
    c->sampling = (struct stele_sampling){
        .temperature = PICK(&r, 1, 1, 0.7f, 0.1f, 1.5f, 5),
        .top_k = (uint32_t)PICK(&r, 0, 0, 1, 2, 20, 50, 700, 4e9f),
        .top_p = PICK(&r, 0, 0, 1, 0.9f, 0.5f, 0.999f, 1e-30f),
        .min_p = PICK(&r, 0, 0, 0.05f, 0.5f, 1e-20f, 1),
        .repeat_penalty = PICK(&r, 0, 1, 1.1f, 2, 0.5f),
        .seed = next(&r),
    };
    if (extreme) {
        c->sampling.temperature = PICK(&r, 1e-38f, 0x1p-149f, 1e38f, 0.5f);
        c->sampling.repeat_penalty = PICK(&r, 0, FLT_MAX, 0x1p-149f, 1.1f);
    }
}

static uint32_t draw_with(const struct draw_case *c, const struct blas_kernels *kernels)
{
    struct sampler *s;
    static float logits[VOCABULARY_MAX];
    memcpy(logits, c->logits, c->vocabulary * sizeof *logits);
    ck_assert_int_eq(sampler_open(&s, &c->sampling, c->vocabulary, kernels, NULL), STELE_OK);
    uint32_t id = sampler_draw(s, logits, c->history, c->count);
    sampler_close(s);
    return id;
}

static uint32_t draw(const struct draw_case *c)
{
    return draw_with(c, &blas_generic);
}

static float uniform_of(const struct draw_case *c)
{
    uint32_t words[4], key[2] = {(uint32_t)c->sampling.seed, (uint32_t)(c->sampling.seed >> 32)};
    uint32_t counter[4] = {(uint32_t)c->count, (uint32_t)((uint64_t)c->count >> 32)};
    philox4x32(words, key, counter);
    return (float)(words[0] >> 8) / 16777216;
}

/* ---- two oracles ---- */

static float kept_finite(float x)
{
    return fminf(fmaxf(x, -FLT_MAX), FLT_MAX);
}

static bool in_history(const struct draw_case *c, uint32_t id)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->history[i] == id)
            return true;
    return false;
}

struct candidate {
    float x;
    uint32_t id;
    double p; /* of the second oracle */
};

static int by_x_then_id(const void *a, const void *b)
{
    const struct candidate *p = a, *q = b;
    if (p->x != q->x)
        return p->x > q->x ? -1 : 1;
    return p->id < q->id ? -1 : 1;
}

/* Penalty and temperature, then all ids in order. */
static void order_all(const struct draw_case *c, struct candidate *all)
{
    const struct stele_sampling *s = &c->sampling;
    float penalty = s->repeat_penalty == 0 ? 1 : s->repeat_penalty;
    for (uint32_t i = 0; i < c->vocabulary; i++) {
        float x = c->logits[i];
        if (in_history(c, i))
            x = kept_finite(x < 0 ? x * penalty : x / penalty);
        all[i] = (struct candidate){.x = kept_finite(x / s->temperature), .id = i};
    }
    qsort(all, c->vocabulary, sizeof *all, by_x_then_id);
}

/* sampler.h to the letter: every id sorted, every sum taken. */
static uint32_t draw_at_length(const struct draw_case *c)
{
    static struct candidate all[VOCABULARY_MAX];
    static float w[VOCABULARY_MAX], sum[VOCABULARY_MAX], x[VOCABULARY_MAX];
    const struct stele_sampling *s = &c->sampling;
    order_all(c, all);
    uint32_t n = c->vocabulary;
    for (uint32_t i = 0; i < n; i++) {
        w[i] = num_exp(all[i].x - all[0].x);
        sum[i] = (i ? sum[i - 1] : 0) + w[i];
        x[all[i].id] = all[i].x;
    }
    float largest, whole;
    blas_generic.log_sum(&largest, &whole, x, n);
    if (s->top_k && s->top_k < n) {
        n = s->top_k;
        whole = sum[n - 1];
    }
    if (s->top_p > 0 && s->top_p < 1)
        for (uint32_t i = 0; i < n; i++)
            if (sum[i] >= s->top_p * whole)
                n = i + 1;
    for (uint32_t i = 0; i < n; i++)
        if (w[i] < s->min_p)
            n = i;
    uint32_t i = 0;
    while (!(sum[i] > uniform_of(c) * sum[n - 1]))
        i++;
    ck_assert_uint_lt(i, n);
    return all[i].id;
}

/* transformers' steps one after the other in binary64, each with a softmax of its own over what the
 * steps before it left. Fills p (0: left out) of `all`, which is in order. */
static void probabilities(const struct draw_case *c, struct candidate *all)
{
    const struct stele_sampling *s = &c->sampling;
    order_all(c, all);
    uint32_t n = c->vocabulary;
    for (int step = 0; step < 4; step++) { /* top-k, top-p, min-p, and the last softmax */
        if (step == 0 && s->top_k && s->top_k < n)
            n = s->top_k;
        double sum = 0, before = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += exp((double)all[i].x - (double)all[0].x);
        for (uint32_t i = 0; i < c->vocabulary; i++)
            all[i].p = i < n ? exp((double)all[i].x - (double)all[0].x) / sum : 0;
        uint32_t kept = n;
        if (step == 1 && s->top_p > 0 && s->top_p < 1)
            for (kept = 0; !kept || (kept < n && before < (double)s->top_p - 1e-6); kept++)
                before += all[kept].p; /* where ids tie, the sum can be p but for rounding */
        if (step == 2)
            while (kept > 1 && all[kept - 1].p < (double)s->min_p * all[0].p)
                kept--;
        n = kept;
    }
}

/* ---- tests ---- */

START_TEST(philox_gives_the_known_answers) /* Random123, kat_vectors, philox4x32 10 */
{
    static const uint32_t known[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
         0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        philox4x32(out, known[i] + 4, known[i]);
        ck_assert_msg(!memcmp(out, known[i] + 6, sizeof out), "vector %d: %08x %08x %08x %08x", i,
                      out[0], out[1], out[2], out[3]);
    }
}
END_TEST

static struct draw_case the_case; /* too large for a stack */

START_TEST(a_draw_is_what_the_definition_says)
{
    for (uint64_t seed = 0; seed < ROUNDS; seed++) {
        make_case(&the_case, seed, _i == 1);
        uint32_t want = draw_at_length(&the_case), got = draw(&the_case);
        ck_assert_msg(want == got, "seed %" PRIu64 ", extreme %d: id %u instead of %u", seed, _i,
                      got, want);
    }
}
END_TEST

/* One id has nearly everything; the others lie about where a weight ceases to move a sum of 1.
 * Seeds are those that come to the others. */
START_TEST(what_is_too_unlikely_to_count_changes_nothing)
{
    struct rng r = {11};
    the_case = (struct draw_case){.sampling = {.temperature = 1}, .vocabulary = VOCABULARY_MAX};
    for (uint32_t i = 0; i < VOCABULARY_MAX; i++)
        the_case.logits[i] = i == 99 ? 0 : -14.5f - 3 * unit(&r);
    for (unsigned found = 0; found < 200; the_case.sampling.seed++) {
        if (uniform_of(&the_case) < 0.9994f)
            continue;
        uint32_t want = draw_at_length(&the_case), got = draw(&the_case);
        ck_assert_msg(want == got, "seed %" PRIu64 ": id %u instead of %u", the_case.sampling.seed,
                      got, want);
        found++;
    }
}
END_TEST

/* u lies in the drawn id's part of the line from 0 to 1, but for what binary32 loses in long sums.
 */
START_TEST(filters_mean_what_transformers_means)
{
    static struct candidate all[VOCABULARY_MAX];
    for (uint64_t seed = 0; seed < ROUNDS; seed++) {
        make_case(&the_case, seed, false);
        probabilities(&the_case, all);
        uint32_t got = draw(&the_case), i = 0;
        double u = (double)uniform_of(&the_case), before = 0;
        for (; all[i].id != got; i++)
            before += all[i].p;
        ck_assert_msg(all[i].p > 0, "seed %" PRIu64 ": id %u should be left out", seed, got);
        ck_assert_msg(u > before - 1e-5 && u < before + all[i].p + 1e-5,
                      "seed %" PRIu64 ": id %u has %.6g to %.6g, but u is %.6g", seed, got, before,
                      before + all[i].p, u);
    }
}
END_TEST

START_TEST(every_kernel_table_draws_the_same)
{
    for (size_t t = 0; blas_table(t); t++)
        for (uint64_t seed = 0; blas_table(t)->usable() && seed < ROUNDS; seed++) {
            make_case(&the_case, seed, seed % 4 == 0);
            uint32_t want = draw(&the_case), got = draw_with(&the_case, blas_table(t));
            ck_assert_msg(want == got, "%s, seed %" PRIu64 ": id %u instead of %u",
                          blas_table(t)->name, seed, got, want);
        }
}
END_TEST

/* The statistic must stay below mean + 5 standard deviations of its distribution. */
START_TEST(drawn_ids_fit_the_probabilities)
{
    enum { SEEDS = 2000, IDS = 60 };
    static const struct stele_sampling kinds[] = {
        {.temperature = 1},
        {.temperature = 0.7f, .top_k = 10},
        {.temperature = 1.3f, .top_p = 0.9f},
        {.temperature = 1, .min_p = 0.1f},
        {.temperature = 2, .top_k = 40, .top_p = 0.95f, .min_p = 0.02f, .repeat_penalty = 1.3f},
    };
    static struct candidate all[IDS];
    unsigned hits[IDS] = {0};
    struct rng r = {7};
    the_case = (struct draw_case){.sampling = kinds[_i], .vocabulary = IDS, .count = 9};
    for (uint32_t i = 0; i < IDS; i++)
        the_case.logits[i] = normal(&r) * 2;
    for (size_t i = 0; i < the_case.count; i++)
        the_case.history[i] = below(&r, IDS);
    probabilities(&the_case, all);
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        the_case.sampling.seed = seed;
        hits[draw(&the_case)]++;
    }
    double statistic = 0, expected = 0, seen = 0;
    unsigned classes = 0;
    for (uint32_t i = 0; i < IDS; i++) { /* the least likely are taken together */
        ck_assert_msg(all[i].p > 0 || !hits[all[i].id], "id %u was drawn, though left out",
                      all[i].id);
        expected += all[i].p * SEEDS;
        seen += hits[all[i].id];
        if (expected < 5 && i + 1 < IDS)
            continue;
        statistic += expected > 0 ? (seen - expected) * (seen - expected) / expected : 0;
        classes += expected > 0;
        expected = seen = 0;
    }
    double freedom = classes - 1.0;
    ck_assert_msg(statistic < freedom + 5 * sqrt(2 * freedom),
                  "chi-square %g with %g degrees of freedom", statistic, freedom);
}
END_TEST

START_TEST(the_same_seed_and_position_repeat)
{
    struct sampler *s;
    static float logits[VOCABULARY_MAX];
    uint32_t first[20], others = 0;
    make_case(&the_case, 5, false);
    the_case.vocabulary = 1000;
    for (uint32_t i = 0; i < the_case.vocabulary; i++)
        the_case.logits[i] = (float)(i % 17) * 0.1f;
    the_case.sampling =
        (struct stele_sampling){.temperature = 1, .repeat_penalty = 1.2f, .seed = UINT64_MAX - 3};
    ck_assert_int_eq(sampler_open(&s, &the_case.sampling, the_case.vocabulary, &blas_generic, NULL),
                     STELE_OK);
    for (int round = 0; round < 3; round++)
        for (size_t count = 0; count < 20; count++) {
            memcpy(logits, the_case.logits, sizeof logits);
            uint32_t id = sampler_draw(s, logits, the_case.history, count);
            first[count] = round ? first[count] : id;
            ck_assert_uint_eq(id, first[count]);
            others += id != first[0];
        }
    ck_assert_uint_gt(others, 0); /* the position matters */
    sampler_close(s);
    the_case.count = 19;
    ck_assert_uint_eq(draw(&the_case), first[19]); /* whatever was drawn before */
    the_case.sampling.seed -= (uint64_t)1 << 32;
    uint32_t high = draw(&the_case);
    the_case.sampling.seed += ((uint64_t)1 << 32) - 1;
    ck_assert(high != first[19] ||
              draw(&the_case) != first[19]); /* both halves of the seed matter */
}
END_TEST

/* The id for these four logits. */
static uint32_t draw_four(struct stele_sampling sampling, const float logits[4],
                          const uint32_t *history, size_t count)
{
    the_case = (struct draw_case){.sampling = sampling, .vocabulary = 4, .count = count};
    memcpy(the_case.logits, logits, 4 * sizeof *logits);
    if (count)
        memcpy(the_case.history, history, count * sizeof *history);
    return draw(&the_case);
}

START_TEST(greedy_takes_the_lowest_of_equals)
{
    const struct stele_sampling greedy = {0}, penalised = {.repeat_penalty = 2};
    ck_assert_uint_eq(draw_four(greedy, (float[]){1, 3, 3, 2}, NULL, 0), 1);
    ck_assert_uint_eq(draw_four(greedy, (float[]){-1, -0.0f, 0, -3}, NULL, 0), 1);
    ck_assert_uint_eq(draw_four(greedy, (float[]){-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX}, NULL, 0),
                      0);
    /* a penalty counts once however often the id occurs; negative logits go down too */
    ck_assert_uint_eq(draw_four(penalised, (float[]){0, 6, 2.9f, 0}, (uint32_t[]){1, 1, 1}, 3), 1);
    ck_assert_uint_eq(draw_four(penalised, (float[]){0, 6, 3.1f, 0}, (uint32_t[]){1}, 1), 2);
    ck_assert_uint_eq(draw_four(penalised, (float[]){-2, -3, -9, -9}, (uint32_t[]){0}, 1), 1);
    /* the other fields do nothing */
    struct stele_sampling all = {.top_k = 1, .top_p = 1e-9f, .min_p = 1, .seed = 9};
    ck_assert_uint_eq(draw_four(all, (float[]){1, 2, 3, 3}, NULL, 0), 2);
}
END_TEST

/* How many of 500 seeds draw each of four ids. */
static void count_draws(struct stele_sampling sampling, const float logits[4], unsigned hits[4])
{
    memset(hits, 0, 4 * sizeof *hits);
    for (sampling.seed = 0; sampling.seed < 500; sampling.seed++)
        hits[draw_four(sampling, logits, NULL, 0)]++;
}

START_TEST(ties_at_the_edge_keep_the_lower_id)
{
    unsigned hits[4];
    const float logits[4] = {1, 2, 2, 2};
    count_draws((struct stele_sampling){.temperature = 1, .top_k = 2}, logits, hits);
    ck_assert(hits[1] > 200 && hits[2] > 200 && !hits[0] && !hits[3]);
    count_draws((struct stele_sampling){.temperature = 1, .top_p = 0.5f}, logits,
                hits); /* 0.2899 each */
    ck_assert(hits[1] > 200 && hits[2] > 200 && !hits[0] && !hits[3]);
    count_draws((struct stele_sampling){.temperature = 1, .min_p = 1}, logits,
                hits); /* ties with the best stay */
    ck_assert(hits[1] > 100 && hits[2] > 100 && hits[3] > 100 && !hits[0]);
    count_draws((struct stele_sampling){.temperature = 1, .top_p = 1e-45f}, logits, hits);
    ck_assert_uint_eq(hits[1], 500);
}
END_TEST

START_TEST(extremes_are_drawn_from_too)
{
    unsigned hits[4];
    const float flat[4] = {-5, 3, 3, 90};
    count_draws((struct stele_sampling){.temperature = FLT_MAX}, flat, hits);
    for (int i = 0; i < 4; i++)
        ck_assert_uint_gt(hits[i], 80); /* every one a quarter */
    count_draws((struct stele_sampling){.temperature = 0x1p-149f}, flat, hits);
    ck_assert_uint_eq(hits[1] + hits[2] + hits[3], 500); /* all three beyond the largest number */
    count_draws((struct stele_sampling){.temperature = 1, .top_k = UINT32_MAX},
                (float[]){1, 1, 1, 1}, hits);
    for (int i = 0; i < 4; i++)
        ck_assert_uint_gt(hits[i], 80);
    struct stele_sampling penalty = {.temperature = 1, .repeat_penalty = FLT_MAX};
    ck_assert_uint_lt(draw_four(penalty, (float[]){-9, -9, -9, -9}, (uint32_t[]){0, 1, 2, 3}, 4),
                      4);
}
END_TEST

START_TEST(fields_out_of_range_are_refused_by_name)
{
    const struct {
        struct stele_sampling sampling;
        const char *name;
    } wrong[] = {
        {{.temperature = -1}, "temperature"},
        {{.temperature = NAN}, "temperature"},
        {{.temperature = INFINITY}, "temperature"},
        {{.top_p = 1.5f}, "top_p"},
        {{.top_p = -0x1p-149f}, "top_p"},
        {{.min_p = NAN}, "min_p"},
        {{.min_p = 1.00001f}, "min_p"},
        {{.repeat_penalty = -2}, "repeat_penalty"},
        {{.repeat_penalty = INFINITY}, "repeat_penalty"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct stele_error err = {0};
        struct sampler *s;
        ck_assert_int_eq(sampler_open(&s, &wrong[i].sampling, 10, &blas_generic, &err),
                         STELE_USAGE);
        ck_assert_ptr_null(s);
        ck_assert_msg(strstr(err.text, wrong[i].name) != NULL, "%s", err.text);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sampler");
    TCase *tc = tcase_create("draws");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, philox_gives_the_known_answers);
    tcase_add_loop_test(tc, a_draw_is_what_the_definition_says, 0, 2);
    tcase_add_test(tc, what_is_too_unlikely_to_count_changes_nothing);
    tcase_add_test(tc, filters_mean_what_transformers_means);
    tcase_add_test(tc, every_kernel_table_draws_the_same);
    tcase_add_loop_test(tc, drawn_ids_fit_the_probabilities, 0, 5);
    tcase_add_test(tc, the_same_seed_and_position_repeat);
    tcase_add_test(tc, greedy_takes_the_lowest_of_equals);
    tcase_add_test(tc, ties_at_the_edge_keep_the_lower_id);
    tcase_add_test(tc, extremes_are_drawn_from_too);
    tcase_add_test(tc, fields_out_of_range_are_refused_by_name);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
