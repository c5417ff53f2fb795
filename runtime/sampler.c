/* SPDX-License-Identifier: Apache-2.0 */
/* The likeliest ids come in order without sorting all of them:
 *
 *     logits --penalise, heat--> x --spread_ids--> order[] by buckets
 *            --take_likeliest--> order[0, n), weights where x was --cut_sum, cut_weight--> fewer
 *
 * A bucket is a range of x; buckets come downwards, and one is sorted when the walk reaches it. So
 * top-k and top-p sort little more than they keep.
 *
 * What lies further than REACH below the largest is left out from the start, with the same bits:
 * its weight is less than 2^-24, and a running sum, which begins with 1, stays what it is when such
 * a number is added. Therefore such an id can neither be drawn nor move another one. */
#include "sampler.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

/* exp(-REACH) is 2^-24 less 0.4 %, far more than what exp and the difference are off by. */
#define REACH 16.64f
enum { BUCKETS_MAX = 1 << 14 };

struct sampler {
    struct stele_sampling sampling;
    uint32_t vocabulary;
    const struct blas_kernels *kernels;
    uint8_t *seen;        /* [vocabulary / 8 + 1]: a bit an id, all zero between draws */
    uint32_t *order;      /* [vocabulary] ids */
    uint32_t *bucket_end; /* [buckets]: where in `order` a bucket ends */
    uint32_t buckets;
};

void philox4x32(uint32_t out[4], const uint32_t key[2], const uint32_t counter[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c0 * 0xd2511f53u, b = (uint64_t)c2 * 0xcd9e8d57u;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* A number from 0 to 1 - 2^-24. */
static float uniform(uint64_t seed, uint64_t position)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32)};
    uint32_t words[4];
    philox4x32(words, key, counter);
    return (float)(words[0] >> 8) * 0x1p-24f;
}

/* ---- opening ---- */

enum stele_status sampler_check(const struct stele_sampling *s, struct stele_error *err)
{
    const struct {
        const char *name;
        float value, most;
    } fields[] = {
        {"temperature", s->temperature, FLT_MAX},
        {"top_p", s->top_p, 1},
        {"min_p", s->min_p, 1},
        {"repeat_penalty", s->repeat_penalty, FLT_MAX},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!(fields[i].value >= 0 && fields[i].value <= fields[i].most))
            return stele_fail(err, STELE_USAGE, "sampling: %s is %g; it must be %s", fields[i].name,
                              (double)fields[i].value,
                              fields[i].most == 1 ? "from 0 to 1" : "finite and not negative");
    return STELE_OK;
}

enum stele_status sampler_open(struct sampler **out, const struct stele_sampling *sampling,
                               uint32_t vocabulary, const struct blas_kernels *kernels,
                               struct stele_error *err)
{
    *out = NULL;
    assert(vocabulary);
    enum stele_status status = sampler_check(sampling, err);
    if (status != STELE_OK)
        return status;
    struct sampler *s = calloc(1, sizeof *s);
    if (s) {
        *s = (struct sampler){.sampling = *sampling, .vocabulary = vocabulary, .kernels = kernels};
        s->buckets = vocabulary < BUCKETS_MAX ? vocabulary : BUCKETS_MAX;
        s->seen = calloc(vocabulary / 8 + (size_t)1, 1);
        s->order = malloc(vocabulary * sizeof *s->order);
        s->bucket_end = malloc(s->buckets * sizeof *s->bucket_end);
    }
    if (!s || !s->seen || !s->order || !s->bucket_end) {
        sampler_close(s);
        return stele_fail(err, STELE_SYSTEM, "no memory to draw from %u ids", vocabulary);
    }
    *out = s;
    return STELE_OK;
}

void sampler_close(struct sampler *s)
{
    if (!s)
        return;
    free(s->seen);
    free(s->order);
    free(s->bucket_end);
    free(s);
}

/* ---- logits ---- */

/* Keeps a quotient or product finite, so that differences are no NaN. */
static float clamp(float x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

static void penalise(struct sampler *s, float *logits, const uint32_t *history, size_t count)
{
    float penalty = s->sampling.repeat_penalty;
    if (penalty == 0 || penalty == 1)
        return;
    for (size_t i = 0; i < count; i++) {
        uint32_t id = history[i], bit = 1u << id % 8;
        assert(id < s->vocabulary);
        if (s->seen[id / 8] & bit)
            continue;
        s->seen[id / 8] |= (uint8_t)bit;
        logits[id] = clamp(logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty);
    }
    for (size_t i = 0; i < count; i++)
        s->seen[history[i] / 8] = 0;
}

static void heat(const struct sampler *s, float *logits)
{
    float temperature = s->sampling.temperature;
    if (temperature != 1)
        for (uint32_t id = 0; id < s->vocabulary; id++)
            logits[id] = clamp(logits[id] / temperature);
}

static uint32_t likeliest(const struct sampler *s, const float *logits)
{
    uint32_t best = 0;
    for (uint32_t id = 1; id < s->vocabulary; id++)
        if (logits[id] > logits[best])
            best = id;
    return best;
}

/* ---- order ---- */

/* Numbers buckets from the largest x downwards; a smaller x never has a lower number. */
struct ruler {
    float largest;
    float span;       /* what lies further below `largest` does not count */
    float per_bucket; /* buckets for 1 of x */
    uint32_t last;
};

static struct ruler make_ruler(const struct sampler *s, const float *x)
{
    struct ruler r = {.largest = x[0], .last = s->buckets - 1};
    float lowest = x[0];
    for (uint32_t id = 1; id < s->vocabulary; id++) {
        r.largest = x[id] > r.largest ? x[id] : r.largest;
        lowest = x[id] < lowest ? x[id] : lowest;
    }
    r.span = r.largest - lowest < REACH ? r.largest - lowest : REACH;
    r.per_bucket = r.span > 0x1p-60f ? (float)r.last / r.span : 0;
    return r;
}

static bool counts(const struct ruler *r, float x)
{
    return r->largest - x <= r->span;
}

static uint32_t bucket_of(const struct ruler *r, float x)
{
    uint32_t bucket = (uint32_t)((r->largest - x) * r->per_bucket);
    return bucket < r->last ? bucket : r->last;
}

/* Puts the ids that count into `order`, by bucket, ascending in each: a counting sort. Returns
 * their number. */
static uint32_t spread_ids(struct sampler *s, const float *x, const struct ruler *r)
{
    uint32_t *end = s->bucket_end, sum = 0;
    memset(end, 0, s->buckets * sizeof *end);
    for (uint32_t id = 0; id < s->vocabulary; id++)
        if (counts(r, x[id]))
            end[bucket_of(r, x[id])]++;
    for (uint32_t b = 0; b < s->buckets; b++) {
        uint32_t count = end[b];
        end[b] = sum; /* its start; placing the ids moves it to the end */
        sum += count;
    }
    for (uint32_t id = 0; id < s->vocabulary; id++)
        if (counts(r, x[id]))
            s->order[end[bucket_of(r, x[id])]++] = id;
    return sum;
}

static bool comes_before(const float *x, uint32_t a, uint32_t b)
{
    return x[a] > x[b] || (x[a] == x[b] && a < b);
}

/* By (x down, id up). Shell's method with Tokuda's gaps: in place, quick for the few ids of a
 * bucket, bearable for a whole vocabulary. */
static void sort_ids(uint32_t *ids, uint32_t n, const float *x)
{
    static const uint32_t gaps[] = {776591, 345152, 153401, 68178, 30301, 13467, 5985, 2660, 1182,
                                    525,    233,    103,    46,    20,    9,     4,    1};
    for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++)
        for (uint32_t i = gaps[g]; i < n; i++) {
            uint32_t id = ids[i], at = i;
            for (; at >= gaps[g] && comes_before(x, id, ids[at - gaps[g]]); at -= gaps[g])
                ids[at] = ids[at - gaps[g]];
            ids[at] = id;
        }
}

/* ---- filters ---- */

/* What ends the order: as many ids, as large a running sum, so small a weight. */
struct limits {
    uint32_t count;
    float sum, weight;
};

/* Sorts the beginning of `order` up to the first limit, replaces x by weights there, and returns
 * how many ids that are. */
static uint32_t take_likeliest(struct sampler *s, float *x, const struct ruler *r,
                               uint32_t candidates, const struct limits *limits)
{
    uint32_t n = 0;
    float sum = 0;
    for (uint32_t b = 0; n < candidates; b++) {
        uint32_t end = s->bucket_end[b];
        sort_ids(s->order + n, end - n, x);
        for (; n < end; n++) {
            uint32_t id = s->order[n];
            float weight = num_exp(x[id] - r->largest);
            if (weight < limits->weight)
                return n;
            x[id] = weight;
            sum = sum + weight;
            if (n + 1 == limits->count || sum >= limits->sum)
                return n + 1;
        }
    }
    return n;
}

static float sum_of(const struct sampler *s, const float *weights, uint32_t n)
{
    float sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum = sum + weights[s->order[i]];
    return sum;
}

/* How many of the first n make up `enough`. */
static uint32_t cut_sum(const struct sampler *s, const float *weights, uint32_t n, float enough)
{
    float sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum = sum + weights[s->order[i]];
        if (sum >= enough)
            return i + 1;
    }
    return n;
}

static uint32_t cut_weight(const struct sampler *s, const float *weights, uint32_t n, float least)
{
    for (uint32_t i = 0; i < n; i++)
        if (weights[s->order[i]] < least)
            return i;
    return n;
}

/* Leaves the ids that pass all filters in order[0, n), their weights in x; returns n >= 1. */
static uint32_t filter(struct sampler *s, float *x)
{
    const struct stele_sampling *o = &s->sampling;
    bool by_count = o->top_k != 0 && o->top_k < s->vocabulary;
    bool by_sum = o->top_p != 0 && o->top_p != 1;
    struct limits limits = {by_count ? o->top_k : s->vocabulary, INFINITY, o->min_p};
    if (by_count && by_sum)
        limits.weight = 0; /* top-p asks for the sum of all k */
    if (by_sum && !by_count) {
        float largest, sum;
        s->kernels->log_sum(&largest, &sum, x, s->vocabulary);
        limits.sum = o->top_p * sum;
    }
    struct ruler ruler = make_ruler(s, x);
    uint32_t n = take_likeliest(s, x, &ruler, spread_ids(s, x, &ruler), &limits);
    if (by_count && by_sum) {
        n = cut_sum(s, x, n, o->top_p * sum_of(s, x, n));
        n = cut_weight(s, x, n, o->min_p);
    }
    return n;
}

uint32_t sampler_draw(struct sampler *s, float *logits, const uint32_t *history, size_t count)
{
    penalise(s, logits, history, count);
    if (s->sampling.temperature == 0)
        return likeliest(s, logits);
    heat(s, logits);
    uint32_t n = filter(s, logits);
    assert(n >= 1);
    float threshold = uniform(s->sampling.seed, count) * sum_of(s, logits, n), sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum = sum + logits[s->order[i]];
        if (sum > threshold)
            return s->order[i];
    }
    return s->order[n - 1]; /* never: u < 1, so that the threshold is below the sum */
}
