/* SPDX-License-Identifier: Apache-2.0 */
#include "quantise.h"

#include <math.h>
#include <string.h>

#include "numbers.h"
#include "q4_trials.h"

enum {
    LANES = 8
}; /* sums in lanes, so that a compiler can use vectors; the order is fixed, so the bytes are too */

static float sum_lanes(const float *lanes)
{
    float sum = 0;
    for (size_t i = 0; i < LANES; i++)
        sum = sum + lanes[i];
    return sum;
}

static float largest_of(const float *w, size_t n)
{
    float largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fabsf(w[i]) > largest ? fabsf(w[i]) : largest;
    return largest;
}

/* The binary16 next to x, but at least the least subnormal: weights however small keep a scale. */
static uint16_t scale_of(float x)
{
    uint16_t half = f16_of_float(x);
    return half ? half : 1;
}

bool quantise_q8(struct group *out, const float *w)
{
    float largest = largest_of(w, GROUP);
    *out = (struct group){0};
    if (largest == 0)
        return true;
    out->scale = scale_of(largest / 127.0f);
    if (out->scale >= 0x7c00)
        return false;
    float inverse = 1.0f / float_of_f16(out->scale);
    for (size_t i = 0; i < GROUP; i++) {
        float n = w[i] * inverse;
        n = n < -127 ? -127 : n;
        n = n > 127 ? 127 : n;
        out->q[i] = (int8_t)(n + ROUND_MAGIC - ROUND_MAGIC);
    }
    return true;
}

static void weigh(struct weighed *out, const float *w)
{
    float square[LANES] = {0};
    for (size_t i = 0; i < HALF; i++)
        square[i % LANES] += w[i] * w[i];
    float rms = sqrtf(sum_lanes(square) / HALF);
    for (size_t i = 0; i < HALF; i++) {
        out->w[i] = w[i];
        out->importance[i] = rms + fabsf(w[i]);
    }
}

/* Smaller ones have inverses that are too large. */
static bool usable(float scale)
{
    return fabsf(scale) >= 0x1p-120f;
}

/* Both ways to try give the same bits. */
static void try_scales(struct trials *out, const struct weighed *x, const float *scales)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        q4_try_avx2(out, x, scales);
        return;
    }
#endif
    q4_try(out, x, scales);
}

/* The largest weight is tried at either end of the book and somewhat beyond, each trial refitted once to its integers:
 * the best scale for them is sum w q / sum q q. The best is the first of the least, place by place. */
float q4_scale(const float *w)
{
    static const float places[Q4_TRIALS] = {1.3f, 1.15f, 1.03f, 0.95f, 0.88f, 0.81f, 0.74f, 0.67f};
    struct weighed x;
    float least = 0, most = 0, best = INFINITY, found = 0;
    for (size_t i = 0; i < HALF; i++) {
        least = w[i] < least ? w[i] : least;
        most = w[i] > most ? w[i] : most;
    }
    weigh(&x, w);
    for (int sign = 1; sign >= -1; sign -= 2) {
        float low = (float)integer_of_q4(0), high = (float)integer_of_q4(15), scales[2][Q4_TRIALS];
        float fits = sign > 0 ? fmaxf(least / low, most / high) : fminf(most / low, least / high);
        struct trials fit[2];
        found = found == 0 ? fits : found; /* where errors are too large or too small to be told apart */
        for (size_t i = 0; i < Q4_TRIALS; i++)
            scales[0][i] = fits * places[i];
        try_scales(&fit[0], &x, scales[0]);
        for (size_t i = 0; i < Q4_TRIALS; i++)
            scales[1][i] = usable(scales[0][i]) && fit[0].qq[i] > 0 ? fit[0].wq[i] / fit[0].qq[i] : 0;
        try_scales(&fit[1], &x, scales[1]);
        for (size_t i = 0; i < 2 * Q4_TRIALS; i++) {
            const size_t place = i / 2, n = i % 2;
            if (usable(scales[n][place]) && fit[n].error[place] < best) {
                best = fit[n].error[place];
                found = scales[n][place];
            }
        }
    }
    return found;
}

bool q4_row_scale(uint16_t *out, const float *scales, size_t n)
{
    *out = 0;
    float largest = largest_of(scales, n);
    if (largest > 0)
        *out = scale_of(largest / 127.0f);
    if (*out < 0x7c00 && float_of_f16(*out) * 127.0f < largest)
        (*out)++; /* the next one upwards */
    return *out < 0x7c00;
}

void quantise_q4(struct half *out, const float *w, float scale, uint16_t row_scale)
{
    struct weighed x;
    struct trials trials;
    const float unit = float_of_f16(row_scale);
    float best = INFINITY;
    *out = (struct half){0};
    memset(out->code, Q4_ZERO, sizeof out->code);
    if (scale == 0 || unit == 0)
        return;
    weigh(&x, w);
    const float middle = scale / unit + ROUND_MAGIC - ROUND_MAGIC;
    float multiples[Q4_TRIALS] = {middle - 1, middle, middle + 1}, scales[Q4_TRIALS];
    for (size_t i = 0; i < Q4_TRIALS; i++)
        scales[i] = multiples[i] * unit;
    try_scales(&trials, &x, scales);
    for (size_t i = 0; i < 3; i++)
        if (multiples[i] != 0 && fabsf(multiples[i]) <= 127 && trials.error[i] < best) {
            best = trials.error[i];
            out->scale = (int8_t)multiples[i];
        }
    if (out->scale == 0)
        return;
    float inverse = 1.0f / ((float)out->scale * unit);
    for (size_t i = 0; i < HALF; i++) { /* a step for each middle of two numbers of the book that lies below */
        unsigned below = 0;
        for (unsigned code = 1; code < 16; code++)
            below += w[i] * inverse > (float)(integer_of_q4(code - 1) + integer_of_q4(code)) / 2;
        out->code[i] = (uint8_t)below;
    }
}
