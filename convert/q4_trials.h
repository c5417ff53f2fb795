/* SPDX-License-Identifier: Apache-2.0 */
/* Scales of q4 tried eight at a time: what quantise.c spends its time with. */
#ifndef CONVERT_Q4_TRIALS_H
#define CONVERT_Q4_TRIALS_H

#include "panel.h"

enum { Q4_TRIALS = 8 };

/* Half a group, and what its errors count: by rms + |w|, for what is large moves the sums more. */
struct weighed {
    float w[HALF], importance[HALF];
};

/* What comes of rounding it with each of eight scales: the weighted squared errors, and the sums that the best scale
 * for the integers is made of. */
struct trials {
    float error[Q4_TRIALS], wq[Q4_TRIALS], qq[Q4_TRIALS];
};

/* A scale of 0 or one that is not finite gives errors that are not numbers. */
void q4_try(struct trials *out, const struct weighed *x, const float *scales);

/* The same, compiled for AVX2; for CPUs that have it. */
void q4_try_avx2(struct trials *out, const struct weighed *x, const float *scales);

#endif
