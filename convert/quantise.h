/* SPDX-License-Identifier: Apache-2.0 */
/* Rounding weights to 8 and 4 bits: one group of 32 numbers along K at a time. The one place that knows how scales are
 * chosen; another 4-bit format is another function here. */
#ifndef CONVERT_QUANTISE_H
#define CONVERT_QUANTISE_H

#include <stdint.h>

#include "panel.h"

/* What a group becomes: weight i stands for q[i] * scale. */
struct group {
    int8_t q[GROUP];
    uint16_t scale; /* binary16, not negative */
};

/* 8 bits: q in [-127, 127], scale the binary16 next to largest / 127. False where that is not finite. */
bool quantise_q8(struct group *out, const float *w);

/* 4 bits: q in [-8, 7], the scale with the least weighted sum of squared errors among those tried. */
bool quantise_q4(struct group *out, const float *w);

#endif
