/* SPDX-License-Identifier: Apache-2.0 */
#include "quantise.h"

#include <math.h>
#include <string.h>

#include "numbers.h"

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

/* Half a group, and what its errors count: by rms + |w|, for what is large moves the sums more. */
struct weighed {
    float w[HALF], importance[HALF];
};

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

/* One way to round: its weighted squared error, and the sums that the best scale for its integers is made of. */
struct trial {
    float error, wq, qq;
};

/* The book's number that is next to x: the least, and a step for each middle of two that lies below x. */
static float nearest(float x)
{
    float n = (float)integer_of_q4(0);
    for (unsigned code = 1; code < 16; code++) {
        float below = (float)integer_of_q4(code - 1), above = (float)integer_of_q4(code);
        n += x > (below + above) / 2 ? above - below : 0;
    }
    return n;
}

static struct trial try_scale(const struct weighed *x, float scale)
{
    float error[LANES] = {0}, wq[LANES] = {0}, qq[LANES] = {0}, inverse = 1.0f / scale;
    for (size_t i = 0; i < HALF; i += LANES)
        for (size_t l = 0; l < LANES; l++) {
            float w = x->w[i + l], importance = x->importance[i + l], n = nearest(w * inverse);
            float d = w - n * scale;
            error[l] += importance * (d * d);
            wq[l] += importance * (w * n);
            qq[l] += importance * (n * n);
        }
    return (struct trial){sum_lanes(error), sum_lanes(wq), sum_lanes(qq)};
}

/* The largest weight is tried at either end of the book and somewhat beyond, each trial refitted once to its integers:
 * the best scale for them is sum w q / sum q q. */
float q4_scale(const float *w)
{
    static const float places[] = {1.3f, 1.15f, 1.03f, 0.95f, 0.88f, 0.81f, 0.74f, 0.67f};
    struct weighed x;
    float least = 0, most = 0, best = INFINITY, found = 0;
    for (size_t i = 0; i < HALF; i++) {
        least = w[i] < least ? w[i] : least;
        most = w[i] > most ? w[i] : most;
    }
    weigh(&x, w);
    for (int sign = 1; sign >= -1; sign -= 2) {
        float low = (float)integer_of_q4(0), high = (float)integer_of_q4(15);
        float fits = sign > 0 ? fmaxf(least / low, most / high) : fminf(most / low, least / high);
        found = found == 0 ? fits : found; /* where errors are too large or too small to be told apart */
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            float scale = fits * places[i];
            for (int fit = 0; fit < 2 && fabsf(scale) >= 0x1p-120f; fit++) {
                struct trial trial = try_scale(&x, scale);
                if (trial.error < best) {
                    best = trial.error;
                    found = scale;
                }
                scale = trial.qq > 0 ? trial.wq / trial.qq : 0;
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
    const float unit = float_of_f16(row_scale);
    float best = INFINITY;
    *out = (struct half){0};
    memset(out->code, Q4_ZERO, sizeof out->code);
    if (scale == 0 || unit == 0)
        return;
    weigh(&x, w);
    float middle = scale / unit + ROUND_MAGIC - ROUND_MAGIC;
    for (float multiple = middle - 1; multiple <= middle + 1; multiple++) {
        if (multiple == 0 || fabsf(multiple) > 127)
            continue;
        struct trial trial = try_scale(&x, multiple * unit);
        if (trial.error < best) {
            best = trial.error;
            out->scale = (int8_t)multiple;
        }
    }
    if (out->scale == 0)
        return;
    float inverse = 1.0f / ((float)out->scale * unit);
    for (size_t i = 0; i < HALF; i++) {
        float n = nearest(w[i] * inverse);
        for (unsigned code = 0; code < 16; code++)
            if ((float)integer_of_q4(code) == n)
                out->code[i] = (uint8_t)code;
    }
}
