/* SPDX-License-Identifier: Apache-2.0 */
#include "quantise.h"

#include <math.h>

#include "numbers.h"

/* Rounds the group with a given scale and returns the sum of squared errors. */
static float round_group(struct group *out, const float *w, float scale, int low, int high)
{
    float error = 0;
    for (size_t i = 0; i < GROUP; i++) {
        float n = w[i] / scale;
        n = n < (float)low ? (float)low : n > (float)high ? (float)high : n;
        n = n + ROUND_MAGIC - ROUND_MAGIC;
        float d = w[i] - n * scale;
        error = fmaf(d, d, error);
        out->q[i] = (int8_t)n;
    }
    return error;
}

static float largest_of(const float *w)
{
    float largest = 0;
    for (size_t i = 0; i < GROUP; i++)
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
    float largest = largest_of(w);
    *out = (struct group){0};
    if (largest == 0)
        return true;
    out->scale = scale_of(largest / 127.0f);
    if (out->scale >= 0x7c00)
        return false;
    round_group(out, w, float_of_f16(out->scale), -127, 127);
    return true;
}

/* The scale that is best for given integers: least squares, sum w q / sum q q. */
static float refit(const struct group *g, const float *w)
{
    float wq = 0, qq = 0;
    for (size_t i = 0; i < GROUP; i++) {
        wq = fmaf(w[i], (float)g->q[i], wq);
        qq = fmaf((float)g->q[i], (float)g->q[i], qq);
    }
    return qq > 0 ? wq / qq : 0;
}

bool quantise_q4(struct group *out, const float *w)
{
    float largest = largest_of(w), best = INFINITY;
    *out = (struct group){0};
    if (largest == 0)
        return true;
    if (f16_of_float(largest / 8) >= 0x7c00)
        return false;
    /* The largest weight may become anything from 5.5 to 9 steps; each trial is refitted once to its integers. */
    for (int step = 0; step < 15; step++) {
        struct group trial;
        float scale = largest / (5.5f + 0.25f * (float)step);
        for (int fit = 0; fit < 2; fit++) {
            trial.scale = scale_of(scale);
            float error = round_group(&trial, w, float_of_f16(trial.scale), -8, 7);
            if (trial.scale < 0x7c00 && error < best) {
                best = error;
                *out = trial;
            }
            scale = refit(&trial, w);
            if (!(scale > 0))
                break;
        }
    }
    return true;
}
