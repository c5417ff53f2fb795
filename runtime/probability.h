/* SPDX-License-Identifier: Apache-2.0 */
/* The log-softmax of a row of logits: NUMBERS.md, "Softmax over a vector". */
#ifndef RUNTIME_PROBABILITY_H
#define RUNTIME_PROBABILITY_H

#include "kernels.h"
#include "numbers.h"

struct log_softmax {
    const float *row;
    float largest, log_sum;
};

static inline struct log_softmax log_softmax_of(const struct blas_kernels *kernels, const float *row, size_t n)
{
    struct log_softmax l = {.row = row};
    float sum;
    kernels->log_sum(&l.largest, &sum, row, n);
    l.log_sum = num_log(sum);
    return l;
}

static inline float logprob_of(const struct log_softmax *l, uint32_t id)
{
    return (l->row[id] - l->largest) - l->log_sum;
}

#endif
