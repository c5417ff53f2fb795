/* SPDX-License-Identifier: Apache-2.0 */
/* Rounding weights to 8 and 4 bits. The one place that knows how scales are chosen; one that knows more of a model than
 * its weights (calibration) is another function here, which fills the same structures. */
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

/* What half a group becomes: weight i stands for integer_of_q4(code[i]) * scale * the row's scale. */
struct half {
    uint8_t code[HALF];
    int8_t scale;
};

/* 4 bits. First for each half of a row's groups the scale that suits it best, whatever its sign: the least weighted sum of
 * squared errors among those tried; 0 for zeros. */
float q4_scale(const float *w);

/* Then the row's: binary16, so that its multiples from -127 to 127 reach all of these. False where that is not finite. */
bool q4_row_scale(uint16_t *out, const float *scales, size_t n);

/* And the codes, with the multiple near `scale` whose error is least. */
void quantise_q4(struct half *out, const float *w, float scale, uint16_t row_scale);

#endif
